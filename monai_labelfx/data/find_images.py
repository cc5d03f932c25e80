# SPDX-License-Identifier: Apache-2.0
"""The images to run a network on, from one path."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".nii", ".nii.gz", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".npy", ".dcm")


def find_images(path: str | Path, *, key: str = "image") -> list[dict[str, str]]:
    """List the images of a path as MONAI items.

    Args:
        path: an image file; a folder of image files; a folder that holds one DICOM series (files ending in ``.dcm``,
            or without any suffix), which is one image; or a folder of such folders.
        key: key of the items.

    Returns:
        Items ``{key: path}`` in alphabetical order.

    Raises:
        FileNotFoundError: if the path does not exist or holds no image.

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
    found = [root] if root.is_file() else _in_folder(root)
    if not found:
        raise FileNotFoundError(f"{root} holds no image: expected files ending in {', '.join(SUFFIXES)}")
    return [{key: str(image)} for image in found]


def _in_folder(folder: Path) -> list[Path]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.is_file()]
    if any(_is_dicom(entry) for entry in files):
        return [folder]
    images = [entry for entry in files if entry.name.lower().endswith(SUFFIXES)]
    return images + [image for entry in entries if entry.is_dir() for image in _in_folder(entry)]


def _is_dicom(file: Path) -> bool:
    if file.suffix.lower() == ".dcm":
        return True
    if file.suffix:
        return False
    with file.open("rb") as stream:
        stream.seek(128)
        return stream.read(4) == b"DICM"
