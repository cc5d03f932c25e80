# SPDX-License-Identifier: Apache-2.0
"""Faster R-CNN (Ren et al. 2015) with a feature pyramid (Lin et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from monai_labelfx.detectors._anchor_matching import checked_box_weights
from monai_labelfx.detectors._anchors import iou_per_axis, level_anchors
from monai_labelfx.detectors._box_head import BoxHead
from monai_labelfx.detectors._network import PyramidNeck, resnet_backbone
from monai_labelfx.detectors._pooling import PyramidPooling
from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors._two_stage_network import ProposalHead, TwoStageNetwork
from monai_labelfx.detectors.base import Detections, normaliser, trained_classes
from monai_labelfx.detectors.two_stage import TwoStageDetector, check_least
from monai_labelfx.ops.box_affine import clip_boxes
from monai_labelfx.ops.box_coding import boxes_to_deltas, deltas_to_boxes
from monai_labelfx.ops.nms import greedy_nms

_SLIVER = 1e-2  # voxels: a thinner box is no detection


class FasterRCNN(TwoStageDetector):
    """Faster R-CNN in 2-D and 3-D: proposals from a pyramid P2 to P6, and a head of two fully connected layers.

    An anchor is an object from an IoU of 0.7 with a box on, background below 0.3, and each box keeps its best anchors;
    ``rpn_samples`` of them, drawn at random, learn by binary cross entropy, the positive ones among them also the box.
    Of the best anchors of each level, moved, those that are left after suppression are proposals. ``roi_samples`` of
    these and of the true boxes, drawn at random, are pooled by RoIAlign from the level that suits their size, P2 to P5,
    and learn the class (softmax, with a background) and, where they overlap a box enough, its numbers, those of its
    class. Box losses are L1, divided by the number of samples.

    The network returns what proposals are made of and the pyramid, packed into one tensor; its ``box_head`` is called
    later.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the images.
        num_classes: without the background.
        backbone: ``"resnet50"`` (18, 34, 50, 101, 152), ``"resnext101_64x4d"``, keywords of ``ResNetBackbone``, or a
            module with ``out_channels`` and ``strides``. Default ResNet-50.
        norm: of a backbone given by name: ``"group"``, ``"batch"``, ``"frozen_batch"`` (with pretrained weights) or
            ``"instance"``. Default ``"group"``, since batches of detection are small.
        pyramid_channels: of the feature pyramid and of what is pooled. Default 256 (paper).
        first_level: finest level of the pyramid, 2 to 5, of stride 4 to 32. Default 2 (paper).
        extra_levels: coarser levels behind P5, for proposals only. Default 1, P6 (paper).
        anchor_sizes: for each level the sizes of its anchors in voxels, numbers or a shape of spatial_dims numbers,
            before ``anchor_scales``. Default 8 strides of the level, along each axis (paper).
        anchor_scales: default (1,) (paper).
        anchor_ratios: default (2,): 1:2, 1:1 and 2:1 (paper).
        anchor_offset: centre of an anchor in its cell. Default 0.5, the middle; torchvision has 0.
        round_anchors: round the low and high edges of anchors around their centre to whole voxels, as torchvision does.
        rpn_depth: convolutions of the proposal head. Default 1 (paper).
        rpn_foreground_iou, rpn_background_iou: defaults 0.7 and 0.3 (paper); in 3-D 0.597 and 0.186, the IoU that the
            same overlap along each axis has there.
        rpn_samples, rpn_positive: anchors to learn from, and the share of positive ones at most. Defaults 256, 0.5
            (paper).
        rpn_nms: default 0.7 (paper); in 3-D 0.597.
        train_candidates: anchors of each level that enter the suppression in training. Default 2000 (paper).
        proposals: that are left after it, in training and in evaluation. Default (1000, 1000) (paper).
        roi_foreground_iou: IoU of a proposal that stands for a box. Default 0.5 (paper); in 3-D 0.374.
        roi_samples, roi_positive: proposals to learn from, and the share of those with an object at most. Defaults 512
            (paper), in 3-D 128, and 0.25 (paper).
        pool_size: bins of RoIAlign along each axis, one number or one for each. Default 7 (paper), in 3-D 5.
        pool_sampling: samples of a bin along each axis, 0 for as many as it has voxels (mmdetection). Default 0.
        pool_aligned: see :py:func:`monai_labelfx.ops.roi_align.roi_align`. Default ``True``.
        head_channels: of the fully connected layers. Default 1024 (paper).
        box_weights: of the box numbers of the second stage, centre and size, or one for each of 2 \\* spatial_dims.
            Default (10, 5) (paper).
        smooth_l1: where box losses turn from a parabola into a line. Default 0, L1 (mmdetection).
        class_agnostic: learn one class, "object", whatever the labels. Default ``False``.
        image_gate: also learn whether an image holds any object, and drop all boxes of an image whose probability is
            below this number. Default ``None``, no gate.
        score_threshold, nms_threshold, topk_per_level, detections_per_image: defaults 0.05, 0.5 (in 3-D 0.374), 1000
            anchors of a level (paper) and 300.

    Raises:
        ValueError: for options out of their range.

    Notes:
        Proposals of training are cut at the batch, those of evaluation at their image. The paper has no pyramid and
        pools from one map; settings are those of the pyramid's paper and of the codes that reproduce its figures.

    Example:
        >>> import torch
        >>> small = {"backbone": {"depth": 18, "features": 8}, "pyramid_channels": 16, "head_channels": 32}
        >>> detector = FasterRCNN(2, 1, 3, **small)
        >>> images = torch.rand(2, 1, 64, 48)
        >>> none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
        >>> one = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 30.0]]), "labels": torch.tensor([2])}
        >>> sorted(detector(images, [one, none]))
        ['box_regression', 'classification', 'rpn_box_regression', 'rpn_classification']
        >>> sorted(detector.eval()(images)[0])
        ['boxes', 'labels', 'scores']
    """

    torchvision_settings: Mapping[str, Any] = {
        "anchor_offset": 0.0,
        "round_anchors": True,
        "train_candidates": 2000,
        "proposals": (2000, 1000),
        "pool_sampling": 2,
        "pool_aligned": False,
        "smooth_l1": 1 / 9,
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
        first_level: int = 2,
        extra_levels: int = 1,
        anchor_sizes: Sequence[Sequence[Any]] | None = None,
        anchor_scales: Sequence[float] = (1.0,),
        anchor_ratios: Sequence[float] = (2.0,),
        anchor_offset: float = 0.5,
        round_anchors: bool = False,
        rpn_depth: int = 1,
        rpn_foreground_iou: float | None = None,
        rpn_background_iou: float | None = None,
        rpn_samples: int = 256,
        rpn_positive: float = 0.5,
        rpn_nms: float | None = None,
        train_candidates: int = 2000,
        proposals: Sequence[int] = (1000, 1000),
        roi_foreground_iou: float | None = None,
        roi_samples: int | None = None,
        roi_positive: float = 0.25,
        pool_size: int | Sequence[int] | None = None,
        pool_sampling: int = 0,
        pool_aligned: bool = True,
        head_channels: int = 1024,
        box_weights: Sequence[float] = (10.0, 5.0),
        smooth_l1: float = 0.0,
        class_agnostic: bool = False,
        image_gate: float | None = None,
        score_threshold: float = 0.05,
        nms_threshold: float | None = None,
        topk_per_level: int = 1000,
        detections_per_image: int = 300,
    ) -> None:
        classes = trained_classes(num_classes, class_agnostic)
        check_least(1, pyramid_channels=pyramid_channels, head_channels=head_channels)
        check_least(0, rpn_depth=rpn_depth, pool_sampling=pool_sampling)
        second_stage_weights = checked_box_weights("box_weights", box_weights, spatial_dims)
        # 7 along three axes are as many numbers as 18.5 along two
        bins = bins_per_axis(
            "pool_size", (7 if spatial_dims == 2 else 5) if pool_size is None else pool_size, spatial_dims
        )
        trunk = resnet_backbone(backbone, spatial_dims, in_channels, norm)
        neck = PyramidNeck(trunk, spatial_dims, pyramid_channels, first_level, "pool", extra_levels)
        anchors = level_anchors(
            neck.strides, anchor_sizes, 8.0, anchor_scales, anchor_ratios, spatial_dims, rounded=round_anchors
        )
        pooled_levels = len(neck.strides) - extra_levels
        network = TwoStageNetwork(
            trunk,
            neck,
            ProposalHead(spatial_dims, pyramid_channels, len(anchors[0]), rpn_depth),
            {"box_head": BoxHead(pyramid_channels, bins, head_channels, classes)},
            strides=neck.strides,
            channels=pyramid_channels,
            anchors=len(anchors[0]),
            pooled_levels=pooled_levels,
            gate=image_gate is not None,
        )

        def iou(given: float | None, published: float) -> float:
            return iou_per_axis(published, spatial_dims) if given is None else given

        super().__init__(
            network,
            anchors=anchors,
            anchor_offset=anchor_offset,
            rpn_iou=(iou(rpn_foreground_iou, 0.7), iou(rpn_background_iou, 0.3)),
            rpn_samples=rpn_samples,
            rpn_positive=rpn_positive,
            rpn_nms=iou(rpn_nms, 0.7),
            train_candidates=train_candidates,
            proposals=proposals,
            roi_iou=iou(roi_foreground_iou, 0.5),
            roi_samples=(512 if spatial_dims == 2 else 128) if roi_samples is None else roi_samples,
            roi_positive=roi_positive,
            smooth_l1=smooth_l1,
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_classes=num_classes,
            class_agnostic=class_agnostic,
            image_gate=image_gate,
            score_threshold=score_threshold,
            nms_threshold=iou(nms_threshold, 0.5),
            topk_per_level=topk_per_level,
            detections_per_image=detections_per_image,
        )
        self.pooling = self.pooling_to(bins, pool_sampling, pool_aligned)
        self.roi_box_weights = second_stage_weights

    def pooling_to(self, bins: Sequence[int], sampling_ratio: int, aligned: bool) -> PyramidPooling:
        """RoIAlign to ``bins``, from the pyramid that the second stage uses."""
        # boxes of 112 pixels and more leave P2 of stride 4, which is 4 voxels of the map for each of 7 bins (paper)
        strides = self.network.strides[: self.network.pooled_levels]
        return PyramidPooling(strides, bins, sampling_ratio=sampling_ratio, aligned=aligned, strides_at_second=28.0)

    def roi_losses(
        self,
        maps: list[torch.Tensor],
        rois: torch.Tensor,
        image: torch.Tensor,
        matches: torch.Tensor,
        targets: Targets,
    ) -> dict[str, torch.Tensor]:
        logits, deltas = self.network.box_head(self.pooling(maps, rois, image))
        # padding of labels is -1, and becomes the background
        labels = torch.where(matches >= 0, targets.labels[image, matches.clamp(min=0)] + 1, 0)
        number = normaliser(labels.new_tensor(len(labels)))
        objects = (matches >= 0).nonzero()[:, 0]
        boxes = targets.boxes[image[objects], matches[objects]]
        wanted = boxes_to_deltas(boxes, rois[objects], self.roi_box_weights)
        return {
            self.cls_key: cross_entropy(logits, labels, reduction="sum") / number,
            self.box_reg_key: self.box_loss(deltas[objects, labels[objects]], wanted) / number,
        }

    def detect_in(
        self, maps: list[torch.Tensor], proposals: list[torch.Tensor], sizes: Sequence[tuple[int, ...]]
    ) -> list[Detections]:
        counts = [len(boxes) for boxes in proposals]
        rois = torch.cat(proposals)
        image = torch.arange(len(counts), device=rois.device).repeat_interleave(
            torch.tensor(counts, device=rois.device)
        )
        logits, deltas = self.network.box_head(self.pooling(maps, rois, image))
        scores = logits.softmax(dim=1)[:, 1:]
        parts = (part.split(counts) for part in (rois, scores, deltas[:, 1:]))
        return [self._detect_one(*one) for one in zip(*parts, sizes, strict=True)]

    def _detect_one(
        self, rois: torch.Tensor, scores: torch.Tensor, deltas: torch.Tensor, size: tuple[int, ...]
    ) -> Detections:
        row, label = (scores > self.score_threshold).nonzero(as_tuple=True)
        boxes = clip_boxes(deltas_to_boxes(deltas[row, label], rois[row], self.roi_box_weights), size)
        axes = self.spatial_dims
        solid = (boxes[:, axes:] - boxes[:, :axes] >= _SLIVER).all(dim=1)
        boxes, label, found = boxes[solid], label[solid], scores[row, label][solid]
        kept = greedy_nms(boxes, found, self.nms_threshold, classes=label, max_kept=self.detections_per_image)
        return {"boxes": boxes[kept], "labels": label[kept], "scores": found[kept]}


def bins_per_axis(name: str, size: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """A number of bins for each axis, from one number or one for each.

    Raises:
        ValueError: for another number of numbers, or one below 1.
    """
    bins = tuple(size) if isinstance(size, Iterable) else (size,) * spatial_dims
    if len(bins) != spatial_dims or any(n != int(n) or n < 1 for n in bins):
        raise ValueError(f"{name} must be 1 or more, one number or one for each of {spatial_dims} axes, got {size!r}")
    return tuple(int(n) for n in bins)
