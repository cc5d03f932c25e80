# SPDX-License-Identifier: Apache-2.0
"""The contract that every detector keeps: images and targets in, losses or detections out."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from monai_labelfx.detectors._targets import Targets, batch_images, check_targets, image_names
from monai_labelfx.detectors.window_inferer import WindowDetectionInferer

Detections = dict[str, torch.Tensor]


class Detector(nn.Module, ABC):
    """Base of all detectors: checks what comes in, and calls what a paper defines.

    ``detector(images, targets)`` returns a dictionary of scalar losses in training mode, and ``detector(images)`` in
    evaluation mode for each image a dictionary of ``boxes`` (n, 2 \\* spatial_dims) in voxels of that image, ``labels``
    (n,), ``scores`` (n,) in falling order, and ``masks`` from detectors that find them. Losses stay attached to the
    network for every input, images without any object included.

    Every parameter is in ``detector.network``, which turns images (B, C, \\*spatial) into one tensor
    (B, channels, places), so that it can be verified, exported and stored like any network of a bundle; one with
    several kinds of output packs them into (B, 1, numbers). Heads that look at proposals are parts of the network that
    the detector calls later. Assignment, losses, decoding and suppression are here, in float32 whatever autocast does.

    The call and the ``set_`` methods are those of ``monai.apps.detection.networks.retinanet_detector``, so that code
    written for it needs only another constructor.

    A new detector defines :py:meth:`compute_losses` and :py:meth:`detect`.
    """

    cls_key = "classification"
    box_reg_key = "box_regression"
    gate_key = "image_gate"
    needs_masks = False
    packed = False  # whether the network packs several tensors into one row of numbers for each image
    network: Any

    def __init__(
        self,
        network: nn.Module,
        *,
        spatial_dims: int,
        in_channels: int,
        num_classes: int,
        class_agnostic: bool,
        image_gate: float | None,
        score_threshold: float,
        nms_threshold: float,
        topk_per_level: int,
        detections_per_image: int,
    ) -> None:
        super().__init__()
        trained_classes(num_classes, class_agnostic)
        self.network = network
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.class_agnostic = class_agnostic
        self.image_gate = image_gate
        self.target_box_key, self.target_label_key, self.pred_score_key = "boxes", "labels", "scores"
        self.windows: dict[str, Any] | None = None
        self.set_box_selector_parameters(score_threshold, topk_per_level, nms_threshold, detections_per_image)

    @property
    def classes(self) -> int:
        """Classes that the network tells apart: 1 in class-agnostic mode."""
        return trained_classes(self.num_classes, self.class_agnostic)

    # --- the call --------------------------------------------------------------------------------------------------
    def forward(
        self,
        input_images: torch.Tensor | Sequence[torch.Tensor],
        targets: Sequence[Mapping[str, Any]] | None = None,
        use_inferer: bool = False,
    ) -> dict[str, torch.Tensor] | list[Detections]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            input_images: (B, C, \\*spatial), or a list of (C, \\*spatial) of any sizes, which are padded with zeros at
                their high ends.
            targets: one mapping for each image with ``boxes`` (N, 2 \\* spatial_dims) in voxels, half open, ``labels``
                (N,) in 0 to num_classes - 1 and, for detectors of masks, ``masks`` (N, \\*spatial); N may be 0. Needed
                in training, not looked at in evaluation. Never edited. Boxes are cut at the image; those that cover
                nothing of it are dropped with one warning for each image.
            use_inferer: evaluate in windows, as :py:meth:`set_sliding_window_inferer` has set.

        Raises:
            ValueError: for images or targets of a wrong shape, labels beyond the classes, or training without targets.
        """
        if use_inferer and not self.training:
            if self.windows is None:
                raise ValueError("use_inferer needs set_sliding_window_inferer(roi_size=...) first")
            inferer = WindowDetectionInferer(
                **self.windows, iou_threshold=self.nms_threshold, detections_per_image=self.detections_per_image
            )
            return inferer(input_images, self)
        images, sizes = batch_images(input_images, self.spatial_dims, self.in_channels)
        if not self.training:
            return [self._named(found) for found in self._evaluated(images, sizes)]
        if targets is None:
            raise ValueError("a detector in training mode needs targets; call detector.eval() to detect")
        checked = check_targets(
            targets,
            sizes,
            image_names(input_images),
            num_classes=self.num_classes,
            class_agnostic=self.class_agnostic,
            box_key=self.target_box_key,
            label_key=self.target_label_key,
            needs_masks=self.needs_masks,
            device=images.device,
        )
        raw = self.network(images)
        with torch.autocast(images.device.type, enabled=False):
            raw, gate = self._split(raw)
            losses = self.compute_losses(raw, tuple(images.shape[2:]), checked)
            if gate is not None:
                losses[self.gate_key] = binary_cross_entropy_with_logits(gate, checked.valid.any(dim=1).to(gate.dtype))
        return losses

    @abstractmethod
    def compute_losses(
        self, raw: torch.Tensor, image_size: tuple[int, ...], targets: Targets
    ) -> dict[str, torch.Tensor]:
        """The losses of a batch, from what the network returned."""

    @abstractmethod
    def detect(
        self, raw: torch.Tensor, image_size: tuple[int, ...], sizes: Sequence[tuple[int, ...]]
    ) -> list[Detections]:
        """Boxes, labels and scores of each image, from what the network returned for a batch of ``image_size``."""

    def _evaluated(self, images: torch.Tensor, sizes: Sequence[tuple[int, ...]]) -> list[Detections]:
        raw = self.network(images)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            raw, gate = self._split(raw.detach())
            found = self.detect(raw, tuple(images.shape[2:]), sizes)
            if gate is None or self.image_gate is None:
                return found
            ends = [None if open_ else 0 for open_ in (gate.sigmoid() >= self.image_gate).tolist()]
            return [{k: v[:end] for k, v in one.items()} for one, end in zip(found, ends, strict=True)]

    def _split(self, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        raw = raw if raw.dtype == torch.float64 else raw.float()
        if self.image_gate is None:
            return raw, None
        return (raw[..., :-1], raw[:, 0, -1]) if self.packed else (raw[:, :-1], raw[:, -1, 0])

    def _named(self, found: Detections) -> Detections:
        keys = {"boxes": self.target_box_key, "labels": self.target_label_key, "scores": self.pred_score_key}
        return {keys.get(key, key): value for key, value in found.items()}

    # --- settings, as MONAI names them -----------------------------------------------------------------------------
    def set_target_keys(self, box_key: str, label_key: str) -> None:
        """Names of boxes and labels in targets and detections; scores are then called ``<label_key>_scores``."""
        self.target_box_key, self.target_label_key = box_key, label_key
        self.pred_score_key = f"{label_key}_scores"

    def set_box_selector_parameters(
        self,
        score_thresh: float = 0.05,
        topk_candidates_per_level: int = 1000,
        nms_thresh: float = 0.5,
        detections_per_img: int = 300,
        apply_sigmoid: bool = True,
    ) -> None:
        """How detections are chosen.

        Args:
            score_thresh: lowest score.
            topk_candidates_per_level: boxes of each level that enter the suppression, those of highest score.
            nms_thresh: of two boxes of one class with a higher IoU, that of the lower score goes.
            detections_per_img: boxes kept in an image, of all classes together.
            apply_sigmoid: must be true: networks here return logits.

        Raises:
            ValueError: for a number out of its range.
        """
        if not apply_sigmoid:
            raise ValueError("apply_sigmoid must be True: the networks of these detectors return logits")
        for name, value in (("score_thresh", score_thresh), ("nms_thresh", nms_thresh)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be 0 to 1, got {value}")
        for name, count in (
            ("topk_candidates_per_level", topk_candidates_per_level),
            ("detections_per_img", detections_per_img),
        ):
            if count < 1:
                raise ValueError(f"{name} must be 1 or more, got {count}")
        self.score_threshold = score_thresh
        self.nms_threshold = nms_thresh
        self.topk_per_level = topk_candidates_per_level
        self.detections_per_image = detections_per_img

    def set_sliding_window_inferer(
        self, roi_size: Sequence[int] | int, sw_batch_size: int = 1, overlap: float = 0.5, **map_options: Any
    ) -> None:
        """Windows for ``use_inferer=True``: detections of windows are merged, where MONAI averages maps of logits.

        Args:
            roi_size: size of a window for each axis.
            sw_batch_size: windows that are looked at together.
            overlap: of neighbouring windows, as a share of their size.
            map_options: what MONAI takes for averaging maps (``mode``, ``sigma_scale``, ``device`` ...): accepted, so
                that its callers run, and without effect.
        """
        self.windows = {"roi_size": roi_size, "sw_batch_size": sw_batch_size, "overlap": overlap}
        WindowDetectionInferer(**self.windows)  # refuses what is out of range now, not at the first image

    def set_box_coder_weights(self, weights: Sequence[float]) -> None:
        """Weights of the 2 \\* spatial_dims box numbers: centre, then size."""
        self._unused("set_box_coder_weights", "codes boxes without weights")

    def set_cls_loss(self, cls_loss: nn.Module) -> None:
        """Another classification loss: ``cls_loss(logits (M, classes), targets (M, classes))`` of the chosen places."""
        self._unused("set_cls_loss", "has a classification loss of its own")

    def set_box_regression_loss(self, box_loss: nn.Module, encode_gt: bool, decode_pred: bool) -> None:
        """Another box loss, on coded boxes (``encode_gt``) or on boxes in voxels (``decode_pred``)."""
        self._unused("set_box_regression_loss", "has a box loss of its own")

    def set_regular_matcher(
        self, fg_iou_thresh: float, bg_iou_thresh: float, allow_low_quality_matches: bool = True
    ) -> None:
        """Match anchors to boxes by IoU."""
        self._unused("set_regular_matcher", "does not match anchors by IoU")

    def set_atss_matcher(self, num_candidates: int = 4, center_in_gt: bool = False) -> None:
        """Match anchors to boxes by ATSS (Zhang et al. 2020)."""
        self._unused("set_atss_matcher", "does not match anchors")

    def set_balanced_sampler(self, batch_size_per_image: int, positive_fraction: float) -> None:
        """Learn the class from a random choice of anchors."""
        self._unused("set_balanced_sampler", "learns from all places")

    def set_hard_negative_sampler(
        self, batch_size_per_image: int, positive_fraction: float, min_neg: int = 1, pool_size: float = 10
    ) -> None:
        """Learn the class from positive anchors and the negative ones of highest score."""
        self._unused("set_hard_negative_sampler", "learns from all places")

    def _unused(self, method: str, reason: str) -> None:
        warnings.warn(f"{method} changes nothing: {type(self).__name__} {reason}", stacklevel=3)


def trained_classes(num_classes: int, class_agnostic: bool) -> int:
    """How many classes a network tells apart; a constructor asks first, before it builds anything.

    Raises:
        ValueError: for less than one class.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be 1 or more (without the background), got {num_classes}")
    return 1 if class_agnostic else num_classes


def normaliser(count: torch.Tensor, least: float = 1.0) -> torch.Tensor:
    """What to divide a loss by: the number (or weight) of positives, as a mean over the ranks, at least ``least``."""
    total = count.detach().float()
    if idist.get_world_size() > 1:
        total = torch.as_tensor(idist.all_reduce(total)) / idist.get_world_size()
    return total.clamp(min=least)
