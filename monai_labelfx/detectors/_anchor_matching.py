# SPDX-License-Identifier: Apache-2.0
"""Anchors of a detector, and the settings that say which of them answer for which box."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from monai_labelfx.ops.anchor_grid import anchor_grid
from monai_labelfx.ops.anchor_sampling import balanced_sample, hard_negative_sample
from monai_labelfx.ops.box_matching import atss_matches, iou_matches

Matcher = Callable[[torch.Tensor, torch.Tensor, list[torch.Tensor]], torch.Tensor]
Sampler = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class AnchorMatching:
    """What detectors with anchors add to ``Detector``, before it in the order of bases.

    ``network`` must have ``strides`` and ``level_shapes``.
    """

    network: Any
    spatial_dims: int
    box_weights: Sequence[float]

    def lay_anchors(self, anchors: Sequence[torch.Tensor], offset: float) -> None:
        """Set the shapes of the anchors of each level, (K, spatial_dims) in voxels, and where in its cell one is."""
        self.anchor_shapes = [shapes.tolist() for shapes in anchors]
        self.anchor_offset = offset
        self.matcher: Matcher = self._no_matcher
        self.sampler: Sampler | None = None
        self.box_weights = (1.0, 1.0)

    def places(self, image_size: tuple[int, ...], device: torch.device) -> list[torch.Tensor]:
        """For each level its anchors (A, 2 \\* spatial_dims), float32."""
        levels = zip(self.anchor_shapes, self.network.level_shapes(image_size), self.network.strides, strict=True)
        return [
            anchor_grid(shapes, shape, stride, offset=self.anchor_offset, device=device)
            for shapes, shape, stride in levels
        ]

    # --- settings, as MONAI names them -----------------------------------------------------------------------------
    def set_box_coder_weights(self, weights: Sequence[float]) -> None:
        """Weights of the box numbers of anchors: centre and size, or each of the 2 \\* spatial_dims."""
        self.box_weights = checked_box_weights("weights", weights, self.spatial_dims)

    def set_regular_matcher(
        self, fg_iou_thresh: float, bg_iou_thresh: float, allow_low_quality_matches: bool = True
    ) -> None:
        """Match anchors to boxes by IoU."""
        if not 0 <= bg_iou_thresh <= fg_iou_thresh <= 1:
            raise ValueError(
                f"thresholds must be 0 <= bg_iou_thresh <= fg_iou_thresh <= 1, got {bg_iou_thresh} and {fg_iou_thresh}"
            )
        self.matcher = lambda boxes, valid, places: iou_matches(
            boxes,
            valid,
            torch.cat(places),
            positive=fg_iou_thresh,
            negative=bg_iou_thresh,
            best_per_box=allow_low_quality_matches,
        )

    def set_atss_matcher(self, num_candidates: int = 4, center_in_gt: bool = False) -> None:
        """Match anchors to boxes by ATSS (Zhang et al. 2020)."""
        self.matcher = lambda boxes, valid, places: atss_matches(
            boxes,
            valid,
            torch.cat(places),
            [len(level) for level in places],
            num_candidates=num_candidates,
            anchors_per_place=[len(shapes) for shapes in self.anchor_shapes],
            center_in_box=center_in_gt,
        )

    def set_balanced_sampler(self, batch_size_per_image: int, positive_fraction: float) -> None:
        """Learn the class of a random choice of anchors."""
        self.sampler = lambda logits, matches: balanced_sample(matches, batch_size_per_image, positive_fraction)

    def set_hard_negative_sampler(
        self, batch_size_per_image: int, positive_fraction: float, min_neg: int = 1, pool_size: float = 10
    ) -> None:
        """Learn the class of positive anchors and the negative ones of highest score."""
        self.sampler = lambda logits, matches: hard_negative_sample(
            logits.amax(dim=1),
            matches,
            batch_size_per_image,
            positive_fraction,
            min_negatives=min_neg,
            pool_size=pool_size,
        )

    def _no_matcher(self, boxes: torch.Tensor, valid: torch.Tensor, places: list[torch.Tensor]) -> torch.Tensor:
        raise ValueError(f"{type(self).__name__} has no matcher: call set_regular_matcher or set_atss_matcher")


def checked_box_weights(name: str, weights: Sequence[float], spatial_dims: int) -> tuple[float, ...]:
    """Weights of box numbers, of centre and size or one for each.

    Raises:
        ValueError: for another number of weights, or one that is not above 0 and finite.
    """
    if len(weights) not in (2, 2 * spatial_dims):
        raise ValueError(f"{name} must have 2 or {2 * spatial_dims} numbers, got {len(weights)}")
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"{name} must be finite and above 0, got {tuple(weights)}")
    return tuple(float(weight) for weight in weights)
