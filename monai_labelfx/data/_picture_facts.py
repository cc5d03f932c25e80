# SPDX-License-Identifier: Apache-2.0
"""What the header of an image file says about its size and magnification, without reading its pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from monai_labelfx.data._check_item import check_item
from monai_labelfx.data._reading import ImageFileError, reading
from monai_labelfx.data.tiff_reader import _spacing

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
_TIFF = (".tif", ".tiff", ".svs")
_COARSEST = 25.0  # um per pixel; what is larger is the print resolution that programs write into pictures (1016 dpi)


class PictureFacts(NamedTuple):
    """Name, spatial shape (x, y[, z]), um per pixel and magnification of the objective; None: nobody says it."""

    name: str
    shape: tuple[int, ...]
    micrometres: float | None
    magnification: float | None


def picture_facts(item: Mapping[str, Any], key: str = "image") -> PictureFacts:
    """The facts of a file of ``item``; ``mpp`` and ``magnification`` of the item go before those of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unusable file, or an ``mpp`` or ``magnification`` that is no number above 0.
    """
    value = item[key]
    name = str(value[0] if isinstance(value, (list, tuple)) else value)
    lower = name.lower()
    if lower.endswith(_PICTURES):
        shape, size, power = _of_picture(name)
    elif lower.endswith(_TIFF):
        shape, size, power = _of_tiff(name)
    else:
        found = check_item({"image": value}, spatial_dims=None, allowed_labels=None)
        if found.shape is None or found.faults:
            raise ImageFileError(found.faults[0].removeprefix("image: "))
        shape, size, power = tuple(found.shape), None, None
    stated, objective = (_stated(item, word, name) for word in ("mpp", "magnification"))
    size = size if size is not None and size < _COARSEST else None
    return PictureFacts(name, shape, stated or size, objective or power)


def _stated(item: Mapping[str, Any], word: str, name: str) -> float | None:
    value = item.get(word)
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"the item of image {name!r} has {word}={value!r}, expected a number above 0")
    return number


def _of_picture(path: str) -> tuple[tuple[int, ...], float | None, float | None]:
    from PIL import Image

    with reading(path, "picture"), Image.open(path) as image:
        dots = image.info.get("dpi", (0, 0))
        return image.size, 25400 / math.sqrt(dots[0] * dots[1]) if min(dots) > 0 else None, None


def _of_tiff(path: str) -> tuple[tuple[int, ...], float | None, float | None]:
    import tifffile

    with reading(path, "TIFF"), tifffile.TiffFile(path) as tif:
        series = tif.series[0]  # of a slide in several resolutions the finest
        sizes = dict(zip(series.axes.replace("I", "Z").replace("Q", "Z"), series.shape, strict=True))
        shape = tuple(int(sizes[axis]) for axis in "XYZ" if axis in sizes)
        x, y, _ = _spacing(tif)
        size = 1000 * math.sqrt(x * y)
        if not tif.is_svs:
            return shape, size, None
        told = tifffile.tifffile.svs_description_metadata(tif.pages.first.description)
        return shape, _number(told.get("MPP")) or size, _number(told.get("AppMag"))


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < math.inf else None
