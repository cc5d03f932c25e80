# SPDX-License-Identifier: Apache-2.0
"""A 2-D network on every slice of a volume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer


class SlicewiseInferer(Inferer):
    """Give a network of ``spatial_dims`` axes what it takes: images as they are, volumes slice by slice.

    So one configuration evaluates a 2-D network on 2-D images and on whole volumes, in slices of any size, and a 3-D
    network on volumes. (MONAI's ``SliceInferer`` takes volumes only, and pads slices to its window.)

    Args:
        inferer: runs the network, on slices as a batch (B, C, *spatial).
        spatial_dims: spatial axes of the network's input.
        axis: the spatial axis that slices are numbered along. Default -1, the last.
        batch_size: slices run at once. Default 8.

    Shape:
        - inputs: (B, C, *spatial) with ``spatial_dims`` spatial axes, or one more.
        - output: (B, K, *spatial).

    Raises:
        ValueError: if the input has another number of axes.

    Example:
        >>> import torch
        >>> from monai.inferers import SimpleInferer
        >>> network = torch.nn.Conv2d(1, 2, 3, padding=1)
        >>> SlicewiseInferer(SimpleInferer(), spatial_dims=2)(torch.rand(1, 1, 8, 9, 3), network).shape
        torch.Size([1, 2, 8, 9, 3])
    """

    def __init__(self, inferer: Inferer, *, spatial_dims: int, axis: int = -1, batch_size: int = 8) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or above, got {batch_size}.")
        self.inferer, self.spatial_dims, self.axis, self.batch_size = inferer, spatial_dims, axis, batch_size

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        extra = inputs.ndim - 2 - self.spatial_dims
        if extra not in (0, 1):
            raise ValueError(
                f"a network of {self.spatial_dims} spatial axes takes inputs (B, C, *spatial) with {self.spatial_dims} "
                f"or {self.spatial_dims + 1} of them, got {tuple(inputs.shape)}."
            )
        if not extra:
            return self.inferer(inputs, network, *args, **kwargs)
        axis = self.axis if self.axis < 0 else self.axis + 2
        slices = inputs.movedim(axis, 1)
        batch = slices.flatten(0, 1)
        parts = [self.inferer(part, network, *args, **kwargs) for part in batch.split(self.batch_size)]
        return torch.cat(parts).unflatten(0, slices.shape[:2]).movedim(1, axis)
