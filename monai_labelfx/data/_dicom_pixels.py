# SPDX-License-Identifier: Apache-2.0
"""From one frame of a DICOM dataset to its values: modality transform, display of projection X-ray, padding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_labelfx.data._dicom_codecs import check_decodable
from monai_labelfx.data._dicom_display import LookupTable, lookup_table, windowed
from monai_labelfx.data._dicom_padding import Padding, padding_of
from monai_labelfx.data._dicom_stored import (
    Layout,
    finite_number,
    frame_container,
    has_no_value,
    layout_of,
    without_unused_bits,
)
from monai_labelfx.data._reading import ImageFileError

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["FrameValues", "check_decodable", "frame_values", "functional", "is_projection", "stored_values"]

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_PROJECTIONS = ("CR", "DX", "MG", "IO", "PX", "RG", "XA", "RF")
_PROJECTION_ENDS = ("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1", "12.1", "12.1.1", "12.2", "12.2.1", "12.3")
_PROJECTION_CLASSES = tuple(_STORAGE + end for end in (*_PROJECTION_ENDS, "13.1.4", "13.1.5"))
# cone-beam CT, 3-D angiography and tomosynthesis are volumes although their Modality may be XA, DX or MG
_VOLUME_CLASSES = tuple(_STORAGE + end for end in ("2", "2.1", "2.2", "13.1.1", "13.1.2", "13.1.3"))
_ANGIOGRAPHY_CLASSES = tuple(_STORAGE + end for end in ("12.1", "12.2", "12.3"))


@dataclass(frozen=True, slots=True)
class FrameValues:
    """The values of a frame.

    Attributes:
        array: (rows, columns) float32, float64 where stored integers exceed 24 bits; colour (rows, columns, 3) RGB as
            stored. A new array, except that colour may be read-only.
        kind: "rescaled" (HU and the like) or "display".
        padding: the value, or "low high", of padded pixels in ``array``; "" where the file names none.
    """

    array: np.ndarray
    kind: str
    padding: str


def functional(dataset: Dataset, index: int | None, sequence: str, keyword: str, default: Any = None) -> Any:
    """``keyword`` inside ``sequence`` of a frame (its own, then the shared functional groups), else at the top level.

    An empty value counts as absent. ``index`` is 0-based, None for a single-frame file.
    """
    if index is not None:
        own, shared = dataset.get("PerFrameFunctionalGroupsSequence"), dataset.get("SharedFunctionalGroupsSequence")
        for group in (own[index] if own and index < len(own) else None, shared[0] if shared else None):
            items = group.get(sequence) if group is not None else None
            value = items[0].get(keyword) if items else None
            if not has_no_value(value):
                return value
    value = dataset.get(keyword)
    return default if has_no_value(value) else value


def stored_values(dataset: Dataset, index: int | None, path: str) -> np.ndarray:
    """The stored values of a frame, (rows, columns), or of a colour image as RGB (rows, columns, 3).

    Bits outside BitsStored are removed, except from padding that the file puts there; the sign is that of
    PixelRepresentation. The array may be read-only.

    Args:
        dataset: with its pixels.
        index: 0-based frame, None for a single-frame file.
        path: the file, for messages.

    Raises:
        ImageFileError: truncated, undecodable or impossible pixels.
    """
    with _named(path):
        layout = layout_of(dataset, path)
        container = frame_container(dataset, index, layout, path)
        return container if container.ndim == 3 else _without_unused_bits(container, layout, dataset, path)[0]


def frame_values(
    dataset: Dataset, index: int | None, path: str, *, display: bool | None = None, padding_fill: float | None = None
) -> FrameValues:
    """The values of a frame: rescaled (HU and the like), or as they are to be displayed (projection X-ray).

    Rescaled values of whole slope and intercept are exact in float32 as far as it holds whole numbers (2^24); all
    others are computed in float64 and rounded once. For display the first VOI table or window follows, then MONOCHROME1
    is turned over within the range of the output, so that high means bright; padded pixels get the darkest value.

    Args:
        dataset: with its pixels.
        index: 0-based frame, None for a single-frame file.
        path: the file, for messages.
        display: whether to give display values; None: for projection X-ray only.
        padding_fill: padded pixels become this value, in units of the array; None: they are kept (display: darkest).

    Raises:
        ImageFileError: as :py:func:`stored_values`; unusable slope, intercept, table, window or padding.

    Notes:
        Of XA and RF the modality table is not part of the display: it leads back to X-ray intensity. Real-world value
        maps, presentation tables and overlays are not applied.
    """
    with _named(path):
        layout = layout_of(dataset, path)
        container = frame_container(dataset, index, layout, path)
        if container.ndim == 3:
            return FrameValues(container, "rescaled", "")
        display = is_projection(dataset) if display is None else display
        modality = _modality(dataset, index, layout, path, display=display)
        stored, padding = _without_unused_bits(container, layout, dataset, path)
        if display:
            array, darkest = _displayed(stored, modality, dataset, index, layout, path)
            padding_fill = darkest if padding_fill is None else padding_fill
        else:
            array = _rescaled(stored, modality, layout)
        if padding and padding_fill is not None:
            array[padding.within(stored)] = padding_fill
        text = _padding_text(padding, padding_fill, array.dtype, modality, layout) if padding else ""
        return FrameValues(array, "display" if display else "rescaled", text)


def _without_unused_bits(
    container: np.ndarray, layout: Layout, dataset: Dataset, path: str
) -> tuple[np.ndarray, Padding | None]:
    """Stored values and the padding; that may be wider than the stored bits."""
    stored = without_unused_bits(container, layout)
    padding = padding_of(dataset, layout, path)
    if padding and padding.exceeds(layout.limits):
        # it can only be found before the unused bits are removed, and would change its value
        stored = np.where(padding.within(container), container, stored)
    return stored, padding


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Errors of pydicom as one sentence that quotes nothing: broken values may be any text."""
    try:
        yield
    except ImageFileError:
        raise
    except Exception as error:
        raise ImageFileError(
            f"image file {path!r} has a value in its header that cannot be used ({type(error).__name__})"
        ) from None


def is_projection(dataset: Dataset) -> bool:
    """Whether an image is a projection X-ray, by its SOP class, else by its Modality."""
    sop_class = dataset.get("SOPClassUID")
    known = sop_class in _PROJECTION_CLASSES or dataset.get("Modality") in _PROJECTIONS
    return known and sop_class not in _VOLUME_CLASSES


def _modality(
    dataset: Dataset, index: int | None, layout: Layout, path: str, *, display: bool
) -> LookupTable | tuple[float, float]:
    """The modality transform: a table, or slope and intercept."""
    items = dataset.get("ModalityLUTSequence")
    if items and not (display and dataset.get("SOPClassUID") in _ANGIOGRAPHY_CLASSES):
        return _table(items[0], layout, path, signed=layout.signed)
    slope, intercept = (
        finite_number(functional(dataset, index, "PixelValueTransformationSequence", keyword, default), keyword, path)
        for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    if slope == 0:
        raise ImageFileError(f"image file {path!r} has RescaleSlope 0, which makes all values equal")
    return slope, intercept


def _table(item: Dataset, layout: Layout, path: str, *, signed: bool) -> LookupTable:
    little_endian = layout.syntax.is_little_endian
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    return lookup_table(descriptor, data, path, signed=signed, little_endian=little_endian)


def _dtype(layout: Layout) -> type[np.floating]:
    return np.float64 if layout.stored > 24 and layout.keyword != "FloatPixelData" else np.float32


def _rescaled(stored: np.ndarray, modality: LookupTable | tuple[float, float], layout: Layout) -> np.ndarray:
    """After the modality transform, always a new array."""
    if isinstance(modality, LookupTable):
        return modality(stored).astype(_dtype(layout))
    slope, intercept = modality
    whole = slope.is_integer() and intercept.is_integer() and stored.dtype.kind != "f"
    largest = (1 << layout.allocated) * max(abs(slope), 1.0) + abs(intercept)
    if not whole or largest > 2**24:
        return (np.multiply(stored, slope, dtype=np.float64) + intercept).astype(_dtype(layout), copy=False)
    # each step is a whole number that float32 holds
    if slope == 1:
        return np.add(stored, np.float32(intercept), dtype=np.float32)
    return np.multiply(stored, np.float32(slope), dtype=np.float32) + np.float32(intercept)


def _displayed(
    stored: np.ndarray,
    modality: LookupTable | tuple[float, float],
    dataset: Dataset,
    index: int | None,
    layout: Layout,
    path: str,
) -> tuple[np.ndarray, float]:
    """Modality, VOI and MONOCHROME1 in float64, rounded once, and the darkest value of the output."""
    if layout.keyword != "PixelData" or not layout.photometric:
        raise ImageFileError(
            f"image file {path!r} has no whole numbers in MONOCHROME1 or MONOCHROME2, for which alone display is "
            "defined; read it with display=False"
        )
    if isinstance(modality, LookupTable):
        values, limits = modality(stored).astype(np.float64), _limits(modality)
    else:
        slope, intercept = modality
        values = np.multiply(stored, slope, dtype=np.float64) + intercept
        low, high = sorted(limit * slope + intercept for limit in layout.limits)
        limits = (low, high)
    sequence = "FrameVOILUTSequence"
    tables = functional(dataset, index, sequence, "VOILUTSequence")
    window = [functional(dataset, index, sequence, keyword) for keyword in ("WindowCenter", "WindowWidth")]
    if tables and tables[0].get("LUTData") is not None:
        table = _table(tables[0], layout, path, signed=limits[0] < 0)
        values, limits = table(values).astype(np.float64), _limits(table)
    elif window[0] is not None and window[1] is not None:
        function = str(functional(dataset, index, sequence, "VOILUTFunction", "LINEAR")).strip().upper()
        center, width = (finite_number(_first(value), "window", path) for value in window)
        values = windowed(values, center, width, function, limits, path)
    if layout.photometric == "MONOCHROME1":
        values = sum(limits) - values
    return values.astype(_dtype(layout), copy=False), limits[0]


def _limits(table: LookupTable) -> tuple[float, float]:
    return float(table.entries.min()), float(table.entries.max())


def _first(value: Any) -> Any:
    return value if isinstance(value, (str, bytes)) or not hasattr(value, "__getitem__") else value[0]


def _padding_text(
    padding: Padding,
    fill: float | None,
    dtype: np.dtype,
    modality: LookupTable | tuple[float, float],
    layout: Layout,
) -> str:
    """The padding as it is in the array."""
    if fill is not None:
        return repr(float(dtype.type(fill)))
    low, high = padding.low, padding.high
    inputs = np.arange(low, high + 1) if isinstance(modality, LookupTable) else np.array([low, high])
    outputs = _rescaled(inputs, modality, layout)
    low, high = float(outputs.min()), float(outputs.max())
    return repr(low) if low == high else f"{low!r} {high!r}"
