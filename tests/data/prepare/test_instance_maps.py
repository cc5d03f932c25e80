# SPDX-License-Identifier: Apache-2.0
"""Masks of objects as few label maps, and these as PNG."""

from __future__ import annotations

import numpy as np
import pytest
from monai.transforms import LoadImaged
from PIL import Image

from monai_labelfx.data.prepare._instance_maps import instance_maps, save_instance_maps


def block(shape: tuple[int, ...], *box: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(low, high) for low, high in zip(box[: len(shape)], box[len(shape) :], strict=True))] = True
    return mask


def check(found, masks) -> None:
    """Each mask comes back whole, in the order told, by its number; boxes are tight."""
    present = [index for index, mask in enumerate(masks) if mask.any()]
    assert sorted(found.order) == present and len(found.boxes) == len(present)
    first = 0
    for channel in found.maps:
        numbers = np.unique(channel)[np.unique(channel) > 0].tolist()
        assert numbers == list(range(first + 1, first + len(numbers) + 1))
        first += len(numbers)
        for number in numbers:
            mask = masks[found.order[number - 1]]
            assert np.array_equal(channel == number, mask)
            places = np.argwhere(mask)
            assert found.boxes[number - 1] == [*places.min(0).tolist(), *(places.max(0) + 1).tolist()]
    assert first == len(present)


@pytest.mark.parametrize("shape", [(12, 9), (7, 6, 5)])
def test_objects_apart_share_a_channel_and_keep_their_order(shape):
    ones, ndim = (1,) * len(shape), len(shape)
    masks = [
        block(shape, *(3,) * ndim, *(5,) * ndim),
        block(shape, *(0,) * ndim, *ones),
        np.zeros(shape, bool),
        block(shape, *ones, *(3,) * ndim),
    ]
    found = instance_maps(iter(masks), shape)
    assert found.maps.shape == (1, *shape) and found.maps.dtype == np.uint8 and found.order == [0, 1, 3]
    check(found, masks)


@pytest.mark.parametrize("shape", [(40, 30), (16, 14, 12)])
def test_random_objects(shape):
    generator = np.random.default_rng(len(shape))
    for number in (2, 9, 25):
        low = generator.integers(0, np.array(shape) - 3, (number, len(shape)))
        high = np.minimum(low + generator.integers(1, 12, low.shape), shape)
        masks = [block(shape, *a, *b) & (generator.random(shape) < 0.8) for a, b in zip(low, high, strict=True)]
        found = instance_maps(masks, shape)
        check(found, masks)
        assert found.maps.max() == len(found.order)
        most = int(np.sum(masks, axis=0).max())
        assert most <= len(found.maps) <= most + 2


def test_two_channels_wherever_two_are_enough():
    """Chains in any order, a star and a grid of bars: first come, first served takes three for some."""
    shape = (40, 40)
    chain = [block(shape, 4 * n, 0, 4 * n + 6, 5) for n in range(8)]
    for seed in range(6):
        masks = [chain[index] for index in np.random.default_rng(seed).permutation(8)]
        found = instance_maps(masks, shape)
        check(found, masks)
        assert len(found.maps) == 2
    bars = [block(shape, 0, 4 * n, 40, 4 * n + 2) for n in range(6)]
    grid = bars + [bar.T for bar in bars]
    assert len(instance_maps(grid, shape).maps) == 2
    assert len(instance_maps([chain[0]] * 3, shape).maps) == 3


def test_none_and_many():
    empty = instance_maps([], (5, 4))
    assert empty.maps.shape == (1, 5, 4) and not empty.maps.any() and empty.order == empty.boxes == []
    shape = (300, 250)
    pixels = [block(shape, n % 300, n // 300, n % 300 + 1, n // 300 + 1) for n in range(256)]
    assert instance_maps(pixels[:255], shape).maps.dtype == np.uint8
    found = instance_maps(pixels, shape)
    assert found.maps.dtype == np.uint16
    check(found, pixels)


def test_more_objects_than_16_bits_can_number():
    mask = block((1, 1), 0, 0, 1, 1)
    with pytest.raises(ValueError, match="it has 65536 objects, more than the 65535 that a label map of 16 bits"):
        instance_maps((mask for _ in range(65536)), (1, 1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures_load_as_they_were(tmp_path, channels, dtype):
    maps = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (channels, 20, 11), dtype=dtype, endpoint=True)
    paths = save_instance_maps(tmp_path / "labels" / "a.png", maps)
    assert [path.name for path in paths] == (["a.png"] if channels == 1 else ["a_0.png", "a_1.png", "a_2.png"])
    assert Image.open(paths[0]).size == (20, 11)
    value = [str(path) for path in paths]
    load = LoadImaged("label", reader="monai_labelfx.data.AutoReader", ensure_channel_first=True)
    for given in (value, value[0]) if channels == 1 else (value,):
        loaded = load({"label": given})["label"]
        assert loaded.shape == (channels, 20, 11) and np.array_equal(loaded.numpy(), maps)


def test_a_name_that_is_taken(tmp_path):
    for expected in (["a.png"], ["a_.png"], ["a__.png"]):
        assert [path.name for path in save_instance_maps(tmp_path / "a.png", np.zeros((1, 3, 4), np.uint8))] == expected
    (tmp_path / "b_1.png").write_text("")
    paths = save_instance_maps(tmp_path / "b.png", np.zeros((2, 3, 4), np.uint8))
    assert [path.name for path in paths] == ["b_0_.png", "b_1_.png"]
