"""Recipes as files: those that ship with the package, and what is found beside a file."""

from __future__ import annotations

import pytest

from dataengine.errors import UserError
from pipelines.loop import recipe as recipes
from pipelines.loop import run
from pipelines.loop.recipe import LoopError


@pytest.mark.parametrize("name", recipes.shipped())
def test_shipped_recipes_can_be_trained(name):
    loaded = recipes.load(name)
    assert loaded.name == name
    trained = run.training_of(loaded)
    run.check(loaded, trained)
    assert {"vgd_val", "genseg_val"} == run.gold_of(trained)


def test_seeds_move_with_the_loops(recipe):
    file = str(recipe({"training.set": ["seed=5"]}))
    seeds = [run.training_of(recipes.load(file, [f"seed={n}"])).stages[0].train.seed for n in (0, 3)]
    assert seeds == [5, 8]


def test_a_training_recipe_may_stand_beside_the_file(recipe, tmp_path, monkeypatch):
    import yaml

    file = recipe()
    values = yaml.safe_load(file.read_text())
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(values["training"]["recipe"]))
    values["training"]["recipe"] = "training.yaml"
    file.write_text(yaml.safe_dump(values))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run.training_of(recipes.load(str(file))).name == "small"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rounds", "--set rounds: write KEY=VALUE"),
        ("rounds.more=1", "--set rounds.more=1: rounds is 2, and has no keys"),
        ("rounds=[", "--set rounds=[: not a YAML value"),
        ("stop.gain=-1", "stop.gain: Input should be greater than or equal to 0"),
    ],
)
def test_changes_that_cannot_be_made_are_refused(recipe, change, message):
    with pytest.raises(LoopError) as caught:
        recipes.load(str(recipe()), [change])
    assert message in str(caught.value)


def test_what_is_hidden_is_drawn_by_the_seed(recipe):
    keys = [f"coco/{number:012d}" for number in range(100)]
    loaded = [recipes.load(str(recipe()), [f"seed={seed}", "source.labelled=0.1"]) for seed in (0, 0, 1)]
    first, again, other = (run.hidden_of(keys, one) for one in loaded)
    assert len(first) == len(other) == 90
    assert first == again == run.hidden_of(reversed(keys), loaded[0])
    assert first != other
    assert run.hidden_of(keys[:3], loaded[0]) < set(keys[:3])  # one is always shown


def test_what_no_round_could_measure_is_refused_before_the_first(recipe, tmp_path):
    loaded = recipes.load(str(recipe()), ["filters=exhaustivity"])
    with pytest.raises(UserError, match="no other labeler"):
        run.run(loaded, tmp_path / "loop", run.Where(), lambda text: None)
    assert not (tmp_path / "loop").exists()
