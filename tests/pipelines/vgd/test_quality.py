"""The report on prompts: its figures are those of the rendered prompts; both profiles on the same objects."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from builders.world_tree import write_tree
from dataengine import masks
from dataengine.prompts import render
from dataengine.sample import PROMPT_KINDS
from dataengine.store.dataset import open_dataset
from pipelines import build as building
from pipelines.cli import app
from pipelines.vgd import benchmark, quality
from pipelines.vgd.benchmark import Settings
from pipelines.vgd.quality import Measured


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("quality")
    write_tree(folder / "shapes", 12, split="val2017")
    recipe = benchmark.recipe_of(Settings(root=str(folder / "shapes"), cross_image=True))
    benchmark.build(recipe, str(folder / "bench"), building.Settings())
    return str(folder / "bench")


def test_figures_are_those_of_the_rendered_prompts(bench):
    found = quality.examine(bench, objects=10**6)
    samples = [s for s in open_dataset(bench).samples() if s.variant == "same_image"]
    things = [(s, o) for s in samples for o in s.objects if not o.crowd]
    assert (found.pictures, found.objects) == (len(samples), len(things))
    assert list(found.measured) == ["published", "strict"]
    expected = []
    for sample, thing in things:
        own = masks.decode(thing.rle, sample.height, sample.width)
        for prompt in thing.prompts:
            crop = render(prompt, sample.height, sample.width)
            drawn = np.zeros_like(own)
            h, w = crop.mask.shape
            drawn[crop.y0 : crop.y0 + h, crop.x0 : crop.x0 + w] = crop.mask
            inside = (drawn.astype(bool) & own.astype(bool)).sum() / drawn.sum()
            expected.append((prompt.kind, inside, drawn.sum() / own.sum()))
    measured = found.measured["published"]
    assert [m.kind for m in measured] == [kind for kind, _, _ in expected]
    assert [m.inside for m in measured] == pytest.approx([inside for _, inside, _ in expected], abs=1e-6)
    assert [m.ratio for m in measured] == pytest.approx([ratio for _, _, ratio in expected], rel=1e-9)
    strict = [m for m in found.measured["strict"] if m.kind != "box"]
    assert {m.inside for m in strict} == {1.0}  # what the profile promises
    assert len(found.measured["strict"]) == len(measured)


def test_the_draw_is_keyed_and_about_as_large_as_asked(bench):
    some, again = (quality.examine(bench, objects=20).to_json() for _ in range(2))
    assert some == again
    assert 0 < some["pictures"] < 12
    assert quality.examine(bench, objects=20, seed=1).to_json() != some


def test_figures_of_a_few_prompts():
    def one(status: str, inside: float, other: float, ratio: float) -> Measured:
        return Measured(
            kind="box",
            size="small",
            status=status,
            inside=inside,
            other=other,
            ratio=ratio,
            ambiguous=other > inside,
        )

    made = [one("ok", 1.0, 0.0, 2.0), one("ok", 0.2, 0.4, 4.0)]
    found = quality.figures([*made, one("none", 0, 0, 0), one("fallback", 1, 0, 9)])
    assert (found["objects"], found["missing"], found["fallback"]) == (4, 0.25, 0.25)
    assert found["ratio"] == pytest.approx({"mean": 3.0, "p5": 2.1, "median": 3.0, "p95": 3.9})
    assert found["inside"]["mean"] == pytest.approx(0.6)
    assert (found["ambiguous"], found["mostly_outside"]) == (0.5, 0.5)
    nothing = quality.figures([])
    assert nothing == dict.fromkeys(nothing) | {"objects": 0}


def test_the_command_writes_its_report(bench, tmp_path):
    done = CliRunner().invoke(app, ["vgd", "quality", bench, "--out", str(tmp_path / "report"), "--objects", "40"])
    assert done.exit_code == 0, done.output
    assert "published scribble" in done.output
    written = json.loads((tmp_path / "report" / "quality.json").read_text())
    assert set(written["profiles"]) == {"published", "strict"}
    for kinds in written["profiles"].values():
        assert tuple(kinds) == PROMPT_KINDS
        for sizes in kinds.values():
            assert sizes["all"]["objects"] == sum(sizes[s]["objects"] for s in benchmark.SIZES) == written["objects"]
    for name in ("prompts.png", "distributions.png"):
        with Image.open(tmp_path / "report" / name) as picture:
            assert picture.width > 600
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 10


def test_pictures_that_are_gone_are_drawn_grey(bench, tmp_path):
    found = quality.examine(bench, objects=5)
    missing = [replace(e.sample.image, path="/nowhere.jpg") for e in found.examples]
    gone = [replace(e, sample=replace(e.sample, image=i)) for e, i in zip(found.examples, missing, strict=True)]
    quality.write(replace(found, examples=gone), tmp_path)
    assert (tmp_path / "prompts.png").stat().st_size > 1000


def test_folders_that_are_no_benchmark_are_refused(tmp_path):
    done = CliRunner().invoke(app, ["vgd", "quality", str(tmp_path)])
    assert done.exit_code == 1
    assert done.output.startswith("error: ")
