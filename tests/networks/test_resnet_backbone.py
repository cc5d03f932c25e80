# SPDX-License-Identifier: Apache-2.0
"""ResNet and ResNeXt: published sizes, MONAI's and torchvision's outputs, strides per axis, first weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import resnet18, resnet50
from torchvision_recipe import SHAPES, seeded_image, seeded_weights, some_channels

from monai_labelfx.networks.resnet_backbone import ResNetBackbone
from monai_labelfx.networks.torchvision_weights import load_torchvision_weights

rows_first = partial(load_torchvision_weights, transpose=False)  # pictures as torchvision has them

GOLDEN = Path(__file__).parent / "torchvision_golden.npz"
RESNEXT = {"depth": 50, "groups": 32, "width_per_group": 4}


def parameters(**keywords) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in ResNetBackbone(2, 3, norm="batch", **keywords).parameters())


@pytest.mark.parametrize(
    ("keywords", "published", "last"),
    [
        ({"depth": 18}, 11_689_512, 512),
        ({"depth": 34}, 21_797_672, 512),
        ({"depth": 50}, 25_557_032, 2048),
        ({"depth": 101}, 44_549_160, 2048),
        ({"depth": 152}, 60_192_808, 2048),
        (RESNEXT, 25_028_904, 2048),
        ({"depth": 101, "groups": 32, "width_per_group": 8}, 88_791_336, 2048),
        ({"depth": 101, "groups": 64, "width_per_group": 4}, 83_455_272, 2048),
        ({"depth": 50, "width_per_group": 128}, 68_883_240, 2048),
    ],
)
def test_parameters_of_the_published_networks(keywords, published, last):
    """Torchvision's counts, less the classifier of 1000 classes."""
    assert parameters(**keywords) == published - (last + 1) * 1000


@pytest.mark.parametrize(
    ("build", "depth", "spatial_dims", "size"),
    [(resnet50, 50, 2, (33, 40)), (resnet18, 18, 3, (17, 20, 12))],
)
def test_monai_s_resnet_has_the_same_names_and_maps(build, depth, spatial_dims, size):
    torch.manual_seed(0)
    options = {"conv1_t_stride": 2, "shortcut_type": "B", "bias_downsample": False, "feed_forward": False}
    theirs = build(spatial_dims=spatial_dims, n_input_channels=1, **options).eval()
    ours = ResNetBackbone(spatial_dims, 1, depth=depth, norm="batch").eval()
    assert rows_first(ours, theirs.state_dict()) == []
    expected = []
    x = torch.randn(1, 1, *size)
    with torch.no_grad():
        found = ours(x)
        x = theirs.maxpool(theirs.act(theirs.bn1(theirs.conv1(x))))
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            x = stage(x)
            expected.append(x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize(("name", "keywords"), [("resnet18", {"depth": 18}), ("resnext50_32x4d", RESNEXT)])
@pytest.mark.parametrize("norm", ["batch", "frozen_batch"])
def test_torchvision_s_maps(name, keywords, norm):
    net = ResNetBackbone(2, 3, norm=norm, **keywords).eval()
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    rows_first(net, seeded_weights(shapes))
    golden = np.load(GOLDEN)
    with torch.no_grad():
        found = some_channels(net(seeded_image(name, SHAPES[name])))
    for index, values in enumerate(found):
        expected = golden[f"{name}.{index}"]
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_strides_and_windows_per_axis():
    net = ResNetBackbone(
        3,
        1,
        depth=10,
        features=4,
        stem_stride=(2, 2, 1),
        pool_stride=(2, 2, 1),
        stage_strides=(1, (2, 2, 1), 2, (1, 2, 2)),
        stem_kernel=(7, 7, 3),
        stage_kernels=((3, 3, 1), (3, 3, 1), 3, 3),
    )
    assert net.strides == [(4, 4, 1), (8, 8, 1), (16, 16, 2), (16, 32, 4)]
    assert [tuple(m.shape[2:]) for m in net(torch.rand(1, 1, 65, 66, 5))] == [
        (17, 17, 5),
        (9, 9, 5),
        (5, 5, 3),
        (5, 3, 2),
    ]
    assert net.conv1.weight.shape[2:] == (7, 7, 3)
    assert net.layer2[0].conv1.weight.shape[2:] == (3, 3, 1) and net.layer3[0].conv1.weight.shape[2:] == (3, 3, 3)


def test_an_axis_of_stride_one_is_not_pooled():
    net = ResNetBackbone(3, 1, depth=10, features=4, pool_stride=(2, 2, 1), norm="frozen_batch")
    x = torch.randn(1, 4, 8, 8, 6)
    slices = [net.maxpool(x[..., k : k + 1]) for k in range(6)]
    assert torch.equal(net.maxpool(x), torch.cat(slices, dim=-1))


@pytest.mark.parametrize("depth", [18, 50])
def test_zero_init_lets_new_blocks_pass_their_input_on(depth):
    net = ResNetBackbone(2, 1, depth=depth, features=16, zero_init=True)
    block = net.layer1[1]
    x = torch.rand(1, net.out_channels[0], 9, 9)
    assert torch.equal(block(x), x)
    block = ResNetBackbone(2, 1, depth=depth, features=16).layer1[1]
    assert not torch.allclose(block(x), x)


def test_trains_from_scratch_on_single_images():
    """Group norm, batches of one, maps down to one voxel: the loss falls and stays finite."""
    torch.manual_seed(0)
    net = ResNetBackbone(2, 1, depth=10, features=8)
    head = torch.nn.Linear(64, 1)
    optimiser = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.02, momentum=0.9)
    losses = []
    for step in range(40):
        image = 0.3 * torch.randn(1, 1, 32, 32)
        image[..., :16, :] += step % 2
        loss = torch.nn.functional.softplus((1 - 2 * (step % 2)) * head(net(image)[-1].mean((2, 3)))).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])


def test_bad_arguments():
    with pytest.raises(ValueError, match="depth must be one of .* got 51"):
        ResNetBackbone(2, 1, depth=51)
    with pytest.raises(ValueError, match="groups=32 and width_per_group=4 need bottlenecks.*depth=18 has basic blocks"):
        ResNetBackbone(2, 1, depth=18, groups=32, width_per_group=4)
    with pytest.raises(ValueError, match="width_per_group=4 at features=8 leaves a group .* must be 8 or more"):
        ResNetBackbone(2, 1, features=8, groups=2, width_per_group=4)
    with pytest.raises(ValueError, match="stage_strides must have 4 entries, one per stage, got 2"):
        ResNetBackbone(2, 1, stage_strides=2)
    with pytest.raises(ValueError, match=r"an entry of stage_strides must be one number or 2.* got \(2, 2, 1\)"):
        ResNetBackbone(2, 1, stage_strides=(1, 2, 2, (2, 2, 1)))
    with pytest.raises(ValueError, match=r"stem_stride must be one number or 3.* got \(2, 2\)"):
        ResNetBackbone(3, 1, stem_stride=(2, 2))
    with pytest.raises(ValueError, match="stem_kernel and stage_kernels must be odd, got 6"):
        ResNetBackbone(2, 1, stem_kernel=6)
    with pytest.raises(ValueError, match="zero_init needs a norm with a trained scale"):
        ResNetBackbone(2, 1, depth=10, norm="frozen_batch", zero_init=True)


def test_the_stem_does_not_pad_inside_its_convolution():
    """With five voxels on the first axis such a convolution, in 3-D, writes beyond its memory in the backward pass."""
    net = ResNetBackbone(3, 1, depth=10, features=8)
    assert tuple(net.conv1.padding) == (0, 0, 0)
    image = torch.rand(1, 1, 5, 9, 8)
    padded = torch.nn.functional.conv3d(image, net.conv1.weight, stride=2, padding=3)
    assert torch.equal(net.conv1(torch.nn.functional.pad(image, [3] * 6)), padded)
    for _ in range(3):
        sum(level.sum() for level in net(torch.rand(2, 1, 5, 32, 32))).backward()
