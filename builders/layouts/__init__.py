"""Shapes in published layouts: what each publisher's folder would hold if it had photographed the procedural world.

One module a family of layouts: its records of one picture, and the files they go into. `tree` writes them.
"""

from builders.layouts import ade20k, coco, gcg, grefcoco, llava, lvis, reasonseg, refer, sa1b

LAYOUTS = {
    "coco": coco.LAYOUT,
    "refer": refer.LAYOUT,
    "grefcoco": grefcoco.LAYOUT,
    "grandf": gcg.LAYOUT,
    "ade20k": ade20k.LAYOUT,
    "llava": llava.LAYOUT,
    "reasonseg": reasonseg.LAYOUT,
    "sa1b": sa1b.LAYOUT,
    "lvis": lvis.LAYOUT,
}
