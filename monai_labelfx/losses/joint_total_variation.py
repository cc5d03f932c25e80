# SPDX-License-Identifier: Apache-2.0
"""Joint total variation: a smooth output, and a smooth difference from the image it was made of."""

from __future__ import annotations

import math

import torch


def joint_total_variation_loss(
    output: torch.Tensor, source: torch.Tensor, *, weight_output: float = 0.1, weight_residual: float = 0.9
) -> torch.Tensor:
    r"""Total variation of the output and of what was taken away (GAN-CIRCLE, You et al. 2020, joint sparsifying term).

    .. math::
        L = a\,\mathrm{TV}(y) + b\,\mathrm{TV}(x - y), \qquad
        \mathrm{TV}(u) = \frac{1}{N} \sum_d \sum_v | u_{v + e_d} - u_v |

    with the differences of neighbours along each spatial axis d (anisotropic), and N the number of voxels of the batch,
    all channels counted. In 2-D or 3-D, an axis of one voxel adds nothing. The weight of a loss of means does not
    depend on the size of the crop.

    Args:
        output: y, (B, C, \*spatial), any number of spatial axes.
        source: x, of the same shape.
        weight_output: a. Default 0.1, the authors' code.
        weight_residual: b. Default 0.9, the authors' code.

    Returns:
        A scalar in the unit of the images per voxel, in float32, or float64 for float64, whatever autocast does.

    Raises:
        TypeError: if a tensor is not floating point.
        ValueError: if the shapes differ or hold nothing, or a weight is negative or not finite.

    Notes:
        The authors' code sums over all voxels of the batch and divides by 20, so its term is N / 20 times this: 13,107
        times for 64 crops of 64 x 64. It gives its first weight as lambda / 10 with lambda 1, its second as the rest.
        The subgradient at equal neighbours is 0.

    Example:
        >>> import torch
        >>> source = torch.zeros(1, 1, 2, 4)
        >>> output = torch.tensor([[[[0.0, 0.0, 8.0, 8.0]] * 2]])  # one step of 8 in each of two rows of four
        >>> round(float(joint_total_variation_loss(output, source, weight_output=0.1, weight_residual=0.9)), 4)
        2.0
        >>> round(float(joint_total_variation_loss(output, output)), 4)
        0.2
    """
    _check_weights(weight_output, weight_residual)
    for tensor in (output, source):
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            found = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"output and source must be floating-point tensors, got {found}.")
    if output.shape != source.shape or output.ndim < 3 or not output.numel():
        raise ValueError(
            "output and source must be images (B, C, *spatial) of one shape, got "
            f"{tuple(output.shape)} and {tuple(source.shape)}."
        )
    dtype = torch.float64 if torch.float64 in (output.dtype, source.dtype) else torch.float32
    output, source = (tensor.as_subclass(torch.Tensor).to(dtype) for tensor in (output, source))
    return weight_output * _total_variation(output) + weight_residual * _total_variation(source - output)


class JointTotalVariationLoss(torch.nn.Module):
    """:py:func:`joint_total_variation_loss` as a module: ``loss(output, source)``.

    Args:
        weight_output: weight of the total variation of the output. Default 0.1, the authors' code.
        weight_residual: weight of the total variation of ``source - output``. Default 0.9, the authors' code.

    Raises:
        TypeError, ValueError: as :py:func:`joint_total_variation_loss`.

    Example:
        >>> import torch
        >>> image = torch.rand(2, 1, 4, 4, 4)
        >>> float(JointTotalVariationLoss()(torch.ones_like(image), torch.zeros_like(image)))
        0.0
    """

    def __init__(self, weight_output: float = 0.1, weight_residual: float = 0.9) -> None:
        super().__init__()
        _check_weights(weight_output, weight_residual)
        self.weight_output, self.weight_residual = float(weight_output), float(weight_residual)

    def forward(self, output: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        r"""The loss of an output (B, C, \*spatial) made of ``source``."""
        return joint_total_variation_loss(
            output, source, weight_output=self.weight_output, weight_residual=self.weight_residual
        )

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return f"weight_output={self.weight_output}, weight_residual={self.weight_residual}"


def _total_variation(u: torch.Tensor) -> torch.Tensor:
    """Absolute differences of neighbours, summed over the axes, per voxel."""
    return torch.stack([u.diff(dim=axis).abs().sum() for axis in range(2, u.ndim)]).sum() / u.numel()


def _check_weights(output: float, residual: float) -> None:
    if not (0 <= output < math.inf and 0 <= residual < math.inf):
        raise ValueError(f"weights must be finite and 0 or more, got {output} and {residual}.")
