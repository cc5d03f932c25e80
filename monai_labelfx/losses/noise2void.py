# SPDX-License-Identifier: Apache-2.0
"""Noise2Void as a loss of a network and a noisy image, for engines whose terms name their networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from monai_labelfx.losses.denoiseg import _denoising
from monai_labelfx.ops.blind_spots import blind_spot_mask, check_blind_spot_options


class Noise2VoidLoss(torch.nn.Module):
    r"""The mean squared error at blind spots of a network that sees them hidden (Noise2Void, Krull et al. 2019).

    A few voxels of each image are replaced by values of their neighbours, the network runs on that image, and what it
    gives at those voxels is compared with what they were: for blind spots M, masked image :math:`\tilde x`, network f,

    .. math::
        L = \frac{1}{|M|} \sum_{v \in M} (f(\tilde x)_v - x_v)^2

    averaged over the channels. Only noise that cannot be told from the surroundings is taken away. The noise of CT is
    correlated between neighbours by the reconstruction filter, so there this is a weak rival, unless ``structure``
    hides the neighbours as well.

    It is the denoising term of :func:`~monai_labelfx.losses.denoiseg_loss` (alpha = 1), without its channels of
    classes and with the masks of :func:`monai_labelfx.ops.blind_spot_mask` drawn here for the whole batch, from
    torch's global generator of the device of the images.

    Args:
        fraction: share of blind spots. Default 1.5 %: the configuration of the DenoiSeg and N2V code.
        strategy: ``"uniform"``, ``"median"``, ``"mean"`` or ``"identity"``.
        window: odd side of the window that replacements come from, in voxels, one number or one per axis. Default 11,
            as in the N2V code.
        structure: 0/1 array of what is hidden around a blind spot (structN2V), with as many axes as the image.

    Raises:
        TypeError: in forward, if the image or the output is not a floating-point tensor.
        ValueError: for an option out of range; in forward, if the output has not the shape of the image.

    Example:
        >>> import torch
        >>> image = torch.rand(2, 1, 32, 32) + 1
        >>> loss = Noise2VoidLoss(fraction=0.05)
        >>> zeros = loss(torch.zeros_like, image)  # mean square of the hidden voxels
        >>> 1 < zeros.item() < 4
        True
    """

    def __init__(
        self,
        fraction: float = 0.015,
        strategy: str = "uniform",
        *,
        window: int | Sequence[int] = 11,
        structure: Any = None,
    ) -> None:
        super().__init__()
        check_blind_spot_options(fraction, strategy)
        self.options: dict[str, Any] = {
            "fraction": fraction,
            "strategy": strategy,
            "window": window,
            "structure": structure,
        }

    def forward(self, network: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        r"""The loss of a denoising network on noisy images.

        Args:
            network: from (B, C, \*spatial) to the same shape.
            image: noisy images (B, C, \*spatial).
        """
        masked, blind_spots = blind_spot_mask(image, **self.options)
        output = network(masked)
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            found = output.dtype if isinstance(output, torch.Tensor) else type(output).__name__
            raise TypeError(f"the network must return a floating-point tensor, got {found}.")
        if output.shape != image.shape:
            raise ValueError(
                f"the network must return the shape of the image, {tuple(image.shape)}, got {tuple(output.shape)}."
            )
        output = output.as_subclass(torch.Tensor)
        output = output if output.dtype == torch.float64 else output.float()
        return _denoising(output, image.detach().as_subclass(torch.Tensor), blind_spots, "labelled")

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
