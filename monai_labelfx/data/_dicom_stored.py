# SPDX-License-Identifier: Apache-2.0
"""The stored values of one frame of a DICOM dataset: layout and length checked, decoded, unused bits removed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_labelfx.data._dicom_codecs import (
    CODECS,
    check_codestream,
    check_decodable,
    decoder_of,
    syntax_name,
    transfer_syntax,
)
from monai_labelfx.data._dicom_display import palette_colours
from monai_labelfx.data._reading import ImageFileError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

_PACKED_RATIO = 1e5  # a constant picture compresses this well; more is a broken header
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the pixels of a dataset are stored; ``high`` is the position of the highest stored bit."""

    keyword: str
    syntax: UID
    rows: int
    columns: int
    samples: int
    frames: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest value that the stored bits can hold."""
        half = 1 << (self.stored - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)


def layout_of(dataset: Dataset, path: str) -> Layout:
    """The layout, checked against the bytes there before anything is allocated."""
    keyword = next((k for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if k in dataset), None)
    if keyword is None:
        raise ImageFileError(f"image file {path!r} holds no pixels (no PixelData), expected an image")
    whole = keyword == "PixelData"
    allocated = _count(dataset, "BitsAllocated", path) if whole else 32 if keyword == "FloatPixelData" else 64
    stored = _count(dataset, "BitsStored", path) if whole else allocated
    layout = Layout(
        keyword=keyword,
        syntax=transfer_syntax(dataset),
        rows=_count(dataset, "Rows", path),
        columns=_count(dataset, "Columns", path),
        samples=_count(dataset, "SamplesPerPixel", path, default=1),
        frames=_count(dataset, "NumberOfFrames", path, default=1) or 1,
        allocated=allocated,
        stored=stored,
        high=_count(dataset, "HighBit", path, default=stored - 1) if whole else stored - 1,
        signed=whole and _count(dataset, "PixelRepresentation", path) == 1,
        photometric=str(dataset.get("PhotometricInterpretation") or ""),
    )
    if whole and (allocated not in (1, 8, 16, 32) or not 1 <= stored <= layout.high + 1 <= allocated):
        raise ImageFileError(
            f"image file {path!r} has BitsAllocated {allocated}, BitsStored {stored} and HighBit {layout.high}, "
            "expected 1, 8, 16 or 32 bits allocated that hold the stored bits"
        )
    if layout.rows == 0 or layout.columns == 0:
        raise ImageFileError(
            f"image file {path!r} has {layout.rows} rows and {layout.columns} columns, expected at least one pixel"
        )
    expected = _COLOURS if layout.samples == 3 else (*_MONOCHROME, "PALETTE COLOR", "")
    if layout.samples not in (1, 3) or layout.photometric not in expected:
        raise ImageFileError(
            f"image file {path!r} has {layout.samples} samples per pixel and another PhotometricInterpretation than is "
            f"possible here, expected 1 ({', '.join(_MONOCHROME)}, PALETTE COLOR) or 3 ({', '.join(_COLOURS)})"
        )
    _check_length(dataset, layout, path)
    return layout


def _count(dataset: Dataset, keyword: str, path: str, *, default: int | None = None) -> int:
    """A whole number of the header, at least 0."""
    try:
        value = dataset.get(keyword)
        number = default if has_no_value(value) else int(value)
    except Exception:  # pydicom raises all sorts on broken values, and its text would quote them
        number = None
    if number is None or number < 0:
        raise ImageFileError(f"image file {path!r} has no usable {keyword}, expected one whole number")
    return number


def has_no_value(value: Any) -> bool:
    """Whether an element is absent or has no value."""
    return value is None or (hasattr(value, "__len__") and len(value) == 0)


def finite_number(value: Any, keyword: str, path: str) -> float:
    """One number of the header, or a sentence that names the keyword and not the text it may hold."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ImageFileError(f"image file {path!r} has no usable {keyword}, expected one finite number")
    return number


def _check_length(dataset: Dataset, layout: Layout, path: str) -> None:
    """Bytes beyond the announced frames are padding as long as they could not hold half a frame more.

    More of them mean a header that does not fit (8 for 16 bits, a lost NumberOfFrames, YBR_FULL named YBR_FULL_422).
    """
    found = len(dataset[layout.keyword].value or b"")
    samples = layout.rows * layout.columns * layout.samples
    if layout.syntax.is_encapsulated:
        if samples * layout.allocated / 8 > _PACKED_RATIO * found:
            raise ImageFileError(
                f"image file {path!r} has {found} bytes of compressed pixels, too few for {layout.rows} rows and "
                f"{layout.columns} columns"
            )
        return
    if layout.photometric == "YBR_FULL_422":
        samples = samples * 2 // 3
    expected = math.ceil(samples * layout.frames * layout.allocated / 8)
    if not expected <= found <= expected + max(samples * layout.allocated // 16 - 1, 1):
        raise ImageFileError(
            f"image file {path!r} has {found} bytes of pixels, expected {expected} for {layout.frames} frame(s) of "
            f"{layout.rows} rows and {layout.columns} columns (truncated, or the header is wrong)"
        )


def frame_container(dataset: Dataset, index: int | None, layout: Layout, path: str) -> np.ndarray:
    """Grey values with their unused bits, (rows, columns), maybe read-only; colour as final RGB (rows, columns, 3)."""
    frame = index or 0
    if not 0 <= frame < layout.frames or (index is None and layout.frames > 1):
        wanted = "a single-frame image" if index is None else f"one with the frame {index} (counted from 0)"
        raise ImageFileError(f"image file {path!r} has {layout.frames} frame(s), expected {wanted}")
    grey = layout.samples == 1 and layout.photometric != "PALETTE COLOR"
    # other cases need pydicom: packed bits, bytes swapped within words, colour, codecs
    direct = layout.allocated > 8 or (layout.allocated == 8 and layout.syntax.is_little_endian)
    if not (grey and direct and not layout.syntax.is_encapsulated):
        return _decoded(dataset, frame, layout, path)
    kind = "f" if layout.keyword != "PixelData" else "i" if layout.signed else "u"
    dtype = np.dtype(f"{'<' if layout.syntax.is_little_endian else '>'}{kind}{layout.allocated // 8}")
    count = layout.rows * layout.columns
    array = np.frombuffer(dataset[layout.keyword].value, dtype, count, frame * count * dtype.itemsize)
    return array.reshape(layout.rows, layout.columns).astype(dtype.newbyteorder("="), copy=False)


def _decoded(dataset: Dataset, frame: int, layout: Layout, path: str) -> np.ndarray:
    check_decodable(dataset, path)
    if layout.syntax.is_encapsulated:
        check_codestream(dataset, frame, layout.frames, (layout.rows, layout.columns), path)
    options: dict[str, Any] = {"correct_unused_bits": False, "allow_excess_frames": False}
    try:
        array, found = decoder_of(layout.syntax).as_array(dataset, index=frame, **options)
    except Exception as error:  # codecs raise all sorts of exceptions on corrupt bytes
        reason = " ".join(str(error).rpartition("all available plugins:")[2].split())[:200]
        advice = f"or decodable only with {CODECS}" if layout.syntax.is_encapsulated else "or the header is wrong"
        raise ImageFileError(
            f"image file {path!r} ({syntax_name(layout.syntax)}) has pixels that cannot be decoded (corrupt, "
            f"{advice}): {reason}"
        ) from None
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    photometric = found["photometric_interpretation"]
    if layout.samples == 3 and photometric != "RGB":
        raise ImageFileError(f"image file {path!r} has colours that pydicom cannot convert to RGB")
    if photometric == "PALETTE COLOR":
        array, little_endian = without_unused_bits(array, layout), layout.syntax.is_little_endian
        return palette_colours(array, dataset, path, signed=layout.signed, little_endian=little_endian)
    return without_unused_bits(array, layout) if layout.samples == 3 else array


def without_unused_bits(array: np.ndarray, layout: Layout) -> np.ndarray:
    """Without what is stored outside BitsStored (old overlays), and with the sign of the highest stored bit."""
    from pydicom.uid import RLELossless

    width = 8 * array.dtype.itemsize
    if array.dtype.kind == "f" or layout.stored >= width or layout.allocated == 1:
        return array
    # all codecs but RLE give right-justified values whatever HighBit says
    justified = layout.syntax.is_encapsulated and layout.syntax != RLELossless
    up = width - (layout.stored if justified else layout.high + 1)
    return (array << up if up else array) >> (width - layout.stored)
