"""A loop on a few shapes, with a model that takes steps in milliseconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.pipelines.training.conftest import SMALL

LOOP = """
name: small-loop
rounds: 2
stop: {gain: null, accept: null}
score: {exam: genseg, figure: ap}
source: {roots: [coco], split: train2017, labelled: 0.34}
filters: none
labeler: {name: noisy-oracle, batch: 4, per_task: 4}
training:
  labels: [labels]
  recipe:
    name: small
    datasets:
      labels:
        build:
          prompts: {profile: strict}
          sources:
            vgdseg: {builder: coco, task: vgdseg, root: .}
            genseg: {builder: coco, task: genseg, root: ., options: {variants: [instance]}}
      gold:
        build:
          sources:
            coco: {builder: coco, task: genseg, root: coco, splits: [val2017], options: {variants: [instance]}}
    stages:
    - name: only
      stage: 3
      data: [labels]
      steps: 2
      batch: 4
      micro: 2
      lr: 1.0e-3
      precision: fp32
      prompt_swap: false
      shared_phrases: false
      threads: 1
      workers: 0
      log_every: 1
      save_every: 1
      evaluate:
      - {name: genseg, data: gold, task: genseg, samples: 2}
"""


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """The world of shapes as published: 15 pictures, 3 of them held out."""
    from pipelines.world_published import write_published

    root = tmp_path_factory.mktemp("world") / "shapes"
    write_published(root, 15, style="simple", layouts=["coco"])
    return root


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe with other values at places: `recipe({"labeler.name": "xsam"})`."""

    def make(changes=None) -> Path:
        values = yaml.safe_load(LOOP)
        values["training"]["recipe"]["model"] = yaml.safe_load(SMALL)["model"]
        for place, value in (changes or {}).items():
            *path, last = place.split(".")
            inner = values
            for step in path:
                inner = inner.setdefault(step, {})
            inner[last] = value
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(values))
        return file

    return make
