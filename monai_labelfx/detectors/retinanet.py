# SPDX-License-Identifier: Apache-2.0
"""RetinaNet (Lin et al. 2017): anchors on a feature pyramid, and a loss that looks past the easy background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.losses.focal_loss import sigmoid_focal_loss
from torch import nn

from monai_labelfx.detectors._anchors import iou_per_axis, level_anchors
from monai_labelfx.detectors._network import DenseNetwork, PyramidNeck, extra_blocks, resnet_backbone
from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors._towers import RetinaNetHead
from monai_labelfx.detectors.base import normaliser, trained_classes
from monai_labelfx.detectors.dense import AnchorDetector


class RetinaNetFPN(AnchorDetector):
    """RetinaNet with a feature pyramid, in 2-D and 3-D.

    Levels P3 to P7 (strides 8 to 128). An anchor answers for a box from an IoU of ``foreground_iou``, and for the
    background below ``background_iou``; each box keeps its best anchors, however low their IoU. The class learns by the
    focal loss FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t) over all anchors that are not in between, the box by L1 of
    the coded numbers, both divided by the number of positive anchors. In 3-D, anchors are cubes and, for each ratio,
    one shape for each axis it may lie along, all of one volume: 12 anchors at a place, where 2-D has 9.

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
        extra_levels: coarser levels behind P5. Default 2, P6 and P7 (paper).
        extra_from: what P6 is made of: ``"C5"`` (paper) or ``"P5"`` (torchvision's first weights). Default ``"C5"``.
        head_depth: convolutions of each tower. Default 4 (paper).
        head_norm: ``"none"`` (paper) or ``"group"``. Default ``"none"``.
        anchor_sizes: for each level the sizes of its anchors in voxels, numbers or a shape of spatial_dims numbers,
            before ``anchor_scales``. Default 4 strides of the level, along each axis (paper).
        anchor_scales: default 2^0, 2^(1/3), 2^(2/3) (paper).
        anchor_ratios: default (2,): 1:2, 1:1 and 2:1 (paper).
        anchor_offset: centre of an anchor in its cell. Default 0.5, the middle; torchvision has 0.
        round_anchors: round the low and high edges of anchors around their centre to whole voxels, as torchvision does.
        foreground_iou, background_iou: defaults 0.5 and 0.4 (paper); in 3-D 0.374 and 0.275, the IoU that the same
            overlap along each axis has there.
        alpha, gamma: of the focal loss. Defaults 0.25 and 2 (paper).
        prior: score of every anchor at the start. Default 0.01 (paper).
        class_agnostic: learn one class, "object", whatever the labels. Default ``False``.
        image_gate: also learn whether an image holds any object, and drop all boxes of an image whose probability is
            below this number. Default ``None``, no gate.
        score_threshold, nms_threshold, topk_per_level, detections_per_image: defaults 0.05, 0.5 (in 3-D 0.374), 1000
            (paper) and 300.

    Raises:
        ValueError: for options out of their range.

    Notes:
        The paper's smooth L1 has no stated corner; the codes that reproduce its figures use L1, and so do we.

    Example:
        >>> import torch
        >>> detector = RetinaNetFPN(2, 1, 3, backbone={"depth": 18, "features": 8}, pyramid_channels=16)
        >>> images = torch.rand(2, 1, 64, 48)
        >>> none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
        >>> one = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 30.0]]), "labels": torch.tensor([2])}
        >>> sorted(detector(images, [one, none]))
        ['box_regression', 'classification']
        >>> sorted(detector.eval()(images)[0])
        ['boxes', 'labels', 'scores']
        >>> detector.network(images).shape  # 3 classes and 4 box numbers of all anchors
        torch.Size([2, 7, 594])
    """

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
        extra_from: str = "C5",
        head_depth: int = 4,
        head_norm: Any = "none",
        anchor_sizes: Sequence[Sequence[Any]] | None = None,
        anchor_scales: Sequence[float] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
        anchor_ratios: Sequence[float] = (2.0,),
        anchor_offset: float = 0.5,
        round_anchors: bool = False,
        foreground_iou: float | None = None,
        background_iou: float | None = None,
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
        classes = trained_classes(num_classes, class_agnostic)
        trunk = resnet_backbone(backbone, spatial_dims, in_channels, norm)
        neck = PyramidNeck(trunk, spatial_dims, pyramid_channels, first_level, extra_blocks(extra_from), extra_levels)
        anchors = level_anchors(
            neck.strides, anchor_sizes, 4.0, anchor_scales, anchor_ratios, spatial_dims, rounded=round_anchors
        )
        head = RetinaNetHead(
            spatial_dims,
            pyramid_channels,
            classes,
            len(anchors[0]),
            depth=head_depth,
            norm=head_norm,
            prior=prior,
        )
        network = DenseNetwork(
            trunk, neck, head, strides=neck.strides, gate_channels=None if image_gate is None else pyramid_channels
        )
        super().__init__(
            network,
            anchors=anchors,
            anchor_offset=anchor_offset,
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_classes=num_classes,
            class_agnostic=class_agnostic,
            image_gate=image_gate,
            score_threshold=score_threshold,
            nms_threshold=iou_per_axis(0.5, spatial_dims) if nms_threshold is None else nms_threshold,
            topk_per_level=topk_per_level,
            detections_per_image=detections_per_image,
        )
        self.alpha = alpha
        self.gamma = gamma
        self.set_regular_matcher(
            iou_per_axis(0.5, spatial_dims) if foreground_iou is None else foreground_iou,
            iou_per_axis(0.4, spatial_dims) if background_iou is None else background_iou,
        )

    def place_losses(
        self, raw: torch.Tensor, places: list[torch.Tensor], matches: torch.Tensor, targets: Targets
    ) -> dict[str, torch.Tensor]:
        logits, wanted = raw[:, : self.classes], self.one_hot(matches, targets)
        positives = normaliser((matches >= 0).sum())
        if self.sampler is None and self.cls_loss is None:
            terms = sigmoid_focal_loss(logits, wanted, self.gamma, self.alpha)
            classification = (terms * (matches != -2)[:, None]).sum() / positives
        else:
            classification = self.sampled_class_loss(logits, wanted, matches)
        predicted, boxes = self.place_box_loss(raw, places, matches, targets)
        if self.box_loss is None:
            regression = (predicted - boxes).abs().sum() / positives
        else:
            regression = self.custom_box_loss(predicted, boxes)
        return {self.cls_key: classification, self.box_reg_key: regression}

    def scores(self, raw: torch.Tensor) -> torch.Tensor:
        return raw[..., : self.classes, :].sigmoid()
