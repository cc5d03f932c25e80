# SPDX-License-Identifier: Apache-2.0
"""Probabilities of several classes that may overlap to one label map."""

from __future__ import annotations

from typing import SupportsFloat

import torch
from monai.config import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

from monai_labelfx.transforms._keyed import Keyed


class ThresholdClasses(Transform):
    r"""Label map of probabilities with a channel for each class: the most probable class above a threshold.

    A voxel gets the number c + 1 of the channel with the highest probability if that exceeds the threshold, else 0; of
    equal ones the first.

    Args:
        threshold: 0 to 1, or an object with ``float(threshold)`` that is read at each call, such as
            :py:class:`~monai_labelfx.engines.BoxThreshold`. Default 0.5.

    Shape:
        - input: (C, \*spatial), probabilities.
        - output: (1, \*spatial), uint8, or int16 from 256 classes on; with the meta data of the input.

    Raises:
        ValueError: when the threshold lies outside 0 to 1.

    Example:
        >>> import torch
        >>> probabilities = torch.tensor([[[0.9, 0.6, 0.1]], [[0.2, 0.7, 0.3]]])
        >>> ThresholdClasses()(probabilities).tolist()
        [[[1, 2, 0]]]
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, threshold: SupportsFloat = 0.5) -> None:
        self.threshold = threshold
        _share(threshold)

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        probabilities = convert_to_tensor(img, track_meta=get_track_meta())
        best, channel = probabilities.as_subclass(torch.Tensor).max(dim=0, keepdim=True)
        dtype = torch.uint8 if len(probabilities) < 256 else torch.int16
        labels = torch.where(best > _share(self.threshold), channel + 1, 0).to(dtype)
        return convert_to_dst_type(labels, probabilities, dtype=dtype)[0]


class ThresholdClassesd(Keyed):
    array = ThresholdClasses


def _share(threshold: SupportsFloat) -> float:
    value = float(threshold)
    if not 0 <= value <= 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {value}.")
    return value
