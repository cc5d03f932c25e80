# SPDX-License-Identifier: Apache-2.0
"""Predicted tiles of whole slides, put together into one label map per slide."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from monai_labelfx.data._slide_mask import SlideMask
from monai_labelfx.data.output_layout import OutputLayout

__all__ = ["SaveSlideTilesd"]


class SaveSlideTilesd(MapTransform):
    """Write the cores of predicted tiles into one TIFF of class numbers for each slide.

    Stands where ``SaveImaged`` stands for whole images, behind the transform that makes class numbers of
    probabilities. A tile is written into a map on disk as it comes, in any order; when the last one of a slide is
    there, the map becomes ``<name>_<postfix>.tif``: uint8, deflated tiles in levels, with the size of the voxels. What
    was left out for want of tissue is background, 0. Memory is that of a tile. What is unfinished leaves no file.

    Args:
        keys: key of the class numbers, (1, x, y) as large as the tile, with the meta data of
            :py:class:`LoadSlideTiled`, which networks and inferers hand on from their input.
        output_dir: folder to write into; names are those of :py:class:`OutputLayout`.
        tiles: all items of :py:func:`slide_tiles` that are predicted.
        postfix: what the file holds. Default "segmentation".
        image_key: key of the slide in ``tiles``.
        allow_missing_keys: pass items without the key over.

    Raises:
        ValueError: in a process that is one of several, or two slides with one path; in the call, for a tile that is
            not among ``tiles`` or comes again, another shape than that of the tile, meta data without a tile, or values
            other than whole numbers from 0 to 255.

    Example:
        >>> import tempfile, tifffile
        >>> from monai_labelfx.data.load_slide_tile import LoadSlideTiled
        >>> from monai_labelfx.data.slide_tiles import slide_tiles
        >>> tifffile.imwrite("slide.tif", np.full((96, 64, 3), (200, 90, 160), "uint8"), tile=(32, 32))
        >>> tiles = slide_tiles("slide.tif", tile_size=48, overlap=16)
        >>> save = SaveSlideTilesd("pred", output_dir="out", tiles=tiles)
        >>> for tile in tiles:
        ...     _ = save({"pred": LoadSlideTiled()(tile)["image"][:1] > 128})
        >>> tifffile.imread("out/slide_segmentation.tif").shape
        (96, 64)
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        output_dir: str | os.PathLike,
        tiles: Sequence[Mapping[str, Any]],
        postfix: str = "segmentation",
        image_key: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if len(self.keys) != 1 or ranks > 1:
            raise ValueError(f"SaveSlideTilesd takes one key, in one process, got {self.keys} in {ranks}")
        names = [os.path.abspath(item[image_key]) for item in tiles]
        self.layout = OutputLayout(output_dir, postfix=postfix, extension=".tif", images=list(dict.fromkeys(names)))
        self._missing = Counter(zip(names, (_place(item["tile"]["core"]) for item in tiles), strict=True))
        self._left = Counter(names)
        self._masks: dict[str, SlideMask] = {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            self._write(item[key])
        return item

    def _write(self, pred: Any) -> None:
        meta = pred.meta if isinstance(pred, MetaTensor) else {}
        if "tile_core" not in meta or not meta.get("filename_or_obj"):
            raise ValueError("SaveSlideTilesd needs a prediction with the meta data of LoadSlideTiled, found none")
        name = os.path.abspath(str(meta["filename_or_obj"]))
        core, size = _place(meta["tile_core"]), _place(meta["tile_size"])
        if not self._missing[name, core]:
            raise ValueError(f"tile {core} of slide {name!r} is not among those to write, or was there before")
        values = _class_numbers(pred, size, name)
        start = [c - s for c, s in zip(core[:2], _place(meta["tile_start"]), strict=True)]
        kept = values[start[0] : start[0] + core[2], start[1] : start[1] + core[3]]
        if name not in self._masks:
            mpp = float(meta["tile_mpp"]) if "tile_mpp" in meta else None
            self._masks[name] = SlideMask(self.layout.filename(name), _place(meta["tile_shape"]), mpp=mpp)
        self._masks[name].write(core[:2], kept)
        self._missing[name, core] -= 1
        self._left[name] -= 1
        if not self._left[name]:
            self._masks.pop(name).save()


def _place(numbers: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in numbers)


def _class_numbers(pred: torch.Tensor, size: tuple[int, ...], name: str) -> np.ndarray:
    """(x, y) uint8."""
    if tuple(pred.shape) != (1, *size):
        raise ValueError(
            f"the prediction of a tile {size} of slide {name!r} must be (1, x, y), got {tuple(pred.shape)}"
        )
    values = pred.detach().as_subclass(torch.Tensor)[0]
    numbers = values.to(torch.uint8)
    if not torch.equal(numbers.to(values.dtype), values):
        raise ValueError(
            f"the prediction of slide {name!r} must hold class numbers from 0 to 255, found {values.min().item():g} to "
            f"{values.max().item():g}: put AsDiscreted before SaveSlideTilesd"
        )
    return numbers.cpu().numpy()
