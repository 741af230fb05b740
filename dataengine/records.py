"""What a builder says about the records it read: what was built, what is bad and why, what was left out on purpose.

`read = built + quarantined + filtered(by reason)` holds for every unit (images, annotations), task by task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

MAX_PAYLOAD = 1 << 20  # characters of a bad record that are kept
MAX_MESSAGE = 2000  # characters of what is said of it; it may quote a value


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """A record that cannot be built: where it stands, why, and what it is.

    unit: what is counted (`images`, `annotations`, …). group: key of the index row it belongs to, "" if it has none.
    """

    unit: str
    file: str
    record: str
    reason: str
    message: str
    payload: str
    group: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.record}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A category of a source; `name` as published, `text` as it is written in a conversation.

    synonyms: all names the source gives it, in the source's order; empty where it gives only one.
    """

    id: int
    name: str
    text: str
    is_thing: bool = True
    synonyms: tuple[str, ...] = ()


class AccountError(AssertionError):
    """Counts that do not add up: a defect of the engine or of a builder."""


@dataclass(slots=True)
class Account:
    """Counts of records by unit; quarantined and filtered ones also by reason."""

    read: Counter[str] = field(default_factory=Counter)
    built: Counter[str] = field(default_factory=Counter)
    quarantined: dict[str, Counter[str]] = field(default_factory=dict)
    filtered: dict[str, Counter[str]] = field(default_factory=dict)

    def quarantine(self, bad: Iterable[Bad]) -> None:
        for record in bad:
            self.quarantined.setdefault(record.unit, Counter())[record.reason] += 1

    def filter(self, unit: str, reason: str, number: int = 1) -> None:
        if number:
            self.filtered.setdefault(unit, Counter())[reason] += number

    def num_quarantined(self) -> int:
        return sum(reasons.total() for reasons in self.quarantined.values())

    def add(self, other: Account) -> None:
        self.read.update(other.read)
        self.built.update(other.built)
        for mine, theirs in ((self.quarantined, other.quarantined), (self.filtered, other.filtered)):
            for unit, reasons in theirs.items():
                mine.setdefault(unit, Counter()).update(reasons)

    def check(self, where: str) -> None:
        """Raises AccountError unless every unit adds up."""
        for unit in sorted({*self.read, *self.built, *self.quarantined, *self.filtered}):
            bad = self.quarantined.get(unit, Counter()).total()
            left_out = self.filtered.get(unit, Counter()).total()
            if self.read[unit] != self.built[unit] + bad + left_out:
                raise AccountError(
                    f"{where}: {self.read[unit]} {unit} read, but {self.built[unit]} built + {bad} quarantined + "
                    f"{left_out} filtered"
                )

    def as_dict(self) -> dict[str, Any]:
        """Plain, sorted, without zeros: `{"read": {"images": 3}, …}`."""
        return {
            "read": _sorted(self.read),
            "built": _sorted(self.built),
            "quarantined": {unit: _sorted(reasons) for unit, reasons in sorted(self.quarantined.items()) if reasons},
            "filtered": {unit: _sorted(reasons) for unit, reasons in sorted(self.filtered.items()) if reasons},
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Account:
        return cls(
            read=Counter(data["read"]),
            built=Counter(data["built"]),
            quarantined={unit: Counter(reasons) for unit, reasons in data["quarantined"].items()},
            filtered={unit: Counter(reasons) for unit, reasons in data["filtered"].items()},
        )


def _sorted(counter: Counter[str]) -> dict[str, int]:
    return {key: number for key, number in sorted(counter.items()) if number}
