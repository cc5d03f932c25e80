# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN (He et al. 2017): Faster R-CNN with a third head, that finds the mask of an object in its box."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from monai_labelfx.detectors._mask_head import MaskHead, of_classes
from monai_labelfx.detectors._mask_targets import mask_targets
from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors.base import Detections, normaliser
from monai_labelfx.detectors.faster_rcnn import FasterRCNN, bins_per_axis
from monai_labelfx.ops.paste_masks import crop_masks, paste_masks

_POOL_SIZE = {2: 14, 3: 8}  # 14 along three axes are as many numbers as 52 along two
_TOGETHER = 2**25  # numbers of a layer of the mask head at a time in evaluation, 128 MB


class MaskRCNN(FasterRCNN):
    """Mask R-CNN in 2-D and 3-D: boxes of Faster R-CNN, and in each a mask of its class.

    The proposals that stand for an object are also pooled into more bins, from the same pyramid. The mask head makes of
    these twice as many bins along each axis, a mask for each class, of which only that of the true class learns: by
    binary cross entropy, the mean over bins and proposals, from the true mask resampled to the same bins by RoIAlign.
    So classes do not compete. In evaluation masks are found in the final boxes, for the class that was detected, and
    interpolated at the voxels of the image.

    The losses of :py:class:`FasterRCNN` are joined by ``"mask"``; detections by ``masks``, (n, \\*size of the image)
    bool. ``torchvision_settings`` holds the options of torchvision's Mask R-CNN, for ``MaskRCNN(..., **settings)``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the images.
        num_classes: without the background.
        mask_pool: bins of RoIAlign before the mask head along each axis, one number or one for each; masks have twice
            as many. Default 14 (paper), in 3-D 8.
        mask_channels: of the mask head. Default 256 (paper).
        mask_depth: convolutions of the mask head before the one that doubles the bins. Default 4 (paper).
        mask_target_threshold: the share of a bin that its object covers, from which on it is learned as 1, below as 0.
            Default 0.5 (mmdetection); ``None`` learns the share itself (torchvision).
        mask_threshold: probability above which a voxel belongs to a mask. Default 0.5 (paper).
        crop_masks: give masks as a list of n blocks, block k the voxels ``floor(low)`` to ``ceil(high)`` of box k, cut
            at the image, instead of one tensor of the size of the image for each. Default ``False``.
        settings: of :py:class:`FasterRCNN`; ``pool_sampling`` and ``pool_aligned`` are for both heads.

    Raises:
        ValueError: for options out of their range, and for targets without masks, or with masks of another size than
            their image.

    Notes:
        True masks are resampled with as many samples of a bin as it has voxels, whatever ``pool_sampling`` is, as in
        torchvision and mmdetection. See :py:func:`monai_labelfx.ops.paste_masks.paste_masks` for how masks come back to
        the image: torchvision rounds boxes to whole pixels there.

    Example:
        >>> import torch
        >>> small = {"backbone": {"depth": 18, "features": 8}, "pyramid_channels": 16, "head_channels": 32}
        >>> detector = MaskRCNN(2, 1, 3, mask_channels=8, score_threshold=0.0, detections_per_image=5, **small)
        >>> images = torch.rand(1, 1, 64, 48)
        >>> mask = torch.zeros(1, 64, 48, dtype=torch.bool)
        >>> mask[0, 8:40, 8:30] = True
        >>> one = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 30.0]]), "labels": torch.tensor([2]), "masks": mask}
        >>> sorted(detector(images, [one]))
        ['box_regression', 'classification', 'mask', 'rpn_box_regression', 'rpn_classification']
        >>> detector.eval()(images)[0]["masks"].shape
        torch.Size([5, 64, 48])
    """

    needs_masks = True
    mask_key = "mask"
    torchvision_settings: Mapping[str, Any] = {**FasterRCNN.torchvision_settings, "mask_target_threshold": None}

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        num_classes: int,
        *,
        mask_pool: int | Sequence[int] | None = None,
        mask_channels: int = 256,
        mask_depth: int = 4,
        mask_target_threshold: float | None = 0.5,
        mask_threshold: float = 0.5,
        crop_masks: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(spatial_dims, in_channels, num_classes, **settings)
        bins = bins_per_axis("mask_pool", _POOL_SIZE[spatial_dims] if mask_pool is None else mask_pool, spatial_dims)
        for name, number, least in (("mask_channels", mask_channels, 1), ("mask_depth", mask_depth, 0)):
            if number < least:
                raise ValueError(f"{name} must be {least} or more, got {number}")
        for name, share in (("mask_target_threshold", mask_target_threshold), ("mask_threshold", mask_threshold)):
            if share is not None and not 0 < share < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {share}")
        self.network.mask_head = MaskHead(spatial_dims, self.network.channels, mask_channels, mask_depth, self.classes)
        self.mask_pooling = self.pooling_to(bins, self.pooling.sampling_ratio, self.pooling.aligned)
        widest = max(mask_channels, self.classes + 1) * math.prod(2 * n for n in bins)
        self.masks_together = max(1, _TOGETHER // widest)
        self.mask_target_threshold = mask_target_threshold
        self.mask_threshold = mask_threshold
        self.crop_masks = crop_masks

    def roi_losses(
        self,
        maps: list[torch.Tensor],
        rois: torch.Tensor,
        image: torch.Tensor,
        matches: torch.Tensor,
        targets: Targets,
    ) -> dict[str, torch.Tensor]:
        losses = super().roi_losses(maps, rois, image, matches, targets)
        objects = (matches >= 0).nonzero()[:, 0]
        return losses | {self.mask_key: self._mask_loss(maps, rois[objects], image[objects], matches[objects], targets)}

    def detect_in(
        self, maps: list[torch.Tensor], proposals: list[torch.Tensor], sizes: Sequence[tuple[int, ...]]
    ) -> list[Detections]:
        found = super().detect_in(maps, proposals, sizes)
        place = crop_masks if self.crop_masks else paste_masks
        for number, (one, size) in enumerate(zip(found, sizes, strict=True)):
            image = torch.full_like(one["labels"], number)
            probabilities = self.mask_probabilities(maps, one["boxes"], image, one["labels"])
            one["masks"] = place(probabilities, one["boxes"], size, threshold=self.mask_threshold)  # type: ignore[assignment]
        return found

    def mask_probabilities(
        self, maps: list[torch.Tensor], boxes: torch.Tensor, image: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Masks of boxes in bins.

        Args:
            maps: (B, C, \\*spatial) of the levels of the pyramid.
            boxes: (R, 2 \\* D) in voxels.
            image: (R,) of each.
            labels: (R,) the class of each.

        Returns:
            (R, \\*twice the bins of ``mask_pool``), 0 to 1.
        """
        parts = zip(*(part.split(self.masks_together) for part in (boxes, image, labels)), strict=True)
        found = [
            of_classes(self.network.mask_head(self.mask_pooling(maps, part, owner)), label)
            for part, owner, label in parts
        ]
        return torch.cat(found).sigmoid()

    def _mask_loss(
        self,
        maps: list[torch.Tensor],
        rois: torch.Tensor,
        image: torch.Tensor,
        matches: torch.Tensor,
        targets: Targets,
    ) -> torch.Tensor:
        """Mean over the proposals ``rois`` (P, 2 D) that stand for objects; 0 without any, for all parameters."""
        found = self.network.mask_head(self.mask_pooling(maps, rois, image))
        logits = of_classes(found, targets.labels[image, matches])
        wanted = mask_targets(
            targets.masks or [],
            rois,
            image,
            matches,
            logits.shape[1:],
            aligned=self.pooling.aligned,
            threshold=self.mask_target_threshold,
        )
        terms = binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return terms.flatten(1).mean(dim=1).sum() / normaliser(matches.new_tensor(len(matches)))
