# SPDX-License-Identifier: Apache-2.0
"""Smooth maxima of the probabilities in a bag, as logits, computed from logits in log space.

Every kind but the maximum itself is a function of A / (A + B), where A and B are sums of positive numbers over the bag.
A voxel's *terms* are the logarithms of what it adds to them: nothing overflows or cancels, and sums of sums are sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import logsigmoid

SMOOTH_MAX_KINDS = ("softmax", "quasimax", "power_mean", "max")
EMPTY_BAG_LOGIT = -1e4  # probability exactly 0 in every dtype, yet finite in float16

_TINY = 1e-30  # stands for 0 where a quotient tends to 1
_HUGE = 1e30  # so that alpha times it is finite in float32
_STRAIGHT = 45.0  # logits with e^-|z| * 1e3 below the rounding of float64
_LOG_EPSILON = -36.0  # below this log(1 + x) is x even in float64


def smooth_max(
    logits: torch.Tensor,
    *,
    kind: str = "softmax",
    alpha: float | torch.Tensor = 6.0,
    dim: int | Sequence[int] = -1,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Smooth maximum of the probabilities in each bag, as a logit.

    Of the probabilities :math:`x_i = \mathrm{sigmoid}(z_i)` of the n voxels of a bag (Wang and Xia 2021):

    - ``"softmax"``: alpha-softmax, equation 6, :math:`S = \sum x_i e^{\alpha x_i} / \sum e^{\alpha x_i}`
    - ``"quasimax"``: alpha-quasimax, equation 7, :math:`Q = (\log \sum e^{\alpha x_i} - \log n) / \alpha`
    - ``"power_mean"``: :math:`M = (\sum x_i^\alpha / n)^{1 / \alpha}`
    - ``"max"``: :math:`\max x_i`; alpha is not used.

    All lie between the smallest and the largest probability, tend to the maximum for large alpha, and do not change
    when every voxel is repeated. Alpha 0 is the mean for softmax and quasimax; alpha 1 is it for the power mean.

    With the result s, the focal loss (equation 5) has :math:`\log P = \mathrm{logsigmoid}(s)` and :math:`\log(1 - P) =
    \mathrm{logsigmoid}(-s)`, both accurate however close P comes to 0 or 1, where a probability would be rounded.

    Args:
        logits: (\*, n, \*), floating point, any device. Half precision is computed in float32.
        kind: one of ``SMOOTH_MAX_KINDS``.
        alpha: 0 or more (power mean: above 0). One number, or a tensor that broadcasts to ``logits`` with length 1
            along ``dim``: one alpha per bag, as from :py:func:`alpha_for_target`. Default 6, the better of 4, 6 and 8
            in the paper (table 2, alpha-softmax).
        dim: axis or axes of the bag. Default the last.
        mask: true at voxels of the bag, broadcasts to ``logits``; false at padding, whose values do not matter.

    Returns:
        Logits of the dtype of ``logits``, without the axes ``dim``. A bag without voxels has the logit -1e4
        (``EMPTY_BAG_LOGIT``), which is probability 0, and passes no gradient.

    Raises:
        TypeError: if ``logits`` is not a floating-point tensor.
        ValueError: if an argument is out of its range, or shapes do not fit.

    Notes:
        The result and its gradient are finite for alpha up to 1e3 and any logits. The error of the logit is about
        alpha times the rounding of the dtype, so up to 1e-4 for alpha 1e3 in float32. The maximum is exact; its
        gradient is shared by equal maxima.
        Alpha-softmax is not monotone, though the paper says so: :math:`\partial S / \partial x_i = w_i (1 + \alpha
        (x_i - S))` with softmax weights w, below 0 for :math:`x_i < S - 1 / \alpha`. Quasimax and power mean are.
        The paper's released code overflows from alpha 88 on, and trains the proposed method with a power mean of
        alpha 4 whichever kind is asked for.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.smooth_maxima import SMOOTH_MAX_KINDS, smooth_max
        >>> bag = torch.tensor([-1000.0, 0.0, 1000.0])  # probabilities 0, 0.5, 1
        >>> [round(smooth_max(bag, kind=kind, alpha=4).sigmoid().item(), 4) for kind in SMOOTH_MAX_KINDS]
        [0.9255, 0.7611, 0.7714, 1.0]
    """
    logits = _checked_logits(logits)
    axes = _negative_axes(dim, logits.ndim)
    if isinstance(alpha, torch.Tensor) and any(-axis <= alpha.ndim and alpha.shape[axis] != 1 for axis in axes):
        raise ValueError(f"alpha must have length 1 along dim {dim}, got the shape {tuple(alpha.shape)}.")
    if mask is not None:
        _check_mask(mask, logits.shape)
        logits = logits.masked_fill(~mask, 0)  # so that not even NaN reaches a gradient from the padding
    terms = add_smooth_max_terms(smooth_max_terms(logits, kind=kind, alpha=alpha), dim=axes, mask=mask)
    if isinstance(alpha, torch.Tensor):
        alpha = alpha.squeeze(tuple(axis for axis in axes if -axis <= alpha.ndim))
    return smooth_max_from_terms(terms, kind=kind, alpha=alpha).to(logits.dtype)


def smooth_max_terms(logits: torch.Tensor, *, kind: str, alpha: float | torch.Tensor) -> torch.Tensor:
    r"""What each voxel adds to its bags: the first of three steps that together are :py:func:`smooth_max`.

    Then gather terms and :py:func:`add_smooth_max_terms`, as often as wanted, and end with
    :py:func:`smooth_max_from_terms`. So a voxel in many bags is computed once, and a plane of a volume is a line of the
    sums along an axis. -inf is the neutral term: padding may point to it instead of being masked.

    Args:
        logits: any shape, floating point.
        kind, alpha: as for :py:func:`smooth_max`, and the same in the last step.

    Returns:
        (2, \*logits.shape), or (1, \*logits.shape) for the maximum, in float32 or float64 (the maximum: the dtype of
        ``logits``). With x = sigmoid(z) and y = 1 - x, up to a constant, log A and log B are

        - softmax: :math:`\log x e^{-\alpha y}` and :math:`\log y e^{-\alpha y}`, so that S = A / (A + B)
        - quasimax: :math:`\log (e^{\alpha x} - 1)` and :math:`\log (e^{\alpha} - e^{\alpha x})`
        - power mean: :math:`\log x^\alpha` and :math:`\log (1 - x^\alpha)`
        - maximum: the logit.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.smooth_maxima import add_smooth_max_terms, smooth_max_from_terms, smooth_max_terms
        >>> box, how = torch.randn(5, 6, 7), {"kind": "quasimax", "alpha": 20.0}
        >>> projection = add_smooth_max_terms(smooth_max_terms(box, **how), dim=-1)
        >>> row = add_smooth_max_terms(projection[:, 2], dim=-1)
        >>> plane = smooth_max(box[2].flatten(), **how)
        >>> torch.allclose(smooth_max_from_terms(row, **how), plane, atol=1e-5)
        True
    """
    logits = _checked_logits(logits)
    strength = _checked_alpha(alpha, kind, logits)
    if kind == "max":
        return logits[None]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if kind == "softmax":
        return torch.stack((logsigmoid(logits), logsigmoid(-logits))) - strength * torch.sigmoid(-logits)
    # Beyond +-45, where probabilities are soon rounded to 0, the logarithms are straight lines.
    near = logits.clamp(-_HUGE if kind == "power_mean" else -_STRAIGHT, _STRAIGHT)
    rest = logits - near
    if kind == "power_mean":
        decay = -strength * logsigmoid(near)
        return torch.stack((-decay, _log_complement(decay) - rest.clamp(min=0)))
    p, q = strength * torch.sigmoid(near), strength * torch.sigmoid(-near)
    return torch.stack((_log_complement(p) - q + rest.clamp(max=0), _log_complement(q) - rest.clamp(min=0)))


def add_smooth_max_terms(
    terms: torch.Tensor, *, dim: int | Sequence[int] = -1, mask: torch.Tensor | None = None
) -> torch.Tensor:
    r"""Terms of bags from the terms of their voxels, or of their parts: the logarithm of the sum, or the maximum.

    Args:
        terms: (2, \*, n, \*), or (1, \*, n, \*) for the maximum, of :py:func:`smooth_max_terms` or of this function.
        dim: axis or axes of the bag, not counting the first axis of ``terms``. Default the last.
        mask: true at the terms to add, broadcasts to ``terms[0]``.

    Returns:
        The terms without the axes ``dim``; -inf, without gradient, for a bag without voxels.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops import add_smooth_max_terms, smooth_max_terms
        >>> terms = smooth_max_terms(torch.randn(5, 7), kind="softmax", alpha=6.0)
        >>> add_smooth_max_terms(terms).shape, add_smooth_max_terms(terms, dim=(0, 1)).shape
        (torch.Size([2, 5]), torch.Size([2]))
    """
    if terms.ndim < 2 or terms.shape[0] not in (1, 2):
        raise ValueError(f"terms must be (2, *shape) of smooth_max_terms, or (1, *shape), got {tuple(terms.shape)}.")
    axes = _negative_axes(dim, terms.ndim - 1)
    if mask is not None:
        _check_mask(mask, terms.shape[1:])
        terms = terms.masked_fill(~mask, -math.inf)
    if any(terms.shape[axis] == 0 for axis in axes):
        return terms.sum(axes) - math.inf
    if terms.shape[0] == 1:
        largest = terms.amax(axes)
        return largest.masked_fill(largest == -math.inf, -math.inf)  # no gradient
    reference = terms.detach().amax(axes, keepdim=True)
    reference = reference.masked_fill(reference == -math.inf, 0)
    sums = (terms - reference).exp().sum(axes)
    empty = sums == 0
    return (sums.masked_fill(empty, 1).log() + reference.squeeze(axes)).masked_fill(empty, -math.inf)


def smooth_max_from_terms(terms: torch.Tensor, *, kind: str, alpha: float | torch.Tensor) -> torch.Tensor:
    r"""The smooth maximum of bags whose terms have been added up, as a logit.

    Args:
        terms: (2, \*), or (1, \*) for the maximum, of :py:func:`add_smooth_max_terms`.
        kind, alpha: as for :py:func:`smooth_max_terms`; a tensor must broadcast to ``terms[0]``.

    Returns:
        Logits of the shape ``terms.shape[1:]``; -1e4 for a bag without voxels.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops import add_smooth_max_terms, smooth_max_from_terms, smooth_max_terms
        >>> terms = add_smooth_max_terms(smooth_max_terms(torch.zeros(5, 7), kind="softmax", alpha=6.0))
        >>> smooth_max_from_terms(terms, kind="softmax", alpha=6.0).sigmoid().tolist()
        [0.5, 0.5, 0.5, 0.5, 0.5]
    """
    strength = _checked_alpha(alpha, kind, terms)
    rows = 1 if kind == "max" else 2
    if terms.ndim < 1 or terms.shape[0] != rows:
        raise ValueError(f"terms of kind {kind!r} must be ({rows}, *shape), got {tuple(terms.shape)}.")
    empty = (terms == -math.inf).all(0)
    terms = terms.masked_fill(empty, 0)
    ratio = terms[0] if kind == "max" else terms[0] - terms[1]
    if kind == "quasimax":
        ratio = _quasimax_logit(ratio, strength)
    elif kind == "power_mean":
        decay = -logsigmoid(ratio) / strength  # -log M
        ratio = strength.log() - decay - _log_softplus(-ratio) - _log_mean_decay(decay)
    return ratio.masked_fill(empty, EMPTY_BAG_LOGIT)


def alpha_for_target(share: float | torch.Tensor, target: float, *, kind: str = "softmax") -> float | torch.Tensor:
    r"""Smallest alpha with which a bag that holds some object is sure to get a wanted value.

    In the bag a share r of the voxels has probability 1, all others 0. Its smooth maximum is, whatever its length,

    .. math::
        S = r e^\alpha / (r e^\alpha + 1 - r) \qquad Q = \log(r e^\alpha + 1 - r) / \alpha \qquad M = r^{1 / \alpha}

    One object voxel in a line of 80 gives S = 0.409 at alpha 4, in a plane of 6,400 only 0.008. So ask for one alpha
    for lines and another for planes, or for one per bag with ``share = 1 / voxels`` as a tensor (bags, 1), which
    :py:func:`smooth_max` takes as it is.

    Args:
        share: share of object voxels in the bag, above 0 and up to 1; a number or a tensor.
        target: the value wanted at least, above 0 and below 1.
        kind: as for :py:func:`smooth_max`.

    Returns:
        Alpha; a float, or a tensor like ``share``. 0 (power mean: 1) where the mean reaches the target already, 0 for
        the maximum. Softmax and power mean in closed form, quasimax by bisection.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> [round(alpha_for_target(1 / 80, 0.9, kind=kind), 2) for kind in ("softmax", "quasimax", "power_mean")]
        [6.57, 43.82, 41.59]
        >>> alpha_for_target(1 / torch.tensor([[80.0], [6400.0]]), 0.9)
        tensor([[ 6.5667],
                [10.9611]])
    """
    _check_kind(kind)
    shares = share if isinstance(share, torch.Tensor) else torch.tensor(share, dtype=torch.float64)
    if not bool(((shares > 0) & (shares <= 1)).all()):
        raise ValueError(f"share must be above 0 and at most 1, got {share}.")
    if not 0 < target < 1:
        raise ValueError(f"target must be between 0 and 1, got {target}.")
    alpha = torch.zeros_like(shares)
    if kind == "softmax":
        alpha = (math.log(target) - math.log1p(-target) - shares.logit()).clamp(min=0)
    elif kind == "power_mean":
        alpha = (shares.log() / math.log(target)).clamp(min=1)
    elif kind == "quasimax":
        low, high = torch.zeros_like(shares), -shares.log() / (1 - target)  # Q >= 1 + log(r) / alpha
        high = high.masked_fill(shares >= target, 0)
        for _ in range(100):
            middle = (low + high) / 2
            enough = torch.logaddexp(torch.log1p(-shares), shares.log() + middle) >= target * middle
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        alpha = high
    return alpha if isinstance(share, torch.Tensor) else float(alpha)


def _quasimax_logit(ratio: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """log Q - log(1 - Q) where sigmoid(ratio) = s is the mean of (exp(alpha x) - 1) / (exp(alpha) - 1) over the bag.

    alpha Q = log(1 + s (e^alpha - 1)), and alpha (1 - Q) = -log(1 - t) with t = (1 - s) (1 - e^-alpha). Where t comes
    close to 1 the latter is alpha - alpha Q, with alpha cancelled by hand.
    """
    log_s, log_range = logsigmoid(ratio), _log_complement(alpha)
    log_rise = log_s + log_range + alpha
    log_t = logsigmoid(-ratio) + log_range
    bounded = log_t.clamp(_LOG_EPSILON, -math.log(2))
    log_near = (-torch.log1p(-bounded.exp())).log() + (log_t - bounded)
    far = torch.minimum(-(log_s + log_range), alpha) - torch.log1p((-log_rise.abs()).exp())
    log_rest = torch.where(log_t <= -math.log(2), log_near, far.clamp(min=0.5).log())
    return _log_softplus(log_rise) - log_rest


def _log_softplus(values: torch.Tensor) -> torch.Tensor:
    """log(log(1 + e^v)), which is v for small v."""
    bounded = values.clamp(min=_LOG_EPSILON)
    return (-logsigmoid(-bounded)).log() + (values - bounded)


def _log_complement(values: torch.Tensor) -> torch.Tensor:
    """log(1 - e^-v) for v > 0."""
    return (-torch.expm1(-values)).log()


def _log_mean_decay(values: torch.Tensor) -> torch.Tensor:
    """log((1 - e^-v) / v) for v >= 0, which is 0 at v = 0."""
    values = values.clamp(min=_TINY)
    return (-torch.expm1(-values) / values).log()


def _check_kind(kind: str) -> None:
    if kind not in SMOOTH_MAX_KINDS:
        raise ValueError(f"kind must be one of {', '.join(SMOOTH_MAX_KINDS)}, got {kind!r}.")


def _checked_logits(logits: torch.Tensor) -> torch.Tensor:
    if not isinstance(logits, torch.Tensor) or not logits.is_floating_point():
        found = logits.dtype if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise TypeError(f"logits must be a floating-point tensor, got {found}: cast it, for example with .float().")
    return logits.as_subclass(torch.Tensor)


def _checked_alpha(alpha: float | torch.Tensor, kind: str, like: torch.Tensor) -> torch.Tensor:
    """Alpha as a tensor for the computation of ``like``."""
    _check_kind(kind)
    if kind == "max":
        return like.new_zeros(())
    lowest = float(alpha.min()) if isinstance(alpha, torch.Tensor) else float(alpha)
    highest = float(alpha.max()) if isinstance(alpha, torch.Tensor) else lowest
    if not (lowest > 0 if kind == "power_mean" else lowest >= 0) or not highest < math.inf:  # NaN is neither
        least = "above 0 for the power mean" if kind == "power_mean" else "0 or more"
        raise ValueError(f"alpha must be finite and {least}, got {alpha}.")
    dtype = torch.promote_types(like.dtype, torch.float32)
    if isinstance(alpha, torch.Tensor):
        strength = alpha.detach().to(like.device, dtype)
    else:
        strength = torch.tensor(lowest, dtype=dtype, device=like.device)
    # quasimax divides by alpha; below this it is the mean to 1e-10
    return strength.clamp(min=1e-9) if kind == "quasimax" else strength


def _check_mask(mask: torch.Tensor, shape: torch.Size) -> None:
    fits = mask.ndim <= len(shape) and all(m in (1, n) for m, n in zip(mask.shape[::-1], shape[::-1], strict=False))
    if mask.dtype != torch.bool or not fits:
        raise ValueError(
            f"mask must be a boolean tensor that broadcasts to {tuple(shape)}, got {mask.dtype} {tuple(mask.shape)}."
        )


def _negative_axes(dim: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Axes counted from the end, which a further first axis does not move."""
    wanted = (dim,) if isinstance(dim, int) else tuple(dim)
    axes = tuple(axis - ndim if axis >= 0 else axis for axis in wanted)
    if not axes or len(set(axes)) < len(axes) or not all(-ndim <= axis < 0 for axis in axes):
        raise ValueError(f"dim must name different axes of a tensor with {ndim}, got {dim}.")
    return axes
