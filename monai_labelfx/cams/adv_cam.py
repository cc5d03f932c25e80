# SPDX-License-Identifier: Apache-2.0
"""Adv-CAM: maps of an image that is changed, step by step, towards a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from monai_labelfx.cams.base import CAMProvider, Output, Target, pooled
from monai_labelfx.cams.plain_cam import PlainCAM


class AdvCAM(CAMProvider):
    r"""Anti-adversarial climbing: an image pushed up the score of a class shows more of that class.

    For inference, with any trained provider or classifier. From the image :math:`x_0` it climbs, for each class c in
    turn, T times

    .. math::
        x_{t+1} = \mathrm{clip}\left( x_t + \xi\, \frac{g_t}{\max |g_t|} \right), \quad
        g_t = \nabla_x \left[ y_c - \sum_{k \ne c} y_k - \lambda\, \overline{m_t\, |A_t - A_0|} \right]

    clipped to the range of the image's own intensities. :math:`A_t` is the map of class c on :math:`x_t`, after ReLU
    in the last term, and :math:`m_t` is 1 where it exceeds half of its maximum: what is found already shall not grow,
    so that the rest of the object is. The result is the mean of the T + 1 maps, the sum of [1]_ in the scale of one
    map; with T = 0 it is the map itself.

    Maps are those of the network's last layer, bias included: for a classifier that takes the mean of such maps
    Grad-CAM weighs the features with :math:`w_c / N`, N voxels, and is the same map but for the bias and the factor,
    which is why the last term is a mean where [1]_ has a sum. No gradient with respect to weights is needed.

    In competing scoring the maps are signed, and all K classes are climbed. In foreground scoring they are averaged
    after ReLU, as in [1]_, the background takes no part in the objective, and channel 0 stays 0. A class that is absent
    by ``labels`` is not climbed: its map is the one of the image.

    Gradients and mode of the network stay as they are, whether gradients are enabled or not. The result has none.
    Trained, called and saved like the provider it wraps: a stage needs no other configuration than the provider.

    Cost: one forward pass, and for each class climbed T + 1 forward and T backward passes with the memory of a training
    step, with the defaults and two classes 111 passes in all. Fewer ``steps``, or ``labels``, make it less.

    Args:
        network: a :py:class:`CAMProvider`, whose network is climbed; or a network, of which it makes a
            :py:class:`~monai_labelfx.cams.PlainCAM`.
        steps: how often each class is climbed, T. Default 27 [1]_.
        step_size: :math:`\xi`, the most that a voxel changes in a step, in the units of the image. Default 0.08 [1]_,
            for intensities with a standard deviation near 1.
        mask_threshold: share of the maximum of the map from which on a voxel is found. Default 0.5 [1]_.
        regularization: :math:`\lambda`. Default 7 [1]_.

    Raises:
        TypeError, ValueError: as :py:class:`~monai_labelfx.cams.PlainCAM`; ValueError for a number out of its range.

    Notes:
        The released code climbs an image and its mirror image together and repeats all for four sizes; here flips and
        scales are the inferer's. It sums T maps, before each step, and takes the mean of the maps after ReLU for the
        scores; [1]_ takes all from 0 to T and has the classifier's scores, and so has this.

    Example:
        >>> import torch
        >>> from monai_labelfx.networks.cam_network import CAMNetwork
        >>> from monai_labelfx.networks.resnet_backbone import ResNetBackbone
        >>> provider = AdvCAM(CAMNetwork(ResNetBackbone(2, 3, depth=10, features=8), classes=2), steps=2)
        >>> with torch.no_grad():
        ...     maps = provider.cam(torch.randn(1, 3, 32, 32))
        >>> maps.shape, maps.requires_grad
        (torch.Size([1, 2, 4, 4]), False)

    References:
        .. [1] Lee et al., "Anti-Adversarially Manipulated Attributions for Weakly and Semi-Supervised Semantic
            Segmentation", CVPR 2021.
    """

    def __init__(
        self,
        network: CAMProvider | torch.nn.Module,
        *,
        steps: int = 27,
        step_size: float = 0.08,
        mask_threshold: float = 0.5,
        regularization: float = 7.0,
    ) -> None:
        wrapped = network if isinstance(network, CAMProvider) else PlainCAM(network)
        super().__init__(wrapped.network, scoring=wrapped.scoring)
        del self.network  # it belongs to the provider, and would be twice in checkpoints
        self.provider = wrapped
        self.register_load_state_dict_pre_hook(_name_provider)
        if steps < 0:
            raise ValueError(f"steps must be 0 or more, got {steps}.")
        if not 0 < step_size < float("inf"):
            raise ValueError(f"step_size must be above 0, got {step_size}.")
        if not 0 <= mask_threshold <= 1:
            raise ValueError(f"mask_threshold must be a share from 0 to 1, got {mask_threshold}.")
        if not 0 <= regularization < float("inf"):
            raise ValueError(f"regularization must be 0 or more, got {regularization}.")
        self.steps = steps
        self.step_size = step_size
        self.mask_threshold = mask_threshold
        self.regularization = regularization

    @property
    def network(self) -> Any:
        """The network of the provider."""
        return self.provider.network

    # --- the provider's ----------------------------------------------------------------------------------------------
    def forward(self, images: torch.Tensor) -> Output:
        """What the provider returns."""
        return self.provider(images)

    def training_output(self, images: torch.Tensor) -> Output:
        """What the provider needs for its loss."""
        return self.provider.training_output(images)

    def loss(self, output: Output, target: Target) -> torch.Tensor:
        """The loss of the provider."""
        return self.provider.loss(output, target)

    def training_loss(
        self, output: Mapping[str, torch.Tensor], labels: torch.Tensor, target: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of the provider."""
        return self.provider.training_loss(output, labels, target)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """That of the provider, so that either loads the checkpoints of the other."""
        return self.provider.state_dict(*args, **kwargs)

    # --- climbing ----------------------------------------------------------------------------------------------------
    def maps(self, images: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Means of the maps of all steps, class by class."""
        if labels is not None:
            self.check_labels(labels)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            # a copy, since what inference mode made cannot have a gradient
            start = images.detach().to(self.network.head.weight.dtype, copy=True)
            with torch.no_grad():
                first = self._shown(self.network.head(self.network.features(start)))
            mean = torch.cat([torch.zeros_like(first[:, : self.first_class]), first[:, self.first_class :]], dim=1)
            for number in range(self.first_class, self.classes):
                climbed = None if labels is None else (labels[:, number] != 0).nonzero()[:, 0].to(start.device)
                rows = slice(None) if climbed is None else climbed
                if self.steps and len(first[rows]):
                    mean[rows, number] = self._climb(start[rows], first[rows, number], number)
        return mean

    def _shown(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps as they are averaged: after ReLU in foreground scoring."""
        return maps.relu() if self.scoring == "foreground" else maps

    def _climb(self, images: torch.Tensor, first: torch.Tensor, number: int) -> torch.Tensor:
        """The mean (B, \\*map) of the maps of one class on images (B, C, \\*spatial), which have the map ``first``."""
        axes = tuple(range(1, images.ndim))
        low, high = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
        network, total, view = self.network, torch.zeros_like(first), images
        for _ in range(self.steps):
            view = view.detach().requires_grad_()
            maps = network.head(network.features(view))
            total = total + self._shown(maps.detach()[:, number])
            (gradient,) = torch.autograd.grad(self._objective(maps, first.relu(), number).sum(), view)
            peak = gradient.abs().amax(axes, keepdim=True)
            step = self.step_size * gradient / torch.where(peak > 0, peak, 1)
            view = torch.minimum(torch.maximum(view.detach() + step, low), high)
        with torch.no_grad():
            return (total + self._shown(network.head(network.features(view))[:, number])) / (self.steps + 1)

    def _objective(self, maps: torch.Tensor, first: torch.Tensor, number: int) -> torch.Tensor:
        """What is climbed, one number for each image."""
        scores = pooled(maps)
        others = scores[:, self.first_class :].sum(1) - scores[:, number]
        shown = maps[:, number].relu()
        found = shown > self.mask_threshold * shown.amax(tuple(range(1, shown.ndim)), keepdim=True)
        grown = torch.where(found, (shown - first).abs(), 0).flatten(1).mean(1)
        return scores[:, number] - others - self.regularization * grown


def _name_provider(module: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Put the provider's tensors where a module that holds a provider looks for them."""
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}provider.{key.removeprefix(prefix)}"] = state.pop(key)
