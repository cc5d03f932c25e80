# SPDX-License-Identifier: Apache-2.0
"""Load one tile of a whole slide."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import MetaKeys, SpaceKeys

from monai_labelfx.data._slide_file import SlideFile, open_slide

__all__ = ["LoadSlideTiled"]


class LoadSlideTiled(MapTransform):
    """Load the tile of an item of :py:func:`slide_tiles`: a ``MetaTensor`` (3, x, y) of uint8, x first.

    Only the tiles of the file that it touches are read; open slides are kept in each worker. In the meta data are
    ``filename_or_obj``, the affine (mm; as of a whole level 0 that has its first voxel at 0, so that tiles and masks
    lie where they belong; one voxel of level 0 is 1 where the slide tells no size), and what the item has under
    ``tile``, as ``tile_start``, ``tile_core``, and so on; ``tile`` itself is taken out of the item.

    Args:
        keys: key of the slide. Default "image".
        tile_key: key of the tile. Default "tile".

    Raises:
        KeyError: an item without slide or tile.
        FileNotFoundError: no such file.
        ValueError: an unusable file, one sentence with its name.

    Example:
        >>> import tifffile
        >>> from monai_labelfx.data.slide_tiles import slide_tiles
        >>> tifffile.imwrite("slide.tif", np.full((96, 64, 3), (200, 90, 160), "uint8"), tile=(32, 32))
        >>> tile = slide_tiles("slide.tif", tile_size=48, overlap=0)[1]
        >>> image = LoadSlideTiled()(tile)["image"]
        >>> image.shape, image.meta["tile_start"].tolist()
        (torch.Size([3, 48, 48]), [16, 0])
    """

    def __init__(self, keys: KeysCollection = "image", *, tile_key: str = "tile") -> None:
        super().__init__(keys)
        self.tile_key = tile_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.tile_key not in item:
            raise KeyError(f"the item has no {self.tile_key!r}: LoadSlideTiled loads items of slide_tiles")
        tile = item.pop(self.tile_key)
        for key in self.key_iterator(item):
            slide = open_slide(item[key])
            values = slide.resampled(tuple(tile["start"]), tuple(tile["size"]), tuple(tile["shape"]), tile["level"])
            image = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0)))
            item[key] = MetaTensor(image, meta=_meta(slide, tile))
        return item


def _meta(slide: SlideFile, tile: Mapping[str, Any]) -> dict[str, Any]:
    ratio = np.divide(slide.shapes[0], tile["shape"])
    spacing = ratio if "mpp" not in tile else np.array([tile["mpp"] / 1000] * 2)
    affine = np.eye(4)
    affine[[0, 1], [0, 1]] = spacing
    # a voxel of a coarser grid has its centre in the middle of those it stands for
    affine[:2, 3] = (np.array(tile["start"]) + 0.5 - 0.5 / ratio) * spacing
    numbers = {f"tile_{name}": np.array(value) for name, value in tile.items()}
    return {
        str(MetaKeys.AFFINE): torch.from_numpy(affine),
        str(MetaKeys.ORIGINAL_AFFINE): affine.copy(),
        str(MetaKeys.SPATIAL_SHAPE): np.array(tile["size"]),
        str(MetaKeys.ORIGINAL_CHANNEL_DIM): 0,
        str(MetaKeys.SPACE): str(SpaceKeys.RAS),
        "filename_or_obj": slide.path,
        **numbers,
    }
