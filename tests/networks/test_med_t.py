# SPDX-License-Identifier: Apache-2.0
"""The Medical Transformer: published counts, a grid of patches that covers every image, gates."""

from __future__ import annotations

import math

import pytest
import torch
from segmentation_network_tester import SegmentationNetworkContract, image

from monai_labelfx.networks.med_t import MedT

TINY = {"features": 8, "heads": 2, "blocks": (1, 1), "global_levels": 1, "img_size": 24}


def tiny(spatial_dims: int, in_channels: int = 2, out_channels: int = 3, **keywords) -> MedT:
    torch.manual_seed(0)
    return MedT(spatial_dims, in_channels, out_channels, **{**TINY, "grid": 2, **keywords})


class TestContract(SegmentationNetworkContract):
    @staticmethod
    def make(spatial_dims, in_channels, out_channels, **keywords):
        return tiny(spatial_dims, in_channels, out_channels, **keywords)


class TestContractWithoutLocal(SegmentationNetworkContract):
    @staticmethod
    def make(spatial_dims, in_channels, out_channels, **keywords):
        return tiny(spatial_dims, in_channels, out_channels, local=False, **keywords)


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def counted(spatial_dims: int, in_channels: int, stem: int, blocks, size: int, bottleneck: bool, f: int = 16) -> int:
    """Weights, norms (2 per channel), gates and positions of one branch, from the architecture."""
    cube = 3**spatial_dims
    total = 7**spatial_dims * in_channels * stem + 2 * cube * stem * 8 * f + 2 * (2 * stem + 8 * f)
    channels, size = stem, math.ceil(size / 2)
    for level, count in enumerate(blocks):
        w = f * 2**level
        for number in range(count):
            axial = 2 * w * w + 4 * w + 2 * w + 4 + (2 * size - 1) * 2 * (w // 8)
            total += channels * w + 2 * w + spatial_dims * axial + 2 * w * w + 4 * w
            if number == 0:
                total += channels * 2 * w + 4 * w
            size = math.ceil(size / 2) if level and not number else size
            channels = 2 * w
    widths = [2 * f * 2**level for level in range(len(blocks))]
    total += sum(cube * w * w // 2 + w // 2 for w in widths)
    return total + bottleneck * (cube * widths[-1] ** 2 + widths[-1])


@pytest.mark.parametrize(("spatial_dims", "both", "alone"), [(2, 1_524_034, 1_324_290), (3, 4_009_782, 3_409_694)])
def test_parameter_counts_are_near_the_published_ones(spatial_dims, both, alone):
    net = MedT(spatial_dims, 3, 2)
    branches = counted(spatial_dims, 3, 8, (1, 2), 128, False) + counted(spatial_dims, 3, 64, (1, 2, 4, 1), 32, True)
    assert parameters(net) == branches + 34 == both
    net = MedT(spatial_dims, 3, 2, local=False)
    assert parameters(net) == counted(spatial_dims, 3, 8, (1, 2, 4, 1), 128, True) + 34 == alone
    if spatial_dims == 2:
        assert both == pytest.approx(1_560_140, rel=0.025) and alone == pytest.approx(1_326_914, rel=0.002)


class Nothing(torch.nn.Module):
    """A global branch that is switched off."""

    def forward(self, x):
        return torch.zeros(())


@pytest.mark.parametrize(("spatial_dims", "size"), [(2, (44, 32)), (2, (300, 24)), (3, (16, 24, 12))])
def test_each_patch_of_the_grid_is_seen_by_its_own_region_and_by_no_other(spatial_dims, size):
    """The released loop covers sixteen patches of 32 pixels: at 300 all else would be blind."""
    net = tiny(spatial_dims, grid=4 if spatial_dims == 2 else 2).eval()
    net.global_branch = Nothing()
    x = image(*size).requires_grad_()
    out = net(x)
    patch = [math.ceil(n / g) for n, g in zip(size, net.divisor, strict=True)]
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) // p for n, p in zip(size, patch, strict=True)), indexing="ij"))
    number = sum(row * 10**axis for axis, row in enumerate(grid))
    assert len(number.unique()) == math.prod(net.divisor)
    for one in number.unique():
        region = number == one
        (grad,) = torch.autograd.grad(out[..., region].square().sum(), x, retain_graph=True)
        assert (grad[..., region] != 0).any(1).float().mean() > 0.9 and not grad[..., ~region].any()


def test_equal_patches_give_equal_outputs_wherever_they_are():
    net = tiny(2, grid=(2, 3)).eval()
    net.global_branch = Nothing()
    patch = image(10, 8)
    torch.testing.assert_close(
        net(patch.repeat(1, 1, 2, 3)), net(patch.repeat(1, 1, 2, 3))[..., :10, :8].repeat(1, 1, 2, 3)
    )


@pytest.mark.parametrize(("spatial_dims", "grid"), [(2, (2, 3)), (3, (3, 1, 2))])
def test_cut_and_join_are_inverse_and_keep_the_patches(spatial_dims, grid):
    net = tiny(spatial_dims, grid=grid)
    x = image(6, 12, 4, batch=2)[(..., *[0] * (3 - spatial_dims))]
    patches = net._cut(x)
    assert patches.shape[0] == 2 * math.prod(grid) and torch.equal(net._join(patches), x)
    size = [n // g for n, g in zip(x.shape[2:], grid, strict=True)]
    assert torch.equal(patches[:2], x[(..., *(slice(n) for n in size))])
    assert torch.equal(patches[-2:], x[(..., *(slice(-n, None) for n in size))])


def test_the_sum_of_both_branches_goes_through_the_head():
    net, x = tiny(2).eval(), image(16, 12)
    local = torch.cat([torch.cat([net.local_branch(p) for p in row.chunk(2, 3)], 3) for row in x.chunk(2, 2)], 2)
    torch.testing.assert_close(net(x), net.head(net.global_branch(x) + local))
    assert net.global_branch.stem[1].out_channels == 4 and net.local_branch.stem[1].out_channels == 32
    assert len(net.global_branch.levels) == 1 and len(net.local_branch.levels) == 2


def test_without_the_local_branch_there_is_one_deep_branch_and_no_padding():
    net, x = tiny(2, local=False).eval(), image(17, 13)
    assert net.divisor == (1, 1) and len(net.global_branch.levels) == 2 and net.global_branch.bottleneck
    torch.testing.assert_close(net(x), net.head(net.global_branch(x)))


def test_gates_can_be_fixed_for_the_first_epochs():
    net = tiny(2)
    gates = net.gate_parameters()
    assert len(gates) == 2 * (1 + 2) and all(g.shape == (4,) for g in gates)
    for gate in gates:
        gate.requires_grad_(False)
    net(image(16, 16)).sum().backward()
    assert all(g.grad is None for g in gates) and net.head.weight.grad is not None


def test_batch_norm_with_one_voxel_is_refused_and_patches_count_as_images():
    net = tiny(2, img_size=8, grid=4).train()
    assert net(torch.rand(1, 2, 8, 8)).shape == (1, 3, 8, 8), "sixteen patches of one voxel each, four at the image"
    net = tiny(2, local=False, blocks=(1, 1, 1)).train()
    with pytest.raises(ValueError, match=r"Batch norm has one voxel .* size \(8, 7\) are halved"):
        net(torch.rand(1, 2, 8, 7))
    assert net(torch.rand(2, 2, 8, 7)).shape == (2, 3, 8, 7) and net(torch.rand(1, 2, 9, 7)).shape == (1, 3, 9, 7)
    with pytest.raises(ValueError, match=r"Instance norm has one voxel .* size \(4, 4\)"):
        tiny(2, norm="instance")(torch.rand(2, 2, 8, 8))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"features": 6}, r"features must be a multiple of 2 \* heads = 4, got 6"),
        ({"heads": 0}, "heads must be 1 or more, got 0"),
        ({"blocks": ()}, "blocks must hold one or more numbers of 1 or more"),
        ({"blocks": (1, 0)}, "blocks must hold one or more"),
        ({"global_levels": 3}, "global_levels must be at most 2, the entries of blocks, got 3"),
        ({"grid": (2, 2, 2)}, "strides must be one number or 2"),
        ({"img_size": 0}, "img_size must hold whole numbers of 1 or more"),
        ({"norm": "layerless"}, "norm must be"),
    ],
)
def test_bad_arguments_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        tiny(2, **keywords)
