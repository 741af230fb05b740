"""What a ledger begins with: pictures and people's masks of COCO folders, finished datasets and plain folders."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from builders import coco
from builders.pictures import numbered_key, read_picture, safe_file_name, sample_of
from builders.reading import RecordError, checked_size, clean_name, outcomes
from builders.rows import Row, read_rows
from dataengine.builder import Context, Outcome, make_context
from dataengine.errors import ReasonError, UserError
from dataengine.jsonstream import decode
from dataengine.ledger.ledger import Ledger, refuse_foreign
from dataengine.ledger.records import Concept, Entry, Labeler, Picture, entry_id_of, mask_id_of
from dataengine.ledger.steps import PICTURES
from dataengine.ledger.writing import write_runs
from dataengine.records import Account, Bad, Category
from dataengine.sample import Image, Object, Sample
from dataengine.store.commits import MANIFEST
from dataengine.store.dataset import Dataset, open_dataset
from dataengine.store.files import Folder
from pipelines.export.output import picture_bytes, safe_name, suffix_of_image

Exhaustive = Literal["annotated", "all", "none"]
CATEGORY_TASKS = ("vgdseg", "intseg", "genseg", "ovseg")  # which ask by category, not by phrase
WHOLE_TASKS = ("vgdseg", "genseg", "ovseg")  # in which a condition has all objects of its category
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is taken of the sources.

    split: only this one. exhaustive: in which pictures of a COCO folder its categories count as annotated throughout:
    in those that have an annotation (where the image has LVIS's lists, the categories that these say), in all, or in
    none. categories: names, besides those that the sources have; they are given the next ids. table: categories with
    ids of their own, known before the sources are read. namespace: whose numbers the names of plain files are; by
    default the folder's name.
    """

    split: str | None = None
    exhaustive: Exhaustive = "annotated"
    categories: tuple[str, ...] = ()
    table: tuple[Concept, ...] = ()
    namespace: str | None = None


def create(sources: Sequence[str], out: str, choice: Choice | None = None, seed: int = 0) -> Ledger:
    """Make a ledger of pictures and what people annotated in them.

    Args:
        sources: COCO folders, finished datasets, folders of pictures without annotations; paths or URIs.
    Raises:
        UserError: a source cannot be used; the message says which, and what was looked for.
    """
    reading = _Reading(Folder(out), choice or Choice())
    refuse_foreign(reading.out)
    with tempfile.TemporaryDirectory(prefix="dataengine-") as scratch:
        entries = reading.entries(sources, Path(scratch))
        runs = write_runs(entries, Path(scratch), reading.pictures.__getitem__, reading.texts)
        reading.account.check(out)
        return Ledger.create(
            reading.out,
            reading.pictures.values(),
            reading.categories.values(),
            runs,
            seed=seed,
            bad=reading.bad,
            facts={"records": reading.account.as_dict()},
        )


@dataclass(slots=True)
class _Reading:
    """What was found so far. pictures: by key. ids: of entries. account, bad: of the sources' records."""

    out: Folder
    choice: Choice
    categories: dict[int, Category] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    account: Account = field(default_factory=Account)
    bad: list[Bad] = field(default_factory=list)

    def entries(self, sources: Sequence[str], scratch: Path) -> Iterator[Entry]:
        """The human masks of all sources; their pictures are known before them."""
        table = [Category(id=one.category_id, name=one.text, text=clean_name(one.text)) for one in self.choice.table]
        self._add_categories(table, "the table of categories")
        for source in sources:
            place = Folder(source)
            if place.exists(MANIFEST):
                yield from self._of_dataset(open_dataset(source))
            elif any(name.startswith("instances_") for name in (place / "annotations").names()):
                yield from self._of_coco(source, scratch)
            elif place.kind() == "folder":
                self._plain(place)
            else:
                raise UserError(f"{source}: there is no such folder")
        names = {category.name for category in self.categories.values()} | set(self.texts.values())
        first = max(self.categories, default=0) + 1
        new = [name for name in dict.fromkeys(self.choice.categories) if name not in names]
        self._add_categories(
            [Category(id=n, name=name, text=clean_name(name)) for n, name in enumerate(new, first)], ""
        )

    def _add_categories(self, categories: Iterable[Category], source: str) -> None:
        for category in categories:
            other = self.categories.setdefault(category.id, category)
            if other.text != category.text:
                raise UserError(
                    f"{source}: category {category.id} is {category.text!r}, in another source it is {other.text!r}; "
                    "sources of one ledger need one table of categories"
                )
            self.texts[category.id] = category.text

    def _add_picture(self, picture: Picture) -> None:
        """Enter a picture, or what else is said of one."""
        other = self.pictures.get(picture.key)
        if other is not None:
            facts = [(p.sha256, p.height, p.width) for p in (picture, other)]
            if facts[0] != facts[1]:
                raise UserError(f"picture {picture.key} is another file at {picture.path} than at {other.path}")
            exhaustive = {*other.exhaustive, *picture.exhaustive}
            absent = {*other.absent, *picture.absent} - exhaustive
            picture = replace(other, exhaustive=_shared(exhaustive), absent=_shared(absent))
        self.pictures[picture.key] = picture

    def _entry(self, picture: Picture, concept: Concept, thing: Object) -> Iterator[Entry]:
        """An object as an entry, unless it was read before: in another sample of its picture."""
        mask_id = mask_id_of(picture, concept, thing.rle)
        labeler, lineage = None, thing.lineage
        if lineage.origin != "human":
            labeler = Labeler(name=lineage.labeler or "unknown", revision=lineage.revision or "")
        entry_id = entry_id_of(mask_id, 0, labeler, "", thing.annotation_id)
        if entry_id not in self.ids:
            self.ids.add(entry_id)
            yield Entry(
                entry_id=entry_id,
                mask_id=mask_id,
                picture=picture.key,
                round=0,
                origin="human" if labeler is None else "model",
                concept=concept,
                rle=thing.rle,
                bbox=thing.bbox,
                area=thing.area,
                crowd=thing.crowd,
                annotation_id=thing.annotation_id,
                labeler=labeler,
                score=1.0 if lineage.score is None else lineage.score,
                stability=lineage.stability,
            )

    # --- COCO ----------------------------------------------------------------------------------------------------

    def _of_coco(self, root: str, scratch: Path) -> Iterator[Entry]:
        options = coco.parse_options("vgdseg", {"images": "reference"})
        for part in coco.locate(root, {}, [self.choice.split] if self.choice.split else [], options):
            target = scratch / "index.arrow"
            report = coco.index(part, options, target)
            self._add_categories(report.categories, part.files["annotations"])
            self.account.add(report.account)
            self.bad += report.bad
            context = make_context(coco, coco.NAME, "vgdseg", part, report, options, 0)  # type: ignore[arg-type]
            notes: dict[str, _Note] = {}
            rows = outcomes(
                context,
                read_rows(Folder(str(target))),
                lambda context, row, notes=notes: _coco_outcome(context, row, notes),  # type: ignore[misc]
                lambda row: Counter(annotations=len(row.members)),
            )
            every = tuple(sorted(category.id for category in report.categories))
            for outcome in rows:
                self.account.add(outcome.account)
                self.bad += outcome.bad
                for sample in outcome.samples:
                    note, wanted = notes.pop(sample.image_key), self.choice.exhaustive
                    is_whole = wanted == "all" or (wanted == "annotated" and bool(sample.objects))
                    exhaustive = tuple(c for c in every if c not in note.incomplete) if is_whole else ()
                    picture = _picture(sample, note.sha256, exhaustive)
                    if wanted == "annotated" and note.known is not None:
                        whole, absent = note.known
                        picture = replace(picture, exhaustive=_shared(whole), absent=_shared(absent))
                    self._add_picture(picture)
                    for thing in sample.objects:
                        concept = Concept(text=self.texts[thing.category_id], category_id=thing.category_id)
                        yield from self._entry(picture, concept, thing)

    # --- datasets ------------------------------------------------------------------------------------------------

    def _of_dataset(self, dataset: Dataset) -> Iterator[Entry]:
        for sample in dataset.samples(self.choice.split):
            account = Account(read=Counter(samples=1, objects=len(sample.objects)))
            reason = "no_picture" if sample.image is None else "semantic" if sample.variant == "semantic" else None
            if reason is not None:
                account.filter("samples", reason)
                account.filter("objects", reason, len(sample.objects))
            else:
                try:
                    yield from self._of_sample(dataset, sample, account)
                except ReasonError as error:
                    bad = Bad(
                        unit="samples",
                        file=dataset.folder.uri,
                        record=sample.sample_id,
                        reason=error.reason,
                        message=str(error),
                        payload="",
                        group=sample.image_key,
                    )
                    account.quarantine([bad])
                    account.filter("objects", "sample_quarantined", len(sample.objects))
                    self.bad.append(bad)
            self.account.add(account)

    def _of_sample(self, dataset: Dataset, sample: Sample, account: Account) -> Iterator[Entry]:
        own = {c["id"]: c for c in dataset.manifest["sources"][f"{sample.source}/{sample.split}"]["categories"]}
        self._add_categories(
            [Category(**{**c, "synonyms": tuple(c.get("synonyms", ()))}) for c in own.values()], sample.source
        )
        picture = self._picture_of(sample)
        if sample.task in WHOLE_TASKS:
            asked = [c for c in sample.conditions if c.category_id in own]
            exhaustive = _shared(c.category_id for c in asked if c.objects)
            absent = _shared({c.category_id for c in asked} - {*exhaustive, *picture.exhaustive})
            picture = replace(picture, exhaustive=exhaustive, absent=absent)
        self._add_picture(picture)
        phrases: dict[int, list[str]] = {}
        for condition in sample.conditions if sample.task not in CATEGORY_TASKS else ():
            for index in condition.objects:
                phrases.setdefault(index, []).append(condition.text)
        for index, thing in enumerate(sample.objects):
            concepts = [Concept(text=text) for text in dict.fromkeys(phrases.get(index, ()))]
            if not concepts and thing.category_id in own:
                concepts = [Concept(text=self.texts[thing.category_id], category_id=thing.category_id)]
            if not concepts:
                account.filter("objects", "unnamed")
                continue
            account.built["objects"] += 1
            for concept in concepts:
                yield from self._entry(picture, concept, thing)
        account.built["samples"] += 1

    def _picture_of(self, sample: Sample) -> Picture:
        """The picture of a sample; one that the dataset holds is written beside the ledger.

        Raises:
            ReasonError: it cannot be read or is another than it was.
        """
        image = sample.image or Image(bytes=None, path=None)
        if sample.image_key in self.pictures:
            return self.pictures[sample.image_key]
        data = picture_bytes(image, sample.height, sample.width)
        digest = hashlib.sha256(data).hexdigest()
        if image.bytes is None:
            return _picture(sample, digest)
        name = f"{PICTURES}/{safe_name(sample.image_key)}{suffix_of_image(image)}"
        self.out.write_new(name, data)
        return replace(_picture(sample, digest), path=name)

    # --- pictures alone ------------------------------------------------------------------------------------------

    def _plain(self, place: Folder) -> None:
        names = [name for name in place.names(recursive=True) if name.lower().endswith(SUFFIXES)]
        if not names:
            raise UserError(
                f"{place.uri}: neither a dataset ({MANIFEST}), nor a COCO folder (annotations/instances_*.json), nor a "
                f"folder of pictures ({', '.join(SUFFIXES)})"
            )
        namespace = self.choice.namespace or _name_of(place)
        for name in names:
            self.account.read["images"] += 1
            try:
                picture = self._plain_picture(place, name, namespace)
            except ReasonError as error:
                bad = Bad(
                    unit="images",
                    file=place.uri,
                    record=name,
                    reason=error.reason,
                    message=str(error),
                    payload="",
                    group=name,
                )
                self.account.quarantine([bad])
                self.bad.append(bad)
                continue
            if picture.key in self.pictures:
                self.account.filter("images", "known_already")
                continue
            self.account.built["images"] += 1
            self.pictures[picture.key] = picture

    def _plain_picture(self, place: Folder, name: str, namespace: str) -> Picture:
        """
        Raises:
            ReasonError: it cannot be read, or `key_taken`: another picture has its key.
        """
        found = read_picture(place, [safe_file_name(name)])
        stem = PurePosixPath(name).with_suffix("")
        is_number = stem.name.isascii() and stem.name.isdigit() and len(stem.name) <= 12 and len(stem.parts) == 1
        key = numbered_key(namespace, int(stem.name)) if is_number else f"{namespace}/{stem}"
        path, digest = _absolute(found.uri), hashlib.sha256(found.data).hexdigest()
        other = self.pictures.get(key)
        if other is not None and other.sha256 != digest:
            raise RecordError("key_taken", f"{path} would be {key}, which is another picture: {other.path}")
        return Picture(key=key, path=path, sha256=digest, height=found.height, width=found.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Note:
    """What a sample does not say. sha256: of the picture's file. incomplete: categories of refused annotations. known:
    categories that are finished, and those that are absent, as LVIS's lists have it; None: there are no lists."""

    sha256: str
    incomplete: frozenset[int]
    known: tuple[frozenset[int], frozenset[int]] | None = None


def _coco_outcome(context: Context, row: Row, notes: dict[str, _Note]) -> Outcome:
    """A picture with all its annotations, also where it has none. notes: is told more of it, by its key."""
    value = decode(row.record)
    height, width = checked_size(value)
    name = safe_file_name(value.get("file_name"))
    picture = read_picture(Folder(context.part.files["images"]), [name], height, width)
    key = numbered_key(coco.namespace_of(context), int(row.key))
    sample = sample_of(context, picture, key=key, file=context.extra["file"], record=f"image {row.key}")
    categories = {category.id for category in context.categories}
    found, refused = coco.objects_of(row, context.extra["file"], height, width, categories)
    known = None
    if value.keys() >= {"neg_category_ids", "not_exhaustive_category_ids"}:
        whole, absent = coco.known_of(value, found, categories, keep=False)
        known = frozenset(thing.category_id for thing in whole.objects), absent
    account = Account(
        read=Counter(images=1, annotations=len(row.members)),
        built=Counter(images=1, annotations=len(found.objects)),
    )
    account.quarantine(refused)
    digest = hashlib.sha256(picture.data).hexdigest()
    notes[key] = _Note(sha256=digest, incomplete=found.incomplete, known=known)
    return Outcome(group=row.key, samples=[replace(sample, objects=found.objects)], bad=refused, account=account)


def _picture(sample: Sample, digest: str, exhaustive: tuple[int, ...] = ()) -> Picture:
    if sample.image is None or sample.image.path is None:
        raise RecordError("no_picture", f"{sample.sample_id} has no picture")
    return Picture(
        key=sample.image_key,
        path=_absolute(sample.image.path),
        sha256=digest,
        height=sample.height,
        width=sample.width,
        exhaustive=exhaustive,
    )


def _absolute(path: str) -> str:
    place = Folder(path)
    return str(place.path.absolute()) if place.is_local else path


def _name_of(place: Folder) -> str:
    """The name of a folder, as part of keys."""
    uri = _absolute(place.uri).partition("?")[0].rstrip("/")
    return uri.rpartition("/")[2] or "pictures"


def _shared(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(ids)))
