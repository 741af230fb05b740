"""Which categories a sample of `genseg` or `ovseg` asks for, in what order, and what each of them is to find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dataengine.builder import Context
from dataengine.keyed import keyed
from dataengine.sample import Condition, Object, Sample


def ask_for_categories(context: Context, base: Sample, version: int, every: Sequence[int] | None = None) -> Sample:
    """The sample with one condition for each category chosen, as the options `categories` and `max_negatives` say.

    `auto` is `sampled` in splits named train…, `all` elsewhere and in `ovseg`.

    Args:
        base: with its objects and its final id. version: of the builder, for the draw.
        every: ids to choose from, ascending; all categories of the source by default.
    """
    targets = [i for i, thing in enumerate(base.objects) if not thing.crowd]
    present = {base.objects[i].category_id for i in targets}
    rng = keyed(context.seed, base.sample_id, "categories", version)
    chosen = choose_categories(
        present,
        [c.id for c in context.categories] if every is None else every,
        _mode(context),
        context.options.max_negatives,
        rng,
    )
    names = {c.id: c.text for c in context.categories}
    conditions = tuple(
        Condition(kind="phrase", text=names[c], category_id=c, objects=of_category(base.objects, targets, c))
        for c in chosen
    )
    return replace(base, conditions=conditions)


def of_category(objects: Sequence[Object], targets: Sequence[int], category: int) -> tuple[int, ...]:
    """Those of the target objects that belong to a category."""
    return tuple(i for i in targets if objects[i].category_id == category)


def _mode(context: Context) -> str:
    mode: str = context.options.categories
    if mode != "auto":
        return mode
    return "sampled" if context.task != "ovseg" and context.part.split.startswith("train") else "all"


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
