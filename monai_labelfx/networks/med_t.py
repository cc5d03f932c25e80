# SPDX-License-Identifier: Apache-2.0
"""The Medical Transformer: gated axial attention on the whole image and on the patches of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv

from monai_labelfx.networks._any_size import (
    _BATCH_NORM,
    _INSTANCE_NORM,
    AnySizeNetwork,
    check_counts,
    per_axis,
    strides_per_level,
)
from monai_labelfx.networks._gated_axial import GatedAxialAttention, GatedAxialUNet


class MedT(AnySizeNetwork):
    r"""Medical Transformer: a shallow branch on the image, a deep one on its patches, both of axial attention.

    From [1]_; Notes say what differs.

    The layers attend along one axis after the other, with relative positions whose influence learned gates control
    (equation 3)::

        a_iw = (q_i . k_w + G_Q q_i . r^q_{w-i} + G_K k_w . r^k_{w-i}) / sqrt(d / 2)
        y_i = sum_w softmax_w(a_iw) (G_V1 v_w + G_V2 r^v_{w-i})

    The global branch, a U-Net of the first ``global_levels`` levels, sees the whole image. The local branch, one of all
    levels, sees the patches of a grid of ``grid`` patches per axis, each alone. The features of the patches are put
    back to their place and added to the global ones, and a convolution of 1 gives the logits. The grid covers the image
    whatever its size: patches grow with the image.

    Images of any size are accepted. They are padded at the far end of each axis, by repeating the outermost voxel, to a
    multiple of ``grid``, and the output is cropped back; inside, levels round sizes up.

    Parameters with three channels in and two classes, in 2-D: 1,524,034 (published: 1.56 million), and 1,324,290 with
    ``local=False`` (published: 1.33 million). In 3-D: 4,009,782 and 3,409,694.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image.
        out_channels: channels of the output, logits.
        features: channels of the attention of the first level, doubled by each further one (16). A multiple of
            ``2 * heads``.
        blocks: blocks of attention per level: (1, 2, 4, 1).
        global_levels: levels of the global branch (2).
        heads: attention heads (8).
        local: add the local branch. False is the gated axial attention U-Net of the paper's ablation: one branch of all
            levels on the whole image.
        grid: patches per axis, one number or one per axis (4). Thin stacks want 1 on the thin axis.
        img_size: image size, one number or one per axis (128), whose distances all have relative positions of their
            own; larger images are run as well, and longer distances share those of the longest.
        norm: norm specification of MONAI or ``"group"`` of this package, or None.

    Attributes:
        divisor: ``grid`` per axis, or ones without the local branch: sizes that are multiples of it need no padding.

    Shape:
        - input: (B, in_channels, \*spatial), any size.
        - output: logits (B, out_channels, \*spatial).

    Raises:
        ValueError: for arguments out of range, and in forward for an input of another rank or number of channels, an
            empty image, or one whose deepest level leaves batch norm (in training) or instance norm a single voxel.

    Notes:
        The paper trains with the gates fixed for the first ten epochs: see :py:meth:`gate_parameters`. It writes no
        scale of the scores; we take the usual one. The released code normalises scores and values after the gates,
        which takes much of their effect away; here gates come after the norms. It has 1,560,140 parameters with the
        local branch, of which its forward leaves 35,570 without a gradient, and 1,326,914 without. What remains of the
        difference: those norms, a convolution of side 3 after the sum, which the paper does not have, and the local
        branch, which has neither gates nor positions there. Its loop over sixteen patches of 32 pixels leaves images
        above 128 without local features outside a corner. Its local stem is eight times as wide as the global one, and
        so is ours.

    Example:
        >>> import torch
        >>> net = MedT(2, 3, 2, features=8, heads=2, blocks=(1, 1))
        >>> net(torch.rand(1, 3, 45, 32)).shape
        torch.Size([1, 2, 45, 32])
        >>> net = MedT(3, 1, 2, features=8, heads=2, blocks=(1, 1), grid=(2, 2, 1))
        >>> net(torch.rand(1, 1, 16, 17, 9)).shape
        torch.Size([1, 2, 16, 17, 9])

    References:
        .. [1] Valanarasu et al., "Medical Transformer: Gated Axial-Attention for Medical Image Segmentation",
            MICCAI 2021.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        features: int = 16,
        blocks: Sequence[int] = (1, 2, 4, 1),
        global_levels: int = 2,
        heads: int = 8,
        local: bool = True,
        grid: int | Sequence[int] = 4,
        img_size: int | Sequence[int] = 128,
        norm: tuple | str | None = "batch",
    ) -> None:
        check_counts(features=features, heads=heads, global_levels=global_levels)
        strides = strides_per_level(grid if local else 1, 1, spatial_dims)
        super().__init__(spatial_dims, in_channels, out_channels, strides)
        size = per_axis("img_size", img_size, spatial_dims)
        if features % (2 * heads):
            raise ValueError(f"features must be a multiple of 2 * heads = {2 * heads}, got {features}.")
        if len(blocks) < 1 or any(count < 1 for count in blocks):
            raise ValueError(f"blocks must hold one or more numbers of 1 or more, got {blocks!r}.")
        if global_levels > len(blocks):
            raise ValueError(
                f"global_levels must be at most {len(blocks)}, the entries of blocks, got {global_levels}."
            )

        def branch(
            stem: int, levels: Sequence[int], size: Sequence[int], bottleneck: bool, channels: int = in_channels
        ) -> GatedAxialUNet:
            return GatedAxialUNet(
                spatial_dims,
                channels,
                features,
                stem=stem,
                blocks=levels,
                size=size,
                bottleneck=bottleneck,
                heads=heads,
                norm=norm,
            )

        self.local = local
        if local:
            patch = [math.ceil(n / g) for n, g in zip(size, self.divisor, strict=True)]
            self.global_branch = branch(features // 2, blocks[:global_levels], size, False)
            self.local_branch: torch.nn.Module = branch(4 * features, blocks, patch, True)
        else:
            self.global_branch = branch(features // 2, blocks, size, True)
            self.local_branch = torch.nn.Identity()
        self.head = Conv[Conv.CONV, spatial_dims](features, out_channels, kernel_size=1)

    def run_padded(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of an image whose sizes are multiples of ``divisor``."""
        features = self.global_branch(x)
        if self.local:
            features = features + self._join(self.local_branch(self._cut(x)))
        return self.head(features)

    def gate_parameters(self) -> list[torch.nn.Parameter]:
        """The gates (G_Q, G_K, G_V1, G_V2) of each attention, for ``requires_grad_(False)`` in the first epochs."""
        return [module.gates for module in self.modules() if isinstance(module, GatedAxialAttention)]

    def _cut(self, x: torch.Tensor) -> torch.Tensor:
        """The patches of the grid as images of a larger batch."""
        for axis in range(self.spatial_dims):
            x = torch.cat(x.chunk(self.divisor[axis], dim=axis + 2), 0)
        return x

    def _join(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of ``_cut``."""
        for axis in range(self.spatial_dims):
            last = self.spatial_dims - 1 - axis
            x = torch.cat(x.chunk(self.divisor[last], dim=0), last + 2)
        return x

    def _check(self, x: torch.Tensor) -> None:
        super()._check(x)
        padded = [math.ceil(n / d) * d for n, d in zip(x.shape[2:], self.divisor, strict=True)]
        patch = [n // d for n, d in zip(padded, self.divisor, strict=True)] if self.local else padded
        instance = any(isinstance(m, _INSTANCE_NORM) for m in self.modules())
        batch = self.training and any(isinstance(m, _BATCH_NORM) for m in self.modules())
        for net, size, images in (
            (self.global_branch, padded, x.shape[0]),
            (self.local_branch, patch, x.shape[0] * math.prod(self.divisor)),
        ):
            deepest = math.prod(math.ceil(n / net.reduction) for n in size) if isinstance(net, GatedAxialUNet) else 2
            if deepest == 1 and (instance or (batch and images == 1)):
                raise ValueError(
                    f"{'Instance' if instance else 'Batch'} norm has one voxel to normalise when images or patches of "
                    f"size {tuple(size)} are halved to one voxel: use larger crops, more images per batch, fewer "
                    "blocks or another norm."
                )
