# SPDX-License-Identifier: Apache-2.0
"""Blocks of moved images come back as the whole image does."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from monai_labelfx.data._original_blocks import block_on_original_grid
from monai_labelfx.data._original_grid import on_original_grid

FLIP = np.diag([-1.0, 1, 1, 1])
SWAP = np.eye(4)[[1, 0, 2, 3]]


def shifted(matrix: np.ndarray, *shift: float) -> np.ndarray:
    result = matrix.copy()
    result[:3, 3] = shift
    return result


MAPS = {
    "flip": shifted(FLIP, 15, 0, 0),
    "swap and crop": shifted(SWAP, -3, 2, 0),
    "finer": shifted(np.diag([1.7, 1.3, 1, 1]), 0.2137, -0.1171, 0),
    "coarser": shifted(np.diag([0.6, 0.45, 1, 1]), 0.1137, 0.3171, 0),
    "flipped, swapped, finer": shifted(SWAP @ np.diag([-1.4, 1.2, 1, 1]), 1.3137, 20.4171, 0),
}
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [0.2, -0.3, 0.4]).as_matrix() * [1.1, 0.9, 1.3]
OBLIQUE[:3, 3] = [3.1, -2.3, 1.7]
TURNED = np.eye(4)
TURNED[:2, :2] = [[0.9137, -0.4171], [0.4171, 0.9137]]
DEEP = {name: matrix @ np.diag([1, 1, 1.5, 1]) for name, matrix in MAPS.items()} | {
    "oblique": OBLIQUE,
    "turned in a circle": shifted(np.eye(4)[[1, 2, 0, 3]] @ np.diag([1.3, -0.7, 1.2, 1]), 13.2371, 0.3171, -0.4137),
}


def blocks(size: tuple[int, ...]):
    rng = np.random.default_rng(0)
    for _ in range(12):
        low = [int(rng.integers(0, n - 1)) for n in size]
        length = [int(rng.integers(1, n - a + 1)) for n, a in zip(size, low, strict=True)]
        yield low, rng.random(length) < 0.6


@pytest.mark.parametrize("name", [*MAPS, "turned", *(f"{name} 3-D" for name in DEEP)])
@pytest.mark.parametrize("chunk", [1 << 20, 7])
def test_equals_the_whole_image(monkeypatch, name, chunk):
    monkeypatch.setattr("monai_labelfx.data._original_blocks._AT_ONCE", chunk)
    deep = name.endswith("3-D")
    shape, size = ((16, 18, 9), (17, 15, 12)) if deep else ((16, 18), (17, 15))
    current = {**MAPS, "turned": TURNED, **{f"{key} 3-D": value for key, value in DEEP.items()}}[name]
    seen = 0
    for low, block in blocks(size):
        image = np.zeros(size, bool)
        image[tuple(slice(a, a + n) for a, n in zip(low, block.shape, strict=True))] = block
        expected = on_original_grid(image[None].astype(np.uint8), current, shape, nearest=True)[0]
        first, found = block_on_original_grid(block, low, size, current, shape)
        result = np.zeros(shape, bool)
        result[tuple(slice(a, a + n) for a, n in zip(first, found.shape, strict=True))] = found
        assert found.dtype == bool and np.array_equal(result, expected > 0)
        seen += result.sum()
    assert seen > 50


def test_a_block_in_the_padding_has_no_voxels():
    padded = shifted(np.eye(4), 5, 5, 0)
    first, found = block_on_original_grid(np.ones((2, 3), bool), [0, 4], (20, 20), padded, (8, 8))
    assert not found.any() and (first >= 0).all()
    _, found = block_on_original_grid(np.ones((0, 0), bool), [0, 0], (20, 20), padded, (8, 8))
    assert not found.any()


def test_halfway_is_the_upper_voxel_whatever_rounding_does():
    """Twice as fine: each voxel of the file lies between two of the image."""
    for noise in (-1e-9, 0, 1e-9):
        half = shifted(np.diag([2.0, 2.0, 1, 1]), 0.5 + noise, 0.5 - noise, 0)
        first, found = block_on_original_grid(np.ones((4, 6), bool), [3, 3], (20, 20), half, (10, 10))
        assert (np.flatnonzero(found.any(axis=1)) + first[0]).tolist() == [1, 2]
        assert (np.flatnonzero(found.any(axis=0)) + first[1]).tolist() == [1, 2, 3]
