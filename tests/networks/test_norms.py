# SPDX-License-Identifier: Apache-2.0
"""Norms by name: what each computes, which parameters it has, and the groups of group norm."""

from __future__ import annotations

import pytest
import torch

from monai_labelfx.networks._norms import FrozenBatchNorm, make_norm

SHAPES = {1: (2, 8, 5), 2: (2, 8, 5, 3), 3: (2, 8, 5, 3, 4)}


def filled(norm: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    for value in (*norm.parameters(), *norm.buffers()):
        if value.is_floating_point():
            value.data.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return norm


@pytest.mark.parametrize("spatial_dims", SHAPES)
def test_frozen_batch_norm_is_the_formula(spatial_dims):
    norm = filled(FrozenBatchNorm(8, eps=0.25)).double()
    x = torch.randn(SHAPES[spatial_dims], dtype=torch.float64)
    weight, bias, mean, var = (
        value.reshape(-1, *(1 for _ in range(spatial_dims)))
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    expected = weight * (x - mean) / torch.sqrt(var + 0.25) + bias
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


def test_frozen_batch_norm_stands_in_for_batch_norm():
    batch, frozen = filled(torch.nn.BatchNorm2d(8)).eval(), FrozenBatchNorm(8)
    frozen.load_state_dict({k: v for k, v in batch.state_dict().items() if k != "num_batches_tracked"})
    x = torch.randn(SHAPES[2]) * 3 + 1
    assert torch.equal(frozen(x), batch(x))
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    frozen.train()
    assert torch.equal(frozen(x), batch(x)), "training changes nothing"
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    assert not list(frozen.parameters())


def test_frozen_batch_norm_passes_the_gradient_on():
    norm = filled(FrozenBatchNorm(2)).double()
    assert torch.autograd.gradcheck(norm, torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(2048, 32), (256, 32), (128, 16), (64, 8), (48, 4), (36, 4), (320, 32), (24, 2), (8, 1), (1, 1)],
)
def test_groups_divide_and_hold_enough_channels(channels, groups):
    norm = make_norm("group", 2, channels)
    assert norm.num_groups == groups
    assert channels % groups == 0 and (channels // groups >= 8 or groups == 1)


def test_group_norm_learns_on_one_voxel():
    """Two values of a group would always become -1 and 1, whatever they were."""
    x = torch.randn(1, 64, 1, 1, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    (make_norm("group", 2, 64).double()(x) * torch.randn(1, 64, 1, 1)).sum().backward()
    assert x.grad.abs().mean() > 0.1


@pytest.mark.parametrize("spatial_dims", SHAPES)
@pytest.mark.parametrize("name", ["batch", "frozen_batch", "group", "instance", "GROUP"])
def test_names(name, spatial_dims):
    norm = make_norm(name, spatial_dims, 8)
    x = torch.randn(SHAPES[spatial_dims]) * 3 + 1
    y = norm(x)
    assert y.shape == x.shape
    assert norm.weight.shape == (8,) and norm.bias.shape == (8,), "a scale and a shift for every channel"
    if name != "frozen_batch":
        dims = {"batch": (0, *range(2, x.ndim)), "instance": tuple(range(2, x.ndim))}.get(name)
        mean = y.mean(dims) if dims else y.reshape(2, -1).mean(1)
        assert mean.abs().max() < 1e-5


def test_monai_pairs_and_none():
    assert make_norm(("group", {"num_groups": 2, "eps": 0.1}), 3, 8).num_groups == 2
    assert make_norm(("frozen_batch", {"eps": 0.0}), 3, 8).eps == 0
    assert make_norm(("batch", {"momentum": 0.3}), 3, 8).momentum == 0.3
    assert not make_norm(("instance", {"affine": False}), 3, 8).affine
    assert isinstance(make_norm(None, 3, 8), torch.nn.Identity)
    options = {"eps": 0.1}
    make_norm(("group", options), 2, 8)
    assert options == {"eps": 0.1}, "the caller's arguments are not edited"


def test_bad_norms():
    with pytest.raises(ValueError, match="norm must be .* got 'bach'"):
        make_norm("bach", 2, 8)
    with pytest.raises(ValueError, match="num_groups=3, which does not divide the 8 channels"):
        make_norm(("group", {"num_groups": 3}), 2, 8)
