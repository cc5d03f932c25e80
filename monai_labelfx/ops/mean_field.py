# SPDX-License-Identifier: Apache-2.0
"""Mean field of a dense conditional random field whose kernels end at a window: the label update of DeepCut."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import torch

from monai_labelfx.ops._window import offset_window

CACHED_VALUES = 2**25  # kernel values kept between iterations, 128 MiB in float32; more are computed again each time


@torch.no_grad()
def windowed_mean_field(
    logits: torch.Tensor,
    image: torch.Tensor,
    *,
    window: int | Sequence[int] = 11,
    spatial_sigma: tuple[float, float] = (10.0, 1.0),
    intensity_sigma: float | Sequence[float] = 20 / math.sqrt(3),
    weights: tuple[float, float] = (10.0, 3.0),
    iterations: int = 5,
    spacing: Sequence[float] | None = None,
) -> torch.Tensor:
    """Class probabilities that agree with the logits, with neighbours, and with neighbours of like intensity.

    Mean-field inference in the fully connected model of Kraehenbuehl and Koltun (2011, Eqs. 3 and 4, algorithm 1) with
    Potts compatibility, every sum restricted to the window around a voxel. From Q = softmax(logits), an iteration is::

        Q_i <- softmax(logits_i + sum_m w_m sum_j K^m_ij Q_j),   K^m_ij = k^m_ij / sqrt(D^m_i D^m_j),
        D^m_i = sum_j k^m_ij,
        k^1_ij = exp(-|p_i - p_j|^2 / (2 s_1^2) - sum_c (I_ci - I_cj)^2 / (2 t_c^2)),   (bilateral)
        k^2_ij = exp(-|p_i - p_j|^2 / (2 s_2^2)),                                       (smoothness)

    where j runs over the voxels of the image inside the window around i. (The Potts penalty of the classes l' != l is
    a constant minus the vote of l, and the constant cancels in the softmax.)

    Defaults are those of DeepCut (Rajchl et al. 2017) as Kervadec et al. (2020) run it: bilateral weight 10, position
    sigma 10 voxels, intensity sigma 20 of 255 on the grey image repeated to three channels (for one channel that is
    20 / sqrt(3)), smoothness weight 3 of sigma 1 voxel, 5 iterations. The window of 11, a radius of 5, is ours.

    Args:
        logits: (B, C, \\*spatial), log probabilities up to a constant per voxel. -inf forbids a class there.
        image: (B, K, \\*spatial), the intensities of the bilateral kernel, K channels.
        window: odd side of the window in voxels, one number or one per spatial axis. 1 leaves an axis unconnected.
        spatial_sigma: (bilateral, smoothness) standard deviations of the position, in voxels, or in the unit of
            ``spacing``.
        intensity_sigma: standard deviation of the intensity in the unit of ``image``, one number or one per channel.
            The default is for one channel from 0 to 255: divide it by 255 for an image from 0 to 1.
        weights: (bilateral, smoothness), 0 or above. With both 0 the result is softmax(logits).
        iterations: parallel updates, 0 or more; 0 is softmax(logits).
        spacing: voxel size per spatial axis. Default None, 1 on every axis.

    Returns:
        (B, C, \\*spatial) probabilities on the device and of the type of ``logits`` (computed in float32 at least),
        without a gradient.

    Raises:
        ValueError: when shapes do not match, values are NaN or infinite, or an argument is out of its range.

    Notes:
        The voxel itself is one of the j, with kernel 1, as in the published implementations of the dense field and
        unlike the paper's sum over j != i: the normalisation D is then 1 or more, so a voxel unlike all its neighbours
        keeps its label instead of taking theirs at full weight. The normalisation is the symmetric one of these
        implementations. The window cuts off what their lattice approximates: on a 96x96 picture with the defaults a
        window of 21 gives pydensecrf's probabilities to 0.001, one of 11 its label for 98 of 100 voxels.
        Time grows with the window's volume: per image on one core some 50 ms for 256x256 voxels and a window of 11,
        190 ms for 64x64x64 and 5. The kernels are kept between iterations if they have at most ``CACHED_VALUES``
        numbers, and computed again otherwise.

    Example:
        >>> import torch
        >>> image = torch.tensor([0., 0, 0, 0, 200, 200, 200, 200]).expand(1, 1, 3, 8)
        >>> logits = torch.zeros(1, 2, 3, 8)
        >>> logits[:, 1, :, 5:] = 1.0  # the edge is between voxels 3 and 4
        >>> logits[:, 0, :, :5] = 0.2
        >>> windowed_mean_field(logits, image).argmax(1)[0, 1]
        tensor([0, 0, 0, 0, 1, 1, 1, 1])
    """
    sides, sizes, deviations = _check(logits, image, window, spatial_sigma, intensity_sigma, weights, spacing)
    if not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations must be a whole number of 0 or more, got {iterations!r}.")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    energy = logits.to(dtype)
    reach = [min(side // 2, n - 1) for side, n in zip(sides, energy.shape[2:], strict=True)]

    filters: list[tuple[float, Callable[[torch.Tensor], torch.Tensor]]] = []
    if weights[0]:
        scaled = image.to(dtype) / torch.tensor(deviations, dtype=dtype, device=image.device).view(
            -1, *[1] * len(sides)
        )
        filters.append((weights[0], _bilateral(scaled, reach, [s / spatial_sigma[0] for s in sizes])))
    if weights[1]:
        filters.append((weights[1], _smoothness(reach, [s / spatial_sigma[1] for s in sizes])))
    ones = torch.ones_like(energy[:, :1])
    messages = [(weight, apply, apply(ones).rsqrt_()) for weight, apply in filters]

    probabilities = energy.softmax(1)
    for _ in range(iterations if messages else 0):
        votes = energy.clone()
        for weight, apply, scale in messages:
            votes.addcmul_(apply(probabilities * scale), scale, value=weight)
        probabilities = votes.softmax(1)
    return probabilities.to(logits.dtype)


def _bilateral(
    image: torch.Tensor, reach: Sequence[int], step: Sequence[float]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Sum over the window with the bilateral kernel of an image and steps in units of their deviations."""
    zero = (0,) * len(reach)
    # one of each two opposite offsets: the kernel is symmetric
    offsets = [o for o in itertools.product(*(range(-r, r + 1) for r in reach)) if o > zero]

    def kernel_at(offset: tuple[int, ...]) -> torch.Tensor:
        distance = sum((o * s) ** 2 for o, s in zip(offset, step, strict=True))
        difference = offset_window(image, offset, -1) - offset_window(image, offset, 1)
        return difference.square_().sum(1, keepdim=True).add_(distance).mul_(-0.5).exp_()

    cached = len(offsets) * image[:, :1].numel() <= CACHED_VALUES
    kernel = functools.cache(kernel_at) if cached else kernel_at

    def apply(values: torch.Tensor) -> torch.Tensor:
        total = values.clone()  # the voxel itself
        for offset in offsets:
            k = kernel(offset)
            offset_window(total, offset, -1).addcmul_(k, offset_window(values, offset, 1))
            offset_window(total, offset, 1).addcmul_(k, offset_window(values, offset, -1))
        return total

    return apply


def _smoothness(reach: Sequence[int], step: Sequence[float]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Sum over the window with the position kernel, one axis after the other."""

    def apply(values: torch.Tensor) -> torch.Tensor:
        for axis, (distance, unit) in enumerate(zip(reach, step, strict=True)):
            total = values.clone()
            for o in range(1, distance + 1):
                offset = tuple(o if a == axis else 0 for a in range(len(reach)))
                k = math.exp(-0.5 * (o * unit) ** 2)
                offset_window(total, offset, -1).add_(offset_window(values, offset, 1), alpha=k)
                offset_window(total, offset, 1).add_(offset_window(values, offset, -1), alpha=k)
            values = total
        return values

    return apply


def _check(
    logits: torch.Tensor,
    image: torch.Tensor,
    window: int | Sequence[int],
    spatial_sigma: Sequence[float],
    intensity_sigma: float | Sequence[float],
    weights: Sequence[float],
    spacing: Sequence[float] | None,
) -> tuple[list[int], list[float], list[float]]:
    """Window and voxel size per axis and intensity deviation per channel, or ValueError."""
    ndim = logits.ndim - 2
    if (
        ndim < 1
        or image.ndim != logits.ndim
        or (image.shape[0], *image.shape[2:]) != (logits.shape[0], *logits.shape[2:])
    ):
        raise ValueError(
            "logits (B, C, *spatial) and image (B, K, *spatial) must have the same batch and spatial sizes, got "
            f"{tuple(logits.shape)} and {tuple(image.shape)}."
        )
    if 0 in logits.shape[1:] or 0 in image.shape[1:]:
        raise ValueError(f"logits and image must not be empty, got {tuple(logits.shape)} and {tuple(image.shape)}.")
    if not logits.is_floating_point() or image.is_complex():
        raise ValueError(f"logits must be floats and image real numbers, got {logits.dtype} and {image.dtype}.")
    if not (logits < math.inf).all() or (logits.amax(1) == -math.inf).any():
        raise ValueError("logits must be below inf, without NaN, and finite for one class per voxel at least.")
    if not torch.isfinite(image).all():
        raise ValueError("image must be finite, got NaN or inf.")
    sides = _numbers("window", window, ndim, "axis")
    if any(side != int(side) or side % 2 == 0 for side in sides):
        raise ValueError(f"window must hold odd whole numbers, got {window}.")
    if len(spatial_sigma) != 2 or not all(0 < s < math.inf for s in spatial_sigma):
        raise ValueError(f"spatial_sigma must be two numbers above 0, (bilateral, smoothness), got {spatial_sigma}.")
    if len(weights) != 2 or not all(0 <= w < math.inf for w in weights):
        raise ValueError(f"weights must be two numbers of 0 or above, (bilateral, smoothness), got {weights}.")
    deviations = _numbers("intensity_sigma", intensity_sigma, image.shape[1], "channel")
    sizes = _numbers("spacing", 1.0 if spacing is None else spacing, ndim, "axis")
    return [int(side) for side in sides], sizes, deviations


def _numbers(name: str, value: float | Sequence[float], count: int, of: str) -> list[float]:
    """``count`` numbers above 0."""
    values = list(value) if isinstance(value, Iterable) else [value] * count
    if len(values) != count or not all(0 < v < math.inf for v in values):
        raise ValueError(f"{name} must be one number above 0, or one for each {of} ({count}), got {value}.")
    return values
