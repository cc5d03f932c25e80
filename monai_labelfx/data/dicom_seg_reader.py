# SPDX-License-Identifier: Apache-2.0
"""Read a DICOM Segmentation as a label map with its geometry."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from monai_labelfx.data._dicom_deflate import check_deflated
from monai_labelfx.data._dicom_seg_frames import Frames, fill_from_label_map, fill_from_masks
from monai_labelfx.data._dicom_seg_grid import Grid, grid_of
from monai_labelfx.data._reading import ImageFileError, reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["DicomSegReader", "is_dicom_seg"]

_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # Segmentation, Label Map Segmentation
_BACKGROUND = "125040"  # the category, a DICOM code, that a label map gives its background
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_HIGHEST = 65535


def is_dicom_seg(path: PathLike) -> bool:
    """Whether a file is a DICOM Segmentation, or a folder whose DICOM files all are; reads only the start of files.

    Example:
        >>> Path("label.txt").write_text("no DICOM")
        8
        >>> is_dicom_seg("label.txt")
        False
    """
    if os.path.isdir(path):
        classes = (_sop_class(file) for file in sorted(Path(path).iterdir()) if file.is_file())
        dicom = (name for name in classes if name)
        return next(dicom, None) in _CLASSES and all(name in _CLASSES for name in dicom)
    return _sop_class(Path(path)) in _CLASSES


def _sop_class(path: Path) -> str:
    from pydicom.filereader import read_file_meta_info

    try:
        return str(read_file_meta_info(path).get("MediaStorageSOPClassUID") or "")
    except Exception:  # no DICOM or cut off: whoever reads it will say so
        return ""


class DicomSegReader(ImageReader):
    """Reader of DICOM Segmentations (SEG) for ``LoadImage``: binary, label map and fractional.

    The array is uint16 (x, y, z), or (x, y) where all frames lie in one plane; a voxel has the number of its segment, 0
    is background. It spans the planes that the file has, at its own affine (RAS, mm): a SEG may leave out empty slices
    and run the other way than its series. :py:class:`monai_labelfx.transforms.PlaceOnGridd` puts it on the image.

    Args:
        segments: segment name, or segment number, -> value in the array, to choose, rename or merge segments. Where
            segments overlap, later ones cover earlier ones. Default: all, by number, and overlaps are refused.
        allow_missing: whether files may lack some (not all) of ``segments``. Default: each must be there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no segmentation, overlapping segments, segments that are not there, a tiled slide, frames on no
            regular grid, or a file that cannot be read. One sentence with the file name.

    Notes:
        In a fractional SEG a voxel belongs to a segment from half of the maximum on.
        A folder is read where it holds one segmentation. UIDs are strings in the meta, as DicomSeriesReader has them.
        ``read`` only hands on the names and ``get_data`` reads, as in :py:class:`monai_labelfx.data.TiffReader`.

    Example:
        >>> DicomSegReader(segments={"liver": 1, "tumour": 70000})
        Traceback (most recent call last):
        ValueError: segments: 'tumour' has the value 70000, expected a whole number from 0 to 65535
    """

    def __init__(self, *, segments: Mapping[str | int, int] | None = None, allow_missing: bool = False) -> None:
        super().__init__()
        if segments is not None and not segments:
            raise ValueError("segments names no segment, expected a mapping of names or numbers to values, or None")
        for name, value in (segments or {}).items():
            if type(value) is not int or not 0 <= value <= _HIGHEST:
                raise ValueError(f"segments: {name!r} has the value {value!r}, expected a whole number from 0 to 65535")
        self.segments = segments
        self.allow_missing = allow_missing

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all names are segmentations."""
        names = [os.fspath(name) for name in ensure_tuple(filename)]
        return all(os.path.exists(name) and is_dicom_seg(name) for name in names)

    def read(self, data: Sequence[PathLike] | PathLike) -> tuple[str, ...]:  # type: ignore[override]
        """The file names; ``get_data`` opens them (see Notes of the class)."""
        return tuple(os.fspath(name) for name in ensure_tuple(data))

    def get_data(self, img: Sequence[PathLike] | PathLike) -> tuple[np.ndarray, dict]:
        """The label map (x, y[, z]) and its meta."""
        names = self.read(img)
        if len(names) != 1:
            raise ImageFileError(f"expected one segmentation, got {len(names)} files, {names[0]!r} first")
        path = os.path.abspath(_only_file(names[0]))
        with reading(path, "DICOM segmentation"):
            return self._load(path)

    def _load(self, path: str) -> tuple[np.ndarray, dict]:
        from pydicom import dcmread

        check_deflated(path)
        dataset = dcmread(path)
        if dataset.get("SOPClassUID") not in _CLASSES:
            raise ImageFileError(f"image file {path!r} is no DICOM segmentation, expected SOP class SEG")
        if "TotalPixelMatrixColumns" in dataset:
            raise ImageFileError(f"segmentation {path!r} is one of a tiled slide, which is not supported")
        frames = int(dataset.get("NumberOfFrames", 1))
        if frames < 1 or not dataset.get("Rows") or not dataset.get("Columns"):
            raise ImageFileError(f"segmentation {path!r} has no pixels: its header says 0 frames, rows or columns")
        names, background = _named(dataset, path)
        chosen = self._chosen(names, path)
        pixels, grid = Frames(dataset, frames, path), grid_of(dataset, frames, path)
        volume = np.zeros((grid.planes, *pixels.shape), dtype=np.uint16)
        if dataset.get("SegmentationType") == "LABELMAP":
            fill_from_label_map(volume, pixels, grid, chosen, {*names, *background}, path)
        else:
            fill_from_masks(volume, pixels, grid, chosen, path, cover=self.segments is not None)
        array = volume.T if grid.planes > 1 else volume[0].T
        return array, _meta(dataset, grid, array.shape, path)

    def _chosen(self, names: Mapping[int, str], path: str) -> list[tuple[int, int]]:
        """(segment number, value in the array), in the order of painting."""
        if self.segments is None:
            if 0 in names:
                raise ImageFileError(
                    f"segmentation {path!r} has a segment 0 that is no background: give values to its segments with "
                    "DicomSegReader(segments=...)"
                )
            return [(number, number) for number in names]
        found: list[tuple[int, int]] = []
        missing = []
        for wanted, value in self.segments.items():
            named = [number for number, name in names.items() if name == wanted]
            numbered = [number for number in names if str(number) == str(wanted)]
            found += [(number, value) for number in named or numbered]
            missing += [] if named or numbered else [wanted]
        if missing and not (self.allow_missing and found):
            raise ImageFileError(
                f"segmentation {path!r} has no segment {missing[0]!r}; it has {len(names)}, numbered {min(names)} to "
                f"{max(names)}"
            )
        return found


def _only_file(name: str) -> str:
    """The file itself, or the one segmentation of a folder."""
    if not os.path.isdir(name):
        return name
    found = [str(file) for file in sorted(Path(name).iterdir()) if file.is_file() and _sop_class(file) in _CLASSES]
    if len(found) != 1:
        raise ImageFileError(f"folder {name!r} holds {len(found)} segmentations, expected one: name the file")
    return found[0]


def _named(dataset: Dataset, path: str) -> tuple[dict[int, str], set[int]]:
    """Segment number -> name, and the values that are background in a label map."""
    names: dict[int, str] = {}
    background = {0, int(dataset.get("PixelPaddingValue") or 0)}
    is_label_map = dataset.get("SegmentationType") == "LABELMAP"
    for segment in dataset.get("SegmentSequence") or []:
        number = int(segment.SegmentNumber)
        if number in names:
            raise ImageFileError(f"segmentation {path!r} describes segment {number} twice")
        categories = segment.get("SegmentedPropertyCategoryCodeSequence") or []
        if is_label_map and any(str(code.get("CodeValue")) == _BACKGROUND for code in categories):
            background.add(number)
        else:
            names[number] = str(segment.get("SegmentLabel") or "").strip()
    if not names:
        raise ImageFileError(f"segmentation {path!r} describes no segment, expected at least one")
    return names, background


def _meta(dataset: Dataset, grid: Grid, shape: tuple[int, ...], path: str) -> dict:
    affine = _LPS_TO_RAS @ grid.affine
    frames = [int(found[0]) for plane in range(grid.planes) if len(found := np.flatnonzero(grid.plane == plane))]
    complete = len(frames) == grid.planes
    source = {"files": [path], "frames": frames, "grid": "source" if complete else "resampled"}
    uids = {
        "dicom_sop_class_uid": "SOPClassUID",
        "dicom_study_instance_uid": "StudyInstanceUID",
        "dicom_series_instance_uid": "SeriesInstanceUID",
        "dicom_frame_of_reference_uid": "FrameOfReferenceUID",
    }
    return {
        str(MetaKeys.AFFINE): affine,
        str(MetaKeys.ORIGINAL_AFFINE): affine.copy(),
        str(MetaKeys.SPATIAL_SHAPE): np.asarray(shape),
        str(MetaKeys.ORIGINAL_CHANNEL_DIM): math.nan,
        str(MetaKeys.SPACE): str(SpaceKeys.RAS),
        "dicom_modality": "SEG",
        **{name: str(dataset.get(keyword) or "") for name, keyword in uids.items()},
        "dicom_source": json.dumps(source),
        "dicom_values": "labels",
        "dicom_pixel_padding": "",
    }
