"""`loop.json`: the recipe of a loop, and the steps of its rounds that are done, each with what it found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pipelines import plan
from pipelines.loop.recipe import LoopError, LoopRecipe

FILE = "loop.json"
FORMAT = 1
MAY_CHANGE = ("description", "rounds", "stop")  # between a loop's beginning and its going on


class Log:
    """What is done of a loop. Each step is written once it is done: one that was stopped is done again."""

    def __init__(self, out: Path, recipe: LoopRecipe, training: dict[str, Any], *, resume: bool) -> None:
        """training: the training recipe's values.

        Raises:
            LoopError: the folder holds a loop and is not to be gone on with, or another one; or it holds something
            else.
        """
        self.file, self.steps = out / FILE, list[dict[str, Any]]()
        told = {"recipe": recipe.model_dump(mode="json"), "training": training}
        if self.file.exists():
            if not resume:
                raise LoopError(f"{out}: holds a loop; add --resume to go on with it, or choose another --out")
            data = read(out)
            before, now = (_fixed(one) for one in (data, json.loads(json.dumps(told))))
            if before != now:
                raise LoopError(f"{out}: cannot be gone on with: {plan.difference(before, now)}")
            self.steps = data["steps"]
        elif others := sorted(path.name for path in out.iterdir() if path.name not in (".lock", "locks")):
            raise LoopError(f"{out}: not empty, and no loop ({others[0]}); choose another folder")
        self._told = told
        self._write()

    def found(self, round: int, step: str) -> dict[str, Any] | None:
        """What a step found; None where it is not done."""
        return next((s["facts"] for s in self.steps if (s["round"], s["step"]) == (round, step)), None)

    def add(self, round: int, step: str, facts: dict[str, Any]) -> None:
        self.steps.append({"round": round, "step": step, "facts": facts})
        self._write()

    def _write(self) -> None:
        staged = self.file.with_name(f".{FILE}.tmp")
        text = json.dumps({"format": FORMAT, **self._told, "steps": self.steps}, indent=1)
        with staged.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        staged.replace(self.file)


def read(out: Path) -> dict[str, Any]:
    """The content of a loop's file. Raises LoopError where there is none."""
    try:
        data: dict[str, Any] = json.loads((out / FILE).read_text(encoding="utf-8"))
        if data["format"] != FORMAT or not isinstance(data["steps"], list):
            raise ValueError(f"format {data['format']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoopError(f"{out}: {FILE} cannot be read: {error}") from None
    return data


def _fixed(told: dict[str, Any]) -> dict[str, Any]:
    recipe = {key: value for key, value in told["recipe"].items() if key not in MAY_CHANGE}
    return {"recipe": recipe, "training": told["training"]}
