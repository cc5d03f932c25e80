# SPDX-License-Identifier: Apache-2.0
"""Class probabilities of DenoiSeg to separate objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsFloat

import torch
from monai.config import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

from monai_labelfx.ops import decode_instances
from monai_labelfx.transforms._keyed import Keyed


class BorderClassesToInstances(Transform):
    """Instance labels from the probabilities of background, foreground and border.

    See :func:`monai_labelfx.ops.decode_instances` for the steps. The input has shape (3, \\*spatial). The result is a
    mapping from suffix to array, ``{"_instances": labels}`` with labels (1, \\*spatial) int32 that keep the meta data;
    so the dictionary twin leaves ``key`` as it is and writes ``key + "_instances"``.

    Args:
        threshold: foreground probability above which a voxel is an object's: a number, or any object with
            ``__float__``, which is asked at each call (a threshold may be loaded from a checkpoint after this transform
            was built). Default 0.5; the paper searches it on validation images.
        min_size: smallest component to keep, in voxels. Default 0.
        fill_holes: give each hole that one single object encloses to that object. Default ``False``, the reference.
        connectivity: how many axes two voxels of one object may differ in. Default 1, the reference.
        growth: voxels to grow where objects touch, one number or one per axis: the ``border_width`` in voxels of the
            training target. Default 1; 0 is the reference.

    Raises:
        TypeError: when ``threshold`` cannot be read as a number.
        ValueError: at the call, when the input has not three channels or an argument is out of its range.

    Example:
        >>> probabilities = torch.tensor([[[0.9, 0.1, 0.1]], [[0.1, 0.8, 0.9]], [[0.0, 0.1, 0.0]]])
        >>> BorderClassesToInstances()(probabilities)["_instances"].tolist()
        [[[0, 1, 1]]]
    """

    backend = [TransformBackends.NUMPY]

    def __init__(
        self,
        threshold: SupportsFloat = 0.5,
        *,
        min_size: int = 0,
        fill_holes: bool = False,
        connectivity: int = 1,
        growth: int | Sequence[int] = 1,
    ) -> None:
        if not hasattr(threshold, "__float__"):
            raise TypeError(f"threshold must be a number or have __float__, got {type(threshold).__name__}.")
        self.threshold = threshold
        self.min_size = min_size
        self.fill_holes = fill_holes
        self.connectivity = connectivity
        self.growth = growth

    def __call__(self, img: NdarrayOrTensor) -> dict[str, torch.Tensor]:
        image = convert_to_tensor(img, track_meta=get_track_meta())
        labels = decode_instances(
            image.as_subclass(torch.Tensor),
            float(self.threshold),
            min_size=self.min_size,
            fill_holes=self.fill_holes,
            connectivity=self.connectivity,
            growth=self.growth,
        )
        return {"_instances": convert_to_dst_type(labels, image, dtype=torch.int32)[0]}


class BorderClassesToInstancesd(Keyed):
    array = BorderClassesToInstances
