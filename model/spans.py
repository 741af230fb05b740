"""Condition and `<SEG>` vectors of a language model's states, and the rows that the segmentor works on.

A row is one `<SEG>` with the classes that its queries are told apart by; referring tasks have a row for each phrase,
with all phrases of the batch as classes (X-SAM `_get_index_embeds`, `_process_embeds`, branch AAAI26_Archive). The plan
of rows is made from counts alone, so that targets and vectors follow the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dataengine.errors import ReasonError

REFERRING = ("refseg", "grefseg", "reaseg")  # tasks with a row for each phrase
PADDING = 1e9  # taken from the background vector where a row has fewer classes than others


class SpanError(ReasonError):
    """Conditions and `<SEG>` that do not belong together: `no_seg`, `seg_index`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """What a sample's text holds. owners: of each `<p>…</p>`, the number of its `<SEG>`, negative where no `<SEG>`
    answers it. num_segs: of its `<SEG>`."""

    owners: tuple[int, ...]
    num_segs: int
    is_referring: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """sample, seg: whose `<SEG>` it is. classes: (sample, condition) of each class but the background. own: the class
    that is a referring row's phrase; None: all of them are asked for."""

    sample: int
    seg: int
    classes: tuple[tuple[int, int], ...]
    own: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowVectors:
    """What the segmentor takes.

    conditions: (R, C + 1, D), the background last; what pads is background - 1e9. mask: (R, C + 1) bool, False where
    padded. segs: (R, D). samples: (R,) int64, whose picture a row is about.
    """

    conditions: torch.Tensor
    mask: torch.Tensor
    segs: torch.Tensor
    samples: torch.Tensor


def default_owners(num_conditions: int, num_segs: int, task: str) -> tuple[int, ...]:
    """Which `<SEG>` each condition belongs to where only the text says so, a person's or a model's.

    A referring task with as many `<SEG>` as phrases has one for each. Otherwise all belong to the first.

    Raises:
        SpanError: `seg_index`: several `<SEG>` of which none can be told to be whose.
    """
    if num_segs <= 1:
        return (0,) * num_conditions
    if num_segs == num_conditions and task in REFERRING:
        return tuple(range(num_segs))
    raise SpanError("seg_index", f"{num_segs} <SEG> for {num_conditions} conditions of a {task} conversation")


def plan_rows(samples: Sequence[Spans], *, is_shared: bool = True) -> list[Row]:
    """The rows of a batch, sample by sample; a sample without `<SEG>` or without conditions to refer to has none.

    Args:
        is_shared: whether a referring row tells its phrase from those of all referring samples of the batch, as in
            training, or from those of its own sample, so that what else is in the batch changes nothing.
    Raises:
        SpanError: a condition belongs to a `<SEG>` that its sample does not have.
    """
    for number, spans in enumerate(samples):
        if spans.num_segs and any(owner >= spans.num_segs for owner in spans.owners):
            raise SpanError(
                "seg_index", f"sample {number}: conditions of <SEG> {spans.owners}; it has {spans.num_segs}"
            )
    referring = [
        (number, k)
        for number, spans in enumerate(samples)
        if spans.is_referring and spans.num_segs
        for k, owner in enumerate(spans.owners)
        if owner >= 0
    ]
    rows: list[Row] = []
    for number, spans in enumerate(samples):
        if not spans.num_segs:
            continue
        if spans.is_referring:
            classes = tuple(c for c in referring if is_shared or c[0] == number)
            rows += [
                Row(sample=number, seg=spans.owners[k], classes=classes, own=own)
                for own, (sample, k) in enumerate(classes)
                if sample == number
            ]
        else:
            rows += [
                Row(
                    sample=number,
                    seg=seg,
                    classes=tuple((number, k) for k, owner in enumerate(spans.owners) if owner == seg),
                )
                for seg in range(spans.num_segs)
            ]
    return rows


def index_means(states: torch.Tensor, ids: torch.Tensor) -> list[torch.Tensor]:
    """Means of the states with the same id.

    Args:
        states: (B, L, D). ids: (B, L) int64, negative where a state belongs to nothing.
    Returns:
        for each sample (K, D), ids ascending; (0, D) where it has none. Summed in float32 at least, of the dtype of
        `states`.
    """
    means, wide = [], torch.promote_types(states.dtype, torch.float32)
    with torch.autocast(states.device.type, enabled=False):
        for values, numbers in zip(states, ids.cpu(), strict=True):  # one wait for the device, not one for each sample
            names = numbers.unique()
            members = (names[names >= 0, None] == numbers).to(values.device, wide)
            means.append((members @ values.to(wide) / members.sum(1, keepdim=True)).to(values.dtype))
    return means


def row_vectors(
    rows: Sequence[Row], conditions: Sequence[torch.Tensor], segs: Sequence[torch.Tensor], background: torch.Tensor
) -> RowVectors:
    """The vectors of planned rows.

    Args:
        conditions, segs: of each sample, (K, D) and (S, D) as `index_means` gives them.
        background: (1, D).
    Raises:
        SpanError: there are no rows (`no_seg`), or a sample lacks a vector that a row needs (`seg_index`).
    """
    if not rows:
        raise SpanError("no_seg", "no conversation of the batch has a <SEG>; there is nothing to segment")
    for row in rows:
        if row.seg >= len(segs[row.sample]) or any(number >= len(conditions[sample]) for sample, number in row.classes):
            raise SpanError("seg_index", f"sample {row.sample}: its states lack <SEG> {row.seg} or a condition of it")
    device = background.device
    starts = [0]
    for values in conditions:
        starts.append(starts[-1] + len(values))
    padding, width = starts[-1], max(len(row.classes) for row in rows)
    places = [[starts[sample] + number for sample, number in row.classes] for row in rows]
    index = torch.tensor([row + [padding] * (width - len(row)) for row in places], dtype=torch.int64, device=device)
    last = torch.full((len(rows), 1), padding + 1, dtype=torch.int64, device=device)
    index = torch.cat([index.view(len(rows), width), last], dim=1)
    # float32 beside float16, which has no such number
    table = torch.cat([*conditions, background.float() - PADDING, background])
    return RowVectors(
        conditions=table[index],
        mask=index != padding,
        segs=torch.stack([segs[row.sample][row.seg] for row in rows]),
        samples=torch.tensor([row.sample for row in rows], dtype=torch.int64, device=device),
    )
