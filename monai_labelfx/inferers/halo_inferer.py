# SPDX-License-Identifier: Apache-2.0
"""Tiled inference that equals inference on the whole image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, ensure_tuple_rep


class HaloInferer(Inferer):
    """Run a convolutional network tile by tile; each tile is read with a halo and only its core is kept.

    Where the halo is at least the receptive radius of the network and tiles start on multiples of its total stride,
    each core has the values that the whole image would give (up to the order of floating point sums): no blending, no
    seams. An image that fits into one tile is run in one piece.

    Args:
        tile_size: size of the cores in voxels, one number or one per axis.
        halo: voxels read around a core, one number or one per axis. ``None``: the network's ``halo``.
        divisor: tiles start on multiples of it, one number or one per axis. ``None``: the network's ``divisor``.

    Shape:
        - inputs: (B, C, *spatial).
        - output: (B, K, *spatial), on the device of ``inputs``; a MetaTensor if ``inputs`` is one.

    Raises:
        ValueError: if a tile is smaller than the divisor, or the network has neither attribute and none is given.

    Example:
        >>> import torch
        >>> from monai_labelfx.inferers import HaloInferer
        >>> network = torch.nn.Conv2d(1, 2, 3, padding=1)
        >>> image = torch.rand(1, 1, 40, 30)
        >>> tiled = HaloInferer(16, halo=1, divisor=1)(image, network)
        >>> torch.allclose(tiled, network(image), atol=1e-6)
        True
    """

    def __init__(
        self,
        tile_size: int | Sequence[int],
        *,
        halo: int | Sequence[int] | None = None,
        divisor: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.tile_size, self.halo, self.divisor = tile_size, halo, divisor

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        shape = tuple(inputs.shape[2:])
        tile = ensure_tuple_rep(self.tile_size, len(shape))
        if all(size <= limit for size, limit in zip(shape, tile, strict=True)):
            return network(inputs, *args, **kwargs)
        divisor = ensure_tuple_rep(self._setting("divisor", network, "divisor"), len(shape))
        halo = ensure_tuple_rep(self._setting("halo", network, "halo"), len(shape))
        if any(t < d for t, d in zip(tile, divisor, strict=True)):
            raise ValueError(f"tile_size must be at least the divisor {divisor} on each axis, got {tile}")
        steps = [t // d * d for t, d in zip(tile, divisor, strict=True)]
        margins = [-(-h // d) * d for h, d in zip(halo, divisor, strict=True)]

        plain = inputs.as_subclass(torch.Tensor)
        output: torch.Tensor | None = None
        for start in product(*(range(0, size, step) for size, step in zip(shape, steps, strict=True))):
            core: list[slice] = []
            read: list[slice] = []
            keep: list[slice] = []
            for begin, step, margin, size in zip(start, steps, margins, shape, strict=True):
                end = min(begin + step, size)
                first, last = max(begin - margin, 0), min(end + margin, size)
                core.append(slice(begin, end))
                read.append(slice(first, last))
                keep.append(slice(begin - first, end - first))
            result = network(plain[:, :, *read], *args, **kwargs)
            if output is None:
                output = result.new_empty((*result.shape[:2], *shape))
            output[:, :, *core] = result[:, :, *keep]
        return convert_to_dst_type(output, inputs, dtype=output.dtype)[0]  # type: ignore[union-attr]

    def _setting(self, name: str, network: Any, attribute: str) -> Any:
        own = getattr(self, name)
        if own is not None:
            return own
        inner = getattr(network, "module", network)  # DistributedDataParallel hides the attributes
        if not hasattr(inner, attribute):
            raise ValueError(f"{name} must be given: {type(inner).__name__} has no attribute {attribute!r}")
        return getattr(inner, attribute)
