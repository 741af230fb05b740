"""Finding the files of a published layout, by role; what is missing is said with the places that were looked at."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from dataengine.builder import SourceError
from dataengine.store.files import Folder


def check_roles(name: str, files: Mapping[str, str], roles: Sequence[str]) -> None:
    """Refuse files that a recipe names for roles a builder does not have.

    Raises:
        SourceError
    """
    unknown = sorted(set(files) - set(roles))
    if unknown:
        raise SourceError(f"{name} has no file role {unknown[0]!r} here; it has {', '.join(roles)}")


def check_splits(name: str, root: str, wanted: Sequence[str], there: Collection[str], layout: str) -> list[str]:
    """The wanted splits; all there are where none is wanted.

    Args:
        layout: what the folder should hold, for the message.
    Raises:
        SourceError: there is none, or one is missing.
    """
    missing = [split for split in wanted if split not in there]
    if missing:
        hint = f"; there are {', '.join(there)}" if there else ""
        raise SourceError(f"{root}: {name} has no split {missing[0]} here{hint}. Expected: {layout}")
    if not there:
        raise SourceError(f"{root}: no {name} here. Expected: {layout}")
    return list(wanted) or list(there)


def find(
    name: str,
    role: str,
    kind: Literal["file", "folder"],
    root: str | None,
    files: Mapping[str, str],
    candidates: Sequence[str],
) -> str:
    """Path or URI of what plays a role: what the recipe names, else the first candidate that is there.

    Args:
        name: of builder and split, for the message. candidates: below the root; `../` leads beside it.
    Raises:
        SourceError: there is none.
    """
    if role in files:
        places = [Folder(files[role])]
    elif root is not None:
        places = [_below(Folder(root), candidate) for candidate in candidates]
    else:
        places = []
    for place in places:
        if place.kind() == kind:
            return place.uri
    tried = ", ".join(place.uri for place in places) or f"no {role} in the recipe"
    raise SourceError(f"{name}: the {role} {kind} is missing (looked for: {tried}); --split chooses others")


def _below(folder: Folder, candidate: str) -> Folder:
    while candidate.startswith("../"):
        folder, candidate = folder.parent, candidate.removeprefix("../")
    return folder / candidate if candidate else folder


def given_root(name: str, root: str | None) -> str:
    """The root of a source.

    Raises:
        SourceError: none is given.
    """
    if root is None:
        raise SourceError(f"{name}: no folder is given; use --source NAME=FOLDER, or name the files in the recipe")
    return root
