"""Every builder: samples a second on one core, and what indexing takes at the published size.

The clock of reading is CPU time, because a shared machine changes its pace; pictures are by reference. The sources are
the world of shapes in every published layout.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import source_files
from dataengine import builder as builders
from dataengine import conversation, invariants
from dataengine.builder import Builder, Context, make_context
from dataengine.keyed import keyed
from dataengine.sample import Sample
from dataengine.store.files import Folder
from pipelines.world_published import write_published

TARGET = "1,500 samples/s"
SECONDS = 3.0  # of CPU time, at least, that a rate is measured for


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source of the published layouts. root: below the tree. split: that is read."""

    title: str
    builder: str
    task: str
    root: str
    split: str
    files: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


SOURCES = (
    Source(
        title="coco instances",
        builder="coco",
        task="genseg",
        root="coco",
        split="train2017",
        options={"variants": ["instance"]},
    ),
    Source(
        title="coco panoptic",
        builder="coco",
        task="genseg",
        root="coco",
        split="train2017",
        options={"variants": ["panoptic"]},
    ),
    Source(title="coco_interactive", builder="coco_interactive", task="intseg", root="coco_interactive", split="train"),
    Source(title="coco_vgd", builder="coco_vgd", task="vgdseg", root="coco_vgd", split="train"),
    Source(title="lvis", builder="lvis", task="genseg", root="lvis", split="train"),
    Source(title="refcoco", builder="refcoco", task="refseg", root="refer", split="train"),
    Source(title="grefcoco", builder="grefcoco", task="grefseg", root="grefcoco", split="train"),
    Source(title="grandf", builder="grandf", task="gcgseg", root="grandf", split="train", options={"part": "flickr"}),
    Source(title="reasonseg", builder="reasonseg", task="reaseg", root="reasonseg", split="train"),
    Source(title="llava", builder="llava", task="chat", root="llava", split="train", options={"edition": "mix665k"}),
    Source(title="sa1b", builder="sa1b", task="genseg", root="sa1b", split="train"),
    Source(title="ade20k semantic", builder="ade20k", task="ovseg", root="ade20k", split="training"),
    Source(
        title="ade20k panoptic",
        builder="ade20k",
        task="ovseg",
        root="ade20k",
        split="training",
        options={"variants": ["panoptic"]},
    ),
)

_INSTANCES = {"instances": "instances.json", "images": ""}
LARGE = (
    (
        Source(title="LVIS", builder="lvis", task="genseg", root="", split="train", files={"annotations": "lvis.json"}),
        source_files.write_lvis,
    ),
    (
        Source(
            title="RefCOCO",
            builder="refcoco",
            task="refseg",
            root="",
            split="train",
            files={"refs": "refs(unc).p", **_INSTANCES},
        ),
        source_files.write_refcoco,
    ),
    (
        Source(
            title="gRefCOCO",
            builder="grefcoco",
            task="grefseg",
            root="",
            split="train",
            files={"refs": "grefs(unc).json", **_INSTANCES},
        ),
        source_files.write_grefcoco,
    ),
    (
        Source(
            title="GranD-f flickr",
            builder="grandf",
            task="gcgseg",
            root="",
            split="train",
            files={"annotations": "flickr_mergedGT_GCG_train.json"},
            options={"part": "flickr"},
        ),
        source_files.write_grandf,
    ),
    (
        Source(
            title="LLaVA mix665k",
            builder="llava",
            task="chat",
            root="",
            split="train",
            files={"annotations": "llava_v1_5_mix665k.json"},
            options={"edition": "mix665k"},
        ),
        source_files.write_llava,
    ),
)


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Samples a second of CPU time. whole: read, rendered and checked. objects: of a sample, on average."""

    read: float
    whole: float
    objects: float


def opened(source: Source, root: Path, folder: Path) -> tuple[Builder, Context, Folder, int]:
    """A source, indexed: what `read` takes, and the number of its rows. folder: for the index."""
    module = builders.load(source.builder)
    options = module.parse_options(source.task, {"images": "reference", **source.options})
    (part,) = module.locate(str(root / source.root), dict(source.files), [source.split], options)
    target = folder / f"{source.title}.arrow"
    report = module.index(part, options, target)
    context = make_context(module, source.builder, source.task, part, report, options, 0)
    return module, context, Folder(str(target)), report.rows


def samples(module: Builder, context: Context, index: Folder, rows: int) -> Iterator[Sample]:
    """All samples of an index."""
    for outcome in module.read(context, index, 0, rows):
        yield from outcome.samples


def rendered(sample: Sample) -> Sample:
    """A sample as a shard takes it: with its conversation, checked."""
    rng = keyed(0, sample.sample_id, "conversation", conversation.VERSION)
    sample = conversation.render(prompted(sample), rng)
    invariants.check(sample)
    return sample


def prompted(sample: Sample) -> Sample:
    """A sample whose regions each show the first of their objects, as a build draws one."""
    if all(c.kind == "phrase" or c.exemplar >= 0 for c in sample.conditions):
        return sample
    shown = [replace(c, exemplar=c.objects[0]) if c.kind == "region" else c for c in sample.conditions]
    return replace(sample, conditions=tuple(shown))


def rate(source: Source, root: Path, seconds: float = SECONDS) -> Rate:
    """How fast a source is read. root: of the published layouts. seconds: of CPU time, for each figure."""
    with tempfile.TemporaryDirectory() as folder:
        found = opened(source, root, Path(folder))
        first = [rendered(sample) for sample in samples(*found)]  # compiles, and brings the files into memory
        took = {}
        for name, finish in (("read", lambda sample: sample), ("whole", rendered)):
            passes, start = 0, time.process_time()
            while not passes or time.process_time() - start < seconds:
                for sample in samples(*found):
                    finish(sample)
                passes += 1
            took[name] = passes * len(first) / (time.process_time() - start)
    return Rate(**took, objects=sum(len(sample.objects) for sample in first) / len(first))


# --- indexing --------------------------------------------------------------------------------------------------------

INDEX = """
import json, re, sys, tempfile, time
from pathlib import Path
from dataengine import builder
from dataengine.builder import Part
name, task, options, split, files = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
module = builder.load(name)
start = time.process_time()
with tempfile.TemporaryDirectory() as folder:
    part = Part(split=split, files=files)
    report = module.index(part, module.parse_options(task, options), Path(folder) / "index.arrow")
seconds = time.process_time() - start
peak_kib = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]  # ru_maxrss counts the parent's
print(seconds, peak_kib, report.rows)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """One file indexed in a process of its own. seconds: of CPU time. peak_mb: largest RSS."""

    seconds: float
    peak_mb: float
    rows: int


def index(source: Source, folder: Path) -> Indexed:
    """Index a source whose files were written by `source_files`. folder: where they lie."""
    files = json.dumps({role: str(folder / name) for role, name in source.files.items()})
    given = [source.builder, source.task, json.dumps(dict(source.options)), json.dumps(source.split), files]
    done = subprocess.run([sys.executable, "-c", INDEX, *given], capture_output=True, text=True, check=True)
    seconds, peak_kib, rows = done.stdout.split()
    return Indexed(seconds=float(seconds), peak_mb=int(peak_kib) / 1024, rows=int(rows))


# --- report ----------------------------------------------------------------------------------------------------------


def rows(
    images: int = 250, scale: float = 1.0, seconds: float = SECONDS, only: Sequence[str] = ()
) -> Iterator[tuple[str, str, str]]:
    """What was measured, the figure, the target.

    Args:
        images: of the world that is read. scale: of the published sizes that are indexed. seconds: see `rate`.
        only: titles of sources, the others are left out; all where there is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "published"
        write_published(tree, images)
        for source in (s for s in SOURCES if not only or s.title in only):
            found = rate(source, tree, seconds)
            what = f"read {source.title} by reference, {found.objects:.1f} objects a sample, CPU time of one core"
            whole = f"{found.whole:,.0f} samples/s ({found.read:,.0f} without rendering and checks)"
            yield what, whole, TARGET
    for source, write in ((s, write) for s, write in LARGE if not only or s.title in only):
        with tempfile.TemporaryDirectory() as folder:
            what = write(Path(folder), scale)
            made = index(source, Path(folder))
            figure = f"{made.seconds:.0f} s CPU time, {made.peak_mb:.0f} MB peak"
            yield f"index {source.title}, {what}", figure, "1,500 MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=250, help="of the world that is read")
    parser.add_argument("--scale", type=float, default=1.0, help="of the published sizes that are indexed")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of CPU time for each rate")
    titles = [source.title for source in (*SOURCES, *(source for source, _ in LARGE))]
    parser.add_argument("--only", action="append", default=[], choices=titles, help="source; may be given repeatedly")
    arguments = parser.parse_args()
    for row in rows(arguments.images, arguments.scale, arguments.seconds, arguments.only):
        print(" | ".join(row), flush=True)


if __name__ == "__main__":
    main()
