# SPDX-License-Identifier: Apache-2.0
"""A large batch, a few images at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer


class BatchInferer(Inferer):
    r"""Run a network on parts of the batch, so that memory does not grow with its size.

    For batches whose size the data set decides, such as all patches of an image.

    Args:
        batch_size: images run at once.

    Shape:
        - inputs: (B, C, \*spatial).
        - output: what the network returns for B images.

    Raises:
        ValueError: if ``batch_size`` is below 1.

    Example:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> BatchInferer(8)(torch.rand(20, 1, 4, 4), network).shape
        torch.Size([20, 2])
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or above, got {batch_size}.")
        self.batch_size = batch_size

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        return torch.cat([network(part, *args, **kwargs) for part in inputs.split(self.batch_size)])
