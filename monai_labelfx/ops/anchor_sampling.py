# SPDX-License-Identifier: Apache-2.0
"""Which anchors a loss looks at: drawn at random with a share of positives, or the hardest negatives."""

from __future__ import annotations

import torch


@torch.no_grad()
def balanced_sample(
    matches: torch.Tensor, number: int, positive_fraction: float, *, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Draw anchors of each image at random, with a share of positives.

    Of an image are drawn ``int(number * positive_fraction)`` positives, or all if there are fewer, and negatives up to
    ``number`` in total, or all.

    Args:
        matches: (B, A) int64 of :func:`monai_labelfx.ops.iou_matches`: 0 or above is positive, -1 negative, and
            anything below is never drawn.
        number: anchors of an image. A region proposal network has 256, R-CNN 512.
        positive_fraction: 0 to 1; 0.5 and 0.25 there.
        generator: its state alone decides what is drawn; on the CPU it draws the same for every device. Default
            ``None``, the generator of torch for the device.

    Returns:
        Masks (B, A) bool of the positives and of the negatives drawn. Both are empty for an image without any anchor
        to draw; without positives there are ``number`` negatives.

    Raises:
        ValueError: if a number is out of its range or ``matches`` is not (B, A).

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.anchor_sampling import balanced_sample
        >>> matches = torch.tensor([[0, -1, -1, -2, 1, -1, -1]])
        >>> positive, negative = balanced_sample(matches, 4, 0.25, generator=torch.Generator().manual_seed(0))
        >>> positive.sum().item(), negative.sum().item(), (negative & (matches != -1)).any().item()
        (1, 3, False)
    """
    _check_matrix("matches", matches)
    if number < 0 or not 0 <= positive_fraction <= 1:
        raise ValueError(f"number must be at least 0 and the fraction 0 to 1, got {number} and {positive_fraction}.")
    most = int(number * positive_fraction)
    positive, negative = matches >= 0, matches == -1
    draw = _draw(matches, generator)
    first = positive.sum(1).clamp(max=most)
    return _largest(draw, positive, first, most), _largest(draw, negative, number - first, number)


@torch.no_grad()
def hard_negatives(
    losses: torch.Tensor,
    positive: torch.Tensor,
    candidates: torch.Tensor,
    *,
    ratio: float = 3.0,
    min_negatives: int = 0,
    per_image: bool = True,
) -> torch.Tensor:
    r"""The negatives with the largest losses, so many times the number of positives (Liu et al. 2016, section 2.2).

    Args:
        losses: (B, A) loss of each anchor as background.
        positive: (B, A) bool.
        candidates: (B, A) bool, the negatives to choose from.
        ratio: negatives for each positive, rounded down. Default 3, SSD.
        min_negatives: at least so many. Default 0, SSD, which then learns nothing from an image without boxes.
        per_image: count in each image. ``False``: in the batch as a whole, so that images without boxes give negatives
            for the positives of the others; ``min_negatives`` is of the batch then.

    Returns:
        (B, A) bool; all candidates where there are fewer. Of equal losses the first anchor is taken.

    Raises:
        ValueError: if shapes differ or a number is below 0.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.anchor_sampling import hard_negatives
        >>> losses, positive = torch.tensor([[0.5, 0.1, 0.9, 0.3]]), torch.tensor([[True, False, False, False]])
        >>> hard_negatives(losses, positive, ~positive, ratio=2).tolist()
        [[False, False, True, True]]
    """
    _check_matrix("losses", losses)
    if positive.shape != losses.shape or candidates.shape != losses.shape:
        raise ValueError(
            f"positive and candidates must have the shape {tuple(losses.shape)} of the losses, "
            f"got {tuple(positive.shape)} and {tuple(candidates.shape)}."
        )
    if ratio < 0 or min_negatives < 0:
        raise ValueError(f"ratio and min_negatives must be at least 0, got {ratio} and {min_negatives}.")
    if not per_image:
        rows = [tensor.reshape(1, -1) for tensor in (losses, positive, candidates)]
        chosen = hard_negatives(rows[0], rows[1], rows[2], ratio=ratio, min_negatives=min_negatives)
        return chosen.view(losses.shape)
    count = (positive.sum(1) * float(ratio)).long().clamp(min=min_negatives)
    return _largest(losses, candidates, count)


@torch.no_grad()
def hard_negative_sample(
    scores: torch.Tensor,
    matches: torch.Tensor,
    number: int,
    positive_fraction: float,
    *,
    min_negatives: int = 1,
    pool_size: float = 10,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Draw positives at random, and negatives at random from those of the highest scores.

    As MONAI's ``HardNegativeSampler``, with a generator of its own: of an image are drawn P = ``int(number *
    positive_fraction)`` positives, or all if there are fewer, and :math:`Q = \max(P, 1) (1 / fraction - 1)` negatives,
    rounded down, ``min_negatives`` at least, from the ``pool_size`` Q ones of the highest scores.

    Args:
        scores: (B, A) highest score of each anchor for any class.
        matches, generator: see :func:`balanced_sample`.
        number: anchors of an image, if there are enough positives.
        positive_fraction: above 0, 1 at most.
        min_negatives: default 1.
        pool_size: 1 or more. Default 10.

    Returns:
        Masks (B, A) bool of the positives and of the negatives drawn.

    Raises:
        ValueError: if shapes differ or a number is out of its range.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.anchor_sampling import hard_negative_sample
        >>> scores, matches = torch.tensor([[0.9, 0.2, 0.8, 0.1, 0.7]]), torch.tensor([[0, -1, -1, -1, -2]])
        >>> positive, negative = hard_negative_sample(scores, matches, 2, 0.5, pool_size=1)
        >>> positive.tolist(), negative.tolist()
        ([[True, False, False, False, False]], [[False, False, True, False, False]])
    """
    _check_matrix("matches", matches)
    if scores.shape != matches.shape:
        raise ValueError(f"scores must have the shape {tuple(matches.shape)} of matches, got {tuple(scores.shape)}.")
    if number < 0 or not 0 < positive_fraction <= 1 or min_negatives < 0 or not pool_size >= 1:
        raise ValueError(
            "number and min_negatives must be at least 0, positive_fraction above 0 and 1 at most, and pool_size at "
            f"least 1, got {number}, {min_negatives}, {positive_fraction} and {pool_size}."
        )
    most = int(number * positive_fraction)
    positive, negative = matches >= 0, matches == -1
    draw = _draw(matches, generator)
    first = positive.sum(1).clamp(max=most)
    others = (first.clamp(min=1).double() * abs(1 - 1 / float(positive_fraction))).long().clamp(min=min_negatives)
    pool = _largest(scores, negative, (others.double() * float(pool_size)).long())
    return _largest(draw, positive, first, most), _largest(draw, pool, others)


def _largest(values: torch.Tensor, members: torch.Tensor, count: torch.Tensor, most: int | None = None) -> torch.Tensor:
    """Mask (B, A) of the ``count`` (B,) largest values of each row among the members, or all of them.

    ``most`` is the largest count, where it is known without waiting for the device. Of equal values the first ones are
    taken, but with ``most`` any.
    """
    values = values.detach().masked_fill(~members, -torch.inf)
    count = torch.minimum(count, members.sum(1))
    if most is None:
        order = values.sort(dim=1, descending=True, stable=True).indices
    else:
        order = values.topk(min(most, values.shape[1]), 1).indices
    taken = torch.arange(order.shape[1], device=values.device) < count[:, None]
    return torch.zeros_like(members).scatter_(1, order, taken)


def _draw(like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Numbers of 0 to 1, in float64 so that no two are the same."""
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, dtype=torch.float64, device=device).to(like.device)


def _check_matrix(name: str, value: torch.Tensor) -> None:
    if value.ndim != 2:
        raise ValueError(f"{name} must have the shape (B, A), got {tuple(value.shape)}.")
