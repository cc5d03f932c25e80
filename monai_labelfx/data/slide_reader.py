# SPDX-License-Identifier: Apache-2.0
"""MONAI's reader interface of whole slides, without loading whole levels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.config import DtypeLike, PathLike
from monai.data import BaseWSIReader
from monai.utils import ensure_tuple

from monai_labelfx.data._picture_facts import picture_facts
from monai_labelfx.data._slide_file import SlideFile, open_slide

__all__ = ["SlideReader"]


class SlideReader(BaseWSIReader):
    r"""Reader of tiled TIFF and SVS slides for ``PatchWSIDataset``, ``SlidingPatchWSIDataset`` and the like of MONAI.

    A region costs the tiles of the file that it touches. What lies outside the slide is white, so that a patch always
    has the size that was asked for. Levels are those of the first image of the file, wherever they are stored
    (sub-files of OME-TIFF, or pages); previews, labels and macro pictures of SVS are none.

    Arrays, places and sizes are those of MONAI's interface: (C, H, W), ``location`` (top, left) in voxels of level 0,
    ``size`` (height, width) in voxels of the level. For arrays with x first, as the other readers of this package give
    them, see :py:class:`LoadSlideTiled`.

    Args:
        level, mpp, power, channel_dim, dtype, device, mode: as of ``monai.data.WSIReader``. The power is told by SVS
            only, and slides have no alpha: ``mode`` must be "RGB".

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file without a TIFF page, with other values than 8-bit grey or RGB, cut off or damaged, or
            compressed in a way that needs imagecodecs; a level, pixel size or power that the slide does not have.

    Notes:
        ``monai.data.WSIReader("tifffile")`` of MONAI 1.6.1 decodes the whole level for each patch and copies it. It
        does not see levels in sub-files, and takes the preview of an SVS for its level 1, whose patches then come from
        the wrong place.

    Example:
        >>> import tifffile
        >>> from monai.data import PatchWSIDataset
        >>> tifffile.imwrite("slide.tif", np.full((96, 64, 3), 200, "uint8"), tile=(32, 32), photometric="rgb")
        >>> items = [{"image": "slide.tif", "location": (40, 8)}]
        >>> PatchWSIDataset(items, (48, 16), 0, include_label=False, reader=SlideReader)[0]["image"].shape
        torch.Size([3, 48, 16])
    """

    supported_suffixes = ["tif", "tiff", "svs"]
    backend = "tifffile"

    def __init__(self, level: int | None = None, *, mode: str = "RGB", **options: Any) -> None:
        if mode != "RGB":
            raise ValueError(f"mode must be 'RGB', as slides have no alpha, got {mode!r}")
        super().__init__(level=level, mode=mode, **options)

    def read(self, data: Sequence[PathLike] | PathLike | np.ndarray, **kwargs: Any) -> Any:
        """The slide of a file, or a list of them; open files are kept and shared."""
        found = [open_slide(os.fspath(name)) for name in ensure_tuple(data)]
        return found if len(found) > 1 else found[0]

    def get_level_count(self, wsi: SlideFile) -> int:
        """Number of levels."""
        return len(wsi.shapes)

    def get_size(self, wsi: SlideFile, level: int) -> tuple[int, int]:
        """(height, width) of a level."""
        return wsi.shapes[level][::-1]

    def get_downsample_ratio(self, wsi: SlideFile, level: int) -> float:
        """Voxels of level 0 for one of this level, along an axis."""
        return wsi.shapes[0][1] / wsi.shapes[level][1]

    def get_file_path(self, wsi: SlideFile) -> str:
        """The absolute path of the file."""
        return os.path.abspath(wsi.path)

    def get_mpp(self, wsi: SlideFile, level: int) -> tuple[float, float]:
        """Micrometres per voxel (y, x)."""
        size = picture_facts({"image": wsi.path}).micrometres
        if size is None:
            raise ValueError(f"slide {wsi.path!r} does not say how large its pixels are: use level instead of mpp")
        x, y = (first / own for first, own in zip(wsi.shapes[0], wsi.shapes[level], strict=True))
        return size * y, size * x

    def get_power(self, wsi: SlideFile, level: int) -> float:
        """Magnification of the objective, divided by the ratio of the level."""
        power = picture_facts({"image": wsi.path}).magnification
        if power is None:
            raise ValueError(f"slide {wsi.path!r} does not say the power of its objective: use level or mpp")
        return power / self.get_downsample_ratio(wsi, level)

    def _get_patch(
        self,
        wsi: SlideFile,
        location: tuple[int, int],
        size: tuple[int, int],
        level: int,
        dtype: DtypeLike,
        mode: str,
    ) -> np.ndarray:
        ratio = self.get_downsample_ratio(wsi, level)
        top, left = (round(place / ratio) for place in location)
        patch = wsi.region((left, top), (size[1], size[0]), level)
        return np.moveaxis(patch.transpose(1, 0, 2).astype(dtype), -1, self.channel_dim)
