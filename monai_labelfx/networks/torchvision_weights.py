# SPDX-License-Identifier: Apache-2.0
"""Torchvision's weights into the backbones, pyramids and detectors here, and weights of images into volumes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence

import torch

# what torchvision's models put before the names of a trunk or a pyramid
_PREFIXES = ("", "backbone.body.", "backbone.fpn.", "backbone.")
# of torchvision's detectors -> of the networks of the detectors here
_WHOLE = {
    "backbone.body.": "backbone.",
    "backbone.fpn.": "neck.fpn.",
    "head.": "head.",
    "rpn.head.": "rpn.",
    "roi_heads.box_head.": "box_head.",
    "roi_heads.box_predictor.": "box_head.",
    "roi_heads.mask_head.": "mask_head.",
    "roi_heads.mask_predictor.": "mask_head.",
}
_CLASSIFIER = ("fc.", "classifier.")
# as published files have them -> as torchvision and the networks here have them, of a pyramid, and of the heads of
# RPN, masks and RetinaNet
_OLD_NAMES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"((?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"(rpn\.(?:head\.)?conv)\.(weight|bias)$"), r"\1.0.0.\2"),
    (re.compile(r"mask_fcn(\d+)\.(weight|bias)$"), lambda found: f"{int(found[1]) - 1}.0.{found[2]}"),
    (re.compile(r"(_head\.conv)\.(\d+)\.(weight|bias)$"), lambda f: f"{f[1]}.{int(f[2]) // 2}.0.{f[3]}"),
)
_TRANSPOSED = (torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
_COUNTER = "num_batches_tracked"
_SHOWN = 3
_RGB = 3
_IMAGE_KERNEL = 4  # axes of the weight of a convolution of images
_FC_SIDE = 7  # of the map that VGG's first fully connected layer sees
_FC_CHANNELS, _FC_WINDOW = 4, 3  # SSD keeps every fourth channel and every third voxel of it


def load_torchvision_weights(
    module: torch.nn.Module,
    state_dict: Mapping[str, torch.Tensor],
    *,
    prefix_map: Mapping[str, str] | None = None,
    strict: bool = True,
    depth_axis: int = -1,
    depth: str = "mean",
    transpose: bool = True,
) -> list[str]:
    """Copy a state dict of torchvision into ``module``, and return the names that kept their own values.

    Takes a state dict of a classifier (ResNet, ResNeXt, VGG-16; its last layer is left out) or of a detector, of which
    only what belongs to ``module`` is read. Weights of RGB are summed over the input channels for an image of one
    channel, which gives the output for three equal channels. Weights of images are inflated for volumes, see
    :py:func:`inflate_weights`. Names of published files and of torchvision today are both known, and
    ``num_batches_tracked`` is ignored. For a :py:class:`VGG16Backbone`, fc6 and fc7 are every fourth channel and every
    third voxel of the classifier's two layers, as in SSD.

    Args:
        module: a backbone, a feature pyramid, or a network that holds them.
        state_dict: names and tensors, as ``torch.load(path, weights_only=True)`` gives them.
        prefix_map: from the beginning of names in ``state_dict`` to that of names in ``module``, as in
            ``{"backbone.body.": "backbone.", "backbone.fpn.": "pyramid."}``; the longest that fits is used, and other
            names are left out. By default names are taken as they are, or without the ``backbone.body.``,
            ``backbone.fpn.`` or ``backbone.`` of a detector; a network of RetinaNetFPN, FCOS, FasterRCNN or MaskRCNN
            takes a whole detector (heads that it does not have are left out), or with ``strict=False`` a classifier for
            its backbone.
        strict: refuse names that are missing, left over or of another shape; otherwise copy what fits.
        depth_axis: which spatial axis is new when a volume's network takes an image's weights: the last.
        depth: ``"mean"`` or ``"centre"``, see :py:func:`inflate_weights`.
        transpose: swap the two axes of kernels of images. Torchvision's pictures have rows first, those that MONAI
            loads have x first: without the swap a network would see them lying on their side. Boxes of a detector are
            then (x, y) in both. Default ``True``.

    Returns:
        Names of ``module`` that found nothing, in order; empty when ``strict``.

    Raises:
        ValueError: when ``strict`` and names or shapes do not agree, when nothing fits at all, and for an image of
            neither one nor the weights' number of channels. The module is unchanged then.
        TypeError: for values that are no tensors, such as a checkpoint with the state dict inside.

    Notes:
        The statistics of batch norm have no place in group norm: load into ``norm="batch"`` or ``"frozen_batch"``.
        MONAI's ResNet has the same names; build it with ``bias_downsample=False``. The classifier of ``vgg16_bn`` has
        no norms for fc6 and fc7: load it with ``strict=False``.

    Example:
        >>> import torch
        >>> from monai_labelfx.networks.resnet_backbone import ResNetBackbone
        >>> published = ResNetBackbone(2, 3, depth=10, features=4, norm="batch").state_dict()
        >>> published["fc.weight"] = torch.zeros(1000, 32)
        >>> net = ResNetBackbone(3, 1, depth=10, features=4, norm="frozen_batch")
        >>> load_torchvision_weights(net, published)
        []
    """
    _check_tensors(state_dict)
    own = {name: value for name, value in module.state_dict().items() if not name.endswith(_COUNTER)}
    renamed = _rename(_with_ssd_head(state_dict, own), own, prefix_map)
    if transpose:
        renamed = {name: v.transpose(-1, -2) if v.ndim == _IMAGE_KERNEL else v for name, v in renamed.items()}
        renamed |= _turned_inputs(renamed, module)
    found = inflate_weights(_grey(renamed, own), module, depth_axis=depth_axis, depth=depth)
    missing = [name for name in own if name not in found]
    extra = [name for name in found if name not in own]
    reshaped = [name for name in found if name in own and found[name].shape != own[name].shape]
    if strict and (missing or extra or reshaped) or len(missing) + len(reshaped) == len(own):
        raise ValueError(_difference(module, own, found, missing, extra, reshaped))
    fitting = {name: value for name, value in found.items() if name in own and name not in reshaped}
    module.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def inflate_weights(
    state_dict: Mapping[str, torch.Tensor], module: torch.nn.Module, *, depth_axis: int = -1, depth: str = "mean"
) -> dict[str, torch.Tensor]:
    """Give convolution weights of images the further axis that the layers of ``module`` have.

    A weight whose layer has one axis more is repeated along it. With ``"mean"`` it is divided by the number of
    repetitions [1]_: where the input is constant along the new axis, so is the output, and equal to the image's, except
    within reach of the ends, where convolutions are padded with zeros. With ``"centre"`` it stands in the middle and
    the rest is zero: at first each slice is an image of its own, exactly and up to the ends, and training grows the
    depth. Of a transposed convolution, which makes several slices of one, each of these has the whole weight.

    Args:
        state_dict: names and tensors; names as in ``module``.
        module: where the weights will go; not changed.
        depth_axis: the new one among the module's spatial axes, counted from the first or, negative, from the last.
        depth: ``"mean"`` or ``"centre"``.

    Returns:
        A dictionary with the inflated weights; tensors that need no axis are passed on as they are.

    Raises:
        ValueError: for another ``depth``, or an axis that the weights do not have.

    Notes:
        Max pooling has no weights, so along the new axis a constant stays what it is; ``"centre"`` is one image per
        slice only where neither pooling nor a stride shortens that axis.

    Example:
        >>> import torch
        >>> layer = torch.nn.Conv3d(1, 2, (3, 3, 5))
        >>> flat = {"weight": torch.ones(2, 1, 3, 3), "bias": torch.zeros(2)}
        >>> inflate_weights(flat, layer)["weight"][0, 0, 0, 0]
        tensor([0.2000, 0.2000, 0.2000, 0.2000, 0.2000])

    References:
        .. [1] Carreira and Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset", CVPR 2017.
    """
    if depth not in ("mean", "centre"):
        raise ValueError(f"depth must be 'mean' or 'centre', got {depth!r}.")
    own = module.state_dict()
    result = dict(state_dict)
    for name, value in state_dict.items():
        if name in own and value.ndim > 2 and own[name].ndim == value.ndim + 1:
            owner = module.get_submodule(name.rpartition(".")[0])
            stride = owner.stride if isinstance(owner, _TRANSPOSED) else (1,) * (value.ndim - 1)
            result[name] = _inflate(value, own[name].shape[2:], depth_axis, depth, stride)
    return result


def _inflate(
    weight: torch.Tensor, kernel: torch.Size, depth_axis: int, depth: str, stride: Sequence[int]
) -> torch.Tensor:
    if not -len(kernel) <= depth_axis < len(kernel):
        raise ValueError(f"depth_axis must be one of the {len(kernel)} spatial axes of the module, got {depth_axis}.")
    axis = depth_axis % len(kernel)
    size = kernel[axis]
    slices = min(stride[axis], size)  # that a transposed convolution makes of one
    shares = torch.full((size,), slices / size, dtype=weight.dtype, device=weight.device)
    if depth == "centre":
        place = torch.arange(size, device=weight.device) - (size + 1 - slices) // 2
        shares = ((place >= 0) & (place < slices)).to(weight.dtype)
    return weight.unsqueeze(axis + 2) * shares.view(-1, *(1 for _ in kernel[axis + 1 :]))


def _turned_inputs(state_dict: Mapping[str, torch.Tensor], module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of fully connected layers on flattened pictures (channels, rows, columns), their two axes swapped.

    Such a layer's owner tells of it in ``flattened_inputs``: name of the weight -> (channels, axis 0, axis 1).
    """
    turned = {}
    for owner, part in module.named_modules():
        for name, shape in getattr(part, "flattened_inputs", {}).items():
            weight = state_dict.get(f"{owner}.{name}" if owner else name)
            if weight is not None and weight.ndim == 2 and len(shape) == 3 and weight.shape[1] == math.prod(shape):
                channels, first, second = shape
                pictures = weight.unflatten(1, (channels, second, first))
                turned[f"{owner}.{name}" if owner else name] = pictures.transpose(-1, -2).flatten(1)
    return turned


def _check_tensors(state_dict: Mapping[str, torch.Tensor]) -> None:
    for name, value in state_dict.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"state_dict must hold tensors by name, got {type(value).__name__} for {name!r}: pass the state dict "
                "itself, not the checkpoint around it."
            )


def _rename(
    state_dict: Mapping[str, torch.Tensor], own: Collection[str], prefix_map: Mapping[str, str] | None
) -> dict[str, torch.Tensor]:
    """Names as ``module`` has them; counters and the classifier's last layer left out."""
    if prefix_map is None and any(name.startswith(_WHOLE["backbone.fpn."]) for name in own):
        whole = any(name.startswith("backbone.fpn.") for name in state_dict)
        parts = {old: new for old, new in _WHOLE.items() if any(name.startswith(new) for name in own)}
        prefix_map = parts if whole else {"": "backbone."}
    if prefix_map is None:
        hits = {
            p: sum(name.startswith(p) and _known(name[len(p) :], own) in own for name in state_dict) for p in _PREFIXES
        }
        prefix_map = {max(_PREFIXES, key=lambda prefix: hits[prefix]): ""}
    result = {}
    for name, value in state_dict.items():
        prefix = max((p for p in prefix_map if name.startswith(p)), key=len, default=None)
        if prefix is None or name.endswith(_COUNTER):
            continue
        new = _known(prefix_map[prefix] + name[len(prefix) :], own)
        if new in own or not name.startswith(_CLASSIFIER):
            result[new] = value
    return result


def _known(name: str, own: Collection[str]) -> str:
    """The name, or what torchvision calls it today where that is one of ``own``."""
    names = [name, *(old.sub(new, name) for old, new in _OLD_NAMES)]
    return next((known for known in names if known in own), name)


def _with_ssd_head(
    state_dict: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    """Add fc6 and fc7 of SSD, thinned from VGG's fully connected layers, when the module has them."""
    first, second = state_dict.get("classifier.0.weight"), state_dict.get("classifier.3.weight")
    channels = next((value.shape[1] for name, value in own.items() if name.endswith("fc6.0.weight")), 0)
    if first is None or second is None or first.shape[1] != channels * _FC_SIDE**2 or not torch.isfinite(first).all():
        return state_dict  # nothing to thin, or torchvision's weights for SSD, which have NaN there
    window = first.view(first.shape[0], channels, _FC_SIDE, _FC_SIDE)
    return {
        **state_dict,
        "fc6.0.weight": window[::_FC_CHANNELS, :, ::_FC_WINDOW, ::_FC_WINDOW],
        "fc6.0.bias": state_dict["classifier.0.bias"][::_FC_CHANNELS],
        "fc7.0.weight": second[::_FC_CHANNELS, ::_FC_CHANNELS, None, None],
        "fc7.0.bias": state_dict["classifier.3.bias"][::_FC_CHANNELS],
    }


def _grey(state_dict: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sum weights of three input channels where the module's layer has one."""
    result = dict(state_dict)
    for name, value in state_dict.items():
        target = own.get(name)
        if target is not None and value.ndim > 2 and target.ndim > 2 and value.shape[1] == _RGB != target.shape[1]:
            if target.shape[1] == 1:
                result[name] = value.sum(1, keepdim=True)
    return result


def _difference(
    module: torch.nn.Module,
    own: Mapping[str, torch.Tensor],
    found: Mapping[str, torch.Tensor],
    missing: list[str],
    extra: list[str],
    reshaped: list[str],
) -> str:
    def some(names: list[str]) -> str:
        return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")

    parts = []
    if missing:
        parts.append(f"does not have {some(missing)}")
    if extra:
        parts.append(f"has {some(extra)}, which the module does not know")
    if reshaped:
        first = reshaped[0]
        parts.append(
            f"has another shape for {some(reshaped)} (the first is {tuple(found[first].shape)}, the module's "
            f"{tuple(own[first].shape)})"
        )
    hint = "; batch norm's statistics need norm='batch' or 'frozen_batch'"
    statistics = any(name.endswith(("running_mean", "running_var")) for name in extra)
    return f"The state dict for {type(module).__name__} {', '.join(parts)}{hint if statistics else ''}."
