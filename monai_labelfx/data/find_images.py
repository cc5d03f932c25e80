# SPDX-License-Identifier: Apache-2.0
"""The images to run a network on, from one path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from monai_labelfx.data.dicom_series import DicomSeries, find_dicom_series

SUFFIXES = (".nii", ".nii.gz", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".npy", ".dcm", ".ima")


def find_images(
    path: str | Path, *, key: str = "image", series: str | Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """List the images of a path as MONAI items.

    Args:
        path: an image file; a folder of image files; a folder that holds one DICOM series, which is one image; a folder
            of DICOM images without a position (X-ray, ultrasound), each of which is one; or a folder of such folders,
            such as a PACS export. DICOM files may have any suffix or none.
        key: key of the items.
        series: SeriesInstanceUID, one or several: only these series, wherever they lie below ``path``.

    Returns:
        Items ``{key: path}`` in alphabetical order; with ``series``, ``{key: [its files]}`` in the order asked.

    Raises:
        FileNotFoundError: the path does not exist or holds no image.
        ValueError: a series that is not there, or a DICOM file that cannot be read. A folder with several series of
            slices is listed as one image here, and refused by the reader, which then lists the series.

    Example:
        >>> from pathlib import Path
        >>> for name in ("b.png", "a.tif", "notes.txt"):
        ...     Path(name).touch()
        >>> [item["image"] for item in find_images(".")]
        ['a.tif', 'b.png']
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"no image at {root}: expected a file, a folder of images or a DICOM series")
    if series is not None:
        return [{key: files} for files in _chosen(root, ensure_tuple(series))]
    found = [root] if root.is_file() else _in_folder(root)
    if not found:
        raise FileNotFoundError(
            f"{root} holds no image: expected DICOM files or files ending in {', '.join(SUFFIXES[:-2])}"
        )
    return [{key: str(image)} for image in found]


def _chosen(root: Path, wanted: Sequence[str]) -> list[list[str]]:
    there = {one.uid: one for one in find_dicom_series(root, recursive=True)}
    for uid in wanted:
        if uid not in there:
            known = "; ".join(f"{one.uid} ({one.modality}, {len(one.frames)} images)" for one in there.values())
            raise ValueError(f"no series {uid!r} below {str(root)!r}; there are: {known or 'none'}")
    return [sorted({str(file) for file in there[uid].paths}) for uid in wanted]


def _in_folder(folder: Path) -> list[Path]:
    images, has_dicom, folders = entries_of(folder)
    if has_dicom:
        images += _dicom_images(folder)
    return sorted(images) + [image for entry in folders for image in _in_folder(entry)]


def entries_of(folder: Path) -> tuple[list[Path], bool, list[Path]]:
    """Image files other than DICOM, whether there are DICOM files, and sub-folders; hidden entries are left out."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.is_file()]
    dicom = set(dicom_files(folder))
    images = [entry for entry in files if entry.name.lower().endswith(SUFFIXES) and entry not in dicom]
    return images, bool(dicom), [entry for entry in entries if entry.is_dir()]


def dicom_files(folder: Path) -> list[Path]:
    """The files of a folder that are DICOM, or say so by their suffix."""
    return sorted(e for e in folder.iterdir() if e.is_file() and not e.name.startswith(".") and _is_dicom(e))


def images_of_series(series: DicomSeries) -> list[list[str]]:
    """The files of each image: all files together where they are slices, one by one where they have no position."""
    files = sorted({str(path) for path in series.paths})
    return [files] if any(frame.position is not None for frame in series.frames) else [[file] for file in files]


def _dicom_images(folder: Path) -> list[Path]:
    """The folder itself where its files are slices, the files where each is an image of its own."""
    there = find_dicom_series(folder)
    if any(frame.position is not None for one in there for frame in one.frames):
        return [folder]
    return [Path(image[0]) for one in there for image in images_of_series(one)]


def _is_dicom(file: Path) -> bool:
    if file.suffix.lower() in (".dcm", ".ima"):
        return True
    with file.open("rb") as stream:
        stream.seek(128)
        return stream.read(4) == b"DICM"
