# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.ops.patch_positions import patch_positions

SIZES = {1: (23,), 2: (9, 7), 3: (5, 6, 7)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(positions: torch.Tensor) -> list[set[tuple[int, ...]]]:
    return [{tuple(place) for place in image.tolist()} for image in positions]


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_places_are_distinct_block_origins_inside_the_image(spatial_dims, stride):
    size = SIZES[spatial_dims]
    every = math.prod(n // stride for n in size)
    for count in {1, every // 2 or 1, every}:
        positions = patch_positions(size, 4, count, stride=stride, generator=seeded())
        assert positions.shape == (4, count, spatial_dims) and positions.dtype == torch.int64
        assert all(len(image) == count for image in rows(positions))
        assert (positions % stride == 0).all() and (positions >= 0).all()
        assert (positions + stride <= torch.tensor(size)).all()
    grid = torch.cartesian_prod(*(torch.arange(n // stride) * stride for n in size)).reshape(every, spatial_dims)
    assert (
        rows(positions if count == every else patch_positions(size, 4, every, stride=stride))
        == [{tuple(place) for place in grid.tolist()}] * 4
    )


def test_a_stride_per_axis():
    positions = patch_positions((8, 9, 3), 2, 16, stride=(2, 4, 1), generator=seeded())
    assert (positions % torch.tensor([2, 4, 1]) == 0).all()
    assert positions.amax((0, 1)).tolist() == [6, 4, 2]


def test_every_place_is_equally_likely():
    drawn = patch_positions((3, 4), 6000, 3, generator=seeded())
    counts = torch.bincount((drawn[..., 0] * 4 + drawn[..., 1]).flatten(), minlength=12)
    assert (counts / 6000).tolist() == pytest.approx([3 / 12] * 12, abs=0.03)
    blocks = patch_positions((5, 7), 6000, 2, stride=2, generator=seeded())  # 2 x 3 blocks
    counts = torch.bincount((blocks[..., 0] // 2 * 3 + blocks[..., 1] // 2).flatten(), minlength=6)
    assert (counts / 6000).tolist() == pytest.approx([2 / 6] * 6, abs=0.03)


def test_images_draw_for_themselves():
    positions = patch_positions((16, 16), 3, 20, generator=seeded())
    first, second, third = rows(positions)
    assert first != second != third
    # the first images of a batch draw the same whatever comes behind them
    assert torch.equal(patch_positions((16, 16), 1, 20, generator=seeded()), positions[:1])


def test_the_generator_alone_decides():
    torch.manual_seed(1)
    drawn = patch_positions((16, 16), 2, 8, generator=seeded(5))
    torch.manual_seed(2)
    assert torch.equal(patch_positions((16, 16), 2, 8, generator=seeded(5)), drawn)
    assert not torch.equal(patch_positions((16, 16), 2, 8, generator=seeded(6)), drawn)
    torch.manual_seed(3)
    drawn = patch_positions((16, 16), 2, 8)
    torch.manual_seed(3)
    assert torch.equal(patch_positions((16, 16), 2, 8), drawn)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.uint8, torch.int64])
def test_the_foreground_comes_first_and_the_rest_fills_up(kind):
    mask = torch.zeros(3, 1, 6, 8, dtype=kind)
    mask[0, 0, 1:3, 2:7] = 1  # 10 voxels
    mask[1, 0, 4, 5] = 1  # too few
    inside = [{tuple(place) for place in image[0].nonzero().tolist()} for image in mask]
    for seed in range(5):
        drawn = rows(patch_positions((6, 8), 3, 7, foreground=mask, generator=seeded(seed)))
        assert drawn[0] < inside[0]
        assert inside[1] < drawn[1] and all(len(places) == 7 for places in drawn)
    drawn = rows(patch_positions((6, 8), 3, 10, foreground=MetaTensor(mask), generator=seeded()))
    assert drawn[0] == inside[0]
    every = patch_positions((6, 8), 3, 48, foreground=mask, generator=seeded())
    assert all(len(places) == 48 for places in rows(every))


def test_the_places_of_the_foreground_are_equally_likely():
    mask = torch.zeros(6000, 1, 4, 4)
    mask[:, :, 1, :3] = mask[:, :, 3, 3] = 1
    drawn = patch_positions((4, 4), 6000, 1, foreground=mask, generator=seeded())
    counts = torch.bincount((drawn[..., 0] * 4 + drawn[..., 1]).flatten(), minlength=16)
    assert (counts[[4, 5, 6, 15]] / 6000).tolist() == pytest.approx([0.25] * 4, abs=0.03)
    drawn = patch_positions((4, 4), 6000, 7, foreground=mask, generator=seeded())  # 4 of these, 3 of the other 12
    counts = torch.bincount((drawn[..., 0] * 4 + drawn[..., 1]).flatten(), minlength=16) / 6000
    assert counts[[4, 5, 6, 15]].tolist() == [1] * 4
    assert counts[counts < 1].tolist() == pytest.approx([0.25] * 12, abs=0.03)


def test_a_block_is_foreground_if_a_voxel_of_it_is():
    mask = torch.zeros(1, 1, 5, 6, 4, dtype=torch.bool)
    mask[0, 0, 3, 4, 1] = mask[0, 0, 4, 0, 0] = True  # the second is in no block
    for seed in range(5):
        drawn = patch_positions((5, 6, 4), 1, 1, stride=2, foreground=mask, generator=seeded(seed))
        assert drawn.tolist() == [[[2, 4, 0]]]


def test_thin_and_empty():
    assert patch_positions((1, 5, 1), 2, 5).sort(1).values[0].tolist() == [[0, i, 0] for i in range(5)]
    assert patch_positions((4, 4), 0, 3).shape == (0, 3, 2)
    assert patch_positions((4, 4), 2, 3, device="meta").device.type == "meta"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((4, 4), 1, 17), {}, r"an image of \(4, 4\) voxels has 16 places .* stride 1, fewer than the 17 to draw"),
        (((5, 4), 1, 5), {"stride": 2}, "has 4 places"),
        (((), 1, 1), {}, "size must hold"),
        (((4, 0), 1, 1), {}, "size must hold"),
        (((4, 4), 1, 0), {}, "count at least 1"),
        (((4, 4), -1, 1), {}, "batch must be at least 0"),
        (((4, 4), 1, 1), {"stride": 0}, "stride must be"),
        (((4, 4), 1, 1), {"stride": (2, 2, 2)}, r"stride must be one number above 0, or 2"),
        (((4, 4), 2, 1), {"foreground": torch.ones(2, 4, 4)}, r"foreground must be \(2, 1, 4, 4\).*got \(2, 4, 4\)"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        patch_positions(*arguments, **options)
