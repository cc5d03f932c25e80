# SPDX-License-Identifier: Apache-2.0
"""Class activation maps of a classifier of patches, as they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from monai_labelfx.cams.base import CAMProvider


class PlainCAM(CAMProvider):
    r"""Class activation maps (Zhou et al. 2016) of a classifier trained with the labels of patches.

    The map of class k is ``w_k . f + b_k`` in every voxel of the features f, and the logit its mean over space, so the
    maps cost nothing beside the forward pass. With a :py:class:`~monai_labelfx.networks.CAMNetwork` that joins the
    last three stages it is the classifier of Li et al. 2022, section 2.1. The loss is the mean binary cross entropy of
    the known labels.

    Args:
        network: classifier with ``features`` and a ``head``, such as :py:class:`~monai_labelfx.networks.CAMNetwork`.
        scoring: ``"competing"`` (default, Li et al.): the background is trained; ``"foreground"``: it is a dummy.
        positive_weight: weight of labels that are present, one number or one per class. Default ``None``, 1.

    Raises:
        TypeError, ValueError: as :py:class:`CAMProvider`.

    Example:
        >>> import torch
        >>> from monai_labelfx.networks.cam_network import CAMNetwork
        >>> from monai_labelfx.networks.resnet_backbone import ResNetBackbone
        >>> provider = PlainCAM(CAMNetwork(ResNetBackbone(2, 3, depth=10, features=8), classes=2))
        >>> patches = torch.rand(4, 3, 48, 40)
        >>> loss = provider.loss(provider(patches), torch.tensor([[1, 0], [1, 1], [0, 1], [1, -1]]))
        >>> provider.cam(patches).shape
        torch.Size([4, 2, 6, 5])
    """

    def training_output(self, images: torch.Tensor) -> torch.Tensor:
        """The logits (B, K)."""
        return self.logits(self.network.features(images))

    def training_loss(
        self, output: Mapping[str, torch.Tensor], labels: torch.Tensor, target: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The class loss of ``logits``."""
        return self.class_loss(output["logits"], labels)
