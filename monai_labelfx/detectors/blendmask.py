# SPDX-License-Identifier: Apache-2.0
"""BlendMask (Chen et al. 2020): FCOS, and masks that blend a few maps of the image by what a place attends to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, embedding

from monai_labelfx.detectors._blendmask_network import BlendMaskNetwork
from monai_labelfx.detectors._mask_targets import coarse_masks, mask_targets
from monai_labelfx.detectors._packed import unpack
from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors.base import Detections, normaliser
from monai_labelfx.detectors.fcos import FCOS
from monai_labelfx.networks._any_size import check_counts, per_axis
from monai_labelfx.ops.anchor_sampling import balanced_sample
from monai_labelfx.ops.blend import blend
from monai_labelfx.ops.paste_masks import crop_masks as masks_in_boxes
from monai_labelfx.ops.paste_masks import paste_masks
from monai_labelfx.ops.roi_align import roi_align

_COVERED = 0.5  # of a bin, that counts as inside the true mask
_LEAST = 1e-6  # of a sum that divides
_TOGETHER = 2**24  # numbers of the bases of detections that are blended at once, 64 MB
_ATTENTION = {2: 14, 3: 7}  # a quarter of the bins
_BINS = {2: 56, 3: 28}
_MASKS = {2: 500, 3: 128}


class BlendMask(FCOS):
    """BlendMask in 2-D and 3-D: instance masks for little more than FCOS costs.

    The network finds K *bases* for the whole image, twice as fine as the finest level of the pyramid, and one
    convolution on the box tower of FCOS the *attention* of each place: M bins along each axis for each base. The mask
    of an object is made of the bases inside its box, resampled to R bins, as its attention blends them:
    :py:func:`monai_labelfx.ops.blend.blend`. The attention (K M^D numbers of a place) is only computed at places that
    answer for an object in training, and at those of detections in evaluation.

    Masks learn by binary cross entropy, the mean over R^D bins, of the places that answer for an object, weighted by
    their true centreness and divided by its sum. Attention is that of the place, the box the true one. A semantic head
    on the finest level, in training only, learns the share of each of its cells that the objects of a class cover.

    Bases come from the levels that the backbone has maps of: a convolution each, linear interpolation to the finest
    and sum, three convolutions, upsampling by 2 (along axes where the finest level has a stride), one more, one of 1.

    Losses are those of FCOS, ``mask`` and ``semantic``. Detections have ``masks`` (n, \\*spatial) bool beside boxes,
    labels and scores. The output of the network is packed, see ``detector.network.part_shapes``.

    Args:
        spatial_dims, in_channels, num_classes: as of FCOS.
        bases: number K of them. Default 4 (paper).
        attention_size: M, one number or one for each axis. Default 14 (paper); in 3-D 7, the same share of R.
        base_size: R, one number or one for each axis. Default 56 (paper); in 3-D 28.
        base_channels: of the convolutions before the bases and in the semantic head. Default 128 (authors' settings).
        semantic_weight: of the semantic loss. Default 0.3 (authors' settings); ``None`` leaves it and its head out.
        masks_per_image: places of an image that masks learn from, drawn at random where more answer for an object.
            Default 500; in 3-D 128, which take 0.1 GiB.
        mask_threshold: a voxel is in the mask above this probability. Default 0.5 (paper).
        crop_masks: return ``masks`` as a list of the blocks of voxels that the boxes cover. Default ``False``.
        pyramid_channels, extra_levels, level_scales: as of FCOS. Defaults 256, 2, ``False`` (authors' configuration).
        fcos: all other options of :py:class:`~monai_labelfx.detectors.fcos.FCOS`, with its defaults.

    Raises:
        ValueError: for options out of their range.

    Notes:
        All convolutions of bases and semantic head have group normalisation, since batches are small; the authors
        synchronise batch normalisation. The paper does not say what the semantic head learns. Shares, in place of a
        class for each cell, keep objects smaller than a cell and let objects of several classes overlap.
        Maps are resized by the ratio of their strides, so that voxels of all levels stay where they are for any size.

    Example:
        >>> import torch
        >>> small = {"backbone": {"depth": 18, "features": 8}, "pyramid_channels": 16, "base_channels": 8}
        >>> detector = BlendMask(2, 1, 3, **small)
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 30.0]]), "labels": torch.tensor([2])}
        >>> target["masks"] = torch.zeros(1, 64, 48, dtype=torch.bool)
        >>> target["masks"][0, 8:40, 8:30] = True
        >>> sorted(detector(torch.rand(1, 1, 64, 48), [target]))
        ['box_regression', 'centerness', 'classification', 'mask', 'semantic']
        >>> found = detector.eval()(torch.rand(1, 1, 64, 48))[0]
        >>> found["masks"].shape[1:], found["masks"].dtype
        (torch.Size([64, 48]), torch.bool)
    """

    mask_key = "mask"
    semantic_key = "semantic"
    needs_masks = True
    packed = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        num_classes: int,
        *,
        bases: int = 4,
        attention_size: int | Sequence[int] | None = None,
        base_size: int | Sequence[int] | None = None,
        base_channels: int = 128,
        semantic_weight: float | None = 0.3,
        masks_per_image: int | None = None,
        mask_threshold: float = 0.5,
        crop_masks: bool = False,
        pyramid_channels: int = 256,
        extra_levels: int = 2,
        level_scales: bool = False,
        **fcos: Any,
    ) -> None:
        if spatial_dims not in _BINS:
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        number = _MASKS[spatial_dims] if masks_per_image is None else masks_per_image
        check_counts(bases=bases, base_channels=base_channels, masks_per_image=number)
        if not 0 < mask_threshold < 1:
            raise ValueError(f"mask_threshold must be between 0 and 1, got {mask_threshold}")
        if semantic_weight is not None and not semantic_weight > 0:
            raise ValueError(f"semantic_weight must be above 0, or None for no semantic head, got {semantic_weight}")
        attention = _ATTENTION[spatial_dims] if attention_size is None else attention_size
        bins = per_axis("base_size", _BINS[spatial_dims] if base_size is None else base_size, spatial_dims)
        shape = per_axis("attention_size", attention, spatial_dims)
        super().__init__(
            spatial_dims,
            in_channels,
            num_classes,
            pyramid_channels=pyramid_channels,
            extra_levels=extra_levels,
            level_scales=level_scales,
            **fcos,
        )
        self.network = BlendMaskNetwork(
            self.network,
            spatial_dims,
            pyramid_channels,
            levels=len(self.network.strides) - extra_levels,
            bases=bases,
            attention_size=shape,
            base_channels=base_channels,
            semantic=semantic_weight is not None,
        )
        self.base_size = bins
        self.semantic_weight = semantic_weight
        self.masks_per_image = number
        self.mask_threshold = mask_threshold
        self.crop_masks = crop_masks

    def compute_losses(
        self, raw: torch.Tensor, image_size: tuple[int, ...], targets: Targets
    ) -> dict[str, torch.Tensor]:
        parts = unpack(raw, self.network.part_shapes(image_size))
        places = self.places(image_size, raw.device)
        with torch.no_grad():
            matches = self.assign(places, targets)
            learned, _ = balanced_sample(matches, self.masks_per_image, 1.0)
        losses = self.place_losses(parts["places"], places, matches, targets)
        losses[self.mask_key] = self._mask_loss(parts, torch.cat(places), torch.where(learned, matches, -1), targets)
        if self.semantic_weight is not None:
            if "semantic" not in parts:
                raise ValueError("the semantic loss needs detector.network in training mode too, got evaluation mode")
            logits = parts["semantic"]
            wanted = class_shares(targets, self.classes, self.network.strides[0], logits.shape[2:])
            losses[self.semantic_key] = self.semantic_weight * binary_cross_entropy_with_logits(
                logits, wanted.to(logits.dtype)
            )
        return losses

    def detect(
        self, raw: torch.Tensor, image_size: tuple[int, ...], sizes: Sequence[tuple[int, ...]]
    ) -> list[Detections]:
        parts = unpack(raw, self.network.part_shapes(image_size))
        detections = []
        for number, (found, place) in enumerate(self.detect_places(parts["places"], image_size, sizes)):
            image = {name: part[number : number + 1] for name, part in parts.items()}
            masks: Any = self._masks(image, found["boxes"], place, sizes[number])
            detections.append({**found, "masks": masks})
        return detections

    def _mask_loss(
        self, parts: dict[str, torch.Tensor], points: torch.Tensor, matches: torch.Tensor, targets: Targets
    ) -> torch.Tensor:
        """The loss of the places (B, A) that ``matches`` gives a box."""
        image, place = (matches >= 0).nonzero(as_tuple=True)
        match = matches[image, place]
        central = self.centerness(targets.boxes[image, match], points[place])
        # places of an object share its box, so the bases and the true mask are resampled once for each object
        boxes = targets.boxes[targets.valid]
        owner, own = targets.valid.nonzero(as_tuple=True)
        bases = self._bases_in(parts["bases"], boxes, owner)
        wanted = mask_targets(
            targets.masks or [], boxes, owner, own, self.base_size, aligned=True, threshold=_COVERED
        ).to(bases.dtype)
        row = targets.valid.flatten().cumsum(0)[image * targets.valid.shape[1] + match] - 1
        logits = blend(
            self.network.attention_at(_features(parts), image, place),
            embedding(row, bases.flatten(1)).unflatten(1, bases.shape[1:]),
        )
        terms = binary_cross_entropy_with_logits(logits, wanted[row], reduction="none").flatten(1).mean(dim=1)
        return (terms * central).sum() / normaliser(central.sum(), least=_LEAST)

    def _masks(
        self, parts: dict[str, torch.Tensor], boxes: torch.Tensor, place: torch.Tensor, size: tuple[int, ...]
    ) -> torch.Tensor | list[torch.Tensor]:
        """Masks of the detections of one image."""
        attention = self.network.attention_at(_features(parts), torch.zeros_like(place), place)
        together = max(1, _TOGETHER // (self.network.bases * math.prod(self.base_size)))
        found = [
            blend(some, self._bases_in(parts["bases"], inside, torch.zeros_like(inside[:, 0]).long())).sigmoid()
            for some, inside in zip(attention.split(together), boxes.split(together), strict=True)
        ]
        back = masks_in_boxes if self.crop_masks else paste_masks
        return back(torch.cat(found), boxes, size, threshold=self.mask_threshold)

    def _bases_in(self, bases: torch.Tensor, boxes: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return roi_align(bases, boxes, image, self.base_size, spatial_scale=self.network.base_scale, sampling_ratio=1)


def class_shares(targets: Targets, classes: int, stride: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """(B, classes, \\*shape) float32: how much of each cell of ``stride`` voxels the objects of a class cover.

    Shares of objects add up, to 1 at most.
    """
    found, every = [], torch.arange(classes, device=targets.labels.device)[:, None]
    for masks, labels, valid in zip(targets.masks or [], targets.labels, targets.valid, strict=True):
        members = (labels[valid] == every).float()
        found.append(members @ coarse_masks(masks, stride, shape).flatten(1))
    return torch.stack(found).clamp(max=1).unflatten(2, tuple(shape))


def _features(parts: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [part for name, part in parts.items() if name.startswith("features")]
