# SPDX-License-Identifier: Apache-2.0
"""Names beside boxes, none of them over another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from monai_labelfx.visualize._pictures import clip_text

_INK, _PALE_INK = (0, 0, 0), (255, 255, 255)
_DARK = 105  # brightness below which black is not legible; all plain class colours are above
_Place = tuple[int, int, int, int]  # left, top, and one after right and bottom


def write_captions(draw: Any, captions: Sequence[tuple[Any, Any, str]], size: tuple[int, int], used: Any) -> None:
    """Write texts beside boxes, on their colours, where they hide least of the other boxes.

    What finds no room beside those before it is left out.

    Args:
        draw: of Pillow.
        captions: ((left, top, right, bottom) of the box, colour, text), the most important one first.
        size: (width, height) of the picture.
        used: the font.
    """
    taken: list[_Place] = []
    tall = used.size + 2
    boxes = [(left, top, right + 1, bottom + 1) for (left, top, right, bottom), _, _ in captions]
    for number, (box, colour, text) in enumerate(captions):
        text = clip_text(text, size[0] - 4, used)
        long = math.ceil(used.getlength(text)) + 4
        others = boxes[:number] + boxes[number + 1 :]
        places = _places(box, (long, tall), size)
        free = [place for place in places if not any(_shared(place, other) for other in taken)]
        if free:
            left, top, right, bottom = best = min(free, key=lambda place: sum(_hidden(place, box) for box in others))
            taken.append(best)
            draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
            bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
            draw.text((left + 2, top), text, fill=_PALE_INK if bright < _DARK else _INK, font=used)


def _places(box: _Place, text: tuple[int, int], size: tuple[int, int]) -> list[_Place]:
    """Above the box or, where there is no room, at its top inside; and below it; from its left or to its right side."""
    left, top, right, bottom = box
    long, tall = text
    heights = [top - tall if top >= tall else min(top + 1, max(0, size[1] - tall))]
    if bottom + tall < size[1]:
        heights.append(bottom + 1)
    starts = [max(0, min(start, size[0] - long)) for start in (left, right - long + 1)]
    return [(start, height, start + long, height + tall) for height in heights for start in starts]


def _shared(one: _Place, other: _Place) -> int:
    """Pixels that both have."""
    width, height = (min(one[a + 2], other[a + 2]) - max(one[a], other[a]) for a in (0, 1))
    return max(width, 0) * max(height, 0)


def _hidden(place: _Place, box: _Place) -> float:
    """Share of a box below a caption."""
    return _shared(place, box) / max((box[2] - box[0]) * (box[3] - box[1]), 1)
