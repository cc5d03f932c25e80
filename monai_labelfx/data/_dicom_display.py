# SPDX-License-Identifier: Apache-2.0
"""Lookup tables, windows and palettes of DICOM images (PS3.3 C.7.6.3, C.11.1, C.11.2), as functions of arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_labelfx.data._reading import ImageFileError

if TYPE_CHECKING:
    from pydicom import Dataset

_HINT = "read it with display=False to get the values without it"


@dataclass(frozen=True, slots=True)
class LookupTable:
    """``entries[0]`` belongs to the input value ``first`` and all below it, the last entry to all above."""

    first: int
    entries: np.ndarray

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The entries for ``values``, which are rounded to whole numbers first."""
        whole = np.rint(values) if values.dtype.kind == "f" else values
        return self.entries[np.clip(whole.astype(np.int64) - self.first, 0, len(self.entries) - 1)]


def lookup_table(descriptor: Any, data: Any, path: str, *, signed: bool, little_endian: bool) -> LookupTable:
    """A table from a LUT Descriptor (number of entries, first input value, bits) and LUT Data (PS3.3 C.11.1.1).

    pydicom's own functions are not used because they fail on tables of 12 bits, on tables packed two entries to a word,
    and on inputs whose difference to the first value leaves the integer type.

    Args:
        descriptor: as pydicom gives it; 0 entries mean 65536, and the second number may carry the wrong sign.
        data: bytes or whole numbers, as pydicom gives it.
        path: the file, for messages.
        signed: whether input values can be negative, which decides how the second number is understood.
        little_endian: the byte order of ``data`` where it is bytes.
    """
    try:
        count, first, bits = (int(number) for number in descriptor)
        count = count % 65536 or 65536
        if isinstance(data, bytes):
            one_byte = len(data) in (count, count + 1) and count > 1
            dtype = "u1" if one_byte else "<u2" if little_endian else ">u2"
            entries = np.frombuffer(data[: len(data) // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize], dtype)
        else:
            entries = np.atleast_1d(np.array(data, dtype=np.int64)).astype("<u2")
            if bits <= 8 and len(entries) == (count + 1) // 2 < count:
                entries = entries.view("u1")
    except (TypeError, ValueError, OverflowError):
        raise ImageFileError(
            f"image file {path!r} has a lookup table that cannot be used, expected a descriptor of three whole numbers "
            "and its data"
        ) from None
    if len(entries) < count or not 1 <= bits <= 16:
        raise ImageFileError(
            f"image file {path!r} has a lookup table of {len(entries)} entries of {bits} bits, expected {count} "
            "entries of at most 16 bits"
        )
    return LookupTable(_with_sign(first, signed), entries[:count].astype(entries.dtype.newbyteorder("=")))


def _with_sign(number: int, signed: bool) -> int:
    """A 16-bit number whose sign may have been lost or invented on the way."""
    return (number + 32768) % 65536 - 32768 if signed else number % 65536


def windowed(
    values: np.ndarray, center: float, width: float, function: str, limits: tuple[float, float], path: str
) -> np.ndarray:
    """Float64 ``values`` through a window onto ``limits`` (PS3.3 C.11.2.1.2 and C.11.2.1.3); may work in place.

    Args:
        values: after the modality transform.
        center: in units of ``values``.
        width: in units of ``values``; at least 1 for LINEAR, else above 0.
        function: "LINEAR", "LINEAR_EXACT" or "SIGMOID".
        limits: the output at the lower and upper end.
        path: the file, for messages.
    """
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ImageFileError(
            f"image file {path!r} names a VOILUTFunction that is not LINEAR, LINEAR_EXACT or SIGMOID; {_HINT}"
        )
    if not (math.isfinite(center) and 0 < width < math.inf and (width >= 1 or function != "LINEAR")):
        raise ImageFileError(
            f"image file {path!r} has a {function} window of center {center:g} and width {width:g}, which is not "
            f"possible; {_HINT}"
        )
    low, high = limits
    if function == "SIGMOID":
        with np.errstate(over="ignore"):  # far below the center exp is infinite and the quotient 0, as it should be
            return (high - low) / (1.0 + np.exp(-4.0 * (values - center) / width)) + low
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    if width == 0:
        return np.where(values > center, high, low)
    values -= center
    values /= width
    values += 0.5
    np.clip(values, 0.0, 1.0, out=values)
    values *= high - low
    values += low
    return values


def palette_colours(
    indices: np.ndarray, dataset: Dataset, path: str, *, signed: bool, little_endian: bool
) -> np.ndarray:
    """Stored values (rows, columns) of a PALETTE COLOR image as RGB (rows, columns, 3), of its tables' type."""
    from pydicom.pixels import apply_color_lut

    name = "PaletteColorLookupTable"
    if f"SegmentedRed{name}Data" in dataset and f"Red{name}Data" not in dataset:
        count, first, _ = dataset[f"Red{name}Descriptor"].value
        inputs = np.arange(count or 65536) + np.int64(first)
        expanded = apply_color_lut(inputs, dataset)  # pydicom expands the segments; the mapping is ours
        tables = [LookupTable(_with_sign(first, signed), column) for column in expanded.T[:3]]
    else:
        pairs = [
            (dataset.get(f"{colour}{name}Descriptor"), dataset.get(f"{colour}{name}Data"))
            for colour in ("Red", "Green", "Blue")
        ]
        tables = [lookup_table(*pair, path, signed=signed, little_endian=little_endian) for pair in pairs]
    return np.stack([table(indices) for table in tables], axis=-1)
