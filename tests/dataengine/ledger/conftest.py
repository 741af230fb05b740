"""Small ledgers: squares in pictures of 30 x 20 px."""

from __future__ import annotations

import numpy as np
import pytest

from dataengine import masks
from dataengine.ledger.ledger import Ledger
from dataengine.ledger.records import Concept, Decision, Entry, Labeler, Picture, entry_id_of, mask_id_of
from dataengine.records import Category

CAT, DOG = Concept(text="cat", category_id=1), Concept(text="dog", category_id=2)
CATEGORIES = (Category(id=1, name="cat", text="cat"), Category(id=2, name="dog", text="dog"))
ROBOT = Labeler(name="robot", revision="7", settings='{"threshold":0.5}')


class Squares:
    """Makes the values of ledgers, and ledgers of them."""

    CAT, DOG, CATEGORIES, ROBOT = CAT, DOG, CATEGORIES, ROBOT

    def __init__(self, root) -> None:
        self.root = root

    @staticmethod
    def picture(number: int, **changes) -> Picture:
        facts = {"key": f"shapes/{number:012d}", "path": f"/nowhere/{number}.jpg", "sha256": f"{number:064x}"}
        return Picture(**{**facts, "height": 20, "width": 30, **changes})

    @staticmethod
    def entry(
        number: int, x: int, round: int = 0, concept: Concept = CAT, by: Labeler | None = None, **changes
    ) -> Entry:
        """A square of 4 x 4 px in picture `number`, its left upper pixel at x, 2. by: None for a person."""
        where = Squares.picture(number)
        raster = np.zeros((where.height, where.width), dtype=bool)
        raster[2:6, x : x + 4] = True
        rle = masks.encode(raster)
        mask_id = mask_id_of(where, concept, rle)
        facts = {
            "entry_id": entry_id_of(mask_id, round, by, changes.get("prompt", ""), changes.get("annotation_id", "")),
            "mask_id": mask_id,
            "picture": where.key,
            "round": round,
            "origin": "human" if by is None else "model",
            "concept": concept,
            "rle": rle,
            "bbox": (float(x), 2.0, 4.0, 4.0),
            "area": 16,
            "labeler": by,
        }
        return Entry(**{**facts, **changes})

    @staticmethod
    def decide(entry: Entry, action: str, by: str = "reviewer:ann", **changes) -> Decision:
        state = {"accept": "kept", "reject": "rejected", "edit": "rejected", "whole_image_bad": "rejected"}[action]
        return Decision(**{"entry_id": entry.entry_id, "state": state, "by": by, "action": action, **changes})

    def ledger(self, name: str = "ledger") -> Ledger:
        """Pictures 1, 2 and 3; a cat at 1 and a dog at 9 in the first, a cat at 1 in the third."""
        entries = [
            self.entry(3, 1, annotation_id="31"),
            self.entry(1, 1, annotation_id="11"),
            self.entry(1, 9, concept=DOG, annotation_id="12"),
        ]
        return Ledger.create(str(self.root / name), map(self.picture, (3, 1, 2)), CATEGORIES, entries)


@pytest.fixture
def squares(tmp_path) -> Squares:
    return Squares(tmp_path)


def contents(root) -> dict[str, bytes]:
    """All files below a folder."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def tree_of():
    """The function `contents`."""
    return contents
