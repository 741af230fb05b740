"""One task of a round: read its pictures, ask the labeler, check, filter, merge, commit.

The labeler runs in a thread of its own: while it works on a batch, the answers of the one before are finished and the
pictures of the next one decoded. No more than these two batches are in memory. A picture that cannot be labelled is
quarantined; it never takes others with it, because a batch that fails is asked again one by one.
"""

from __future__ import annotations

import gc
import io
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from dataengine import images
from dataengine.engine.faults import fault_point
from dataengine.errors import ReasonError, UserError
from dataengine.images import ImageError
from dataengine.ledger.records import Entry, Picture
from dataengine.records import MAX_MESSAGE, Account, Bad
from dataengine.sample import Image
from dataengine.store import quarantine
from dataengine.store.dataset import picture_of
from dataengine.store.files import Folder, Stored
from pipelines.relabel import job as jobs
from pipelines.relabel import labelers, tables
from pipelines.relabel.job import Checked, Done, Job, Known, PictureTask
from pipelines.relabel.labelers import Answer, AnswerError, Labeler, Question

UNIT, MASKS = "images", "masks"


@dataclass(frozen=True, slots=True)
class Asking:
    """The labeler is asked about these pictures of the task now; what does not come back is their fault. None: it has
    answered."""

    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Smaller:
    """Memory was too little: there are this many pictures in a batch from now on."""

    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """What is known of a task's pictures from attempts that did not end.

    alone: pictures that are asked about one by one. lost: reason and message of those that are not asked about again.
    """

    alone: frozenset[int] = frozenset()
    lost: Mapping[int, tuple[str, str]] | None = None


class HangError(Exception):
    """The labeler did not answer in time. It is still at it: neither the thread nor the labeler can be used again."""

    def __init__(self, rows: tuple[int, ...]) -> None:
        super().__init__(rows)
        self.rows = rows


@dataclass(frozen=True, slots=True)
class _Filtered:
    """Proposals of a picture with what the filters say of them."""

    checked: list[Checked]
    answer: Answer


Event = Asking | Smaller | Done
Outcome = Answer | _Filtered | Bad


class Worker:
    """A labeler that is loaded, and what it needs to do tasks."""

    def __init__(self, job: Job, labeler: Labeler | None = None) -> None:
        """Raises UserError where the labeler cannot be had or loaded."""
        self._job, self._out = job, Folder(job.out)
        self._labeler = labeler or labelers.make(job.labeler)
        self._labeler.load()
        self._batch = job.batch

    def run(self, task: PictureTask, doubt: Doubt | None = None) -> Iterator[Event]:
        """Do a task; its last event is `Done`. A pure function of the task, safe to repeat at any time, anywhere.

        Raises:
            HangError: the labeler hangs; this worker is of no use any more.
        """
        done = jobs.read(self._out, task.task_id)
        if done is not None:
            yield done
            return
        doubt = doubt or Doubt()
        known = read_inputs(self._out, task)
        finished = _Finished(self._job)
        for row, reason in (doubt.lost or {}).items():
            finished.add(row, known[row], _bad(known[row][0], *reason))
        asked = [row for row in range(len(known)) if row not in finished.bad]
        yield from self._ask(known, asked, doubt, finished)
        yield finished.commit(self._out, task)

    def _ask(
        self,
        known: Sequence[tuple[Picture, tuple[Known, ...]]],
        rows: Sequence[int],
        doubt: Doubt,
        finished: _Finished,
    ) -> Iterator[Event]:
        """Ask about pictures batch by batch; what comes of each goes to `finished`, one batch later."""
        waiting = deque(self._batches(rows, doubt.alone))
        ready: dict[int, Question] = {}
        answered: list[tuple[int, Outcome]] = []
        while waiting:
            batch = waiting.popleft()
            if len(batch) > self._batch:  # it was smaller once
                waiting.appendleft(batch[self._batch :])
                batch = batch[: self._batch]
            self._decode(known, batch, ready, answered)
            batch = [row for row in batch if row in ready]
            if not batch:
                continue
            yield Asking(tuple(batch))
            fault_point("asking")
            calling = _in_thread(self._label, [ready[row] for row in batch])
            if waiting:
                self._decode(known, waiting[0][: self._batch], ready, answered)
            _finish(known, answered, finished)
            answers = self._wait(calling, batch)
            del calling
            yield Asking(())
            fault_point("answered")
            if is_out_of_memory(answers) and len(batch) > 1:
                answers = None  # its frames hold what was in memory
                _free_memory()
                self._batch = len(batch) // 2
                waiting.extendleft([batch[self._batch :], batch[: self._batch]])
                yield Smaller(self._batch)
                continue
            try:
                outcomes = self._outcomes([ready[row].picture for row in batch], answers)
            except _RefusedError as error:
                if len(batch) > 1:
                    waiting.extendleft([row] for row in reversed(batch))
                    continue
                outcomes = [_bad(ready[batch[0]].picture, error.reason, str(error))]
            for row, outcome in zip(batch, outcomes, strict=True):
                answered.append((row, outcome))
                del ready[row]
        _finish(known, answered, finished)

    def _wait(self, calling: Future[Any], batch: Sequence[int]) -> object:
        """What the labeler answers, or what it raises.

        Raises:
            HangError: neither comes in time. UserError: what a person has to mend, which is no picture's fault.
        """
        try:
            return calling.result(self._job.timeout_s)
        except TimeoutError as error:
            if not calling.done():
                raise HangError(tuple(batch)) from None
            return error
        except Exception as error:
            if isinstance(error, UserError) and not isinstance(error, ReasonError):
                raise
            return error

    def _batches(self, rows: Sequence[int], alone: frozenset[int]) -> list[list[int]]:
        many = [row for row in rows if row not in alone]
        batches = [many[at : at + self._batch] for at in range(0, len(many), self._batch)]
        return batches + [[row] for row in rows if row in alone]

    def _decode(
        self,
        known: Sequence[tuple[Picture, tuple[Known, ...]]],
        rows: Sequence[int],
        ready: dict[int, Question],
        answered: list[tuple[int, Outcome]],
    ) -> None:
        """Make the questions about pictures; what is wrong with one is its answer."""
        for row in rows:
            if row in ready:
                continue
            picture, entries = known[row]
            try:
                pixels = pixels_of(picture) if self._labeler.needs_pixels else None
                standing = tuple(entry for entry in entries if entry.state != "rejected")
                ready[row] = Question(picture=picture, pixels=pixels, known=standing)
            except ReasonError as error:
                answered.append((row, _bad(picture, error.reason, str(error))))
            except OSError as error:
                answered.append((row, _bad(picture, "image_missing", str(error))))

    def _label(self, questions: Sequence[Question]) -> object:
        """What the labeler answers; where filters ask it again, what they say of that."""
        answers: object = self._labeler.label(questions)
        if not self._job.asks_again or not isinstance(answers, list | tuple) or len(answers) != len(questions):
            return answers
        return [self._filtered(answer, question) for answer, question in zip(answers, questions, strict=True)]

    def _filtered(self, answer: object, question: Question) -> Outcome:
        read = _read(answer, question.picture)
        if isinstance(read, Bad):
            return read
        return _Filtered(self._job.filters(read.proposals, question, self._labeler), read)

    def _outcomes(self, pictures: Sequence[Picture], answers: object) -> list[Outcome]:
        """What an answer says of each picture of a batch.

        Raises:
            _RefusedError: nobody can tell whose answer it is, or the labeler raised.
        """
        if isinstance(answers, Exception):
            reason = answers.reason if isinstance(answers, AnswerError) else "labeler_raised"
            reason = "out_of_memory" if is_out_of_memory(answers) else reason
            raise _RefusedError(reason, f"{type(answers).__name__}: {answers}")
        if not isinstance(answers, list | tuple) or len(answers) != len(pictures):
            number = len(answers) if isinstance(answers, list | tuple) else type(answers).__name__
            raise _RefusedError("answer_type", f"a list of {len(pictures)} answers is needed, not {number}")
        return [
            answer if isinstance(answer, _Filtered | Bad) else _read(answer, picture)
            for picture, answer in zip(pictures, answers, strict=True)
        ]


class _RefusedError(ReasonError):
    """An answer to a batch that cannot be used."""


def _read(answer: object, picture: Picture) -> Answer | Bad:
    try:
        return labelers.read(answer, picture)
    except AnswerError as error:
        return _bad(picture, error.reason, str(error))
    except Exception as error:  # whatever its values do when one looks at them
        return _bad(picture, "answer_schema", f"the answer cannot be read: {type(error).__name__}")


# --- pictures in -----------------------------------------------------------------------------------------------------


def read_inputs(out: Folder, task: PictureTask) -> list[tuple[Picture, tuple[Known, ...]]]:
    """The pictures of a task and the masks that are known of them."""
    import pyarrow.parquet as pq

    with out.open(jobs.INPUTS) as file:
        table = pq.ParquetFile(file).read_row_group(task.group, use_threads=False)
    pictures = tables.values_of(Picture, table.column("picture").to_pylist())
    entries = [tuple(tables.values_of(Known, rows)) for rows in table.column("entries").to_pylist()]
    return list(zip(pictures, entries, strict=True))


def pixels_of(picture: Picture) -> np.ndarray:
    """The pixels of a picture: (height, width, 3) uint8 RGB, read-only.

    Raises:
        ImageError: it is damaged, of another size, or not the file that the ledger was told of (`image_changed`).
        OSError: it cannot be read.
    """
    from PIL import Image as Pillow

    data = picture_of(Image(bytes=None, path=picture.path))
    if sha256(data).hexdigest() != picture.sha256:
        raise ImageError("image_changed", f"{picture.path}: the file changed: its sha256 is not {picture.sha256:.12}…")
    images.check(data, picture.height, picture.width)
    try:
        with Pillow.open(io.BytesIO(data), formats=images.FORMATS) as opened:
            return np.asarray(opened if opened.mode == "RGB" else opened.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise what they please on damaged files
        raise ImageError("image_unreadable", f"the image cannot be decoded: {type(error).__name__}") from None


# --- entries out -----------------------------------------------------------------------------------------------------


class _Finished:
    """What has come of a task's pictures."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.entries: dict[int, list[Entry]] = {}
        self.bad: dict[int, Bad] = {}
        self._masks: Counter[str] = Counter()  # that became no entry, by reason

    def add(self, row: int, known: tuple[Picture, tuple[Known, ...]], outcome: Outcome) -> None:
        picture, before = known
        if isinstance(outcome, Bad):
            self.bad[row] = outcome
            return
        try:
            if isinstance(outcome, _Filtered):
                checked, answer = outcome.checked, outcome.answer
            else:
                answer = outcome
                question = Question(picture=picture, pixels=None, known=before)
                checked = self._job.filters(answer.proposals, question, None)
            human = [entry for entry in before if entry.origin == "human"]
            earlier = [entry for entry in before if entry.origin == "model"]
            entries = self._job.merge(checked, human, earlier, picture)
            if len(entries) > len(checked):
                raise AssertionError(f"{len(entries)} entries of {len(checked)} masks")
            self.entries[row] = entries
            self._masks.update(merged=len(checked) - len(entries), empty=answer.empty, doubled=answer.doubled)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # a defect, or a mask that no filter can stand: this picture's, not the job's
            reason = error.reason if isinstance(error, ReasonError) else "internal_error"
            self.bad[row] = _bad(picture, reason, f"{type(error).__name__}: {error}")

    def commit(self, out: Folder, task: PictureTask) -> Done:
        """Publish entries, then quarantine, then the record that makes them count."""
        entries = [entry for row in sorted(self.entries) for entry in self.entries[row]]
        bad = [self.bad[row] for row in sorted(self.bad)]
        account = Account()
        account.read[UNIT] = task.stop - task.start
        account.built[UNIT] = len(self.entries)
        account.quarantine(bad)
        account.read[MASKS], account.built[MASKS] = len(entries) + self._masks.total(), len(entries)
        for reason, number in self._masks.items():
            account.filter(MASKS, reason, number)
        account.check(str(task))
        done = Done(
            task_id=task.task_id,
            start=task.start,
            stop=task.stop,
            entries=_publish_entries(out, task, entries),
            quarantine=_publish_bad(out, task, bad),
            states=dict(sorted(Counter(entry.state for entry in entries).items())),
            relations=dict(sorted(Counter(entry.relation for entry in entries).items())),
            account=account,
        )
        fault_point("commit")
        jobs.write(out, done)
        return done


def _finish(
    known: Sequence[tuple[Picture, tuple[Known, ...]]], answered: list[tuple[int, Outcome]], finished: _Finished
) -> None:
    for row, outcome in answered:
        finished.add(row, known[row], outcome)
    answered.clear()


def _publish_entries(out: Folder, task: PictureTask, entries: Sequence[Entry]) -> Stored | None:
    import pyarrow.parquet as pq

    if not entries:
        return None
    name = f"{jobs.ENTRIES}/{task.group:06}.parquet"
    with out.staging(name) as staged:
        pq.write_table(tables.table_of(Entry, entries), staged, compression="zstd")
        fault_point("written")
        return out.publish(staged, name)


def _publish_bad(out: Folder, task: PictureTask, bad: list[Bad]) -> Stored | None:
    if not bad:
        return None
    name = f"{jobs.QUARANTINE}/{task.group:06}.parquet"
    with out.staging(name) as staged:
        quarantine.write(staged, "relabel", "", bad)
        return out.publish(staged, name)


def _bad(picture: Picture, reason: str, message: str) -> Bad:
    return Bad(
        unit=UNIT, file=picture.path, record=picture.key, reason=reason, message=message[:MAX_MESSAGE], payload=""
    )


# --- calls that may fail ---------------------------------------------------------------------------------------------


def _in_thread(call: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Call in a thread that does not hold up the end of the program, as those of executors do."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(call(*arguments))
        except Exception as error:
            future.set_exception(error)
        except BaseException as error:  # a labeler that ends its program does not end this one
            future.set_exception(RuntimeError(repr(error)))

    threading.Thread(target=work, name="labeler", daemon=True).start()
    return future


def is_out_of_memory(error: object) -> bool:
    """Whether an exception says that memory is too little, on the host or on a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's for the host


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
