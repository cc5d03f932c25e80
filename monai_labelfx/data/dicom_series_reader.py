# SPDX-License-Identifier: Apache-2.0
"""Read a DICOM series, a multi-frame file or a single DICOM image with its geometry, or say why not."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Sequence

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from monai_labelfx.data._dicom_frames import Frame, kind_of
from monai_labelfx.data._dicom_geometry import Arrangement, arrange, name_of
from monai_labelfx.data._dicom_stack import stacked
from monai_labelfx.data._reading import ImageFileError
from monai_labelfx.data.dicom_series import find_dicom_series

__all__ = ["DicomSeriesReader"]

_SAME_GRID = 1e-2  # of a voxel, anywhere in the image: below this two grids are the same
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class DicomSeriesReader(ImageReader):
    """Reader of DICOM images for ``LoadImage``: a series (folder or list of files), a multi-frame file, a still image.

    Slices are sorted by their position along the slice normal (InstanceNumber is ignored) and must make one regular
    grid: same size, pixel spacing and orientation, equal distances, no position twice. A tilted gantry is regular.
    The array is float32 (x, y, z) of rescaled values (HU for CT; each slice with its own slope and intercept), (x, y)
    for one slice; float64 where stored integers exceed 24 bits; colour images keep their dtype and have channels last.
    Projection X-ray is given as displayed (VOI LUT or window; bright is dense also for MONOCHROME1). The affine is
    that of MONAI's readers (RAS, mm). UIDs, modality and what writing back needs are strings in the metadata, whose
    names begin with ``dicom_``; it holds nothing about the patient.

    Args:
        series: the SeriesInstanceUID to read where a folder holds several. Default: there must be one only.
        on_irregular: what to do with gaps, uneven distances, slices shifted against each other, and slices twice in the
            same place with equal pixels. "error" refuses them. "warn" warns and keeps the slices as they are, with the
            mean distance in the affine. "resample" interpolates linearly along the slice axis to the median distance,
            warns how many slices were interpolated, leaves slices that lie on that grid as they are, and drops
            repeated ones; slices shifted in their plane stay an error.
        display: whether VOI LUT or window and MONOCHROME1 are applied. Default: for projection X-ray only.
        padding_fill: this value, in units of the array, replaces the padding that the file names. Default: none does.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: no image, several series (they are listed), a series that is not there, faults of the geometry (all
            are listed), or a file that cannot be read. One sentence.

    Notes:
        Several folders are channels of one image and must agree in geometry; the ``dicom_`` metadata is the first's.
        Gaps show only against the other slices: a series of two slices is always regular, as is one whose every second
        slice is missing, and the affine is right for both.
        With "resample", a grid that does not end on the last slice ends before it.
        ``read`` only hands on the names and ``get_data`` reads, as in :py:class:`monai_labelfx.data.TiffReader`.

    Example:
        >>> from monai.transforms import LoadImaged
        >>> load = LoadImaged("image", reader="monai_labelfx.data.DicomSeriesReader")
        >>> DicomSeriesReader(on_irregular="average")
        Traceback (most recent call last):
        ValueError: on_irregular must be 'error', 'warn' or 'resample', got 'average'
    """

    def __init__(
        self,
        *,
        series: str | None = None,
        on_irregular: str = "error",
        display: bool | None = None,
        padding_fill: float | None = None,
    ) -> None:
        super().__init__()
        if on_irregular not in ("error", "warn", "resample"):
            raise ValueError(f"on_irregular must be 'error', 'warn' or 'resample', got {on_irregular!r}")
        self.series = series
        self.on_irregular = on_irregular
        self.display = display
        self.padding_fill = padding_fill

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all names are folders, end with .dcm or .ima, or are DICOM files by their first bytes."""
        from pydicom.misc import is_dicom

        names = [os.fspath(name) for name in ensure_tuple(filename)]
        return all(
            os.path.isdir(name) or name.lower().endswith((".dcm", ".ima")) or (os.path.isfile(name) and is_dicom(name))
            for name in names
        )

    def read(self, data: Sequence[PathLike] | PathLike) -> tuple[str, ...]:  # type: ignore[override]
        """The names of files or folders; ``get_data`` reads them (see Notes of the class)."""
        return tuple(os.fspath(name) for name in ensure_tuple(data))

    def get_data(self, img: Sequence[PathLike] | PathLike) -> tuple[np.ndarray, dict]:
        """The array (x, y[, z][, channel]) and its meta; a list of files is one series, of folders channels."""
        names = self.read(img)
        if not names:
            raise ImageFileError("expected a folder, a file or a list of files, got an empty list")
        folders = [os.path.isdir(name) for name in names]
        if any(folders) and not all(folders):
            raise ImageFileError(f"expected files of one series, or folders, got both: {names[0]!r}, {names[-1]!r}...")
        if len(names) == 1 or not any(folders):
            return self._load(names)
        return _channels(names, [self._load((name,)) for name in names])

    def _load(self, names: tuple[str, ...]) -> tuple[np.ndarray, dict]:
        arrangement = arrange(self._chosen(names), on_irregular=self.on_irregular)
        stack = stacked(arrangement, display=self.display, padding_fill=self.padding_fill)
        if arrangement.faults:
            made_up = sum(weight > 0 for _, weight in arrangement.grid)
            done = {
                "warn": "kept as they are, and the affine gives their mean distance",
                "resample": f"brought to a regular grid, {made_up} of {len(arrangement.grid)} by interpolation",
            }[self.on_irregular]
            faults = "; ".join(arrangement.faults)
            warnings.warn(f"{name_of(arrangement.frames)} is irregular: {faults}: slices were {done}", stacklevel=2)
        colours = stack.array.ndim == 4  # (z, y, x[, colour])
        array = stack.array.transpose(2, 1, 0, *([3] if colours else []))
        if array.shape[2] == 1:
            array = array[:, :, 0]
        affine = _LPS_TO_RAS @ arrangement.affine
        first = arrangement.frames[0]
        return array, {
            str(MetaKeys.AFFINE): affine,
            str(MetaKeys.ORIGINAL_AFFINE): affine.copy(),
            str(MetaKeys.SPATIAL_SHAPE): np.asarray(array.shape[:-1] if colours else array.shape),
            str(MetaKeys.ORIGINAL_CHANNEL_DIM): -1 if colours else math.nan,
            str(MetaKeys.SPACE): str(SpaceKeys.RAS),
            "dicom_modality": first.modality,
            "dicom_sop_class_uid": first.sop_class_uid,
            "dicom_study_instance_uid": first.study_uid,
            "dicom_series_instance_uid": first.series_uid,
            "dicom_frame_of_reference_uid": first.frame_of_reference_uid,
            "dicom_source": _source(arrangement),
            "dicom_values": stack.kind,
            "dicom_pixel_padding": stack.padding,
        }

    def _chosen(self, names: tuple[str, ...]) -> tuple[Frame, ...]:
        """The image planes of the one series that is meant."""
        found = find_dicom_series(names[0] if len(names) == 1 else names)
        listed = "; ".join(str(series) for series in found)
        where = repr(names[0]) if len(names) == 1 else f"the list of {len(names)} files from {names[0]!r}"
        if not found:
            if len(names) == 1 and os.path.isfile(names[0]):
                raise ImageFileError(f"DICOM file {where} is no image but {kind_of(names[0])}, expected an image")
            raise ImageFileError(f"{where} holds no DICOM image, expected the slices of a series")
        if self.series is not None:
            found = [series for series in found if series.uid == self.series]
            if not found:
                raise ImageFileError(f"{where} holds no series {self.series!r}, expected one of: {listed}")
        elif len(found) > 1:
            raise ImageFileError(
                f"{where} holds {len(found)} DICOM series (description, columns x rows x slices, modality, UID): "
                f"{listed}; choose one with series='UID'"
            )
        return found[0].frames


def _source(arrangement: Arrangement) -> str:
    resampled = any(weight > 0 for _, weight in arrangement.grid)
    numbers = [number for number, _ in arrangement.grid]
    if resampled:
        numbers = [number for number in range(len(arrangement.frames)) if number not in arrangement.repeated]
    used = [arrangement.frames[number] for number in numbers]
    files, indices = [frame.path for frame in used], [frame.index for frame in used]
    if None not in indices and len(set(files)) == 1:
        files = files[:1]
    facts = {
        "files": files,
        "frames": None if None in indices else indices,
        "grid": "resampled" if resampled else "source",
    }
    return json.dumps(facts)


def _channels(names: tuple[str, ...], images: list[tuple[np.ndarray, dict]]) -> tuple[np.ndarray, dict]:
    """Images of one grid as channels, last; the metadata of the first."""
    array, meta = images[0]
    affine, spatial = meta[str(MetaKeys.AFFINE)], len(meta[str(MetaKeys.SPATIAL_SHAPE)])
    reach = np.diag([*array.shape[:spatial], *([1.0] * (4 - spatial))])
    for name, (other, other_meta) in zip(names, images, strict=True):
        offset = np.linalg.solve(affine, other_meta[str(MetaKeys.AFFINE)]) - np.eye(4)
        if other.shape != array.shape or not np.abs(offset @ reach).max() <= _SAME_GRID:
            raise ImageFileError(
                f"channels of one image must agree, but {name!r} has shape {other.shape} and affine "
                f"{other_meta[str(MetaKeys.AFFINE)].tolist()}, expected {array.shape} and {affine.tolist()} as in "
                f"{names[0]!r}"
            )
        if other_meta["dicom_frame_of_reference_uid"] != meta["dicom_frame_of_reference_uid"]:
            warnings.warn(
                f"{name!r} and {names[0]!r} have different frames of reference, so their grids may agree by chance",
                stacklevel=2,
            )
    arrays = [one if one.ndim > spatial else one[..., None] for one, _ in images]
    return np.concatenate(arrays, axis=-1), {**meta, str(MetaKeys.ORIGINAL_CHANNEL_DIM): -1}
