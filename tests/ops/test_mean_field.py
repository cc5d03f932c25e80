# SPDX-License-Identifier: Apache-2.0
"""The windowed mean field against a dense brute-force field in float64, and against its known limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_labelfx.ops import mean_field
from monai_labelfx.ops.mean_field import windowed_mean_field

DEEPCUT = {"spatial_sigma": (10.0, 1.0), "intensity_sigma": 20 / 3**0.5, "weights": (10.0, 3.0), "iterations": 5}


def case(*shape: int, batch: int = 1, classes: int = 2, channels: int = 1, seed: int = 0, dtype=torch.float64):
    """Seeded logits, and an image from 0 to 255 of two noisy halves."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, classes, *shape, generator=generator, dtype=torch.float64)
    image = 25 * torch.rand(batch, channels, *shape, generator=generator, dtype=torch.float64)
    image[..., shape[-1] // 2 :] += 60
    return logits.to(dtype), image.to(dtype)


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max(0, keepdims=True))
    return exponentials / exponentials.sum(0, keepdims=True)


def dense(logits, image, *, window, spatial_sigma, intensity_sigma, weights, iterations, spacing=None) -> np.ndarray:
    """One batch entry with the full voxel-by-voxel matrix, and the Potts penalty written as a penalty."""
    shape = logits.shape[1:]
    voxels = list(np.ndindex(shape))
    spacing = np.ones(len(shape)) if spacing is None else np.asarray(spacing)
    window = np.broadcast_to(window, len(shape))
    deviation = np.broadcast_to(intensity_sigma, len(image))
    kernels = np.zeros((2, len(voxels), len(voxels)))
    for i, p in enumerate(voxels):
        for j, q in enumerate(voxels):
            offset = np.subtract(p, q)
            if (abs(offset) > window // 2).any():
                continue
            near = ((offset * spacing) ** 2).sum()
            alike = (((image[(slice(None), *p)] - image[(slice(None), *q)]) / deviation) ** 2).sum()
            kernels[0, i, j] = math.exp(-near / (2 * spatial_sigma[0] ** 2) - alike / 2)
            kernels[1, i, j] = math.exp(-near / (2 * spatial_sigma[1] ** 2))
    degree = kernels.sum(2)
    matrix = sum(w * k / np.sqrt(np.outer(d, d)) for w, k, d in zip(weights, kernels, degree, strict=True))
    unary = -logits.reshape(len(logits), -1)
    q = softmax(-unary)
    penalty = 1 - np.eye(len(q))
    for _ in range(iterations):
        q = softmax(-unary - penalty @ q @ matrix)
    return q.reshape(logits.shape)


CASES = [
    ((12, 12), {"window": 5}),
    ((12, 12), {"window": (3, 7), "classes": 3}),
    ((12, 12), {"window": 41, "spacing": (2.0, 0.7)}),
    ((12, 12), {"window": 5, "weights": (4.0, 0.0), "intensity_sigma": (5.0, 30.0), "channels": 2}),
    ((12, 12), {"window": 5, "weights": (0.0, 4.0), "spatial_sigma": (1.0, 2.5)}),
    ((1, 12), {"window": 5, "iterations": 1}),
    ((24,), {"window": 7}),
    ((6, 6, 6), {"window": 3}),
    ((6, 6, 6), {"window": (5, 3, 1), "spacing": (1.0, 1.0, 4.0), "classes": 4}),
]


@pytest.mark.parametrize(("shape", "keywords"), CASES, ids=str)
def test_equals_the_dense_field(shape, keywords):
    keywords = {**DEEPCUT, **keywords}
    logits, image = case(*shape, batch=2, classes=keywords.pop("classes", 2), channels=keywords.pop("channels", 1))
    result = windowed_mean_field(logits, image, **keywords)
    for number in range(2):
        expected = dense(logits[number].numpy(), image[number].numpy(), **keywords)
        np.testing.assert_allclose(result[number].numpy(), expected, rtol=0, atol=1e-12)
    unchanged = logits.softmax(1)
    assert (result - unchanged).abs().max() > 0.1, "the field does something"


def test_defaults_are_deepcuts():
    logits, image = case(14, 13)
    assert torch.equal(windowed_mean_field(logits, image), windowed_mean_field(logits, image, window=11, **DEEPCUT))


def test_grey_repeated_to_three_channels_of_sigma_20_is_the_default():
    logits, image = case(9, 8)
    repeated = windowed_mean_field(logits, image.expand(-1, 3, -1, -1), intensity_sigma=20.0)
    torch.testing.assert_close(repeated, windowed_mean_field(logits, image))


@pytest.mark.parametrize("keywords", [{"weights": (0.0, 0.0)}, {"iterations": 0}])
@pytest.mark.parametrize("shape", [(7, 8), (4, 5, 3)])
def test_without_kernels_or_iterations_it_is_the_softmax(shape, keywords):
    logits, image = case(*shape, classes=3)
    assert torch.equal(windowed_mean_field(logits, image, window=5, **keywords), logits.softmax(1))


def test_window_of_one_leaves_each_voxel_its_own_vote():
    logits, image = case(5, 6)
    expected = logits.softmax(1)
    for _ in range(5):
        expected = (logits + 13 * expected).softmax(1)
    torch.testing.assert_close(windowed_mean_field(logits, image, window=1), expected)


@pytest.mark.parametrize("shape", [(9, 8), (5, 4, 6)])
def test_a_constant_image_makes_both_kernels_one(shape):
    logits, image = case(*shape)
    flat = torch.full_like(image, 77)
    bilateral = windowed_mean_field(logits, flat, window=5, weights=(4.0, 0.0), spatial_sigma=(1.5, 9.0))
    smoothness = windowed_mean_field(logits, flat, window=5, weights=(0.0, 4.0), spatial_sigma=(9.0, 1.5))
    torch.testing.assert_close(bilateral, smoothness)
    any_image = windowed_mean_field(
        logits, image, window=5, weights=(4.0, 0.0), spatial_sigma=(1.5, 9.0), intensity_sigma=1e9
    )
    torch.testing.assert_close(bilateral, any_image)


def test_uniform_logits_stay_uniform():
    _, image = case(8, 8)
    result = windowed_mean_field(torch.zeros(1, 4, 8, 8, dtype=torch.float64), image)
    torch.testing.assert_close(result, torch.full_like(result, 0.25))


def test_one_class_is_certain():
    logits, image = case(5, 5, classes=1)
    assert torch.equal(windowed_mean_field(logits, image), torch.ones_like(logits))


def test_a_volume_of_one_slice_is_a_picture():
    logits, image = case(7, 8)
    volume = windowed_mean_field(logits[:, :, None], image[:, :, None], window=5)
    torch.testing.assert_close(volume[:, :, 0], windowed_mean_field(logits, image, window=5))


def test_spacing_scales_with_the_spatial_sigmas():
    logits, image = case(4, 5, 6)
    scaled = windowed_mean_field(logits, image, window=3, spacing=(3.0, 3.0, 3.0), spatial_sigma=(30.0, 3.0))
    torch.testing.assert_close(scaled, windowed_mean_field(logits, image, window=3))


def test_thick_slices_vote_less():
    logits, image = case(6, 6, 6)
    image = torch.zeros_like(image)
    logits = torch.zeros_like(logits)
    logits[:, 1, :, :, 3] = 3.0
    logits[:, 0, :, :, :3] = logits[:, 0, :, :, 4:] = 3.0
    near = windowed_mean_field(logits, image, window=3, spacing=(1.0, 1.0, 1.0), iterations=1)
    far = windowed_mean_field(logits, image, window=3, spacing=(1.0, 1.0, 50.0), iterations=1)
    assert (far[:, 1, :, :, 3] > near[:, 1, :, :, 3]).all()


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    classes=st.integers(1, 4),
    side=st.sampled_from([1, 3, 5, 9]),
    seed=st.integers(0, 99),
    axis=st.integers(0, 2),
)
def test_symmetries_and_simplex(shape, classes, side, seed, axis):
    logits, image = case(*shape, batch=2, classes=classes, channels=2, seed=seed)
    result = windowed_mean_field(logits, image, window=side)
    assert (result >= 0).all()
    torch.testing.assert_close(result.sum(1), torch.ones_like(result[:, 0]))
    axis = 2 + axis % len(shape)
    torch.testing.assert_close(windowed_mean_field(logits.flip(axis), image.flip(axis), window=side).flip(axis), result)
    swapped = windowed_mean_field(logits.transpose(2, axis), image.transpose(2, axis), window=side)
    torch.testing.assert_close(swapped.transpose(2, axis), result)
    torch.testing.assert_close(windowed_mean_field(logits.flip(1), image, window=side).flip(1), result)
    torch.testing.assert_close(windowed_mean_field(logits[1:], image[1:] + 40, window=side), result[1:])
    torch.testing.assert_close(windowed_mean_field(logits + 3, image.flip(1), window=side), result)


def test_kernels_need_not_be_kept(monkeypatch):
    logits, image = case(9, 10, batch=2)
    kept = windowed_mean_field(logits, image)
    monkeypatch.setattr(mean_field, "CACHED_VALUES", 0)
    assert torch.equal(windowed_mean_field(logits, image), kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_and_inputs_are_kept(dtype):
    logits, image = case(8, 9, dtype=dtype)
    logits.requires_grad_()
    before = logits.detach().clone(), image.clone()
    result = windowed_mean_field(logits, image, window=5)
    assert result.dtype == dtype and not result.requires_grad
    assert torch.equal(logits, before[0]) and torch.equal(image, before[1])
    exact = windowed_mean_field(logits.double(), image.double(), window=5)
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps + 1e-5)
    assert torch.equal(
        windowed_mean_field(logits, image.round().to(torch.uint8)), windowed_mean_field(logits, image.round())
    )


def test_a_forbidden_class_stays_forbidden_and_others_hear_of_it():
    logits = torch.zeros(1, 2, 6, 6)
    logits[:, 1, :3] = -math.inf
    result = windowed_mean_field(logits, torch.zeros(1, 1, 6, 6), window=5)
    assert (result[:, 1, :3] == 0).all() and (result[:, 0, 3:] > 0.5).all() and result.isfinite().all()


def test_an_unlike_voxel_keeps_its_label_and_a_like_one_does_not():
    logits = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).repeat(1, 1, 9, 9)
    logits[0, :, 4, 4] = torch.tensor([0.0, 1.0])
    image = torch.zeros(1, 1, 9, 9)
    assert windowed_mean_field(logits, image, weights=(10.0, 0.0))[0, 1, 4, 4] < 0.1
    image[0, 0, 4, 4] = 255
    assert windowed_mean_field(logits, image, weights=(10.0, 0.0))[0, 1, 4, 4] > 0.9


@pytest.mark.parametrize("shape", [(24, 24), (12, 12, 12)])
def test_labels_move_to_the_edge_of_the_image(shape):
    generator = torch.Generator().manual_seed(0)
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"))
    truth = grid.norm(dim=0) < min(shape) / 3
    image = 120.0 * truth + 10 * torch.randn(shape, generator=generator)
    logits = 2.0 * truth - 1 + 1.5 * torch.randn(shape, generator=generator)
    result = windowed_mean_field(torch.stack([-logits / 2, logits / 2])[None], image[None, None], window=5)
    wrong = ((logits > 0) != truth).float().mean()
    assert wrong > 0.1 and ((result[0, 1] > 0.5) != truth).float().mean() < wrong / 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(1, 2)}, "same batch and spatial sizes, got"),
        ({"image": torch.zeros(1, 1, 4, 6)}, r"got \(1, 2, 4, 5\) and \(1, 1, 4, 6\)"),
        ({"image": torch.zeros(2, 1, 4, 5)}, "same batch"),
        ({"logits": torch.zeros(1, 0, 4, 5)}, "must not be empty"),
        ({"logits": torch.zeros(1, 2, 4, 5, dtype=torch.int64)}, "logits must be floats"),
        ({"logits": torch.full((1, 2, 4, 5), math.nan)}, "without NaN"),
        ({"logits": torch.full((1, 2, 4, 5), math.inf)}, "below inf"),
        ({"logits": torch.full((1, 2, 4, 5), -math.inf)}, "finite for one class per voxel"),
        ({"image": torch.full((1, 1, 4, 5), math.inf)}, "image must be finite"),
        ({"window": 4}, "window must hold odd whole numbers, got 4"),
        ({"window": 2.5}, "window must hold odd"),
        ({"window": 0}, "window must be one number above 0"),
        ({"window": (3, 3, 3)}, "one for each axis \\(2\\)"),
        ({"spatial_sigma": (1.0, 0.0)}, "spatial_sigma must be two numbers above 0"),
        ({"spatial_sigma": (1.0,)}, "spatial_sigma must be two"),
        ({"intensity_sigma": 0}, "intensity_sigma must be one number above 0"),
        ({"intensity_sigma": (1.0, 2.0)}, "one for each channel \\(1\\)"),
        ({"weights": (1.0, -1.0)}, "weights must be two numbers of 0 or above"),
        ({"weights": (1.0, math.nan)}, "weights must be two"),
        ({"iterations": -1}, "iterations must be a whole number of 0 or more, got -1"),
        ({"iterations": 1.5}, "iterations must be"),
        ({"spacing": (1.0, 0.0)}, "spacing must be one number above 0"),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {"logits": torch.zeros(1, 2, 4, 5), "image": torch.zeros(1, 1, 4, 5), **changes}
    with pytest.raises(ValueError, match=message):
        windowed_mean_field(**arguments)
