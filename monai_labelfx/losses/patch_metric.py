# SPDX-License-Identifier: Apache-2.0
"""Patch-wise deep metric learning: patches of one place attract each other, patches of one noise level repel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from monai_labelfx.ops.patch_positions import patch_positions

_SMALLEST_TAU = 0.0125  # e^(1 / tau), the scale of the released code, is 5e34 there and nearly leaves float32


def patch_metric_loss(
    input: torch.Tensor | Sequence[torch.Tensor],
    target: torch.Tensor | Sequence[torch.Tensor],
    *,
    tau: float = 0.15,
    reference: bool = False,
) -> torch.Tensor:
    r"""Metric loss of patches of an image and of its denoised version (Jung et al. 2022, equation 3), scaled to 1.

    With the unit vectors :math:`w_k` of the K patches of the output and :math:`z_k` of the same places of the input,

    .. math::
        L = -\frac{1}{K} \sum_k e^{(z_k^\top w_k - 1) / \tau}
            + \frac{1}{K^2} \sum_{k \ne j} \left( e^{(z_k^\top z_j - 1) / \tau} + e^{(w_k^\top w_j - 1) / \tau} \right)

    averaged over the images and then over the layers. The first term pulls the two patches of a place together, which
    share their anatomy; the others push the patches of one image apart, which share their noise. Negatives never come
    from another image, so the loss of a batch is the mean of those of its images. Both images get a gradient.

    Equation 3 is this times :math:`e^{1 / \tau}`: 786 at the paper's tau of 0.15, 4160 at 0.12. Without the factor the
    loss lies between -1 and 2 and its weight means the same for every tau. The released code has
    :math:`e^{1 / \tau} / C` for embeddings of length C; ``reference`` sets that scale, for the published weight of 0.1.

    Args:
        input: embeddings (B, K, C) of the output, or a sequence of them, one per tapped layer. Rows have L2 norm 1, as
            those of :class:`~monai_labelfx.networks.PatchProjectionHeads`.
        target: those of the input image, of the same shapes.
        tau: temperature, 0.0125 or more. Default 0.15, the paper's for AAPM; 0.12 for its temporal bones.
        reference: multiply each layer by :math:`e^{1 / \tau} / C`. Default ``False``.

    Returns:
        A scalar, in float32, or float64 for float64, whatever autocast does.

    Raises:
        TypeError: if embeddings are no floating-point tensors.
        ValueError: if shapes do not fit or hold nothing, or tau is out of its range.

    Notes:
        Equations 2 and 3 of the paper differ: with :math:`d = (1 - z^\top w) / \tau`, equation 3 is
        :math:`e^{1 / \tau}` times :math:`-E\,e^{-d} + E\,e^{-d_n} + E\,e^{-d_o}`, not equation 2, whose exponents
        have the other sign. The released code computes equation 3, and so does this. As there, the K pairs of a patch
        with itself are left out of the sums but not of the divisor :math:`K^2`. Equation 10 adds the layers; the code
        averages them. At tau 0.15 and C = 128 its weight of 0.1 is one of 0.614 for the loss without ``reference``.
        With K = 1 there are no negatives, and their terms are 0.

    Example:
        >>> import torch
        >>> apart = torch.eye(4)[None]  # four patches at right angles
        >>> round(float(patch_metric_loss(apart, apart)), 4)
        -0.9981
        >>> alike = torch.eye(4)[:1].expand(1, 4, 4)  # collapsed: 2 * 3 / 4 - 1
        >>> float(patch_metric_loss([alike, alike], [alike, alike]))
        0.5
    """
    _check_tau(tau)
    outputs = [input] if isinstance(input, torch.Tensor) else list(input)
    sources = [target] if isinstance(target, torch.Tensor) else list(target)
    if not outputs or len(outputs) != len(sources):
        raise ValueError(
            f"input and target must have one tensor for each layer, got {len(outputs)} and {len(sources)}."
        )
    layers = [_layer(w, z, tau, reference) for w, z in zip(outputs, sources, strict=True)]
    return torch.stack(layers).mean()


class PatchMetricLoss(torch.nn.Module):
    """:py:func:`patch_metric_loss` as a module: ``loss(embeddings of the output, embeddings of the input)``.

    Args:
        tau: temperature, 0.0125 or more. Default 0.15, the paper's for AAPM; 0.12 for its temporal bones.
        reference: the scale of the released code, which depends on tau. Default ``False``: from -1 to 2.

    Raises:
        TypeError, ValueError: as :py:func:`patch_metric_loss`.

    Example:
        >>> import torch
        >>> apart = torch.eye(128)[None]
        >>> round(float(PatchMetricLoss(tau=0.15, reference=True)(apart, apart)), 2)
        -6.12
    """

    def __init__(self, tau: float = 0.15, *, reference: bool = False) -> None:
        super().__init__()
        _check_tau(tau)
        self.tau, self.reference = float(tau), bool(reference)

    def forward(
        self, input: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor | Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The loss of embeddings (B, K, C), or of one such tensor per layer."""
        return patch_metric_loss(input, target, tau=self.tau, reference=self.reference)

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return f"tau={self.tau}, reference={self.reference}"


class PatchPositions:
    r"""Draw the places of the patches that the loss compares: ``positions(image)``.

    :func:`monai_labelfx.ops.patch_positions` for the size, the number and the device of the images of a batch. It draws
    from torch's global generator of the device, which :class:`~monai_labelfx.engines.SeedEpoch` seeds.

    Args:
        count: K, patches of an image. Default 128, the authors' code.
        stride: side of the blocks of pooling heads, ``2 ** pool``; one number or one per axis. Default 1.

    Raises:
        ValueError: if a number is below 1; and when called, for images with fewer places, or a mask of another shape.

    Example:
        >>> import torch
        >>> positions = PatchPositions(16, stride=2)
        >>> places = positions(torch.rand(3, 1, 12, 10))
        >>> tuple(places.shape), (places % 2).any().item()
        ((3, 16, 2), False)
    """

    def __init__(self, count: int = 128, *, stride: int | Sequence[int] = 1) -> None:
        if count < 1 or min(stride if isinstance(stride, Sequence) else (stride,), default=0) < 1:
            raise ValueError(f"count and stride must be 1 or more, got {count} and {stride}.")
        self.count, self.stride = count, stride

    def __call__(self, image: torch.Tensor, foreground: torch.Tensor | None = None) -> torch.Tensor:
        r"""Positions (B, K, D) int64.

        Args:
            image: (B, C, \*spatial), or anything of that batch and size on the same grid as the taps.
            foreground: mask (B, 1, \*spatial) of where patches are to be taken first; default everywhere.
        """
        if foreground is not None:
            foreground = foreground.to(image.device)
        return patch_positions(
            image.shape[2:],
            image.shape[0],
            self.count,
            stride=self.stride,
            foreground=foreground,
            device=image.device,
        )

    def __repr__(self) -> str:
        return f"PatchPositions({self.count}, stride={self.stride})"


def _layer(output: torch.Tensor, source: torch.Tensor, tau: float, reference: bool) -> torch.Tensor:
    """The loss of one layer."""
    w, z = _checked(output, source)
    patches, length = w.shape[1:]
    with torch.autocast(w.device.type, enabled=False):
        pull = ((w * z).sum(-1) - 1).div(tau).exp().mean()
        # -1 / tau for every pair, and on the diagonal -inf, so that a patch and itself add nothing.
        shift = w.new_full((patches, patches), -1 / tau).fill_diagonal_(-math.inf)
        each = torch.cat((w, z))
        push = torch.baddbmm(shift, each, each.transpose(1, 2), alpha=1 / tau).exp().mean()
        loss = 2 * push - pull  # the mean over both images of a pair, not their sum
        return loss * (math.exp(1 / tau) / length) if reference else loss


def _checked(output: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both embeddings as plain tensors of float32 or float64."""
    for tensor in (output, source):
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            found = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"embeddings must be floating-point tensors (B, K, C), got {found}.")
    if output.ndim != 3 or output.shape != source.shape or not output.numel():
        raise ValueError(
            "input and target must be embeddings (B, K, C) of the same patches, got "
            f"{tuple(output.shape)} and {tuple(source.shape)}."
        )
    dtype = torch.float64 if torch.float64 in (output.dtype, source.dtype) else torch.float32
    return output.as_subclass(torch.Tensor).to(dtype), source.as_subclass(torch.Tensor).to(dtype)


def _check_tau(tau: float) -> None:
    if not _SMALLEST_TAU <= tau < math.inf:
        raise ValueError(f"tau must be a finite number of {_SMALLEST_TAU} or more, got {tau}.")
