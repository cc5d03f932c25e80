# SPDX-License-Identifier: Apache-2.0
"""SOLOv2 (Wang et al. 2020): a cell finds the object that has its centre there, and the kernel of its mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.losses.focal_loss import sigmoid_focal_loss
from torch import nn

from monai_labelfx.detectors._anchors import iou_per_axis
from monai_labelfx.detectors._mask_targets import coarse_masks
from monai_labelfx.detectors._network import PyramidNeck, resnet_backbone
from monai_labelfx.detectors._packed import unpack
from monai_labelfx.detectors._solov2_levels import least_voxels, plan_levels, usual_image_size
from monai_labelfx.detectors._solov2_masks import (
    boxed_masks,
    compare_masks,
    image_masks,
    kernels_at,
    peaks,
    squared_dice,
)
from monai_labelfx.detectors._solov2_network import SOLOv2Network, solov2_widths
from monai_labelfx.detectors._solov2_targets import cell_owners, mass_centres
from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors.base import Detector, normaliser, trained_classes
from monai_labelfx.networks._any_size import check_counts, per_axis
from monai_labelfx.ops.anchor_sampling import balanced_sample
from monai_labelfx.ops.matrix_nms import MATRIX_KERNELS, matrix_nms

_FINE_MASKS = 400  # images of less have masks of stride 2
_MASKS = {2: 500, 3: 128}


class SOLOv2(Detector):
    """SOLOv2 in 2-D and 3-D: instance masks without boxes, each by one convolution of its own.

    The image is divided into a grid of cells for each level of a pyramid P2 to P6. A cell finds the class of the object
    whose centre lies there, and the E numbers of a kernel: the mask of that object is the sigmoid of the sum of the E
    mask features, one map for the whole image, weighted by the kernel (a convolution of window 1).

    An object belongs to each level whose range holds the D-th root of the volume of its box; ranges overlap. There, it
    has the cells that the region around its centre of mass touches, ``center_share`` of its box along each axis, and
    at most a cell to either side of that of the centre. A cell that several objects claim is that of the smallest, in
    voxels: label and mask are those of one object, and an object without any cell left is not learned.

    The class learns by the focal loss, the sum over all cells and classes divided by the cells with an object plus one;
    masks by the Dice loss over the map of mask features, the mean over cells with an object,

    .. math:: 1 - \\frac{2 \\sum p t}{\\sum p^2 + \\sum t^2 + 2 \\cdot 10^{-3}}

    times ``dice_weight``, where t is the share of a voxel of the map that the true mask covers.

    In evaluation, a cell stays whose score is above ``score_threshold``, and not below that of any of the 2^D - 1 cells
    before it along the axes. The best ``topk_per_level`` have their masks compared. The score is multiplied by the mean
    probability in the mask and lowered by matrix suppression
    (:py:func:`~monai_labelfx.ops.matrix_nms.matrix_nms`); what is left above ``update_threshold`` is interpolated at
    the voxels of the image. Memory depends on the number of cells that are compared, not on how many pass.

    The losses are ``"classification"`` and ``"mask"``; detections have ``masks``, (n, \\*size of the image) bool, and
    boxes tight to them. The output of the network is packed, see ``detector.network.part_shapes``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the images.
        num_classes: without the background.
        backbone: ``"resnet50"`` (18, 34, 50, 101, 152), ``"resnext101_64x4d"``, keywords of ``ResNetBackbone``, or a
            module with ``out_channels`` and ``strides``. Default ResNet-50.
        norm: of a backbone given by name: ``"group"``, ``"batch"``, ``"frozen_batch"`` (with pretrained weights) or
            ``"instance"``. Default ``"group"``, since batches of detection are small.
        pyramid_channels: of the feature pyramid. Default 256 (paper).
        first_level: finest level of the pyramid, 2 to 5, of stride 4 to 32. Default 2 (paper).
        extra_levels: coarser levels behind P5, every second voxel of the last. Default 1, P6 (paper).
        head_depth: convolutions of each of the two towers. Default 4 (paper).
        head_channels: of the towers. Default twice ``pyramid_channels``: 512 (paper); in 3-D at most 256.
        branch_channels: of the mask branch. Default half the ``pyramid_channels``: 128 (paper); in 3-D at most 64.
        mask_channels: E. Default ``pyramid_channels``: 256 (paper); in 3-D at most 128.
        mask_stride: of the mask features, one number or one for each axis, where the stride of the finest level is not
            finer. Default 4 (paper), and 2 in 3-D or with an ``image_size`` below 400.
        head_norm: of towers and mask branch: ``"group"`` (32 groups, or fewer of 8 channels or more), ``"none"`` or any
            that ``norm`` may be. Default ``"group"`` (paper).
        image_size: length of an axis, in voxels, of the images that cells and ranges are made for; these are in voxels,
            so larger images have more cells. Default 800 (paper) and in 3-D 96; 200 and 48 for pyramids of four levels
            or fewer. Take less for objects that lie close together.
        cell_sizes: for each level, one number of voxels or one for each axis. Default ``image_size`` divided by 40, 36,
            24, 16 and 12 (paper), in 3-D by 12, 10, 8, 6 and 4; in proportion to the strides where these differ between
            axes.
        scale_ranges: for each level the smallest and largest size. Default 1 to 96, 48 to 192, 96 to 384, 192 to 768,
            and from 384 (paper) for an ``image_size`` of 800, in proportion to it, but at least 6 strides of the finest
            level where there is 96 (on coarser maps, small objects are hard to tell apart); the last one is open.
        center_share: of the sides of a box. Default 0.2 (paper).
        alpha, gamma: of the focal loss. Defaults 0.25 and 2 (paper).
        prior: class score of every cell at the start. Default 0.01 (paper).
        dice_weight: default 3 (paper).
        masks_per_image: cells of an image that masks learn from, drawn at random where more have an object. Default
            500, in 3-D 128.
        class_agnostic: learn one class, "object", whatever the labels. Default ``False``.
        image_gate: also learn whether an image holds any object, and drop all detections of an image whose probability
            is below this number. Default ``None``, no gate.
        score_threshold: of the class score of a cell. Default 0.1 (paper).
        mask_threshold: a voxel is in the mask above this probability. Default 0.5 (paper).
        largest_component: of each mask keep only the largest connected component. Masks come from maps of the whole
            image, where one stray voxel spoils the box of a mask. Default ``False`` (paper).
        update_threshold: lowest score after suppression. Default half of ``score_threshold``, 0.05 (paper).
        nms_kernel, nms_sigma: of matrix suppression. Defaults ``"gaussian"`` and 2 (authors' settings).
        nms_threshold: IoU above which boxes of two windows are the same, for ``use_inferer``; an image that is looked
            at as a whole does not depend on it. Default 0.5, in 3-D 0.374, the same overlap along each axis.
        topk_per_level: cells whose masks are compared; all levels of an image together. Default 500 (paper).
        detections_per_image: default 100 (paper).
        crop_masks: give ``masks`` as a list of n blocks, block k the voxels that box k covers, instead of one tensor of
            the size of the image for each. Default ``False``.

    Raises:
        ValueError: for options out of their range.

    Notes:
        True masks are shares of the voxels of the map. The paper rounds them, by which what is thinner than a voxel is
        lost: hollow objects with walls of two voxels, from masks of stride 2, come back with a mean IoU of 0.79 in
        place of 0.63 (3-D).
        Levels are resampled from their own strides; the paper resizes P2 and P6 to strides 8 and 32 first.
        All levels of the mask branch see coordinates; in the paper the coarsest does, which in a small image is a voxel
        or two that tell no places apart. They are those of the centres of voxels, and so agree between levels.
        A mask is dropped that has no more voxels than the stride of its level (paper), or than 5 % of the smallest
        object of the level where that is less: in the paper's setting that is less on the two finest levels only.

    Example:
        >>> import torch
        >>> detector = SOLOv2(2, 1, 3, backbone={"depth": 18, "features": 8}, pyramid_channels=16, image_size=64)
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 30.0]]), "labels": torch.tensor([2])}
        >>> target["masks"] = torch.zeros(1, 64, 48, dtype=torch.bool)
        >>> target["masks"][0, 8:40, 8:30] = True
        >>> sorted(detector(torch.rand(1, 1, 64, 48), [target]))
        ['classification', 'mask']
        >>> found = detector.eval()(torch.rand(1, 1, 64, 48))[0]
        >>> sorted(found), found["masks"].shape[1:]
        (['boxes', 'labels', 'masks', 'scores'], torch.Size([64, 48]))
        >>> detector.network.grids((64, 48))
        [(40, 30), (36, 27), (24, 18), (16, 12), (12, 9)]
    """

    box_reg_key = "mask"  # what there is instead of boxes
    needs_masks = True
    packed = True

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
        head_depth: int = 4,
        head_channels: int | None = None,
        branch_channels: int | None = None,
        mask_channels: int | None = None,
        mask_stride: int | Sequence[int] | None = None,
        head_norm: Any = "group",
        image_size: float | None = None,
        cell_sizes: Sequence[float | Sequence[float]] | None = None,
        scale_ranges: Sequence[Sequence[float]] | None = None,
        center_share: float = 0.2,
        alpha: float = 0.25,
        gamma: float = 2.0,
        prior: float = 0.01,
        dice_weight: float = 3.0,
        masks_per_image: int | None = None,
        class_agnostic: bool = False,
        image_gate: float | None = None,
        score_threshold: float = 0.1,
        mask_threshold: float = 0.5,
        largest_component: bool = False,
        update_threshold: float | None = None,
        nms_kernel: str = "gaussian",
        nms_sigma: float = 2.0,
        nms_threshold: float | None = None,
        topk_per_level: int = 500,
        detections_per_image: int = 100,
        crop_masks: bool = False,
    ) -> None:
        classes = trained_classes(num_classes, class_agnostic)
        for name, share in (("center_share", center_share), ("mask_threshold", mask_threshold), ("prior", prior)):
            if not 0 < share < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {share}")
        if update_threshold is not None and not 0 <= update_threshold <= 1:
            raise ValueError(f"update_threshold must be 0 to 1, got {update_threshold}")
        if nms_kernel not in MATRIX_KERNELS or not nms_sigma > 0:
            kernels = ", ".join(map(repr, MATRIX_KERNELS))
            raise ValueError(
                f"expected an nms_kernel of {kernels} and nms_sigma above 0, got {nms_kernel!r}, {nms_sigma}"
            )
        masks_per_image = _MASKS[spatial_dims] if masks_per_image is None else masks_per_image
        widths = solov2_widths(spatial_dims, pyramid_channels, head_channels, branch_channels, mask_channels)
        check_counts(head_depth=head_depth, masks_per_image=masks_per_image, **widths)
        trunk = resnet_backbone(backbone, spatial_dims, in_channels, norm)
        neck = PyramidNeck(trunk, spatial_dims, pyramid_channels, first_level, "pool", extra_levels)
        image_size = usual_image_size(spatial_dims, len(neck.strides)) if image_size is None else image_size
        levels = plan_levels(neck.strides, image_size, cells=cell_sizes, ranges=scale_ranges)
        if mask_stride is None:
            mask_stride = 2 if spatial_dims > 2 or image_size < _FINE_MASKS else 4
        strides = zip(per_axis("mask_stride", mask_stride, spatial_dims), neck.strides[0], strict=True)
        network = SOLOv2Network(
            trunk,
            neck,
            spatial_dims,
            pyramid_channels,
            classes,
            cells=levels.cells,
            extra_levels=extra_levels,
            depth=head_depth,
            **widths,
            mask_stride=[min(pair) for pair in strides],
            norm=head_norm,
            prior=prior,
            gate=image_gate is not None,
        )
        super().__init__(
            network,
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
        self.scale_ranges = levels.ranges
        self.center_share = center_share
        self.alpha, self.gamma = alpha, gamma
        self.dice_weight = dice_weight
        self.masks_per_image = masks_per_image
        self.mask_threshold = mask_threshold
        self.largest_component = largest_component
        self.update_threshold = update_threshold
        self.nms_kernel, self.nms_sigma = nms_kernel, nms_sigma
        self.crop_masks = crop_masks

    # --- training --------------------------------------------------------------------------------------------------
    def compute_losses(
        self, raw: torch.Tensor, image_size: tuple[int, ...], targets: Targets
    ) -> dict[str, torch.Tensor]:
        logits, features, maps = self._parts(raw, image_size)
        with torch.no_grad():
            owners = self.assign(image_size, targets)
            learned, _ = balanced_sample(owners, self.masks_per_image, 1.0)
        labels = torch.where(owners >= 0, targets.labels.gather(1, owners.clamp(min=0)), -1)
        classes = torch.arange(self.classes, device=raw.device)[None, :, None]
        wanted = (labels[:, None] == classes).to(raw.dtype)
        terms = sigmoid_focal_loss(
            torch.cat([level.flatten(2) for level in logits], dim=2), wanted, self.gamma, self.alpha
        )
        masks = self._mask_loss(features, maps, torch.where(learned, owners, -1), targets)
        return {
            self.cls_key: terms.sum() / (normaliser((owners >= 0).sum(), least=0.0) + 1),
            self.box_reg_key: self.dice_weight * masks,
        }

    def assign(self, image_size: tuple[int, ...], targets: Targets) -> torch.Tensor:
        """(B, cells of all levels) int64: the row of ``targets`` that each cell answers for, or -1."""
        levels = {
            "grids": self.network.grids(image_size),
            "extent": self.network.extent(image_size),
            "ranges": self.scale_ranges,
            "center_share": self.center_share,
        }
        found = []
        for boxes, valid, masks in zip(targets.boxes, targets.valid, targets.masks or [], strict=True):
            rows = valid.nonzero()[:, 0]
            owners = cell_owners(*mass_centres(masks), boxes[rows], **levels)
            found.append(torch.cat([rows, rows.new_tensor([-1])])[owners])
        return torch.stack(found)

    def _mask_loss(
        self, features: list[torch.Tensor], maps: torch.Tensor, owners: torch.Tensor, targets: Targets
    ) -> torch.Tensor:
        """Mean Dice loss of the cells whose owner (B, cells) is not -1; 0 without any, for all parameters."""
        image, cell = (owners >= 0).nonzero(as_tuple=True)
        kernels = kernels_at(self.network.kernel, features, image, cell)
        counts = (image == torch.arange(len(maps), device=maps.device)[:, None]).sum(dim=1).tolist()
        total = kernels[:0].sum() + maps[:, :0].sum()
        places = targets.valid.cumsum(dim=1)[image, owners[image, cell]] - 1  # masks are those of the valid rows
        parts = zip(kernels.split(counts), places.split(counts), maps, targets.masks or [], strict=True)
        for own, place, mask_features, masks in parts:
            shares = coarse_masks(masks, self.network.mask_stride, mask_features.shape[1:]).flatten(1)
            total = total + squared_dice(own @ mask_features.flatten(1), shares[place]).sum()
        return total / normaliser(torch.tensor(len(image), device=maps.device))

    # --- evaluation ------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def detect(
        self, raw: torch.Tensor, image_size: tuple[int, ...], sizes: Sequence[tuple[int, ...]]
    ) -> list[dict[str, Any]]:
        with torch.autocast(raw.device.type, enabled=False):
            logits, features, maps = self._parts(raw.detach(), image_size)
            return [
                self._detect_one([part[i] for part in logits], [part[i : i + 1] for part in features], maps[i], size)
                for i, size in enumerate(sizes)
            ]

    def _detect_one(
        self,
        logits: Sequence[torch.Tensor],
        features: Sequence[torch.Tensor],
        maps: torch.Tensor,
        size: tuple[int, ...],
    ) -> dict[str, Any]:
        every = torch.cat([peaks(level.sigmoid()).flatten(1) for level in logits], dim=1)
        labels, cell = (every > self.score_threshold).nonzero(as_tuple=True)
        scores = every[labels, cell]
        if len(scores) > self.topk_per_level:
            scores, best = scores.topk(self.topk_per_level)
            labels, cell = labels[best], cell[best]
        kernels = kernels_at(self.network.kernel, features, torch.zeros_like(cell), cell)
        voxels, means, iou = compare_masks(kernels, maps, self.mask_threshold)
        least = least_voxels(self.network.strides, self.network.mask_stride, self.scale_ranges)
        counts = torch.tensor([level[0].numel() for level in logits], device=cell.device)
        solid = (voxels > scores.new_tensor(least).repeat_interleave(counts)[cell]).nonzero()[:, 0]
        labels, kernels, iou = labels[solid], kernels[solid], iou[solid[:, None], solid]
        scores = scores[solid] * means[solid]
        scores = matrix_nms(None, labels, scores, kernel=self.nms_kernel, sigma=self.nms_sigma, iou=iou)
        scores, order = scores.sort(descending=True, stable=True)
        lowest = self.score_threshold / 2 if self.update_threshold is None else self.update_threshold
        kept = order[scores >= lowest][: self.detections_per_image]
        stride, largest = self.network.mask_stride, self.largest_component
        parts = image_masks(kernels[kept], maps, stride, size, self.mask_threshold, largest=largest)
        rows, boxes, masks = boxed_masks(parts, size, maps.device, crop=self.crop_masks)
        return {"boxes": boxes, "labels": labels[kept[rows]], "scores": scores[rows], "masks": masks}

    def _parts(
        self, raw: torch.Tensor, image_size: tuple[int, ...]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        """Class logits (B, classes, \\*grid) and kernel features of each level, and the mask features."""
        parts = list(unpack(raw, self.network.part_shapes(image_size)).values())
        levels = len(self.network.strides)
        return parts[:levels], parts[levels:-1], parts[-1]
