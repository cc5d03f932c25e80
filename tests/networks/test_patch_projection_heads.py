# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from monai_labelfx.networks.patch_projection_heads import PatchProjectionHeads
from monai_labelfx.ops.patch_positions import patch_positions

SIZES = {1: (13,), 2: (9, 6), 3: (5, 4, 7)}


def dense(heads: PatchProjectionHeads, taps: list[torch.Tensor], positions: torch.Tensor) -> list[torch.Tensor]:
    """Project and pool the whole map, then take the blocks, then normalise: the order of the authors' code."""
    spatial_dims = len(heads.stride)
    conv, pool = getattr(F, f"conv{spatial_dims}d"), getattr(F, f"avg_pool{spatial_dims}d")
    found = []
    for tap, first, second in zip(taps, heads.first, heads.second, strict=True):
        ones = [1] * spatial_dims
        hidden = F.relu(conv(tap, first.weight.view(*first.weight.shape, *ones), first.bias))
        full = conv(pool(hidden, heads.stride), second.weight.view(*second.weight.shape, *ones), second.bias)
        for _ in range(2):
            full = full / (full.square().sum(1, keepdim=True).sqrt() + 1e-7)
        images = []
        for image, places in zip(full, positions.tolist(), strict=True):
            blocks = [tuple(p // s for p, s in zip(place, heads.stride, strict=True)) for place in places]
            images.append(torch.stack([image[(slice(None), *block)] for block in blocks]))
        found.append(torch.stack(images))
    return found


def example(spatial_dims: int, pool=0, channels=(3, 5), batch: int = 2, seed: int = 0):
    torch.manual_seed(seed)
    heads = PatchProjectionHeads(spatial_dims, channels, 8, pool=pool).double()
    for parameter in heads.parameters():  # biases matter too
        torch.nn.init.normal_(parameter)
    taps = [torch.randn(batch, c, *SIZES[spatial_dims], dtype=torch.float64) for c in channels]
    positions = patch_positions(SIZES[spatial_dims], batch, 4, stride=heads.stride)
    return heads, taps, positions


@pytest.mark.parametrize(
    ("spatial_dims", "pool"), [(1, 0), (1, 1), (2, 0), (2, 1), (2, (2, 0)), (3, 0), (3, 1), (3, (1, 1, 0))]
)
def test_equals_projecting_the_whole_map(spatial_dims, pool):
    heads, taps, positions = example(spatial_dims, pool)
    other, others = copy.deepcopy(heads), [tap.clone().requires_grad_() for tap in taps]
    taps = [tap.requires_grad_() for tap in taps]
    found, expected = heads(taps, positions), dense(other, others, positions)
    weights = [torch.randn_like(tensor) for tensor in expected]
    for tensor, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=2e-7)  # the epsilon of the authors' norm
    for result in (found, expected):
        sum((tensor * weight).sum() for tensor, weight in zip(result, weights, strict=True)).backward()
    for tensor, wanted in zip([*taps, *heads.parameters()], [*others, *other.parameters()], strict=True):
        assert wanted.grad.abs().max() > 0
        torch.testing.assert_close(tensor.grad, wanted.grad, rtol=1e-5, atol=1e-7)


def test_float32_equals_the_dense_float64():
    heads, taps, positions = example(2, 1)
    expected = dense(heads, taps, positions)
    for tensor, wanted in zip(heads.float()([tap.float() for tap in taps], positions), expected, strict=True):
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.double(), wanted, rtol=0, atol=2e-6)


def test_reference_preset():
    heads = PatchProjectionHeads(2)
    assert sum(p.numel() for p in PatchProjectionHeads(2, (32,)).parameters()) == 20_736
    assert sum(p.numel() for p in heads.parameters()) == 2 * 20_736
    assert sum(p.numel() for p in PatchProjectionHeads(3, (32,), pool=1).parameters()) == 20_736
    for name, parameter in heads.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.05)
    assert not any("offsets" in name for name in heads.state_dict())
    assert PatchProjectionHeads(3, pool=(2, 1, 0)).stride == (4, 2, 1)


def test_embeddings_have_length_one():
    heads = PatchProjectionHeads(2)
    taps = [torch.randn(2, 32, 16, 16) * scale for scale in (1e-3, 1e3)]
    for tensor in heads(taps, patch_positions((16, 16), 2, 64)):
        assert tensor.shape == (2, 64, 128)
        assert tensor.norm(dim=-1).flatten().tolist() == pytest.approx([1] * 128, abs=1e-6)


def test_patches_without_features_are_0_and_pull_nothing():
    heads = PatchProjectionHeads(2, (4,), 8, pool=1)
    tap = torch.randn(1, 4, 4, 4)
    tap[..., :2, :2] = 0
    tap.requires_grad_()
    (found,) = heads([tap], torch.tensor([[[0, 0], [2, 2]]]))
    assert not found[0, 0].any() and found[0, 1].norm().item() == pytest.approx(1, abs=1e-6)
    found[0, 0].sum().backward()
    assert not tap.grad.any()
    assert all(p.grad is None or not p.grad.any() for p in heads.parameters())


def test_a_patch_may_come_twice():
    heads, taps, _ = example(2, 1, channels=(3,))
    taps[0].requires_grad_()
    positions = torch.tensor([[[2, 2]], [[4, 0]]])
    (twice,) = heads(taps, positions.expand(2, 2, 2))
    assert torch.equal(twice[:, 0], twice[:, 1])
    (gradient,) = torch.autograd.grad(twice[..., 0].sum(), taps)
    (single,) = torch.autograd.grad(heads(taps, positions)[0][..., 0].sum(), taps)
    torch.testing.assert_close(gradient, 2 * single)


def test_layout_batch_and_type_of_the_taps_do_not_matter():
    heads, taps, positions = example(2, 1)
    expected = heads(taps, positions)
    for changed in (
        [tap.to(memory_format=torch.channels_last) for tap in taps],
        [MetaTensor(tap) for tap in taps],
    ):
        for tensor, wanted in zip(heads(changed, positions), expected, strict=True):
            assert torch.equal(tensor, wanted) and type(tensor) is torch.Tensor
    for tensor, wanted in zip(heads([tap[1:] for tap in taps], positions[1:]), expected, strict=True):
        torch.testing.assert_close(tensor, wanted[1:])


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(low):
    heads, taps, positions = example(2)
    heads, taps = heads.float(), [tap.to(low) for tap in taps]
    expected = heads([tap.float() for tap in taps], positions)
    with torch.autocast("cpu", dtype=low):
        found = heads(taps, positions)
    for tensor, wanted in zip(found, expected, strict=True):
        assert tensor.dtype == torch.float32 and torch.equal(tensor, wanted)


def test_bad_input():
    heads, taps, positions = example(2)
    with pytest.raises(ValueError, match="taps must be the 2 layers of in_channels, got 1"):
        heads(taps[:1], positions)
    for wrong in (taps[::-1], [taps[0], taps[1][..., :-1]], [tap[..., 0] for tap in taps]):
        with pytest.raises(ValueError, match=r"with \(3, 5\) channels and 2 spatial axes of the same size, got"):
            heads(wrong, positions)
    for wrong in (positions[:1], positions[0], positions[..., :1]):
        with pytest.raises(ValueError, match=r"positions must be \(2, K, 2\), got"):
            heads(taps, wrong)
    for options, message in (
        ({"pool": -1}, "pool must be 0 or more"),
        ({"pool": (1, 1, 1)}, "3"),
        ({"in_channels": ()}, "layers must be 1 or more"),
        ({"in_channels": (0,)}, "in_channels must be 1 or more"),
        ({"features": 0}, "features must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            PatchProjectionHeads(2, **options)
