"""The role of a builder, and the registry that finds builders by name.

A builder turns one published source into samples without turns: it finds the files (`locate`), regroups them into an
index with one row an image (`index`), and reads rows of it (`read`). A package adds one by an entry point in the group
`dataengine.builders` that names a module with these members; see docs/add-a-source.md.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dataengine.errors import UserError
from dataengine.records import Account, Bad, Category
from dataengine.sample import License, Sample
from dataengine.store.files import Folder

GROUP = "dataengine.builders"


class SourceError(UserError):
    """A source that cannot be used at all. The message names the file and what was expected."""


class OptionError(UserError):
    """An option that a builder does not know or cannot use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a source is: its title, where it is published, and the licence of its annotations."""

    title: str
    url: str
    license: License = License()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One split of a source. files: what it is made of, by role (`annotations`, `images`), as paths or URIs."""

    split: str
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReport:
    """What indexing found.

    rows: images in the index, sorted. records: how many records of any unit it holds. account: of those that did not
    reach a row. inputs: sha256 of each file read, by role. extra: what else `read` needs, as JSON values.
    fingerprint: of the index's content, the same on every machine.
    """

    rows: int
    records: int
    account: Account
    bad: tuple[Bad, ...]
    categories: tuple[Category, ...]
    inputs: Mapping[str, str]
    extra: Mapping[str, Any]
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What reading needs besides the index: the source's name in the recipe, the task, checked options, the seed.

    builder, version, about: who reads, for the samples' provenance and licence.
    """

    builder: str
    version: int
    about: About
    source: str
    task: str
    part: Part
    categories: tuple[Category, ...]
    extra: Mapping[str, Any]
    options: Any
    seed: int


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one index row: samples without turns, bad records, and counts that add up.

    group: the row's key, by which a bad record is found again (`Bad.group`). unit: what a row is counted as. absent:
    ids of the categories that are known not to be in the picture; None: all of which it has no record.
    """

    group: str
    unit: str = "images"
    samples: list[Sample] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    account: Account = field(default_factory=Account)
    absent: frozenset[int] | None = None


class Builder(Protocol):
    """A module with these members is a builder.

    It may also have `EDITIONS`, the options (dicts) that tell apart the sources it reads from one root; where its marks
    fit folders of others, `is_source(root)`, whether a folder that has one is the source's. One whose objects come with
    prompts of their own says `BRINGS_PROMPTS = True`: a recipe then needs no `prompts` for its regions. Objects that
    have prompts keep them, whatever the recipe says. One whose objects may be shown in other pictures has a function
    `exemplars(context, index)` like `image_keys`: for each row, in order, pairs of annotation id and category id of the
    objects that it may have.
    """

    NAME: str
    VERSION: int
    TASKS: tuple[str, ...]
    ABOUT: About
    HELD_OUT: tuple[str, ...]  # splits whose pictures must not be trained on
    MARKS: tuple[str, ...]  # paths below the root, with `*`, by which a folder or file of the source is known

    def parse_options(self, task: str, options: Mapping[str, Any]) -> Any:
        """Check a recipe's task and `options`; what comes back is handed to the functions below and to workers.

        Raises:
            OptionError: the builder does not do the task, or does not know or cannot use an option.
        """
        ...

    def locate(self, root: str | None, files: Mapping[str, str], splits: Sequence[str], options: Any) -> list[Part]:
        """Find the files of each split.

        Args:
            root: folder of the published layout, a path or URI.
            files: paths that the recipe names itself, by role; they win over the layout.
            splits: the wanted ones; none means all there are.
        Raises:
            SourceError: a file or folder is missing; the message says what was looked for, and where.
        """
        ...

    def index(self, part: Part, options: Any, target: Path) -> IndexReport:
        """Write the index of one split in bounded memory. Raises SourceError."""
        ...

    def read(self, context: Context, index: Folder, start: int, stop: int) -> Iterator[Outcome]:
        """The outcomes of rows `start` to `stop`, in order; a pure function of its arguments and the files.

        Args:
            index: the file that `index` wrote, where it stands now: on a local disk or in an object store.
        """
        ...

    def image_keys(self, context: Context, index: Folder) -> Iterator[str]:
        """`Sample.image_key` of each row, in order, from the index alone; "" where the row has no picture."""
        ...

    def select(self, index: Path, groups: set[str], target: Path) -> int:
        """Write an index of only the rows of these groups (`Bad.group`), in order; returns how many there are."""
        ...


def make_context(
    builder: Builder, source: str, task: str, part: Part, report: IndexReport, options: Any, seed: int
) -> Context:
    """What reading a split needs, from what indexing it gave."""
    return Context(
        builder=builder.NAME,
        version=builder.VERSION,
        about=builder.ABOUT,
        source=source,
        task=task,
        part=part,
        categories=report.categories,
        extra=report.extra,
        options=options,
        seed=seed,
    )


def names() -> list[str]:
    """Names of all builders that are installed."""
    return sorted({point.name for point in importlib.metadata.entry_points(group=GROUP)})


def brings_prompts(name: str) -> bool:
    """Whether there is a builder of that name, and its objects come with prompts."""
    return name in names() and bool(getattr(load(name), "BRINGS_PROMPTS", False))


def has_exemplars(name: str) -> bool:
    """Whether there is a builder of that name that lists the objects which other pictures may show."""
    return name in names() and hasattr(load(name), "exemplars")


def load(name: str) -> Builder:
    """The builder of that name.

    Raises:
        OptionError: no installed package has it; the message lists those there are.
    """
    for point in importlib.metadata.entry_points(group=GROUP, name=name):
        builder: Builder = point.load()
        return builder
    raise OptionError(f"there is no builder {name!r}; installed: {', '.join(names()) or 'none'}")
