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
from pipelines.review.ledgers import Collected
from pipelines.review.package import PACKAGE, URL, load

SENT, BACK, WORDS = "package", "returned", "words"


class Waiting(LoopError):
    """Masks are with reviewers; the message says where."""


def review(
    ledger: Ledger, relabeled: int, spec: ReviewSpec, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Take back what reviewers decided of the masks that a round left in question; facts for the log.

    What was decided before is not decided again, and nothing is decided of what reviewers dispute.

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
        sent, refused = waiting, dict[str, int]()
        names, found = _of_browser(ledger, folder / WORDS, waiting)
    else:
        sent, names, refused, found = _of_packages(ledger, relabeled, spec, folder, waiting, say)
    for reason, number in refused.items():
        say(f"{number:,} records of reviewers are refused ({reason})")
    if found.disputed:
        say(f"{len(found.disputed):,} masks are disputed and go on waiting")
    if found.ignored:
        say(f"{found.ignored:,} words say something else of masks that were decided before, and are left out")
    return {"step": ledger.head.number, "sent": sent, "reviewers": names, "refused": refused}


def _of_browser(ledger: Ledger, words: Path, waiting: int) -> tuple[list[str], Collected]:
    words.mkdir(parents=True, exist_ok=True)
    names = reviewers(words)
    if not names:
        raise Waiting(
            f"{waiting:,} masks wait for a review: dataengine review serve {ledger.folder.uri} {words}; go on with "
            "--resume when it is done"
        )
    return names, ledgers.collect(ledger, words)  # what was collected before waits no longer


def _of_packages(
    ledger: Ledger, relabeled: int, spec: ReviewSpec, folder: Path, waiting: int, say: Callable[[str], None]
) -> tuple[int, list[str], dict[str, int], Collected]:
    """How many masks went out, the reviewers, how often records were refused for each reason, and what was decided."""
    package, back = folder / SENT, folder / BACK
    if not (package / PACKAGE).is_file():  # it is written last
        shutil.rmtree(package, ignore_errors=True)
        url = URL if spec.url is None else spec.url
        written = ledgers.export(
            ledger, package, spec.to, step=relabeled, pictures=spec.pictures, url=url, limit=spec.limit
        )
        for reason, number in ledgers.counted(written.left_out).items():
            say(f"{number:,} pictures are left out of the package ({reason})")
    sent = sum(len(slot.entries) for slot in load(package).slots)
    if sent < waiting:
        say(f"{waiting - sent:,} of {waiting:,} masks in question did not go out, and go on waiting")
    back.mkdir(exist_ok=True)
    files = sorted(path for path in back.iterdir() if path.is_file() and not path.name.startswith("."))
    if not files:
        raise Waiting(
            f"{sent:,} masks wait for a review in {package}; put what comes back into {back} as REVIEWER.json, .xml or "
            ".zip, and go on with --resume"
        )
    if again := [name for name, number in Counter(path.stem for path in files).items() if number > 1]:
        raise LoopError(f"{back}: two files are of reviewer {again[0]}")
    found, refused = ledgers.take_all(ledger, package, {path.stem: path for path in files})
    return sent, list(refused), ledgers.counted(one for each in refused.values() for one in each), found
