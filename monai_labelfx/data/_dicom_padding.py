# SPDX-License-Identifier: Apache-2.0
"""Pixel padding: the stored values that mean "no image here" (PS3.3 C.7.5.1.1.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from monai_labelfx.data._dicom_stored import Layout, finite_number, has_no_value

if TYPE_CHECKING:
    from pydicom import Dataset


@dataclass(frozen=True, slots=True)
class Padding:
    """All stored values from ``low`` to ``high``, both included."""

    low: float
    high: float

    def within(self, stored: np.ndarray) -> np.ndarray:
        """The mask of the padded pixels."""
        if self.low == self.high:
            return stored == self.low
        return (stored >= self.low) & (stored <= self.high)

    def exceeds(self, limits: tuple[int, int]) -> bool:
        """Whether it is wider than the stored bits."""
        return self.low < limits[0] or self.high > limits[1]


def padding_of(dataset: Dataset, layout: Layout, path: str) -> Padding | None:
    """The padding that a file names, None where it names none.

    Raises:
        ImageFileError: the padding is no number.
    """
    prefix = layout.keyword.removesuffix("PixelData")
    ends = []
    for keyword in (f"{prefix}PixelPaddingValue", f"{prefix}PixelPaddingRangeLimit"):
        value = dataset.get(keyword)
        if has_no_value(value):
            break
        number = finite_number(value, keyword, path)
        ends.append(number if prefix else _as_stored(int(number), layout))
    return Padding(min(ends), max(ends)) if ends else None


def _as_stored(number: int, layout: Layout) -> int:
    """A padding value as the pixels hold it: files write it with either sign, and with or without the unused bits."""
    bits, half = 1 << layout.allocated, 1 << (layout.allocated - 1)
    if not -half <= number < bits:
        return number  # no pixel can have it
    number = (number + half) % bits - half if layout.signed else number % bits
    number >>= layout.high + 1 - layout.stored
    if layout.signed and layout.limits[1] < number < 1 << layout.stored:
        number -= 1 << layout.stored
    return number
