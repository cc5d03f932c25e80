# SPDX-License-Identifier: Apache-2.0
"""Adversarial losses on logits: least squares or Wasserstein, for generator and discriminator."""

from __future__ import annotations

from typing import Any

import torch
from monai.losses import PatchAdversarialLoss

_CRITERIA = ("least_squares", "wasserstein")


class GANGeneratorLoss(torch.nn.Module):
    r"""What a generator pays when the discriminator sees that its images are made.

    With the logits :math:`D(\hat y)` of made images, and the mean over the batch and over the map of a patch
    discriminator:

    ``"least_squares"``
        :math:`E (D(\hat y) - 1)^2` (LSGAN, Mao et al. 2017; equation 7 of Jung et al. 2022)
    ``"wasserstein"``
        :math:`-E D(\hat y)` (Arjovsky et al. 2017)

    Args:
        criterion: ``"least_squares"``, the default, or ``"wasserstein"``, which needs
            :class:`~monai_labelfx.losses.GradientPenalty` in the phase of the discriminator.

    Raises:
        TypeError: in forward, for logits that are no floating-point tensor, such as a list of feature maps.
        ValueError: for another criterion; in forward, for logits without elements.

    Notes:
        Least squares are MONAI's ``PatchAdversarialLoss`` without its leaky activation, which would make the penalty of
        negative logits twenty times flatter. Equations 7 and 8 print the norm without the square; the released code
        has the square. Half precision is computed in float32.

    Example:
        >>> import torch
        >>> GANGeneratorLoss()(torch.full((2, 1, 4, 4), -1.0)).item()
        4.0
        >>> GANGeneratorLoss("wasserstein")(torch.full((2, 1, 4, 4), -1.0)).item()
        1.0
    """

    def __init__(self, criterion: str = "least_squares") -> None:
        super().__init__()
        self.criterion = _checked_criterion(criterion)
        self.least_squares = _least_squares()

    def forward(self, fake_logits: torch.Tensor) -> torch.Tensor:
        r"""The loss of logits of made images, (B, 1, \*map) or any shape."""
        fake = _logits("fake_logits", fake_logits)
        if self.criterion == "wasserstein":
            return -fake.mean()
        return self.least_squares(fake, target_is_real=True, for_discriminator=False)

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return f"criterion={self.criterion!r}"


class GANDiscriminatorLoss(torch.nn.Module):
    r"""What a discriminator pays for taking made images for real ones or real ones for made.

    With the logits :math:`D(y)` of real and :math:`D(\hat y)` of made images, and means as in
    :class:`~monai_labelfx.losses.GANGeneratorLoss`:

    ``"least_squares"``
        :math:`\frac{1}{2} \left( E (D(y) - 1)^2 + E D(\hat y)^2 \right)`
    ``"wasserstein"``
        :math:`E D(\hat y) - E D(y)`

    The images reach the discriminator detached from the generator; that is up to the engine.

    Args:
        criterion: ``"least_squares"``, the default, or ``"wasserstein"``.

    Raises:
        TypeError: in forward, for logits that are no floating-point tensor, such as a list of feature maps.
        ValueError: for another criterion; in forward, for logits without elements.

    Notes:
        The half, which slows the discriminator down against the generator, is that of the cycleGAN and DML_CT code;
        equation 8 of Jung et al. (2022) prints none. The numbers of real and made images may differ.

    Example:
        >>> import torch
        >>> undecided = torch.full((2, 1, 4, 4), 0.5)
        >>> GANDiscriminatorLoss()(undecided, undecided).item()
        0.25
        >>> GANDiscriminatorLoss("wasserstein")(undecided, undecided).item()
        0.0
    """

    def __init__(self, criterion: str = "least_squares") -> None:
        super().__init__()
        self.criterion = _checked_criterion(criterion)
        self.least_squares = _least_squares()

    def forward(self, real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
        r"""The loss of logits of real and of made images, (B, 1, \*map) or any shape."""
        real, fake = _logits("real_logits", real_logits), _logits("fake_logits", fake_logits)
        if self.criterion == "wasserstein":
            return fake.mean() - real.mean()
        real_loss = self.least_squares(real, target_is_real=True, for_discriminator=True)
        return (real_loss + self.least_squares(fake, target_is_real=False, for_discriminator=True)) / 2

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return f"criterion={self.criterion!r}"


def _least_squares() -> PatchAdversarialLoss:
    return PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)


def _checked_criterion(criterion: str) -> str:
    if criterion not in _CRITERIA:
        raise ValueError(f"criterion must be one of {_CRITERIA}, got {criterion!r}.")
    return criterion


def _logits(name: str, logits: Any) -> torch.Tensor:
    """Logits as a plain tensor of float32 or float64."""
    if not isinstance(logits, torch.Tensor) or not logits.is_floating_point():
        found = logits.dtype if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise TypeError(
            f"{name} must be a floating-point tensor, got {found}; of a discriminator that returns "
            "the features of all layers, MONAI's PatchDiscriminator for one, the logits are the last."
        )
    if not logits.numel():
        raise ValueError(f"{name} must hold logits, got the shape {tuple(logits.shape)}.")
    logits = logits.as_subclass(torch.Tensor)
    return logits if logits.dtype == torch.float64 else logits.float()
