"""What samples with categories ask for: which of them, in what order, and the objects that each is to find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from dataengine.builder import Context
from dataengine.keyed import keyed
from dataengine.sample import Condition, Sample


def names_of(context: Context) -> dict[int, str]:
    """How each category is written in a conversation, by id."""
    return {category.id: category.text for category in context.categories}


def targets_of(base: Sample) -> list[int]:
    """Indices of the objects that a condition may name."""
    return [i for i, thing in enumerate(base.objects) if not thing.crowd]


def region_samples(context: Context, base: Sample, max_regions: int) -> list[Sample]:
    """The samples of a picture that show regions: one a category, in `intseg` one an object; crowds have none.

    Args:
        base: the picture with its objects. max_regions: of one `intseg` sample.
    """
    names = names_of(context)
    if context.task == "intseg":
        return object_regions(base, names, max_regions)
    return category_regions(context, base, names)


def category_regions(context: Context, base: Sample, names: Mapping[int, str]) -> list[Sample]:
    """`vgdseg`: one region for each category that has a target, in random order; no sample where there is none."""
    present = sorted({base.objects[i].category_id for i in targets_of(base)})
    rng = keyed(context.seed, base.sample_id, "categories", context.version)
    chosen = rng.permutation(present).tolist()
    return [replace(base, conditions=_conditions(base, chosen, names, "region"))] if chosen else []


def object_regions(base: Sample, names: Mapping[int, str], max_regions: int) -> list[Sample]:
    """`intseg`: one region for each target, `max_regions` a sample; what a sample does not ask for is not in it."""
    targets = targets_of(base)
    chunks = [targets[at : at + max_regions] for at in range(0, len(targets), max_regions)]
    return [_interactive(base, chunk, names, number) for number, chunk in enumerate(chunks)]


def _interactive(base: Sample, chunk: Sequence[int], names: Mapping[int, str], number: int) -> Sample:
    objects = tuple(base.objects[i] for i in chunk)
    conditions = tuple(
        Condition(kind="region", text=names[thing.category_id], category_id=thing.category_id, objects=(i,), exemplar=i)
        for i, thing in enumerate(objects)
    )
    return replace(base, sample_id=f"{base.sample_id}/{number}", objects=objects, conditions=conditions)


def category_phrases(base: Sample, chosen: Sequence[int], names: Mapping[int, str]) -> Sample:
    """`genseg`, `ovseg`: the sample that asks for these categories, in this order."""
    return replace(base, conditions=_conditions(base, chosen, names, "phrase"))


def _conditions(
    base: Sample, chosen: Sequence[int], names: Mapping[int, str], kind: Literal["phrase", "region"]
) -> tuple[Condition, ...]:
    """One condition for each category, with its targets."""
    by_category: dict[int, list[int]] = {}
    for i in targets_of(base):
        by_category.setdefault(base.objects[i].category_id, []).append(i)
    return tuple(
        Condition(kind=kind, text=names[c], category_id=c, objects=tuple(by_category.get(c, ()))) for c in chosen
    )


def ask_for_categories(context: Context, base: Sample, every: Sequence[int] | None = None) -> Sample:
    """The sample with one phrase for each category chosen, as the options `categories` and `max_negatives` say.

    `auto` is `sampled` in splits named train…, `all` elsewhere and in `ovseg`.

    Args:
        base: with its objects and its final id. every: ids to choose from, ascending; by default all of the source.
    """
    mode: str = context.options.categories
    if mode == "auto":
        mode = "sampled" if context.task != "ovseg" and context.part.split.startswith("train") else "all"
    chosen = choose_categories(
        {base.objects[i].category_id for i in targets_of(base)},
        [c.id for c in context.categories] if every is None else every,
        mode,
        context.options.max_negatives,
        keyed(context.seed, base.sample_id, "categories", context.version),
    )
    return category_phrases(base, chosen, names_of(context))


def choose_categories(
    present: set[int], every: Sequence[int], mode: str, max_negatives: int, rng: np.random.Generator
) -> list[int]:
    """Category ids to ask for in one sample, in the order of the question.

    `sampled` is X-SAM's training rule ("full & variant"): with probability 1/2 the positives and U{0..n} of the n
    absent categories, else all; shuffled. Where a picture has no positives, at least one negative is asked for.

    Args:
        present: ids with an object in the picture. every: all ids, ascending.
        max_negatives: upper bound of the negatives in a sampled list; -1 for none.
    """
    absent = [c for c in every if c not in present]
    if mode == "all" or (mode == "positives" and not present):
        return list(every)
    positives = sorted(present)
    if mode == "positives":
        return positives
    if max_negatives < 0 and rng.random() >= 0.5:
        return [int(c) for c in rng.permutation(np.array(every))]
    most = len(absent) if max_negatives < 0 else min(len(absent), max_negatives)
    number = int(rng.integers(0 if positives else min(1, most), most + 1))
    negatives = rng.permutation(np.array(absent, dtype=np.int64))[:number].tolist()
    return [int(c) for c in rng.permutation(np.array(positives + negatives, dtype=np.int64))]
