# SPDX-License-Identifier: Apache-2.0
"""Read 2-D and 3-D microscopy TIFFs with their voxel size."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.data.utils import is_supported_format
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from monai_labelfx.data._reading import ImageFileError, check_size, reading

__all__ = ["TiffReader"]

_MILLIMETRES = {
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-6),
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "\\u00b5m", "micron", "microns", "micrometer", "micrometre"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 10.0),
    **dict.fromkeys(("m", "meter", "metre"), 1000.0),
    **dict.fromkeys(("in", "inch", "inches"), 25.4),
}


class TiffReader(ImageReader):
    """Reader of TIFF microscopy for ``LoadImage``: plain, multi-page, ImageJ stacks and OME-TIFF, 2-D and 3-D.

    The array comes in MONAI's order, axis 0 is x, then y, then z (a file ZYX gives an array XYZ, as MONAI's own
    readers do for PNG and NIfTI), channels last with ``original_channel_dim`` -1, so that ``EnsureChannelFirst`` works.
    Values and dtype are those of the file. The voxel size goes into ``affine`` in mm, from (in this order) OME
    ``PhysicalSize``, ImageJ ``spacing`` and ``unit`` with the X/Y resolution, or a resolution per centimetre. A size
    without a unit (ImageJ "pixel") is kept as a number, so that anisotropy survives; what is unknown is 1.

    Args:
        axes: the meaning of the stored axes, slowest first (such as "ZYX", "CYX", "ZCYX"), where the file says nothing
            or something wrong. Default: as in the file; one axis of a plain multi-page file without a name is depth.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a corrupt or incomplete file, a time or other unusable axis, several image series in one file, CMYK,
            or files of different shape or voxel size given as channels of one image. One sentence with the file name.

    Notes:
        A resolution per inch is ignored: it is the print resolution that office programs write into every file.
        Compressions that tifffile reads only with the package imagecodecs (LZW, JPEG) are decoded by Pillow, but for
        colours of 16 bits. Of a palette picture the array holds the indices.
        ``read`` only hands on the names and ``get_data`` opens the files: ``LoadImage`` hides what ``read`` raises and
        then tries its other readers, one of which would load a stack with other axes and without voxel size.

    Example:
        >>> import numpy as np, tempfile, tifffile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "stack.tif")
        ...     tifffile.imwrite(path, np.zeros((3, 4, 5), "uint8"), imagej=True, resolution=(2, 2),
        ...                      metadata={"axes": "ZYX", "spacing": 1.5, "unit": "um"})
        ...     reader = TiffReader()
        ...     array, meta = reader.get_data(reader.read(path))
        >>> array.shape, meta["affine"].diagonal().tolist()
        ((5, 4, 3), [0.0005, 0.0005, 0.0015, 1.0])
    """

    def __init__(self, *, axes: str | None = None) -> None:
        super().__init__()
        if axes is not None and (not {"X", "Y"} <= set(axes) <= set("XYZCS") or len(set(axes)) != len(axes)):
            raise ValueError(f"axes must be X, Y and at most Z and C (or S), each once, such as 'ZYX', got {axes!r}")
        self.axes = axes

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all names end with .tif or .tiff."""
        return is_supported_format(filename, ["tif", "tiff"])

    def read(self, data: Sequence[PathLike] | PathLike) -> tuple[str, ...]:  # type: ignore[override]
        """The file names; ``get_data`` opens them (see Notes of the class)."""
        return tuple(str(name) for name in ensure_tuple(data))

    def get_data(self, img: Sequence[str]) -> tuple[np.ndarray, dict]:
        """The array (x, y[, z][, channel]) and its meta; several files become channels of one image."""
        images = [self._load(path) for path in img]
        array, spacing, has_channel = images[0]
        for path, (other, other_spacing, other_channel) in zip(img, images, strict=True):
            if (other.shape, other_spacing, other_channel) != (array.shape, spacing, has_channel):
                raise ImageFileError(
                    f"image file {path!r} has shape {other.shape} and voxel size {other_spacing}, but {img[0]!r} has "
                    f"{array.shape} and {spacing}: channels of one image must agree"
                )
        spatial_shape = array.shape[:-1] if has_channel else array.shape
        if len(images) > 1:
            arrays = [image if has_channel else image[..., None] for image, _, _ in images]
            array, has_channel = np.concatenate(arrays, axis=-1), True
        affine = np.diag([*spacing, 1.0])
        return array, {
            str(MetaKeys.AFFINE): affine,
            str(MetaKeys.ORIGINAL_AFFINE): affine.copy(),
            str(MetaKeys.SPATIAL_SHAPE): np.asarray(spatial_shape),
            str(MetaKeys.ORIGINAL_CHANNEL_DIM): -1 if has_channel else math.nan,
            str(MetaKeys.SPACE): str(SpaceKeys.RAS),
        }

    def _load(self, path: str) -> tuple[np.ndarray, tuple[float, ...], bool]:
        import tifffile

        with reading(path, "TIFF"):
            _check_pages(path)
        with reading(path, "TIFF"), tifffile.TiffFile(path) as tif:
            if len(tif.series) != 1:
                shapes = [series.shape for series in tif.series]
                raise ImageFileError(f"image file {path!r} holds {len(shapes)} image series {shapes}, expected one")
            series = tif.series[0]
            axes = self._named_axes(path, series.axes, series.shape)
            if series.keyframe.photometric == 5:
                raise ImageFileError(f"image file {path!r} has the colour model CMYK, expected grey, a palette or RGB")
            packed = series.keyframe.compression != 1
            check_size(path, "TIFF", series.nbytes, 1e5 if packed else 1.0)
            if packed:
                _check_segments(path, series)
            array = _pixels(path, series)
            order = [axes.index(letter) for letter in "XYZC" if letter in axes]
            array = array.transpose(order)
            return array.astype(array.dtype.newbyteorder("="), copy=False), _spacing(tif), "C" in axes

    def _named_axes(self, path: str, stored: str, shape: tuple[int, ...]) -> str:
        """The axes as letters of XYZC, or a sentence about the one that cannot be used."""
        axes = (self.axes or stored).replace("S", "C")
        if len(axes) != len(shape):
            raise ImageFileError(
                f"image file {path!r} has shape {shape} (axes {stored}), which axes={axes!r} cannot name"
            )
        unnamed = [letter for letter in axes if letter in "IQ"]
        if len(unnamed) == 1 and "Z" not in axes:
            axes = axes.replace(unnamed[0], "Z")
        if not {"X", "Y"} <= set(axes) <= set("XYZC") or len(set(axes)) != len(axes):
            raise ImageFileError(
                f"image file {path!r} has axes {stored} of lengths {shape}; expected x, y, at most depth and channel: "
                "split time points and positions into files, or name the axes with TiffReader(axes=...)"
            )
        return axes


def _check_pages(path: str) -> None:
    """Refuse a chain of pages that leads back to one of them, or out of the file.

    The first tifffile would follow for ever; the second is a file that was cut off, of which it gives the pages so far.
    """
    with open(path, "rb") as file:
        head = file.read(4)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 4:
            return  # not a TIFF, which tifffile says better
        big = struct.unpack(f"{order}H", head[2:])[0] == 43
        count_form, offset_form, tag_bytes = (f"{order}Q", f"{order}Q", 20) if big else (f"{order}H", f"{order}I", 12)
        seen: set[int] = set()

        def number_at(place: int, form: str) -> int:
            file.seek(min(place, 2**62))
            found = file.read(struct.calcsize(form))
            if len(found) < struct.calcsize(form):
                raise ImageFileError(
                    f"image file {path!r} cannot be read as TIFF: page {max(len(seen), 1)} lies beyond the end of the "
                    "file (cut off?)"
                )
            return struct.unpack(form, found)[0]

        offset = number_at(8 if big else 4, offset_form)
        while offset:
            if offset in seen:
                raise ImageFileError(f"image file {path!r} has {len(seen)} pages that lead back to an earlier one")
            seen.add(offset)
            tags = number_at(offset, count_form)
            offset = number_at(offset + struct.calcsize(count_form) + tags * tag_bytes, offset_form)


def _check_segments(path: str, series: Any) -> None:
    """Strips or tiles that a page does not list become zeros in tifffile."""
    needed = math.prod(series.keyframe.chunked)
    for page in series.pages:
        if page is not None and len(page.dataoffsets) < needed:
            raise ImageFileError(
                f"image file {path!r} cannot be read as TIFF: a page of shape {series.keyframe.shape} has "
                f"{len(page.dataoffsets)} strips or tiles, expected {needed}"
            )


def _pixels(path: str, series: Any) -> np.ndarray:
    try:
        return series.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        array = np.stack([np.asarray(frame) for frame in ImageSequence.Iterator(image)]).reshape(series.shape)
    if array.dtype != series.dtype:  # such as colours of 16 bits, of which Pillow keeps 8
        raise ImageFileError(
            f"image file {path!r} holds {series.dtype} values, compressed in a way that gives {array.dtype} without "
            "the package imagecodecs: install it or save the file without compression"
        )
    return array


def _spacing(tif: Any) -> tuple[float, ...]:
    """Voxel size (x, y, z) in mm."""
    if tif.ome_metadata:
        root = ElementTree.fromstring(tif.ome_metadata)
        pixels = next((entry for entry in root.iter() if entry.tag.rpartition("}")[2] == "Pixels"), None)
        sizes = {} if pixels is None else pixels.attrib
        names = [f"PhysicalSize{letter}" for letter in "XYZ"]
        return tuple(_length(sizes.get(name), sizes.get(f"{name}Unit", "um")) for name in names)
    tags = tif.pages[0].tags
    pixels_per_unit = [tags[name].value if name in tags else (1, 1) for name in ("XResolution", "YResolution")]
    plane = [down / up if up else 1.0 for up, down in pixels_per_unit]
    if tif.imagej_metadata:
        unit = str(tif.imagej_metadata.get("unit", "pixel"))
        return tuple(_length(size, unit) for size in (*plane, tif.imagej_metadata.get("spacing", 1.0)))
    per_centimetre = "ResolutionUnit" in tags and int(tags["ResolutionUnit"].value) == 3
    return tuple(_length(size, "cm") for size in plane) + (1.0,) if per_centimetre else (1.0, 1.0, 1.0)


def _length(size: Any, unit: str) -> float:
    """``size`` in mm; 1 where it is missing or no length."""
    try:
        value = float(size) * _MILLIMETRES.get(unit.strip().lower(), 1.0)
    except (TypeError, ValueError):
        return 1.0
    return value if math.isfinite(value) and value > 0 else 1.0
