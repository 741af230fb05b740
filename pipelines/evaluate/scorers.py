"""What a scorer of a task is: it takes predictions one by one, and gives scores over all samples of the benchmark."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from dataengine.errors import ReasonError, UserError
from dataengine.metrics.ap import BACKENDS
from dataengine.sample import PROMPT_KINDS
from dataengine.store.files import Folder
from pipelines.evaluate.benchmark import Benchmark
from pipelines.evaluate.predictions import Faults

CONVENTIONS = ("standard", "xsam")
# task → the module of `pipelines.evaluate` that scores it
MODULES = {
    "vgdseg": "regions",
    "refseg": "referring",
    "reaseg": "referring",
    "intseg": "referring",
    "grefseg": "generalized",
    "genseg": "generic",
    "ovseg": "generic",
    "gcgseg": "grounded",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How predictions are scored.

    convention: `standard`, or `xsam` for the conventions of X-SAM's evaluators. backend: of average precision. prompt:
    the kind that all predictions answer that do not say it. strata: whether scores of regions are broken down by
    difficulty, which takes four times as long as the scores themselves.
    """

    convention: str = "standard"
    backend: str = "hotcoco"
    prompt: str | None = None
    strata: bool = True


class Scorer(ABC):
    """Collects the predictions for one benchmark and task; the module of a task has one of this name.

    faults: what is wrong with predictions. predictions: how many are scored.
    """

    def __init__(self) -> None:
        self.faults = Faults()
        self.predictions = 0

    def add(self, place: str, record: Any, folder: Folder | None = None) -> None:
        """Take a prediction; what is wrong with it goes to `faults`.

        Args:
            place: where it stands, for messages. record: as in a file. folder: files that it names are below it.
        """
        try:
            if not isinstance(record, dict):
                raise ReasonError("bad_record", f"a prediction is an object, not {record!r:.80}")
            self._take(record, place, folder)
            self.predictions += 1
        except ReasonError as error:
            self.faults.add(error.reason, f"{place}: {error}")

    @abstractmethod
    def add_nothing(self, sample_id: str, prompt: str | None) -> None:
        """Note that a model was asked, and found nothing: a kind of prompt is then answered, and scores 0.

        Args:
            prompt: the kind that was shown; None where the task has none.
        Raises:
            ReasonError: `unknown_sample`, `bad_prompt`.
        """

    @abstractmethod
    def _take(self, record: Mapping[str, Any], place: str, folder: Folder | None) -> None:
        """Take a prediction that is an object. Raises ReasonError where it cannot be scored."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """Scores as JSON values: `scores` by name, and what else the task reports."""


def scorer_of(benchmark: Benchmark, rules: Rules) -> Scorer:
    """The scorer of a benchmark's task.

    Raises:
        UserError: there is none, or no such convention, backend or kind of prompt.
    """
    if rules.convention not in CONVENTIONS:
        raise UserError(f"no convention {rules.convention!r}; there are {', '.join(CONVENTIONS)}")
    if rules.backend not in BACKENDS:
        raise UserError(f"no AP backend {rules.backend!r}; there are {', '.join(BACKENDS)}")
    if rules.prompt is not None and rules.prompt not in PROMPT_KINDS:
        raise UserError(f"no kind of prompt {rules.prompt!r}; there are {', '.join(PROMPT_KINDS)}")
    if benchmark.task not in MODULES:
        raise UserError(f"{benchmark.task} is not scored here; {', '.join(sorted(MODULES))} are")
    module = import_module(f"pipelines.evaluate.{MODULES[benchmark.task]}")
    scorer: Scorer = module.Scorer(benchmark, rules)
    return scorer
