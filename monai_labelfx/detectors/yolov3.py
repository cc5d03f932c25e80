# SPDX-License-Identifier: Apache-2.0
"""YOLOv3 (Redmon and Farhadi 2018): the cell that holds an object's centre answers for it, by its best anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss, one_hot

from monai_labelfx.detectors._anchors import iou_per_axis
from monai_labelfx.detectors._network import DenseNetwork
from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors._yolov3_network import YOLOHead, YOLONeck
from monai_labelfx.detectors.base import normaliser, trained_classes
from monai_labelfx.detectors.dense import DenseDetector
from monai_labelfx.networks.darknet53_backbone import Darknet53Backbone
from monai_labelfx.ops.anchor_grid import anchor_grid
from monai_labelfx.ops.box_coding import MAX_LOG_SIZE
from monai_labelfx.ops.box_overlap import box_overlap

# width and height in pixels of COCO's objects, for strides 8, 16 and 32 (paper, section 2.3)
_PUBLISHED = (((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119)), ((116, 90), (156, 198), (373, 326)))
_IN_STRIDES = (2.0, 2.0 ** (4 / 3), 2.0 ** (5 / 3))  # other anchors, three in an octave, as strides double
_OFFSET = 0.5  # of an anchor in its cell: decoding is about the middle of the cell
_CENTRE = 1e-6  # least distance of a wanted centre to the borders of its cell, which the sigmoid never reaches
_SMALLEST = 1e-6  # voxels
_PAIRS = 2**22  # anchors times boxes that are compared at once
_NORMALISERS = ("positives", "sum")
_CENTRE_WEIGHT = _SIZE_WEIGHT = 2.0


class YOLOv3(DenseDetector):
    """YOLOv3 in 2-D and 3-D: Darknet-53, three levels of strides 8, 16 and 32, three anchors at a place.

    Of the anchors of the cells (one in each level) that hold the centre of a box, the one of highest IoU answers for
    it, and all with an IoU above ``ignore_iou``. Any other anchor whose IoU with some box is above that learns no
    objectness; the rest learn that there is no object. From the raw numbers t of an anchor of size a in a cell of
    stride s and centre m comes the box of centre m + (sigmoid(t_c) - 0.5) s and size a exp(t_s), along each axis.

    The losses are binary cross entropies of all classes and twice those of the D centres, and twice the squared errors
    of the D log sizes, over the anchors with a box, and the binary cross entropy of the objectness over all anchors
    that are not left out, each summed and divided as ``normaliser`` says.

    The network returns, in this order, the class logits, the logit of the objectness, D centre and D size numbers, for
    the levels from the finest on. A score is the probability of the class times that of an object.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the images.
        num_classes: without the background.
        backbone: ``"darknet53"``, keywords of ``Darknet53Backbone``, or a module with ``out_channels`` and
            ``strides``. Default Darknet-53.
        norm: of the whole network (in a backbone given as a module, of the rest): ``"group"``, ``"batch"`` (paper),
            ``"frozen_batch"`` or ``"instance"``. Default ``"group"``, since batches of detection are small.
        anchors: for each level, finest first, the shapes of its anchors, spatial_dims numbers in voxels each. Default
            in 2-D, with the strides above, the paper's, width (axis 0) before height; otherwise cubes of 2, 2.5 and 3.2
            strides. They should fit the objects: take those planned from the training boxes.
        ignore_iou: see above. Default 0.5 (paper), in 3-D 0.374, the same overlap along each axis.
        normaliser: what each loss is divided by: ``"positives"``, the number of anchors with a box (at least 1), or
            ``"sum"`` for nothing (paper), which needs gradients clipped, at 35 in the published training.
        prior: probability of an object at every anchor at the start. Default 0.01.
        class_agnostic: learn one class, "object", whatever the labels. Default ``False``.
        image_gate: also learn whether an image holds any object, and drop all boxes of an image whose probability is
            below this number. Default ``None``, no gate.
        objectness_threshold: lowest probability of an object. Default 0.005 (published code).
        class_threshold: probability that a class must exceed. Default 0.05 (published code).
        score_threshold: that the score, their product, must exceed. Default 0: the two above say enough.
        nms_threshold, topk_per_level, detections_per_image: defaults 0.45 (in 3-D 0.324), 1000 (published code), 300.

    Raises:
        ValueError: for options out of their range.

    Notes:
        Which anchors are left out is by the IoU of the anchors, as in mmdetection's grid assigner; Darknet takes that
        of the predicted boxes, with 0.5 in the paper and 0.7 in its configuration, and weighs sizes by 2 - w h.
        There, an anchor of a cell with any box's centre may answer for any box; here only for one whose centre is in
        its cell, as no other can be decoded. Every box has its best anchor, the first if several are equally good,
        unless it is another box's best with a higher IoU.
        A wanted centre stays 1e-6 of the cell from its borders.

    Example:
        >>> import torch
        >>> detector = YOLOv3(2, 1, 3, backbone={"features": 4})
        >>> images = torch.rand(2, 1, 64, 48)
        >>> none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
        >>> one = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 30.0]]), "labels": torch.tensor([2])}
        >>> sorted(detector(images, [one, none]))
        ['box_regression', 'classification', 'objectness']
        >>> sorted(detector.eval()(images)[0])
        ['boxes', 'labels', 'scores']
        >>> detector.network(images).shape  # 3 classes, the objectness and 4 box numbers of all anchors
        torch.Size([2, 8, 192])
    """

    objectness_key = "objectness"

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        num_classes: int,
        *,
        backbone: str | Mapping[str, Any] | nn.Module = "darknet53",
        norm: Any = "group",
        anchors: Sequence[Sequence[Sequence[float]]] | None = None,
        ignore_iou: float | None = None,
        normaliser: str = "positives",
        prior: float = 0.01,
        class_agnostic: bool = False,
        image_gate: float | None = None,
        objectness_threshold: float = 0.005,
        class_threshold: float = 0.05,
        score_threshold: float = 0.0,
        nms_threshold: float | None = None,
        topk_per_level: int = 1000,
        detections_per_image: int = 300,
    ) -> None:
        if normaliser not in _NORMALISERS:
            raise ValueError(f"normaliser must be one of {', '.join(map(repr, _NORMALISERS))}, got {normaliser!r}")
        ignore_iou = iou_per_axis(0.5, spatial_dims) if ignore_iou is None else ignore_iou
        shares = {"ignore_iou": ignore_iou, "objectness_threshold": objectness_threshold}
        for name, value in {**shares, "class_threshold": class_threshold}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be 0 to 1, got {value}")
        classes = trained_classes(num_classes, class_agnostic)
        trunk = _backbone(backbone, spatial_dims, in_channels, norm)
        neck = YOLONeck(spatial_dims, trunk.out_channels, norm)
        shapes = _anchors(anchors, trunk.strides, spatial_dims)
        head = YOLOHead(
            spatial_dims,
            neck.out_channels,
            classes,
            [len(level) for level in shapes],
            norm=norm,
            prior=prior,
        )
        network = DenseNetwork(
            trunk,
            neck,
            head,
            strides=trunk.strides,
            gate_channels=None if image_gate is None else neck.out_channels[-1],
        )
        super().__init__(
            network,
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
        self.anchor_shapes = shapes
        self.ignore_iou = ignore_iou
        self.normaliser = normaliser
        self.objectness_threshold = objectness_threshold
        self.class_threshold = class_threshold

    def places(self, image_size: tuple[int, ...], device: torch.device) -> list[torch.Tensor]:
        levels = zip(self.anchor_shapes, self.network.level_shapes(image_size), self.network.strides, strict=True)
        return [anchor_grid(shapes, shape, stride, offset=_OFFSET, device=device) for shapes, shape, stride in levels]

    def assign(self, places: list[torch.Tensor], targets: Targets) -> torch.Tensor:
        anchors, strides = torch.cat(places), self._strides(places)
        together = max(1, _PAIRS // max(1, targets.valid.shape[1] * len(anchors)))
        images = zip(targets.boxes.split(together), targets.valid.split(together), strict=True)
        return torch.cat([self._owners(boxes, valid, anchors, strides) for boxes, valid in images])

    def place_losses(
        self, raw: torch.Tensor, places: list[torch.Tensor], matches: torch.Tensor, targets: Targets
    ) -> dict[str, torch.Tensor]:
        positive = matches >= 0
        divisor = normaliser(positive.sum()) if self.normaliser == "positives" else 1
        image, place = positive.nonzero(as_tuple=True)
        box = matches[image, place]
        anchors, strides = torch.cat(places)[place], self._strides(places)[place]
        own, chosen = raw[image, :, place], matches != -2
        logits, numbers = own[:, : self.classes], own[:, -2 * self.spatial_dims :]
        labels = one_hot(targets.labels[image, box], self.classes).to(logits.dtype)
        centres, sizes = self._encode(targets.boxes[image, box], anchors, strides)
        centre_loss = binary_cross_entropy_with_logits(numbers[:, : self.spatial_dims], centres, reduction="sum")
        size_loss = mse_loss(numbers[:, self.spatial_dims :], sizes, reduction="sum")
        losses = {
            self.cls_key: binary_cross_entropy_with_logits(logits, labels, reduction="sum"),
            self.box_reg_key: _CENTRE_WEIGHT * centre_loss + _SIZE_WEIGHT * size_loss,
            self.objectness_key: binary_cross_entropy_with_logits(
                raw[:, self.classes], positive.to(raw.dtype), chosen.to(raw.dtype), reduction="sum"
            ),
        }
        return {name: loss / divisor for name, loss in losses.items()}

    def scores(self, raw: torch.Tensor) -> torch.Tensor:
        classes = raw[..., : self.classes, :].sigmoid()
        objectness = raw[..., self.classes, None, :].sigmoid()
        kept = (objectness >= self.objectness_threshold) & (classes > self.class_threshold)
        return torch.where(kept, classes * objectness, 0.0)

    def decode(self, raw: torch.Tensor, places: torch.Tensor, level: int) -> torch.Tensor:
        axes = self.spatial_dims
        centres, sizes = raw[-2 * axes :].T.split(axes, dim=1)
        low, high = places.split(axes, dim=1)
        centre = (low + high) / 2 + (centres.sigmoid() - _OFFSET) * places.new_tensor(self.network.strides[level])
        half = (high - low) / 2 * sizes.clamp(max=MAX_LOG_SIZE).exp()
        return torch.cat([centre - half, centre + half], dim=1)

    def _encode(
        self, boxes: torch.Tensor, anchors: torch.Tensor, strides: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Wanted centres, as shares of the cell, and log sizes, (P, spatial_dims) each."""
        (low, high), (anchor_low, anchor_high) = boxes.chunk(2, dim=1), anchors.chunk(2, dim=1)
        centre = (low + high - anchor_low - anchor_high) / 2 / strides + _OFFSET
        size = ((high - low).clamp(min=_SMALLEST) / (anchor_high - anchor_low)).log()
        return centre.clamp(_CENTRE, 1 - _CENTRE), size

    def _owners(
        self, boxes: torch.Tensor, valid: torch.Tensor, anchors: torch.Tensor, strides: torch.Tensor
    ) -> torch.Tensor:
        """Some images' (B, A) int64: the box of each anchor, -1 none, -2 left out."""
        overlap = torch.where(valid[:, :, None], box_overlap(boxes, anchors), -1.0)
        close = overlap.amax(dim=1) > self.ignore_iou
        axes = self.spatial_dims
        for axis in range(axes):
            low = (anchors[:, axis] + anchors[:, axes + axis] - strides[:, axis]) / 2
            inside = (boxes[:, :, axis, None] + boxes[:, :, axes + axis, None]) / 2 - low
            overlap = torch.where((inside >= 0) & (inside < strides[:, axis]), overlap, -1.0)
        best = overlap.argmax(dim=2)[:, :, None] == torch.arange(len(anchors), device=boxes.device)
        best &= valid[:, :, None]
        # a box's best anchor goes before a good one of another box
        claim = torch.where(best | (overlap > self.ignore_iou), overlap + best, -1.0)
        highest, box = claim.max(dim=1)
        return torch.where(highest >= 0, box, torch.where(close, -2, -1))

    def _strides(self, places: Sequence[torch.Tensor]) -> torch.Tensor:
        """(A, spatial_dims): the strides of the level of each anchor."""
        levels = zip(self.network.strides, places, strict=True)
        return torch.cat([anchors.new_tensor(stride).expand(len(anchors), -1) for stride, anchors in levels])


def _backbone(backbone: str | Mapping[str, Any] | nn.Module, spatial_dims: int, in_channels: int, norm: Any) -> Any:
    if isinstance(backbone, nn.Module):
        for name in ("out_channels", "strides"):
            if not hasattr(backbone, name):
                raise ValueError(f"a backbone must have the attribute {name!r}, {type(backbone).__name__} has none")
        return backbone
    if isinstance(backbone, str) and backbone != "darknet53":
        raise ValueError(f"backbone must be 'darknet53', keywords of Darknet53Backbone or a module, got {backbone!r}")
    options = {} if isinstance(backbone, str) else backbone
    return Darknet53Backbone(spatial_dims, in_channels, **{"norm": norm, **options})


def _anchors(
    anchors: Sequence[Sequence[Sequence[float]]] | None, strides: Sequence[tuple[int, ...]], spatial_dims: int
) -> list[list[list[float]]]:
    """For each level the shapes of its anchors, checked."""
    if anchors is None:
        if list(strides) == [(8, 8), (16, 16), (32, 32)]:
            anchors = _PUBLISHED
        else:
            anchors = [[[number * s for s in stride] for number in _IN_STRIDES] for stride in strides]
    if len(anchors) != len(strides):
        raise ValueError(f"anchors must have one list for each of the {len(strides)} levels, got {len(anchors)}")
    shapes = [[[float(n) for n in shape] for shape in level] for level in anchors]
    for shape in (shape for level in shapes for shape in level):
        if len(shape) != spatial_dims or not all(n > 0 for n in shape):
            raise ValueError(f"an anchor must have {spatial_dims} positive sides, got {shape}")
    if not all(shapes):
        raise ValueError("every level must have at least one anchor")
    return shapes
