# SPDX-License-Identifier: Apache-2.0
"""Find the DICOM image series of a folder, a file or a list of files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from monai.config import PathLike

from monai_labelfx.data._dicom_frames import Frame, frames_of

__all__ = ["DicomSeries", "find_dicom_series"]

_SUFFIXES = (".dcm", ".ima")


@dataclass(frozen=True, slots=True)
class DicomSeries:
    """One image series: ``uid``, ``description`` (free text from the scanner), ``modality`` and its image planes.

    Example:
        >>> DicomSeries("1.2.3", "thorax 5 mm", "CT", ()).size
        (0, 0, 0)
    """

    uid: str
    description: str
    modality: str
    frames: tuple[Frame, ...]

    @property
    def size(self) -> tuple[int, int, int]:
        """Columns, rows and number of image planes; columns and rows of the first plane."""
        return (self.frames[0].columns, self.frames[0].rows, len(self.frames)) if self.frames else (0, 0, 0)

    @property
    def paths(self) -> tuple[str, ...]:
        """Its files, each once, absolute."""
        return tuple(dict.fromkeys(frame.path for frame in self.frames))

    def __str__(self) -> str:
        columns, rows, count = self.size
        uid = self.uid or "no SeriesInstanceUID"
        text = f"'{self.description}', {columns} x {rows} x {count}, {self.modality or 'no modality'}, {uid}"
        return "".join(letter for letter in text if letter.isprintable())


def find_dicom_series(path: PathLike | Sequence[PathLike], *, recursive: bool = False) -> list[DicomSeries]:
    """The image series below ``path``, grouped by SeriesInstanceUID; only headers are read.

    Args:
        path: a folder, a file, or a list of files. In a folder, what is no DICOM file, hidden files, and DICOM objects
            that are no image (SR, PR, RTSTRUCT, RTDOSE, SEG, DICOMDIR) are ignored.
        recursive: also look into the folders of a folder.

    Returns:
        The series in the order of their UIDs; none where there is no image.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a file that was named, or that ends in .dcm or .ima, cannot be read as DICOM (a cut off export).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     find_dicom_series(folder)
        []
    """
    groups: dict[str, list[Frame]] = {}
    for name in _files(path, recursive):
        for frame in frames_of(name):
            groups.setdefault(frame.series_uid, []).append(frame)
    return [
        DicomSeries(uid, frames[0].description, frames[0].modality, tuple(frames))
        for uid, frames in sorted(groups.items())
    ]


def _files(path: PathLike | Sequence[PathLike], recursive: bool) -> Iterator[str]:
    if isinstance(path, Sequence) and not isinstance(path, str):
        for name in path:
            yield os.fspath(name)
    elif not os.path.isdir(path):
        yield os.fspath(path)
    else:
        for folder, below, names in os.walk(os.fspath(path), onerror=_raise):
            below[:] = sorted(name for name in below if not name.startswith(".")) if recursive else []
            yield from (name for name in (os.path.join(folder, one) for one in sorted(names)) if _is_candidate(name))


def _raise(error: OSError) -> None:
    raise error


def _is_candidate(path: str) -> bool:
    """Files that must be readable as DICOM; those without a telling suffix are asked for the DICOM preamble."""
    from pydicom.misc import is_dicom

    if os.path.basename(path).startswith(".") or not os.path.isfile(path):  # "._1.dcm": left behind by other systems
        return False
    return path.lower().endswith(_SUFFIXES) or is_dicom(path)
