"""The review step of a round: what is in question goes out, the loop waits, and what came back becomes steps."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dataengine.ledger.ledger import Ledger
from dataengine.view.words import reviewers
from pipelines.loop.recipe import LoopError, ReviewSpec
from pipelines.review import ledgers
from pipelines.review.package import PACKAGE, URL

SENT, BACK, WORDS = "package", "returned", "words"


class Waiting(LoopError):
    """Masks are with reviewers; the message says where."""


def review(
    ledger: Ledger, relabeled: int, spec: ReviewSpec, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Take back what reviewers decided of the masks that a round left in question; facts for the log.

    What was taken before is not taken again: a step of the ledger names its reviewer and the step that was reviewed.

    Args:
        relabeled: the ledger's step of the round. folder: of the round's review.
    Raises:
        Waiting: nothing has come back yet. UserError: what came back cannot be read.
    """
    view = ledger.view(relabeled)
    waiting = sum(len(entries) for _, entries in ledgers.grey(view))
    if not waiting:
        say("nothing is in question")
        return {"step": relabeled, "sent": 0, "reviewers": [], "refused": {}}
    if spec.to == "browser":
        names, refused = _of_browser(ledger, folder / WORDS, waiting, say), Counter[str]()
    else:
        names, refused = _of_packages(ledger, relabeled, spec, folder, waiting)
    for reason, number in sorted(refused.items()):
        say(f"{number:,} records of reviewers are refused ({reason})")
    return {"step": ledger.head.number, "sent": waiting, "reviewers": names, "refused": dict(sorted(refused.items()))}


def _of_browser(ledger: Ledger, words: Path, waiting: int, say: Callable[[str], None]) -> list[str]:
    words.mkdir(parents=True, exist_ok=True)
    names = reviewers(words)
    if not names:
        raise Waiting(
            f"{waiting:,} masks wait for a review: dataengine review serve {ledger.folder.uri} {words}; go on with "
            "--resume when it is done"
        )
    _, _, disputed = ledgers.collect(ledger, words)  # what was collected before waits no longer
    if disputed:
        say(f"{len(disputed):,} masks are disputed and go on waiting")
    return names


def _of_packages(
    ledger: Ledger, relabeled: int, spec: ReviewSpec, folder: Path, waiting: int
) -> tuple[list[str], Counter[str]]:
    sent, back = folder / SENT, folder / BACK
    if not (sent / PACKAGE).is_file():  # it is written last
        shutil.rmtree(sent, ignore_errors=True)
        url = URL if spec.url is None else spec.url
        ledgers.export(ledger, sent, spec.to, step=relabeled, pictures=spec.pictures, url=url, limit=spec.limit)
    back.mkdir(exist_ok=True)
    files = sorted(path for path in back.iterdir() if path.is_file() and not path.name.startswith("."))
    if not files:
        raise Waiting(
            f"{waiting:,} masks wait for a review in {sent}; put what comes back into {back} as REVIEWER.json, .xml or "
            ".zip, and go on with --resume"
        )
    if again := [name for name, number in Counter(path.stem for path in files).items() if number > 1]:
        raise LoopError(f"{back}: two files are of reviewer {again[0]}")
    refused: Counter[str] = Counter()
    for file in files:
        if not _is_taken(ledger, relabeled, file.stem):
            _, reviewed = ledgers.take(ledger, sent, file.stem, file)
            refused.update(one.reason for one in reviewed.refused)
    return [file.stem for file in files], refused


def _is_taken(ledger: Ledger, relabeled: int, reviewer: str) -> bool:
    said = [one.facts for one in ledger.chain() if one.kind == "review" and one.number > relabeled]
    return any((f.get("reviewer"), f.get("package_step")) == (reviewer, relabeled) for f in said)
