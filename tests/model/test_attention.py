import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from model import attention  # noqa: E402
from model.attention import DeformableAttention, deformable_attention, installed_kernel  # noqa: E402

SHAPES = [(2, 3), (4, 6)]


def loop(value, shapes, locations, weights):
    """The formula point by point: sum over levels and points of weight times the bilinear value, zero outside."""
    batch, queries, heads, levels, points, _ = locations.shape
    total = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    starts = [sum(h * w for h, w in shapes[:level]) for level in range(levels)]
    for b, q, head, level, point in torch.cartesian_prod(
        *(torch.arange(n) for n in (batch, queries, heads, levels, points))
    ).tolist():
        height, width = shapes[level]
        x, y = (locations[b, q, head, level, point] * torch.tensor([width, height]) - 0.5).tolist()
        for column in (math.floor(x), math.floor(x) + 1):
            for row in (math.floor(y), math.floor(y) + 1):
                if 0 <= column < width and 0 <= row < height:
                    share = (1 - abs(x - column)) * (1 - abs(y - row))
                    place = starts[level] + row * width + column
                    total[b, q, head] += weights[b, q, head, level, point] * share * value[b, place, head]
    return total.flatten(2)


def arguments(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 30, 2, 3, generator=generator, dtype=dtype)
    locations = torch.rand(2, 5, 2, 2, 4, 2, generator=generator, dtype=dtype) * 1.4 - 0.2  # some outside
    weights = torch.rand(2, 5, 2, 8, generator=generator, dtype=dtype).softmax(-1).view(2, 5, 2, 2, 4)
    return value, locations, weights


def test_the_formula_equals_a_loop_over_points():
    value, locations, weights = arguments()
    made = deformable_attention(value, SHAPES, locations, weights)
    torch.testing.assert_close(made, loop(value, SHAPES, locations, weights), atol=1e-12, rtol=0)


def test_values_may_have_low_precision_and_places_do_not():
    value, locations, weights = arguments()
    made = deformable_attention(value.bfloat16(), SHAPES, locations.float(), weights.float())
    assert made.dtype == torch.bfloat16
    expected = loop(value.bfloat16().double(), SHAPES, locations, weights)
    # what is left is one rounding, of the result
    torch.testing.assert_close(made.double(), expected, atol=1e-6, rtol=2**-8)


def test_points_of_a_layer_are_float32_in_a_bfloat16_model(monkeypatch):
    seen = []

    def spy(value, shapes, starts, locations, weights):
        seen.append((locations, weights, starts.tolist(), shapes.tolist()))
        return value.new_zeros(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])

    monkeypatch.setattr(attention, "installed_kernel", lambda device: spy)
    shapes = [(1, 2), (1, 3), (1, 500)]
    layer = DeformableAttention(32, 4, 3, 4).bfloat16()
    torch.nn.init.zeros_(layer.sampling_offsets.weight)
    torch.nn.init.constant_(layer.sampling_offsets.bias, 1.0)
    reference = torch.rand(505, 2)
    x = torch.randn(1, 505, 32, dtype=torch.bfloat16)
    layer.attend(x, x, reference, shapes)
    locations, weights, starts, sizes = seen[0]
    assert locations.dtype == weights.dtype == torch.float32
    assert (starts, sizes) == ([0, 2, 5], [[1, 2], [1, 3], [1, 500]])
    # one cell to the right and below, of each level's own size; bfloat16 could not hold 1 / 500 next to 1
    for level, (height, width) in enumerate(shapes):
        expected = (reference + torch.tensor([1 / width, 1 / height]))[None, :, None, None].expand(1, 505, 4, 4, 2)
        torch.testing.assert_close(locations[:, :, :, level], expected, atol=1e-6, rtol=0)


DETR = """
import torch
calls = []
def ms_deform_attn_forward(value, shapes, starts, locations, weights, step):
    assert value.shape[0] % step == 0
    calls.append("forward")
    return MODULE.loop(value, shapes.tolist(), locations, weights)
def ms_deform_attn_backward(value, shapes, starts, locations, weights, grad, step):
    calls.append("backward")
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (value, locations, weights)]
        out = MODULE.deformable_attention(inputs[0], shapes.tolist(), *inputs[1:])
        return torch.autograd.grad(out, inputs, grad)
"""
MMCV = """
calls = []
class MultiScaleDeformableAttnFunction:
    @staticmethod
    def apply(value, shapes, starts, locations, weights, step):
        assert value.shape[0] % step == 0
        calls.append("forward")
        return MODULE.deformable_attention(value, shapes.tolist(), locations, weights)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(name, source)` makes a module that takes the place of an installed kernel, and gives it."""
    import importlib
    import sys

    def put(name, source):
        *folders, last = name.split(".")
        folder = tmp_path.joinpath(*folders)
        folder.mkdir(parents=True, exist_ok=True)
        for parent in [tmp_path.joinpath(*folders[: i + 1]) for i in range(len(folders))]:
            (parent / "__init__.py").touch()
        (folder / f"{last}.py").write_text(source)
        importlib.invalidate_caches()
        return name

    def load(name):
        module = importlib.import_module(name)
        module.MODULE = sys.modules[__name__]
        return module

    monkeypatch.syspath_prepend(str(tmp_path))
    installed_kernel.cache_clear()
    yield lambda name, source: load(put(name, source)) if "MODULE" in source else put(name, source)
    installed_kernel.cache_clear()
    for name in ("MultiScaleDeformableAttention", "mmcv", "mmcv.ops", "mmcv.ops.multi_scale_deform_attn"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "source", "calls"),
    [
        pytest.param("MultiScaleDeformableAttention", DETR, ["forward", "backward"], id="Deformable DETR"),
        pytest.param("mmcv.ops.multi_scale_deform_attn", MMCV, ["forward"], id="mmcv"),
    ],
)
def test_an_installed_kernel_gives_the_formulas_numbers_and_gradients(install, name, source, calls):
    module = install(name, source)
    kernel = installed_kernel("cuda")
    results = []
    for chosen in (None, kernel):
        inputs = [x.requires_grad_() for x in arguments()]
        made = deformable_attention(inputs[0], SHAPES, *inputs[1:], kernel=chosen)
        made.sin().sum().backward()
        results.append([made, *(x.grad for x in inputs)])
    assert module.calls == calls
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(plain, compiled, atol=1e-12, rtol=0)


def test_kernels_are_for_cuda_alone(install):
    install("MultiScaleDeformableAttention", DETR)
    assert installed_kernel("cpu") is None


@pytest.mark.parametrize("source", ["raise ImportError('libcudart')", "x = 1"], ids=["does not load", "not it"])
def test_a_broken_installation_falls_back_to_the_formula(install, source):
    install("MultiScaleDeformableAttention", source)
    assert installed_kernel("cuda") is None
