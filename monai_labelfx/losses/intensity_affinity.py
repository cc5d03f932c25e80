# SPDX-License-Identifier: Apache-2.0
"""Intensity affinity: neighbouring voxels of like intensity are to have the same label."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import logsigmoid, softplus

from monai_labelfx.losses._neighbours import (
    check_reduction,
    checked_logits,
    checked_region,
    fused_gradient,
    neighbour_offsets,
    pair_weights,
    plain_tensor,
    reduce_classes,
    shifted,
)

AUTO_SIGMA = 1.3  # median absolute differences of neighbours
_ENOUGH = 2**16  # differences of an image whose median is within a percent or so of that of all
_HUGE = 1e30  # logits beyond it count as this, so that sums stay finite
_TINY = 1e-18  # stands for a sigma of 0: equal intensities are alike, all others are not


def intensity_affinity_loss(
    input: torch.Tensor,
    image: torch.Tensor,
    region: torch.Tensor | None = None,
    *,
    sigma: float | Sequence[float] | str = "auto",
    threshold: float = 0.3,
    dilation: int = 2,
    spacing: torch.Tensor | Sequence[float] | None = None,
    reduction: str = "sum",
) -> torch.Tensor:
    r"""Pairwise affinity (BoxInst, Tian et al. 2021), for intensities in place of colours.

    Neighbours k and k', ``dilation`` steps apart on one or more axes (8 neighbours in 2-D, 26 in 3-D), are alike where
    the affinity of their intensities reaches the threshold :math:`\tau`, and pay for different labels:

    .. math::
        a_{kk'} = \exp \left(-\sum_j \frac{(I_{jk} - I_{jk'})^2}{2 \sigma_j^2}\right) \ge \tau, \qquad
        L_c = \frac{\sum w_{kk'} \left(-\log (p_k p_{k'} + (1 - p_k)(1 - p_{k'}))\right)}{\sum w_{kk'}}

    with :math:`p = \mathrm{sigmoid}(z)` of class c. The sums run over the voxels k of the region and all of their
    neighbours k' that are alike, so pairs with both voxels in the region count twice, as in
    :py:func:`~monai_labelfx.losses.pairwise_smoothness_loss`.

    Only sigma times the root of ``-2 log(threshold)`` matters, the largest difference that still is alike: 1.55 sigma
    by default. A number for sigma is in units of the image, so it suits images of one kind, normalised in one way.
    ``"auto"`` needs no normalisation: 1.3 times the median absolute difference of face neighbours in the region (of all
    classes), in each image and channel, so that two voxels are alike whose difference is within twice the usual one.

    Args:
        input: logits (B, C, \*spatial), any number of spatial axes.
        image: intensities (B, K, \*spatial), finite.
        region: true at the voxels k, (B, C, \*spatial), or (B, 1, \*spatial) for the same in all classes: those in
            boxes of the class. Default ``None``, all voxels.
        sigma: above 0, one number or one for each of the K channels, or ``"auto"`` (default).
        threshold: above 0, at most 1. Default 0.3, as in BoxInst.
        dilation: steps between neighbours, 1 or more. Default 2, as in BoxInst. With 2 nothing ties voxels of odd
            distance together, and predictions may fall apart into interleaved grids: add some smoothness, or take 1,
            as the bundle does.
        spacing: voxel size per axis, (D,) or (B, D), for the weights w of
            :py:func:`~monai_labelfx.losses.pairwise_smoothness_loss`. Default ``None``, w = 1.
        reduction: over the classes: ``"sum"`` (default), ``"mean"``, or ``"none"`` for (C,).

    Returns:
        A scalar, or (C,). A class without a pair that is alike has exactly 0, with zero gradient.

    Raises:
        TypeError: if ``input`` is no tensor of floating-point numbers.
        ValueError: if shapes do not fit, or an argument is out of its range.

    Notes:
        BoxInst measures colour in Lab space with a fixed sigma; no grey-value counterpart is published. The default was
        chosen on volumes with masks, in the 3-D tight boxes of their objects: of the pairs within the object and of
        those across its edge are alike, in 100, 65 and 29 (28 hippocampi, T1), 76 and 31 (6 sarcomas, T1), 81 and 8
        (spleen, CT), 90 and 6 (spinal cord, T2), 65 and 19 (5 lesions, FLAIR), but 30 and 24 (3 infarcts, DWI), where
        the image shows little edge. The gap is widest about here for all; with dilation 1 it is as wide or narrower,
        with more edges let through. No single number would do: medians of normalised images differ sevenfold.
        The loss is computed in log space, finite for all finite logits. Half precision is computed in float32. The
        gradient comes with the value, without autograd over slices; second derivatives exist.
        A voxel of NaN intensity is like no other. Where the median is 0, equal intensities are alike.

    Example:
        >>> import torch
        >>> image = torch.tensor([[[[0.0, 0, 0, 9, 9, 9]]]])
        >>> wrong, right = (torch.tensor([[[[-4.0, -4, z, 4, 4, 4]]]]) for z in (4, -4))
        >>> [round(float(intensity_affinity_loss(z, image, sigma=1, dilation=1)), 3) for z in (wrong, right)]
        [0.863, 0.036]
    """
    check_reduction(reduction)
    logits = checked_logits(input)
    inside = checked_region(region, logits)
    bound = _checked_bound(threshold)
    if isinstance(dilation, bool) or dilation != int(dilation) or dilation < 1:
        raise ValueError(f"dilation must be a whole number of steps, 1 or more, got {dilation}.")
    scaled = _scaled_image(image, sigma, logits, inside)
    weights = pair_weights(spacing, logits.shape[0], logits.ndim - 2)
    if weights is not None:
        weights = weights.to(logits).view(*weights.shape, *[1] * (logits.ndim - 1))
    offsets = neighbour_offsets(logits.ndim - 2, int(dilation))

    def alike(number: int) -> torch.Tensor:
        """The weight (B, 1 or C, *spatial) of each pair at an offset, 0 for those that are not alike."""
        offset = offsets[number]
        difference = shifted(scaled, offset, -1) - shifted(scaled, offset, 1)
        # the square of one channel needs no sum
        square = difference.square_() if scaled.shape[1] == 1 else difference.square_().sum(1, keepdim=True)
        pairs = (square <= bound).to(logits.dtype)
        if inside is not None:
            pairs = pairs * (shifted(inside, offset, -1) + shifted(inside, offset, 1))
        return pairs if weights is None else pairs * weights[number]

    def fused(logits: torch.Tensor, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        return _fused(logits, offsets, alike, with_gradient)

    def plain(logits: torch.Tensor) -> torch.Tensor:
        return _plain(logits, offsets, alike)

    return reduce_classes(fused_gradient(logits, fused, plain), reduction)


class IntensityAffinityLoss(torch.nn.Module):
    """:py:func:`intensity_affinity_loss` as a module: ``loss(input, target)``.

    Args:
        sigma: above 0, one number or one per channel of the image, or ``"auto"``.
        threshold: above 0, at most 1.
        dilation: steps between neighbours.
        reduction: over the classes: ``"sum"``, ``"mean"`` or ``"none"``.

    Raises:
        ValueError: as :py:func:`intensity_affinity_loss`, and when the target has no image.
        TypeError: when the target is no mapping.

    Example:
        >>> import torch
        >>> loss = IntensityAffinityLoss(sigma=0.2, dilation=1)
        >>> round(float(loss(torch.zeros(1, 1, 4, 4, 4), {"image": torch.zeros(1, 1, 4, 4, 4)})), 4)  # log 2
        0.6931
    """

    def __init__(
        self,
        *,
        sigma: float | Sequence[float] | str = "auto",
        threshold: float = 0.3,
        dilation: int = 2,
        reduction: str = "sum",
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.options: dict[str, Any] = {
            "sigma": sigma,
            "threshold": threshold,
            "dilation": dilation,
            "reduction": reduction,
        }

    def forward(self, input: torch.Tensor, target: Mapping[str, Any]) -> torch.Tensor:
        r"""The loss of logits (B, C, \*spatial).

        Args:
            input: logits.
            target: a mapping with ``image`` and optionally ``region`` and ``spacing``.
        """
        if not isinstance(target, Mapping):
            raise TypeError(
                "IntensityAffinityLoss takes a mapping with image and optionally region and spacing as target, "
                f"got {type(target).__name__}."
            )
        if target.get("image") is None:
            raise ValueError(f"IntensityAffinityLoss needs an image in its target, which has {sorted(target)}.")
        return intensity_affinity_loss(
            input, target["image"], target.get("region"), spacing=target.get("spacing"), **self.options
        )

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


def _fused(
    logits: torch.Tensor, offsets: Sequence[tuple[int, ...]], alike: Callable[[int], torch.Tensor], with_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The loss (C,) and its gradient in one pass over the pairs.

    With s = z + z', the cost of a pair is softplus(-z) + softplus(-z') - softplus(-s), its derivative by z is
    sigmoid(z) - sigmoid(s). Each softplus is split into its straight part and the rest, so that what cancels in the
    straight parts does so exactly.
    """
    others = [axis for axis in range(logits.ndim) if axis != 1]
    z = logits.clamp(-_HUGE, _HUGE)
    rest, straight = softplus(-z.abs()), (-z).clamp_(min=0)
    p = torch.sigmoid(z)
    total, count = logits.new_zeros(logits.shape[1]), logits.new_zeros(logits.shape[1])
    gradient = torch.zeros_like(z) if with_gradient else None
    for number, offset in enumerate(offsets):
        pairs = alike(number)
        both = shifted(z, offset, -1) + shifted(z, offset, 1)
        if gradient is not None:
            same = torch.sigmoid(both)
            shifted(gradient, offset, -1).addcmul_(shifted(p, offset, -1) - same, pairs)
            shifted(gradient, offset, 1).addcmul_(shifted(p, offset, 1) - same, pairs)
        cost = (shifted(straight, offset, -1) + shifted(straight, offset, 1)).add_(both.clamp(max=0))
        cost.add_(shifted(rest, offset, -1)).add_(shifted(rest, offset, 1)).sub_(softplus(both.abs_().neg_()))
        total += cost.mul_(pairs).sum(others)
        count += pairs.sum(others)
    scale = 1 / torch.where(count > 0, count, 1)
    if gradient is not None:
        gradient *= scale.view(-1, *[1] * (z.ndim - 2))
    return total * scale, gradient


def _plain(
    logits: torch.Tensor, offsets: Sequence[tuple[int, ...]], alike: Callable[[int], torch.Tensor]
) -> torch.Tensor:
    """The loss (C,) by differentiable operators."""
    z = logits.clamp(-_HUGE, _HUGE)
    yes, no = logsigmoid(z), logsigmoid(-z)
    total, count = 0 * logits.sigmoid().flatten(2).sum((0, 2)), logits.new_zeros(logits.shape[1])
    for number, offset in enumerate(offsets):
        pairs = alike(number)
        same = torch.logaddexp(*(shifted(v, offset, -1) + shifted(v, offset, 1) for v in (yes, no)))
        total = total - (same * pairs).transpose(0, 1).flatten(1).sum(1)
        count = count + pairs.transpose(0, 1).flatten(1).sum(1)
    return total / torch.where(count > 0, count, 1)


def _checked_bound(threshold: float) -> float:
    """The largest sum of squared differences, in units of sigma, that is alike."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}.")
    return -2 * math.log(threshold)


def _scaled_image(
    image: Any, sigma: float | Sequence[float] | str, logits: torch.Tensor, inside: torch.Tensor | None
) -> torch.Tensor:
    """The image (B, K, *spatial) in units of sigma."""
    image = plain_tensor(image)
    if (
        not isinstance(image, torch.Tensor)
        or image.ndim != logits.ndim
        or (image.shape[0], *image.shape[2:]) != (logits.shape[0], *logits.shape[2:])
    ):
        found = tuple(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
        raise ValueError(
            f"image must be (B, K, *spatial) with the batch and space of the logits {tuple(logits.shape)}, got {found}."
        )
    image = image.detach().to(logits)
    if isinstance(sigma, str):
        if sigma != "auto":
            raise ValueError(
                f'sigma must be a number above 0, one for each channel of the image, or "auto", got {sigma!r}.'
            )
        scale = _usual_difference(image, inside).mul_(AUTO_SIGMA)
    else:
        scale = torch.as_tensor(sigma, dtype=torch.float64).to(logits)
        if scale.shape not in ((), (1,), (image.shape[1],)) or not ((scale > 0) & scale.isfinite()).all():
            raise ValueError(
                f"sigma must be a number above 0, one for each of {image.shape[1]} channels of the image, "
                f'or "auto", got {sigma}.'
            )
        scale = scale.expand(image.shape[:2])
    return image / scale.clamp(min=_TINY).view(*image.shape[:2], *[1] * (image.ndim - 2))


def _usual_difference(image: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
    """Median absolute difference (B, K) of face neighbours of which one or both lie inside; 0 where there are none."""
    anywhere = None if inside is None else inside.amax(1, keepdim=True).bool()
    stride = _stride(image.shape[2:], image.shape[2:].numel() if anywhere is None else anywhere.flatten(1).sum(1))
    differences = []
    for axis in range(2, image.ndim):
        offset = [int(axis == other) for other in range(2, image.ndim)]
        difference = (shifted(image, offset, -1) - shifted(image, offset, 1)).abs_()
        if anywhere is not None:
            difference.masked_fill_(~(shifted(anywhere, offset, -1) | shifted(anywhere, offset, 1)), math.nan)
        differences.append(difference.flatten(2)[..., ::stride])
    every = torch.cat(differences, 2)
    return every.nanmedian(2).values.nan_to_num(0) if every.shape[2] else image.new_zeros(image.shape[:2])


def _stride(shape: Sequence[int], voxels: int | torch.Tensor) -> int:
    """Step that leaves about ``_ENOUGH`` differences in the image with the fewest voxels inside, not along an axis."""
    fewest = min([number for number in torch.as_tensor(voxels).flatten().tolist() if number], default=0)
    stride = max(1, len(shape) * fewest // _ENOUGH)
    while any(math.gcd(stride, size * (size - 1)) > 1 for size in shape if size > 1):
        stride -= 1
    return stride
