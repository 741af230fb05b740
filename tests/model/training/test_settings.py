import dataclasses
import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from model.config import stage1  # noqa: E402
from model.training.settings import Lora, Stage, StageError, changes, check, is_learned  # noqa: E402
from tests.model.training.runs import CONFIG, PLAIN  # noqa: E402

NAMES = ["segmentor.encoder.layers.0.weight", "segmentor.decoder.weight", "llm.model.embed_tokens.weight"]
NAMES += ["llm.model.layers.0.q_proj.lora_A.default.weight", "llm.model.layers.0.q_proj.base_layer.weight"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch": 0}, "batch must be at least 1"),
        ({"steps": 0}, "steps and threads"),
        ({"lr": float("nan")}, "lr must be finite"),
        ({"lr_mult": {"llm": -1.0}}, "llm must be finite"),
        ({"warmup": 1.5}, "shares"),
        ({"milestones": (3,), "schedule": "cosine"}, "milestones belong"),
        ({"ema": 1.0}, "ema"),
        ({"tasks": ("vgd",)}, "no task vgd"),
        ({"save_every": -1}, "save_every"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_values_that_make_no_sense(changed, said):
    with pytest.raises(ValueError, match=said):
        replace(PLAIN, **changed)


@pytest.mark.parametrize("what", ["trainable", "frozen", "lr_mult"])
def test_a_prefix_without_weights_is_told_with_what_there_is(what):
    value = {"segmentor.encode": 0.1} if what == "lr_mult" else ("segmentor.encode",)
    with pytest.raises(StageError, match=rf"{what}: no weight .* 'segmentor.encode'; it has llm, segmentor"):
        check(replace(PLAIN, **{what: value}), CONFIG, NAMES, {"vgdseg"})


@pytest.mark.parametrize(
    ("config", "tasks", "without"),
    [
        (stage1(CONFIG), {"genseg"}, None),
        (stage1(CONFIG), {"genseg", "chat"}, "chat"),
        (stage1(CONFIG), {"vgdseg"}, "vgdseg"),
        (replace(CONFIG, head="linear"), {"vgdseg", "chat"}, "vgdseg"),
        (CONFIG, {"genseg", "vgdseg", "refseg", "gcgseg", "chat"}, None),
    ],
    ids=["S1 classes", "S1 words", "S1 regions", "linear head of a whole model", "everything"],
)
def test_a_task_without_head(config, tasks, without):
    if without is None:
        check(PLAIN, config, NAMES, tasks)
        return
    with pytest.raises(StageError, match=f"has no head for {without}$"):
        check(PLAIN, config, NAMES, tasks)


def test_data_that_a_stage_does_not_learn():
    with pytest.raises(StageError, match="learns chat; the data has vgdseg too"):
        check(replace(PLAIN, tasks=("chat",)), CONFIG, NAMES, {"chat", "vgdseg"})
    with pytest.raises(StageError, match="no sample"):
        check(PLAIN, CONFIG, NAMES, ())
    with pytest.raises(StageError, match="nothing to learn"):
        check(replace(PLAIN, trainable=("llm",), frozen=("llm",)), CONFIG, NAMES, {"chat"})


@pytest.mark.parametrize(
    ("changed", "learned"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"trainable": ("segmentor",)}, [0, 1]),
        ({"frozen": ("segmentor.encoder",)}, [1, 2, 3, 4]),
        ({"frozen": ("segmentor.enc",)}, [0, 1, 2, 3, 4]),  # no whole name
        ({"lora": Lora(), "frozen": ("segmentor",)}, [3]),
        ({"lora": Lora(also=("llm.model.embed_tokens",)), "trainable": ("segmentor.decoder",)}, [1, 2, 3]),
    ],
    ids=str,
)
def test_what_is_learned(changed, learned):
    stage = replace(PLAIN, **changed)
    assert [number for number, name in enumerate(NAMES) if is_learned(stage, name)] == learned


def test_a_resume_may_change_how_it_runs_but_not_what_it_learns():
    stored = json.loads(json.dumps(dataclasses.asdict(PLAIN)))
    assert changes(stored, replace(PLAIN, micro=7, parallel="fsdp", save_every=9, threads=2)) == []
    assert changes(stored, replace(PLAIN, lr=2.0, lora=Lora(rank=4))) == [
        "lora: was None, is {'rank': 4, 'alpha': 128, 'targets': [], 'also': []}",
        "lr: was 0.001, is 2.0",
    ]


def test_how_many_steps():
    stage = Stage(name="s", stage=3, epochs=3)
    assert stage.num_steps(10) == 30
    assert replace(stage, steps=7).num_steps(10) == 7
