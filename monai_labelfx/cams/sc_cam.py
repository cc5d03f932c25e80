# SPDX-License-Identifier: Apache-2.0
"""SC-CAM: a classifier that also tells apart the sub-categories of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from monai_labelfx.cams._label_loss import label_loss
from monai_labelfx.cams.base import CAMProvider, Scoring, pooled


class SCCAM(CAMProvider):
    r"""Sub-category exploration: the features must tell the kinds of each class apart, not only the classes.

    A class is known by its most telling part, and so its map covers no more. The features of the patches that hold the
    class are split into clusters, by k-means (:py:class:`~monai_labelfx.engines.SubCategories`); a second layer on the
    same features learns the cluster of each patch, and with it what the classifier could do without:

    .. math::
        L = L_{parent} + 5 L_{sub}

    where both are the mean binary cross entropy of the known labels. The maps are those of the parent classes.

    The target may be the labels (B, K) alone, in the first round, in which there are no clusters yet: then the second
    layer rests, with a gradient of 0. Or it is the mapping of ``labels`` (B, K) and ``sub_labels`` (B, K), the number
    of the cluster, from which the sub-labels (B, K, clusters) follow: of a present class, its cluster is present and
    the others are absent, and all are unknown if the cluster is -1; of an absent class all are absent; of an unknown
    one all are unknown.

    Args:
        network: classifier with ``features`` and a ``head``, such as :py:class:`~monai_labelfx.networks.CAMNetwork`
            (``dropout=0.5`` for the rate of [1]_, one draw for both layers).
        clusters: sub-categories of each class. Default 10 [1]_. A class may use fewer.
        sub_weight: weight of the loss of sub-categories. Default 5 [1]_.
        scoring: ``"competing"`` (default): the background has sub-categories too; ``"foreground"``: it is a dummy.
        positive_weight: weight of parent labels that are present, one number or one per class. Default ``None``, 1.

    Raises:
        TypeError, ValueError: as :py:class:`CAMProvider`; ValueError for fewer than 1 cluster, a negative weight, or
            in :py:meth:`loss` sub-labels of another shape.

    Notes:
        [1]_ trains three rounds, each anew from the initial weights, on clusters of the features of the round before.
        A round is a stage of the bundle. The authors also score maps of the sub-categories, and do not use them.

    Example:
        >>> import torch
        >>> from monai_labelfx.networks.cam_network import CAMNetwork
        >>> from monai_labelfx.networks.resnet_backbone import ResNetBackbone
        >>> provider = SCCAM(CAMNetwork(ResNetBackbone(2, 3, depth=10, features=8), classes=2), clusters=4)
        >>> output = provider(torch.rand(2, 3, 32, 32))
        >>> output["logits"].shape, output["sub_logits"].shape
        (torch.Size([2, 2]), torch.Size([2, 2, 4]))
        >>> target = {"labels": torch.tensor([[1, 1], [1, 0]]), "sub_labels": torch.tensor([[0, 3], [2, -1]])}
        >>> loss = provider.loss(output, target)

    References:
        .. [1] Chang et al., "Weakly-Supervised Semantic Segmentation via Sub-category Exploration", CVPR 2020.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        clusters: int = 10,
        sub_weight: float = 5.0,
        scoring: Scoring = "competing",
        positive_weight: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(network, scoring=scoring, positive_weight=positive_weight)
        if clusters < 1:
            raise ValueError(f"clusters must be 1 or more, got {clusters}.")
        if not 0 <= sub_weight < float("inf"):
            raise ValueError(f"sub_weight must be 0 or more, got {sub_weight}.")
        self.clusters = clusters
        self.sub_weight = sub_weight
        self.sub_head = torch.nn.Linear(self.out_channels, self.classes * clusters)

    def training_output(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The logits (B, K) of the classes and those (B, K, clusters) of their sub-categories, as ``sub_logits``."""
        features = pooled(self.network.features(images))
        features = self.dropped(features.reshape(*features.shape, *(1,) * self.spatial_dims))
        sub = self.sub_head(features.flatten(1)).unflatten(1, (self.classes, self.clusters))
        return {"logits": self.network.head(features).flatten(1), "sub_logits": sub}

    def training_loss(
        self, output: Mapping[str, torch.Tensor], labels: torch.Tensor, target: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of the classes and, where there are sub-labels, that of the sub-categories."""
        parent = self.class_loss(output["logits"], labels)
        number = target.get("sub_labels")
        if number is None:
            number = torch.full_like(labels, -1)
            labels = number  # all unknown: the layer keeps a gradient, of 0, which DistributedDataParallel asks for
        first = self.first_class
        sub = label_loss(output["sub_logits"][:, first:], self.sub_targets(labels, number)[:, first:])
        return parent + self.sub_weight * sub

    def sub_targets(self, labels: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """Labels (B, K, clusters) of the sub-categories, of labels and cluster numbers (B, K)."""
        self.check_labels(labels)
        if number.shape != labels.shape:
            raise ValueError(
                f"sub_labels must have the shape of the labels, {tuple(labels.shape)}, got {tuple(number.shape)}."
            )
        labels, number = labels.long(), number.long()
        if bool((number >= self.clusters).any()):
            raise ValueError(
                f"sub_labels must be numbers of {self.clusters} clusters, 0 to {self.clusters - 1} or -1, got "
                f"{int(number.max())}; give the provider the number of clusters that the patches were split into."
            )
        own = (number[..., None] == torch.arange(self.clusters, device=number.device)).long()
        known = torch.where(number[..., None] < 0, -1, own)
        return torch.where(labels[..., None] > 0, known, labels[..., None].expand_as(own))
