"""Batches: conversations side by side with a true attention mask, and their expansion into embeddings.

Padding stands at the right. Rows of the segmentor and their targets are planned here (`spans.plan_rows`), so that what
a batch mixes, text without picture among it, never shifts one against the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from model.inputs import Inputs
from model.pictures import Picture
from model.regions import Draws, RegionError, swap_prompts
from model.spans import Row, plan_rows
from model.words import IGNORED, IMAGE_ID, NONE, REGION_ID, WordsError

PAD_ID = 0  # of the reference, not the tokenizer's; never seen by a model that heeds the mask


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTargets:
    """What a row should say. labels: (T,) int64, indices of its classes. rles: T COCO counts on a canvas of `size`."""

    labels: torch.Tensor
    rles: tuple[bytes, ...]
    size: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """B inputs together.

    input_ids, labels, cond_ids, seg_ids: (B, L) int64, before expansion; L is 0 in stage 1. attention_mask: (B, L)
    bool, False where padded. pixel_values: (I, 3, image_px, image_px) uint8 of the pictures of the batch, each once,
    None in stage 1 and without pictures. seg_pixel_values: (J, 3, seg_px, seg_px) uint8, J >= I: the same, then those
    that only prompts are on; None without pictures. scaled_sizes: (J, 2) int64, height and width of each within its
    canvas, px. images: (B,) int64, each input's picture, or -1. region_masks:
    (P, seg_px, seg_px) bool. region_pictures, region_samples, region_numbers, region_labels: (P,) int64: the picture
    among J, the input, its `<region>`, the category's id or -1, of each prompt. rows, targets: of the segmentor, where
    answers are given. inputs: what it was made of.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    cond_ids: torch.Tensor
    seg_ids: torch.Tensor
    attention_mask: torch.Tensor
    pixel_values: torch.Tensor | None
    seg_pixel_values: torch.Tensor | None
    scaled_sizes: torch.Tensor
    images: torch.Tensor
    region_masks: torch.Tensor
    region_pictures: torch.Tensor
    region_samples: torch.Tensor
    region_numbers: torch.Tensor
    region_labels: torch.Tensor
    rows: tuple[Row, ...]
    targets: tuple[RowTargets, ...]
    inputs: tuple[Inputs, ...]

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on a device; targets and prompts stay where they are: of their masks only points
        are read, and where these lie is found without waiting for the device."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("region_")}
        moved: dict[str, Any] = {name: v.to(device) for name, v in values.items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """A batch as the language model takes it, all (B, M), embeds (B, M, D).

    Where padded: embeds 0, input_ids and labels -100, cond_ids and seg_ids -1, position_ids 0. Where pictures and
    regions are: IMAGE_ID and REGION_ID, without labels; a region has the number of the condition it stands in.
    """

    embeds: torch.Tensor
    input_ids: torch.Tensor
    labels: torch.Tensor
    cond_ids: torch.Tensor
    seg_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor


def collate(inputs: Sequence[Inputs], *, is_shared: bool = True) -> Batch:
    """Puts inputs together.

    Args:
        is_shared: whether phrases of referring tasks are told from those of the whole batch; see `spans.plan_rows`.
    Raises:
        ValueError: there are none, or some are of stage 1 and some are not.
    """
    if not inputs:
        raise ValueError("a batch needs an input")
    is_stage_1 = not len(inputs[0].words.input_ids)
    if any((not len(i.words.input_ids)) != is_stage_1 for i in inputs):
        raise ValueError("inputs of stage 1 and of a language model do not go together")
    own = _numbered(i.picture for i in inputs)
    every = _numbered([*(i.picture for i in inputs), *(picture for i in inputs for picture in i.references)])
    by_id = {id(p): p for i in inputs for p in (i.picture, *i.references) if p is not None}
    shown = [(number, prompt) for number, i in enumerate(inputs) for prompt in i.shown]
    places = [every[id(inputs[n].picture if p.picture < 0 else inputs[n].references[p.picture])] for n, p in shown]
    rows = _rows_of_stage_1(len(inputs)) if is_stage_1 else plan_rows([i.spans for i in inputs], is_shared=is_shared)
    seen = [by_id[key].pixel_values for key in own]
    seg_pixels = [by_id[key].seg_pixel_values for key in every]
    canvas = seg_pixels[0].shape[-2:] if seg_pixels else torch.Size((0, 0))
    words = [i.words for i in inputs]
    return Batch(
        input_ids=_padded([w.input_ids for w in words], PAD_ID),
        labels=_padded([w.labels for w in words], IGNORED),
        cond_ids=_padded([w.cond_ids for w in words], NONE),
        seg_ids=_padded([w.seg_ids for w in words], NONE),
        attention_mask=_padded([torch.ones_like(w.input_ids, dtype=torch.bool) for w in words], False),
        pixel_values=torch.stack([p for p in seen if p is not None]) if seen and seen[0] is not None else None,
        seg_pixel_values=torch.stack(seg_pixels) if seg_pixels else None,
        scaled_sizes=_integers([by_id[key].scaled_size for key in every]).view(-1, 2),
        images=_integers([-1 if i.picture is None else own[id(i.picture)] for i in inputs]),
        region_masks=torch.stack([p.mask for _, p in shown]) if shown else torch.zeros(0, *canvas, dtype=torch.bool),
        region_pictures=_integers(places),
        region_samples=_integers([number for number, _ in shown]),
        region_numbers=_integers([p.region for _, p in shown]),
        region_labels=_integers([p.label for _, p in shown]),
        rows=tuple(rows),
        targets=tuple(_targets_of(row, inputs, is_stage_1) for row in rows),
        inputs=tuple(inputs),
    )


def swap(batch: Batch, draws: Draws) -> Batch:
    """The batch with each region shown by an instance of its category from anywhere in the batch, as in training.

    A category without instance is shown by one that its picture does not have; where there is none, the region has no
    prompt, and `region_tokens` gives zeros. Make the inputs with `every_instance`, or only exemplars are swapped.
    """
    samples, labels = batch.region_samples.tolist(), batch.region_labels.tolist()
    numbers = batch.region_numbers.tolist()
    prompts = [[p for p, sample in enumerate(samples) if sample == n] for n in range(len(batch.inputs))]
    wanted = [{numbers[p]: labels[p] for p in mine} for mine in prompts]
    chosen = swap_prompts([[labels[p] for p in mine] for mine in prompts], [list(w.values()) for w in wanted], draws)
    picks = [
        (sample, region, prompts[place[0]][place[1]])
        for sample, row in enumerate(chosen)
        for region, place in zip(wanted[sample], row, strict=True)
        if place is not None
    ]
    index = _integers([pick for *_, pick in picks])
    return replace(
        batch,
        region_masks=batch.region_masks[index],
        region_pictures=batch.region_pictures[index],
        region_labels=batch.region_labels[index],
        region_samples=_integers([sample for sample, *_ in picks]),
        region_numbers=_integers([region for _, region, _ in picks]),
    )


def region_tokens(batch: Batch, sampled: torch.Tensor) -> list[torch.Tensor]:
    """Tokens of each input's `<region>`s: means over the prompts that show one, zeros where none does.

    Args:
        sampled: (P, T, D), of `regions.RegionSampler` for the batch's prompts.
    Returns:
        (K, T, D) for each input.
    """
    found = []
    samples, numbers = batch.region_samples, batch.region_numbers
    for sample, inputs in enumerate(batch.inputs):
        mine = (samples == sample).nonzero()[:, 0]
        wanted = torch.arange(int((inputs.words.input_ids == REGION_ID).sum()))
        members = (wanted[:, None] == numbers[mine]).to(sampled.device, sampled.dtype)
        sums = torch.einsum("kp,ptd->ktd", members, sampled[mine.to(sampled.device)])
        found.append(sums / members.sum(1).clamp(min=1)[:, None, None])
    return found


def assemble(
    embed: Callable[[torch.Tensor], torch.Tensor],
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    cond_ids: torch.Tensor,
    seg_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    images: Sequence[torch.Tensor | None],
    regions: Sequence[torch.Tensor | None],
) -> Assembled:
    """Pseudo ids replaced by what they stand for, and everything else aligned with it.

    Args:
        embed: ids (N,) to vectors (N, D).
        input_ids, labels, cond_ids, seg_ids, attention_mask: (B, L); what the mask leaves out is dropped.
        images: of each input, (V, D), image tokens and then segmentation tokens, or None.
        regions: of each input, (K, T, D), or None.
    Raises:
        WordsError: `image_marker`: an input does not have one `<image>` with its picture, or has one without.
        RegionError: `region_prompt`: an input has not as many `<region>` as region tokens.
    """
    device, pieces = input_ids.device, []
    # everything about ids is settled on the CPU: one wait for the device, however many inputs there are
    every = torch.stack([input_ids, labels, cond_ids, seg_ids, attention_mask.long()], 1).cpu()
    for number, (image, region) in enumerate(zip(images, regions, strict=True)):
        lines = every[number, :-1, every[number, -1] > 0]
        ids = lines[0]
        _check_markers(number, ids, image, region)
        repeats = torch.ones_like(ids)
        if image is not None:
            repeats[ids == IMAGE_ID] = len(image)
        if region is not None:
            repeats[ids == REGION_ID] = region.shape[1]
        pieces.append(lines.repeat_interleave(repeats, dim=1))
    lines = pad_sequence([piece.T for piece in pieces], batch_first=True, padding_value=IGNORED)
    mask = _padded([torch.ones_like(piece[0], dtype=torch.bool) for piece in pieces], False)
    ids, new_labels, new_conds, new_segs = lines.unbind(-1)
    is_text = (ids >= 0) & mask
    text = embed(ids[is_text].to(device))
    embeds = text.new_zeros(ids.numel(), text.shape[-1])
    embeds[_places(is_text, device)] = text
    for id, values in ((IMAGE_ID, images), (REGION_ID, regions)):
        given = [value.flatten(0, -2) for value in values if value is not None]
        if given:
            embeds[_places(ids == id, device)] = torch.cat(given).to(embeds.dtype)
    return Assembled(
        embeds=embeds.view(*ids.shape, -1),
        input_ids=ids.to(device),
        labels=new_labels.masked_fill(~is_text, IGNORED).to(device),
        cond_ids=new_conds.masked_fill(~mask | (ids == IMAGE_ID), NONE).to(device),
        seg_ids=new_segs.masked_fill(~is_text, NONE).to(device),
        attention_mask=mask.to(device),
        position_ids=(torch.arange(ids.shape[1]).expand_as(ids) * mask).to(device),
    )


def _places(chosen: torch.Tensor, device: torch.device) -> torch.Tensor:
    """(n,) int64: where a mask is True, counted row by row."""
    return chosen.flatten().nonzero()[:, 0].to(device)


def _check_markers(number: int, ids: torch.Tensor, image: torch.Tensor | None, region: torch.Tensor | None) -> None:
    num_images, num_regions = int((ids == IMAGE_ID).sum()), int((ids == REGION_ID).sum())
    if num_images != (image is not None):
        given = "a picture" if image is not None else "no picture"
        raise WordsError("image_marker", f"input {number} has {num_images} <image> and {given}")
    if num_regions != (0 if region is None else len(region)):
        raise RegionError("region_prompt", f"input {number}: {num_regions} <region> without as many visual prompts")


def _targets_of(row: Row, inputs: Sequence[Inputs], is_stage_1: bool) -> RowTargets:
    found = inputs[row.sample]
    size = (0, 0) if found.picture is None else tuple(found.picture.seg_pixel_values.shape[-2:])
    if is_stage_1:
        labels = [(target.condition, target.rle) for target in found.targets]
    else:
        asked = enumerate(row.classes) if row.own is None else ((row.own, row.classes[row.own]),)
        wanted = {condition: label for label, (_, condition) in asked}
        labels = [(wanted[t.condition], t.rle) for t in found.targets if t.condition in wanted]
    return RowTargets(
        labels=_integers([label for label, _ in labels]),
        rles=tuple(rle for _, rle in labels),
        size=(size[0], size[1]),
    )


def _rows_of_stage_1(number: int) -> list[Row]:
    return [Row(sample=sample, seg=0, classes=()) for sample in range(number)]


def _numbered(pictures: Iterable[Picture | None]) -> dict[int, int]:
    """Pictures by identity, numbered in the order in which they come."""
    keys = dict.fromkeys(id(picture) for picture in pictures if picture is not None)
    return {key: number for number, key in enumerate(keys)}


def _padded(values: list[torch.Tensor], filler: int) -> torch.Tensor:
    return pad_sequence(values, batch_first=True, padding_value=filler)


def _integers(values: Sequence[int] | Sequence[tuple[int, int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)
