# SPDX-License-Identifier: Apache-2.0
"""The voxel weights of online easy example mining."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from monai_labelfx.losses._voxel_likelihood import Voxels

WEIGHTINGS = ("normalized_loss", "confidence_max", "confidence_difference", "mixed", "none")
SCOPES = ("image", "block", "batch")


def easy_weights(
    voxels: Voxels,
    log_p: torch.Tensor,
    *,
    weighting: str,
    scope: str,
    block_size: int | Sequence[int],
    class_balanced: bool,
    temperature: float,
    plain: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weights (B, V) of equations 4 to 8; the caller switches gradients off.

    Args:
        voxels: logits and classes of the batch.
        log_p: their log likelihood (B, V), that is -L.
        weighting, scope, block_size, class_balanced, temperature: as for ``easy_example_loss``.
        plain: a scalar bool, true where all weights shall be 1.
    """
    groups = _Groups(voxels.shape, scope, block_size)
    scores = groups.split(torch.zeros_like(log_p) if weighting == "none" else log_p)
    # small numbers are compared several times faster
    small = torch.int8 if voxels.logits.shape[1] <= torch.iinfo(torch.int8).max else torch.int32
    classes = groups.split(voxels.classes.to(small))
    ignored = groups.ignored(voxels)
    one_class = _one_class(classes, ignored, groups.units)
    left_out = ignored
    if scope == "batch":  # images of one class keep out of the mean
        left_out = one_class.expand_as(scores) if ignored is None else ignored | one_class
    unweighted = one_class if plain is None else one_class | plain

    confidence = None
    if weighting not in ("normalized_loss", "none"):
        p = voxels.logits.softmax(1)
        top = p.amax(1)
        confidence = groups.split(top - p.amin(1) if weighting == "confidence_difference" else top)
        confidence = torch.where(unweighted, 1.0, confidence)
    if temperature != 1:
        scores = scores / temperature
    if class_balanced:
        if confidence is not None:
            scores = confidence.log() + (scores if weighting == "mixed" else 0)
        scores = scores * ~unweighted  # equal scores have equal weights
        weights = torch.zeros_like(scores)
        for number in range(voxels.logits.shape[1]):
            others = classes != number
            weights += _mean_one(scores, others if left_out is None else others | left_out, groups.means)
    elif confidence is None or weighting == "mixed":
        weights = _mean_one(scores * ~unweighted, left_out, groups.means)
        if confidence is not None:
            weights *= confidence
    else:
        weights = confidence if ignored is None else confidence.masked_fill(ignored, 0)
    if scope == "batch":
        weights = torch.where(one_class if ignored is None else one_class & ~ignored, 1.0, weights)
    return groups.join(weights)


class _Groups:
    """Splits images (B, V) into blocks, and names the axes of what is reduced together.

    ``units``: the axes of an image or block, which may be of one class; ``means``: those over which W has mean 1.
    """

    def __init__(self, shape: torch.Size, scope: str, block_size: int | Sequence[int]) -> None:
        self.units: tuple[int, ...] = (1,)
        self.means: tuple[int, ...] = (0, 1) if scope == "batch" else (1,)
        self.space, self.sides = list(shape[2:]), []
        if scope != "block":
            return
        sides = [block_size] * len(self.space) if isinstance(block_size, int) else list(block_size)
        if len(sides) != len(self.space):
            raise ValueError(
                f"block_size must be one size or one for each of {len(self.space)} axes, got {block_size}."
            )
        self.sides = [min(side, size) for side, size in zip(sides, self.space, strict=True)]
        self.missing = [-size % side for side, size in zip(self.sides, self.space, strict=True)]
        self.units = self.means = tuple(range(2, 2 * len(sides) + 1, 2))

    def split(self, values: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """Images (B, V), or their blocks (B, number, side, number, side, ...), shorter ones filled up."""
        if not self.sides:
            return values
        values = values.unflatten(1, self.space)
        if any(self.missing):
            values = F.pad(values, [end for missing in reversed(self.missing) for end in (0, missing)], value=fill)
        for axis in reversed(range(len(self.sides))):
            values = values.unflatten(axis + 1, (-1, self.sides[axis]))
        return values

    def join(self, values: torch.Tensor) -> torch.Tensor:
        """Images (B, V) of what ``split`` made."""
        if not self.sides:
            return values
        for axis in range(len(self.sides)):
            values = values.flatten(axis + 1, axis + 2)
        return values[(slice(None), *map(slice, self.space))].flatten(1)

    def ignored(self, voxels: Voxels) -> torch.Tensor | None:
        """What is ignored and what blocks were filled up with, in blocks; ``None`` where there is neither."""
        ignored = voxels.ignored
        if ignored is None and self.sides and any(self.missing):
            ignored = torch.zeros_like(voxels.classes, dtype=torch.bool)
        return None if ignored is None else self.split(ignored, True)


def _mean_one(scores: torch.Tensor, left_out: torch.Tensor | None, axes: tuple[int, ...]) -> torch.Tensor:
    """softmax(scores) / mean(softmax(scores)) over the axes; 0 and not counted where left out.

    The largest score is subtracted first: exp(-L) itself leaves float32 where a network is sure and wrong everywhere.
    """
    if left_out is not None:  # as bytes, several times faster than masked_fill
        scores = scores.add(left_out.view(torch.uint8), alpha=-torch.finfo(scores.dtype).max / 4)
    top = scores.amax(axes, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    # one of them is 1, unless all scores are -inf; exp is several times slower, most of all where it is nearly 0
    shares = (scores - top).mul_(1 / math.log(2)).exp2_()
    number: torch.Tensor | int = math.prod(scores.shape[axis] for axis in axes)
    if left_out is not None:
        number = number - left_out.sum(axes, keepdim=True)
    return shares.mul_(number / shares.sum(axes, keepdim=True).clamp(min=1))


def _one_class(classes: torch.Tensor, ignored: torch.Tensor | None, units: tuple[int, ...]) -> torch.Tensor:
    """Whether the voxels of a unit that are not ignored, which have class 0, are of one class at most."""
    most = classes.amax(units, keepdim=True)
    if ignored is not None:
        classes = classes | ignored.to(classes.dtype) * torch.iinfo(classes.dtype).max
    return classes.amin(units, keepdim=True) >= most
