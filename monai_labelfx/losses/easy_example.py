# SPDX-License-Identifier: Apache-2.0
"""Online easy example mining: cross-entropy that trusts the voxels whose pseudo-label the network finds plausible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from monai_labelfx.losses._easy_weights import SCOPES, WEIGHTINGS, easy_weights
from monai_labelfx.losses._neighbours import check_reduction, plain_tensor
from monai_labelfx.losses._voxel_likelihood import (
    checked_voxels,
    log_likelihood,
    reduce_voxels,
    voxel_class_weights,
)


def easy_example_weights(
    input: torch.Tensor,
    target: torch.Tensor,
    *,
    weighting: str = "normalized_loss",
    scope: str = "image",
    block_size: int | Sequence[int] = 32,
    class_balanced: bool = False,
    temperature: float = 1.0,
    ignore_index: int | None = None,
) -> torch.Tensor:
    r"""The weights W of :py:func:`easy_example_loss`, for pictures of what the loss trusts.

    Arguments and errors are those of :py:func:`easy_example_loss`.

    Returns:
        (B, 1, \*spatial) without gradient, float32 or float64; 0 at ignored voxels.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[0.9, 0.8, 0.1, 0.2], [0.1, 0.2, 0.9, 0.8]]]).log()  # probabilities
        >>> easy_example_weights(logits, torch.tensor([[[0, 0, 0, 1]]]))  # p / mean(p), the third label looks wrong
        tensor([[[1.3846, 1.2308, 0.1538, 1.2308]]])
    """
    _check_options(weighting, scope, block_size, temperature)
    voxels = checked_voxels(input, target, ignore_index)
    with torch.no_grad(), torch.autocast(input.device.type, enabled=False):
        weights = easy_weights(
            voxels,
            log_likelihood(voxels.logits, voxels.classes),
            weighting=weighting,
            scope=scope,
            block_size=block_size,
            class_balanced=class_balanced,
            temperature=temperature,
        )
    return weights.view(voxels.shape)


def easy_example_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    *,
    weighting: str = "normalized_loss",
    scope: str = "image",
    block_size: int | Sequence[int] = 32,
    class_balanced: bool = False,
    temperature: float = 1.0,
    ignore_index: int | None = None,
    weight: torch.Tensor | Sequence[float] | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    r"""Cross-entropy with online easy example mining, OEEM (Li et al. 2022, equations 3 to 8).

    With :math:`p_{ik}` the softmax of the logits at voxel i, :math:`y_i` its pseudo-label, and
    :math:`L_i = -\log p_{i y_i}` its cross-entropy, the loss of an image of N voxels is (equations 3 and 8)

    .. math::
        \mathcal{L} = \frac{1}{N} \sum_i W_i L_i

    where W is a constant, and 1 in an image whose pseudo-labels are all of one class (n = 1, which is taken as free of
    noise). ``weighting`` chooses W:

    .. math::
        W_i^{c\_max} &= \max_k p_{ik} \quad (4) \\
        W_i^{c\_diff} &= \max_k p_{ik} - \min_k p_{ik} \quad (5) \\
        W_i^{l\_norm} &= \frac{\mathrm{softmax}(-L)_i}{\mathrm{mean}(\mathrm{softmax}(-L))} \quad (6) \\
        W_i^{lc\_mix} &= W_i^{l\_norm} \, W_i^{c\_max} \quad (7)

    Equation 6 needs no softmax over space: as exp(-L) is the probability of the pseudo-label, it is
    :math:`p_{i y_i} / \mathrm{mean}_j \, p_{j y_j}`, with mean 1. The gradient is that of
    :math:`-\log \mathrm{mean}_i \, p_{i y_i}`, the logarithm of the mean soft accuracy, and
    :math:`\mathcal{L} \le -\log \mathrm{mean}_i \, p_{i y_i} \le` cross-entropy. So it is a relative of the mean
    absolute error, 1 - mean(p): robust to *scattered* wrong labels. It does not repair *systematic* ones, such as
    pseudo-masks that are too wide everywhere: what is wrong consistently can be learned, so it looks easy.

    Args:
        input: logits (B, C, \*spatial), C classes, any number of spatial axes. Half precision is computed in float32,
            also under autocast.
        target: class indices (B, 1, \*spatial), any type of number. Values out of 0 to C - 1 that are not
            ``ignore_index`` raise torch's error on the CPU and its device-side assertion on CUDA: looking for them
            here would wait for the device in every step.
        weighting: ``"normalized_loss"`` (equation 6, the paper's choice), ``"confidence_max"`` (4),
            ``"confidence_difference"`` (5), ``"mixed"`` (7), or ``"none"``, W = 1: cross-entropy, the paper's baseline.
        scope: over which voxels equation 6 is normalised, and n counted: each ``"image"`` (default, the authors'
            code), each ``"block"`` of it (for volumes, where background in every crop would make n = 1 void), or the
            ``"batch"`` (the paper's text): then n is counted per image, and images with n = 1 keep out of the mean.
        block_size: side of the blocks of scope ``"block"`` in voxels, one number or one for each axis; the last block
            of an axis may be shorter. Default 32.
        class_balanced: normalise within each pseudo-class of each scope, so that the weights of each class have mean 1
            there, for every weighting. Otherwise a rare class that is less sure than the background loses weight. Only
            for labels that are mostly right within each class: with 30 % random flips most labels of a rare class are
            wrong, and this gives them back the weight that they lost.
        temperature: T of softmax(-L / T) in equations 6 and 7. Default 1, the paper; cross-entropy for infinite T.
        ignore_index: class index of voxels that are left out: no weight, no part in the means, in n or in the
            reduction. Default ``None``, all voxels count; pseudo-masks of this package mark unknown voxels with 255.
        weight: weights of the classes (C,), multiplied to W from outside, so that they do not change it. ``"mean"`` is
            then divided by their sum over the voxels, as torch's ``cross_entropy`` does. Default ``None``, all 1.
        reduction: ``"mean"`` over the voxels of the batch that are not ignored, ``"sum"`` (equation 3 as printed), or
            ``"none"`` for (B, 1, \*spatial), which can be multiplied with weights of your own.

    Returns:
        A scalar, or (B, 1, \*spatial). Where all voxels are ignored it is 0, with zero gradient.

    Raises:
        TypeError: if ``input`` is no tensor of floating-point numbers or ``target`` no tensor of real ones.
        ValueError: if shapes do not fit, or an option is out of its range.

    Notes:
        The paper says that weights are formed in a batch, its code forms them per image, and the paper prints a sum
        where the code takes the mean. In the code voxels that are ignored take part in the softmax with the largest
        possible value, so that padding takes weight from the others, and in the mean; here they take part in neither.
        The code holds equation 6 only. The paper is silent on n = 1 for the other weightings; here it holds for all.
        ``"block"``, ``class_balanced`` and ``temperature`` are ours.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[0.9, 0.8, 0.1, 0.2], [0.1, 0.2, 0.9, 0.8]]]).log()  # probabilities
        >>> labels = torch.tensor([[[0, 0, 0, 1]]])  # the third looks wrong
        >>> round(float(easy_example_loss(logits, labels)), 3)
        0.262
        >>> round(float(torch.nn.functional.cross_entropy(logits, labels[:, 0])), 3)
        0.714
        >>> labels[..., 2] = 255
        >>> round(float(easy_example_loss(logits, labels, ignore_index=255)), 3)
        0.181
    """
    return _loss(
        input,
        target,
        None,
        weighting=weighting,
        scope=scope,
        block_size=block_size,
        class_balanced=class_balanced,
        temperature=temperature,
        ignore_index=ignore_index,
        weight=weight,
        reduction=reduction,
    )


class EasyExampleLoss(torch.nn.Module):
    r""":py:func:`easy_example_loss` as a module: ``loss(input, target)``, with a warm-up.

    Args:
        weighting: ``"normalized_loss"``, ``"confidence_max"``, ``"confidence_difference"`` or ``"mixed"``.
        scope: ``"image"``, ``"block"`` or ``"batch"``.
        class_balanced: normalise the weights within each pseudo-class.
        ignore_index: class index of voxels that are left out, or ``None``.
        warm_up: so many first calls in training mode are plain cross-entropy: what an untrained network finds easy
            is chance, and background that is sure early would reinforce itself. Default 0, the paper. The count of
            calls is a buffer, ``calls``: it resumes with the module's ``state_dict``, so put the loss into the
            checkpoint. In evaluation mode calls are not counted, and the count so far decides.
        block_size: side of the blocks of scope ``"block"``, in voxels.
        temperature: T of softmax(-L / T).
        weight: weights of the classes (C,), or ``None``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        ValueError: for an option out of its range.

    Example:
        >>> import torch
        >>> loss = EasyExampleLoss(ignore_index=255, warm_up=1)
        >>> logits, labels = torch.randn(2, 3, 8, 8, 8), torch.randint(0, 3, (2, 1, 8, 8, 8))
        >>> first, second = loss(logits, labels), loss(logits, labels)
        >>> torch.allclose(first, torch.nn.functional.cross_entropy(logits, labels[:, 0])), bool(second < first)
        (True, True)
    """

    calls: torch.Tensor
    weight: torch.Tensor | None

    def __init__(
        self,
        weighting: str = "normalized_loss",
        scope: str = "image",
        class_balanced: bool = False,
        ignore_index: int | None = None,
        warm_up: int = 0,
        *,
        block_size: int | Sequence[int] = 32,
        temperature: float = 1.0,
        weight: torch.Tensor | Sequence[float] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _check_options(weighting, scope, block_size, temperature)
        check_reduction(reduction)
        if isinstance(warm_up, bool) or not isinstance(warm_up, int) or warm_up < 0:
            raise ValueError(f"warm_up must be a whole number of calls of 0 or more, got {warm_up!r}.")
        self.warm_up = warm_up
        self.options: dict[str, Any] = {
            "weighting": weighting,
            "scope": scope,
            "class_balanced": class_balanced,
            "ignore_index": ignore_index,
            "block_size": block_size,
            "temperature": temperature,
            "reduction": reduction,
        }
        values = None if weight is None else torch.as_tensor(plain_tensor(weight), dtype=torch.float32)
        self.register_buffer("weight", values, persistent=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        r"""The loss of logits (B, C, \*spatial) and class indices (B, 1, \*spatial)."""
        plain = None
        if self.warm_up:  # a flag on the device: reading it here would wait for the device
            plain = (self.calls < self.warm_up).to(input.device, non_blocking=True)
            if self.training:
                self.calls += 1
        return _loss(input, target, plain, weight=self.weight, **self.options)

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        options = {**self.options, "warm_up": self.warm_up}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _loss(
    input: torch.Tensor,
    target: torch.Tensor,
    plain: torch.Tensor | None,
    *,
    weighting: str,
    scope: str,
    block_size: int | Sequence[int],
    class_balanced: bool,
    temperature: float,
    ignore_index: int | None,
    weight: torch.Tensor | Sequence[float] | None,
    reduction: str,
) -> torch.Tensor:
    """The loss; cross-entropy where the scalar ``plain`` is true."""
    _check_options(weighting, scope, block_size, temperature)
    check_reduction(reduction)
    voxels = checked_voxels(input, target, ignore_index)
    with torch.autocast(input.device.type, enabled=False):
        log_p = log_likelihood(voxels.logits, voxels.classes)
        with torch.no_grad():
            weights = easy_weights(
                voxels,
                log_p,
                weighting=weighting,
                scope=scope,
                block_size=block_size,
                class_balanced=class_balanced,
                temperature=temperature,
                plain=plain,
            )
            outer = voxel_class_weights(weight, voxels)
            number: torch.Tensor | int = weights.numel()
            if voxels.ignored is not None:
                number = number - voxels.ignored.sum()
            if outer is not None:
                number = outer.sum() if voxels.ignored is None else outer.masked_fill(voxels.ignored, 0).sum()
                weights = weights * outer
        return reduce_voxels(log_p, weights, number, voxels.shape, reduction)


def _check_options(weighting: str, scope: str, block_size: int | Sequence[int], temperature: float) -> None:
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {WEIGHTINGS}, got {weighting!r}.")
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {SCOPES}, got {scope!r}.")
    sizes = [block_size] if isinstance(block_size, int) else list(block_size)
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"block_size must be whole numbers of voxels above 0, got {block_size!r}.")
    if not temperature > 0 or math.isnan(temperature):
        raise ValueError(f"temperature must be above 0, got {temperature}.")
    if temperature != 1 and weighting.startswith("confidence"):
        raise ValueError(f"temperature={temperature} has no effect with weighting={weighting!r}; leave it at 1.")
