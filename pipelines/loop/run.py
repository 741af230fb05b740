"""A loop: rounds of relabel → review → build → train → evaluate, each of which begins with the model of the one before.

In its folder: `loop.json` (see `log`); `source/`, the ledger of all that is annotated, and `ledger/`, the one that the
rounds add to; `data/` and `world/`, what training reads besides; `rounds/NNN/` with the COCO folder, the datasets, the
training run and `round.json` of each round; `report.json` and `report.html`. Round 0 knows people's masks alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from dataengine.engine.faults import fault_point
from dataengine.keyed import key_hash
from dataengine.ledger.ledger import HEAD, Ledger
from dataengine.ledger.records import Picture
from dataengine.store.files import Folder
from dataengine.store.lock import driver_lock
from pipelines import ledger_export, ledger_sources
from pipelines.loop import measure, report, reviewing
from pipelines.loop.log import Log
from pipelines.loop.recipe import LoopError, LoopRecipe
from pipelines.relabel import forbidden as forbidding
from pipelines.relabel import rounds as relabeling
from pipelines.relabel.chain import Chain
from pipelines.relabel.forbidden import Forbidden
from pipelines.relabel.labelers import Spec, make
from pipelines.relabel.merge import Rules
from pipelines.relabel.pipeline import Settings
from pipelines.training import data as reading
from pipelines.training import evaluating, launch, models
from pipelines.training import recipe as recipes
from pipelines.training import run as training
from pipelines.training.recipe import TrainRecipe

Say = Callable[[str], None]
SPLIT = "train"  # of the exported ledger
OTHERS = {"alone": 0, "frozen": 1}  # models to compare with, and the round whose labels they learn from in all rounds
# settings of labelers that a loop knows better than its recipe
KNOWN = {
    "xsam": {"model": "{model}", "categories": "{categories}", "device": "{device}"},
    "noisy-oracle": {"truth": "{truth}"},
}


class Interrupted(LoopError):
    """Training that was ended by a signal. code: of the process."""

    def __init__(self, code: int) -> None:
        super().__init__("training was interrupted; --resume goes on")
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """How a loop runs; nothing of it changes what it gives. root: of relative paths; workers: that build and label;
    gpus: of each worker on Ray; cpu: leave accelerators alone."""

    root: str | None = None
    workers: int = 1
    gpus: float = 0.0
    cpu: bool = True


def run(recipe: LoopRecipe, out: Path, where: Where, say: Say, *, resume: bool = False) -> str:
    """Go through the rounds of a recipe; says why it ended.

    Args:
        out: a new folder, or with `resume` one that the loop was begun in.
    Raises:
        reviewing.Waiting: masks are with reviewers. Interrupted: by a signal, in training.
        UserError: something in the recipe or of what it names cannot be used.
    """
    out = out.absolute()
    trained = training_of(recipe)
    chain = Chain.parse(recipe.filters, "filters")
    chain.check_answerable(others=False)  # all rounds have the same labeler
    rules = Rules.parse(recipe.merge, "merge")
    check(recipe, trained)
    out.mkdir(parents=True, exist_ok=True)
    with driver_lock(Folder(str(out))) as renew:
        log = Log(out, recipe, trained.model_dump(mode="json"), resume=resume)
        loop = Loop(recipe, trained, chain, rules, out, where, say, log)
        newest = loop.newest()
        for number in range(max(recipe.rounds, newest) + 1):
            for step in loop.steps_of(number):
                if log.found(number, step) is None:
                    say(f"round {number}: {step}")
                    facts = getattr(loop, step)(number)
                    fault_point(f"loop-{step}-{number}")
                    log.add(number, step, facts)
                renew()
            if number < newest:  # its report is written, and it did not end the loop
                continue
            rounds = loop.rounds(number)
            stop = recipe.stop
            why = measure.reason_to_stop(rounds, stop.gain, stop.patience, stop.accept)
            why = why or (f"all {recipe.rounds} rounds are done" if number >= recipe.rounds else None)
            report.write(out, recipe, rounds, why)
            say(f"round {number}: {report.line(rounds)}")
            if why is not None:
                return why
    raise AssertionError("a loop ends with its last round")


def training_of(recipe: LoopRecipe) -> TrainRecipe:
    """The training recipe of a loop, its seeds moved by the loop's. Raises UserError."""
    spec = recipe.training
    if isinstance(spec.recipe, str):
        loaded = recipes.load(spec.recipe, spec.set)
    else:
        loaded = recipes.parse(spec.recipe, spec.set, "training.recipe")
    stages = [s.model_copy(update={"train": replace(s.train, seed=s.train.seed + recipe.seed)}) for s in loaded.stages]
    return models.with_init(loaded.model_copy(update={"stages": tuple(stages)}), [])


def check(recipe: LoopRecipe, trained: TrainRecipe) -> None:
    """Say what would go wrong, before anything is written."""
    last = trained.stages[-1]
    exams = {exam.name for exam in last.evaluate}
    if recipe.score.exam not in exams:
        there = ", ".join(sorted(exams)) or "none"
        raise LoopError(f"score.exam: stage {last.name} has no exam {recipe.score.exam}; there are: {there}")
    labels, people = recipe.training.labels, recipe.training.people
    if both := sorted(set(labels) & set(people)):
        raise LoopError(f"training.people: {both[0]} is in labels too")
    for key, name in [*(("labels", name) for name in labels), *(("people", name) for name in people)]:
        spec = trained.datasets.get(name)
        if spec is None or spec.build is None:
            raise LoopError(f"training.{key}: the training recipe has no dataset {name} with a `build`")
        if all(name not in stage.data for stage in trained.stages):
            raise LoopError(f"training.{key}: no stage trains on {name}")
        if name in gold_of(trained):
            raise LoopError(f"training.{key}: {name} is what models are judged by; that is never trained on")
        for source, of in reading.recipe_of(name, spec).sources.items():
            if of.root not in (None, ".") or of.files:
                raise LoopError(
                    f"training.{key}: {name} reads {source} from {of.root or 'files of its own'}; labels come from "
                    "the ledger alone, which is `root: .`; what else is trained on is a dataset of its own"
                )
    if both := sorted(gold_of(trained) & {name for stage in trained.stages for name in stage.data}):
        raise LoopError(f"{both[0]} is what models are judged by, and is trained on")
    if recipe.training.later_steps is not None and recipe.training.start != "previous":
        raise LoopError("training.later_steps: from scratch all rounds have the same steps")
    if recipe.training.start == "previous" and not set(recipe.training.labels) & set(last.data):
        raise LoopError(f"training.start: previous trains stage {last.name} on, which reads none of the labels")
    if recipe.review is not None and recipe.review.to == "browser" and recipe.review.limit is not None:
        raise LoopError("review.limit is for packages; in the browser people stop when they like")


def gold_of(trained: TrainRecipe) -> set[str]:
    """Datasets that models are judged by: those of all exams."""
    return {exam.data for stage in trained.stages for exam in stage.evaluate}


class Loop:
    """The steps of a loop, each a method of a round's number that gives facts for the log; each can be done again."""

    def __init__(
        self,
        recipe: LoopRecipe,
        trained: TrainRecipe,
        chain: Chain,
        rules: Rules,
        out: Path,
        where: Where,
        say: Say,
        log: Log,
    ) -> None:
        self.recipe, self.trained, self.chain, self.rules = recipe, trained, chain, rules
        self.out, self.where, self.say, self.log = out, where, say, log
        self.ledger = str(out / "ledger")

    def steps_of(self, number: int) -> list[str]:
        """The names of a round's steps."""
        if number == 0:
            return ["begin", "build", "train", "evaluate"]
        review = ["review"] if self.recipe.review is not None else []
        others = [name for name in OTHERS if self._is_trained(name, number)]
        gold = ["gold"] if self._has_gold else []
        return ["relabel", *gold, *review, "build", "train", *others, "evaluate"]

    def newest(self) -> int:
        """The newest round that is evaluated; -1 where none is."""
        return next(number for number in count(-1) if self.log.found(number + 1, "evaluate") is None)

    def rounds(self, newest: int) -> list[dict[str, Any]]:
        """What the evaluations of rounds found, up to one."""
        return [self._found(number, "evaluate") for number in range(newest + 1)]

    def _found(self, number: int, step: str) -> dict[str, Any]:
        found = self.log.found(number, step)
        assert found is not None
        return found

    def _folder(self, number: int) -> Path:
        return self.out / "rounds" / f"{number:03d}"

    # --- begin -------------------------------------------------------------------------------------------------------

    def begin(self, _: int) -> dict[str, Any]:
        """Draw and build what does not change, and begin the ledger without the pictures that models are judged by."""
        root = self.where.root
        if self.trained.world is not None and root is None:
            root = str(reading.draw(self.trained.world, self.out / reading.WORLD, self.where.workers, self.say))
        of_ledger = {*self.recipe.training.labels, *self.recipe.training.people}
        names = tuple(name for name in self.trained.data_names if name not in of_ledger)
        fixed = reading.prepare(_needing(self.trained, names), {}, root, self.out, self.where.workers, self.say)
        self._check_apart(fixed)
        sources, gold = self._sources(root), forbidding.pictures_of(self._gold(fixed))
        taken = [picture for picture in sources.pictures() if not gold(picture)]
        if not taken:
            raise LoopError("source: there is no picture that models are not judged by")
        if gold.found:
            self.say(f"{len(gold.found):,} pictures that models are judged by are left out")
        hidden = hidden_of([picture.key for picture in taken], self.recipe)
        if not Folder(self.ledger).exists(HEAD):
            self._ledger(sources, taken, hidden)
        return {"data": fixed, "pictures": len(taken), "forbidden": len(gold.found), "hidden": len(hidden)}

    def _sources(self, root: str | None) -> Ledger:
        """The ledger of all that is annotated, also what the loop does not see."""
        place, spec = str(self.out / "source"), self.recipe.source
        if not Folder(place).exists(HEAD):
            choice = ledger_sources.Choice(
                split=spec.split,
                exhaustive=spec.exhaustive,
                categories=spec.categories,
                namespace=spec.namespace,
            )
            roots = [one if root is None or "://" in one else (Folder(root) / one).uri for one in spec.roots]
            ledger_sources.create(roots, place, choice, self.recipe.seed)
        return Ledger.open(place)

    def _ledger(self, sources: Ledger, taken: Sequence[Picture], hidden: set[str]) -> None:
        """Begin the ledger with some pictures, of which nothing is known where it is hidden."""
        pictures = [replace(one, exhaustive=(), absent=()) if one.key in hidden else one for one in taken]
        shown = {picture.key for picture in taken} - hidden
        walked = sources.view(0).walk()
        entries = (standing.entry for picture, found in walked if picture.key in shown for standing in found)
        facts = {"hidden": len(hidden)}
        Ledger.create(self.ledger, pictures, sources.categories, entries, seed=self.recipe.seed, facts=facts)

    def _gold(self, fixed: dict[str, str]) -> list[str]:
        return [fixed[name] for name in sorted(gold_of(self.trained))]

    def _check_apart(self, fixed: dict[str, str]) -> None:
        """Raise LoopError where a dataset that is trained on has pictures that models are judged by."""
        gold = forbidding.pictures_of(self._gold(fixed))
        for name in sorted(set(fixed) - gold_of(self.trained)):
            mine = forbidding.pictures_of([fixed[name]])
            if both := len(mine.keys & gold.keys) or len(mine.contents & gold.contents):
                raise LoopError(f"{name}: {both:,} of its pictures are among those that models are judged by")

    # --- labels ------------------------------------------------------------------------------------------------------

    def relabel(self, number: int) -> dict[str, Any]:
        """Label all pictures with the newest model."""
        forbidden = forbidding.pictures_of(self._gold(self._found(0, "begin")["data"]))
        found = self._label(number, self.ledger, self._folder(number) / "relabel", forbidden)
        step = Ledger.open(self.ledger).step(found.step)
        if step.round != number:
            raise LoopError(f"{self.ledger}: step {step.number} is of round {step.round}; somebody else added to it")
        return {"step": found.step, "seconds": step.facts["seconds"], "bad": found.result.account.num_quarantined()}

    def gold(self, number: int) -> dict[str, Any]:
        """Label what models are judged by, in a ledger apart, and measure the masks that are accepted."""
        truth, place = self._gold_ledger(), self._folder(number) / "gold"
        if not Folder(str(place)).exists(HEAD):
            blank = [replace(picture, exhaustive=(), absent=()) for picture in truth.pictures()]
            Ledger.create(str(place), blank, Ledger.open(self.ledger).categories, [], seed=self.recipe.seed)
        if len(Ledger.open(str(place)).steps) == 1:
            self._label(number, str(place), None, None)
        return measure.against(Ledger.open(str(place)).view(), truth)

    @property
    def _has_gold(self) -> bool:
        """An oracle knows nothing of these pictures."""
        return self.recipe.gold and self.recipe.labeler.name != "noisy-oracle"

    def _gold_ledger(self) -> Ledger:
        """The annotations of the pictures that the scored exam asks about."""
        place = str(self.out / "gold")
        if not Folder(place).exists(HEAD):
            exam = next(one for one in self.trained.stages[-1].evaluate if one.name == self.recipe.score.exam)
            choice = ledger_sources.Choice(split=exam.split)
            ledger_sources.create([self._found(0, "begin")["data"][exam.data]], place, choice, self.recipe.seed)
        return Ledger.open(place)

    def _label(self, number: int, ledger: str, work: Path | None, forbidden: Forbidden | None) -> relabeling.Round:
        spec, labeler = self.recipe.labeler, self._labeler(number)
        make(labeler)
        return relabeling.relabel(
            ledger,
            labeler,
            self.chain,
            self.rules,
            Settings(
                workers=self.where.workers,
                num_gpus=self.where.gpus,
                batch=spec.batch,
                per_task=spec.per_task,
                timeout_s=spec.timeout,
                max_bad=spec.max_bad,
                resume=True,  # a round that stands in the ledger is not done again
            ),
            forbidden=forbidden,
            work=None if work is None else str(work),
            say=self.say,
        )

    def _labeler(self, number: int) -> Spec:
        """The labeler of a round, with what the loop knows in its settings."""
        spec = self.recipe.labeler
        known = dict(KNOWN.get(spec.name, {}))
        if self.recipe.source.labelled is None:
            known.pop("truth", None)
        told: dict[str, Callable[[], str]] = {
            "{model}": lambda: str(self._model(number - 1)),
            "{categories}": self._categories,
            "{truth}": self._truth,
            "{device}": lambda: "cpu" if self.where.cpu else "cuda",
        }
        settings = {**known, **spec.settings}
        return Spec(
            name=spec.name,
            settings={k: told[v]() if isinstance(v, str) and v in told else v for k, v in settings.items()},
        )

    def _categories(self) -> str:
        found = [{"id": c.id, "name": c.text} for c in Ledger.open(self.ledger).categories]
        return self._written("categories.json", {"categories": found})

    def _truth(self) -> str:
        """What was hidden, as a COCO file that names pictures as the ledger's files are called."""
        sources = Ledger.open(str(self.out / "source"))
        exported = ledger_export.export(sources.view(0), str(self.out / "truth"), pictures="none")
        document = json.loads(exported.file.read_bytes())
        names = {picture.key: Path(picture.path).name for picture in sources.pictures()}
        for image in document["images"]:
            image["file_name"] = names[image["image_key"]]
        return self._written("truth.json", document)

    def _written(self, name: str, data: Any) -> str:
        file = self.out / name
        staged = file.with_name(f".{name}.tmp")
        staged.write_text(json.dumps(data), encoding="utf-8")
        staged.replace(file)
        return str(file)

    def review(self, number: int) -> dict[str, Any]:
        """Send out what is in question, and take back what came."""
        spec, step = self.recipe.review, self._found(number, "relabel")["step"]
        assert spec is not None
        return reviewing.review(Ledger.open(self.ledger), step, spec, self._folder(number) / "review", self.say)

    def _step(self, number: int) -> int:
        """The ledger's step at the end of a round."""
        if number == 0:
            return 0
        last = "review" if self.recipe.review is not None else "relabel"
        return int(self._found(number, last)["step"])

    # --- models ------------------------------------------------------------------------------------------------------

    def build(self, number: int) -> dict[str, Any]:
        """Build the training data of the ledger's masks; nobody said what is in pictures without one."""
        coco, step = self._folder(number) / "coco", self._step(number)
        view = Ledger.open(self.ledger).view(step)
        done = ledger_export.export(view, str(coco), split=SPLIT, bare=False, searched=True)
        if not done.annotations:
            raise LoopError(f"{self.ledger}: no mask is kept at step {step}; there is nothing to train on")
        data = self._built(number, self.recipe.training.labels, coco)
        if people := self.recipe.training.people:
            alone = self._folder(number) / "people"
            if not ledger_export.export(
                view, str(alone), split=SPLIT, bare=False, people=True, searched=True
            ).annotations:
                raise LoopError(
                    f"{self.ledger}: no mask of a person is kept at step {step}, and training.people has some"
                )
            data |= self._built(number, people, alone)
        figures = {"pictures": done.pictures, "annotations": done.annotations, "left_out": dict(done.left_out)}
        return {"data": data, **figures, "ledger": view.version}

    def _built(self, number: int, names: tuple[str, ...], coco: Path) -> dict[str, str]:
        """Datasets of a round, by name, that are built of a COCO folder."""
        given, wanted = dict.fromkeys(names, str(coco)), _needing(self.trained, names)
        return reading.prepare(wanted, given, str(coco), self._folder(number), self.where.workers, self.say)

    def train(self, number: int) -> dict[str, Any]:
        """Train on the labels of a round."""
        previous = self._model(number - 1) if number and self.recipe.training.start == "previous" else None
        return self._train(number, self._folder(number) / "train", previous)

    def alone(self, number: int) -> dict[str, Any]:
        """Train on people's masks alone."""
        return self._train_other("alone", number)

    def frozen(self, number: int) -> dict[str, Any]:
        """Train on the labels of round 1."""
        return self._train_other("frozen", number)

    def _train_other(self, name: str, number: int) -> dict[str, Any]:
        """Train on the labels of an earlier round, beginning with what was trained on them before."""
        first = OTHERS[name]
        before = self._folder(number - 1) / name / self._last / "model"
        return self._train(first, self._folder(number) / name, self._model(first) if number == first + 1 else before)

    def _is_compared(self, name: str, number: int) -> bool:
        wanted = {"alone": self.recipe.people_alone, "frozen": self.recipe.frozen_teacher}
        return wanted[name] and number > OTHERS[name]

    def _is_trained(self, name: str, number: int) -> bool:
        """From scratch the same labels give the same model again."""
        return self._is_compared(name, number) and self.recipe.training.start == "previous"

    def _train(self, labels_of: int, out: Path, previous: Path | None) -> dict[str, Any]:
        """labels_of: the round whose labels are learned. previous: the model that is trained on."""
        recipe = self.trained
        if previous is not None:
            last = recipe.stages[-1]
            train = replace(last.train, steps=self.recipe.training.later_steps or last.train.steps)
            changes = {"init": {"checkpoint": str(previous)}, "take": {}, "requires": (), "train": train}
            recipe = recipe.model_copy(update={"stages": (last.model_copy(update=changes),)})
        datasets = {**self._found(0, "begin")["data"], **self._found(labels_of, "build")["data"]}
        needed = {name: datasets[name] for name in recipe.data_names}
        resume = (out / training.RUN).exists()
        made = training.Run(recipe=recipe, datasets=needed, out=str(out), resume=resume, cpu=self.where.cpu)
        training.check(made)
        training.write(made)
        code = launch.local(made, self.recipe.training.processes, self.say)
        if code > 128:
            raise Interrupted(code)
        if code:
            raise LoopError(f"{out}: training ended with {code}")
        return {}

    @property
    def _last(self) -> str:
        return self.trained.stages[-1].name

    def _model(self, number: int) -> Path:
        return self._folder(number) / "train" / self._last / "model"

    # --- figures -----------------------------------------------------------------------------------------------------

    def evaluate(self, number: int) -> dict[str, Any]:
        """Collect the scores of a round's model, and measure what the round did to the labels."""
        ledger, sources = Ledger.open(self.ledger), Ledger.open(str(self.out / "source"))
        hidden = hidden_of([picture.key for picture in ledger.pictures()], self.recipe)
        view = ledger.view(self._step(number))
        names = [one.name for one in self.chain.filters]
        figures = measure.measure(view, number, names, sources if hidden else None, hidden)
        scores = self._scores(self._folder(number) / "train")
        first = figures["categories"] if number == 0 else self._found(0, "evaluate")["categories"]
        facts = {
            "round": number,
            "step": view.step,
            **figures,
            "drift": measure.drift(first, figures["categories"]),
            "scores": scores,
            "score": self._score(scores),
            **{name: self._other_score(name, number) for name in OTHERS},
            "gold": self._found(number, "gold") if number and self._has_gold else None,
            "human_seconds": self._human_seconds(ledger, number),
        }
        file = self._folder(number) / "round.json"
        file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        if number:
            _clear(self._folder(number) / "relabel")
        return facts

    def _scores(self, run: Path) -> dict[str, float]:
        """What the exams at the end of a run's last stage found, by name."""
        found: dict[str, float] = {}
        times = sorted((run / self._last / evaluating.EVALUATIONS).glob("step-*"))
        for exam in self.trained.stages[-1].evaluate:
            file = times[-1] / f"{exam.name}.json" if times else None
            if file is None or not file.is_file():
                raise LoopError(f"{run}: stage {self._last} has no result of {exam.name}; train it again")
            found |= evaluating.named(exam, json.loads(file.read_text(encoding="utf-8")))
        return found

    def _score(self, scores: dict[str, float]) -> float:
        score = self.recipe.score
        some = [
            v for name, v in scores.items() if name.split("/")[0] == score.exam and name.split("/")[-1] == score.figure
        ]
        if not some:
            raise LoopError(f"score: exam {score.exam} gives no {score.figure}; it gives {', '.join(sorted(scores))}")
        return sum(some) / len(some)

    def _other_score(self, name: str, number: int) -> float | None:
        if not self._is_compared(name, number):
            return None
        if self._is_trained(name, number):
            return self._score(self._scores(self._folder(number) / name))
        return float(self._found(OTHERS[name], "evaluate")["score"])

    def _human_seconds(self, ledger: Ledger, number: int) -> float:
        """What reviewers took in a round, as far as their tools tell."""
        steps = [one for one in ledger.chain(self._step(number)) if one.kind == "review" and one.round == number]
        return round(sum(float(one.facts.get("seconds", 0.0)) for one in steps), 1)


def hidden_of(pictures: Iterable[str], recipe: LoopRecipe) -> set[str]:
    """Those of a ledger's pictures, by key, whose annotations are hidden; at least one is not."""
    if recipe.source.labelled is None:
        return set()
    keys = sorted(pictures, key=lambda key: key_hash(str(recipe.seed), key, "labelled"))
    return set(keys[max(1, round(recipe.source.labelled * len(keys))) :])


def _needing(recipe: TrainRecipe, names: tuple[str, ...]) -> TrainRecipe:
    """The recipe as one that needs only these datasets."""
    stage = recipe.stages[0].model_copy(update={"data": names, "evaluate": ()})
    return recipe.model_copy(update={"stages": (stage,)})


def _clear(work: Path) -> None:
    """Delete what is in the ledger now; what could not be labelled stays."""
    for name in ("entries", "commits"):
        shutil.rmtree(work / name, ignore_errors=True)
