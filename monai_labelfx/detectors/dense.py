# SPDX-License-Identifier: Apache-2.0
"""Detectors that judge every place of a pyramid at once: select, suppress; and how anchors learn from boxes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from monai_labelfx.detectors._anchor_matching import AnchorMatching
from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors.base import Detections, Detector
from monai_labelfx.ops.box_affine import clip_boxes
from monai_labelfx.ops.box_coding import boxes_to_deltas, deltas_to_boxes
from monai_labelfx.ops.nms import greedy_nms


class DenseDetector(Detector):
    """Base of detectors whose network scores a box at every place of every level.

    A paper defines :py:meth:`places` (what its levels hold: anchors or points), :py:meth:`assign` (which places answer
    for which object), :py:meth:`place_losses`, :py:meth:`scores` and :py:meth:`decode`.
    """

    # --- what a paper defines --------------------------------------------------------------------------------------
    @abstractmethod
    def places(self, image_size: tuple[int, ...], device: torch.device) -> list[torch.Tensor]:
        """For each level its anchors (A, 2 \\* spatial_dims) or points (A, spatial_dims), float32."""

    @abstractmethod
    def assign(self, places: list[torch.Tensor], targets: Targets) -> torch.Tensor:
        """(B, A) int64: the object of each place; -1 negative, -2 ignored."""

    @abstractmethod
    def place_losses(
        self, raw: torch.Tensor, places: list[torch.Tensor], matches: torch.Tensor, targets: Targets
    ) -> dict[str, torch.Tensor]:
        """Losses from raw (B, channels, A) and matches (B, A)."""

    @abstractmethod
    def scores(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw (..., channels, A) -> scores (..., classes, A) between 0 and 1."""

    @abstractmethod
    def decode(self, raw: torch.Tensor, places: torch.Tensor, level: int) -> torch.Tensor:
        """Raw (channels, A) of places of one level -> boxes (A, 2 \\* spatial_dims) in voxels."""

    # --- what they share -------------------------------------------------------------------------------------------
    def compute_losses(
        self, raw: torch.Tensor, image_size: tuple[int, ...], targets: Targets
    ) -> dict[str, torch.Tensor]:
        places = self.places(image_size, raw.device)
        with torch.no_grad():
            matches = self.assign(places, targets)
        return self.place_losses(raw, places, matches, targets)

    def detect(
        self, raw: torch.Tensor, image_size: tuple[int, ...], sizes: Sequence[tuple[int, ...]]
    ) -> list[Detections]:
        return [found for found, _ in self.detect_places(raw, image_size, sizes)]

    def detect_places(
        self, raw: torch.Tensor, image_size: tuple[int, ...], sizes: Sequence[tuple[int, ...]]
    ) -> list[tuple[Detections, torch.Tensor]]:
        """Detections of each image, and of each detection the number of its place among those of all levels (n,)."""
        places = self.places(image_size, raw.device)
        counts = [len(level) for level in places]
        scores = self.scores(raw)
        return [
            self._detect_one(r.split(counts, 1), s.split(counts, 1), places, size)
            for r, s, size in zip(raw, scores, sizes, strict=True)
        ]

    def _detect_one(
        self,
        raw: Sequence[torch.Tensor],
        scores: Sequence[torch.Tensor],
        places: Sequence[torch.Tensor],
        size: tuple[int, ...],
    ) -> tuple[Detections, torch.Tensor]:
        found, first = [], 0
        for level, one in enumerate(zip(raw, scores, places, strict=True)):
            *best, index = self._best_of_level(level, *one)
            found.append((*best, first + index))
            first += len(places[level])
        boxes, chosen, labels, numbers = (torch.cat(parts) for parts in zip(*found, strict=True))
        boxes = clip_boxes(boxes, size)
        axes = self.spatial_dims
        solid = (boxes[:, axes:] > boxes[:, :axes]).all(dim=1)
        boxes, chosen, labels, numbers = boxes[solid], chosen[solid], labels[solid], numbers[solid]
        kept = greedy_nms(boxes, chosen, self.nms_threshold, classes=labels, max_kept=self.detections_per_image)
        return {"boxes": boxes[kept], "labels": labels[kept], "scores": chosen[kept]}, numbers[kept]

    def _best_of_level(
        self, level: int, raw: torch.Tensor, scores: torch.Tensor, places: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Boxes, scores, labels and places of pairs (place, class) above the threshold, at most ``topk_per_level``."""
        pairs = (scores > self.score_threshold).nonzero()
        labels, index = pairs.unbind(dim=1)
        chosen = scores[labels, index]
        if len(chosen) > self.topk_per_level:
            chosen, order = chosen.topk(self.topk_per_level)
            labels, index = labels[order], index[order]
        return self.decode(raw[:, index], places[index], level), chosen, labels, index

    def one_hot(self, matches: torch.Tensor, targets: Targets) -> torch.Tensor:
        """(B, classes, A) float32: 1 at the class of the object of a positive place."""
        labels = torch.where(matches >= 0, targets.labels.gather(1, matches.clamp(min=0)), -1)
        classes = torch.arange(self.classes, device=labels.device)[None, :, None]
        return (labels[:, None] == classes).float()


class AnchorDetector(AnchorMatching, DenseDetector):
    """Base of dense detectors with anchors that learn coded boxes; channels: class logits, then box numbers.

    Args:
        network: as of Detector, with ``strides`` and ``level_shapes``.
        anchors: for each level, the shapes of its anchors, (K, spatial_dims) in voxels.
        anchor_offset: where in its cell, in strides, an anchor has its centre.
        settings: of Detector.
    """

    def __init__(
        self, network: nn.Module, *, anchors: Sequence[torch.Tensor], anchor_offset: float, **settings: Any
    ) -> None:
        super().__init__(network, **settings)
        self.lay_anchors(anchors, anchor_offset)
        self.cls_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
        self.box_loss: tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], bool] | None = None

    def assign(self, places: list[torch.Tensor], targets: Targets) -> torch.Tensor:
        return self.matcher(targets.boxes, targets.valid, places)

    def decode(self, raw: torch.Tensor, places: torch.Tensor, level: int) -> torch.Tensor:
        return deltas_to_boxes(raw[-2 * self.spatial_dims :].T, places, self.box_weights)

    def place_box_loss(
        self, raw: torch.Tensor, places: list[torch.Tensor], matches: torch.Tensor, targets: Targets
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicted and wanted boxes of the positive places, coded or (``decode_pred``) in voxels, both (P, 2 D)."""
        image, place = (matches >= 0).nonzero(as_tuple=True)
        deltas = raw[image, -2 * self.spatial_dims :, place]
        anchors = torch.cat(places)[place]
        boxes = targets.boxes[image, matches[image, place]]
        if self.box_loss is not None and not self.box_loss[1]:
            return deltas_to_boxes(deltas, anchors, self.box_weights), boxes
        return deltas, boxes_to_deltas(boxes, anchors, self.box_weights)

    def sampled_class_loss(self, logits: torch.Tensor, wanted: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
        """Mean classification loss of the places that the sampler chose, or of all that are not ignored."""
        if self.sampler is None:
            chosen = matches != -2
        else:
            positive, negative = self.sampler(logits.detach(), matches)
            chosen = positive | negative
        loss = binary_cross_entropy_with_logits if self.cls_loss is None else self.cls_loss
        rows = chosen.nonzero(as_tuple=True)
        picked = logits.transpose(1, 2)[rows]
        # the mean of nothing is no number
        return loss(picked, wanted.transpose(1, 2)[rows]) if len(picked) else picked.sum()

    def custom_box_loss(self, predicted: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """The loss that :py:meth:`set_box_regression_loss` set; 0 without positive places."""
        if self.box_loss is None or not len(predicted):
            return predicted.sum()
        return self.box_loss[0](predicted, boxes)

    # --- settings, as MONAI names them -----------------------------------------------------------------------------
    def set_cls_loss(self, cls_loss: nn.Module) -> None:
        self.cls_loss = cls_loss

    def set_box_regression_loss(self, box_loss: nn.Module, encode_gt: bool, decode_pred: bool) -> None:
        if encode_gt == decode_pred:
            raise ValueError("one of encode_gt and decode_pred must be True, and the other False")
        self.box_loss = (box_loss, encode_gt)
