"""Simulating prompts: milliseconds an object from stored RLE, and of the published formulas as they are written.

The clock is CPU time on one core, the best of a few passes that take turns, because a shared machine
changes its pace. `python -m benchmarks` takes the rows; run by itself it prints a table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from dataengine import masks
from dataengine.keyed import keyed
from dataengine.sample import PROFILES, PROMPT_KINDS, Object
from prompts_sim import simulate

HEIGHT, WIDTH = 480, 640
MEDIAN_PX = 60.0  # root of the area
TARGET_MS = 0.45
PASSES = 9
PASSES_AS_WRITTEN = 2
VERSIONED = ("numpy", "numba", "opencv-python-headless", "hotcoco", "pycocotools", "scipy", "scikit-image")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture's objects. height, width: px."""

    key: str
    height: int
    width: int
    objects: tuple[Object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Milliseconds an object. base: with no kind asked for; kinds: what each kind adds; total: all four at once."""

    base: float
    kinds: dict[str, float]
    total: float


# --- objects -----------------------------------------------------------------------------------------------------


def coco_like(num_objects: int, seed: int = 0) -> list[Picture]:
    """Pictures of about seven overlapping blobs each, 480 x 640 px; one blob in twelve has two parts."""
    rng = keyed(seed, "benchmark", "prompts")
    pictures: list[Picture] = []
    made = 0
    while made < num_objects:
        number = min(int(rng.integers(3, 12)), num_objects - made)
        things = tuple(_thing(_blobs(rng), HEIGHT, WIDTH, str(made + n)) for n in range(number))
        pictures.append(Picture(key=str(len(pictures)), height=HEIGHT, width=WIDTH, objects=things))
        made += number
    return pictures


def _blobs(rng: np.random.Generator) -> list[list[float]]:
    """Polygons, x, y in px, of one object; a second part lies beside the first, as behind a post."""
    side = float(np.clip(MEDIAN_PX * np.exp(rng.normal(0.0, 0.8)), 6.0, 400.0))
    centre = np.array([rng.uniform(0.0, WIDTH), rng.uniform(0.0, HEIGHT)])
    if rng.random() >= 1 / 12:
        return [_blob(rng, side, centre)]
    aside = np.array([1.5 * side, rng.uniform(-0.5, 0.5) * side])
    return [_blob(rng, side / math.sqrt(2), centre + sign * aside / 2) for sign in (-1, 1)]


def _blob(rng: np.random.Generator, side: float, centre: np.ndarray) -> list[float]:
    """A wavy outline about a centre, whose area is about side squared."""
    number = int(rng.integers(12, 60))
    angles = np.arange(number) * (2 * np.pi / number)
    radius = 1.0 + sum(
        rng.uniform(0.0, 0.5 / wave) * np.sin(wave * angles + rng.uniform(0.0, 2 * np.pi)) for wave in (2, 3, 5, 9)
    )
    stretch = math.exp(rng.normal(0.0, 0.35))
    unit = side / math.sqrt(math.pi)
    offsets = np.column_stack((np.cos(angles) * (unit * stretch), np.sin(angles) * (unit / stretch))) * radius[:, None]
    points, frame = centre + offsets, np.array([WIDTH, HEIGHT])
    # a blob beyond the border must still cover a pixel
    points += np.minimum(0.0, frame - 4.0 - points.min(axis=0)) + np.maximum(0.0, 4.0 - points.max(axis=0))
    flat: list[float] = np.clip(points, 0, frame).round(2).ravel().tolist()
    return flat


def coco_pictures(root: Path) -> list[Picture]:
    """The pictures of every `annotations/instances_*.json` of a COCO tree, without the annotations that are refused."""
    pictures = []
    for path in sorted((root / "annotations").glob("instances_*.json")):
        document = json.loads(path.read_text())
        by_image: dict[int, list[dict]] = {}
        for annotation in document["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        for image in document["images"]:
            height, width, things = image["height"], image["width"], []
            for annotation in by_image.get(image["id"], ()):
                try:
                    thing = _thing(annotation["segmentation"], height, width, str(annotation["id"]))
                except masks.MaskError:
                    continue
                things.append(Object(**{**_fields(thing), "crowd": bool(annotation["iscrowd"])}))
            if things:
                key = f"{path.stem}/{image['id']}"
                pictures.append(Picture(key=key, height=height, width=width, objects=tuple(things)))
    return pictures


def _thing(segmentation: object, height: int, width: int, name: str) -> Object:
    rle = masks.rle_from_segmentation(segmentation, height, width)
    area, box = masks.measure(rle, height, width)
    return Object(rle=rle, bbox=box, area=area, category_id=1, annotation_id=name)


def _fields(thing: Object) -> dict:
    return {name: getattr(thing, name) for name in ("rle", "bbox", "area", "category_id", "annotation_id")}


def num_prompted(pictures: Sequence[Picture]) -> int:
    return sum(not thing.crowd for picture in pictures for thing in picture.objects)


# --- ours --------------------------------------------------------------------------------------------------------


Job = tuple[Sequence[Picture], str]  # what is prompted, with which profile


def timed(jobs: Sequence[Job]) -> list[Times]:
    """Time `simulate` with no kind, with each kind alone, and with all four; jobs and kinds take turns."""
    asked = ((), *((kind,) for kind in PROMPT_KINDS), PROMPT_KINDS)
    best = np.full((len(jobs), len(asked)), np.inf)
    for _ in range(PASSES):
        for job, (pictures, profile) in enumerate(jobs):
            for column, kinds in enumerate(asked):
                best[job, column] = min(best[job, column], _seconds(pictures, profile, kinds))
    found = []
    for (pictures, _), seconds in zip(jobs, best, strict=True):
        base, *alone, total = (seconds / num_prompted(pictures) * 1e3).tolist()
        added = {kind: value - base for kind, value in zip(PROMPT_KINDS, alone, strict=True)}
        found.append(Times(base=base, kinds=added, total=total))
    return found


def _seconds(pictures: Sequence[Picture], profile: str, kinds: Sequence[str]) -> float:
    start = time.process_time()
    for picture in pictures:
        simulate(
            picture.objects,
            picture.height,
            picture.width,
            profile=profile,
            seed=0,
            image_key=picture.key,
            kinds=kinds,
        )
    return time.process_time() - start


# --- the formulas as written -------------------------------------------------------------------------------------


class AsWritten:
    """The published generator, full frame by full frame, as X-SAM and PSALM describe it; seconds by step.

    Every prompt is a bitmap of the whole picture: components by scikit-image, a distance image for every prompt pixel,
    SciPy's Gaussian of the frame, four encoded masks. It measures no `inside` and no `other`.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("base", *PROMPT_KINDS), 0.0)
        self._random = random.Random(0)

    def prompt(self, rle: bytes, height: int, width: int) -> dict[str, bytes]:
        """The four prompts of an object as compressed RLE."""
        import skimage.measure
        from pycocotools import mask as coco

        start = time.thread_time()
        mask = coco.decode({"size": [height, width], "counts": rle})
        regions = [r for r in skimage.measure.regionprops(skimage.measure.label(mask)) if r.area > 5]
        self.seconds["base"] += time.thread_time() - start
        makers = {"point": self._point, "scribble": self._scribble, "box": self._box}
        prompts = {}
        for kind in PROMPT_KINDS:
            start = time.thread_time()
            bitmap = _above_mean(mask) if kind == "mask" else np.zeros((height, width), dtype=np.uint8)
            for region in regions if kind in makers else ():
                makers[kind](bitmap, mask, region.bbox, region.centroid)
            if kind in ("point", "scribble"):
                bitmap = _discs(bitmap, 10 if kind == "point" else 5)
            prompts[kind] = coco.encode(np.asfortranarray(bitmap))["counts"]
            self.seconds[kind] += time.thread_time() - start
        return prompts

    def _point(self, bitmap: np.ndarray, mask: np.ndarray, box: Sequence[int], centroid: Sequence[float]) -> None:
        r0, c0, r1, c1 = box
        reach = 0.5 * min(r1 - r0, c1 - c0)
        for _ in range(1000):
            angle = self._random.uniform(0, 2 * math.pi)
            row = int(centroid[0] + self._random.uniform(0, reach) * math.cos(angle))
            column = int(centroid[1] + self._random.uniform(0, reach) * math.sin(angle))
            row, column = min(max(row, r0), r1 - 1), min(max(column, c0), c1 - 1)
            if mask[row, column]:
                bitmap[row, column] = 1
                return

    def _box(self, bitmap: np.ndarray, mask: np.ndarray, box: Sequence[int], centroid: Sequence[float]) -> None:
        r0, c0, r1, c1 = box
        scale = self._random.uniform(0.9, 1.1) - 1
        rows, columns = (r1 - r0) * scale / 2, (c1 - c0) * scale / 2
        height, width = mask.shape
        bitmap[max(0, int(r0 - rows)) : min(height, int(r1 + rows)), _columns(c0 - columns, c1 + columns, width)] = 1

    def _scribble(self, bitmap: np.ndarray, mask: np.ndarray, box: Sequence[int], centroid: Sequence[float]) -> None:
        import skimage.draw

        height, width = mask.shape
        jittered = self._jittered(box, centroid, height, width)
        if jittered is None:
            return
        r0, c0, r1, c1 = jittered
        corners = [(r0, c0), (r0, c1), (r1, c0), (r1, c1)]
        corner = self._random.randrange(4)
        rows, columns = skimage.draw.line(*corners[corner], *corners[3 - corner])
        amplitude, frequency = self._random.uniform(10, 20), self._random.uniform(0.2, 1.0)
        phase = self._random.uniform(0, 2 * math.pi)
        steps = np.linspace(0, 1, len(rows))
        waved = rows + amplitude * np.sin(2 * np.pi * frequency * steps + phase)
        bitmap[np.clip(waved, 0, height - 1).astype(int), np.clip(columns, 0, width - 1)] = 1

    def _jittered(
        self, box: Sequence[int], centroid: Sequence[float], height: int, width: int
    ) -> tuple[int, int, int, int] | None:
        for _ in range(1000):
            rows = (box[2] - box[0]) * self._random.uniform(0.5, 1.2) / 2
            columns = (box[3] - box[1]) * self._random.uniform(0.5, 1.2) / 2
            new = (
                max(0, int(centroid[0] - rows)),
                max(0, int(centroid[1] - columns)),
                min(height, int(centroid[0] + rows)),
                min(width, int(centroid[1] + columns)),
            )
            if _iou_inclusive(new, box) >= 0.5:
                return new
        return None


def _columns(low: float, high: float, width: int) -> slice:
    return slice(max(0, int(low)), min(width, int(high)))


def _iou_inclusive(a: Sequence[int], b: Sequence[int]) -> float:
    """IoU of boxes whose far corners count as pixels."""
    both = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1) * max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return both / (sum(areas) - both)


def _discs(bitmap: np.ndarray, radius: int) -> np.ndarray:
    """A distance image of the whole frame for every prompt pixel."""
    rows, columns = np.ogrid[: bitmap.shape[0], : bitmap.shape[1]]
    drawn = np.zeros_like(bitmap)
    for row, column in zip(*np.nonzero(bitmap), strict=True):
        drawn[np.sqrt((rows - row) ** 2 + (columns - column) ** 2) <= radius] = 1
    return drawn


def _above_mean(mask: np.ndarray) -> np.ndarray:
    import scipy.ndimage

    blurred = scipy.ndimage.gaussian_filter(mask.astype(np.float64), 2)
    return (blurred > blurred.mean()).astype(np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The formulas as written. same: of how many objects the mask prompt, which nothing random enters, equals ours."""

    times: Times
    objects: int
    same: int


def timed_as_written(pictures: Sequence[Picture]) -> Written:
    """Time the formulas as written in a worker thread, which is how they are run by default, and is their best case.

    (In a main thread, glibc gives each frame-sized temporary back to the kernel.)
    """
    found = []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(PASSES_AS_WRITTEN):
            written = AsWritten()
            same = sum(pool.submit(_num_same, written, picture).result() for picture in pictures)
            found.append((sum(written.seconds.values()), written.seconds, same))
    total, seconds, same = min(found, key=lambda one: one[0])
    number = num_prompted(pictures)
    each = {step: value / number * 1e3 for step, value in seconds.items()}
    times = Times(base=each["base"], kinds={kind: each[kind] for kind in PROMPT_KINDS}, total=total / number * 1e3)
    return Written(times=times, objects=number, same=same)


def _num_same(written: AsWritten, picture: Picture) -> int:
    """Prompt a picture's objects as written; of how many the mask prompt equals ours."""
    size, same = (picture.height, picture.width), 0
    ours = simulate(picture.objects, *size, profile="published", seed=0, image_key=picture.key, kinds=("mask",))
    for thing in ours:
        if not thing.crowd:
            theirs, mine = written.prompt(thing.rle, *size)["mask"], thing.prompts[0].rle
            same += masks.area(theirs, *size) == 0 if mine is None else theirs == mine
    return same


def some_pictures(pictures: Sequence[Picture], num_objects: int) -> list[Picture]:
    """Pictures drawn from all over the set, until at least that many objects are to be prompted."""
    chosen: list[Picture] = []
    for index in keyed(0, "benchmark", "some").permutation(len(pictures)).tolist():
        if num_prompted(chosen) >= num_objects:
            break
        chosen.append(pictures[index])
    return chosen


# --- report ------------------------------------------------------------------------------------------------------


def _processor() -> str:
    """Its name; or its architecture, where that is all that is known."""
    about = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", about.read_text(), re.MULTILINE) if about.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> str:
    """The machine and the versions that decide the figures."""
    found = ", ".join(f"{name} {version(name)}" for name in VERSIONED)
    return f"{os.cpu_count()} cores of {_processor()}, Python {platform.python_version()}, {found}"


def table(name: str, pictures: Sequence[Picture], num_written: int) -> list[str]:
    """Lines of one set's table, ms an object."""
    sides = [math.sqrt(thing.area) for picture in pictures for thing in picture.objects if not thing.crowd]
    few = some_pictures(pictures, num_written)
    jobs: list[Job] = [*((pictures, profile) for profile in PROFILES), *([(few, "published")] if few else [])]
    columns = list(zip((*PROFILES, "these"), timed(jobs), strict=False))
    written = timed_as_written(few) if few else None
    if written is not None:
        columns.append(("as written", written.times))
    rows = [("decode, components", [times.base for _, times in columns])]
    rows += [(kind, [times.kinds[kind] for _, times in columns]) for kind in PROMPT_KINDS]
    rows += [("all four", [times.total for _, times in columns])]
    lines = [
        f"{name}: {num_prompted(pictures):,} objects in {len(pictures):,} pictures, median {np.median(sides):.0f} px",
        f"  {'ms/object':20}" + "".join(f"{title:>12}" for title, _ in columns),
        *(f"  {what:20}" + "".join(f"{value:12.3f}" for value in values) for what, values in rows),
    ]
    if written is not None:
        ratio = columns[3][1].total / columns[2][1].total
        lines.append(
            f"  `these`: `published` on the {written.objects} objects of the last column; the formulas as written take "
            f"{ratio:.0f} times as long; mask prompts equal for {written.same} of {written.objects}"
        )
    return lines


def rows(pictures: Sequence[Picture] | None = None, num_written: int = 60) -> list[tuple[str, str, str]]:
    """What was measured, the figure, the target."""
    _one_core()
    pictures = coco_like(500) if pictures is None else pictures
    few = some_pictures(pictures, num_written)
    *ours, these = timed([*((pictures, profile) for profile in PROFILES), (few, "published")])
    written = timed_as_written(few)
    found = [
        (f"four {profile} prompts of an object, one core", f"{times.total:.2f} ms", f"{TARGET_MS} ms")
        for profile, times in zip(PROFILES, ours, strict=True)
    ]
    figure = f"{written.times.total:.0f} ms, {written.times.total / these.total:.0f}×"
    return [*found, ("the published formulas as written, in a thread, and against ours", figure, "")]


def _one_core() -> None:
    import cv2

    cv2.setNumThreads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coco", type=Path, help="a COCO tree to measure too")
    parser.add_argument("--objects", type=int, default=500, help="of the COCO-like set")
    parser.add_argument("--naive", type=int, default=60, help="objects for the formulas as written; 0 leaves them out")
    arguments = parser.parse_args()
    _one_core()
    print(machine())
    sets = [("COCO-like", coco_like(arguments.objects))]
    sets += [("COCO", coco_pictures(arguments.coco))] if arguments.coco else []
    for name, pictures in sets:
        print("\n" + "\n".join(table(name, pictures, arguments.naive)))


if __name__ == "__main__":
    main()
