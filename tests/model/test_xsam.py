"""The whole model against the recorded reference: losses, gradients, teacher-forced and generated answers."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("scipy")

from dataengine import masks as rles  # noqa: E402
from model.batches import collate, swap  # noqa: E402
from model.config import ConnectorConfig, DecoderConfig, Part, RegionConfig, XSamConfig  # noqa: E402
from model.inputs import AskedFor, Inputs, Shown, Target  # noqa: E402
from model.pictures import Picture  # noqa: E402
from model.words import MarkerIds, Words  # noqa: E402
from model.xsam import XSam  # noqa: E402


def recorded_config(config: dict) -> XSamConfig:
    """The recorded tiny sizes."""
    decoder, vision = config["segmentor_decoder"], dict(config["vision"])
    return XSamConfig(
        name="recorded",
        language=Part(kind="phi3", settings=config["llm"]),
        image_encoder=Part(kind="siglip_vision_model", settings=vision),
        seg_encoder=Part(kind="sam_vision_model", settings=config["segmentor_encoder"]),
        connector=ConnectorConfig(hidden_dim=16, layers=tuple(config["seg_select_layers"])),
        decoder=DecoderConfig(
            hidden_dim=decoder["hidden_dim"],
            num_queries=decoder["num_queries"],
            heads=decoder["num_attention_heads"],
            encoder_layers=decoder["encoder_layers"],
            encoder_feedforward=decoder["encoder_feedforward_dim"],
            layers=decoder["decoder_layers"] - 1,
            feedforward=decoder["dim_feedforward"],
            points=decoder["train_num_points"],
        ),
        region=RegionConfig(points=256),
        image_px=28,
        seg_px=128,
    )


@pytest.fixture
def recorded(golden):
    """The recorded model, its case and the tensors that all batches share."""
    case = golden("e2e")
    model = XSam(recorded_config(case.config))
    weights = case.tensors("weights")
    weights.pop("segmentor.shared_image_embedding.positional_embedding")
    model.load_state_dict(weights)
    return model.train(), case, case.tensors("common")


MARKERS = MarkerIds(seg=61, phrase_open=62, phrase_close=63)


def recorded_inputs(task: str, tensors: dict, common: dict, config: dict, with_answer: bool = True) -> list[Inputs]:
    """The recorded ids, pictures and targets as inputs."""
    found = []
    for n in range(len(tensors["in.input_ids"])):
        keep = tensors["in.input_ids"][n] != 0
        nothing = torch.full_like(tensors["in.input_ids"][n], -1)
        conds, segs = tensors.get("in.cond_ids"), tensors.get("in.seg_ids")
        words = Words(
            input_ids=tensors["in.input_ids"][n][keep],
            labels=tensors["in.labels"][n][keep],
            cond_ids=(nothing if conds is None else conds[n])[keep],
            seg_ids=(nothing if segs is None else segs[n])[keep],
        )
        seg_pixels = common["in.extra_pixel_values"][n]
        picture = Picture(
            pixel_values=common["in.pixel_values"][n],
            seg_pixel_values=seg_pixels,
            scaled_size=(128, 128),
            size=(128, 128),
        )
        num, referring = words.num_conditions, task in ("refseg",)
        asked = [AskedFor(text="", category_id=-1, seg=k if referring else 0) for k in range(num)]
        labels = tensors.get(f"in.class_labels.{n}", torch.zeros(0, dtype=torch.int64))
        bitmaps = tensors.get(f"in.mask_labels.{n}")
        targets = [
            Target(condition=label, rle=rles.encode(mask.numpy().astype(bool)))
            for label, mask in zip(labels.tolist(), () if bitmaps is None else bitmaps, strict=True)
        ]
        shown = []
        if "swap" in config:  # instances that have a prompt, and which category each `<region>` is
            of_instance = config["swap"]["class_labels"][n]
            wanted = config["swap"]["prompted_labels"][n]
            for k, mask in enumerate(tensors[f"in.vprompt_masks.{n}"]):
                region = wanted.index(of_instance[k])
                shown.append(Shown(mask=mask.bool(), region=region, label=of_instance[k]))
        found.append(
            Inputs(
                task=task,
                words=words,
                picture=picture,
                shown=tuple(shown),
                conditions=tuple(asked),
                targets=tuple(targets),
            )
        )
    return found


class SwapDraws:
    """The recorded choices of the prompt swap."""

    def __init__(self, draws: list[int]) -> None:
        self.draws = list(draws)

    def permutation(self, number: int):
        raise AssertionError("the swap permutes nothing")

    def integers(self, high: int, number: int):
        assert number == 1
        return torch.tensor([self.draws.pop(0)])


class PointDraws:
    """Draws that lead to the recorded points (as shares y, x) of prompts, in their order."""

    def __init__(self, masks, points) -> None:
        self.orders = []
        for mask, chosen in zip(masks, points, strict=True):
            pixels = (mask.nonzero() / torch.tensor(mask.shape, dtype=torch.float32)).tolist()
            places = {tuple(pixel): place for place, pixel in enumerate(pixels)}
            self.orders.append(torch.tensor([places[tuple(point)] for point in chosen.tolist()]))

    def permutation(self, number: int):
        return self.orders.pop(0)

    def integers(self, high: int, number: int):
        return self.orders.pop(0)[high:]


BATCHES = ["genseg_loss", "genseg_one_empty_loss", "refseg_loss", "vgdseg_loss", "gcgseg_loss", "imgconv_loss"]


@pytest.mark.parametrize("name", BATCHES)
def test_losses_and_gradients_are_the_recorded_ones(recorded, recorded_draws, name):
    model, case, common = recorded
    tensors, config = case.tensors(name), case.config["batches"][name]
    batch = collate(recorded_inputs(config["task"], tensors, common, config))
    prompts = {}
    if "swap" in config:
        batch = swap(batch, SwapDraws(config["swap"]["draws"]))
        chosen = [tensors[f"rng.points_yx.{i}.{j}"] for i, j in places_of(batch, tensors)]
        prompts = {"prompts": PointDraws(batch.region_masks, chosen)}
    found = model(batch, recorded_draws(tensors, 4), **prompts)
    torch.testing.assert_close(found.language, tensors["loss.loss_llm"], atol=1e-4, rtol=0)
    for term, value in found.terms.items():
        torch.testing.assert_close(value, tensors[f"loss.{term}"], atol=1e-4, rtol=0, msg=term)
    torch.testing.assert_close(found.loss, tensors["loss.loss"], atol=2e-4, rtol=0)
    found.loss.backward()
    expected = config["grad_norm"]
    norms = {key: None if p.grad is None else p.grad.norm().item() for key, p in model.named_parameters()}
    for key, norm in norms.items():
        if expected[key] is None:
            assert norm is None or norm == 0, key
        else:
            assert norm == pytest.approx(expected[key], rel=2e-3, abs=2e-6), key


def places_of(batch, tensors):
    """Where the recorded points of each prompt stand: every instance has its own, (image, number)."""
    every = [(i, j) for i in range(2) for j in range(len(tensors[f"in.vprompt_masks.{i}"]))]
    masks = [tensors[f"in.vprompt_masks.{i}"][j].bool() for i, j in every]
    return [
        next(place for place, other in zip(every, masks, strict=True) if torch.equal(other, mask))
        for mask in batch.region_masks
    ]


def test_a_teacher_forced_answer_is_the_recorded_one(recorded):
    model, case, common = recorded
    tensors = case.tensors("genseg_tensor")
    batch = collate(recorded_inputs("genseg", tensors, common, {}))
    outputs = model.eval().answer(batch)
    for k in range(4):
        torch.testing.assert_close(outputs.class_logits[k], tensors[f"out.class_logits.{k}"], atol=5e-5, rtol=0)
        torch.testing.assert_close(outputs.mask_logits[k], tensors[f"out.mask_logits.{k}"], atol=5e-5, rtol=0)
