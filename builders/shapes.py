"""Shapes: the bundled procedural world (`dataengine synth shapes`), read like the COCO tree it writes."""

from builders.coco import TASKS, VERSION, exemplars, image_keys, index, locate, parse_options, read, select
from dataengine.builder import About
from dataengine.sample import License

__all__ = [
    "ABOUT",
    "HELD_OUT",
    "MARKS",
    "NAME",
    "TASKS",
    "VERSION",
    "exemplars",
    "image_keys",
    "index",
    "locate",
    "parse_options",
    "read",
    "select",
]

NAME = "shapes"
HELD_OUT = ("val", "val2017")
ABOUT = About(
    title="Shapes",
    url="https://creativecommons.org/publicdomain/zero/1.0/",
    license=License(name="CC0 1.0", url="https://creativecommons.org/publicdomain/zero/1.0/"),
)
MARKS = ()  # it is found as the COCO tree that it is
