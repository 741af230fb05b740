"""A tree of shapes and a recipe whose model takes steps in milliseconds."""

from __future__ import annotations

from pathlib import Path

import pytest

SMALL = """
name: small
model:
  preset: tiny
  set:
    image_px: 64
    seg_px: 64
    language: {settings: {num_hidden_layers: 1, hidden_size: 64, intermediate_size: 96, head_dim: 16}}
    image_encoder: {settings: {image_size: 64, num_hidden_layers: 2}}
    seg_encoder: {settings: {image_size: 64, num_hidden_layers: 3, global_attn_indexes: [0, 1, 2]}}
    connector: {hidden_dim: 32, layers: [1, 2, 3]}
    decoder: {hidden_dim: 32, num_queries: 6, layers: 1, points: 32}
datasets:
  panoptic:
    build: &panoptic
      sources:
        coco: {builder: coco, task: genseg, root: coco, splits: [train2017], options: {variants: [instance]}}
  captions:
    build:
      sources:
        llava: {builder: llava, task: chat, root: llava, splits: [train], options: {edition: pretrain}}
  mixed:
    build:
      prompts: {profile: strict}
      sources:
        vgdseg: {builder: coco, task: vgdseg, root: coco, splits: [train2017]}
        genseg: {builder: coco, task: genseg, root: coco, splits: [train2017], options: {variants: [instance]}}
  vgd_val:
    lock: true
    build:
      prompts: {profile: strict, fallback: true}
      variants: {}
      sources:
        coco: {builder: coco, task: vgdseg, root: coco, splits: [val2017]}
  genseg_val:
    build:
      sources:
        coco: {builder: coco, task: genseg, root: coco, splits: [val2017], options: {variants: [instance]}}
stages:
- &stage
  name: one
  stage: 1
  data: [panoptic]
  tasks: [genseg]
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
  - {name: genseg, data: genseg_val, task: genseg, samples: 2}
- <<: *stage
  name: two
  stage: 2
  data: [captions]
  tasks: [chat]
  trainable: [visual_projector, seg_projector]
  evaluate: []
- <<: *stage
  name: three
  stage: 3
  data: [mixed]
  tasks: []
  redraw: {}
  evaluate_every: 1
  evaluate:
  - {name: vgd, data: vgd_val, task: vgdseg, prompts: [point, mask], samples: 2}
baselines: true
"""


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """The world of shapes as published: 15 pictures, 3 of them held out."""
    from pipelines.world_published import write_published

    root = tmp_path_factory.mktemp("world") / "shapes"
    write_published(root, 15, style="simple", layouts=["coco", "llava"])
    return root


@pytest.fixture(scope="session")
def datasets(shapes, tmp_path_factory) -> dict[str, str]:
    """The datasets that the recipe needs, built once."""
    from pipelines.training import data, recipe

    folder = tmp_path_factory.mktemp("built")
    (folder / "small.yaml").write_text(SMALL)
    loaded = recipe.load(str(folder / "small.yaml"))
    return data.prepare(loaded, {}, str(shapes), folder, 1, lambda _: None)


@pytest.fixture
def small(tmp_path) -> Path:
    """The recipe as a file."""
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file
