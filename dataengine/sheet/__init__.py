"""Contact sheets: pictures with masks and prompts, and conversations whose phrases are coloured like their masks.

A card is a column of blocks: header, picture, legend, turns. Everything in a sample may be odd; what cannot be shown
is replaced by a place that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dataengine.sample import Sample
from dataengine.sheet.conversation import header_lines, turn_blocks
from dataengine.sheet.look import CARD, MARGIN, PAPER
from dataengine.sheet.marks import legend_of
from dataengine.sheet.picture import picture_block
from dataengine.sheet.text import text_block

if TYPE_CHECKING:
    from PIL import Image as Pillow


def contact_sheet(samples: Sequence[Sample], *, columns: int = 2, tile_px: int = 560) -> Pillow.Image:
    """One picture with a card for each sample.

    Masks are tinted in the colour of their condition, with which its phrase is written; smaller objects lie on larger
    ones, and an object of several conditions is striped. Prompts are those of the objects that regions show. Crowds
    are hatched, ignored pixels cross-hatched. A picture that cannot be shown becomes a grey place that says why.

    Args:
        columns: cards side by side; a card goes where the column is shortest. tile_px: width of a card's content.
    Returns:
        RGB; the same samples give the same pixels.
    """
    from PIL import Image as Pillow

    cards = [_card(sample, tile_px) for sample in samples]
    bottoms = [MARGIN] * max(1, min(columns, len(cards)))
    places = []
    for card in cards:
        column = bottoms.index(min(bottoms))
        places.append((MARGIN + column * (tile_px + 3 * MARGIN), bottoms[column]))
        bottoms[column] += card.height + MARGIN
    sheet = Pillow.new("RGB", (len(bottoms) * (tile_px + 3 * MARGIN) + MARGIN, max(bottoms)), PAPER)
    for card, place in zip(cards, places, strict=True):
        sheet.paste(card, place)
    return sheet


def _card(sample: Sample, width: int) -> Pillow.Image:
    from PIL import Image as Pillow

    blocks = [text_block(header_lines(sample, width), width)]
    if sample.image is not None:
        blocks += [picture_block(sample, width)]
        legend = legend_of(sample, width)
        blocks += [legend] if legend else []
    blocks += turn_blocks(sample, width)
    gap = MARGIN * 5 // 8
    card = Pillow.new("RGB", (width + 2 * MARGIN, 2 * MARGIN - gap + sum(b.height + gap for b in blocks)), CARD)
    y = MARGIN
    for block in blocks:
        card.paste(block, (MARGIN, y))
        y += block.height + gap
    return card
