"""`vgd build`: annotations become a locked benchmark, a dataset whose samples ask for regions.

The benchmark is a dataset like others: it is planned, committed, resumed and validated like them. Beside its shards
stand the lock and a table of its regions, by whose difficulty scores are broken down.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataengine.sample import Object, Prompt, Reference, Sample
from dataengine.store.dataset import Dataset, open_dataset
from pipelines import build as building
from pipelines.progress import Progress, silent
from pipelines.recipe import Recipe, parse
from pipelines.vgd import lock as locks
from pipelines.vgd.lock import Lock

if TYPE_CHECKING:
    import pyarrow as pa

REGIONS = "regions.parquet"
SMALL, LARGE = 32**2, 96**2  # px: COCO's limits of small and large objects
SIZES = ("small", "medium", "large")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a benchmark is to hold. split: of the COCO tree at `root`. images: `reference` or `embed`.

    negatives, cross_image, shots: see `pipelines.variants`.
    """

    root: str
    split: str = "val2017"
    name: str | None = None
    profile: str = "published"
    seed: int = 0
    negatives: int = 0
    cross_image: bool = False
    shots: int = 0
    images: str = "reference"


def recipe_of(settings: Settings) -> Recipe:
    """The recipe of a benchmark on a COCO tree. Raises RecipeError where a setting is out of bounds."""
    source = {
        "builder": "coco",
        "task": "vgdseg",
        "root": settings.root,
        "splits": [settings.split],
        "options": {"images": settings.images},
    }
    return parse(
        {
            "name": settings.name if settings.name is not None else f"coco-vgd-{settings.profile}",
            "description": "One region for each category in a picture; the same ground truth for all kinds of prompts.",
            "seed": settings.seed,
            "sources": {"coco": source},
            "prompts": {"profile": settings.profile, "fallback": True},
            "variants": {
                "cross_image": settings.cross_image,
                "negatives": settings.negatives,
                "shots": settings.shots,
            },
        },
        "benchmark",
    )


def xsam_recipe(root: str, file: str, seed: int, images: str = "reference") -> Recipe:
    """The recipe of the benchmark that X-SAM released: its own prompts; exemplars, which it draws anew, are frozen.

    Args:
        root: of the COCO tree with its pictures. file: `coco_vgdseg_val.json` or `img_vgdseg_coco_val.json`.
    """
    source = {
        "builder": "coco_vgd",
        "task": "vgdseg",
        "root": root,
        "files": {"annotations": file},
        "splits": ["val"],
        "options": {"images": images},
    }
    return parse(
        {
            "name": "coco-vgd-xsam-2025",
            "description": "COCO-VGD as X-SAM released it, with frozen exemplars.",
            "seed": seed,
            "sources": {"coco": source},
            "variants": {},
        },
        "benchmark",
    )


def build(recipe: Recipe, out: str, settings: building.Settings, progress: Progress = silent) -> Lock:
    """Build a benchmark, its table of regions and its lock. Raises what `pipelines.build.run` raises."""
    building.run(recipe, out, settings, progress)
    dataset = open_dataset(out)
    tally = locks.Tally()
    with dataset.folder.staging(REGIONS) as staged:
        write_regions(_counted(dataset, tally), staged)
        dataset.folder.publish(staged, REGIONS)
    made = locks.make(dataset.manifest, tally)
    locks.write(dataset.folder, made)  # last: what has a lock is whole
    return made


def _counted(dataset: Dataset, tally: locks.Tally) -> Iterator[Sample]:
    for sample in dataset.samples():
        tally.add(sample)
        yield sample


def summary(out: str, lock: Lock) -> str:
    """What a benchmark holds, in a few lines."""
    counts = lock.counts
    objects = counts["objects"]
    lines = [f"{out}: {lock.name}, {objects.get('targets', 0):,} objects, {objects.get('crowds', 0):,} crowds"]
    for variant, number in counts["samples"].items():
        absent = counts["negatives"][variant]
        lines.append(
            f"  {variant}: {number:,} samples, {counts['regions'][variant]:,} regions"
            + (f", {absent:,} of them of absent categories" if absent else "")
        )
    odd = {kind: n for kind, n in counts["prompts"].items() if not kind.endswith("/ok")}
    lines.append(f"  prompts: {lock.profile}" + "".join(f", {n:,} {kind}" for kind, n in odd.items()))
    lines.append(f"  lock {lock.id}")
    return "\n".join(lines)


# --- the table of regions --------------------------------------------------------------------------------------------


def write_regions(samples: Iterable[Sample], target: Any) -> None:
    """Write one row for each region of each sample and kind of prompt: what it shows, and how hard that is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(target, _schema(), compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for sample in samples:
            rows += regions_of(sample)
            if len(rows) > 50_000:
                writer.write_table(pa.Table.from_pylist(rows, schema=_schema()))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema=_schema()))


def _schema() -> pa.Schema:
    import pyarrow as pa

    texts = ("sample_id", "variant", "category", "kind", "status", "shown_in", "annotation_id", "size")
    numbers = ("condition", "category_id", "area", "instances", "shots")
    shares = ("inside", "other")
    return pa.schema(
        [(name, pa.string()) for name in texts]
        + [(name, pa.int64()) for name in numbers]
        + [(name, pa.float32()) for name in shares]
        + [("ambiguous", pa.bool_())]
    )


def regions_of(sample: Sample) -> Iterator[dict[str, Any]]:
    """The regions of a sample: one row a kind of prompt.

    `size`, `area`, `inside`, `other`, `status` are those of the object that is shown (the first of several shots),
    `instances` how many objects are to be found; `ambiguous`: more of the prompt lies in another object than in its
    own.
    """
    for number, condition in enumerate(sample.conditions):
        shown, key = _shown(sample, condition.exemplar, condition.reference)
        area = shown.area if isinstance(shown, Object) else _area(shown)
        for prompt in shown.prompts:
            yield {
                "sample_id": sample.sample_id,
                "variant": sample.variant,
                "condition": number,
                "category": condition.text,
                "category_id": condition.category_id,
                "kind": prompt.kind,
                "status": prompt.status,
                "shown_in": key,
                "annotation_id": shown.annotation_id,
                "area": area,
                "size": size_of(area),
                "instances": len(condition.objects),
                "shots": 1 + len(condition.shots),
                "inside": prompt.inside,
                "other": prompt.other,
                "ambiguous": is_ambiguous(prompt),
            }


def _shown(sample: Sample, exemplar: int, reference: int) -> tuple[Object | Reference, str]:
    if exemplar >= 0:
        return sample.objects[exemplar], sample.image_key
    return sample.references[reference], sample.references[reference].image_key


def _area(reference: Reference) -> int:
    from dataengine import masks

    return masks.area(reference.rle, reference.height, reference.width)


def size_of(area: float) -> str:
    """`small`, `medium` or `large`, as COCO has it."""
    return SIZES[0] if area < SMALL else SIZES[2] if area > LARGE else SIZES[1]


def is_ambiguous(prompt: Prompt) -> bool:
    """Whether more of a prompt lies in one other object than in its own."""
    return prompt.other > prompt.inside
