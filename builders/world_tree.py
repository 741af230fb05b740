"""Writes the procedural world as a COCO tree of any size, in bounded memory.

root/images/{split}/{id:012d}.jpg             pictures; id is the picture's number + 1
root/annotations/instances_{split}.json       COCO instances. Objects without holes are polygons, with holes compressed
                                              RLE, crowds uncompressed RLE (iscrowd 1). `attributes`: color,
                                              occluded (something hides a part), truncated (the frame cuts it).
root/annotations/panoptic_{split}.json, panoptic_{split}/{id:012d}.png
                                              COCO panoptic: first the objects in the order of instances, with the same
                                              pixels, then stuff; rests of stuff of less than 100 px are void
root/annotations/captions_{split}.json        COCO captions, three a picture
root/annotations/refs_{split}.json            refs[{ref_id, ann_id, image_id, category_id, split, sentences[{sent_id,
                                              sent}]}] beside info and images; what the words mean: `world_text`

Everything appears under its final name only when it is whole, `instances_{split}.json` last.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from builders import world_text
from builders.world import STUFF, STYLES, THINGS, VERSION, Fact, Kind, Scene, make_scene, stuff_label
from builders.world_paint import paint
from dataengine import masks
from dataengine.keyed import key_hash, keyed
from dataengine.masks import Crop

Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 50  # pictures a task
LICENSE = {"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}
SECTIONS = ("images", "instances", "panoptic", "captions", "refs")
PNG = (  # the quickest for large areas of one color, by far
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
)
# ids of objects, captions, refs and sentences are the image id times this, plus a running number
ID_STEP = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSummary:
    """What was written. objects: non-crowd annotations. segments: of things and stuff. num_bytes: of the pictures."""

    root: Path
    split: str
    seed: int
    images: int
    objects: int
    crowds: int
    segments: int
    captions: int
    refs: int
    sentences: int
    num_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.root}: {self.split} has {self.images:,} images with {self.objects:,} objects, "
            f"{self.crowds:,} crowds, {self.segments:,} segments, {self.captions:,} captions "
            f"and {self.sentences:,} expressions (seed {self.seed})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What a worker needs to know. images, segments: folders to write to."""

    seed: int
    split: str
    quality: int
    images: Path
    segments: Path
    style: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """Records of some pictures as comma-separated JSON text by section, and how many things were counted."""

    num_images: int
    text: dict[str, bytes]
    counts: Counter[str]


def write_tree(
    root: Path,
    num_images: int,
    *,
    seed: int = 0,
    split: str = "train",
    workers: int = 1,
    quality: int = 90,
    style: str = "world",
    progress: Callable[[int], None] | None = None,
) -> TreeSummary:
    """Write a split of the world. Picture n is the same bytes whatever `num_images` and `workers` are.

    Args:
        root: the tree's folder; made if it does not exist, other splits in it stay.
        workers: processes; 1 draws in this one.
        quality: of the JPEGs, 1..100. style: one of `world.STYLES`.
        progress: is called with the number of pictures done so far.
    Raises:
        FileExistsError: the split is already there.
        ValueError: an argument is out of range.
    """
    _check(num_images, split, workers, quality, style)
    root = Path(root)
    _refuse_existing(root, split)
    root.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{split}-", dir=root))
    try:
        for name in ("images", "segments", "sections"):
            (work / name).mkdir()
        job = _Job(
            seed=seed,
            split=split,
            quality=quality,
            images=work / "images",
            segments=work / "segments",
            style=style,
        )
        counts = _draw(job, num_images, workers, work / "sections", progress)
        _write_files(work, seed, split)
        _refuse_existing(root, split)
        _publish(work, root, split)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    names = ("objects", "crowds", "segments", "captions", "refs", "sentences", "num_bytes")
    return TreeSummary(root=root, split=split, seed=seed, images=num_images, **{name: counts[name] for name in names})


def _check(num_images: int, split: str, workers: int, quality: int, style: str) -> None:
    if num_images < 1 or workers < 1:
        raise ValueError(f"num_images ({num_images}) and workers ({workers}) must be at least 1")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", split):
        raise ValueError(f"split {split!r} must be letters, digits, '_', '.' and '-'")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be 1..100, not {quality}")
    if style not in STYLES:
        raise ValueError(f"there is no style {style!r}; there are {', '.join(STYLES)}")


def _targets(split: str) -> dict[str, str]:
    """Final places by the name in the working folder, in the order in which they appear."""
    return {"images": f"images/{split}", "segments": f"annotations/panoptic_{split}"} | {
        name: f"annotations/{name}_{split}.json" for name in ("captions", "refs", "panoptic", "instances")
    }


def _refuse_existing(root: Path, split: str) -> None:
    for name in _targets(split).values():
        target = root / name
        if target.is_file() or (target.is_dir() and any(target.iterdir())):
            raise FileExistsError(f"{target} exists; a split is written once, choose another split or folder")


def _publish(work: Path, root: Path, split: str) -> None:
    for name, place in _targets(split).items():
        target = root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(work / name, target)  # an empty folder may be replaced


# --- in order, from one process or several ---------------------------------------------------------------------------


def _draw(
    job: _Job, num_images: int, workers: int, sections: Path, progress: Callable[[int], None] | None
) -> Counter[str]:
    """Write all pictures, gather their records in order; one file a section."""
    counts: Counter[str] = Counter()
    done = 0
    ranges = [(start, min(start + CHUNK, num_images)) for start in range(0, num_images, CHUNK)]
    files = {name: (sections / name).open("wb") for name in SECTIONS}
    try:
        for chunk in in_order(partial(_write_chunk, job), ranges, workers):
            for name, text in chunk.text.items():
                if text:
                    files[name].write(b",\n" + text if files[name].tell() else text)
            counts += chunk.counts
            done += chunk.num_images
            if progress is not None:
                progress(done)
    finally:
        for file in files.values():
            file.close()
    return counts


def in_order(task: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """What a task makes of each item, in order; only a few a worker are under way or waiting.

    Args:
        task: a function that a new process can import; OpenCV runs with one thread in it.
        workers: processes; 1 works in this one.
    """
    if workers == 1 or len(items) == 1:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # waking threads takes longer than what they do on pictures of this size
        try:
            yield from map(task, items)
        finally:
            cv2.setNumThreads(threads)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(items)), mp_context=context, initializer=partial(cv2.setNumThreads, 1)
    ) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(task, item))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _write_chunk(job: _Job, numbers: tuple[int, int]) -> _Chunk:
    start, stop = numbers
    texts: dict[str, list[str]] = {name: [] for name in SECTIONS}
    counts: Counter[str] = Counter()
    for number in range(start, stop):
        for name, records in _write_image(job, number, counts).items():
            texts[name] += [json.dumps(record, separators=(",", ":")) for record in records]
    text = {name: ",\n".join(lines).encode() for name, lines in texts.items()}
    return _Chunk(num_images=stop - start, text=text, counts=counts)


# --- one picture -----------------------------------------------------------------------------------------------------


def _write_image(job: _Job, number: int, counts: Counter[str]) -> dict[str, list[dict[str, Any]]]:
    """Write a picture and its segments; its records by section."""
    key = (job.seed, job.split, number)
    scene = make_scene(*key, job.style)
    image_id = number + 1
    stem = f"{image_id:012d}"
    picture = paint(scene, keyed(*key, "paint", VERSION))
    counts["num_bytes"] += save(job.images / f"{stem}.jpg", ".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, job.quality))
    ids = segment_ids(scene, keyed(*key, "ids", VERSION))
    save(job.segments / f"{stem}.png", ".png", ids_to_bgr(scene.labels, ids), PNG)
    height, width = scene.labels.shape
    annotations = [annotation_of(scene, fact, image_id, place) for place, fact in enumerate(scene.facts)]
    captions = world_text.captions(scene, keyed(*key, "captions", VERSION))
    records = {
        "images": [{"id": image_id, "file_name": f"{stem}.jpg", "height": height, "width": width, "license": 1}],
        "instances": annotations,
        "panoptic": [{"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments_of(scene, ids)}],
        "captions": [
            {"id": image_id * ID_STEP + place, "image_id": image_id, "caption": text}
            for place, text in enumerate(captions)
        ],
        "refs": _refs(job, scene, image_id, annotations),
    }
    crowds = sum(fact.crowd for fact in scene.facts)
    counts["objects"] += len(annotations) - crowds
    counts["crowds"] += crowds
    counts["segments"] += len(records["panoptic"][0]["segments_info"])
    counts["captions"] += len(captions)
    counts["refs"] += len(records["refs"])
    counts["sentences"] += sum(len(ref["sentences"]) for ref in records["refs"])
    return records


def save(path: Path, suffix: str, pixels: np.ndarray, parameters: tuple[int, ...]) -> int:
    done, data = cv2.imencode(suffix, pixels, parameters)
    if not done:
        raise OSError(f"{path}: OpenCV cannot write {suffix}")
    path.write_bytes(data.data)
    return int(data.size)


def annotation_of(scene: Scene, fact: Fact, image_id: int, place: int) -> dict[str, Any]:
    record = {
        "id": image_id * ID_STEP + place,
        "image_id": image_id,
        "category_id": fact.kind.id,
        "segmentation": _segmentation(scene, fact),
        "area": fact.area,
        "bbox": list(fact.bbox),
        "iscrowd": int(fact.crowd),
    }
    if not fact.crowd:
        record["attributes"] = {"color": fact.color, "occluded": fact.occluded, "truncated": fact.truncated}
    return record


def _segmentation(scene: Scene, fact: Fact) -> Any:
    """Polygons where they can say it, else RLE; exactly the visible pixels in either case."""
    height, width = scene.labels.shape
    x, y, w, h = fact.bbox
    mask = scene.labels[y : y + h, x : x + w] == fact.label
    if fact.outline is not None:
        polygons = [_numbers(ring) for ring in fact.outline]
        # where an edge meets a pixel's middle, its place on the canvas can decide; what lies beyond the box cannot
        canvas = min(height, y + h + 2), min(width, x + w + 2)
        filled = masks.rle_from_polygons(polygons, *canvas)
        fills_it = masks.measure(filled, *canvas) == (fact.area, (x, y, w, h))
        if fills_it and (masks.decode(filled, *canvas)[y : y + h, x : x + w] == mask).all():
            return polygons
    outlines = None if fact.crowd else pixel_outlines(mask)
    if outlines is not None:
        return [_numbers(ring + np.array((x, y))) for ring in outlines]
    rle = masks.rle_from_crop(Crop(mask, x, y), height, width)
    counts = masks.counts_from_rle(rle, height, width).tolist() if fact.crowd else rle.decode("ascii")
    return {"counts": counts, "size": [height, width]}


def _numbers(ring: np.ndarray) -> list[float]:
    """x, y, x, y, … with whole numbers as such."""
    values = ring.ravel()
    return values.tolist() if values.dtype.kind == "i" else [int(v) if v.is_integer() else v for v in values.tolist()]


def pixel_outlines(mask: np.ndarray) -> list[np.ndarray] | None:
    """Outlines along pixel edges whose COCO rasterisation is the mask; None where it has a hole.

    OpenCV's contours run through pixel centres. On a mask of twice the size every pixel has four, each next to another
    of its corners, so that a contour's points name the corners of the outline.

    Args:
        mask: (h, w) bool.
    Returns:
        (n, 2) int32 arrays of x, y at pixel corners, one an 8-connected part.
    """
    double = cv2.resize(mask.view(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, tree = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if (tree[0, :, 3] >= 0).any():
        return None
    outlines = []
    for contour in contours:
        corners = (contour[:, 0] + 1) // 2
        step = np.diff(corners, axis=0, append=corners[:1])
        corners = corners[(step != 0).any(axis=1)]
        step = np.diff(corners, axis=0, prepend=corners[-1:], append=corners[:1])
        outlines.append(corners[(step[1:] != step[:-1]).any(axis=1)])
    return outlines


# --- panoptic --------------------------------------------------------------------------------------------------------


def segment_ids(scene: Scene, rng: np.random.Generator) -> dict[int, int]:
    """Label to panoptic id, unique and not 0: the category's color, a little off where it is a thing's."""
    ids: dict[int, int] = {}
    for label, kind in labels_of(scene):
        spread = 25 if kind.is_thing else 0
        while True:
            color = np.clip(np.array(kind.color) + rng.integers(-spread, spread + 1, 3), 0, 255).tolist()
            number = color[0] + (color[1] << 8) + (color[2] << 16)
            if number and number not in ids.values():
                break
            spread += 1
        ids[label] = number
    return ids


def labels_of(scene: Scene) -> list[tuple[int, Kind]]:
    """What has pixels: the objects, back to front, then stuff, largest first."""
    things = [(fact.label, fact.kind) for fact in scene.facts]
    return things + [(stuff_label(kind.name), kind) for kind, _ in scene.stuff]


def ids_to_bgr(labels: np.ndarray, ids: dict[int, int]) -> np.ndarray:
    tables = np.zeros((3, 256), dtype=np.uint8)
    for label, number in ids.items():
        tables[:, label] = number >> 16, number >> 8 & 255, number & 255
    return cv2.merge([cv2.LUT(labels, table) for table in tables])


def segments_of(scene: Scene, ids: dict[int, int]) -> list[dict[str, Any]]:
    crowds = {fact.label for fact in scene.facts if fact.crowd}
    sizes = {fact.label: (fact.area, fact.bbox) for fact in scene.facts}
    for kind, area in scene.stuff:
        label = stuff_label(kind.name)
        x, y, w, h = cv2.boundingRect((scene.labels == label).view(np.uint8))
        sizes[label] = area, (x, y, w, h)
    return [
        {
            "id": ids[label],
            "category_id": kind.id,
            "area": sizes[label][0],
            "bbox": list(sizes[label][1]),
            "iscrowd": int(label in crowds),
        }
        for label, kind in labels_of(scene)
    ]


# --- words -----------------------------------------------------------------------------------------------------------


def _refs(job: _Job, scene: Scene, image_id: int, annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = world_text.references(scene, keyed(job.seed, job.split, image_id - 1, "refs", VERSION))
    by_label = {fact.label: record for fact, record in zip(scene.facts, annotations, strict=True)}
    refs, sentence = [], image_id * ID_STEP
    for place, reference in enumerate(found):
        record = by_label[reference.label]
        sentences = [{"sent_id": sentence + i, "sent": text} for i, text in enumerate(reference.sentences)]
        sentence += len(sentences)
        refs.append(
            {
                "ref_id": image_id * ID_STEP + place,
                "ann_id": record["id"],
                "image_id": image_id,
                "category_id": record["category_id"],
                "split": job.split,
                "sentences": sentences,
            }
        )
    return refs


# --- whole files -----------------------------------------------------------------------------------------------------


def image_namespace(seed: int, split: str) -> str:
    """Whose image ids these are: pictures of different seeds or splits are different pictures."""
    name = f"shapes-{split}-{seed}"
    return name if re.fullmatch(r"[a-z0-9_-]{1,40}", name) else f"shapes-{key_hash(split, seed).hex()}"


def _write_files(work: Path, seed: int, split: str) -> None:
    """The JSON files from their sections."""
    info = {
        "description": "Shapes, a procedural world",
        "version": str(VERSION),
        "seed": seed,
        "split": split,
        "image_namespace": image_namespace(seed, split),
    }
    things = [category_of(kind) for kind in THINGS]
    panoptic = [
        category_of(kind) | {"isthing": int(kind.is_thing), "color": list(kind.color)} for kind in (*THINGS, *STUFF)
    ]
    for name, head, body in (
        ("instances", {"categories": things}, "annotations"),
        ("panoptic", {"categories": panoptic}, "annotations"),
        ("captions", {}, "annotations"),
        ("refs", {"categories": things}, "refs"),
    ):
        with (work / name).open("wb") as file:
            start = json.dumps({"info": info, "licenses": [LICENSE], **head}, indent=1)
            file.write(start.removesuffix("\n}").encode())
            for key, section in (("images", "images"), (body, name)):
                file.write(f',\n "{key}": [\n'.encode())
                with (work / "sections" / section).open("rb") as part:
                    shutil.copyfileobj(part, file, 1 << 20)
                file.write(b"\n]")
            file.write(b"\n}\n")


def category_of(kind: Kind) -> dict[str, Any]:
    return {"id": kind.id, "name": kind.name, "supercategory": kind.group}
