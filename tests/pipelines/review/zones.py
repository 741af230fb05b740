"""A small ledger's grey zone, as values: two pictures, four masks, names that files find hard."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pycocotools import mask as oracle

from dataengine.ledger.records import Check, Concept, Entry, Labeler, Picture, entry_id_of, mask_id_of
from dataengine.store.files import Folder
from pipelines.review import package as packages
from pipelines.review.marks import Found

HEIGHT, WIDTH = 24, 32
CAT, DOG = Concept(text="cat", category_id=17), Concept(text="dog", category_id=18)
PHRASE = Concept(text='the <b>"Käse" & 猫</b> — l\'été\n\x01 of 👩‍🔬')
LABELER = Labeler(name="noisy-oracle", revision="1")


def rle_of(x: int, y: int, w: int, h: int, hole: bool = False) -> bytes:
    """A box on the canvas of 32 x 24 px, with its middle pixel left out where it has a hole."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    if hole:
        mask[y + h // 2, x + w // 2] = 0
    return oracle.encode(np.asfortranarray(mask))["counts"]


def entry_of(picture: Picture, concept: Concept, rle: bytes, **more) -> Entry:
    mask_id = mask_id_of(picture, concept, rle)
    x, y, w, h = oracle.toBbox({"size": [HEIGHT, WIDTH], "counts": rle}).tolist()
    base = {"round": 1, "origin": "model", "labeler": LABELER, "score": 0.5, "state": "review", "reason": "stability"}
    return Entry(
        entry_id=entry_id_of(mask_id, 1, LABELER),
        mask_id=mask_id,
        picture=picture.key,
        concept=concept,
        rle=rle,
        bbox=(x, y, w, h),
        area=int(oracle.area({"size": [HEIGHT, WIDTH], "counts": rle})),
        checks=(Check(name="stability", value=0.9, limit=0.95, verdict="review"),),
        **{**base, **more},
    )


@dataclass
class Grey:
    """What goes out, and where to."""

    root: Path
    work: list[tuple[Picture, list[Entry]]]
    concepts: tuple[Concept, ...] = (CAT, DOG)
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.root / "package"

    @property
    def entries(self) -> list[Entry]:
        return [entry for _, entries in self.work for entry in entries]

    @property
    def file(self) -> Path:
        return self.folder / packages.layout_of(self.layout).FILE

    def write(self, layout: str, **more) -> packages.Written:
        self.layout = layout
        return packages.write(self.folder, layout, self.work, concepts=self.concepts, step=3, **more)

    def read(self, **more) -> packages.Reviewed:
        given = {"reviewer": "Zoë", "round": 1, "concepts": self.concepts, **more}
        return packages.read(self.folder, self.work, **given)

    def found(self) -> Found:
        with Folder(str(self.file)).open() as opened:
            return packages.layout_of(self.layout).parse(opened, packages.load(self.folder))

    def edit(self, change) -> None:
        """Write the file as it is after `change(pages)`."""
        found = self.found()
        assert not found.refused
        change(found.pages)
        layout = packages.layout_of(self.layout)
        self.file.write_bytes(layout.dump(packages.load(self.folder), found.pages))
