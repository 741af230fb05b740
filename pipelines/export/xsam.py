"""X-SAM's input files, in the folders where its recipes look for them.

coco2017/                   genseg: annotations/instances_{split}.json, annotations/panoptic_{split}.json,
                            panoptic_{split}/*.png, panoptic_semseg_{split}/*.png, pictures in {split}/;
                            `train` and `val` are called `train2017` and `val2017`
img_ovseg/                  the same of ovseg
coco_vgd/annotations/       vgdseg: coco_vgdseg_{split}.json, beside coco2017/annotations/instances_{split}.json
coco_int/annotations/       intseg: coco_interactive_{split}_psalm.json
img_refseg/refcocos/        refseg, grefseg: {dataset}/refs(unc).p and instances.json
img_reaseg/lisa/            reaseg: {split}/NAME.jpg and NAME.json, explanatory/{split}.json
img_gcgseg/grand_f/         gcgseg: annotations/train/GranDf_HA_GCG_{split}.json, of val and test
                            annotations/val_test/{split}_gcg_coco_caption_gt.json and _mask_gt.json
img_chat/llava/             chat: llava_{split}.json
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from dataengine.sample import Sample
from pipelines.export import gcg, llava, psalm, reasonseg, refer
from pipelines.export.coco import CocoFiles, annotation_entry
from pipelines.export.output import JsonLists, Output, unit_of

XYWH = 1  # detectron's number for boxes of x, y, width, height


class _Part(Protocol):
    def write(self, group: Sequence[Sample]) -> None: ...

    def finish(self) -> None: ...


def exporter(output: Output) -> XSam:
    """See `Exporter`."""
    return XSam(output)


class XSam:
    def __init__(self, output: Output) -> None:
        coco = CocoFiles(output, root="coco2017/", segments="coco2017/", pictures="coco2017/{split}", dated=True)
        ade = CocoFiles(output, root="img_ovseg/", segments="img_ovseg/", pictures="img_ovseg/{split}")
        referring = refer.Refer(output, "img_refseg/refcocos", "img_refseg/refcocos/images")
        self._parts: dict[str, _Part] = {
            "genseg": _Generic(coco),
            "ovseg": _Generic(ade),
            "vgdseg": _Vgd(output, coco),
            "intseg": psalm.Interactive(output, "coco_int/annotations/coco_interactive_{split}_psalm.json", coco),
            "refseg": referring,
            "grefseg": referring,
            "reaseg": reasonseg.ReasonSeg(output, "img_reaseg/lisa"),
            "gcgseg": gcg.Gcg(output, "img_gcgseg/grand_f/annotations", "img_gcgseg/grand_f/images/GranDf_HA_images"),
            "chat": llava.Llava(output, "img_chat/llava/llava_{split}.json", "img_chat/llava/llava_images"),
        }
        self._finishing: tuple[_Part | CocoFiles, ...] = (
            coco,
            ade,
            referring,
            *(self._parts[task] for task in ("vgdseg", "intseg", "reaseg", "gcgseg", "chat")),
        )

    def write(self, group: Sequence[Sample]) -> None:
        self._parts[group[0].task].write(group)

    def finish(self) -> None:
        for part in self._finishing:
            part.finish()


class _Generic:
    def __init__(self, files: CocoFiles) -> None:
        self._files = files

    def write(self, group: Sequence[Sample]) -> None:
        if unit_of(group[0]).endswith("instance"):
            self._files.instances(group)
        else:
            self._files.generic(group)

    def finish(self) -> None:
        pass  # the files are completed once, not by each kind that writes to them


class _Vgd:
    """COCO-VGD: every object with its four prompts as they are drawn; the instances file gives the categories."""

    def __init__(self, output: Output, coco: CocoFiles) -> None:
        self._output, self._coco = output, coco
        self._lists = JsonLists(output, "coco_vgd/annotations/coco_vgdseg_{split}.json", yearless=True)

    def write(self, group: Sequence[Sample]) -> None:
        entered = self._coco.instances(group)
        first, image_id, name = group[0], entered.image["id"], entered.image["file_name"]
        annotations: dict[str, dict[str, Any]] = {}
        for sample in group:
            self._output.note(sample, "objects: crowds", sum(thing.crowd for thing in sample.objects))
            absent = sum(c.reference >= 0 for c in sample.conditions)
            self._output.note(sample, "conditions: shown in another picture", absent)
            for thing in sample.objects:
                if not thing.crowd and thing.annotation_id not in annotations:
                    entry = annotation_entry(sample, thing, entered.annotations[thing.annotation_id], image_id)
                    drawn = psalm.drawn(sample, thing, dilated=True)
                    shown = {f"{kind}_visual_prompt": rle for kind, rle in drawn.items()}
                    annotations[thing.annotation_id] = entry | {"bbox_mode": XYWH, "visual_prompts": shown}
        info = {key: value for key, value in entered.image.items() if key != "image_key"} | {"image_id": image_id}
        self._lists.add(
            (first.source, first.split),
            {
                "image_file": name,
                "image_id": image_id,
                "image_size": [first.height, first.width],
                "image_info": info,
                "annotations": list(annotations.values()),
            },
        )

    def finish(self) -> None:
        self._lists.finish()
