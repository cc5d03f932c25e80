# SPDX-License-Identifier: Apache-2.0
"""How far beyond a tile a chain of convolutions looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Layer(NamedTuple):
    """One convolution along one axis: its side, stride and padding before the first voxel."""

    kernel: int
    stride: int = 1
    padding: int = 1
    transposed: bool = False


def reach(layers: Sequence[Layer], divisor: int) -> int:
    """Voxels that a block of ``divisor`` output voxels, aligned to it, needs on either side of itself.

    Args:
        layers: from the image to the output.
        divisor: product of the strides on the way down.

    Example:
        >>> reach([Layer(3)] * 4, 1)
        4
        >>> reach([Layer(3, 2), Layer(3), Layer(4, 2, transposed=True)], 2)  # 1 of the coarse grid counts double
        5
    """
    first, last = 0, divisor - 1
    for kernel, stride, padding, transposed in reversed(layers):
        if transposed:  # output = stride * input - padding + 0 .. kernel - 1
            first, last = -((kernel - 1 - padding - first) // stride), (last + padding) // stride
        else:
            first, last = first * stride - padding, last * stride - padding + kernel - 1
    return max(-first, last - (divisor - 1), 0)
