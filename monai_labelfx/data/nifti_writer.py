# SPDX-License-Identifier: Apache-2.0
"""Write NIfTI on exactly the grid that was read, 2-D and 3-D, in every orientation."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import DtypeLike, NdarrayOrTensor, PathLike
from monai.data import ImageWriter
from monai.utils import convert_data_type, get_equivalent_dtype

from monai_labelfx._atomic import replacing
from monai_labelfx.data._original_grid import to_write
from monai_labelfx.data._stored_type import StoredType, stored_type_of

__all__ = ["NiftiWriter"]

_RIGID = 1e-5  # cosines between axes above this are a shear, which a qform cannot hold


class NiftiWriter(ImageWriter):
    """Writer of NIfTI for ``SaveImage``: ``SaveImaged(writer="monai_labelfx.data.NiftiWriter", output_ext=".nii.gz")``.

    An array (1, *spatial) is written as (x, y[, z]); (C, *spatial) as (x, y, z, C), with z of length one for 2-D. The
    affine is that of the image, in mm, also for a 2-D slice that stands upright; the file has no other text or field.

    Args:
        output_dtype: type of the written numbers; None keeps that of the array (float64 becomes float32, bool uint8).
            Floating data for an integer type are rounded. "source" writes numbers as the source stored them (see
            Notes): ``SaveImaged(..., output_dtype="source")`` is for results in the units of the source, such as HU.
        scale: must be None; values are never scaled to a range. ``SaveImage`` passes its own ``scale`` here.

    Raises:
        ValueError: values that do not fit ``output_dtype``, a file name other than .nii and .nii.gz, other than two or
            three spatial axes, or a moved array with ``resample=False``; with "source" also several channels, NaN or
            infinite values for whole numbers, and an image that does not know how its source stored its numbers.

    Notes:
        "source" is for images that AutoReader read from NIfTI, or AutoReader or DicomSeriesReader from DICOM. The file
        has the type, slope and intercept of the source, and the numbers ``rint((value - intercept) / slope)``, clipped
        to the range of the type. An unchanged image gets its source's numbers bit for bit, as long as the array could
        hold its values: in float32, as ``LoadImage`` makes them, these are whole numbers of 24 bits, and numbers of 16
        bits with any slope; ask ``LoadImage`` for float64 else. Floating numbers of NIfTI keep their type; a slope
        is already in their values, which are kept instead, and is not written. Of DICOM that is read by a table, for
        display, with other slopes or intercepts in some slices, or with such that a NIfTI header has no room for
        (2.059), the values become float32.

        With ``resample=True`` of ``SaveImage`` an array that was moved since it was read goes back to
        ``original_affine``: exactly where axes were swapped, flipped or cropped, interpolated by ``mode`` otherwise.
        With False it is written where it now is. MONAI's NibabelWriter fails on 2-D images that are not axial, mixes
        the channels of a flipped image, leaves half a file when it is interrupted, and gives sheared images (tilted
        gantry) a qform that contradicts the sform; for all others the files are the same.

    Example:
        >>> import nibabel, tempfile, torch
        >>> from monai.data import MetaTensor
        >>> image = MetaTensor(torch.rand(1, 4, 5, 6), affine=torch.diag(torch.tensor([-1.0, -1.0, 2.0, 1.0])))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = NiftiWriter()
        ...     writer.set_data_array(image)
        ...     writer.set_metadata(image.meta)
        ...     writer.write(f"{folder}/image.nii.gz", verbose=False)
        ...     nibabel.load(f"{folder}/image.nii.gz").header.get_zooms()
        (1.0, 1.0, 2.0)
    """

    output_dtype: DtypeLike | str

    def __init__(self, output_dtype: DtypeLike | str = None, *, scale: int | None = None) -> None:
        super().__init__()
        if scale is not None:
            raise ValueError(f"NiftiWriter writes values as they are: scale must be None, got {scale}")
        self.output_dtype = output_dtype
        self.array = np.empty(0)
        self.affine = np.eye(4)
        self.meta: Mapping[str, Any] = {}

    def set_data_array(  # type: ignore[override]
        self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, squeeze_end_dims: bool = True
    ) -> None:
        """Take the array; ``squeeze_end_dims`` of MONAI's interface changes nothing, no spatial axis is dropped."""
        array = convert_data_type(data_array, np.ndarray)[0]
        array = array[None] if channel_dim is None else np.moveaxis(array, channel_dim, 0)
        if array.ndim not in (3, 4):
            raise ValueError(f"NiftiWriter writes 2 or 3 spatial axes, got an array of shape {tuple(data_array.shape)}")
        self.array = array

    def set_metadata(self, meta_dict: Mapping | None = None, resample: bool = True, **options: Any) -> None:
        """Take affine and source; with ``resample`` first go back to ``original_affine`` if the array was moved."""
        self.meta = meta_dict or {}
        mode = str(options.get("mode", "linear"))
        self.array, affine = to_write(self.array, meta_dict, resample=resample, mode=mode)
        self.affine = np.eye(4) if affine is None else affine

    def write(self, filename: PathLike, verbose: bool = True) -> None:  # type: ignore[override]
        """Write the file; it appears complete or not at all."""
        import nibabel

        super().write(filename, verbose=verbose)
        path = Path(filename)
        if not path.name.lower().endswith((".nii", ".nii.gz")):
            raise ValueError(f"NiftiWriter writes .nii and .nii.gz, got the file name {path.name!r}")
        spatial = self.array.ndim - 1
        array = self.array[0] if len(self.array) == 1 else np.moveaxis(self.array, 0, -1)
        if len(self.array) > 1 and spatial == 2:
            array = array[:, :, None]
        if isinstance(self.output_dtype, str) and self.output_dtype == "source":
            image = self._as_source(array)
        else:
            image = nibabel.Nifti1Image(_as_dtype(array, self.output_dtype, path.name), self.affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(self.affine, code="scanner")
        rigid = _is_rigid(self.affine)
        image.set_qform(self.affine if rigid else None, code="scanner" if rigid else "unknown")
        content = image.to_bytes()
        with replacing(path) as temporary:
            temporary.write_bytes(gzip.compress(content, 4, mtime=0) if path.suffix.lower() == ".gz" else content)

    def _as_source(self, array: np.ndarray) -> Any:
        """The image with the numbers of the source's type, and with its slope and intercept."""
        import nibabel

        if len(self.array) != 1:
            raise ValueError(
                f"NiftiWriter writes one channel with output_dtype 'source', got an array of shape {self.array.shape}"
            )
        stored: StoredType = stored_type_of(self.meta)
        image = nibabel.Nifti1Image(stored.numbers(array), self.affine, dtype=stored.dtype)
        if stored.dtype.kind != "f":
            image.header.set_slope_inter(stored.slope, stored.inter)  # nibabel writes numbers as they are then
        return image


def _is_rigid(affine: np.ndarray) -> bool:
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() <= _RIGID)


def _as_dtype(array: np.ndarray, wanted: DtypeLike, name: str) -> np.ndarray:
    plain = {"bool": "uint8", "float64": "float32", "float16": "float32"}.get(array.dtype.name, array.dtype.name)
    dtype = np.dtype(plain if wanted is None else get_equivalent_dtype(wanted, np.ndarray))
    if dtype.kind in "iu" and array.size:
        low, high, limits = array.min(), array.max(), np.iinfo(dtype)
        if not (limits.min <= low and high <= limits.max):  # also for NaN
            raise ValueError(f"NiftiWriter cannot write values {low} to {high} as {dtype.name} into {name!r}")
        array = np.rint(array) if array.dtype.kind == "f" else array
    return array.astype(dtype, copy=False)
