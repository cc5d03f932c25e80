# SPDX-License-Identifier: Apache-2.0
"""Spectral norm that is right from the start, norms by name, and the scale of first weights."""

from __future__ import annotations

import pytest
import torch

from monai_labelfx.networks._spectral import add_spectral_norm, feature_norm, he_weights, normal_weights


def stack() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv3d(3, 8, 3, bias=False), torch.nn.ConvTranspose3d(8, 4, 4, 2), torch.nn.Linear(2, 2)
    )


def largest(conv: torch.nn.Module) -> float:
    """Largest singular value of the weight as a matrix with one row per output channel."""
    weight = conv.weight.movedim(1, 0) if "Transpose" in type(conv).__name__ else conv.weight
    return torch.linalg.svdvals(weight.flatten(1))[0].item()


def test_weights_have_unit_norm_before_any_pass_in_training_mode():
    net = stack()
    add_spectral_norm(net)
    net.eval()
    assert [largest(conv) for conv in net[:2]] == pytest.approx([1, 1], rel=0.1)
    assert not hasattr(net[2], "parametrizations"), "convolutions only"
    for _ in range(200):
        net.train()[0].weight, net[1].weight  # reading it is one power iteration
    assert [largest(conv) for conv in net.eval()[:2]] == pytest.approx([1, 1], abs=1e-5)


def test_kept_layers_are_left_alone():
    net = stack()
    add_spectral_norm(net, keep=[net[1]])
    assert hasattr(net[0], "parametrizations") and not hasattr(net[1], "parametrizations")


def test_feature_norms():
    for norm in (None, "spectral"):
        assert isinstance(feature_norm(norm, 2, 4), torch.nn.Identity)
    assert isinstance(feature_norm("batch", 3, 4), torch.nn.BatchNorm3d)
    assert not feature_norm("instance", 2, 4).affine and feature_norm(("instance", {"affine": True}), 2, 4).affine
    with pytest.raises(ValueError, match="norm must be 'spectral', None or a norm of MONAI .* got 'cosmic'"):
        feature_norm("cosmic", 2, 4)


def test_normal_weights():
    net = torch.nn.Sequential(torch.nn.Conv2d(8, 64, 5), torch.nn.BatchNorm2d(256), torch.nn.Linear(64, 64))
    net.append(torch.nn.BatchNorm2d(4, affine=False)).append(torch.nn.Conv2d(1, 1, 1, bias=False))
    normal_weights(net, 0.02)
    means = [net[n].weight.mean().item() for n in range(3)]
    stds = [net[n].weight.std().item() for n in range(3)]
    assert means == pytest.approx([0, 1, 0], abs=0.005) and stds == pytest.approx([0.02] * 3, rel=0.2)
    assert not any(net[n].bias.any() for n in range(3))


@pytest.mark.parametrize("negative_slope", [0.0, 0.2, 1.0])
def test_he_weights_keep_the_variance(negative_slope):
    torch.manual_seed(0)
    net = torch.nn.Sequential()
    for _ in range(3):
        net.append(torch.nn.Conv2d(64, 64, 3, padding=1)).append(torch.nn.LeakyReLU(negative_slope))
        net.append(torch.nn.ConvTranspose2d(64, 64, 4, 2, 1)).append(torch.nn.LeakyReLU(negative_slope))
    he_weights(net, negative_slope)
    with torch.no_grad():
        y = net(torch.randn(1, 64, 12, 12))[..., 8:-8, 8:-8]
    assert 0.4 < y.square().mean().sqrt() < 2
    assert not any(m.bias.any() for m in net if hasattr(m, "bias"))
