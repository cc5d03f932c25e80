# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from monai_labelfx.ops import blind_spot_mask
from monai_labelfx.ops.blind_spots import BLIND_SPOT_STRATEGIES, _cuts_per_axis

SHAPES = [(1, 1, 40), (2, 3, 24, 31), (1, 1, 3, 64, 64), (2, 2, 5, 4, 6), (1, 1, 12, 13, 14), (1, 1, 5, 4, 6, 7)]
PLUS = [[0, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def line(axes: int, length: int = 3) -> np.ndarray:
    """A 0/1 structure along the last axis."""
    return np.ones((1,) * (axes - 1) + (length,), dtype=np.uint8)


def hidden_by(mask: np.ndarray, structure) -> np.ndarray:
    """Naive: every spot of one image, and every voxel under its structure."""
    hidden = mask.copy()
    if structure is None:
        return hidden
    arms = np.argwhere(np.asarray(structure)) - np.array(np.shape(structure)) // 2
    for spot, arm in itertools.product(np.argwhere(mask), arms):
        place = tuple(spot + arm)
        if all(0 <= p < s for p, s in zip(place, mask.shape, strict=True)):
            hidden[place] = True
    return hidden


def visible_around(spot, hidden: np.ndarray, radius: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Naive: the coordinates in the cropped window of one spot that are not hidden."""
    ranges = [range(max(c - r, 0), min(c + r + 1, s)) for c, r, s in zip(spot, radius, hidden.shape, strict=True)]
    return [place for place in itertools.product(*ranges) if not hidden[place]]


def single_images(*batches: torch.Tensor):
    return zip(*(batch.flatten(0, 1).numpy() for batch in batches), strict=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fraction", [0.0001, 0.015, 0.1, 0.5])
def test_exact_count_per_image_and_channel(shape, fraction):
    masked, mask = blind_spot_mask(torch.randn(shape), fraction, window=5, generator=seeded())
    expected = max(1, round(fraction * math.prod(shape[2:])))
    assert mask.dtype == torch.bool and mask.shape == masked.shape == torch.Size(shape)
    assert (mask.flatten(2).sum(2) == expected).all()


@pytest.mark.parametrize("strategy", BLIND_SPOT_STRATEGIES)
@pytest.mark.parametrize("window", [3, 11])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("structured", [False, True])
def test_the_result_does_not_depend_on_hidden_values(shape, window, strategy, structured):
    """Other values below all spots (and arms) at once: the masked image stays, bit for bit."""
    structure = line(len(shape) - 2) if structured else None
    images = torch.randn(shape)
    options = {"fraction": 0.05, "strategy": strategy, "window": window, "structure": structure}
    masked, mask = blind_spot_mask(images, **options, generator=seeded(1))
    hidden = torch.from_numpy(np.stack([hidden_by(m, structure) for (m,) in single_images(mask)])).view(shape)
    other = torch.where(hidden, torch.randn(shape) * 1000, images)
    again, same = blind_spot_mask(other, **options, generator=seeded(1))
    assert torch.equal(mask, same)
    assert torch.equal(masked[~hidden], images[~hidden])
    if strategy == "identity":
        assert torch.equal(masked, images)
    else:
        assert torch.equal(masked, again)
        assert masked.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("structured", [False, True])
def test_uniform_copies_a_visible_voxel_of_the_window(shape, structured):
    structure, radius = (line(len(shape) - 2) if structured else None), (2,) * (len(shape) - 2)
    images = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    masked, mask = blind_spot_mask(images, 0.05, window=5, structure=structure, generator=seeded(2))
    for image, result, spots in single_images(images, masked, mask):
        hidden = hidden_by(spots, structure)
        for spot in map(tuple, np.argwhere(hidden)):
            allowed = visible_around(spot, hidden, radius)
            assert allowed and result[spot] in [image[place] for place in allowed]


@pytest.mark.parametrize("strategy, reference", [("median", np.median), ("mean", np.mean)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("structured", [False, True])
def test_median_and_mean_agree_with_a_loop(shape, strategy, reference, structured):
    structure, radius = (line(len(shape) - 2) if structured else None), (2,) * (len(shape) - 2)
    images = torch.randn(shape, dtype=torch.float64)
    masked, mask = blind_spot_mask(images, 0.05, strategy, window=5, structure=structure, generator=seeded(3))
    for image, result, spots in single_images(images, masked, mask):
        hidden = hidden_by(spots, structure)
        for spot in map(tuple, np.argwhere(spots)):
            values = [image[place] for place in visible_around(spot, hidden, radius)]
            np.testing.assert_allclose(result[spot], reference(values), rtol=1e-12, atol=1e-12)


def test_many_chunks_give_what_one_gives(monkeypatch):
    images = torch.randn(2, 1, 20, 21)
    whole = [blind_spot_mask(images, 0.1, s, generator=seeded())[0] for s in BLIND_SPOT_STRATEGIES]
    monkeypatch.setattr("monai_labelfx.ops.blind_spots._CHUNK", {"cpu": 200})
    parts = [blind_spot_mask(images, 0.1, s, generator=seeded())[0] for s in BLIND_SPOT_STRATEGIES]
    assert all(map(torch.equal, whole, parts))


@pytest.mark.parametrize("sizes, fraction, window", [((24, 24), 0.015, 5), ((9, 3), 0.05, 5), ((4, 5, 6), 0.05, 3)])
def test_offsets_are_uniform_over_the_visible_window(sizes, fraction, window):
    """Chi-square of the drawn offsets against the exact expectation: uniform over each cropped window minus spots."""
    radius = (window // 2,) * len(sizes)
    images = torch.arange(math.prod(sizes), dtype=torch.float32).reshape(1, 1, *sizes).expand(1500, 1, *sizes)
    masked, mask = blind_spot_mask(images, fraction, window=window, generator=seeded(4))
    found, expected = np.zeros((window,) * len(sizes)), np.zeros((window,) * len(sizes))
    for result, spots in single_images(masked, mask):
        for spot in map(tuple, np.argwhere(spots)):
            source = np.array(np.unravel_index(int(result[spot]), sizes))
            allowed = np.array(visible_around(spot, spots, radius)) - spot + radius
            found[tuple(source - spot + radius)] += 1
            expected[tuple(allowed.T)] += 1 / len(allowed)
    assert found[radius] == expected[radius] == 0
    # the law of a border spot is narrower than the sum over spots suggests, so the test errs on the safe side
    assert stats.chisquare(found[expected > 0], expected[expected > 0]).pvalue > 1e-3


def test_offsets_of_single_positions_are_uniform():
    """At a corner over the cropped window minus the corner, inside over the whole window minus the centre."""
    images = torch.arange(63, dtype=torch.float32).reshape(1, 1, 7, 9).expand(60000, 1, 7, 9)
    masked, mask = blind_spot_mask(images, 0.01, window=5, generator=seeded(5))
    for (x, y), neighbours in (((0, 0), 8), ((3, 4), 24), ((6, 3), 14)):
        values, counts = np.unique(masked[:, 0, x, y][mask[:, 0, x, y]].numpy(), return_counts=True)
        assert len(values) == neighbours
        assert stats.chisquare(counts).pvalue > 1e-3


def test_draws_among_few_visible_voxels_are_uniform():
    """Where nearly all neighbours are unusable, so that the window itself must be read."""
    images = torch.full((20000, 1, 7, 7), math.nan)
    images[:, :, [0, 3, 4, 6], [5, 3, 1, 6]] = torch.arange(4.0)
    masked, mask = blind_spot_mask(images, 0.01, window=13, generator=seeded(17))
    drawn = masked[mask][images[mask].isnan()].int()
    assert drawn.numel() > 15000
    assert stats.chisquare(drawn.bincount().numpy()).pvalue > 1e-3


@pytest.mark.parametrize("sizes, fraction", [((10, 7), 0.05), ((8, 8), 1 / 16), ((3, 6, 5), 0.05), ((13,), 0.3)])
def test_every_voxel_is_equally_likely(sizes, fraction):
    draws, voxels = 20000, math.prod(sizes)
    mask = blind_spot_mask(torch.zeros(draws, 1, *sizes), fraction, "identity", generator=seeded(6))[1]
    counts, number = mask.sum((0, 1)).double(), max(1, round(fraction * voxels))
    share = number / voxels
    assert counts.sum() == draws * number
    z = (counts - draws * share) / math.sqrt(draws * share * (1 - share))
    assert z.abs().max() < 4.5


def test_one_spot_per_box():
    """Where boxes of equal sides fill the image exactly (the d-th root is whole), each holds one spot."""
    mask = blind_spot_mask(torch.zeros(3, 2, 64, 64), 1 / 64, "identity", generator=seeded(7))[1]
    assert (mask.unfold(2, 8, 8).unfold(3, 8, 8).sum((-1, -2)) == 1).all()
    mask = blind_spot_mask(torch.zeros(3, 2, 8, 16, 32), 1 / 64, "identity", generator=seeded(7))[1]
    assert (mask.unfold(2, 4, 4).unfold(3, 4, 4).unfold(4, 4, 4).sum((-1, -2, -3)) == 1).all()


@pytest.mark.parametrize("sizes", [(64, 64), (3, 64, 64), (37, 61), (64, 128, 128), (9, 8, 7, 6), (50,)])
@pytest.mark.parametrize("number", [1, 2, 3, 7, 33, 49])
def test_boxes_suffice_and_are_nearly_cubes(sizes, number):
    cuts = _cuts_per_axis(sizes, number)
    assert number <= math.prod(cuts) < 2 * number
    if number >= 33:
        sides = [size / cut for cut, size in zip(cuts, sizes, strict=True) if cut > 1]
        assert max(sides) / min(sides) < 2


def test_boxes_suffice_for_dense_spots():
    for sizes in itertools.product(range(1, 6), repeat=3):
        for number in range(1, math.prod(sizes) + 1):
            cuts = _cuts_per_axis(sizes, number)
            assert math.prod(cuts) >= number and all(map(int.__le__, cuts, sizes)), (sizes, number, cuts)


def test_spots_are_more_even_than_independent_ones():
    """Stratification: the count in a quarter of the image varies far less than the hypergeometric law."""
    mask = blind_spot_mask(torch.zeros(2000, 1, 64, 64), 0.015, "identity", generator=seeded(8))[1]
    number, counts = round(0.015 * 4096), mask[:, :, 16:48, 16:48].sum((1, 2, 3)).double()
    assert abs(counts.mean() - number / 4) < 0.3
    assert counts.var() < 0.5 * number * 0.25 * 0.75 * (4096 - number) / 4095


@pytest.mark.parametrize("strategy", BLIND_SPOT_STRATEGIES)
def test_the_mask_marks_selected_voxels_not_changed_ones(strategy):
    images = torch.full((2, 1, 16, 16), 0.3)
    masked, mask = blind_spot_mask(images, 0.05, strategy, structure=PLUS)
    assert (mask.sum((1, 2, 3)) == 13).all()
    torch.testing.assert_close(masked, images)


@pytest.mark.parametrize("strategy", BLIND_SPOT_STRATEGIES)
def test_only_identity_keeps_values(strategy):
    images = torch.randn(2, 1, 32, 32)
    masked, mask = blind_spot_mask(images, 0.05, strategy)
    kept = masked[mask] == images[mask]
    assert kept.all() if strategy == "identity" else not kept.any()


@pytest.mark.parametrize("strategy", ["uniform", "median", "mean"])
@pytest.mark.parametrize("shape, structure", [((2, 1, 24, 24), PLUS), ((1, 2, 7, 9, 11), np.ones((3, 1, 5)))])
def test_structure_hides_arms_but_marks_centres(shape, structure, strategy):
    images = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape) ** 0.5
    masked, mask = blind_spot_mask(images, 0.02, strategy, structure=structure, generator=seeded(9))
    assert torch.equal(mask, blind_spot_mask(images, 0.02, strategy, generator=seeded(9))[1])
    for image, result, spots in single_images(images, masked, mask):
        hidden = hidden_by(spots, structure)
        assert hidden.sum() > 3 * spots.sum()
        assert np.array_equal(result != image, hidden)
        assert np.isin(result[hidden & ~spots], image[~hidden]).all()


def test_arms_keep_the_noise_level():
    images = torch.randn(8, 1, 64, 64) * 3 + 100
    masked, mask = blind_spot_mask(images, 0.01, "median", structure=np.ones((1, 11)), generator=seeded(10))
    arms = (masked != images) & ~mask
    assert arms.sum() > 8 * mask.sum()
    assert 2.8 < masked[arms].std() < 3.2 and masked[mask].std() < 1


def test_windows_per_axis_and_wider_than_the_image():
    images = torch.arange(2 * 9 * 9, dtype=torch.float32).reshape(1, 1, 2, 9, 9).expand(200, 1, 2, 9, 9)
    masked, mask = blind_spot_mask(images, 0.01, window=(1, 21, 3), generator=seeded(11))
    spots = mask[:, 0].nonzero().numpy()[:, 1:].T
    offset = np.stack(np.unravel_index(masked[mask].long().numpy(), (2, 9, 9))) - spots
    assert offset.shape == (3, 400)
    assert abs(offset).max(1).tolist() == [0, 8, 1]


@pytest.mark.parametrize("strategy", ["uniform", "median", "mean"])
def test_windows_widen_until_something_is_visible(strategy):
    """Nearly all is hidden: still every replacement comes from visible values."""
    images = torch.randn(5, 1, 6, 6)
    masked, mask = blind_spot_mask(images, 0.95, strategy, window=3, generator=seeded(12))
    for image, result, spots in single_images(images, masked, mask):
        seen = image[~spots]
        assert len(seen) == 2 and (result >= seen.min()).all() and (result <= seen.max()).all()


@pytest.mark.parametrize("strategy", ["uniform", "median", "mean"])
def test_nan_is_never_a_source(strategy):
    images = torch.randn(4, 1, 16, 16)
    images[:, :, :, 1::2] = math.nan
    masked, mask = blind_spot_mask(images, 0.05, strategy, window=3)
    assert masked[mask].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("strategy", BLIND_SPOT_STRATEGIES)
def test_dtypes(dtype, strategy):
    images = torch.randn(2, 1, 20, 20).to(dtype)
    masked, mask = blind_spot_mask(images, 0.05, strategy, generator=seeded(13))
    exact, same = blind_spot_mask(images.double(), 0.05, strategy, generator=seeded(13))
    assert masked.dtype == dtype and torch.equal(mask, same)
    torch.testing.assert_close(masked.double(), exact, rtol=0.01, atol=0.01)


def test_same_seed_same_masks_and_channels_are_independent():
    images = torch.randn(3, 4, 32, 32)
    first, second = (blind_spot_mask(images, generator=seeded(14)) for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[1], blind_spot_mask(images, generator=seeded(15))[1])
    pairs = list(itertools.combinations(first[1].flatten(0, 1), 2))
    assert torch.stack([(a & b).sum() for a, b in pairs]).double().mean() < 1  # 15 of 1024 each: 0.2 by chance


@pytest.mark.parametrize("strategy", BLIND_SPOT_STRATEGIES)
def test_fewer_channels_get_the_same_spots(strategy):
    images = torch.randn(1, 3, 20, 21)
    mask = blind_spot_mask(images, strategy=strategy, generator=seeded(16))[1]
    assert torch.equal(mask[:, :1], blind_spot_mask(images[:, :1], generator=seeded(16))[1])


def test_the_global_generator_is_the_default():
    images = torch.randn(1, 1, 32, 32)
    torch.manual_seed(3)
    first = blind_spot_mask(images)[1]
    second = blind_spot_mask(images)[1]
    torch.manual_seed(3)
    assert torch.equal(first, blind_spot_mask(images)[1]) and not torch.equal(first, second)


def test_input_layout_and_gradient_are_left_alone():
    images = torch.randn(2, 1, 20, 18).transpose(2, 3).requires_grad_()
    before = images.detach().clone()
    masked, _ = blind_spot_mask(images, 0.05, generator=seeded())
    assert torch.equal(images, before) and not masked.requires_grad
    assert torch.equal(masked, blind_spot_mask(before.contiguous(), 0.05, generator=seeded())[0])


@pytest.mark.parametrize("strategy", BLIND_SPOT_STRATEGIES)
def test_empty_batch(strategy):
    result = blind_spot_mask(torch.randn(0, 1, 8, 8), strategy=strategy, structure=PLUS)
    assert [tuple(x.shape) for x in result] == [(0, 1, 8, 8)] * 2


ONES = torch.ones(1, 1, 9, 9)


@pytest.mark.parametrize(
    "images, options, message",
    [
        (ONES[:, :, :1, :1], {}, "no voxel of an image of size .1, 1. has a neighbour"),
        (ONES[:, :, :1], {"window": (3, 1)}, "no voxel of an image"),
        (ONES, {"window": 1}, "no voxel of an image"),
        (ONES, {"window": 4}, "window must be one odd number or 2 of them"),
        (ONES, {"window": (3, 3, 3)}, "window must be one odd number or 2 of them"),
        (ONES, {"window": -3}, "window must be"),
        (ONES, {"window": 4.5}, "window must be"),
        (ONES, {"fraction": 0.0}, "fraction must be between 0 and 1, got 0.0"),
        (ONES, {"fraction": 1.5}, "fraction must be between 0 and 1"),
        (ONES, {"strategy": "normal"}, "strategy must be one of uniform, .* got 'normal'"),
        (ONES, {"structure": [[1, 1]]}, "structure must have 2 axes of odd length, .*1, 2"),
        (ONES, {"structure": [1, 1, 1]}, "structure must have 2 axes"),
        (ONES, {"structure": [[1, 2, 1]]}, "structure must hold zeros and ones only"),
        (ONES[:, :, :3, :3], {"structure": np.ones((5, 5))}, "no visible voxel left"),
        (ONES * math.nan, {}, "no visible voxel left"),
        (ONES[0, 0], {}, "images must have the shape"),
        (ONES[:, :, :0], {}, "images must have the shape"),
    ],
)
def test_bad_values(images, options, message):
    with pytest.raises(ValueError, match=message):
        blind_spot_mask(images, **options)


@pytest.mark.parametrize("images", [ONES.to(torch.uint8), ONES.numpy()])
def test_bad_types(images):
    with pytest.raises(TypeError, match=r"images must be a floating-point tensor, got .* cast it"):
        blind_spot_mask(images)
