# SPDX-License-Identifier: Apache-2.0
"""SEAM: class maps that agree between an image and the same image made smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from monai_labelfx.cams._pixel_correlation import PixelCorrelation
from monai_labelfx.cams.base import CAMProvider, Scoring, pooled, spatial_axes
from monai_labelfx.ops._resize import resize_linear

_EPS = 1e-5  # keeps empty maps finite when they are divided by their maximum


class SEAM(CAMProvider):
    r"""Self-supervised equivariant attention: two sizes of an image, one network, maps that must agree.

    The network sees the image (view 1) and the image made smaller (view 2). Of both come class maps M, and of these
    the refined maps R of the pixel correlation module, in which each voxel takes the mean score of the voxels that look
    like it. With A and R' the maps M and R after ReLU, brought to 0 to 1 in each map, at the size of view 2, and zero
    for classes that the patch is not known to hold,

    .. math::
        L = \tfrac12 (L_{cls,1} + L_{cls,2}) + \overline{|A_1 - A_2|}
            + \overline{|T(A_2) - R'_1|}^{\,top} + \overline{|T(A_1) - R'_2|}^{\,top}

    Equivariance (ER) is the second term, the mean over all voxels and classes. The last two, equivariant cross
    regularisation (ECR), teach the module with the maps of the other view, in which T keeps the strongest class of each
    voxel alone and lets no gradient through; their mean is over the highest 20 % of the values of a patch. The class
    loss is the mean binary cross entropy of the known labels, of the mean of M.

    In foreground scoring, as in [1]_, channel 0 of T is the background, 1 minus the highest foreground value, and takes
    part in ECR but not in ER. In competing scoring all K classes are trained and compared alike.

    :py:meth:`cam` returns refined maps in the scale of the class maps, not divided by anything, so that tiles and
    scales can be merged: in competing scoring the module's mean of the raw scores M; in foreground scoring R times the
    maximum of each class map, and in channel 0 the refined background, from 0 to 1.

    Args:
        network: classifier with ``features`` and a ``head``, and ``in_channels``, the channels of an image. Of a
            :py:class:`~monai_labelfx.networks.CAMNetwork` (``dropout=0.5`` for the rate of [1]_) that joins several
            stages, the module looks at all but the last, as in [1]_; of another network at all features.
        scale: size of view 2 relative to view 1. Default 0.3, the released code (448 to 134 pixels).
        hardest: share of the values that ECR averages. Default 0.2 [1]_.
        min_pooling: weight of the mean of the lowest quarter of the refined maps, highest foreground class of each
            voxel, of both views: background everywhere is made a little stronger. For foreground scoring only. Default
            0; the released code has 1, with the remark that it only moves the best background score.
        pixel_width: channels of the module. Default 192, the released code.
        pixel_mebibytes: most memory for likenesses of voxels at a time. Default 256.
        scoring: ``"competing"`` (default) or ``"foreground"``.
        positive_weight: weight of labels that are present, one number or one per class. Default ``None``, 1.

    Raises:
        TypeError, ValueError: as :py:class:`CAMProvider`; TypeError for a network without ``in_channels``; ValueError
            for a scale or a share out of 0 to 1, or a weight of min pooling below 0 or in competing scoring.

    Notes:
        The maps are compared at the size of the maps of view 2, where the released code first enlarges them to its
        image: the same terms on 64 times fewer voxels. Images and maps are made smaller with a triangle as wide as the
        step, so that no pixel between two places is lost. Training needs the time of 1 + scale ** D forward passes.

    Example:
        >>> import torch
        >>> from monai_labelfx.networks.cam_network import CAMNetwork
        >>> from monai_labelfx.networks.resnet_backbone import ResNetBackbone
        >>> provider = SEAM(CAMNetwork(ResNetBackbone(3, 1, depth=10, features=8), classes=3), pixel_width=16)
        >>> blocks = torch.rand(2, 1, 32, 24, 24)
        >>> loss = provider.loss(provider(blocks), torch.tensor([[1, 0, 1], [1, -1, 0]]))
        >>> provider.cam(blocks).shape
        torch.Size([2, 3, 4, 3, 3])

    References:
        .. [1] Wang et al., "Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic
            Segmentation", CVPR 2020.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        scale: float = 0.3,
        hardest: float = 0.2,
        min_pooling: float = 0.0,
        pixel_width: int = 192,
        pixel_mebibytes: float = 256.0,
        scoring: Scoring = "competing",
        positive_weight: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(network, scoring=scoring, positive_weight=positive_weight)
        image_channels: Any = getattr(network, "in_channels", None)
        if not isinstance(image_channels, int):
            raise TypeError(f"SEAM needs a network with in_channels, as CAMNetwork has, got {type(network).__name__}.")
        if not 0 < scale < 1:
            raise ValueError(f"scale must be between 0 and 1, got {scale}.")
        if not 0 < hardest <= 1:
            raise ValueError(f"hardest must be a share above 0 and at most 1, got {hardest}.")
        if not 0 <= min_pooling < float("inf"):
            raise ValueError(f"min_pooling must be 0 or more, got {min_pooling}.")
        if min_pooling and scoring == "competing":
            raise ValueError("min_pooling lowers all foreground classes, so it needs scoring='foreground'.")
        self.scale = scale
        self.hardest = hardest
        self.min_pooling = min_pooling
        self.pixel_channels = _earlier_channels(network, self.out_channels)
        self.correlation = PixelCorrelation(
            self.spatial_dims, self.pixel_channels, image_channels, width=pixel_width, mebibytes=pixel_mebibytes
        )

    # --- forward ---------------------------------------------------------------------------------------------------
    def training_output(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Class maps and refined maps, (B, K, \\*map), of both views: ``maps``, ``refined``, ``small_maps`` ...."""
        small = self.smaller(images)
        maps, refined = self._view(images)
        small_maps, small_refined = self._view(small)
        return {"maps": maps, "refined": refined, "small_maps": small_maps, "small_refined": small_refined}

    def smaller(self, images: torch.Tensor) -> torch.Tensor:
        """View 2 of the images: each axis ``scale`` times as long, rounded."""
        with torch.autocast(images.device.type, enabled=False):
            return resize_linear(images, [max(1, round(self.scale * n)) for n in images.shape[2:]])

    def _view(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.network.features(images)
        maps = self.network.head(self.dropped(features))
        return maps, self._refine(self.suppressed(brought_to_one(maps.detach())), features, images)

    def _refine(self, scores: torch.Tensor, features: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, enabled=False):
            image = resize_linear(images, features.shape[2:])
        return self.correlation(scores, features[:, : self.pixel_channels], image)

    def maps(self, images: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Refined maps in the scale of the class maps."""
        features = self.network.features(images)
        maps = self.network.head(features)
        if self.scoring == "competing":
            return self._refine(maps, features, images).to(maps)
        refined = self._refine(self.suppressed(brought_to_one(maps)), features, images)
        peaks = maps[:, 1:].amax(spatial_axes(maps), keepdim=True).relu()
        return torch.cat([refined[:, :1], refined[:, 1:] * peaks], dim=1).to(maps)

    def suppressed(self, maps: torch.Tensor) -> torch.Tensor:
        """T: of maps from 0 to 1 (B, K, \\*map) the highest class of each voxel, the others 0.

        In foreground scoring channel 0 becomes 1 minus the highest foreground value.
        """
        trained = maps[:, self.first_class :]
        highest = trained.amax(1, keepdim=True)
        kept = torch.where(trained < highest, 0, trained)
        return kept if self.scoring == "competing" else torch.cat([1 - highest, kept], dim=1)

    # --- loss ------------------------------------------------------------------------------------------------------
    def training_loss(
        self, output: Mapping[str, torch.Tensor], labels: torch.Tensor, target: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Class loss, equivariance, cross regularisation and, if asked for, min pooling."""
        with torch.autocast(output["maps"].device.type, enabled=False):
            return self._training_loss(
                {k: v if v.dtype == torch.float64 else v.float() for k, v in output.items()}, labels
            )

    def _training_loss(self, output: Mapping[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        large, small = output["maps"], output["small_maps"]
        loss = (self.class_loss(pooled(large), labels) + self.class_loss(pooled(small), labels)) / 2
        held = (labels > 0).to(large)
        if self.first_class:
            held = torch.cat([torch.ones_like(held[:, :1]), held[:, 1:]], dim=1)  # there is always background
        held = held.reshape(*held.shape, *(1,) * self.spatial_dims)
        size = small.shape[2:]
        first, second = held * resize_linear(brought_to_one(large), size), held * brought_to_one(small)
        refined = held * resize_linear(brought_to_one(output["refined"]), size)
        small_refined = held * brought_to_one(output["small_refined"])
        loss = loss + (first - second)[:, self.first_class :].abs().mean()
        loss = loss + self._crossed(second, refined) + self._crossed(first, small_refined)
        if self.min_pooling:
            lowest = _lowest_quarter(held * output["refined"]) + _lowest_quarter(held * output["small_refined"])
            loss = loss + self.min_pooling * lowest / 2
        return loss

    def _crossed(self, maps: torch.Tensor, refined: torch.Tensor) -> torch.Tensor:
        """Mean of the highest differences of T(maps) and refined maps of the other view, of each patch."""
        difference = (self.suppressed(maps.detach()) - refined).abs().flatten(1)
        return difference.topk(max(1, int(self.hardest * difference.shape[1])), dim=1).values.mean()


def brought_to_one(maps: torch.Tensor) -> torch.Tensor:
    """Maps (B, K, \\*map) after ReLU, each from 0 at its minimum to 1 at its maximum; a map of one value becomes 0."""
    positive = maps.relu()
    axes = spatial_axes(maps)
    low, high = positive.amin(axes, keepdim=True), positive.amax(axes, keepdim=True)
    return (positive - low) / (high - low + _EPS)


def _lowest_quarter(refined: torch.Tensor) -> torch.Tensor:
    """Mean of the lowest quarter of the voxels of each patch, of the highest foreground class."""
    highest = refined[:, 1:].amax(1).flatten(1)
    return highest.topk(max(1, highest.shape[1] // 4), dim=1, largest=False).values.mean()


def _earlier_channels(network: torch.nn.Module, channels: int) -> int:
    """How many of the features come from stages before the last one that is joined; all if there is no telling."""
    stages = getattr(getattr(network, "backbone", None), "out_channels", None)
    last = stages[-1] if stages and getattr(network, "fused", 1) > 1 else 0
    return channels - last if last < channels else channels
