# SPDX-License-Identifier: Apache-2.0
"""Several tensors of an image as one row of numbers, so that a network with several outputs returns one tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch


def pack(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors (B, ...) of any shapes -> (B, 1, numbers), one after the other; gradients pass.

    Example:
        >>> pack([torch.ones(2, 3, 4, 4), torch.zeros(2, 5)]).shape
        torch.Size([2, 1, 53])
    """
    return torch.cat([part.flatten(1) for part in parts], dim=1)[:, None]


def unpack(raw: torch.Tensor, shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """What :py:func:`pack` has packed: views (B, \\*shape) by name, in the order of ``shapes``.

    Raises:
        ValueError: where the shapes do not add up to the numbers.

    Example:
        >>> raw = pack([torch.ones(2, 3, 4, 4), torch.zeros(2, 5)])
        >>> {name: tuple(part.shape) for name, part in unpack(raw, {"maps": (3, 4, 4), "rest": (5,)}).items()}
        {'maps': (2, 3, 4, 4), 'rest': (2, 5)}
    """
    counts = [math.prod(shape) for shape in shapes.values()]
    if raw.shape[-1] != sum(counts):
        raise ValueError(f"a network's output must have {sum(counts)} numbers for {dict(shapes)}, got {raw.shape[-1]}")
    parts = raw[:, 0].split(counts, dim=1)
    return {name: part.unflatten(1, tuple(shape)) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
