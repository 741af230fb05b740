"""Annotation files of published sizes, made up, in the layouts of their sources; each function says what it wrote."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.index import write_instances

WORDS = [
    "the",
    "a",
    "red",
    "blue",
    "bus",
    "street",
    "man",
    "woman",
    "dog",
    "cat",
    "meadow",
    "sky",
    "is",
    "on",
    "in",
    "under",
    "near",
    "what",
    "where",
    "how",
    "many",
    "word",
]
REFER_IMAGES, REFER_ANNOTATIONS = 19_994, 196_771


def write_list(path: Path, records: Iterable[object]) -> None:
    """A JSON array, a record at a time."""
    with path.open("w") as file:
        for number, record in enumerate(records):
            file.write(("[" if not number else ",\n") + json.dumps(record))
        file.write("]")


def write_lvis(folder: Path, scale: float) -> str:
    """LVIS v1 train."""
    images, annotations = int(100_170 * scale), int(1_270_141 * scale)
    plain = folder / "instances.json"
    write_instances(plain, images, annotations)
    with plain.open() as source, (folder / "lvis.json").open("w") as file:
        for line in source:  # a record each
            extra = '"neg_category_ids": [1, 2, 3, 4, 5], "not_exhaustive_category_ids": [6], "license"'
            line = line.replace('"license"', extra).replace('"iscrowd": 0, ', "")
            file.write(line.replace('"name": "kind', '"frequency": "f", "synonyms": ["kind"], "name": "kind'))
    plain.unlink()
    return f"{annotations:,} annotations"


def write_refcoco(folder: Path, scale: float) -> str:
    """RefCOCO, a pickle of refs with about three sentences each, and COCO's instances."""
    number, sentences = int(50_000 * scale), int(142_210 * scale)
    refs = []
    rng = np.random.default_rng(0)
    counts = np.full(number, sentences // number) + (np.arange(number) < sentences % number)
    for ref, (count, annotation) in enumerate(zip(counts.tolist(), _annotations(folder, scale)[:number], strict=True)):
        said = [_sentence(rng, 4) for _ in range(count)]
        first = ref * 3
        refs.append(
            {
                "ref_id": ref,
                "ann_id": annotation["id"],
                "image_id": annotation["image_id"],
                "file_name": f"COCO_train2014_{annotation['image_id']:012d}_{annotation['id']}.jpg",
                "category_id": annotation["category_id"],
                "split": "train",
                "sent_ids": [first + n for n in range(count)],
                "sentences": [
                    {"sent_id": first + n, "raw": text, "sent": text, "tokens": text.split()}
                    for n, text in enumerate(said)
                ],
            }
        )
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    return f"{number:,} refs, {sentences:,} sentences"


def write_grefcoco(folder: Path, scale: float) -> str:
    """gRefCOCO, where a record is an expression for several objects, or none in a tenth of them."""
    number = int(278_232 * scale)
    rng = np.random.default_rng(0)
    annotations = _annotations(folder, scale)

    def records() -> Iterable[object]:
        for ref in range(number):
            one = annotations[ref % len(annotations)]
            text, targets = _sentence(rng, 5), [-1] if ref % 10 == 0 else [one["id"]]
            yield {
                "ref_id": ref,
                "ann_id": targets,
                "image_id": one["image_id"],
                "file_name": f"COCO_train2014_{one['image_id']:012d}_{ref}.jpg",
                "category_id": [-1] if ref % 10 == 0 else [one["category_id"]],
                "split": "train",
                "no_target": ref % 10 == 0,
                "sent_ids": [ref],
                "sentences": [
                    {"sent_id": ref, "raw": text, "sent": text, "tokens": text.split(), "exist": ref % 10 > 0}
                ],
            }

    write_list(folder / "grefs(unc).json", records())
    return f"{number:,} expressions"


def _annotations(folder: Path, scale: float) -> list[dict[str, int]]:
    """COCO's instances of the refer family, written; and what they hold."""
    path = folder / "instances.json"
    write_instances(path, int(REFER_IMAGES * scale), int(REFER_ANNOTATIONS * scale))
    found: list[dict[str, int]] = json.loads(path.read_text())["annotations"]
    return found


def write_grandf(folder: Path, scale: float) -> str:
    """The flickr part of GranD-f: captions with three phrases each, a compressed mask for each."""
    number = int(158_000 * scale)
    caption, places = "A man in a blue shirt stands on a ladder.", [[0, 5], [9, 21], [32, 40]]
    code = "PPh2" + "1N2O1" * 60  # of about a mask's length; indexing does not decode it
    with (folder / "flickr_mergedGT_GCG_train.json").open("w") as file:
        file.write('{"images": [')
        for n in range(number):
            image = {"id": n, "file_name": f"{n // 5}.jpg", "caption": caption, "height": 480, "width": 640}
            file.write((",\n" if n else "") + json.dumps(image | {"original_img_id": n // 5, "sentence_id": n % 5}))
        file.write('], "annotations": [')
        for n in range(3 * number):
            mask = {"size": [480, 640], "counts": code}
            record = {"id": n, "image_id": n // 3, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
            record |= {"tokens_positive": [places[n % 3]], "sam_mask": mask}
            file.write((",\n" if n else "") + json.dumps(record))
        file.write('], "categories": []}')
    return f"{number:,} captions"


def write_llava(folder: Path, scale: float) -> str:
    """LLaVA's mix665k: most rows with a picture and one to six questions, one in sixteen long texts without."""
    number = int(665_298 * scale)
    rng = np.random.default_rng(0)
    texts = [_sentence(rng, 20) for _ in range(1000)]

    def records() -> Iterable[object]:
        for n in range(number):
            lines = [texts[(n * 7 + k) % 1000] for k in range(2 * (1 + n % 6))]
            row: dict[str, object] = {"id": f"{n:012d}"}
            if n % 16:
                row["image"] = f"coco/train2017/{n:012d}.jpg"
                lines[0] = f"<image>\n{lines[0]}"
            else:
                lines = [" ".join([line] * 3) for line in lines]
            speakers = ("human", "gpt")
            yield row | {"conversations": [{"from": speakers[k % 2], "value": line} for k, line in enumerate(lines)]}

    write_list(folder / "llava_v1_5_mix665k.json", records())
    return f"{number:,} rows"


def _sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), words).tolist())
