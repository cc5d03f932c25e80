# SPDX-License-Identifier: Apache-2.0
"""FCOS (Tian et al. 2019): every place inside a box tells how far its sides are, and how central it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.losses.focal_loss import sigmoid_focal_loss
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from monai_labelfx.detectors._anchors import iou_per_axis
from monai_labelfx.detectors._fcos_head import FCOSHead
from monai_labelfx.detectors._network import DenseNetwork, PyramidNeck, resnet_backbone
from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors.base import normaliser, trained_classes
from monai_labelfx.detectors.dense import DenseDetector
from monai_labelfx.ops.anchor_grid import grid_points
from monai_labelfx.ops.box_coding import boxes_to_distances, distances_to_boxes
from monai_labelfx.ops.box_overlap import box_volume, paired_box_overlap

_FARTHEST = 1e6  # voxels; three sides of it have a volume that float32 holds
_LEAST = 1e-6  # of an IoU under the logarithm, and of a sum that divides
_PAIRS = 2**18  # places times boxes that are compared at once
_CHOICES = {
    "box_loss": ("giou", "iou"),
    "centerness_on": ("regression", "classification"),
    "distances": ("relu", "exp"),
    "score": ("sqrt", "product"),
}


class FCOS(DenseDetector):
    """FCOS in 2-D and 3-D: no anchors, one place of a pyramid, one box.

    Levels P3 to P7 (strides 8 to 128). A place answers for a box that it lies in, when it is within ``center_sampling``
    strides of the box's centre, along each axis, and its level is the finest whose ``reach`` strides hold the farthest
    side, or the coarsest: farthest sides up to 64, 128, 256, 512 voxels and beyond. Of several boxes, the one of least
    volume wins. A place predicts the distances l_d and h_d to the two sides along each of the D axes, and its
    centreness

    .. math:: \\left(\\prod_d \\min(l_d, h_d) / \\max(l_d, h_d)\\right)^{1 / D}

    The class learns by the focal loss over all places, divided by the number of places with a box; the box by 1 - GIoU
    weighted by the true centreness, divided by its sum; the centreness by binary cross entropy over the places with a
    box. Defaults are the authors' improvements (Tian et al. 2020, table 4): ``plain_settings`` holds the
    options of the first paper, ``torchvision_settings`` those of torchvision, for ``FCOS(..., **settings)``.

    The network returns, in this order, the class logits, the logit of the centreness, and the 2 D raw distances.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the images.
        num_classes: without the background.
        backbone: ``"resnet50"`` (18, 34, 50, 101, 152), ``"resnext101_64x4d"``, keywords of ``ResNetBackbone``, or a
            module with ``out_channels`` and ``strides``. Default ResNet-50.
        norm: of a backbone given by name: ``"group"``, ``"batch"``, ``"frozen_batch"`` (with pretrained weights) or
            ``"instance"``. Default ``"group"``, since batches of detection are small.
        pyramid_channels: of the feature pyramid and the head. Default 256 (paper).
        first_level: finest level of the pyramid, 2 to 5, of stride 4 to 32. Default 3 (paper); 2 for small objects.
        extra_levels: coarser levels behind P5, made from it. Default 2, P6 and P7 (paper).
        head_depth: convolutions of each tower. Default 4 (paper).
        head_norm: ``"none"``, ``"group"`` (32 groups, or fewer of 8 channels or more), or the pair of ``"group"`` and
            its arguments. Default ``"group"`` (paper).
        point_offset: where in its cell a place is. Default 0.5, the middle (paper); torchvision has 0.
        center_sampling: radius in strides. Default 1.5; ``None`` for all places in the box (first paper).
        reach: farthest side, in strides of its level, that a place answers for. Default 8 (paper).
        box_loss: ``"giou"``, or ``"iou"``, -log(IoU) (first paper). Default ``"giou"``.
        weight_box_loss: by the centreness (paper), or all places alike, divided by their number (torchvision).
        centerness_on: the tower that finds the centreness: ``"regression"``, or ``"classification"`` (first paper).
        distances: from the raw numbers x of the network and the stride s along each axis: ``"relu"`` for max(x, 0) s,
            ``"exp"`` for exp(x) voxels (first paper). Default ``"relu"``.
        level_scales: multiply the raw distances of each level by a number that is learned. Default ``True`` (paper).
        score: of a box, from the probabilities of its class and its centreness: ``"sqrt"`` of their product, or the
            ``"product"`` (paper). Default ``"sqrt"``, which puts boxes in the same order, and is on the scale of a
            probability.
        alpha, gamma: of the focal loss. Defaults 0.25 and 2 (paper).
        prior: class score of every place at the start. Default 0.01 (paper).
        class_agnostic: learn one class, "object", whatever the labels. Default ``False``.
        image_gate: also learn whether an image holds any object, and drop all boxes of an image whose probability is
            below this number. Default ``None``, no gate.
        score_threshold, nms_threshold, topk_per_level, detections_per_image: defaults 0.05, 0.6 (in 3-D 0.475, the same
            overlap along each axis), 1000 (paper) and 300.

    Raises:
        ValueError: for options out of their range.

    Notes:
        A farthest side of exactly 64 voxels belongs to the finer level alone; the published codes have it on both or on
        none. Measured in strides along each axis, and as "beyond the reach of the finer level", the ranges stay without
        gaps where strides differ between axes; with equal strides they are the paper's.
        A box smaller than a stride may hold no place: it is not learned, as in the paper. Use a finer ``first_level``.
        With ``"relu"``, distances start at one stride: at 0, half of them would have no gradient.

    Example:
        >>> import torch
        >>> detector = FCOS(2, 1, 3, backbone={"depth": 18, "features": 8}, pyramid_channels=16)
        >>> images = torch.rand(2, 1, 64, 48)
        >>> none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
        >>> one = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 30.0]]), "labels": torch.tensor([2])}
        >>> sorted(detector(images, [one, none]))
        ['box_regression', 'centerness', 'classification']
        >>> sorted(detector.eval()(images)[0])
        ['boxes', 'labels', 'scores']
        >>> detector.network(images).shape  # 3 classes, the centreness and 4 distances of all places
        torch.Size([2, 8, 66])
    """

    centerness_key = "centerness"
    plain_settings: Mapping[str, Any] = {
        "center_sampling": None,
        "box_loss": "iou",
        "centerness_on": "classification",
        "distances": "exp",
        "score": "product",
        "nms_threshold": 0.5,
        "detections_per_image": 100,
    }
    torchvision_settings: Mapping[str, Any] = {
        "head_norm": ("group", {"num_groups": 32}),
        "point_offset": 0.0,
        "weight_box_loss": False,
        "level_scales": False,
        "score_threshold": 0.2,
        "detections_per_image": 100,
    }

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        num_classes: int,
        *,
        backbone: str | Mapping[str, Any] | nn.Module = "resnet50",
        norm: Any = "group",
        pyramid_channels: int = 256,
        first_level: int = 3,
        extra_levels: int = 2,
        head_depth: int = 4,
        head_norm: Any = "group",
        point_offset: float = 0.5,
        center_sampling: float | None = 1.5,
        reach: float = 8.0,
        box_loss: str = "giou",
        weight_box_loss: bool = True,
        centerness_on: str = "regression",
        distances: str = "relu",
        level_scales: bool = True,
        score: str = "sqrt",
        alpha: float = 0.25,
        gamma: float = 2.0,
        prior: float = 0.01,
        class_agnostic: bool = False,
        image_gate: float | None = None,
        score_threshold: float = 0.05,
        nms_threshold: float | None = None,
        topk_per_level: int = 1000,
        detections_per_image: int = 300,
    ) -> None:
        given = {"box_loss": box_loss, "centerness_on": centerness_on, "distances": distances, "score": score}
        for name, value in given.items():
            if value not in _CHOICES[name]:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, _CHOICES[name]))}, got {value!r}")
        for name, number in (("center_sampling", center_sampling), ("reach", reach)):
            if number is not None and not number > 0:
                raise ValueError(f"{name} must be a positive number of strides, got {number}")
        classes = trained_classes(num_classes, class_agnostic)
        trunk = resnet_backbone(backbone, spatial_dims, in_channels, norm)
        neck = PyramidNeck(trunk, spatial_dims, pyramid_channels, first_level, "convs_on_output", extra_levels)
        head = FCOSHead(
            spatial_dims,
            pyramid_channels,
            classes,
            len(neck.strides) if level_scales else None,
            depth=head_depth,
            norm=head_norm,
            prior=prior,
            centerness_on=centerness_on,
            first_distance=1.0 if distances == "relu" else 0.0,
        )
        network = DenseNetwork(
            trunk, neck, head, strides=neck.strides, gate_channels=None if image_gate is None else pyramid_channels
        )
        super().__init__(
            network,
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_classes=num_classes,
            class_agnostic=class_agnostic,
            image_gate=image_gate,
            score_threshold=score_threshold,
            nms_threshold=iou_per_axis(0.6, spatial_dims) if nms_threshold is None else nms_threshold,
            topk_per_level=topk_per_level,
            detections_per_image=detections_per_image,
        )
        self.point_offset = point_offset
        self.center_sampling = center_sampling
        self.reach = reach
        self.box_loss = box_loss
        self.weight_box_loss = weight_box_loss
        self.distances = distances
        self.score = score
        self.alpha = alpha
        self.gamma = gamma

    def places(self, image_size: tuple[int, ...], device: torch.device) -> list[torch.Tensor]:
        levels = zip(self.network.level_shapes(image_size), self.network.strides, strict=True)
        return [grid_points(shape, stride, offset=self.point_offset, device=device) for shape, stride in levels]

    def assign(self, places: list[torch.Tensor], targets: Targets) -> torch.Tensor:
        together = max(1, _PAIRS // targets.valid.numel())
        return torch.cat(
            [
                self._owners(level, points, targets)
                for level, every in enumerate(places)
                for points in every.split(together)
            ],
            dim=1,
        )

    def place_losses(
        self, raw: torch.Tensor, places: list[torch.Tensor], matches: torch.Tensor, targets: Targets
    ) -> dict[str, torch.Tensor]:
        positives = normaliser((matches >= 0).sum())
        terms = sigmoid_focal_loss(raw[:, : self.classes], self.one_hot(matches, targets), self.gamma, self.alpha)
        image, place = (matches >= 0).nonzero(as_tuple=True)
        points, strides = torch.cat(places)[place], self._strides(places)[place]
        boxes = targets.boxes[image, matches[image, place]]
        centerness = self.centerness(boxes, points)
        found = distances_to_boxes(self._distances(raw[image, -2 * self.spatial_dims :, place], strides), points)
        overlap = paired_box_overlap(found, boxes, kind=self.box_loss)
        regression = 1 - overlap if self.box_loss == "giou" else -overlap.clamp(min=_LEAST).log()
        if self.weight_box_loss:
            regression = (regression * centerness).sum() / normaliser(centerness.sum(), least=_LEAST)
        else:
            regression = regression.sum() / positives
        central = binary_cross_entropy_with_logits(raw[image, self.classes, place], centerness, reduction="sum")
        return {
            self.cls_key: terms.sum() / positives,
            self.box_reg_key: regression,
            self.centerness_key: central / positives,
        }

    def centerness(self, boxes: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """(P,): how central points (P, spatial_dims) are in boxes (P, 2 * spatial_dims) around them."""
        low, high = boxes_to_distances(boxes, points).chunk(2, dim=1)
        return (torch.minimum(low, high) / torch.maximum(low, high)).prod(dim=1) ** (1 / self.spatial_dims)

    def scores(self, raw: torch.Tensor) -> torch.Tensor:
        found = raw[..., : self.classes, :].sigmoid() * raw[..., self.classes, None, :].sigmoid()
        return found.sqrt() if self.score == "sqrt" else found

    def decode(self, raw: torch.Tensor, places: torch.Tensor, level: int) -> torch.Tensor:
        stride = places.new_tensor(self.network.strides[level])
        return distances_to_boxes(self._distances(raw[-2 * self.spatial_dims :].T, stride), places)

    def _owners(self, level: int, points: torch.Tensor, targets: Targets) -> torch.Tensor:
        """(B, P) int64: for points (P, spatial_dims) of a level the box that each answers for, or -1."""
        strides, axes = self.network.strides, self.spatial_dims
        mine = targets.valid[:, :, None]
        beyond = mine if level == 0 else torch.zeros_like(mine)
        for axis, (stride, finer) in enumerate(zip(strides[level], strides[max(level - 1, 0)], strict=True)):
            low = points[:, axis] - targets.boxes[:, :, axis, None]
            high = targets.boxes[:, :, axes + axis, None] - points[:, axis]
            mine = mine & (torch.minimum(low, high) > 0)
            if self.center_sampling is not None:
                mine &= (low - high).abs() < 2 * self.center_sampling * stride
            farthest = torch.maximum(low, high)
            if level + 1 < len(strides):
                mine &= farthest <= self.reach * stride
            beyond = beyond | (farthest > self.reach * finer)
        volumes = torch.where(mine & beyond, box_volume(targets.boxes)[:, :, None], math.inf)
        return torch.where(volumes.isfinite().any(dim=1), volumes.argmin(dim=1), -1)

    def _distances(self, raw: torch.Tensor, stride: torch.Tensor) -> torch.Tensor:
        """Raw (..., 2 * spatial_dims) and strides (..., spatial_dims) -> distances in voxels."""
        if self.distances == "exp":
            return raw.clamp(max=math.log(_FARTHEST)).exp()
        return (raw.clamp(min=0) * torch.cat([stride, stride], dim=-1)).clamp(max=_FARTHEST)

    def _strides(self, places: Sequence[torch.Tensor]) -> torch.Tensor:
        """(A, spatial_dims): the strides of the level of each place."""
        levels = zip(self.network.strides, places, strict=True)
        return torch.cat([points.new_tensor(stride).expand(len(points), -1) for stride, points in levels])
