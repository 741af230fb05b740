"""Training recipes: the shipped ones are the published ones, and what is wrong with one is named."""

from __future__ import annotations

import dataclasses

import pytest

from dataengine.errors import UserError
from pipelines.training import models, recipe
from pipelines.training.recipe import TrainingError

# X-SAM's configurations (AAAI26_Archive, configs/xsam; cosine in stage 1 and bfloat16 as in main), of 16 GPUs
PUBLISHED = {
    "s1-segmentor": {
        "epochs": 36, "batch": 64, "micro": 4, "lr": 1e-4, "lr_mult": {"segmentor.encoder": 0.1}, "clip": 0.01,
        "weight_decay": 0.05, "checkpointing": False, "trainable": (), "frozen": (),
    },
    "s2-align": {
        "epochs": 1, "batch": 256, "micro": 16, "lr": 1e-3, "lr_mult": {}, "clip": 1.0,
        "weight_decay": 0.0, "checkpointing": True, "trainable": ("visual_projector", "seg_projector"), "frozen": (),
    },
    "s3-mixed": {
        "epochs": 1, "batch": 64, "micro": 4, "lr": 4e-5, "clip": 1.0,
        "lr_mult": {"segmentor.encoder": 0.1, "visual_encoder": 0.1},
        "weight_decay": 0.05, "checkpointing": True, "trainable": (), "frozen": (),
    },
}  # fmt: skip
SHARED = {"betas": (0.9, 0.999), "warmup": 0.03, "schedule": "cosine", "decay_norms": True, "precision": "bf16"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_stages_have_the_published_values(name):
    (stage,) = recipe.load(name).stages
    ours = dataclasses.asdict(stage.train)
    assert {key: ours[key] for key in (*PUBLISHED[name], *SHARED)} == PUBLISHED[name] | SHARED


def test_xsam_is_the_three_stages_one_after_the_other():
    whole = recipe.load("xsam")
    parts = [recipe.load(name) for name in ("s1-segmentor", "s2-align", "s3-mixed")]
    assert whole.stages == tuple(stage for part in parts for stage in part.stages)
    assert set(whole.datasets) == {"coco_panoptic", "llava_pretrain", "mixed"}


@pytest.mark.parametrize("name", recipe.shipped())
def test_every_shipped_recipe_has_a_model_and_what_it_requires_or_says_so(name):
    loaded = recipe.load(name)
    models.config_of(loaded.model)
    if name in ("s2-align", "s3-mixed"):
        with pytest.raises(TrainingError, match="--init stage1=DIR"):
            models.check_inits(loaded)
    else:
        models.check_inits(loaded)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("lr: 1.0e-3", "learning_rate: 1.0e-3", r"stages.one.learning_rate: there is no such key; there are .*\blr\b"),
        ("preset: tiny", "presets: tiny", "model.presets: there is no such key; there are preset, config"),
        ("batch: 4", "batch: 0", "stages.one: batch must be at least 1, not 0"),
        ("redraw: {}", "redraw: {exemplar: true}", "stages.three.redraw.exemplar: there is no such key; .*exemplars"),
        ("redraw: {}", "mixing: {rule: balance}", "stages.three.mixing.*balance"),
        ("name: two", "name: one", "the top level: two stages are called one"),
        ("data: [captions]", "take: {four: [llm]}\n  data: [captions]", "the top level: stage two takes of four"),
        ("prompts: [point, mask]", "prompts: [click]", "stages.three.evaluate.0.prompts.0"),
    ],
)
def test_what_is_wrong_is_named(small, before, after, said):
    small.write_text(small.read_text().replace(before, after, 1))
    with pytest.raises(TrainingError, match=rf"small.yaml: {said}"):
        recipe.load(str(small))


def test_values_are_changed_by_place_by_stage_or_everywhere(small):
    changed = recipe.load(
        str(small), ["batch=8", "one.lr=0.5", "three.redraw.cross_image=0.25", "model.set.image_px=96"]
    )
    assert [stage.train.batch for stage in changed.stages] == [8, 8, 8]
    assert [stage.train.lr for stage in changed.stages] == [0.5, 1e-3, 1e-3]
    assert changed.stages[2].redraw.cross_image == 0.25
    assert models.config_of(changed.model).image_px == 96
    assert recipe.of_options(changed, steps=7).stages[1].train.steps == 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("batch", "write KEY=VALUE"),
        ("four.lr=1", "small.yaml has no four; .*one, two, three"),
        ("lr.up=1", "lr is 0.001, and has no keys"),
        ("lr=[", "not a YAML value"),
    ],
)
def test_a_change_that_cannot_be_made_is_named(small, change, said):
    with pytest.raises(TrainingError, match=said):
        recipe.load(str(small), [change])


def test_a_recipe_made_of_itself_is_refused(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(f"name: a\nmodel: {{preset: tiny}}\nstages: [{file}]\n")
    with pytest.raises(TrainingError, match="is made of itself"):
        recipe.load(str(file))


def test_settings_of_the_model_are_merged_and_checked(small):
    config = models.config_of(recipe.load(str(small)).model)
    assert (config.decoder.num_queries, config.decoder.class_weight) == (6, 2.0)
    assert config.seg_encoder.settings["image_size"] == 64
    assert config.seg_encoder.settings["patch_size"] == 8  # the preset's
    with pytest.raises(UserError, match=r"model\.set: .*decoder\.queries"):
        models.config_of(recipe.load(str(small), ["model.set.decoder.queries=3"]).model)
