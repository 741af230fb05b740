"""`build`: a recipe becomes a dataset. Index → plan → tasks → manifest; it can be stopped anywhere and resumed."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dataengine import builder, conversation, invariants
from dataengine.builder import Context, IndexReport, Outcome
from dataengine.engine.executors import EngineError, run_local, run_ray
from dataengine.engine.faults import fault_point
from dataengine.errors import ReasonError, UserError
from dataengine.keyed import key_hash, keyed
from dataengine.records import Account, Bad
from dataengine.sample import Object, Sample
from dataengine.store import commits, quarantine
from dataengine.store.commits import Commit
from dataengine.store.files import Folder, Stored, is_temporary
from dataengine.store.lock import driver_lock
from dataengine.store.shards import ShardWriter
from pipelines import mix, prompting, variants
from pipelines import plan as planning
from pipelines import roles as split_roles
from pipelines.plan import Job, Plan, ShardTask, Split
from pipelines.progress import Progress, silent
from pipelines.recipe import PromptSpec, Recipe, RecipeError

INDEX = ".dataengine-index"


class ResumeError(UserError):
    """The output holds something that this build cannot go on with."""


class EmptyError(UserError):
    """Not a single sample came of the sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a build runs; none of it changes what it gives, save seed and limit.

    engine: `local`, `ray`, or None for Ray where there is more than one worker and task. limit: pictures of each split.
    """

    workers: int = 1
    engine: str | None = None
    resume: bool = False
    limit: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """Some images of a dataset's sources. replays: that dataset's version. groups: keys of images, by source/split."""

    replays: str
    groups: Mapping[str, set[str]]


def run(
    recipe: Recipe,
    out: str,
    settings: Settings,
    progress: Progress = silent,
    order: Callable[[list[ShardTask]], list[ShardTask]] = list,
    subset: Subset | None = None,
) -> dict[str, Any]:
    """Build a dataset; returns its manifest.

    Args:
        order: in which order tasks are started; the result does not depend on it.
        subset: build only these images of another dataset's sources.
    Raises:
        SourceError, OptionError: a source cannot be used.
        LockedError: another build writes to `out`. ResumeError: `out` holds something else.
        BudgetError: too many bad records. EmptyError: no sample at all.
        NondeterminismError, DatasetError: what stands there is not what was built.
        OSError: the output cannot be written; what is committed stays.
    """
    # workers may run in another folder
    seed = recipe.seed if settings.seed is None else settings.seed
    if not 0 <= seed < 1 << 63:
        raise RecipeError(f"seed {seed}: a seed is a whole number from 0 to 2**63 - 1")
    folder = Folder(str(Folder(out).path.absolute()) if Folder(out).is_local else out.rstrip("/"))
    recipe = recipe.with_absolute_paths()
    refuse_foreign(folder, settings.resume)
    folder.make()
    with driver_lock(folder) as renew:
        commits.remove_temporary_files(folder)
        if not folder.exists(commits.MANIFEST):
            progress.start(folder, settings.workers)
        with _index_folder(folder) as place:
            progress.stage("indexing")
            splits = index(recipe, place, progress, subset)
            progress.stage("planning")
            roles = split_roles.gather(recipe, splits, seed, place, progress)
            replays = subset.replays if subset else None
            plan = planning.make(recipe, splits, seed, settings.limit, replays, roles.identity())
            _settle_plan(folder, plan, recipe)
            if folder.exists(commits.MANIFEST):
                manifest = _finished(folder, plan)
            else:
                stored = folder.publish(roles.file, split_roles.FILE)
                job = job_of(recipe, folder, splits, (folder / stored.name).uri, stored.sha256, roles.forbid, seed)
                done = _run_tasks(recipe, folder, job, plan, splits, settings, progress, order, renew)
                commits.remove_temporary_files(folder)  # of workers that were killed
                if subset is None:
                    _check_not_empty(folder, done)
                expected = mix.expectations(recipe, done) if settings.limit is None and subset is None else None
                facts = {
                    **plan.identity,
                    "expected": expected,
                    "plan": plan.hash,
                    "roles": asdict(stored),
                    "mixing": mix.facts(recipe, done),
                }
                manifest = commits.write_manifest(folder, facts, done)
            fault_point("manifest")
            _remove_remote_indexes(folder)
        progress.end(manifest)
    return manifest


def refuse_foreign(folder: Folder, resume: bool) -> None:
    """Raise ResumeError where the output holds something that must not be written over."""
    ours = ("status.json", ".lock", "locks/", f"{INDEX}/")
    there = [name for name in folder.entries() if name not in ours and not is_temporary(name)]
    if commits.MANIFEST in there and not resume:
        raise ResumeError(f"{folder.uri}: a finished dataset stands here; choose another --out")
    if planning.PLAN in there and not resume:
        raise ResumeError(
            f"{folder.uri}: an unfinished build stands here; add --resume to go on, or choose another --out"
        )
    if there and planning.PLAN not in there:
        raise ResumeError(f"{folder.uri}: not empty, and no build of ours ({there[0]}); choose another --out")


# --- index and plan --------------------------------------------------------------------------------------------------


@contextmanager
def _index_folder(out: Folder) -> Iterator[Path]:
    """Where indexes stand while a build runs: in a local output itself, else in a temporary folder."""
    path = out.path / INDEX if out.is_local else Path(tempfile.mkdtemp(prefix="dataengine-index-"))
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def index(
    recipe: Recipe, place: Path, progress: Progress, subset: Subset | None, only: str | None = None
) -> list[Split]:
    """Find and index every split of every source of a recipe.

    Args:
        only: the single split to index, as `source/split`.
    """
    found: list[Split] = []
    for name, spec in sorted(recipe.sources.items()):
        if only is not None and name != only.partition("/")[0]:
            continue
        with recipe.naming(name):
            made = builder.load(spec.builder)
            options = made.parse_options(spec.task, spec.options)
            parts = made.locate(spec.root, spec.files, spec.splits, options)
        for part in parts:
            if only not in (None, f"{name}/{part.split}"):
                continue
            fault_point("index")
            progress.say(f"indexing {name}/{part.split}")
            target = place / f"{len(found):03d}.arrow"
            with recipe.naming(name):
                report = made.index(part, options, target)
            if subset is not None:
                report, target = _select(made, report, target, subset.groups.get(f"{name}/{part.split}", set()))
            found.append(Split(source=name, spec=spec, part=part, options=options, report=report, index=target))
    return found


def _select(made: builder.Builder, report: IndexReport, target: Path, groups: set[str]) -> tuple[IndexReport, Path]:
    some = target.with_name(f"some-{target.name}")
    rows = made.select(target, groups, some)
    fingerprint = key_hash(report.fingerprint, *sorted(groups)).hex()
    return replace(report, rows=rows, fingerprint=fingerprint), some


def _settle_plan(folder: Folder, plan: Plan, recipe: Recipe) -> None:
    """Write the plan, or check that it is the one that was begun."""
    if folder.exists(planning.PLAN):
        with folder.open(planning.PLAN) as file:
            before, identity = planning.identity_of(file)
        if before != plan.hash:
            raise ResumeError(
                f"{folder.uri}: cannot be resumed, because what goes into it changed: "
                f"{planning.difference(identity, dict(plan.identity))}"
            )
        return
    with folder.staging(planning.PLAN) as staged:
        planning.to_parquet(plan, recipe, staged)
        folder.publish(staged, planning.PLAN)
    fault_point("plan")


def _finished(folder: Folder, plan: Plan) -> dict[str, Any]:
    manifest = commits.read_manifest(folder)
    if manifest["plan"] != plan.hash:
        raise ResumeError(f"{folder.uri}: a finished dataset of another plan stands here; choose another --out")
    return manifest


def job_of(
    recipe: Recipe,
    folder: Folder,
    splits: Sequence[Split],
    roles: str,
    roles_sha256: str,
    forbid: tuple[str, ...],
    seed: int,
) -> Job:
    """What workers need to build tasks of these splits into `folder`; the rest as in `Job`."""
    indexes = {split.key: _where_workers_find(folder, split.index) for split in splits}
    pools = {}
    if recipe.variants is not None and recipe.variants.any:
        for split in splits:
            pool = variants.write_pool(split.spec.builder, context_of(split, seed), split.index, split.report.bad)
            pools[split.key] = _where_workers_find(folder, pool)
    return Job(
        out=folder.uri,
        builders={split.key: split.spec.builder for split in splits},
        contexts={split.key: context_of(split, seed) for split in splits},
        indexes=indexes,
        roles=roles,
        roles_sha256=roles_sha256,
        forbid=forbid,
        prompts=recipe.prompts,
        variants=recipe.variants,
        pools=pools,
        seed=seed,
    )


def _where_workers_find(folder: Folder, file: Path) -> str:
    """Where a file that a build needs while it runs stands for its workers: in remote outputs, a copy of it."""
    if folder.is_local:
        return str(file)
    name = f"{INDEX}/{file.name}"
    folder.delete(name)
    folder.publish(file, name)
    return (folder / name).uri


def _remove_remote_indexes(folder: Folder) -> None:
    if not folder.is_local:
        for name in (folder / INDEX).names():
            folder.delete(f"{INDEX}/{name}")


def context_of(split: Split, seed: int) -> Context:
    """What the builder needs to read a split."""
    made = builder.load(split.spec.builder)
    return builder.make_context(made, split.source, split.spec.task, split.part, split.report, split.options, seed)


def _run_tasks(
    recipe: Recipe,
    folder: Folder,
    job: Job,
    plan: Plan,
    splits: Sequence[Split],
    settings: Settings,
    progress: Progress,
    order: Callable[[list[ShardTask]], list[ShardTask]],
    renew: Callable[[], None],
) -> list[Commit]:
    done: list[Commit] = []
    todo: list[ShardTask] = []
    by_key = {split.key: split for split in splits}
    for task in plan.tasks:
        commit = commits.read(folder, task.task_id)
        if commit is not None:
            commits.verify_files(folder, commit)
            done.append(commit)
        elif task.shard is None:
            done.append(_commit_index(folder, task, by_key[f"{task.source}/{task.split}"]))
        else:
            todo.append(task)
    records = sum(split.report.records + split.report.account.read.total() for split in splits)
    progress.plan(plan, done)
    use_ray = settings.engine == "ray" or (settings.engine is None and settings.workers > 1 and len(todo) > 1)
    results: Generator[Commit | None]
    results = (
        run_ray(build_task, job, order(todo), settings.workers) if use_ray else run_local(build_task, job, order(todo))
    )
    _check_budget(recipe, done, records)
    with closing(results):  # where this stops, workers stop before the lock is given back
        for commit in results:
            renew()
            if commit is not None:
                done.append(commit)
                fault_point("gathered")
                _check_budget(recipe, done, records)
            progress.update(commit)
    return done


def _check_not_empty(folder: Folder, done: Sequence[Commit]) -> None:
    if not any(commit.rows for commit in done):
        total = Account()
        for commit in done:
            total.add(commit.account)
        reasons = {unit: dict(counter) for unit, counter in [*total.quarantined.items(), *total.filtered.items()]}
        raise EmptyError(f"{folder.uri}: nothing was built; {sum(total.read.values())} records were read: {reasons}")


def _check_budget(recipe: Recipe, done: Sequence[Commit], records: int) -> None:
    bad = sum(commit.account.num_quarantined() for commit in done)
    budget = recipe.budget
    if quarantine.over_budget(bad, records, max_fraction=budget.max_fraction, min_count=budget.min_count):
        reasons = Account()
        for commit in done:
            reasons.add(commit.account)
        listed = {unit: dict(counter.most_common(5)) for unit, counter in reasons.quarantined.items()}
        raise quarantine.BudgetError(
            f"{bad} records are quarantined, more than the budget of {budget.min_count} records or "
            f"{budget.max_fraction:.1%}: {listed}. See the quarantine folder; raise `budget` in the recipe to go on"
        )


def _commit_index(folder: Folder, task: ShardTask, split: Split) -> Commit:
    """The commit of what indexing refused."""
    return _commit(folder, task, None, Written(), list(split.report.bad), split.report.account)


# --- one task --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Written:
    """What a task has written to its shard."""

    rows: int = 0
    objects: int = 0
    logical_hash: str | None = None
    tasks: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=Counter)

    def add(self, sample: Sample) -> None:
        self.rows += 1
        self.objects += len(sample.objects)
        self.tasks[sample.task] += 1
        self.licenses[str(sample.license)] += 1
        for thing in sample.objects:
            for prompt in thing.prompts:
                self.prompts[f"{prompt.kind}/{prompt.status}"] += 1


def build_task(job: Job, task: ShardTask) -> Commit:
    """Build and commit one shard: a pure function of the task, safe to repeat at any time, anywhere."""
    out = Folder(job.out)
    commit = commits.read(out, task.task_id)
    if commit is not None:
        return commit
    if task.shard is None:
        raise AssertionError("what indexing refused is committed by the driver")
    _prepare(any(builder.brings_prompts(name) for name in job.builders.values()))
    key = f"{task.source}/{task.split}"
    account, bad, written = Account(), list[Bad](), Written()
    forbidden = split_roles.load_forbidden(job.roles, job.roles_sha256, job.forbid)
    library = library_of(job, key, forbidden if split_roles.is_training(task.split) else None)
    outcomes = builder.load(job.builders[key]).read(job.contexts[key], Folder(job.indexes[key]), task.start, task.stop)
    with out.staging(task.shard) as staged:
        writer = ShardWriter(staged)
        try:
            for outcome in outcomes:
                allowed = split_roles.without_forbidden(outcome, task.split, forbidden)
                finished = finish(allowed, job.prompts, job.seed, library)
                for sample in finished.samples:
                    writer.write(sample, checked=True)
                    written.add(sample)
                bad += finished.bad
                account.add(finished.account)
            written.logical_hash = writer.close()
        except BaseException as error:
            writer.abort()
            error.add_note(f"while building {task}")
            raise
        fault_point("written")
        shard = out.publish(staged, task.shard) if written.rows else None
    return _commit(out, task, shard, written, bad, account)


def library_of(job: Job, key: str, forbidden: split_roles.Forbidden | None) -> variants.Library | None:
    """Where the variants of a split's samples find the objects of other pictures; None where there are no variants.

    Args:
        forbidden: pictures that must not be shown; None where all may.
    """
    if job.variants is None:
        return None
    return variants.Library(
        builder=builder.load(job.builders[key]),
        context=job.contexts[key],
        index=Folder(job.indexes[key]),
        pool=variants.load_pool(job.pools[key]) if key in job.pools else None,
        prompts=job.prompts,
        spec=job.variants,
        forbidden=forbidden,
    )


@cache
def _prepare(bitmaps: bool) -> None:
    """Load every compiled loop, or compile it, before any work: trouble with that is nobody's picture's fault.

    Args:
        bitmaps: also those that find the geometry of prompts which a source brings; they take seconds to compile.
    """
    from dataengine import masks, prompts
    from dataengine.kernels import compiled, runlengths
    from prompts_sim import VERSIONS, simulate

    try:
        outline = [[2, 2, 9, 2, 9, 9]]
        masks.measured_from_polygon_lists([outline], 12, 12)
        rles = [masks.rle_from_segmentation(outline, 12, 12)]
        rles.append(masks.rle_from_segmentation({"size": [12, 12], "counts": [20, 3, 9, 3, 109]}, 12, 12))
        things = [Object(rle=r, bbox=(0, 0, 1, 1), area=1, category_id=0, annotation_id="") for r in rles]
        for kind in (np.uint8, np.uint32):
            starts, labels = runlengths.runs_of_map(np.zeros((2, 2), dtype=kind), kind(1), 1)
        runlengths.codes_of_labels(starts, labels, np.arange(1), 2, 2)
        for profile in VERSIONS:
            simulate(things, 12, 12, profile=profile, seed=0, image_key="")
        if bitmaps:
            borders = masks.borders_from_rles(rles, 12, 12)
            prompts.geometry(borders, ("point", "box"), {"point": 1.0, "scribble": 1.0}, 12, 12, is_traced=False)
            runlengths.shares(borders.places, borders.stops, np.arange(2), borders.places, borders.stops)
            masks.rle_from_borders(borders.places[: borders.stops[0]], 12, 12)
        runlengths.measure_codes(np.frombuffer(rles[0], dtype=np.uint8), np.array([len(rles[0])]), 12, 12)
    except Exception as error:
        place = compiled.cache_folder()
        raise EngineError(
            f"the compiled loops in {place} cannot be loaded ({type(error).__name__}: {error}); delete that folder"
        ) from error


def _commit(
    out: Folder, task: ShardTask, shard: Stored | None, written: Written, bad: list[Bad], account: Account
) -> Commit:
    account.check(str(task))
    refused = None
    if bad:
        name = f"{quarantine.FOLDER}/{task.task_id}.parquet"
        with out.staging(name) as staged:
            quarantine.write(staged, task.source, task.split, bad)
            refused = out.publish(staged, name)
    commit = Commit(
        task_id=task.task_id,
        source=task.source,
        split=task.split,
        start=task.start,
        stop=task.stop,
        rows=written.rows,
        shard=shard,
        logical_hash=written.logical_hash if written.rows else None,
        quarantine=refused,
        tasks=written.tasks,
        licenses=written.licenses,
        objects=written.objects,
        prompts=written.prompts,
        account=account,
    )
    fault_point("commit")
    commits.write(out, commit)
    return commit


def finish(outcome: Outcome, prompts: PromptSpec | None, seed: int, library: variants.Library | None = None) -> Outcome:
    """Prompts, exemplars, variants and conversation for the samples of one picture, checked.

    Where one of its samples does not hold, the whole picture is quarantined.

    Args:
        library: what the samples' variants are made of; None where none are wanted.
    """
    if not outcome.samples:
        return outcome
    account = Account()
    account.add(outcome.account)
    samples: Sequence[Sample] = outcome.samples
    try:
        if any(map(prompting.shows_regions, samples)):
            prompted = prompting.attach(samples, prompts, seed)
            samples = prompted.samples
            account.read["conditions"] += prompted.conditions + prompted.dropped
            account.built["conditions"] += prompted.conditions
            account.filter("conditions", "no_prompt", prompted.dropped)
        if library is not None and samples:
            samples = _varied(samples, outcome, library, account)
        rendered = [
            conversation.render(s, keyed(seed, s.sample_id, "conversation", conversation.VERSION)) for s in samples
        ]
        for sample in rendered:
            invariants.check(sample)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a defect, or a sample that does not hold: this picture's, not the job's
        return _refused(outcome, error)
    if not rendered:
        _filter_built(account, "no_prompt")
    elif account.built["annotations"]:
        lost = _ids(outcome.samples) - _ids(rendered)
        account.built["annotations"] -= len(lost)
        account.filter("annotations", "no_prompt", len(lost))
    return replace(outcome, samples=rendered, account=account)


def _varied(
    samples: Sequence[Sample], outcome: Outcome, library: variants.Library, account: Account
) -> Sequence[Sample]:
    """The samples and their variants, whose regions are counted."""
    made = [variants.vary(sample, outcome, library) for sample in samples]
    for varied in made:
        account.read["variant_regions"] += varied.built + sum(varied.filtered.values())
        account.built["variant_regions"] += varied.built
        for reason, number in varied.filtered.items():
            account.filter("variant_regions", reason, number)
    return [sample for varied in made for sample in varied.samples]


def _ids(samples: Sequence[Sample]) -> set[str]:
    return {thing.annotation_id for sample in samples for thing in sample.objects}


def _filter_built(account: Account, reason: str) -> None:
    for unit, number in account.built.items():
        account.filter(unit, reason, number)
    account.built.clear()


def _refused(outcome: Outcome, error: Exception) -> Outcome:
    """The outcome of a picture one of whose samples does not hold."""
    origin = outcome.samples[0].provenance
    bad = Bad(
        unit=outcome.unit,
        file=origin.file,
        record=origin.record,
        group=outcome.group,
        reason=error.reason if isinstance(error, ReasonError) else "internal_error",
        message=str(error) if isinstance(error, ReasonError) else f"{type(error).__name__}: {error}",
        payload="",
    )
    account = Account()
    account.add(outcome.account)
    del account.built[outcome.unit]
    _filter_built(account, f"{outcome.unit.removesuffix('s')}_quarantined")
    account.quarantine([bad])
    return replace(outcome, samples=[], bad=[*outcome.bad, bad], account=account)
