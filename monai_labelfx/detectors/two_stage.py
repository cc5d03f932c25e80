# SPDX-License-Identifier: Apache-2.0
"""Detectors of two stages: anchors propose boxes, and a head looks at each proposal again."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, pad, smooth_l1_loss

from monai_labelfx.detectors._anchor_matching import AnchorMatching
from monai_labelfx.detectors._packed import unpack
from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors.base import Detections, Detector, normaliser
from monai_labelfx.ops.anchor_sampling import balanced_sample
from monai_labelfx.ops.box_affine import clip_boxes
from monai_labelfx.ops.box_coding import boxes_to_deltas, deltas_to_boxes
from monai_labelfx.ops.box_matching import IGNORED, iou_matches
from monai_labelfx.ops.nms import greedy_nms

_SLIVER = 1e-3  # voxels: a proposal that is thinner is none


class TwoStageDetector(AnchorMatching, Detector):
    """Base of detectors with a region proposal network (Ren et al. 2015).

    The first stage tells objects from background at every anchor of a pyramid, and moves the anchors; the best boxes
    that are left after suppression are proposals. A paper defines what becomes of these: :py:meth:`roi_losses` and
    :py:meth:`detect_in`.

    ``set_regular_matcher``, ``set_atss_matcher``, ``set_balanced_sampler``, ``set_hard_negative_sampler`` and
    ``set_box_coder_weights`` speak of the anchors, so of the first stage, and ``topk_candidates_per_level`` counts the
    anchors of a level that enter its suppression in evaluation.

    Args:
        network: with ``strides``, ``level_shapes``, ``part_shapes``, as ``TwoStageNetwork``.
        anchors: for each level, the shapes of its anchors, (K, spatial_dims) in voxels.
        anchor_offset: where in its cell, in strides, an anchor has its centre.
        rpn_iou: of a positive anchor at least, and of a negative one at most.
        rpn_samples: anchors of an image that the first stage learns from.
        rpn_positive: share of positive ones among them, at most.
        rpn_nms: IoU above which the worse of two proposals of one level goes.
        train_candidates: anchors of each level that enter the suppression in training.
        proposals: of an image that are left after it, of all levels: in training and in evaluation.
        roi_iou: of a proposal with an object at least, to stand for it.
        roi_samples: proposals of an image that the second stage learns from.
        roi_positive: share of those with an object among them, at most.
        smooth_l1: where the box losses turn from a parabola into a line; 0 for L1.
        settings: of Detector.

    Raises:
        ValueError: for a number out of its range.
    """

    packed = True

    def __init__(
        self,
        network: nn.Module,
        *,
        anchors: Sequence[torch.Tensor],
        anchor_offset: float,
        rpn_iou: tuple[float, float],
        rpn_samples: int,
        rpn_positive: float,
        rpn_nms: float,
        train_candidates: int,
        proposals: Sequence[int],
        roi_iou: float,
        roi_samples: int,
        roi_positive: float,
        smooth_l1: float,
        **settings: Any,
    ) -> None:
        super().__init__(network, **settings)
        if not isinstance(proposals, Sequence) or len(proposals) != 2:
            raise ValueError(f"proposals must be two numbers, in training and in evaluation, got {proposals}")
        if not 0 <= rpn_iou[1] <= rpn_iou[0] <= 1:
            raise ValueError(
                "rpn_foreground_iou and rpn_background_iou must be 0 to 1, the first not below the second, "
                f"got {rpn_iou[0]} and {rpn_iou[1]}"
            )
        for name, iou in (("rpn_nms", rpn_nms), ("roi_foreground_iou", roi_iou)):
            if not 0 <= iou <= 1:
                raise ValueError(f"{name} must be 0 to 1, got {iou}")
        for name, share in (("rpn_positive", rpn_positive), ("roi_positive", roi_positive)):
            if not 0 < share <= 1:
                raise ValueError(f"{name} must be above 0 and 1 at most, got {share}")
        counts = {"rpn_samples": rpn_samples, "roi_samples": roi_samples, "train_candidates": train_candidates}
        check_least(1, **counts, **{f"proposals[{place}]": count for place, count in enumerate(proposals)})
        if not 0 <= smooth_l1 < math.inf:
            raise ValueError(f"smooth_l1 must be 0 or more, got {smooth_l1}")
        self.lay_anchors(anchors, anchor_offset)
        self.set_regular_matcher(*rpn_iou)
        self.set_balanced_sampler(rpn_samples, rpn_positive)
        self.rpn_nms = rpn_nms
        self.train_candidates = train_candidates
        self.proposals = tuple(proposals)
        self.roi_iou = roi_iou
        self.roi_samples = roi_samples
        self.roi_positive = roi_positive
        self.smooth_l1 = smooth_l1

    # --- what a paper defines --------------------------------------------------------------------------------------
    @abstractmethod
    def roi_losses(
        self,
        maps: list[torch.Tensor],
        rois: torch.Tensor,
        image: torch.Tensor,
        matches: torch.Tensor,
        targets: Targets,
    ) -> dict[str, torch.Tensor]:
        """Losses of the second stage.

        Args:
            maps: (B, C, \\*spatial) of each level that it pools from.
            rois: (R, 2 \\* D) proposals to learn from, true boxes among them.
            image: (R,) of each.
            matches: (R,) the row of its object among the boxes of its image; -1 for background.
            targets: of the batch.
        """

    @abstractmethod
    def detect_in(
        self, maps: list[torch.Tensor], proposals: list[torch.Tensor], sizes: Sequence[tuple[int, ...]]
    ) -> list[Detections]:
        """Detections of each image from its proposals (P, 2 \\* D)."""

    # --- what they share -------------------------------------------------------------------------------------------
    def compute_losses(
        self, raw: torch.Tensor, image_size: tuple[int, ...], targets: Targets
    ) -> dict[str, torch.Tensor]:
        logits, deltas, maps = self._parts(raw, image_size)
        places = self.places(image_size, raw.device)
        losses = self._proposal_losses(logits, deltas, places, targets)
        with torch.no_grad():
            sizes = [image_size] * len(raw)
            found = self._propose(logits, deltas, places, sizes, self.train_candidates, self.proposals[0])
            rois, image, matches = self._sampled(found, targets)
        return losses | self.roi_losses(maps, rois, image, matches, targets)

    def detect(
        self, raw: torch.Tensor, image_size: tuple[int, ...], sizes: Sequence[tuple[int, ...]]
    ) -> list[Detections]:
        logits, deltas, maps = self._parts(raw, image_size)
        places = self.places(image_size, raw.device)
        proposals = self._propose(logits, deltas, places, sizes, self.topk_per_level, self.proposals[1])
        with torch.autocast(raw.device.type, enabled=False):
            return self.detect_in(maps, proposals, sizes)

    def box_loss(self, deltas: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Sum of the loss of box numbers."""
        return smooth_l1_loss(deltas, wanted, beta=self.smooth_l1, reduction="sum")

    def _parts(
        self, raw: torch.Tensor, image_size: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Objectness (B, A) and box numbers (B, A, 2 D) of all anchors, and the maps of the second stage."""
        parts = unpack(raw, self.network.part_shapes(image_size))
        anchors, numbers = self.network.anchors, 2 * self.spatial_dims
        found = [part.flatten(2) for name, part in parts.items() if name.startswith("rpn")]
        logits = torch.cat([part[:, :anchors].transpose(1, 2).flatten(1) for part in found], dim=1)
        deltas = [
            part[:, anchors:].unflatten(1, (anchors, numbers)).permute(0, 3, 1, 2).flatten(1, 2) for part in found
        ]
        return logits, torch.cat(deltas, dim=1), [part for name, part in parts.items() if name.startswith("map")]

    def _proposal_losses(
        self, logits: torch.Tensor, deltas: torch.Tensor, places: list[torch.Tensor], targets: Targets
    ) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            matches = self.matcher(targets.boxes, targets.valid, places)
            positive, negative = self.sampler(logits.detach()[:, None], matches)  # type: ignore[misc]
            chosen = positive | negative
        number = normaliser(chosen.sum())
        objectness = binary_cross_entropy_with_logits(
            logits[chosen], positive[chosen].to(logits.dtype), reduction="sum"
        )
        image, place = positive.nonzero(as_tuple=True)
        boxes = targets.boxes[image, matches[image, place]]
        wanted = boxes_to_deltas(boxes, torch.cat(places)[place], self.box_weights)
        return {
            "rpn_classification": objectness / number,
            "rpn_box_regression": self.box_loss(deltas[image, place], wanted) / number,
        }

    @torch.no_grad()
    def _propose(
        self,
        logits: torch.Tensor,
        deltas: torch.Tensor,
        places: list[torch.Tensor],
        sizes: Sequence[tuple[int, ...]],
        candidates: int,
        most: int,
    ) -> list[torch.Tensor]:
        """The proposals (P, 2 D) of each image, the best first."""
        counts = [len(level) for level in places]
        best = [part.topk(min(candidates, part.shape[1]), dim=1) for part in logits.split(counts, dim=1)]
        starts = accumulate(counts[:-1], initial=0)
        index = torch.cat([found.indices + start for found, start in zip(best, starts, strict=True)], dim=1)
        level = torch.cat([torch.full_like(found.indices[0], number) for number, found in enumerate(best)])
        scores = torch.cat([found.values for found in best], dim=1)
        chosen = deltas.gather(1, index[..., None].expand(-1, -1, deltas.shape[2]))
        boxes = deltas_to_boxes(chosen, torch.cat(places)[index], self.box_weights)
        return [self._best(b, s, level, size, most) for b, s, size in zip(boxes, scores, sizes, strict=True)]

    def _best(
        self, boxes: torch.Tensor, scores: torch.Tensor, level: torch.Tensor, size: tuple[int, ...], most: int
    ) -> torch.Tensor:
        boxes = clip_boxes(boxes, size)
        axes = self.spatial_dims
        solid = (boxes[:, axes:] - boxes[:, :axes] >= _SLIVER).all(dim=1)
        boxes, scores, level = boxes[solid], scores[solid], level[solid]
        return boxes[greedy_nms(boxes, scores, self.rpn_nms, classes=level, max_kept=most)]

    def _sampled(
        self, proposals: list[torch.Tensor], targets: Targets
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Proposals and true boxes to learn from (R, 2 D), the image of each, and the row of its object or -1."""
        most = max(len(found) for found in proposals)
        found = torch.stack([pad(one, (0, 0, 0, most - len(one))) for one in proposals])
        real = torch.stack([torch.arange(most, device=one.device) < len(one) for one in proposals])
        found = torch.cat([found, targets.boxes.to(found.dtype)], dim=1)
        real = torch.cat([real, targets.valid], dim=1)
        matches = iou_matches(
            targets.boxes, targets.valid, found, positive=self.roi_iou, negative=self.roi_iou, best_per_box=False
        )
        positive, negative = balanced_sample(torch.where(real, matches, IGNORED), self.roi_samples, self.roi_positive)
        image, row = (positive | negative).nonzero(as_tuple=True)
        return found[image, row], image, matches[image, row]


def check_least(least: int, **counts: int) -> None:
    """Raise ValueError for what is no whole number, or below ``least``."""
    for name, count in counts.items():
        if count != int(count) or count < least:
            raise ValueError(f"{name} must be a whole number, {least} or more, got {count}")
