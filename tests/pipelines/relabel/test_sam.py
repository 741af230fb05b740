"""SAM and its kin, of random weights: what is asked and what comes of it; the generator on a model that is known."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest

from dataengine import masks
from dataengine.errors import UserError
from dataengine.ledger.records import Concept
from pipelines.relabel import labelers
from pipelines.relabel.automatic import Generator
from pipelines.relabel.labelers import AnswerError, Spec
from tests.pipelines.relabel import models

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from pipelines.relabel import sam  # noqa: E402

CAT = Concept(text="cat", category_id=2)
KINDS = ("sam", "sam2", "sam3_tracker")
ALL = {"predicted_iou": 0.0, "stability": 0.0}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {kind: getattr(models, kind)(tmp_path_factory.mktemp(kind)) for kind in (*KINDS, "sam3")}
    torch.set_num_threads(threads)


def loaded(kind, checkpoints, name="sam", **settings):
    made = labelers.make(Spec(name=name, settings={"model": checkpoints[kind], **settings}))
    made.load()
    return made


# --- the model -------------------------------------------------------------------------------------------------------


def test_a_picture_is_prepared_as_transformers_does(checkpoints):
    """Its own processor of Pillow is the oracle; it scales to the longer side, and pads."""
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    processor = SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    expected = processor(models.pixels(height=30, width=50), return_tensors="pt")
    scaled = sam.scaled_size(30, 50, 64)
    assert scaled == tuple(expected["reshaped_input_sizes"][0]) == (38, 64)
    found = sam.normalized(models.pixels(height=30, width=50), scaled, 64, *map(np.float32, sam.IMAGENET))
    torch.testing.assert_close(found, expected["pixel_values"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_box_is_answered_as_by_the_model_itself(checkpoints, kind):
    made = loaded(kind, checkpoints, prompt="box")
    known = [models.entry(1, 5, 6, 20, 10), models.entry(2, 30, 20, 16, 16, concept=Concept(text="a cat"))]
    crowd = models.entry(3, 0, 0, 9, 9, crowd=True)
    (found,) = made.label([models.question([*known, crowd])])
    model, side = made._model._model, made._model.side
    seen = made._model.see(models.pixels())
    for one, proposal in zip(known, found, strict=True):
        x, y, w, h = one.bbox
        sx, sy = (side / 64, side / 64) if kind == "sam" else (side / 64, side / 48)  # SAM keeps the aspect
        box = torch.tensor([[[x * sx, y * sy, (x + w) * sx, (y + h) * sy]]], dtype=torch.float32)
        with torch.no_grad():
            own = model(image_embeddings=seen.features, input_boxes=box, multimask_output=False)
        logits = own.pred_masks[0, 0].float()[None]
        if kind == "sam":
            logits = torch.nn.functional.interpolate(logits, (side, side), mode="bilinear")[..., :48, :64]
        raster = torch.nn.functional.interpolate(logits, (48, 64), mode="bilinear")[0, 0] > 0
        assert proposal.rle == masks.encode(raster.numpy())
        assert proposal.predicted_iou == pytest.approx(float(own.iou_scores[0, 0, 0]), abs=1e-5)
        assert proposal.concept == one.concept
        assert json.loads(proposal.prompt) == {"kind": "box", "of": one.entry_id, "box": [x, y, x + w, y + h]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["point", "both"])
def test_points_are_the_deepest_pixels(checkpoints, kind, prompt):
    made = loaded(kind, checkpoints, prompt=prompt, of="all")
    (found,) = made.label([models.question([models.entry(1, 10, 20, 21, 11, origin="model")])])
    labelers.check(found, models.question().picture)
    for proposal in found:
        x, y = json.loads(proposal.prompt)["point"]
        assert y == 25.5  # the middle of its eleven rows
        assert 15 <= x <= 26
    assert made.label([models.question([])]) == [[]]


def test_only_people_are_asked_about_unless_all_are(checkpoints):
    made = loaded("sam", checkpoints, prompt="box")
    assert made.label([models.question([models.entry(1, 10, 20, 21, 11, origin="model")])]) == [[]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_runs_on_each_model(checkpoints, kind):
    generator = {**ALL, "points_per_side": 4, "crop_layers": 1, "crop_downscale": 2, "min_region": 4}
    made = loaded(kind, checkpoints, generator=generator, concept="thing")
    (found,) = made.label([models.question()])
    assert labelers.check(found, models.question().picture) == found
    assert {p.concept for p in found} <= {Concept(text="thing")}
    assert made.label([models.question()]) == [found]


def test_what_a_labeler_is_does_not_say_where_it_lies(checkpoints, tmp_path):
    import shutil

    copy = tmp_path / "elsewhere"
    shutil.copytree(checkpoints["sam"], copy)
    first = labelers.make(Spec(name="sam", settings={"model": checkpoints["sam"]}))
    second = labelers.make(Spec(name="sam", settings={"model": str(copy)}))
    assert labelers.record_of(first) == labelers.record_of(second)
    assert json.loads(first.settings)["generator"]["points_per_side"] == 32
    assert labelers.make(Spec(name="sam", settings={"model": checkpoints["sam2"]})).name == "sam2"
    (copy / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0]}')
    assert labelers.make(Spec(name="sam", settings={"model": str(copy)})).revision != first.revision


def test_weights_that_are_written_in_another_order_are_the_same(tmp_path):
    def digest(header, data=b"\0" * 8):
        path = tmp_path / "model.safetensors"
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        return sam.digest_of(tmp_path)

    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    two = one | {"data_offsets": [4, 8]}
    about = {"format": "pt", "tied": "a"}
    known = digest({"__metadata__": about, "a": one, "b": two})
    assert known == digest({"b": two, "a": one, "__metadata__": dict(reversed(about.items()))})
    assert known != digest({"__metadata__": about, "a": two, "b": one})
    assert known != digest({"__metadata__": about, "a": one, "b": two}, b"\0" * 7 + b"\1")
    assert digest(b"no header") != digest(b"no headeR")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "/no/where"}, "no checkpoint folder"),
        ({"prompt": "scribble"}, "prompt"),
        ({"preset": "sam9"}, "preset"),
        ({"generator": {"points": 3}}, "there is no 'points'"),
        ({"generator": {"points_per_side": 0}}, "points_per_side cannot be 0"),
        ({"generator": {"crop_layers": 1.5}}, "crop_layers cannot be 1.5"),
        ({"modle": "x"}, "modle"),
    ],
)
def test_settings_that_cannot_be(checkpoints, settings, said):
    with pytest.raises(UserError, match=said):
        labelers.make(Spec(name="sam", settings={"model": checkpoints["sam"], **settings}))


def test_other_checkpoints_are_named(checkpoints):
    with pytest.raises(UserError, match="model_type 'sam3' is none of"):
        labelers.make(Spec(name="sam", settings={"model": checkpoints["sam3"]}))
    with pytest.raises(UserError, match="model_type 'sam' is none of"):
        labelers.make(Spec(name="sam3", settings={"model": checkpoints["sam"], "categories": ["dog"]}))


def test_another_prompt_asks_anew(checkpoints):
    """By the model's own answers to the same boxes and points, which differ from those to others."""
    made = loaded("sam", checkpoints, prompt="box")
    entry = models.entry(1, 10, 20, 21, 11)
    (by_box,) = made.label([models.question([entry])])
    assert made.prompted(models.pixels(), boxes=np.array([sam.corners(entry)])) == [by_box[0].rle]
    by_point = loaded("sam", checkpoints, prompt="point")
    (expected,) = by_point.label([models.question([entry])])
    assert made.prompted(models.pixels(), points=np.array([sam.deepest(entry, 48, 64)])) == [expected[0].rle]


def spoiled(model, name, value=float("nan")):
    """A model whose output of a name has one value that is no number."""

    class Spoiled(torch.nn.Module):
        def __getattr__(self, attribute):
            return getattr(model, attribute)

        def __call__(self, *arguments, **options):
            made = model(*arguments, **options)
            made[name][(0,) * made[name].ndim] = value
            return made

    return Spoiled()


OUTPUTS = [(kind, name) for kind in KINDS for name in ("pred_masks", "iou_scores", "object_score_logits")]
OUTPUTS.remove(("sam", "object_score_logits"))  # it says nothing of presence


@pytest.mark.parametrize(("kind", "name"), OUTPUTS)
@pytest.mark.parametrize("prompt", ["automatic", "box"])
def test_what_is_no_number_is_not_taken_for_nothing(checkpoints, kind, name, prompt):
    made = loaded(kind, checkpoints, prompt=prompt, generator={**ALL, "points_per_side": 2})
    made._model._model = spoiled(made._model._model, name)
    with pytest.raises(AnswerError) as caught:
        made.label([models.question([models.entry(1, 5, 6, 20, 10)])])
    assert caught.value.reason == "not_finite"


@pytest.mark.parametrize("name", ["pred_masks", "pred_logits", "presence_logits"])
def test_what_is_no_number_of_sam3_is_not_taken_for_nothing(checkpoints, name):
    made = loaded("sam3", checkpoints, "sam3", categories=["dog"], min_score=0.0)
    made._model = spoiled(made._model, name, float("inf") if name == "pred_logits" else float("nan"))
    with pytest.raises(AnswerError) as caught:
        made.label([models.question()])
    assert caught.value.reason == "not_finite"


# --- the generator on a model that is known --------------------------------------------------------------------------


class Shapes:
    """A model that answers a point with the shape under it, with its part, and with everything.

    Logits are +-`sure` beyond the outline, of which the shape `ragged` has but 0.5: not stable.
    """

    def __init__(self):
        yy, xx = np.mgrid[:48, :64]
        self.disk = (yy - 24) ** 2 + (xx - 20) ** 2 < 144
        self.part = (yy - 24) ** 2 + (xx - 20) ** 2 < 16
        self.square = (abs(yy - 12) < 8) & (abs(xx - 50) < 8)
        self.ragged = (abs(yy - 38) < 5) & (abs(xx - 50) < 8)

    def see(self, pixels):
        return int(pixels[0, 0, 0]), int(pixels[0, 0, 1]), pixels.shape[:2]  # where the crop begins

    def ask(self, seen, *, points, boxes, several):
        x0, y0, (height, width) = seen
        logits, scores = np.full((len(points), 3, 48, 64), -9.0, np.float32), np.zeros((len(points), 3), np.float32)
        for number, (x, y) in enumerate(points + np.array([x0, y0])):
            at = int(y), int(x)
            for shape, sure, iou in ((self.disk, 9, 0.93), (self.square, 9, 0.96), (self.ragged, 0.5, 0.99)):
                if shape[at]:
                    logits[number, 0][shape] = sure
                    logits[number, 0][~shape] = -sure
                    scores[number, 0] = iou
            if self.part[at]:
                logits[number, 1][self.part] = 9
                scores[number, 1] = 0.9
            logits[number, 2] = 9
            scores[number, 2] = 0.5
        cut = logits[:, :, y0 : y0 + height, x0 : x0 + width]
        return sam.Answer(logits=torch.tensor(cut), scores=torch.tensor(scores), presence=torch.ones(len(points)))

    def full_size(self, logits, seen):
        return logits


PLACES = np.zeros((48, 64, 3), np.uint8)
PLACES[..., 1], PLACES[..., 0] = np.mgrid[:48, :64]


def test_every_shape_is_found_once_if_it_is_stable_and_good():
    shapes = Shapes()
    found = sam.generate(shapes, PLACES, Generator(points_per_side=16, points_per_batch=7))
    assert [masks.area(rle, 48, 64) for rle in found.rles] == [
        m.sum() for m in (shapes.square, shapes.disk, shapes.part)
    ]
    assert found.scores == pytest.approx([0.96, 0.93, 0.9])  # the best first
    assert found.stability.tolist() == [1, 1, 1]
    assert all(
        shape[int(y), int(x)]
        for shape, (x, y) in zip((shapes.square, shapes.disk, shapes.part), found.points, strict=True)
    )
    without = sam.generate(shapes, PLACES, Generator(points_per_side=16, stability=0.0))
    assert len(without) == 4  # the ragged one, too
    everything = sam.generate(shapes, PLACES, Generator(points_per_side=16, predicted_iou=0.4))
    assert max(masks.area(rle, 48, 64) for rle in everything.rles) == 48 * 64
    assert len(sam.generate(shapes, PLACES, Generator(points_per_side=16, predicted_iou=0.4, max_area=0.95))) == 3


def test_stability_is_the_share_of_what_is_sure():
    logits = torch.tensor([[2.0, 0.5, -0.5, -2.0], [2.0, 2.0, 2.0, -2.0]])
    assert float(sam.stability_of(logits[None], 1.0)) == pytest.approx(4 / 6)
    assert float(sam.stability_of(torch.full((1, 2, 2), -5.0), 1.0)) == 0


def test_crops_see_what_the_whole_does_not_and_drop_what_they_cut():
    """Two points a side on the whole picture miss the small part; a crop that holds it all finds it."""
    shapes = Shapes()
    found = sam.generate(shapes, PLACES, Generator(points_per_side=2, crop_layers=1))
    areas = [masks.area(rle, 48, 64) for rle in found.rles]
    whole = [shapes.disk.sum(), shapes.square.sum(), shapes.part.sum()]
    assert set(areas) <= set(whole)  # nothing that a crop cut off
    for rle, (x0, y0, x1, y1) in zip(found.rles, found.crops.tolist(), strict=True):
        raster = masks.decode(rle, 48, 64)
        assert not raster[:, :x0].any()
        assert not raster[:, x1:].any()
        assert not raster[:y0].any()
        assert not raster[y1:].any()


# --- SAM 3 by names --------------------------------------------------------------------------------------------------


def test_sam3_answers_each_category_by_itself(checkpoints):
    categories = {"dog": 1, "cat": 2}
    made = loaded("sam3", checkpoints, "sam3", categories=categories, min_score=0.0)
    (found,) = made.label([models.question()])
    assert labelers.check(found, models.question().picture)
    assert {p.concept for p in found} <= {Concept(text=text, category_id=id) for text, id in categories.items()}
    assert all(json.loads(p.prompt)["text"] == p.concept.text for p in found)
    alone = loaded("sam3", checkpoints, "sam3", categories={"cat": 2}, min_score=0.0)
    assert alone.label([models.question()]) == [[p for p in found if p.concept.text == "cat"]]
    (without,) = made.label([models.question(absent=(1,))])
    assert without == [p for p in found if p.concept.text == "cat"]


def test_sam3_is_what_transformers_makes_of_it(checkpoints):
    made = loaded("sam3", checkpoints, "sam3", categories=["dog"], min_score=0.0)
    (found,) = made.label([models.question()])
    ids = made._tokenizer("dog", padding="max_length", max_length=32, return_tensors="pt")
    values = sam.normalized(models.pixels(), (56, 56), 56, *map(np.float32, sam.HALF))
    with torch.no_grad():
        own = made._model(pixel_values=values, input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])
    scores = own.pred_logits[0].sigmoid() * own.presence_logits[0].sigmoid()
    likely = torch.nn.functional.interpolate(own.pred_masks.sigmoid(), (48, 64), mode="bilinear")[0]
    expected = {
        masks.encode((one > 0.5).numpy()): float(s) for one, s in zip(likely, scores, strict=True) if (one > 0.5).any()
    }
    assert {p.rle for p in found} == set(expected)
    assert all(p.score == pytest.approx(expected[p.rle], abs=1e-5) for p in found)


def test_sam3_is_shown_exemplars(checkpoints):
    settings = {"model": checkpoints["sam3"], "categories": ["dog"], "min_score": 0.0, "exemplars": True}
    made = labelers.make(Spec(name="sam3", settings=settings))
    known = [models.entry(1, 8, 12, 16, 24, concept=Concept(text="dog")), models.entry(2, 0, 0, 5, 5, concept=CAT)]
    boxes = made._boxes(models.question(known), Concept(text="dog"))
    np.testing.assert_allclose(boxes, [[16 / 64, 24 / 48, 16 / 64, 24 / 48]])
    assert made._boxes(models.question(), Concept(text="dog")) is None
    category = models.question([models.entry(1, 8, 12, 16, 24)])
    assert len(made._boxes(category, Concept(text="dog"))) == 1, "a name without an id is that of the category"
    assert made._boxes(category, Concept(text="cat")) is None
    if find_spec("torchvision") is None:
        with pytest.raises(UserError, match="torchvision"):
            made.load()
        return
    made.load()
    (found,) = made.label([models.question(known)])
    assert all(json.loads(p.prompt)["exemplars"] == 1 for p in found)
