"""What must hold for the whole model, whatever its weights: `tiny` on batches of mixed tasks."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("scipy")

from dataengine import masks as rles  # noqa: E402
from dataengine.errors import UserError  # noqa: E402
from model.batches import collate  # noqa: E402
from model.checkpoints import from_pretrained, save_pretrained  # noqa: E402
from model.config import PRESETS, ConnectorConfig  # noqa: E402
from model.inputs import Processor, Target, box  # noqa: E402
from model.losses import RandomDraws  # noqa: E402
from model.words import tiny_tokenizer  # noqa: E402
from model.xsam import XSam  # noqa: E402
from tests.model.pyramids import hiera, swin  # noqa: E402

TINY = dataclasses.replace(
    PRESETS["tiny"], decoder=dataclasses.replace(PRESETS["tiny"].decoder, points=64, num_queries=8)
)
# Of the last block and what follows it the model takes nothing: it reads the state before it (visual_layer -2).
# SAM's neck follows the last block, and only its input is read.
UNUSED = (
    "visual_encoder.vision_model.encoder.layers.2.",
    "visual_encoder.vision_model.post_layernorm.",
    "segmentor.encoder.neck.",
)
SEG = "Sure, it is <SEG>."


@pytest.fixture(scope="module")
def processor():
    return Processor(TINY, tiny_tokenizer())


@pytest.fixture(scope="module")
def mixed(processor):
    return mixed_inputs(processor)


def mixed_inputs(processor):
    """A generic, a region, a referring and a text-only input, of different lengths; with a target where it can be."""
    noise = np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), dtype=np.uint8)
    ask = processor.from_prompt
    asked = [
        ask(noise[0], "Segment <p>the ring</p>, <p>the red star</p> and <p>the sky</p>.", task="genseg", answer=SEG),
        ask(noise[1], "What is like <region>?", [box(8, 8, 40, 30)], task="vgdseg", answer=SEG),
        ask(
            noise[2],
            "Where are <p>it</p> and <p>the blue cross on the left</p>?",
            task="refseg",
            answer="They are <SEG> and <SEG>.",
        ),
        ask(None, "How many sides has a hexagon?", task="chat", answer="Six."),
    ]
    found = np.zeros((128, 128), bool)
    found[20:70, 30:90] = True
    target = Target(condition=0, rle=rles.encode(found))
    return [*(dataclasses.replace(one, targets=(target,)) for one in asked[:3]), asked[3]]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return XSam(TINY)


def draws():
    return RandomDraws(torch.Generator().manual_seed(0))


def gradients(model, batch):
    model.zero_grad()
    loss = model.train()(batch, draws()).loss
    loss.backward()
    return loss.detach(), {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def test_a_gradient_reaches_every_weight_but_those_that_are_never_read(model, mixed):
    for name, weight in model.named_parameters():
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            torch.nn.init.normal_(weight, std=0.02)  # they begin at 0, and what they read has no say before a step
    _, found = gradients(model, collate(mixed))
    without = {name for name, gradient in found.items() if gradient is None or not gradient.any()}
    assert without == {name for name in found if name.startswith(UNUSED)}


@pytest.mark.parametrize("frozen", ["llm", "visual_encoder", "segmentor.encoder"])
def test_what_is_frozen_has_no_gradient_and_hinders_no_other(model, mixed, frozen):
    _, before = gradients(model, collate(mixed))
    model.get_submodule(frozen).requires_grad_(False)
    _, after = gradients(model, collate(mixed))
    for name, gradient in after.items():
        if name.startswith(f"{frozen}."):
            assert gradient is None, name
        elif before[name] is not None:
            torch.testing.assert_close(gradient, before[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_mixed_batch_equals_its_inputs_one_by_one(model, mixed):
    model.eval()
    together = model.answer(collate(mixed, is_shared=False))
    alone = [outputs for one in mixed if (outputs := model.answer(collate([one], is_shared=False))) is not None]
    masks = torch.cat([outputs.final[1] for outputs in alone])
    torch.testing.assert_close(together.final[1], masks, atol=1e-4, rtol=0)
    row = 0
    for outputs in alone:
        classes = outputs.final[0]
        rows, _, columns = classes.shape
        found = together.final[0][row : row + rows]
        kept = [*range(columns - 1), found.shape[2] - 1]  # padding stands before the background
        torch.testing.assert_close(found[:, :, kept], classes, atol=1e-4, rtol=0)
        row += rows
    assert row == len(masks) == 4


def test_language_loss_of_a_batch_is_the_mean_over_all_labelled_ids(model, mixed):
    model.eval()
    with torch.no_grad():
        together = model(collate(mixed, is_shared=False), draws()).language
        alone = [model(collate([one], is_shared=False), draws()).language for one in mixed]
    counts = torch.tensor([float((one.words.labels >= 0).sum()) for one in mixed])
    torch.testing.assert_close(together, (torch.stack(alone) * counts).sum() / counts.sum(), atol=1e-4, rtol=0)


def test_saved_and_loaded_it_answers_the_same(model, mixed, tmp_path):
    save_pretrained(model, tmp_path, TINY, max_shard_size="2MB")
    torch.manual_seed(1)
    loaded = from_pretrained(tmp_path, XSam)
    batch = collate(mixed)
    for ours, theirs in zip(model.eval().answer(batch).final, loaded.eval().answer(batch).final, strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.config == TINY


@pytest.mark.filterwarnings("error::FutureWarning")
def test_recomputing_layers_changes_no_loss_and_no_gradient(model, mixed):
    batch = collate(mixed)
    loss, stored = gradients(model, batch)
    model.set_checkpointing(True)
    again, recomputed = gradients(model, batch)
    torch.testing.assert_close(again, loss, atol=1e-5, rtol=1e-6)
    for name, gradient in stored.items():
        if gradient is not None:
            torch.testing.assert_close(recomputed[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_recomputing_asks_for_no_gradient_that_nobody_needs(model, mixed):
    model.train().requires_grad_(False)
    model.segmentor.decoder.requires_grad_(True)
    model.set_checkpointing(True)
    batch = collate(mixed)
    assert not model.read(batch, model.see(batch)).states.requires_grad


PYRAMIDS = {"Swin": swin(128, depths=(2, 1, 1, 1)), "SAM 2": hiera(128)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param({"image_px": 112}, "image_px is 112, but image_size of image_encoder 128", id="SigLIP"),
        pytest.param({"image_px": 130}, "image_px is 130", id="SigLIP, though the patches are as many"),
        pytest.param({"seg_px": 64}, "seg_px is 64, but image_size of the segmentation encoder 128", id="SAM"),
        pytest.param({"seg_px": 112, "seg_encoder": PYRAMIDS["Swin"]}, "needs a multiple of 32", id="Swin"),
        pytest.param({"seg_px": 112, "seg_encoder": PYRAMIDS["SAM 2"]}, "needs a multiple of 32", id="SAM 2"),
        pytest.param(
            {"seg_px": 96, "seg_encoder": PYRAMIDS["Swin"], "visual_layer": -1},
            "3 x 3 positions of seg_encoder cannot be shuffled by 0.5",
            id="an odd number of tokens",
        ),
    ],
)
def test_pictures_that_no_encoder_takes_are_refused_before_there_are_any(changes, said):
    connector = ConnectorConfig(hidden_dim=32, layers=(1, 2, 3), scales=(1.0, 1.0, 1.0))
    with pytest.raises(UserError, match=said), torch.device("meta"):
        XSam(dataclasses.replace(TINY, connector=connector, **changes))


# the first stage's state is not asked for, and the norm that follows all stages is for another use
UNREAD = {
    "Swin": {f"{norm}.{of}" for norm in ("hidden_states_norms.stage1", "swin.layernorm") for of in ("weight", "bias")},
    "SAM 2": set(),
}


@pytest.mark.parametrize("name", PYRAMIDS)
def test_it_learns_on_other_encoders(name):
    """Pictures of every task; a step of all weights makes the loss of the same batch smaller."""
    torch.manual_seed(0)
    connector = ConnectorConfig(hidden_dim=32, layers=(1, 2, 3), scales=(1.0, 1.0, 1.0))
    config = dataclasses.replace(TINY, seg_encoder=PYRAMIDS[name], connector=connector)
    model, processor = XSam(config).train(), Processor(config, tiny_tokenizer())
    batch = collate(mixed_inputs(processor))
    model.set_checkpointing(True)
    losses = model(batch, draws())
    losses.loss.backward()
    assert torch.isfinite(losses.loss)
    assert losses.segmentation > 0
    gradients = {key: weight.grad for key, weight in model.segmentor.encoder.named_parameters()}
    assert {key for key, gradient in gradients.items() if gradient is None or not gradient.any()} == UNREAD[name]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight -= 1e-3 * weight.grad
        assert model(batch, draws()).loss < losses.loss


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16 weights"])
def test_low_precision_is_finite(model, mixed, autocast):
    batch = collate(mixed)
    if not autocast:
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = model.train()(batch, draws())
    losses.loss.backward()
    assert torch.isfinite(losses.loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_are_exact_in_low_precision(model, dtype):
    """Rounded to bfloat16, a frequency is off by up to 1 part in 256, and position 1900 by many turns."""
    rotary = model.to(dtype).llm.model.rotary_emb
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    frequencies = 10000.0 ** -(torch.arange(0, 32, 2, dtype=torch.float64) / 32)
    positions = torch.tensor([[0, 1, 700, 1900]])
    cos, sin = rotary(torch.zeros(1, dtype=dtype), positions)
    angles = (positions[0, :, None] * frequencies).repeat(1, 2)
    torch.testing.assert_close(cos[0].double(), angles.cos(), atol=5e-3, rtol=0)
    torch.testing.assert_close(sin[0].double(), angles.sin(), atol=5e-3, rtol=0)


def test_what_is_computed_moves_with_the_model(model):
    moved = model.to("meta", torch.bfloat16)
    buffers = dict(moved.llm.named_buffers())
    assert buffers
    assert {(b.device.type, b.dtype) for b in buffers.values()} == {("meta", torch.float32)}


def test_the_whole_tiny_model_has_at_most_five_million_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in XSam(PRESETS["tiny"]).parameters()) <= 5_000_000
