# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.losses.joint_total_variation import JointTotalVariationLoss, joint_total_variation_loss

SHAPES = {1: (2, 1, 7), 2: (2, 3, 4, 5), 3: (1, 2, 3, 4, 5)}


def example(spatial_dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(spatial_dims)
    shape = SHAPES[spatial_dims]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


def summed(image: np.ndarray) -> float:
    """The sum of absolute differences of all neighbours, voxel by voxel."""
    total = 0.0
    for place in itertools.product(*map(range, image.shape)):
        for axis in range(2, image.ndim):
            other = list(place)
            other[axis] += 1
            if other[axis] < image.shape[axis]:
                total += abs(image[tuple(other)] - image[place])
    return total


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("weights", [(0.1, 0.9), (1.0, 0.0), (0.0, 2.0)])
def test_value_follows_the_formula(spatial_dims, weights):
    output, source = example(spatial_dims)
    own, rest = summed(output.numpy()), summed((source - output).numpy())
    expected = (weights[0] * own + weights[1] * rest) / output.numel()
    loss = JointTotalVariationLoss(*weights)
    assert loss(output, source).item() == pytest.approx(expected, rel=1e-12)
    assert loss(output.float(), source.float()).item() == pytest.approx(expected, rel=1e-5)


def test_the_authors_term_is_the_number_of_voxels_over_20_times_this():
    generator = torch.Generator().manual_seed(0)
    output, source = (torch.randn(4, 1, 16, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    authors = 0.1 * summed(output.numpy()) / 20 + 0.9 * summed((source - output).numpy()) / 20
    assert authors == pytest.approx(joint_total_variation_loss(output, source).item() * output.numel() / 20)
    assert round(64 * 64 * 64 / 20) == 13107


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_gradient(spatial_dims):
    output, source = (tensor[:1, :1].contiguous().requires_grad_() for tensor in example(spatial_dims))
    assert torch.autograd.gradcheck(joint_total_variation_loss, (output, source))


def test_invariances():
    output, source = example(3)
    value = joint_total_variation_loss(output, source).item()
    assert joint_total_variation_loss(output + 5, source - 3).item() == pytest.approx(value)
    assert joint_total_variation_loss(output.flip(2, 4), source.flip(2, 4)).item() == pytest.approx(value)
    assert joint_total_variation_loss(output.movedim(2, 4), source.movedim(2, 4)).item() == pytest.approx(value)
    assert joint_total_variation_loss(output * 2000, source * 2000).item() == pytest.approx(2000 * value)
    doubled = joint_total_variation_loss(torch.cat([output] * 2), torch.cat([source] * 2)).item()
    assert doubled == pytest.approx(value)
    # a volume of depth one is the slice
    assert joint_total_variation_loss(output[..., :1], source[..., :1]).item() == pytest.approx(
        joint_total_variation_loss(output[..., 0], source[..., 0]).item()
    )


def test_small_differences_survive_autocast_and_half_precision():
    output = torch.full((1, 1, 8, 8), 1000.0)
    output[..., 1::2] += 0.25
    source = output + 0.125
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = joint_total_variation_loss(output, source)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(0.1 * 0.25 * 7 / 8)
    half = joint_total_variation_loss(MetaTensor(output.half()), source.half())
    assert half.dtype == torch.float32 and type(half) is torch.Tensor


def test_one_voxel_and_equal_images():
    one = torch.ones(1, 1, 1, 1, requires_grad=True)
    loss = joint_total_variation_loss(one, torch.zeros(1, 1, 1, 1))
    loss.backward()
    assert loss.item() == 0 and not one.grad.any()
    flat = torch.ones(1, 1, 4, 4, requires_grad=True)
    joint_total_variation_loss(flat, torch.ones(1, 1, 4, 4)).backward()
    assert not flat.grad.any()


def test_bad_input():
    image = torch.zeros(1, 1, 4, 4)
    for output, source in ((image, image[..., :3]), (image[0, 0], image[0, 0]), (image[:0], image[:0])):
        with pytest.raises(ValueError, match=r"images \(B, C, \*spatial\) of one shape, got"):
            joint_total_variation_loss(output, source)
    with pytest.raises(TypeError, match="got torch.int64"):
        joint_total_variation_loss(image, image.long())
    with pytest.raises(TypeError, match="got ndarray"):
        joint_total_variation_loss(np.zeros((1, 1, 2)), image)
    for weights in ((-0.1, 1), (0.1, float("nan")), (float("inf"), 1)):
        with pytest.raises(ValueError, match="weights must be finite and 0 or more, got"):
            JointTotalVariationLoss(*weights)
    assert repr(JointTotalVariationLoss()) == "JointTotalVariationLoss(weight_output=0.1, weight_residual=0.9)"
