# SPDX-License-Identifier: Apache-2.0
"""Matrix non-maximum suppression: masks that better ones overlap lose score, all at once."""

from __future__ import annotations

import math

import torch

MATRIX_KERNELS = ("gaussian", "linear")
MOST_NUMBERS = 2**24  # of masks held as float32 at a time; counts up to here are whole in float32


@torch.no_grad()
def matrix_nms(
    masks: torch.Tensor | None,
    labels: torch.Tensor,
    scores: torch.Tensor,
    *,
    kernel: str = "gaussian",
    sigma: float = 2.0,
    iou: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Lower the score of each mask by the better ones of its class that overlap it (Wang et al. 2020, equation 5).

    With u_ij the intersection over union of masks i and j of one class (0 for different classes), and masks in
    falling order of their scores,

    .. math::
        s_j \leftarrow s_j \min_{i < j} \frac{f(u_{ij})}{f(\max_{k < i} u_{ki})}

    with :math:`f(u) = \exp(-\sigma u^2)` (``"gaussian"``) or :math:`f(u) = 1 - u` (``"linear"``). The divisor spares
    j where i itself is likely to be suppressed.

    Args:
        masks: (N, \*spatial) with any number of spatial axes, bool or any numbers; what is not 0 is inside. ``None``
            where ``iou`` is given.
        labels: (N,) class of each mask.
        scores: (N,) finite; equal ones go by their place.
        kernel: see above. Default as in the paper.
        sigma: more than 0, only for ``"gaussian"``. Default 2, as in the authors' settings.
        iou: (N, N) intersection over union of all pairs, of masks or boxes, instead of ``masks``.

    Returns:
        (N,) new scores in the order given, float32 at least, none higher than before.

    Raises:
        ValueError: for not exactly one of ``masks`` and ``iou``, shapes that do not fit each other, another kernel, or
            a ``sigma`` that is not positive.

    Notes:
        The linear kernel is 0 / 0 at the third of three equal masks. The second one is sure to be suppressed then, so
        it is left out; the first one does what is to do. Empty masks overlap nothing. Memory is that of the masks, the
        N x N overlaps, and a bounded part of the masks as float32.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.matrix_nms import matrix_nms
        >>> masks = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]])
        >>> matrix_nms(masks, torch.zeros(3), torch.tensor([0.8, 0.6, 0.5]), kernel="linear")
        tensor([0.8000, 0.3000, 0.5000])
        >>> matrix_nms(masks, torch.tensor([0, 1, 0]), torch.tensor([0.8, 0.6, 0.5]))
        tensor([0.8000, 0.6000, 0.5000])
    """
    if kernel not in MATRIX_KERNELS:
        raise ValueError(f"kernel is {kernel!r}, expected one of {', '.join(MATRIX_KERNELS)}.")
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}, expected more than 0.")
    _check_shapes(masks, labels, scores, iou)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if iou is None:
        iou = mask_iou(masks)  # type: ignore[arg-type]  # one of the two is given
    order = scores.sort(stable=True, descending=True).indices
    ranked = labels[order]
    overlap = iou.to(scores.dtype)[order[:, None], order]
    overlap = overlap.masked_fill_(ranked[:, None] != ranked, 0).triu_(1)
    if not len(order):
        return scores.clone()
    worst = overlap.amax(0)[:, None]  # by better ones
    if kernel == "gaussian":
        decay = ((overlap.square() - worst.square()).amax(0) * -sigma).exp()
    else:
        spared = 1 - worst
        decay = torch.where(spared > 0, (1 - overlap) / spared, math.inf).amin(0)
    result = torch.empty_like(scores)
    result[order] = scores[order] * decay
    return result


def mask_iou(masks: torch.Tensor) -> torch.Tensor:
    r"""Intersection over union of all pairs of masks.

    Args:
        masks: (N, \*spatial) with any number of spatial axes; what is not 0 is inside.

    Returns:
        (N, N) float32, 0 for two empty masks. Voxels are counted exactly, whatever the size.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.matrix_nms import mask_iou
        >>> mask_iou(torch.tensor([[[1, 1]], [[0, 1]], [[0, 0]]])).tolist()
        [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    count = len(masks)
    shared = torch.zeros(count, count, dtype=torch.float64, device=masks.device)
    # Neither bfloat16 nor float32 beyond 2 ** 24 would count exactly.
    with torch.autocast(masks.device.type, enabled=False):
        for part in masks.flatten(1).split(max(1, MOST_NUMBERS // max(count, 1)), 1):
            inside = (part if part.dtype == torch.bool else part != 0).float()
            shared += inside @ inside.T
    areas = shared.diagonal()
    union = areas[:, None] + areas - shared
    return (shared / union.clamp(min=1)).float()


def _check_shapes(
    masks: torch.Tensor | None, labels: torch.Tensor, scores: torch.Tensor, iou: torch.Tensor | None
) -> None:
    if (masks is None) == (iou is None):
        raise ValueError("exactly one of masks and iou must be given.")
    if scores.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(
            f"scores have shape {tuple(scores.shape)}, labels {tuple(labels.shape)}, expected (N,) for both."
        )
    if masks is not None and (masks.ndim < 2 or len(masks) != len(scores)):
        raise ValueError(f"masks have shape {tuple(masks.shape)}, expected ({len(scores)}, *spatial).")
    if iou is not None and iou.shape != (len(scores), len(scores)):
        raise ValueError(f"iou has shape {tuple(iou.shape)}, expected ({len(scores)}, {len(scores)}).")
