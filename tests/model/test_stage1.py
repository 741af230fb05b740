import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("scipy")

from model.config import ConnectorConfig, Part, XSamConfig  # noqa: E402
from model.losses import Targets, segmentation_losses, total  # noqa: E402
from model.projectors import Connector  # noqa: E402
from model.segmentor import Segmentor  # noqa: E402
from tests.model.recorded import recorded_decoder  # noqa: E402


@pytest.fixture
def stage1(golden):
    """Segmentor and connector with the recorded weights, in training as when recorded."""
    case, whole = golden("e2e_s1"), golden("e2e")
    config = XSamConfig(
        name="recorded",
        language=None,
        image_encoder=None,
        seg_encoder=Part(kind="sam_vision_model", settings=case.config["segmentor_encoder"]),
        connector=ConnectorConfig(hidden_dim=16, layers=tuple(case.config["seg_select_layers"])),
        decoder=recorded_decoder(case.config),
        head="linear",
        num_labels=case.config["num_labels"],
        seg_px=128,
    )
    segmentor, connector = Segmentor(config).train(), Connector(config.connector, [32] * 3).train()
    weights = whole.tensors("weights", "segmentor.") | case.tensors("weights_extra", "segmentor.")
    for unused in ("logit_scale", "shared_image_embedding.positional_embedding"):
        weights.pop(unused, None)
    segmentor.load_state_dict(weights)
    connector.load_state_dict(whole.tensors("weights", "seg_connector."))
    return case, whole.tensors("common"), torch.nn.ModuleDict({"segmentor": segmentor, "seg_connector": connector})


def test_pictures_to_losses_and_gradients_as_recorded(stage1, recorded_draws):
    case, common, model = stage1
    tensors = case.tensors("s1_loss")
    segmentor = model["segmentor"]
    maps = model["seg_connector"](segmentor.encode(common["in.extra_pixel_values"]).levels)
    for level, made in enumerate(maps):
        torch.testing.assert_close(made, common[f"mid.connector.{level}"], atol=5e-5, rtol=0)
    outputs = segmentor(segmentor.pixel_decoder(maps))
    for k, (classes, masks) in enumerate(zip(outputs.class_logits, outputs.mask_logits, strict=True)):
        torch.testing.assert_close(classes, tensors[f"out.class_logits.{k}"], atol=5e-5, rtol=0)
        torch.testing.assert_close(masks, tensors[f"out.mask_logits.{k}"], atol=5e-5, rtol=0)
    targets = [
        Targets(labels=tensors[f"in.class_labels.{row}"], masks=tensors[f"in.mask_labels.{row}"].bool())
        for row in range(2)
    ]
    draws = recorded_draws(tensors, len(outputs.class_logits))
    terms = segmentation_losses(outputs, targets, segmentor.config.decoder, draws)
    for name, term in terms.items():
        torch.testing.assert_close(term, tensors[f"loss.{name}"], atol=1e-4, rtol=0)
    loss = total(terms)
    torch.testing.assert_close(loss, tensors["loss.loss"], atol=1e-4, rtol=0)
    loss.backward()
    expected = case.config["batches"]["s1_loss"]["grad_norm"]
    made = {name: None if p.grad is None else p.grad.norm().item() for name, p in model.named_parameters()}
    assert {name for name in made if made[name] is None} == {name for name in made if expected[name] is None}
    for name, norm in made.items():
        if norm is not None:
            assert norm == pytest.approx(expected[name], rel=2e-3, abs=2e-6), name
