"""Shapes: the bundled procedural world (`dataengine synth shapes`), read like the COCO tree it writes."""

from builders.coco import TASKS, VERSION, index, locate, parse_options, read, select

__all__ = ["NAME", "TASKS", "VERSION", "index", "locate", "parse_options", "read", "select"]

NAME = "shapes"
