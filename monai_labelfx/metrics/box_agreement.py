# SPDX-License-Identifier: Apache-2.0
"""How well the tight boxes of a segmentation agree with given boxes: a measure that needs no mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment

from monai_labelfx.ops.components import component_boxes


def box_agreement(
    probabilities: torch.Tensor,
    boxes: torch.Tensor,
    labels: torch.Tensor,
    *,
    thresholds: Sequence[float] = (0.5,),
    weights: str = "volume",
    min_size: int = 0,
    connectivity: int | None = None,
) -> torch.Tensor:
    """Agreement of given boxes with the tight boxes of the components above each threshold, class by class.

    At each threshold the predicted boxes of a class are paired one to one with its given boxes, so that the sum of the
    weighted intersections over union (IoU) of the pairs is largest. The agreement is ``2 * matched / (given +
    predicted)``: a Dice score in which a pair counts by its IoU. Specks and objects that were missed both cost: each by
    the volume of its box, or all alike.

    Args:
        probabilities: (C, \\*spatial), one channel per class of objects; or a mask of 0 and 1.
        boxes: (N, 2 \\* spatial_dims) in voxels, low corner then high corner, half open (MONAI's standard mode).
        labels: (N,) class channel of each box; boxes of label -1 are padding.
        thresholds: a voxel is predicted where its probability is above the threshold. Any number of them, in any order.
        weights: what a box counts: ``"volume"``, as many as it has voxels, a pair the mean of both; or ``"count"``, 1.
            One false voxel in a large volume costs nearly nothing, or as much as the object. Default ``"volume"``.
        min_size: smallest component that counts, in voxels. Default 0: single voxels count.
        connectivity: of the components, as for :func:`~monai_labelfx.ops.component_boxes`.

    Returns:
        (thresholds, 3) float64 on the CPU: ``matched``, the sum of weighted IoU over pairs and classes, ``given`` and
        ``predicted``, the sums of weights of boxes.

    Raises:
        ValueError: for unknown weights, if shapes do not fit together, a label is no channel, or a box is not finite or
            has no extent.

    Notes:
        The components are found on the CPU, once per threshold in the part of the image that is above it; a threshold
        that no voxel lies between and the one below costs nothing.

    Example:
        >>> probabilities = torch.tensor([[[0.9, 0.9, 0.4, 0.0, 0.2]]])
        >>> boxes, labels = torch.tensor([[0, 0, 1, 3]]), torch.tensor([0])
        >>> matched, given, predicted = box_agreement(probabilities, boxes, labels, thresholds=[0.1, 0.3, 0.5]).T
        >>> 2 * matched / (given + predicted)  # a speck beside the object; exact; too short
        tensor([0.8571, 1.0000, 0.6667], dtype=torch.float64)
    """
    if weights not in ("volume", "count"):
        raise ValueError(f"weights must be 'volume' or 'count', got {weights!r}.")
    boxes, labels = _checked(probabilities, boxes, labels)
    values = probabilities.detach().as_subclass(torch.Tensor).to("cpu", torch.float32)
    result = torch.zeros(len(thresholds), 3, dtype=torch.float64)
    result[:, 1] = _weights(boxes, weights).sum()
    order = sorted(range(len(thresholds)), key=lambda number: thresholds[number])
    for channel, image in enumerate(values):
        given = boxes[labels == channel]
        corner = torch.zeros(image.ndim, dtype=torch.int64)
        voxels, row = -1, (0.0, 0.0)
        for number in order:
            above = image > thresholds[number]
            count = int(above.sum())
            if count == 0:
                break
            if count != voxels:  # the voxels above a threshold are among those above a lower one
                window = _window(above)
                image, above = image[window], above[window]
                corner = corner + torch.tensor([part.start for part in window])
                found, _ = component_boxes(above, min_size=min_size, connectivity=connectivity)
                found = found + corner.repeat(2)
                found = found.double()
                voxels, row = count, (_matched(given, found, weights), float(_weights(found, weights).sum()))
            result[number, 0] += row[0]
            result[number, 2] += row[1]
    return result


def _checked(
    probabilities: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The boxes and labels without padding, on the CPU."""
    boxes = torch.as_tensor(boxes).detach().as_subclass(torch.Tensor).to("cpu", torch.float64)
    labels = torch.as_tensor(labels).detach().as_subclass(torch.Tensor).cpu().reshape(-1)
    ndim = probabilities.ndim - 1
    if ndim < 1 or boxes.ndim != 2 or boxes.shape != (len(labels), 2 * ndim):
        raise ValueError(
            f"boxes must be (N, 2 * spatial_dims) with N labels for probabilities (C, *spatial), got "
            f"{tuple(boxes.shape)}, {len(labels)} labels and {tuple(probabilities.shape)}."
        )
    boxes, labels = boxes[labels != -1], labels[labels != -1]
    strange = (labels < 0) | (labels >= len(probabilities))
    if strange.any():
        raise ValueError(
            f"labels must be class channels from 0 to {len(probabilities) - 1}, or -1 for padding, "
            f"got {labels[strange][0].item()}."
        )
    bad = ~(boxes.isfinite().all(1) & (boxes[:, :ndim] < boxes[:, ndim:]).all(1))
    if bad.any():
        raise ValueError(f"boxes must be finite, every high corner above its low one, got {boxes[bad][0].tolist()}.")
    return boxes, labels


def _window(mask: torch.Tensor) -> tuple[slice, ...]:
    """The tight box of a mask that is not empty."""
    window = []
    for axis in range(mask.ndim):
        others = [a for a in range(mask.ndim) if a != axis]
        places = (mask.any(dim=others) if others else mask).nonzero()
        window.append(slice(int(places[0]), int(places[-1]) + 1))
    return tuple(window)


def _weights(boxes: torch.Tensor, weights: str) -> torch.Tensor:
    """What each box (N, 2D) counts."""
    ndim = boxes.shape[1] // 2
    volume = (boxes[:, ndim:] - boxes[:, :ndim]).prod(1)
    return volume if weights == "volume" else torch.ones_like(volume)


def _matched(given: torch.Tensor, found: torch.Tensor, weights: str) -> float:
    """Largest sum of weighted IoU over one-to-one pairs of boxes (N, 2D) and (M, 2D)."""
    if not len(given) or not len(found):
        return 0.0
    ndim = given.shape[1] // 2
    low = torch.maximum(given[:, None, :ndim], found[None, :, :ndim])
    high = torch.minimum(given[:, None, ndim:], found[None, :, ndim:])
    shared = (high - low).clamp(min=0).prod(2)
    first, second = (_weights(boxes, "volume") for boxes in (given, found))
    iou = shared / (first[:, None] + second[None] - shared)
    counts = (_weights(given, weights)[:, None] + _weights(found, weights)[None]) / 2
    score = (iou * counts).numpy()
    return float(score[linear_sum_assignment(score, maximize=True)].sum())
