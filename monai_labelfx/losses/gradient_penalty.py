# SPDX-License-Identifier: Apache-2.0
"""The gradient penalty that keeps a Wasserstein critic 1-Lipschitz."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class GradientPenalty(torch.nn.Module):
    r"""How far the slope of the critic is from 1 between real and made images (Gulrajani et al. 2017, equation 3).

    .. math::
        L = E \left( \lVert \nabla_{\hat x} D(\hat x) \rVert_2 - 1 \right)^2, \qquad
        \hat x = \epsilon x + (1 - \epsilon) \tilde x

    with one uniform :math:`\epsilon` per pair of a real image x and a made one, from torch's global generator of their
    device; the norm goes over all channels and voxels of an image. :math:`D(\hat x)` is the mean of the logits of an
    image, the number that the Wasserstein losses average over the batch, so a critic that gives a map is held to the
    same slope as one that gives a number. Weigh it by 10 (Gulrajani et al.), or 1 (the GAN-CIRCLE code).

    The penalty trains the discriminator: both images are detached, and its gradient, a second derivative, reaches the
    parameters of the discriminator alone. It is computed without autocast, whose small gradients vanish in float16.
    Where gradients are off, as in validation, only its value is computed.

    Raises:
        TypeError: in forward, if an image is not a floating-point tensor, or the discriminator does not return one.
        ValueError: in forward, for images of different shapes or none, or logits of another number of images.

    Notes:
        Code that takes the gradient of the *sum* of the logits of a map, as ``autograd.grad`` does with ones, asks for
        a slope of 1 / (size of the map) of their mean. The discriminator must not mix the images of a batch: batch norm
        would give an image a gradient from the others. The slope at a point where it is 0 has the subgradient 0.

    Example:
        >>> import torch
        >>> def discriminator(image):
        ...     return 3 * image.mean((1, 2, 3), keepdim=True) * image[0].numel() ** 0.5
        >>> round(GradientPenalty()(discriminator, torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)).item(), 4)
        4.0
    """

    def forward(
        self, discriminator: Callable[[torch.Tensor], torch.Tensor], real: torch.Tensor, fake: torch.Tensor
    ) -> torch.Tensor:
        r"""The penalty of a discriminator on pairs of images.

        Args:
            discriminator: network from (B, C, \*spatial) to logits (B, 1, \*map), or (B,).
            real: real images (B, C, \*spatial).
            fake: made images of the same shape.
        """
        real, fake = _image("real", real), _image("fake", fake)
        if real.shape != fake.shape or real.ndim < 3 or not real.numel():
            raise ValueError(
                "real and fake must be as many images (B, C, *spatial) of one size, got "
                f"{tuple(real.shape)} and {tuple(fake.shape)}."
            )
        training = torch.is_grad_enabled()
        share = torch.rand((len(real), *[1] * (real.ndim - 1)), dtype=real.dtype, device=real.device)
        with torch.enable_grad(), torch.autocast(real.device.type, enabled=False):
            between = torch.lerp(fake.to(real.dtype), real, share).requires_grad_()
            logits = discriminator(between)
            if not isinstance(logits, torch.Tensor):
                raise TypeError(f"the discriminator must return its logits as a tensor, got {type(logits).__name__}.")
            if logits.ndim < 1 or logits.shape[0] != len(real):
                raise ValueError(
                    f"the discriminator must return logits of each of {len(real)} images, got {tuple(logits.shape)}."
                )
            values = logits.as_subclass(torch.Tensor).flatten(1).mean(1) if logits.ndim > 1 else logits
            (slope,) = torch.autograd.grad(values.sum(), between, create_graph=training)
            return (torch.linalg.vector_norm(slope.flatten(1), dim=1) - 1).square().mean()


def _image(name: str, image: Any) -> torch.Tensor:
    """An image as a plain tensor of float32 or float64, without its history."""
    if not isinstance(image, torch.Tensor) or not image.is_floating_point():
        found = image.dtype if isinstance(image, torch.Tensor) else type(image).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {found}.")
    image = image.detach().as_subclass(torch.Tensor)
    return image if image.dtype == torch.float64 else image.float()
