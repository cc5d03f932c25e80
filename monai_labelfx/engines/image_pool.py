# SPDX-License-Identifier: Apache-2.0
"""Memory of earlier fakes, so that a discriminator does not forget what generators did before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


class ImagePool:
    """Buffer of images: each image that comes is returned, or kept and an older one returned in its place.

    Until ``size`` images are there, every image is kept and returned. From then on an image is returned with
    probability 1 - p; otherwise an image of the pool, drawn with equal chances, is returned and the new one takes its
    place (Shrivastava et al. 2017; size 50 and p = 0.5 as in cycleGAN). The images of a batch come one after another,
    so that a batch may get one of its own.

    Numbers are drawn from torch's global generator on the CPU, which
    :py:class:`~monai_labelfx.engines.SeedEpoch` seeds, and the images are the state: with the pool in the checkpoint a
    resumed run goes on exactly. Each process has a pool of its own, and a checkpoint holds that of rank 0.

    Args:
        size: number of images to keep; 0 returns all images as they come. Default 50.
        probability: p. Default 0.5.

    Raises:
        ValueError: for a size below 0 or a probability outside 0 to 1, and for images of another shape than those in
            the pool.

    Example:
        >>> pool = ImagePool(size=2, probability=1.0)
        >>> pool(torch.tensor([[1.0], [2.0]])).tolist()
        [[1.0], [2.0]]
        >>> pool(torch.tensor([[3.0]])).item() < 3, len(pool)
        (True, 2)
    """

    def __init__(self, size: int = 50, probability: float = 0.5) -> None:
        if isinstance(size, bool) or int(size) != size or size < 0:
            raise ValueError(f"size must be a whole number of 0 or more, got {size!r}.")
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be from 0 to 1, got {probability!r}.")
        self.size = int(size)
        self.probability = probability
        self._images: list[torch.Tensor] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return as many images (B, C, \\*spatial) as came, without gradient, on their device and of their type."""
        images = images.detach().as_subclass(torch.Tensor)
        if self.size == 0:
            return images
        if self._images and self._images[0].shape != images.shape[1:]:
            raise ValueError(
                f"images has shape {tuple(images.shape)}, but the pool keeps images of {tuple(self._images[0].shape)}."
            )
        returned = []
        draws = torch.rand(len(images), 2).tolist()  # equally many for each batch, whatever the pool holds
        for image, (swap, place) in zip(images, draws, strict=True):
            if len(self._images) < self.size:
                self._images.append(image.clone())  # a view would keep its whole batch in memory
            elif swap < self.probability:
                number = int(place * self.size)
                image, self._images[number] = self._images[number].to(image), image.clone()
            returned.append(image)
        return torch.stack(returned)

    def __len__(self) -> int:
        return len(self._images)

    def state_dict(self) -> dict[str, list[torch.Tensor]]:
        """The images of the pool."""
        return {"images": list(self._images)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on with the images of a checkpoint."""
        if "images" not in state_dict or len(state_dict["images"]) > self.size:
            found = f"{len(state_dict['images'])} images" if "images" in state_dict else sorted(state_dict)
            raise ValueError(f"the state of a pool of size {self.size} must hold up to that many images, got {found}.")
        self._images = list(state_dict["images"])
