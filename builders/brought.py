"""Prompts that a source brings as bitmaps: kept as geometry that is drawn as the same bitmap again, pixel for pixel.

Points and scribbles become the pixels that their discs lie about, boxes disjoint rectangles, masks stay masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from builders.reading import RecordError
from dataengine import masks, prompts
from dataengine.errors import ReasonError
from dataengine.kernels import runlengths
from dataengine.sample import PROMPT_KINDS, Object, Prompt

PROFILE: Literal["published"] = "published"
VERSION = 0  # of the generator: not ours
RADII = {"point": 10.0, "scribble": 5.0}  # px, with which PSALM and X-SAM draw them


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """A prompt before it is measured.

    points, parts, radius, rle: as stored in a `Prompt`. borders: of the bitmap that it is drawn as, see
    `masks.Borders`; none where no pixel is set.
    """

    kind: str
    borders: np.ndarray
    points: tuple[float, ...] = ()
    parts: tuple[int, ...] = ()
    radius: float = 0.0
    rle: bytes | None = None


def prompts_from_bitmaps(
    bitmaps: Sequence[tuple[str, Any]], height: int, width: int, *, is_traced: bool
) -> list[Brought | ReasonError]:
    """The geometry of prompts' bitmaps, or what is wrong with them; see `prompts.geometry`.

    Clicks that others cover, as they arise where a disc is cut at the border, are left out; a scribble keeps all its
    pixels, so that its trace stays whole.

    Args:
        bitmaps: kind, and COCO RLE, compressed or not, on the full canvas. height, width: of the canvas, px.
        is_traced: whether points and scribbles are bare pixels that are yet to be drawn with the usual radius.
    Returns:
        `bad_prompt` where it is no RLE, or takes more than `prompts.MAX_PARTS` points or boxes; MaskError where the
        RLE is malformed.
    """
    codes = [_code(value, height, width) for _, value in bitmaps]
    rles = [b"" if isinstance(code, ReasonError) else code for code in codes]
    decoded = masks.borders_from_rles(rles, height, width)
    kinds = [kind for kind, _ in bitmaps]
    found: list[Brought | ReasonError] = []
    for code, kind, area, geometry in zip(
        codes,
        kinds,
        decoded.figures[:, 0].tolist(),
        prompts.geometry(decoded, kinds, RADII, height, width, is_traced=is_traced),
        strict=True,
    ):
        if isinstance(code, ReasonError):
            found.append(code)
        elif area < 0:
            found.append(_malformed(code, height, width))
        elif not geometry.is_possible:
            most = f"{prompts.MAX_PARTS:,}"
            found.append(RecordError("bad_prompt", f"the bitmap is no {kind}: it takes over {most} points or boxes"))
        else:
            found.append(_brought(kind, geometry, height, width))
    return found


def _code(value: Any, height: int, width: int) -> bytes | ReasonError:
    if not isinstance(value, dict):
        return RecordError("bad_prompt", "a prompt must be an RLE with size and counts")
    try:
        return masks.code_from_segmentation(value, height, width)
    except masks.MaskError as error:
        return error


def _malformed(code: bytes, height: int, width: int) -> ReasonError:
    try:
        masks.counts_from_rle(code, height, width)
    except masks.MaskError as error:
        return error
    raise AssertionError("a mask without borders is malformed")


def _brought(kind: str, geometry: prompts.Geometry, height: int, width: int) -> Brought:
    points = geometry.points
    return Brought(
        kind=kind,
        borders=geometry.borders,
        points=points,
        parts=(2,) * (len(points) // 4) if kind == "box" else (1,) * (len(points) // 2),
        radius=geometry.radius,
        rle=masks.rle_from_borders(geometry.borders, height, width) if kind == "mask" else None,
    )


def with_prompts(
    objects: Sequence[Object], brought: Mapping[str, Sequence[Brought]], height: int, width: int
) -> tuple[Object, ...]:
    """The objects with their prompts, one of each kind; crowds get none.

    Args:
        objects: all of the picture. brought: by annotation id; kinds that are missing get the status `none`.
        height, width: of the picture, px.
    """
    shown = [
        (own, one)
        for own, thing in enumerate(objects)
        if not thing.crowd
        for one in brought.get(thing.annotation_id, ())
        if one.borders.size
    ]
    made: list[dict[str, Prompt]] = [{} for _ in objects]
    if shown:
        things = masks.borders_from_rles([thing.rle for thing in objects], height, width)
        shares = runlengths.shares(
            np.concatenate([one.borders for _, one in shown]),
            np.array([one.borders.size for _, one in shown]).cumsum(),
            np.array([own for own, _ in shown]),
            things.places,
            things.stops,
        )
        for (own, one), (total, inside, other) in zip(shown, shares.tolist(), strict=True):
            made[own][one.kind] = _prompt(one, inside / total, other / total)
    return tuple(
        thing if thing.crowd else replace(thing, prompts=tuple(of.get(kind) or _NONE[kind] for kind in PROMPT_KINDS))
        for thing, of in zip(objects, made, strict=True)
    )


def _prompt(one: Brought, inside: float, other: float) -> Prompt:
    return Prompt(
        kind=one.kind,  # type: ignore[arg-type]
        profile=PROFILE,
        version=VERSION,
        status="ok",
        points=one.points,
        parts=one.parts,
        radius=one.radius,
        rle=one.rle,
        inside=inside,
        other=other,
    )


_NONE = {
    kind: Prompt(kind=kind, profile=PROFILE, version=VERSION, status="none")  # type: ignore[arg-type]
    for kind in PROMPT_KINDS
}
