# SPDX-License-Identifier: Apache-2.0
"""Feature pyramid: coarse maps added to finer ones, and still coarser levels made from the last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv

from monai_labelfx.networks._any_size import check_counts, strides_per_level
from monai_labelfx.networks._norms import make_norm

_EXTRA = {"none": 0, "pool": 1, "convs_on_input": 2, "convs_on_output": 2}
_FIRST_CONV = 6  # extra convolutions are p6, p7, ... as if the last map were C5


class FeaturePyramid(torch.nn.Module):
    r"""Feature pyramid network: lateral convolutions of 1, nearest upsampling and addition, convolutions of 3.

    After [1]_.
    With maps C_l from fine to coarse, ``M_last = inner(C_last)``, ``M_l = inner(C_l) + upsample(M_l+1)`` and
    ``P_l = layer(M_l)``. To leave out the finest maps, pass the list without them. Coarser levels follow by ``extra``:

    - ``"none"``: none.
    - ``"pool"``: every second voxel of the last P (max pooling of window 1, Faster and Mask R-CNN, SOLOv2).
    - ``"convs_on_input"``: P6 = conv(C5), P7 = conv(relu(P6)), of stride 2 (RetinaNet [2]_).
    - ``"convs_on_output"``: P6 = conv(P5), P7 = conv(relu(P6)) (FCOS [3]_).

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of each incoming map, finest first.
        out_channels: channels of every level, 256 in the papers.
        extra: where the coarser levels come from.
        num_extra: how many of them; by default 1 for ``"pool"``, and 2 for convolutions, the papers' numbers.
        extra_strides: their strides: one number, one per axis, or one such entry per extra level.
        norm: norm after each convolution of the pyramid; None in the papers.

    Attributes:
        out_channels: channels of each level that comes out, a list.

    Shape:
        - input: list of (B, in_channels[i], \*spatial[i]), of any sizes.
        - output: list of (B, out_channels, \*spatial[i]), then the extra levels, of ``ceil(n / stride)`` voxels.

    Raises:
        ValueError: for no map, an unknown ``extra``, a ``num_extra`` that contradicts it, channels below 1; in forward,
            for another number of maps than ``in_channels`` has.

    Notes:
        Upsampling is to the size of the finer map, so any size works; from ``ceil(n / 2)`` voxels to n it repeats each
        voxel twice and drops what is beyond the end. Weights start as in torchvision: uniform of variance
        ``1 / fan_in``, biases of zero. Parameters have torchvision's names (``inner_blocks``, ``layer_blocks``,
        ``extra_blocks.p6``); its first RetinaNet has the extra convolutions on the output, the paper's are on C5.

    Example:
        >>> import torch
        >>> fpn = FeaturePyramid(3, [8, 16], 4, extra="convs_on_input")
        >>> maps = [torch.rand(1, 8, 9, 5, 7), torch.rand(1, 16, 5, 3, 7)]
        >>> [tuple(p.shape) for p in fpn(maps)]
        [(1, 4, 9, 5, 7), (1, 4, 5, 3, 7), (1, 4, 3, 2, 4), (1, 4, 2, 1, 2)]
        >>> fpn.out_strides([(8, 8, 2), (16, 16, 2)])
        [(8, 8, 2), (16, 16, 2), (32, 32, 4), (64, 64, 8)]

    References:
        .. [1] Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.
        .. [2] Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, section 4.
        .. [3] Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019, section 3.2.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: Sequence[int],
        out_channels: int = 256,
        *,
        extra: str = "none",
        num_extra: int | None = None,
        extra_strides: int | Sequence[int | Sequence[int]] = 2,
        norm: tuple | str | None = None,
    ) -> None:
        super().__init__()
        if len(in_channels) < 1:
            raise ValueError("in_channels must name the channels of one map or more, got none.")
        check_counts(out_channels=out_channels, **{f"in_channels[{i}]": c for i, c in enumerate(in_channels)})
        if extra not in _EXTRA:
            raise ValueError(f"extra must be one of {tuple(_EXTRA)}, got {extra!r}.")
        count = _EXTRA[extra] if num_extra is None else num_extra
        if count < 0 or (count == 0) != (extra == "none"):
            raise ValueError(f"num_extra must be 0 for extra='none' and 1 or more else, got {count} for {extra!r}.")
        self.spatial_dims = spatial_dims
        self.in_channels = list(in_channels)
        self.out_channels = [out_channels] * (len(in_channels) + count)
        self.extra = extra
        self.extra_strides = strides_per_level(extra_strides, count, spatial_dims)
        conv = Conv[Conv.CONV, spatial_dims]

        def block(inputs: int, kernel: int) -> torch.nn.Sequential:
            layers = [conv(inputs, out_channels, kernel, padding=kernel // 2, bias=norm is None)]
            return torch.nn.Sequential(
                *layers, *([] if norm is None else [make_norm(norm, spatial_dims, out_channels)])
            )

        self.inner_blocks = torch.nn.ModuleList([block(c, 1) for c in in_channels])
        self.layer_blocks = torch.nn.ModuleList([block(out_channels, 3) for _ in in_channels])
        self.extra_blocks = torch.nn.ModuleDict()
        if extra.startswith("convs"):
            inputs = in_channels[-1] if extra == "convs_on_input" else out_channels
            for index, stride in enumerate(self.extra_strides):
                self.extra_blocks[f"p{_FIRST_CONV + index}"] = conv(inputs, out_channels, 3, stride, padding=1)
                inputs = out_channels
        for layer in self.modules():
            if isinstance(layer, conv):
                torch.nn.init.kaiming_uniform_(layer.weight, a=1)
                if layer.bias is not None:
                    torch.nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Turn maps, finest first, into levels, finest first, the extra ones last."""
        if len(maps) != len(self.in_channels):
            raise ValueError(
                f"FeaturePyramid with in_channels={self.in_channels} takes {len(self.in_channels)} maps, "
                f"got {len(maps)}."
            )
        merged = [inner(c) for inner, c in zip(self.inner_blocks, maps, strict=True)]
        for level in reversed(range(len(merged) - 1)):
            above = F.interpolate(merged[level + 1], size=merged[level].shape[2:], mode="nearest")
            merged[level] = merged[level] + above
        levels = [layer(m) for layer, m in zip(self.layer_blocks, merged, strict=True)]
        if self.extra == "pool":
            for stride in self.extra_strides:
                levels.append(levels[-1][(..., *(slice(None, None, s) for s in stride))])
        x = maps[-1] if self.extra == "convs_on_input" else levels[-1]
        for index, conv in enumerate(self.extra_blocks.values()):
            x = conv(x if index == 0 else F.relu(x))
            levels.append(x)
        return levels

    def out_strides(self, strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """The strides of the levels, from those of the incoming maps, both per axis.

        Raises:
            ValueError: for another number of strides than maps.
        """
        if len(strides) != len(self.in_channels):
            raise ValueError(f"strides must have {len(self.in_channels)} entries, one per map, got {len(strides)}.")
        result = [tuple(stride) for stride in strides]
        for step in self.extra_strides:
            result.append(tuple(total * s for total, s in zip(result[-1], step, strict=True)))
        return result
