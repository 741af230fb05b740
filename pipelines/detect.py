"""`detect`: which sources a folder or file is, what is missing of them, and the command that builds them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from dataengine import builder
from dataengine.builder import OptionError, SourceError
from dataengine.errors import UserError
from dataengine.store.files import Folder
from pipelines.recipe import REGION_TASKS

MAX_DEPTH = 4  # folders below the given one that are looked into
MAX_ENTRIES = 1000  # of a folder; one with more holds pictures


class DetectError(UserError):
    """A place where nothing can be looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source that was found.

    builder: who reads it. root: its folder. tasks: what it becomes. splits: those that are complete. missing: what
    keeps other splits, or all of it, from being built. options: what tells it from others of the same root.
    """

    builder: str
    title: str
    root: Path
    tasks: tuple[str, ...]
    splits: tuple[str, ...]
    missing: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def detect(path: str) -> list[Source]:
    """The sources in a folder and the folders below it, or the one that a file belongs to.

    Raises:
        DetectError: there is no such file or folder.
    """
    place = Path(path)
    if not place.exists():
        raise DetectError(f"{path}: there is no such file or folder")
    start = place if place.is_dir() else place.parent
    names = None if place.is_dir() else {place.absolute()}
    found: dict[tuple[str, Path, str], Source] = {}
    for name in builder.names():
        made = builder.load(name)
        is_source = getattr(made, "is_source", lambda _: True)
        for root in dict.fromkeys(_roots(start.absolute(), made.MARKS, names)):
            if not is_source(Folder(str(root))):
                continue
            for source in _sources(made, root):
                found.setdefault((name, root, str(source.options)), source)
    return _without_inner(list(found.values()))


def _roots(start: Path, marks: tuple[str, ...], names: set[Path] | None) -> Iterator[Path]:
    """Folders that hold something by which a source is known. names: only where it is one of these files."""
    if names is not None:
        for name in names:
            for mark in marks:
                depth = mark.count("/")
                if len(name.parts) > depth + 1 and fnmatchcase("/".join(name.parts[-depth - 1 :]), mark):
                    yield name.parents[depth]
        return
    for folder in _folders(start, MAX_DEPTH):
        for mark in marks:
            if next(iter(_glob(folder, mark.split("/"))), None) is not None:
                yield folder


def _folders(start: Path, depth: int) -> Iterator[Path]:
    yield start
    if depth:
        for entry in _entries(start):
            if entry.is_dir(follow_symlinks=True):
                yield from _folders(Path(entry.path), depth - 1)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, sorted; of a folder full of pictures only the start."""
    try:
        with os.scandir(folder) as scan:
            some = [entry for entry, _ in zip(scan, range(MAX_ENTRIES), strict=False)]
    except OSError:
        return []
    return sorted(some, key=lambda entry: entry.name)


def _glob(folder: Path, parts: list[str]) -> Iterator[Path]:
    if "*" not in parts[0]:
        places = [folder / parts[0]] if (folder / parts[0]).exists() else []
    else:
        places = [Path(entry.path) for entry in _entries(folder) if fnmatchcase(entry.name, parts[0])]
    for place in places:
        if len(parts) == 1:
            yield place
        elif place.is_dir():
            yield from _glob(place, parts[1:])


def _sources(made: builder.Builder, root: Path) -> Iterator[Source]:
    """What a builder finds below a root: one source for each of its editions that is there."""
    editions: tuple[dict[str, Any], ...] = getattr(made, "EDITIONS", ({},))
    missing: list[tuple[dict[str, Any], str]] = []
    read: list[set[str]] = []
    for options in editions:
        tasks, splits, files, problem = _readable(made, root, options)
        if tasks and files in read:  # an edition that is told by its option alone; the first one stands for it
            continue
        if tasks:
            read.append(files)
            yield Source(
                builder=made.NAME, title=made.ABOUT.title, root=root, tasks=tasks, splits=splits, options=dict(options)
            )
        elif problem is not None:
            missing.append((options, problem))
    if not read and missing:
        options, problem = missing[0]
        yield Source(
            builder=made.NAME,
            title=made.ABOUT.title,
            root=root,
            tasks=made.TASKS,
            splits=(),
            missing=problem,
            options=dict(options),
        )


def _readable(
    made: builder.Builder, root: Path, options: dict[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...], set[str], str | None]:
    """Tasks that can be built with these options, the splits and files there are, what is missing where none can."""
    tasks, splits, files, problem = [], list[str](), set[str](), None
    for task in made.TASKS:
        try:
            parsed = made.parse_options(task, options)
            parts = made.locate(str(root), {}, (), parsed)
        except (SourceError, OptionError) as error:
            problem = problem or str(error)
            continue
        tasks.append(task)
        splits += [part.split for part in parts if part.split not in splits]
        files.update(path for part in parts for path in part.files.values())
    return tuple(tasks), tuple(splits), files, problem


def _without_inner(found: list[Source]) -> list[Source]:
    """Without sources that are the same files seen from a folder further in, or further out."""
    kept: list[Source] = []
    for source in sorted(found, key=lambda s: (s.builder, s.missing is not None, len(s.root.parts), str(s.root))):
        same = [k for k in kept if k.builder == source.builder and k.options == source.options]
        if not any(k.root in (source.root, *source.root.parents) or source.root in k.root.parents for k in same):
            kept.append(source)
    return sorted(kept, key=lambda s: (str(s.root), s.builder, str(s.options)))


def recipe_of(found: list[Source], name: str) -> str:
    """A recipe (YAML) of everything that can be built: each source as its builder's first task.

    Raises:
        DetectError: nothing can.
    """
    sources: dict[str, dict[str, Any]] = {}
    for source in found:
        if source.missing is None:
            title = re.sub(r"[^A-Za-z0-9_.-]", "_", "_".join([source.builder, *map(str, source.options.values())]))
            number = sum(key == title or key.startswith(f"{title}.") for key in sources)
            spec: dict[str, Any] = {"builder": source.builder, "task": source.tasks[0], "root": str(source.root)}
            sources[f"{title}.{number + 1}" if number else title] = spec | (
                {"options": dict(source.options)} if source.options else {}
            )
    if not sources:
        raise DetectError("no source is complete; nothing can be built")
    document: dict[str, Any] = {"name": name, "sources": sources}
    if any(spec["task"] in REGION_TASKS for spec in sources.values()):
        document["prompts"] = {"profile": "published"}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def text(found: list[Source], path: str) -> str:
    """What was found, in words, with the commands that build it."""
    if not found:
        return f"{path}: no source that is known; installed builders: {', '.join(builder.names())}"
    lines = []
    for source in found:
        chosen = "".join(f", {key} {value}" for key, value in source.options.items())
        lines.append(f"{source.root}: {source.title} (builder {source.builder}{chosen})")
        if source.missing is not None:
            lines.append(f"  incomplete: {source.missing}")
        else:
            lines.append(f"  tasks: {', '.join(source.tasks)}; splits: {', '.join(source.splits)}")
    if any(source.missing is None for source in found):
        lines.append("to build it:")
        lines.append(f"  dataengine detect {shlex.quote(path)} --recipe mine.yaml")
        lines.append("  dataengine build mine.yaml --out out/mine")
    return "\n".join(lines)
