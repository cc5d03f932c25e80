# SPDX-License-Identifier: Apache-2.0
"""Patches of as many axes as the network has, from images, from slices of volumes, or from volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import NdarrayOrTensor
from monai.transforms import RandomizableTransform
from monai.utils import TransformBackends

from monai_labelfx.transforms._keyed import RandKeyed

__all__ = ["RandSlicePatch", "RandSlicePatchd"]


class RandSlicePatch(RandomizableTransform):
    r"""Cut a patch of ``len(patch_size)`` axes at random, from a random slice where the image has one axis more.

    So one datalist of 2-D images, of volumes, or of both trains a 2-D network, and the same transform with three sizes
    trains a 3-D one. The corner is uniform over all places at least ``margin`` voxels inside the image. Images that are
    smaller than patch and margins are cut without a margin, and repeated at the edge where they are smaller than the
    patch. The result is a plain tensor: no loss reads meta data.

    Args:
        patch_size: sizes of the patch, one for each axis of the network.
        margin: voxels at the edge of the image that are left out. The released code of the paper leaves 30.

    Shape:
        - input: (C, \*spatial) with D or D + 1 spatial axes, D = len(patch_size); slices lie along the last axis.
        - output: (C, \*patch_size).

    Raises:
        ValueError: for sizes below 1, a negative margin, or an image with another number of axes.

    Example:
        >>> import torch
        >>> cut = RandSlicePatch((8, 8)).set_random_state(seed=0)
        >>> cut(torch.zeros(1, 20, 16)).shape, cut(torch.zeros(1, 20, 6, 5)).shape
        (torch.Size([1, 8, 8]), torch.Size([1, 8, 8]))
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, patch_size: Sequence[int], margin: int = 0) -> None:
        super().__init__()
        if not patch_size or any(size < 1 for size in patch_size):
            raise ValueError(f"patch_size must hold whole numbers of 1 or more, got {patch_size!r}.")
        if margin < 0:
            raise ValueError(f"margin must be 0 or more voxels, got {margin}.")
        self.patch_size = tuple(patch_size)
        self.margin = margin
        self._slice = 0
        self._corner: tuple[int, ...] = ()

    def randomize(self, data: Any) -> None:
        """Draw the slice and the corner of the next patch of an image like ``data``."""
        axes = len(self.patch_size)
        self._slice = int(self.R.randint(data.shape[1 + axes])) if data.ndim > 1 + axes else 0
        corner = []
        for size, extent in zip(self.patch_size, data.shape[1 : 1 + axes], strict=False):
            margin = self.margin if extent >= size + 2 * self.margin else 0
            corner.append(margin + int(self.R.randint(max(extent - size - 2 * margin, 0) + 1)))
        self._corner = tuple(corner)

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> torch.Tensor:
        """Cut one image; with ``randomize=False`` at the place of the last draw."""
        axes = len(self.patch_size)
        if img.ndim not in (1 + axes, 2 + axes):
            raise ValueError(
                f"a patch of size {self.patch_size} is cut from (C, *spatial) with {axes} or {axes + 1} spatial axes, "
                f"got shape {tuple(img.shape)}."
            )
        if randomize:
            self.randomize(img)
        image = torch.as_tensor(np.asarray(img) if isinstance(img, np.ndarray) else img).as_subclass(torch.Tensor)
        image = image[..., self._slice] if image.ndim > 1 + axes else image
        places = [slice(start, start + size) for start, size in zip(self._corner, self.patch_size, strict=True)]
        patch = image[:, *places]
        missing = [size - have for size, have in zip(self.patch_size, patch.shape[1:], strict=True)]
        if any(missing):
            pad = [n for gap in reversed(missing) for n in (gap // 2, gap - gap // 2)]
            patch = F.pad(patch[None].float(), pad, mode="replicate")[0].to(patch.dtype)
        return patch.contiguous()


class RandSlicePatchd(RandKeyed):
    array = RandSlicePatch
