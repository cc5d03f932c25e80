# SPDX-License-Identifier: Apache-2.0
"""A file name of its own for the prediction of each image, wherever the image lies."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data.folder_layout import FolderLayoutBase

from monai_labelfx.data.find_images import SUFFIXES

__all__ = ["OutputLayout"]


class OutputLayout(FolderLayoutBase):
    """Folder layout for ``SaveImage`` in which no prediction overwrites that of another image.

    Below ``output_dir`` the folders of the images are repeated, from the deepest one that holds them all: images in one
    folder give ``<name>_<postfix>``, those of ``patient1/series1`` and ``patient2/series1`` one file in ``patient1``
    and one in ``patient2``. Only the suffix of an image file is taken off a name, so a series folder that is called by
    its UID keeps all of it. Where two names of one folder would be equal (``a.png``, ``a.tif``), both keep the suffix.

    Args:
        output_dir: folder to write into.
        postfix: what the file holds, such as "instances".
        extension: suffix of the file, such as ".nii.gz".
        images: all images that are predicted: paths, or items with a path or a list of paths under ``key``.
        key: key of the items.

    Raises:
        ValueError: two images with the same path, or a name asked for that is not among ``images``.

    Notes:
        MONAI's default layout takes only the last part of a path, without what follows its last dot: series of
        different patients end in one file, and so do those of one study whose folders are called by their UIDs.

    Example:
        >>> layout = OutputLayout("out", postfix="seg", extension=".nii.gz", images=["p1/1.2.3", "p2/1.2.3"])
        >>> Path(layout.filename("p2/1.2.3")).as_posix()
        'out/p2/1.2.3_seg.nii.gz'
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        *,
        postfix: str,
        extension: str,
        images: Sequence[Any],
        key: str = "image",
    ) -> None:
        paths = [os.path.abspath(_first(image[key] if isinstance(image, Mapping) else image)) for image in images]
        twice = [path for path, count in Counter(paths).items() if count > 1]
        if twice:
            raise ValueError(f"image {twice[0]!r} is listed twice, so its predictions would overwrite each other")
        root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
        stems = {path: os.path.join(os.path.dirname(path), _stem(os.path.basename(path))) for path in paths}
        shared = Counter(stems.values())
        end = f"_{postfix}{extension}"
        self._names = {
            path: Path(output_dir, os.path.relpath(path if shared[stem] > 1 else stem, root) + end)
            for path, stem in stems.items()
        }

    def filename(self, subject: Any = "", **kwargs: Any) -> str:
        """The file for the image ``subject``; its folder is made."""
        name = self._names.get(os.path.abspath(os.fspath(subject)))
        if name is None:
            raise ValueError(f"image {os.fspath(subject)!r} is not among the {len(self._names)} images of this layout")
        name.parent.mkdir(parents=True, exist_ok=True)
        return str(name)


def _first(paths: Any) -> str:
    return os.fspath(paths if isinstance(paths, (str, os.PathLike)) else paths[0])


def _stem(name: str) -> str:
    found = [suffix for suffix in (*SUFFIXES, ".svs") if name.lower().endswith(suffix) and len(name) > len(suffix)]
    return name[: -len(max(found, key=len))] if found else name
