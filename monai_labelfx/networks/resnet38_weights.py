# SPDX-License-Identifier: Apache-2.0
"""Weights of wide ResNet-38 from a user's file into the backbone here."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch

from monai_labelfx.networks.torchvision_weights import load_torchvision_weights
from monai_labelfx.networks.wide_resnet38_backbone import WideResNet38Backbone

_FIRST = "conv1a.weight"
_PART = re.compile(r"(conv|bn?)\d")  # also of deeper networks, which do not fit
_INNER = "state_dict"  # of checkpoints that hold more


def load_resnet38_weights(
    network: torch.nn.Module,
    path: str | PathLike[str],
    *,
    depth_axis: int = -1,
    depth: str = "mean",
    transpose: bool = True,
) -> list[str]:
    """Copy the wide ResNet-38 of a PyTorch file into ``network``, and return the names in the file that were left out.

    Reads a state dict, or one under ``state_dict``, with the names of the public ResNet-38 of weakly supervised
    segmentation: ``conv1a``, ``b2`` to ``b7``, ``bn7``, with or without something such as ``module.`` or ``backbone.``
    before them. Names that are not like these, such as a classifier's, are left out. Images of one channel, volumes
    and pictures with x first are as in :py:func:`load_torchvision_weights`: weights of RGB are summed, those of images
    are inflated, and the two axes of kernels of images are swapped, since the files saw rows first.

    Args:
        network: a :py:class:`WideResNet38Backbone` with ``norm="batch"`` or ``"frozen_batch"``, or a network that holds
            one, such as a :py:class:`CAMNetwork` or a :py:class:`PSPNet`.
        path: the file; tensors only, nothing in it is executed.
        depth_axis: which spatial axis is new when a volume's network takes an image's weights: the last.
        depth: ``"mean"`` or ``"centre"``, see :py:func:`inflate_weights`.
        transpose: swap the axes of kernels of images, for pictures with x first. Default ``True``; ``False`` for files
            that were written from a network here.

    Raises:
        ValueError: for a network with no such backbone or more than one, a file that is none of PyTorch's or holds no
            such weights, and names or shapes that do not agree. The network is unchanged then.
        FileNotFoundError: for a path that does not exist.

    Notes:
        The dilations of the published networks differ (the last one is 2 or 4); weights do not, so one file serves all.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> published = WideResNet38Backbone(2, 3, width=1 / 16).state_dict()
        >>> net = WideResNet38Backbone(3, 1, width=1 / 16, norm="frozen_batch")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "res38.pth")
        ...     torch.save({**published, "fc8.weight": torch.zeros(20, 256, 1, 1)}, path)
        ...     load_resnet38_weights(net, path)
        ['fc8.weight']
    """
    backbones = [module for module in network.modules() if isinstance(module, WideResNet38Backbone)]
    if len(backbones) != 1:
        raise ValueError(f"network must hold one WideResNet38Backbone, {type(network).__name__} has {len(backbones)}.")
    content = _read(path)
    prefix = next((name.removesuffix(_FIRST) for name in content if name.endswith(_FIRST)), None)
    if prefix is None:
        raise ValueError(f"{path} does not hold the weights of a wide ResNet-38: it has no {_FIRST}.")
    inside = {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}
    state = {name: value for name, value in inside.items() if _PART.match(name)}
    try:
        load_torchvision_weights(
            backbones[0], state, prefix_map={"": ""}, depth_axis=depth_axis, depth=depth, transpose=transpose
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit: {error}") from error
    return [name for name in content if not name.startswith(prefix) or name.removeprefix(prefix) not in state]


def _read(path: str | PathLike[str]) -> Mapping[str, Any]:
    """The state dict of a file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a file of tensors by name, as torch.save writes it.") from error
    if isinstance(content, Mapping) and isinstance(content.get(_INNER), Mapping):
        content = content[_INNER]
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} must hold tensors by name, got {type(content).__name__}.")
    return content
