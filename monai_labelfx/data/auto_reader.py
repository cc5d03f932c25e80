# SPDX-License-Identifier: Apache-2.0
"""One reader for all inputs: picks by file name, and reports an unusable file in one sentence."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader, NibabelReader, NumpyReader, PILReader, PydicomReader
from monai.utils import ensure_tuple

from monai_labelfx.data._reading import ImageFileError, check_size, reading
from monai_labelfx.data.tiff_reader import TiffReader

__all__ = ["AutoReader"]

_DICOM_READER = PydicomReader

_READERS: dict[str, tuple[type[ImageReader], tuple[str, ...]]] = {
    "TIFF": (TiffReader, (".tif", ".tiff")),
    "PNG, JPEG or BMP": (PILReader, (".png", ".jpg", ".jpeg", ".bmp")),
    "NIfTI": (NibabelReader, (".nii", ".nii.gz")),
    "NumPy array": (NumpyReader, (".npy",)),
    "DICOM": (_DICOM_READER, (".dcm", ".ima")),
}


class AutoReader(ImageReader):
    """Reader for ``LoadImage`` that picks the right reader for each file by its name.

    ===============================  ==================================
    .tif .tiff                       :py:class:`TiffReader`
    .png .jpg .jpeg .bmp             ``monai.data.PILReader``
    .nii .nii.gz                     ``monai.data.NibabelReader``
    .npy                             ``monai.data.NumpyReader``
    .dcm .ima, other DICOM, folder   ``monai.data.PydicomReader``
    ===============================  ==================================

    Use it by name: ``LoadImaged(keys, reader="monai_labelfx.data.AutoReader", ensure_channel_first=True)``. Arrays come
    in MONAI's order, axis 0 is x.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: an unknown suffix, a folder without DICOM files, files of several kinds as channels of one image, or
            a corrupt or incomplete file: one sentence with the file name.

    Notes:
        ``read`` only hands on the names and ``get_data`` reads: when ``read`` of a chosen reader fails, ``LoadImage``
        tries each of its other readers and then shows all their tracebacks. Compressed NIfTI files whose header
        announces more than deflate can hold (1032 : 1) are refused before anything is allocated.

    Example:
        >>> import numpy as np, tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(Path(folder, "array.npy"), np.zeros((4, 3)))
        ...     array, meta = AutoReader().get_data([Path(folder, "array.npy")])
        >>> array.shape
        (4, 3)
    """

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
        reader = _READERS[kind][0]()  # a fresh one: MONAI's readers keep file names, and caches load in threads
        for name in names:
            if not os.path.exists(name):
                raise FileNotFoundError(f"image file {name!r} does not exist")
        with reading(names[0], kind):
            opened = reader.read(names)
            if kind == "NIfTI":
                for name, image in zip(names, ensure_tuple(opened), strict=True):
                    _check_nifti(name, image)
            return reader.get_data(opened)


def _names(data: Sequence[PathLike] | PathLike) -> tuple[str, ...]:
    return tuple(str(name) for name in ensure_tuple(data))


def _kind(names: tuple[str, ...]) -> str:
    kinds = [_kind_of_one(name) for name in names]
    if len(set(kinds)) != 1:
        raise ImageFileError(f"files of one image must be of one kind, got {dict(zip(names, kinds, strict=True))}")
    return kinds[0]


def _kind_of_one(name: str) -> str:
    if os.path.isdir(name):
        if any(_is_dicom(entry) for entry in Path(name).iterdir()):
            return "DICOM"
        raise ImageFileError(
            f"folder {name!r} holds no DICOM file, expected an image file or a folder with a DICOM series"
        )
    for kind, (_, suffixes) in _READERS.items():
        if name.lower().endswith(suffixes):
            return kind
    if not os.path.exists(name):
        raise FileNotFoundError(f"image file {name!r} does not exist")
    if _is_dicom(Path(name)):
        return "DICOM"
    known = " ".join(suffix for _, suffixes in _READERS.values() for suffix in suffixes)
    raise ImageFileError(f"image file {name!r} is of no known kind, expected DICOM or one of {known}")


def _is_dicom(path: Path) -> bool:
    from pydicom.misc import is_dicom

    return path.is_file() and is_dicom(path)


def _check_nifti(name: str, image: Any) -> None:
    needed = math.prod(image.shape) * image.get_data_dtype().itemsize
    check_size(name, "NIfTI", needed, 1032.0 if name.lower().endswith(".gz") else 1.0)
