# SPDX-License-Identifier: Apache-2.0
"""The contract that every provider of class activation maps keeps: labelled patches in, maps of raw scores out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from monai.data import Dataset, MetaTensor

from monai_labelfx.cams._fit import train
from monai_labelfx.cams._label_loss import label_loss

Output = torch.Tensor | dict[str, torch.Tensor]
Target = torch.Tensor | Mapping[str, torch.Tensor]
Scoring = Literal["competing", "foreground"]


class CAMProvider(torch.nn.Module, ABC):
    r"""Base of what learns classes from labelled patches and then says where in an image they are.

    Called on patches (B, C, \*spatial) a provider returns in training mode what its :py:meth:`loss` needs and in
    evaluation mode the logits (B, K). Train it as any network of MONAI's ``SupervisedTrainer``, with
    ``loss_function=provider.loss``; under ``DistributedDataParallel`` all parameters take part in every step. Then
    :py:meth:`cam` gives maps of raw scores, to be merged over tiles, scales and flips before anything is normalised.

    There are K outputs, of which number 0 is the background. Which scoring they are trained for:

    - ``"competing"``: the background is a class like the others (Li et al. 2022); the highest of the K scores wins.
    - ``"foreground"``: channel 0 is a dummy, as of the methods for natural images. It has no label and no loss, and a
      constant background score takes its place later.

    A new provider defines :py:meth:`training_output`, :py:meth:`training_loss` and, unless its maps are the network's,
    :py:meth:`maps`.

    Args:
        network: classifier with ``features(images)``, the map (B, F, \*map) before the last layer, and ``head``, the
            convolution of 1 that makes class maps of it, such as :py:class:`~monai_labelfx.networks.CAMNetwork`; if it
            has a ``dropout``, it is applied between the two in training.
        scoring: ``"competing"`` (default) or ``"foreground"``.
        positive_weight: weight of labels that are present in the class loss, one number or one per class; above 1 for
            rare classes. Default ``None``, 1.

    Attributes:
        classes: K.
        spatial_dims: number of spatial dimensions.
        out_channels: channels F of the features.

    Raises:
        TypeError: for a network without ``features`` or without a convolution of 1 as ``head``.
        ValueError: for an unknown scoring, one class in foreground scoring, or weights that are not above 0 or not one
            per class.
    """

    network: Any
    positive_weight: torch.Tensor | None

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        scoring: Scoring = "competing",
        positive_weight: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        head: Any = getattr(network, "head", None)
        if not callable(getattr(network, "features", None)) or not _is_pointwise(head):
            raise TypeError(
                "network must have features(images) and a convolution of 1 as head, as CAMNetwork has, "
                f"got {type(network).__name__}."
            )
        if scoring not in ("competing", "foreground"):
            raise ValueError(f"scoring must be 'competing' or 'foreground', got {scoring!r}.")
        if scoring == "foreground" and head.out_channels < 2:
            raise ValueError("foreground scoring needs 2 or more classes, of which the first is the background, got 1.")
        self.network = network
        self.classes: int = head.out_channels
        self.out_channels: int = head.in_channels
        self.spatial_dims: int = head.weight.ndim - 2
        self.scoring = scoring
        self.register_buffer("positive_weight", _weights(positive_weight, self.classes), persistent=False)

    @property
    def first_class(self) -> int:
        """The first class that is trained: 0 in competing scoring, 1 in foreground scoring."""
        return 0 if self.scoring == "competing" else 1

    # --- the call --------------------------------------------------------------------------------------------------
    def forward(self, images: torch.Tensor) -> Output:
        """What :py:meth:`loss` needs in training mode, the logits (B, K) in evaluation mode."""
        images = _plain(images)
        return self.training_output(images) if self.training else self.logits(self.network.features(images))

    def loss(self, output: Output, target: Target) -> torch.Tensor:
        """The loss of a batch, a scalar.

        Args:
            output: what the provider returned for the batch. Of logits (B, K) alone, as evaluation mode gives them, it
                is the class loss: the mean binary cross entropy of the known labels.
            target: (B, K), 1 present, 0 absent, -1 unknown; or a mapping with these as ``labels`` and more, as
                :py:class:`~monai_labelfx.engines.PatchPrepareBatch` makes it. With no known label in the batch the
                class loss is 0, with a gradient of 0.

        Raises:
            ValueError: for labels of another shape.
        """
        labels = target["labels"] if isinstance(target, Mapping) else target
        if isinstance(output, torch.Tensor):
            return self.class_loss(output, labels)
        return self.training_loss(output, labels, target if isinstance(target, Mapping) else {})

    def cam(self, images: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Maps of raw scores (B, K, \\*map) of images (B, C, \\*spatial), at the resolution of the features.

        As in evaluation mode, whatever mode the provider is in. It can be given to an inferer as its network.

        Args:
            images: of any size.
            labels: (B, K), 1 present, 0 absent, -1 unknown: a provider whose maps cost much spares the absent classes.
                They never mask anything; that is the work of :py:class:`~monai_labelfx.transforms.PatchPseudoLabel`.
        """
        with evaluating(self):
            return self.maps(_plain(images), labels)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The features (B, F) of images, the mean over space, as in evaluation mode."""
        with evaluating(self):
            return pooled(self.network.features(_plain(images)))

    # --- what a paper defines --------------------------------------------------------------------------------------
    @abstractmethod
    def training_output(self, images: torch.Tensor) -> Output:
        """What the loss needs, a tensor or a dictionary of tensors."""

    @abstractmethod
    def training_loss(
        self, output: Mapping[str, torch.Tensor], labels: torch.Tensor, target: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of a dictionary of tensors; ``target`` holds what comes beside the labels."""

    def maps(self, images: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """The maps of :py:meth:`cam`: by default those of the network's last layer, ``w . f + b`` in each voxel."""
        return self.network.head(self.network.features(images))

    # --- parts -----------------------------------------------------------------------------------------------------
    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of the features (B, F, \\*map): the mean of the class maps, through the network's dropout."""
        return self.network.head(self.dropped(features.mean(spatial_axes(features), keepdim=True))).flatten(1)

    def dropped(self, features: torch.Tensor) -> torch.Tensor:
        """The features (B, F, \\*map) after the network's dropout, if it has one."""
        return self.network.dropout(features) if hasattr(self.network, "dropout") else features

    def class_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean binary cross entropy of the known labels, without the dummy's."""
        self.check_labels(labels)
        first = self.first_class
        weight = self.positive_weight
        return label_loss(logits[:, first:], labels[:, first:], None if weight is None else weight[first:])

    def check_labels(self, labels: torch.Tensor) -> None:
        """Raise ValueError unless the labels are (B, K)."""
        if labels.ndim != 2 or labels.shape[1] != self.classes:
            raise ValueError(
                f"labels must have the shape (B, {self.classes}), one of 1 present, 0 absent or -1 unknown for each "
                f"class, got {tuple(labels.shape)}."
            )

    # --- a short training ------------------------------------------------------------------------------------------
    def fit(
        self,
        dataset: Dataset,
        *,
        max_epochs: int = 20,
        batch_size: int = 20,
        learning_rate: float = 0.01,
        optimizer: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer] | None = None,
        device: str | torch.device | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> list[float]:
        """Train on labelled patches with MONAI's ``SupervisedTrainer``, for notebooks; bundles have their own trainer.

        Args:
            dataset: items with ``image`` (C, \\*spatial), all of one size, and ``patch_label`` (K,); SC-CAM takes
                ``sub_label`` (K,) beside them.
            max_epochs: passes over the dataset. Default 20, as Li et al. 2022.
            batch_size: patches of a step. Default 20, as there.
            learning_rate: of the first step; it falls as ``(1 - step / steps) ** 0.9``. Default 0.01, as there.
            optimizer: makes the optimiser of the parameters to train, and replaces ``learning_rate``. Default: SGD with
                momentum 0.9 and weight decay 5e-4.
            device: where to train. Default: where the parameters are.
            num_workers: processes that make batches.
            seed: of the order of the patches.

        Returns:
            The mean loss of each epoch.
        """
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if optimizer is None:
            made: Any = torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=5e-4)
        else:
            made = optimizer(parameters)
        return train(
            self,
            self.loss,
            dataset,
            max_epochs=max_epochs,
            batch_size=batch_size,
            optimizer=made,
            device=device,
            num_workers=num_workers,
            seed=seed,
        )


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards each part is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def pooled(features: torch.Tensor) -> torch.Tensor:
    """The mean (B, F) of (B, F, \\*map) over space."""
    return features.flatten(2).mean(2)


def spatial_axes(maps: torch.Tensor) -> tuple[int, ...]:
    """The axes of (B, C, \\*map) that follow the channels."""
    return tuple(range(2, maps.ndim))


def _plain(images: torch.Tensor) -> torch.Tensor:
    """Without metadata, which cost time in each operation and say nothing of maps."""
    return images.as_tensor() if isinstance(images, MetaTensor) else images


def _is_pointwise(head: Any) -> bool:
    return isinstance(head, torch.nn.modules.conv._ConvNd) and all(k == 1 for k in head.kernel_size)


def _weights(values: float | Sequence[float] | None, classes: int) -> torch.Tensor | None:
    if values is None:
        return None
    weights = [float(values)] * classes if isinstance(values, int | float) else [float(v) for v in values]
    if len(weights) != classes or any(not 0 < w < float("inf") for w in weights):
        raise ValueError(
            f"positive_weight must be one number above 0, or {classes} of them, one per class, got {values!r}."
        )
    return torch.tensor(weights)
