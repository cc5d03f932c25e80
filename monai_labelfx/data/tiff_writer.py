# SPDX-License-Identifier: Apache-2.0
"""Write 2-D and 3-D TIFFs that keep dtype, axis order and voxel size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import DtypeLike, NdarrayOrTensor, PathLike
from monai.data import ImageWriter
from monai.data.utils import affine_to_spacing
from monai.utils import convert_data_type, get_equivalent_dtype

from monai_labelfx._atomic import replacing
from monai_labelfx.data._original_grid import to_write

__all__ = ["TiffWriter"]

_IMAGEJ_DTYPES = ("uint8", "uint16", "float32")
_IMAGEJ_BYTES = 2**32 - 2**25  # above, a classic TIFF has no room for its offsets


class TiffWriter(ImageWriter):
    """Writer of TIFF microscopy for ``SaveImage``, the counterpart of :py:class:`TiffReader`.

    ``SaveImaged(writer="monai_labelfx.data.TiffWriter", output_ext=".tif")`` writes an array (C, *spatial) with x first
    as a file ZCYX or CYX (ZYX, YX for one channel). Reading it again gives the same array and the affine's spacing.
    uint8, uint16 and float32 become ImageJ stacks, the rest OME-TIFF; both zlib-compressed.

    Dtypes: floating data are written as float32. Integer data keep their values: bool and uint8 as uint8, others as
    uint16 where they fit, else uint32 (int16, int32 where there are negative values). So an instance map has 16 bit
    until it holds more than 65,535 instances.

    Args:
        output_dtype: another dtype to write. float32, which ``SaveImage`` passes unless told otherwise, leaves integer
            data integer. Floating data for an integer dtype are rounded.
        scale: must be None; values are never rescaled. ``SaveImage`` passes its own ``scale`` here.

    Raises:
        ValueError: values that do not fit ``output_dtype``, more than three spatial axes, or a ``scale``.

    Notes:
        TIFF has a voxel size but no orientation or origin: of the affine only the spacing is written (in um; none at
        all for a spacing of 1 on each axis, MONAI's value for "unknown"). With ``resample=True`` the array is first
        brought back to ``original_affine``, as MONAI's writers do; other axes of length one are not kept by TIFF.

    Example:
        >>> import tempfile, torch
        >>> from monai.transforms import LoadImage, SaveImage
        >>> from monai_labelfx.data import quiet_monai
        >>> quiet_monai()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save = SaveImage(folder, "", ".tif", writer="monai_labelfx.data.TiffWriter", print_log=False)
        ...     _ = save(torch.arange(60).reshape(1, 5, 4, 3), filename=f"{folder}/labels")
        ...     loaded = LoadImage("monai_labelfx.data.TiffReader", dtype=None)(f"{folder}/labels.tif")
        >>> loaded.shape, int(loaded.max())
        (torch.Size([5, 4, 3]), 59)
    """

    output_dtype: DtypeLike

    def __init__(self, output_dtype: DtypeLike = None, *, scale: int | None = None) -> None:
        super().__init__()
        if scale is not None:
            raise ValueError(f"TiffWriter writes values as they are: scale must be None, got {scale}")
        self.output_dtype = output_dtype
        self.array = np.empty(0)
        self.spacing: tuple[float, ...] = (1.0, 1.0, 1.0)

    def set_data_array(  # type: ignore[override]
        self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, squeeze_end_dims: bool = True
    ) -> None:
        """Take the array; ``squeeze_end_dims`` of MONAI's interface changes nothing, a TIFF drops such axes anyway."""
        array = convert_data_type(data_array, np.ndarray)[0]
        array = array[..., None] if channel_dim is None else np.moveaxis(array, channel_dim, -1)
        if array.ndim not in (3, 4):
            raise ValueError(f"TiffWriter writes 2 or 3 spatial axes, got an array of shape {tuple(data_array.shape)}")
        self.array = array

    def set_metadata(self, meta_dict: Mapping | None = None, resample: bool = True, **options: Any) -> None:
        """Take the spacing of the affine; with ``resample`` first go back to ``original_affine`` if it differs."""
        mode = str(options.get("mode", "linear"))
        array, affine = to_write(np.moveaxis(self.array, -1, 0), meta_dict, resample=resample, mode=mode)
        self.array = np.moveaxis(array, 0, -1)
        if affine is not None:
            self.spacing = tuple(float(size) for size in affine_to_spacing(affine, r=3))

    def write(self, filename: PathLike, verbose: bool = True) -> None:  # type: ignore[override]
        """Write the file; it appears complete or not at all."""
        import tifffile

        super().write(filename, verbose=verbose)
        dtype = _file_dtype(self.array, self.output_dtype)
        rounded = np.rint(self.array) if self.array.dtype.kind == "f" and dtype.kind in "iu" else self.array
        array = np.moveaxis(rounded.astype(dtype, copy=False).T, 0, -3)  # x, y, z, C -> z, C, y, x
        axes = "ZCYX"[-array.ndim :]
        if self.array.shape[-1] == 1:
            array, axes = array.squeeze(-3), axes.replace("C", "")
        form = _form(array, axes, [size * 1000 for size in self.spacing] if set(self.spacing) != {1.0} else None)
        with replacing(Path(filename)) as temporary:
            tifffile.imwrite(
                temporary, np.ascontiguousarray(array), photometric="minisblack", compression="zlib", **form
            )


def _form(array: np.ndarray, axes: str, micrometres: list[float] | None) -> dict[str, Any]:
    """Keywords of tifffile for an ImageJ stack, or for OME-TIFF where ImageJ has no such dtype or size."""
    metadata: dict[str, Any] = {"axes": axes}
    if array.dtype.name in _IMAGEJ_DTYPES and array.nbytes < _IMAGEJ_BYTES:
        if micrometres is None:
            return {"imagej": True, "metadata": metadata}
        metadata |= {"unit": "um", "spacing": micrometres[2]}
        return {"imagej": True, "resolution": (1 / micrometres[0], 1 / micrometres[1]), "metadata": metadata}
    if micrometres is not None:
        metadata |= {f"PhysicalSize{letter}": size for letter, size in zip("XYZ", micrometres, strict=True)}
        metadata |= {f"PhysicalSize{letter}Unit": "\u00b5m" for letter in "XYZ"}
    return {"ome": True, "bigtiff": array.nbytes >= _IMAGEJ_BYTES, "metadata": metadata}


def _file_dtype(array: np.ndarray, wanted: DtypeLike) -> np.dtype:
    """The dtype to write; see the class."""
    target = None if wanted is None else np.dtype(get_equivalent_dtype(wanted, np.ndarray))
    if target is None or (target == np.float32 and array.dtype.kind in "biu"):
        if array.dtype.kind == "f":
            return np.dtype(np.float32)
        if array.dtype in (np.bool_, np.uint8):
            return np.dtype(np.uint8)
        choices = ["int16", "int32"] if array.size and array.min() < 0 else ["uint16", "uint32"]
    else:
        choices = [target.name]
    for name in choices:
        if np.dtype(name).kind not in "iu" or _fits(array, name):
            return np.dtype(name)
    raise ValueError(f"TiffWriter cannot write values {array.min()} to {array.max()} as {choices[-1]}")


def _fits(array: np.ndarray, name: str) -> bool:
    limits = np.iinfo(name)
    return array.size == 0 or bool(limits.min <= array.min() and array.max() <= limits.max and np.isfinite(array).all())
