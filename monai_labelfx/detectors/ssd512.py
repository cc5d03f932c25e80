# SPDX-License-Identifier: Apache-2.0
"""SSD (Liu et al. 2016) in its form for images of 512: default boxes of many sizes, and a choice of hard negatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, smooth_l1_loss

from monai_labelfx.detectors._anchors import iou_per_axis
from monai_labelfx.detectors._network import DenseNetwork
from monai_labelfx.detectors._ssd_boxes import axis_stretch, box_sizes, default_boxes, level_count, level_ratios
from monai_labelfx.detectors._ssd_network import SSDHead, SSDNeck, vgg_backbone
from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors.base import normaliser, trained_classes
from monai_labelfx.detectors.dense import AnchorDetector
from monai_labelfx.ops.anchor_grid import anchor_grid
from monai_labelfx.ops.anchor_sampling import hard_negatives
from monai_labelfx.ops.box_matching import iou_matches

_SIZES = {2: 512, 3: 128}
_SMALLEST = 32
_MINING = ("batch", "per_image", "reference")


class SSD512(AnchorDetector):
    r"""SSD512, in 2-D and 3-D.

    VGG-16 up to conv4_3 and fc7 (strides 8 and 16), then levels that halve until one place is left: strides 8 to 512,
    24,564 default boxes for an image of 512 x 512. A box that overlaps a default box by an IoU of ``foreground_iou``
    and the best default box of each box are positive, all others background. With P positives, and N negatives of the
    highest loss,

    .. math:: L_{cls} = \frac{1}{P} \left(\sum_{pos} CE + w \sum_{neg} CE\right), \quad L_{box} = \frac{1}{P} \sum_{pos}
        \text{smooth}_{L1}(t - \hat t), \quad w = \min(1, \rho P / N)

    with the softmax cross-entropy over the classes and the background, the ratio :math:`\rho` of negatives to
    positives, and P at least 1. Channels of the network are the class logits, the background as last of them, and the
    box numbers.

    The published choice takes 3 negatives for each positive *of the same image*: from an image without objects it
    learns nothing, although most chest films have none. Here negatives are chosen in the batch as a whole, and each
    image gives at least ``min_negatives``; w = 1 but for those that exceed the ratio.

    Images are not resized here, and may have any size from 32 on; resize them to ``image_size``, for which levels and
    default boxes are made.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the images.
        num_classes: without the background.
        image_size: size of the images that levels and default boxes are made for, one number or one for each axis, the
            largest 32 or more. Default 512 in 2-D (paper) and 128 in 3-D.
        backbone: ``"vgg16"``, keywords of ``VGG16Backbone``, or a module with ``out_channels`` and ``strides``. By name
            or keywords, its third pooling is left out below an ``image_size`` of 200, where the smallest default boxes
            would fall between places of stride 8, and the window of fc6 is cut to the map. Default VGG-16.
        norm: of a backbone given by name or keywords: ``"group"``, ``"batch"``, ``"frozen_batch"``, or ``None``, the
            published network, which needs pretrained weights. Default ``"group"``, for training from scratch.
        box_sizes: of the default boxes in voxels, one for each level and one more. Default 4 % of the image, then 10 %
            to 90 % in equal steps, as published: 20, 51, 133, 215, 296, 378, 460, 542 of 512; two and four strides of
            the finest level at least.
        box_ratios: for each level. Default 2 for the finest and the two coarsest ones, 2 and 3 between (paper).
        foreground_iou: default 0.5 in 2-D (paper), and in 3-D 0.374, the same overlap along each axis: a box rarely has
            an IoU of 0.5 with any default box there.
        mining: ``"batch"`` or ``"per_image"``: where negatives are chosen, and positives counted. ``"reference"`` is
            ``"per_image"`` without ``min_negatives``, as published. Default ``"batch"``.
        negative_ratio: negatives for each positive. Default 3 (paper).
        min_negatives: of each image, whatever its positives; not in ``"reference"``. Default 10.
        class_agnostic: learn one class, "object", whatever the labels. Default ``False``.
        image_gate: also learn whether an image holds any object, and drop all boxes of an image whose probability is
            below this number. Default ``None``, no gate.
        score_threshold, nms_threshold, topk_per_level, detections_per_image: defaults 0.02, 0.45 (in 3-D 0.324), 1000
            and 200, as published.

    Raises:
        ValueError: for options out of their range.

    Notes:
        In 3-D a ratio makes rods and plates along each axis: 8 default boxes at a place with one ratio, 14 with two.
        An axis with one place has it in the middle of the image, others have their centres in the middle of a stride,
        so that the places of a map do not move with the size of the image. Convolutions of the added levels and the
        heads have no norm (paper). After ``set_*_sampler`` the classification loss is the mean over what it draws, and
        a loss of ``set_cls_loss`` gets logits and targets (M, classes + 1), the background last.

    Example:
        >>> import torch
        >>> detector = SSD512(2, 1, 3, image_size=64, backbone={"features": 4})
        >>> images = torch.rand(2, 1, 64, 48)
        >>> none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
        >>> one = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 30.0]]), "labels": torch.tensor([2])}
        >>> sorted(detector(images, [one, none]))
        ['box_regression', 'classification']
        >>> sorted(detector.eval()(images)[0])
        ['boxes', 'labels', 'scores']
        >>> detector.network(images).shape  # 3 classes, the background and 4 box numbers of all default boxes
        torch.Size([2, 8, 1148])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        num_classes: int,
        *,
        image_size: int | Sequence[int] | None = None,
        backbone: str | Mapping[str, Any] | nn.Module = "vgg16",
        norm: Any = "group",
        box_sizes: Sequence[float] | None = None,
        box_ratios: Sequence[Sequence[float]] | None = None,
        foreground_iou: float | None = None,
        mining: str = "batch",
        negative_ratio: float = 3.0,
        min_negatives: int = 10,
        class_agnostic: bool = False,
        image_gate: float | None = None,
        score_threshold: float = 0.02,
        nms_threshold: float | None = None,
        topk_per_level: int = 1000,
        detections_per_image: int = 200,
    ) -> None:
        classes = trained_classes(num_classes, class_agnostic)
        if mining not in _MINING:
            raise ValueError(f"mining must be one of {', '.join(map(repr, _MINING))}, got {mining!r}")
        if negative_ratio < 0 or min_negatives < 0:
            raise ValueError(
                f"negative_ratio and min_negatives must be 0 or more, got {negative_ratio} and {min_negatives}"
            )
        enough = iou_per_axis(0.5, spatial_dims) if foreground_iou is None else foreground_iou
        if not 0 <= enough <= 1:
            raise ValueError(f"foreground_iou must be 0 to 1, got {foreground_iou}")
        size = _image_size(image_size, spatial_dims)
        trunk: Any = vgg_backbone(backbone, spatial_dims, in_channels, norm, size)
        anchors = _anchors(size, trunk.strides, box_sizes, box_ratios)
        neck = SSDNeck(trunk, spatial_dims, len(anchors), size)
        head = SSDHead(
            spatial_dims,
            neck.out_channels,
            [len(shapes) for shapes in anchors],
            classes + 1,
        )
        gate_channels = None if image_gate is None else neck.out_channels[-1]
        super().__init__(
            DenseNetwork(trunk, neck, head, strides=neck.strides, gate_channels=gate_channels),
            anchors=anchors,
            anchor_offset=0.5,
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_classes=num_classes,
            class_agnostic=class_agnostic,
            image_gate=image_gate,
            score_threshold=score_threshold,
            nms_threshold=iou_per_axis(0.45, spatial_dims) if nms_threshold is None else nms_threshold,
            topk_per_level=topk_per_level,
            detections_per_image=detections_per_image,
        )
        self.mining = mining
        self.negative_ratio = negative_ratio
        self.min_negatives = min_negatives
        self.set_box_coder_weights((10.0, 5.0))  # 1 / 0.1 and 1 / 0.2, the published variances
        self.matcher = lambda boxes, valid, places: iou_matches(
            boxes, valid, torch.cat(places), positive=enough, negative=enough, one_best=True
        )

    def places(self, image_size: tuple[int, ...], device: torch.device) -> list[torch.Tensor]:
        found = []
        network: Any = self.network
        levels = zip(self.anchor_shapes, network.level_shapes(image_size), network.strides, strict=True)
        for shapes, places, stride in levels:
            offset = [
                n / (2 * s) if count == 1 else self.anchor_offset
                for n, count, s in zip(image_size, places, stride, strict=True)
            ]
            found.append(anchor_grid(shapes, places, stride, offset=offset, device=device))
        return found

    def place_losses(
        self, raw: torch.Tensor, places: list[torch.Tensor], matches: torch.Tensor, targets: Targets
    ) -> dict[str, torch.Tensor]:
        logits, wanted = raw[:, : self.classes + 1], self.one_hot(matches, targets)
        positives = normaliser((matches >= 0).sum())
        if self.sampler is None and self.cls_loss is None:
            terms = cross_entropy(logits, wanted, reduction="none")
            classification = (terms * self.place_weights(terms.detach(), matches)).sum() / positives
        else:
            classification = self.sampled_class_loss(logits, wanted, matches)
        predicted, boxes = self.place_box_loss(raw, places, matches, targets)
        if self.box_loss is None:
            regression = smooth_l1_loss(predicted, boxes, reduction="sum") / positives
        else:
            regression = self.custom_box_loss(predicted, boxes)
        return {self.cls_key: classification, self.box_reg_key: regression}

    def place_weights(self, losses: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
        """Weight of each place in the classification loss, from losses and matches (B, A): 0 if it was not chosen."""
        positive, negative = matches >= 0, self.hard_negatives(losses, matches)
        share = self.negative_ratio * positive.sum().clamp(min=1).to(losses) / negative.sum().clamp(min=1)
        return positive + negative * share.clamp(max=1)

    def hard_negatives(self, losses: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
        """The negatives (B, A) that the class is learned from, from losses and matches (B, A)."""
        positive, candidates = matches >= 0, matches == -1
        per_image = self.mining != "batch"
        chosen = hard_negatives(losses, positive, candidates, ratio=self.negative_ratio, per_image=per_image)
        if self.mining == "reference":
            return chosen
        return chosen | hard_negatives(losses, positive, candidates, ratio=0.0, min_negatives=self.min_negatives)

    def one_hot(self, matches: torch.Tensor, targets: Targets) -> torch.Tensor:
        """(B, classes + 1, A) float32: 1 at the class of the object of a positive place, at the last of others."""
        return torch.cat([super().one_hot(matches, targets), (matches < 0)[:, None].float()], dim=1)

    def sampled_class_loss(self, logits: torch.Tensor, wanted: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
        if self.sampler is None:
            losses = cross_entropy(logits.detach(), wanted, reduction="none")
            positive, negative = matches >= 0, self.hard_negatives(losses, matches)
        else:
            odds = (logits[:, :-1] - logits[:, -1:]).detach()  # what a sigmoid detector has as its logits
            positive, negative = self.sampler(odds, matches)
        rows = (positive | negative).nonzero(as_tuple=True)
        picked = logits.transpose(1, 2)[rows]
        loss = cross_entropy if self.cls_loss is None else self.cls_loss
        return loss(picked, wanted.transpose(1, 2)[rows]) if len(picked) else picked.sum()

    def scores(self, raw: torch.Tensor) -> torch.Tensor:
        return raw[..., : self.classes + 1, :].softmax(dim=-2)[..., :-1, :]


def _image_size(image_size: int | Sequence[int] | None, spatial_dims: int) -> tuple[int, ...]:
    if image_size is None:
        image_size = _SIZES.get(spatial_dims, _SIZES[2])
    size = (image_size,) * spatial_dims if isinstance(image_size, int) else tuple(image_size)
    if len(size) != spatial_dims or min(size) < 1 or max(size) < _SMALLEST:
        raise ValueError(
            f"image_size must be one number or {spatial_dims}, the largest {_SMALLEST} or more, got {image_size}"
        )
    return size


def _anchors(
    image_size: tuple[int, ...],
    strides: Sequence[tuple[int, ...]],
    sizes: Sequence[float] | None,
    ratios: Sequence[Sequence[float]] | None,
) -> list[torch.Tensor]:
    """The default boxes of each level, from the options of the detector."""
    if sizes is None:
        levels = level_count(image_size, strides[0], len(strides)) if ratios is None else len(ratios)
        sizes = box_sizes(image_size, strides[0], levels)
    levels = len(sizes) - 1
    if levels < len(strides) or not all(size > 0 for size in sizes):
        raise ValueError(f"box_sizes must be {len(strides) + 1} or more numbers above 0, got {list(sizes)}")
    ratios = level_ratios(levels) if ratios is None else ratios
    if len(ratios) != levels:
        raise ValueError(f"box_ratios must have one list for each of the {levels} levels, got {len(ratios)}")
    return default_boxes(sizes, ratios, axis_stretch(strides[0]))
