# SPDX-License-Identifier: Apache-2.0
"""One reader for all inputs: picks by file name, and reports an unusable file in one sentence."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.data.utils import is_no_channel
from monai.utils import MetaKeys, ensure_tuple

from monai_labelfx.data._nifti_reader import read_nifti
from monai_labelfx.data._plain_readers import read_npy, read_picture
from monai_labelfx.data._reading import ImageFileError, reading
from monai_labelfx.data.dicom_seg_reader import DicomSegReader, is_dicom_seg
from monai_labelfx.data.dicom_series_reader import DicomSeriesReader
from monai_labelfx.data.tiff_reader import TiffReader

__all__ = ["AutoReader"]

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "TIFF": (".tif", ".tiff"),
    "PNG, JPEG or BMP": (".png", ".jpg", ".jpeg", ".bmp"),
    "NIfTI": (".nii", ".nii.gz"),
    "NumPy array": (".npy",),
    "DICOM": (".dcm", ".ima"),
}
_READ_ONE: dict[str, Callable[[str], tuple[np.ndarray, dict]]] = {
    "PNG, JPEG or BMP": read_picture,
    "NIfTI": read_nifti,
    "NumPy array": read_npy,
}


class AutoReader(ImageReader):
    """Reader for ``LoadImage`` that picks the right reader for each file by its name.

    ==============================  ===================================================================================
    .tif .tiff                      :py:class:`TiffReader`
    .png .jpg .jpeg .bmp            ``monai.data.PILReader``; of a palette picture the indices
    .nii .nii.gz                    ``monai.data.NibabelReader``, with the affine that the file declares (see Notes)
    .npy                            ``monai.data.NumpyReader``; all axes are spatial
    .dcm .ima, other DICOM, folder  :py:class:`DicomSeriesReader`; :py:class:`DicomSegReader` for DICOM segmentations
    ==============================  ===================================================================================

    Use it by name: ``LoadImaged(keys, reader="monai_labelfx.data.AutoReader", ensure_channel_first=True)``. Arrays come
    in MONAI's order, axis 0 is x, in native byte order. A list of DICOM files is one series; a list of folders, or of
    other files, holds the channels of one image, which must agree in shape and affine.

    Args:
        series: the SeriesInstanceUID to read where a folder holds several.
        on_irregular: "error", "warn" or "resample", for DICOM series with gaps; see :py:class:`DicomSeriesReader`.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: an unknown suffix, a folder without DICOM files, files of several kinds as channels of one image, a
            DICOM object that is no image, a corrupt or incomplete file, or one that would silently become something
            else: complex numbers or colours in a NIfTI file, colours of 16 bits in a PNG file, CMYK, pickled objects.
            One sentence with the file name.

    Notes:
        ``read`` only hands on the names and ``get_data`` reads: when ``read`` of a chosen reader fails, ``LoadImage``
        tries each of its other readers and then shows all their tracebacks.

        NIfTI: the affine is the sform where its code is above 0, else the qform, else it comes from the voxel size;
        one that is declared and is not finite or flat is an error. A fourth axis holds channels, last; that of a time
        series too, since common programs write a unit of time into files of channels. A slope of 0 or NaN means values
        as stored. Before anything is allocated, files are refused that are too short for what their header announces,
        and compressed ones that would expand 200-fold to more than 2 GiB.

    Example:
        >>> import numpy as np, tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(Path(folder, "array.npy"), np.zeros((4, 3)))
        ...     array, meta = AutoReader().get_data([Path(folder, "array.npy")])
        >>> array.shape
        (4, 3)
    """

    def __init__(self, *, series: str | None = None, on_irregular: str = "error") -> None:
        super().__init__()
        self._series_reader = DicomSeriesReader(series=series, on_irregular=on_irregular)

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all files are of one known kind."""
        try:
            _kind(_names(filename))
        except (OSError, ValueError):
            return False
        return True

    def read(self, data: Sequence[PathLike] | PathLike) -> tuple[str, ...]:  # type: ignore[override]
        """The file names; ``get_data`` opens them (see Notes of the class)."""
        return _names(data)

    def get_data(self, img: Sequence[PathLike] | PathLike) -> tuple[np.ndarray, dict]:
        """The array and its meta, as the picked reader gives them."""
        names = _names(img)
        kind = _kind(names)
        for name in names:
            if not os.path.exists(name):
                raise FileNotFoundError(f"image file {name!r} does not exist")
            if not os.path.isdir(name) and not os.path.isfile(name):
                raise ImageFileError(f"image file {name!r} is a device or pipe, expected a file")
        if kind == "TIFF":
            array, meta = TiffReader().get_data(names)
        elif kind == "DICOM":
            reader = DicomSegReader() if is_dicom_seg(names[0]) else self._series_reader
            array, meta = reader.get_data(names)
        else:
            array, meta = _channels(names, [_read_one(name, kind) for name in names])
        if array.dtype.kind not in "buif" or array.dtype.itemsize > 8:
            raise ImageFileError(
                f"image file {names[0]!r} holds values of type {array.dtype}, expected integers or floating numbers"
            )
        if array.size == 0:
            raise ImageFileError(f"image file {names[0]!r} has no voxels: shape {array.shape}")
        return array.astype(array.dtype.newbyteorder("="), copy=False), meta


def _read_one(name: str, kind: str) -> tuple[np.ndarray, dict]:
    with reading(name, kind):
        return _READ_ONE[kind](name)


def _channels(names: Sequence[str], images: list[tuple[np.ndarray, dict]]) -> tuple[np.ndarray, dict]:
    """One image of several: stacked on a new first axis, or joined along the axis of channels that they have."""
    array, meta = images[0]
    affine = meta.get(MetaKeys.AFFINE, np.eye(4))
    for name, (other, other_meta) in zip(names, images, strict=True):
        other_affine = other_meta.get(MetaKeys.AFFINE, np.eye(4))
        if other.shape != array.shape or not np.allclose(affine, other_affine):
            raise ImageFileError(
                f"image file {name!r} has shape {other.shape} and affine {other_affine.tolist()}, but {names[0]!r} has "
                f"{array.shape} and {affine.tolist()}: channels of one image must agree"
            )
    if len(images) == 1:
        return array, meta
    arrays = [image for image, _ in images]
    if is_no_channel(meta[MetaKeys.ORIGINAL_CHANNEL_DIM]):
        return np.stack(arrays), meta | {str(MetaKeys.ORIGINAL_CHANNEL_DIM): 0}
    return np.concatenate(arrays, axis=-1), meta


def _names(data: Sequence[PathLike] | PathLike) -> tuple[str, ...]:
    return tuple(str(name) for name in ensure_tuple(data))


def _kind(names: tuple[str, ...]) -> str:
    kinds = [_kind_of_one(name) for name in names]
    if not kinds:
        raise ImageFileError("no image file was given, expected one or more")
    for name, kind in zip(names, kinds, strict=True):
        if kind != kinds[0]:
            raise ImageFileError(
                f"files of one image must be of one kind, but {names[0]!r} is {kinds[0]} and {name!r} is {kind}"
            )
    return kinds[0]


def _kind_of_one(name: str) -> str:
    if os.path.isdir(name):
        if any(entry.name.lower().endswith(_SUFFIXES["DICOM"]) or _is_dicom(entry) for entry in Path(name).iterdir()):
            return "DICOM"
        raise ImageFileError(
            f"folder {name!r} holds no DICOM file, expected an image file or a folder with a DICOM series"
        )
    for kind, suffixes in _SUFFIXES.items():
        if name.lower().endswith(suffixes):
            return kind
    if not os.path.exists(name):
        raise FileNotFoundError(f"image file {name!r} does not exist")
    if _is_dicom(Path(name)):
        return "DICOM"
    known = " ".join(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
    raise ImageFileError(f"image file {name!r} is of no known kind, expected DICOM or one of {known}")


def _is_dicom(path: Path) -> bool:
    from pydicom.misc import is_dicom

    return path.is_file() and is_dicom(path)
