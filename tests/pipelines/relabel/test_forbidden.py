"""Pictures that must not be labelled."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dataengine.ledger.ledger import Ledger
from dataengine.store.dataset import open_dataset
from pipelines import build, recipe
from pipelines.ledger_sources import create
from pipelines.relabel.forbidden import pictures_of


@pytest.mark.parametrize("images", ["embed", "reference"])
def test_exemplars_in_other_pictures_are_forbidden_too(coco_tree, tmp_path, images):
    """A benchmark of three of eight pictures, in which others are shown; known by key, and by content."""
    tree = coco_tree(8)
    path = tmp_path / "exam.yaml"
    source = f"coco: {{builder: coco, task: vgdseg, root: {tree.root}, options: {{images: {images}}}}}"
    prompts = "prompts: {profile: strict, fallback: true}\nvariants: {cross_image: true, shots: 4}\n"
    path.write_text(f"name: exam\nsources:\n  {source}\n{prompts}")
    build.run(recipe.load(str(path)), str(tmp_path / "exam"), build.Settings(limit=3))
    samples = list(open_dataset(str(tmp_path / "exam")).samples())
    own = {sample.image_key for sample in samples}
    others = {one.image_key for sample in samples for one in sample.references} - own
    assert len(own) == 3
    assert others, "else nothing is tested"

    pictures = list(create([str(tree.root)], str(tmp_path / "ledger")).pictures())
    forbidden = pictures_of([str(tmp_path / "exam")])
    assert {picture.key for picture in pictures if forbidden(picture)} == own | others
    unnamed = [replace(picture, key=f"pool/{number}") for number, picture in enumerate(pictures)]
    known = [before.key for before, picture in zip(pictures, unnamed, strict=True) if forbidden(picture)]
    assert set(known) == own | others


def test_pictures_of_a_ledger_are_forbidden(coco_tree, tmp_path):
    create([str(coco_tree(2).root)], str(tmp_path / "gold"))
    forbidden = pictures_of([str(tmp_path / "gold")])
    assert all(forbidden(picture) for picture in Ledger.open(str(tmp_path / "gold")).pictures())
