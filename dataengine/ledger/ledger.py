"""The ledger: a folder that holds pictures, every mask that was ever proposed for them, and every decision, in steps.

ledger.json               format, seed, categories, and what pictures.parquet must be
pictures.parquet          sorted by key
steps/000003.json         what step 3 added to which earlier step; published last, so that it is whole or not at all
entries/000003/*.parquet  decisions/000003/*.parquet  quarantine/000003/*.parquet
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataengine.engine.faults import fault_point
from dataengine.ledger import steps as stepping
from dataengine.ledger import writing
from dataengine.ledger.records import Concept, Decision, Entry, Picture
from dataengine.ledger.steps import Kind, Step
from dataengine.ledger.tables import (
    GROUP_ROWS,
    LedgerError,
    SortedFile,
    SortedWriter,
    decision_schema,
    decisions_of,
    entries_of,
    entry_schema,
    picture_schema,
    pictures_of,
    table_of_decisions,
    table_of_pictures,
)
from dataengine.ledger.view import View, files_of
from dataengine.records import Bad, Category
from dataengine.store import quarantine
from dataengine.store.commits import canonical_json, version_of
from dataengine.store.files import Folder, NondeterminismError, Stored
from dataengine.store.lock import driver_lock

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
HEAD = "ledger.json"
PICTURES = "pictures.parquet"
_OURS = (".lock", "locks/", PICTURES, f"{stepping.PICTURES}/", "steps/", "entries/", "decisions/", "quarantine/")


class Ledger:
    """An opened ledger, as it was when it was opened; its own appends show.

    folder: that it is. seed: of whatever is drawn for it. categories: that its concepts may name. steps: by number.
    """

    def __init__(self, folder: Folder, data: Mapping[str, Any], steps: Sequence[Step]) -> None:
        self.folder = folder
        self.seed: int = data["seed"]
        self.num_pictures: int = data["num_pictures"]
        self.categories = tuple(Category(**{**c, "synonyms": tuple(c["synonyms"])}) for c in data["categories"])
        self.steps = list(steps)
        self._stored = Stored(**data["pictures"])
        self._checked: set[str] = set()

    # --- making and opening --------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        folder: Folder | str,
        pictures: Iterable[Picture],
        categories: Iterable[Category],
        entries: Iterable[Entry] | Sequence[Path],
        *,
        seed: int = 0,
        bad: Sequence[Bad] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> Ledger:
        """Make a ledger of pictures and what people annotated in them, its step 0.

        Args:
            folder: new or empty; what a killed `create` left there is written anew. pictures: in any order; a local
                path that is not absolute is below the folder. entries: of round 0, see `append`. bad: records of the
                source that cannot be used. facts: JSON values, of step 0.
        Raises:
            LedgerError: a picture, category or entry is refused, or the folder holds something else.
        """
        place = Folder(folder) if isinstance(folder, str) else folder
        place.make()
        with driver_lock(place) as renew:
            refuse_foreign(place)
            _clear(place)
            stored, number = _write_pictures(place, pictures)
            known = sorted(categories, key=lambda c: c.id)
            data = {
                "format": FORMAT,
                "seed": seed,
                "num_pictures": number,
                "categories": [
                    {"id": c.id, "name": c.name, "text": c.text, "is_thing": c.is_thing, "synonyms": list(c.synonyms)}
                    for c in known
                ],
                "pictures": {"name": stored.name, "bytes": stored.bytes, "sha256": stored.sha256},
            }
            if len({c.id for c in known}) < len(known) or any(c.id < 0 or not c.text.strip() for c in known):
                raise LedgerError(f"{place.uri}: categories need ids of their own, from 0, and a text")
            data["version"] = version_of(data)
            ledger = cls(place, data, ())
            step = Step(number=0, parent=None, kind="init", round=0, facts=facts or {})
            ledger._write(step, entries, (), renew, bad)
            place.write_new(HEAD, canonical_json(data))
            fault_point("ledger")
        return ledger

    @classmethod
    def open(cls, folder: Folder | str) -> Ledger:
        """Open a ledger by path or URI.

        Raises:
            LedgerError: there is none, or its steps are damaged or were changed; the message names the file.
        """
        place = Folder(folder) if isinstance(folder, str) else folder
        try:
            data = json.loads(place.read(HEAD))
            version = data["version"]
        except (FileNotFoundError, NotADirectoryError):
            raise LedgerError(f"{place.uri}: {HEAD} is missing: no ledger") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise LedgerError(f"{place.uri}: {HEAD} is damaged") from None
        if version != version_of(data):
            raise LedgerError(f"{place.uri}: {HEAD} was changed after it was written: its version does not match")
        if data.get("format") != FORMAT:
            raise LedgerError(f"{place.uri}: a ledger of format {data.get('format')!r}; {FORMAT} is known")
        try:
            return cls(place, data, stepping.read_all(place))
        except (KeyError, TypeError, AttributeError) as error:
            raise LedgerError(f"{place.uri}: {HEAD} is damaged: {error}") from None

    # --- what is in it -------------------------------------------------------------------------------------------

    @property
    def head(self) -> Step:
        """The newest step."""
        return self.steps[-1]

    @cached_property
    def texts(self) -> dict[int, str]:
        """What concepts of the categories are called, by id."""
        return {category.id: category.text for category in self.categories}

    def concept(self, category_id: int) -> Concept:
        """What a mask of a category is said to show. Raises LedgerError: there is no such category."""
        if category_id not in self.texts:
            raise LedgerError(f"{self.folder.uri}: there is no category {category_id}")
        return Concept(text=self.texts[category_id], category_id=category_id)

    @cached_property
    def _pictures(self) -> SortedFile:
        self.check_file(self._stored)
        return SortedFile(self.folder, self._stored.name)

    def pictures(self) -> Iterator[Picture]:
        """All pictures in the order of their keys, with paths that can be opened."""
        for _, found in self._pictures.parts(pictures_of):
            yield self._found(found[0])

    def picture(self, key: str) -> Picture:
        """One picture; the ones that follow it come quickest. Raises LedgerError: there is none of that key."""
        found = self._pictures.part(key, pictures_of)
        if found is None:
            raise LedgerError(f"{self.folder.uri}: there is no picture {key!r:.200}")
        return self._found(found[0])

    def has_picture(self, key: str) -> bool:
        return self._pictures.part(key, pictures_of) is not None

    def _found(self, picture: Picture) -> Picture:
        place = Folder(picture.path)
        if not place.is_local or place.path.is_absolute():
            return picture
        return replace(picture, path=(self.folder / picture.path).uri)

    def step(self, number: int | None = None) -> Step:
        """A step by number; None for the newest. Raises LedgerError: there is none."""
        if number is None:
            return self.head
        if not 0 <= number < len(self.steps):
            raise LedgerError(f"{self.folder.uri}: there is no step {number}; the newest is {self.head.number}")
        return self.steps[number]

    def chain(self, number: int | None = None) -> list[Step]:
        """The steps that make up what stands at a step, the first one first."""
        return stepping.chain(self.steps, self.step(number).number)

    def view(self, step: int | None = None, *, check: bool = True) -> View:
        """The ledger as it stands at a step, by default the newest.

        Args:
            check: hash the files that make it up, once a `Ledger`; workers may leave that to who sent them.
        Raises:
            LedgerError: there is no such step; a file is missing or is not what its step says, and is named.
        """
        found = self.chain(step)
        for stored in (stored for one in found if check for stored in one.files):
            self.check_file(stored)
        return View(self, found[-1].number, found)

    def check_file(self, stored: Stored) -> None:
        """Raises LedgerError where a file is missing or is not what was written."""
        if stored.name in self._checked:
            return
        if self.folder.kind(stored.name) != "file":
            raise LedgerError(f"{self.folder.uri}: {stored.name} is missing")
        if self.folder.size(stored.name) != stored.bytes or self.folder.sha256(stored.name) != stored.sha256:
            raise LedgerError(f"{self.folder.uri}: {stored.name} is damaged or was changed: its sha256 does not match")
        self._checked.add(stored.name)

    def locate(self, entry_ids: Collection[str]) -> dict[str, list[writing.Located]]:
        """Where entries are, in whatever step; those that are nowhere are left out."""
        return writing.locate(files_of(self, self.steps, "entries"), entry_ids)

    def beginning(self, prefix: str) -> dict[str, str]:
        """The entries of whatever step whose ids begin so, and the keys of their pictures."""
        import pyarrow.compute as pc

        found: dict[str, str] = {}
        for file in files_of(self, self.steps, "entries"):
            for table in file.tables(("picture", "entry_id")):
                table = table.filter(pc.starts_with(table["entry_id"], prefix))
                found |= zip(table["entry_id"].to_pylist(), table["picture"].to_pylist(), strict=True)
        return found

    def verify(self) -> list[str]:
        """Everything that is wrong with the ledger, in words that name the file or entry; nothing if it is whole.

        Every file of every step is hashed, every entry checked as when it was written, and what belongs to no step is
        named. What a killed process left behind is no fault, but is named too.
        """
        problems = []
        for stored in (self._stored, *(stored for step in self.steps for stored in step.files)):
            try:
                self.check_file(stored)
            except LedgerError as error:
                problems.append(str(error))
        if not problems:  # what is damaged cannot be read
            problems += self._unsound()
        strays = stepping.strays(self.folder, self.steps)
        return problems + [f"{self.folder.uri}: {name} belongs to no step" for name in strays]

    def _unsound(self) -> Iterator[str]:
        """Entries and files that cannot have been written by this program."""
        for file in files_of(self, self.steps, "entries"):
            try:
                file.check_schema(entry_schema())
                for key, entries in file.parts(entries_of):
                    writing.check_entries(entries, self.picture(key), self.texts)
            except LedgerError as error:
                yield f"{file}: {error}"
        for file in files_of(self, self.steps, "decisions"):
            try:
                file.check_schema(decision_schema())
                found = self.locate({d.entry_id for _, said in file.parts(decisions_of) for d in said})
                for key, said in file.parts(decisions_of):
                    for decision in said:
                        if key not in {place.picture for place in found.get(decision.entry_id, ())}:
                            yield f"{file}: a decision is on {decision.entry_id}, which picture {key} does not have"
            except LedgerError as error:
                yield f"{file}: {error}"

    # --- appending -----------------------------------------------------------------------------------------------

    def write_run(self, path: Path, entries: Iterable[Entry]) -> Path:
        """Write entries, sorted by picture, to a file that `append` takes later. Each is checked here.

        Raises:
            LedgerError: an entry is refused, or out of order.
        """
        return writing.write_run(path, entries, self.picture, self.texts)

    def append(
        self,
        kind: Kind,
        round: int,
        entries: Iterable[Entry] | Sequence[Path] = (),
        decisions: Iterable[Decision] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> int:
        """Add a step to the newest one; the number of the step. It is there whole or not at all, whenever this dies.

        Args:
            entries: in any order, or files that `write_run` wrote; of one picture they stay in their order. decisions:
                on entries that are there or come with them; the last one on an entry counts. facts: JSON values.
        Raises:
            LedgerError: an entry or decision is refused, or somebody else added a step since the ledger was opened.
            LockedError: somebody else is adding one.
        """
        if kind not in ("relabel", "review"):
            raise LedgerError(f"a step that is appended is relabel or review, not {kind!r}")
        step = Step(number=len(self.steps), parent=self.head.number, kind=kind, round=round, facts=facts or {})
        return self._append(step, entries, list(decisions))

    def rollback(self, number: int, facts: Mapping[str, Any] | None = None) -> int:
        """Go back to an earlier step by a new one that adds nothing to it; the new one's number.

        Raises:
            LedgerError, LockedError: as `append`; also where a file of the earlier step is damaged.
        """
        target = self.view(number).chain[-1]
        step = Step(
            number=len(self.steps), parent=target.number, kind="rollback", round=target.round, facts=facts or {}
        )
        return self._append(step, (), ())

    def _append(self, step: Step, entries: Iterable[Entry] | Sequence[Path], decisions: Sequence[Decision]) -> int:
        if step.round < 0:
            raise LedgerError(f"{step.round} is no round")
        with driver_lock(self.folder) as renew:
            self._refuse_newer()
            try:
                self._write(step, entries, decisions, renew)
            except NondeterminismError as error:  # in an object store, whose locks a driver can lose
                raise LedgerError(f"{self.folder.uri}: somebody else is adding step {step.number}: {error}") from None
        return self.head.number

    def _refuse_newer(self) -> None:
        there = stepping.read_all(self.folder)
        if [step.version for step in there] != [step.version for step in self.steps]:
            raise LedgerError(
                f"{self.folder.uri}: somebody added step {there[-1].number} since it was opened at {self.head.number}; "
                "open it again"
            )

    def _write(
        self,
        step: Step,
        entries: Iterable[Entry] | Sequence[Path],
        decisions: Sequence[Decision],
        renew: Callable[[], None],
        bad: Sequence[Bad] = (),
    ) -> None:
        """Write the files of a step, then the step. Only for the owner of the lock, which `renew` makes sure of."""
        renew()
        stepping.remove_leftovers(self.folder, self.steps)
        earlier = files_of(self, stepping.chain(self.steps, step.parent) if step.parent is not None else (), "entries")
        states: Counter[str] = Counter()
        files: list[Stored] = []
        with self._runs(entries) as runs:
            parts = writing.merged(runs, earlier, self.picture, step.round)
            files += self._publish("entries", step.number, entry_schema(), _counted(parts, states))
            wanted = {d.entry_id for d in decisions} | {d.replacement for d in decisions if d.replacement is not None}
            placed = writing.placed(decisions, writing.locate([*earlier, *runs], wanted))
        tables = (table_of_decisions(placed[at:stop]) for at, stop in _by_picture(placed))
        files += self._publish("decisions", step.number, decision_schema(), tables)
        if bad:
            name = f"quarantine/{step.number:06d}/00000.parquet"
            with self.folder.staging(name) as staged:
                quarantine.write(staged, "", "", bad)
                files.append(self.folder.publish(staged, name))
        fault_point("entries")
        actions: Counter[str] = Counter(decision.action for decision in decisions)
        counts: dict[str, Mapping[str, int]] = {"entries": states, "decisions": actions}
        renew()
        written = stepping.write(self.folder, replace(step, files=tuple(files), counts=counts), self.steps)
        self.steps.append(written)
        fault_point("step")

    @contextmanager
    def _runs(self, entries: Iterable[Entry] | Sequence[Path]) -> Iterator[list[SortedFile]]:
        """Entries as files that are sorted by picture."""
        with tempfile.TemporaryDirectory(prefix="dataengine-") as scratch:
            if isinstance(entries, Sequence) and entries and isinstance(entries[0], Path):
                paths: list[Path] = list(entries)  # type: ignore[arg-type]
            else:
                paths = writing.write_runs(entries, Path(scratch), self.picture, self.texts)  # type: ignore[arg-type]
            runs = [SortedFile(Folder(str(path.parent)), path.name) for path in paths]
            for run in runs:
                run.check_schema(entry_schema())
            yield runs

    def _publish(self, kind: str, step: int, schema: pa.Schema, tables: Iterator[pa.Table]) -> list[Stored]:
        """Write tables, each of whole pictures, to files of a step; none where there is no table."""
        found: list[Stored] = []
        following = next(tables, None)
        while following is not None:
            name = f"{kind}/{step:06d}/{len(found):05d}.parquet"
            with self.folder.staging(name) as staged:
                with SortedWriter(staged, schema) as writer:
                    while following is not None and writer.rows < writing.FILE_ROWS:
                        writer.write(following)
                        following = next(tables, None)
                found.append(self.folder.publish(staged, name))
        self._checked |= {stored.name for stored in found}
        return found


def refuse_foreign(place: Folder) -> None:
    """Raises LedgerError where a folder holds a ledger, or anything that a killed `create` does not leave."""
    if place.exists(HEAD):
        raise LedgerError(f"{place.uri}: there is a ledger already")
    foreign = [name for name in place.entries() if name not in _OURS and not stepping.is_temporary(name)]
    if foreign:
        raise LedgerError(f"{place.uri}: the folder is not empty: it holds {foreign[0]}")


def _clear(place: Folder) -> None:
    """Remove what a killed `create` left."""
    stepping.remove_leftovers(place, ())
    for name in (PICTURES, *(f"steps/{name}" for name in (place / "steps").names())):
        place.delete(name)


def _write_pictures(place: Folder, pictures: Iterable[Picture]) -> tuple[Stored, int]:
    """Write the pictures by their keys. They are sorted as Arrow columns, of some 200 bytes a picture."""
    import pyarrow as pa
    import pyarrow.compute as pc

    tables, pending = [picture_schema().empty_table()], []
    for picture in pictures:
        writing.check_picture(picture)
        pending.append(picture)
        if len(pending) == GROUP_ROWS:
            tables.append(table_of_pictures(pending))
            pending = []
    tables.append(table_of_pictures(pending))
    table = pa.concat_tables(tables).combine_chunks()
    table = table.take(pc.sort_indices(table["key"]))
    keys = table["key"].to_pylist()
    again = next((key for key, other in pairwise(keys) if key == other), None)
    if again is not None:
        raise LedgerError(f"{place.uri}: picture {again} is given twice")
    if not keys:
        raise LedgerError(f"{place.uri}: there are no pictures")
    with place.staging(PICTURES) as staged:
        with SortedWriter(staged, picture_schema()) as writer:
            for start in range(0, len(keys), GROUP_ROWS):
                writer.write(table.slice(start, GROUP_ROWS))
        return place.publish(staged, PICTURES), len(keys)


def _counted(tables: Iterable[pa.Table], states: Counter[str]) -> Iterator[pa.Table]:
    for table in tables:
        states.update(table["state"].to_pylist())
        yield table


def _by_picture(placed: Sequence[tuple[str, Decision]]) -> Iterator[tuple[int, int]]:
    """Stretches of about GROUP_ROWS decisions that end where a picture ends."""
    start = 0
    for at in range(1, len(placed) + 1):
        is_end = at == len(placed) or placed[at][0] != placed[at - 1][0]
        if is_end and (at - start >= GROUP_ROWS or at == len(placed)):
            yield start, at
            start = at
