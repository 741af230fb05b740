"""Shapes: the bundled procedural world (`dataengine synth shapes`), read like the COCO tree it writes."""

from builders.coco import TASKS, VERSION, find_rows, index, locate, parse_options, read

__all__ = ["NAME", "TASKS", "VERSION", "find_rows", "index", "locate", "parse_options", "read"]

NAME = "shapes"
