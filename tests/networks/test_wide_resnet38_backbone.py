# SPDX-License-Identifier: Apache-2.0
"""Wide ResNet-38: published size and names, a naive reference, dilations by what a voxel sees, freezing, export."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch.export import Dim

from monai_labelfx.networks.wide_resnet38_backbone import WideResNet38Backbone

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])
# name, stride, dilations of its windows of 3 (two, or the one of a bottleneck), as in the public PyTorch networks
BLOCKS = [
    ("b2", 2, (1, 1)), ("b2_1", 1, (1, 1)), ("b2_2", 1, (1, 1)),
    ("b3", 2, (1, 1)), ("b3_1", 1, (1, 1)), ("b3_2", 1, (1, 1)),
    ("b4", 2, (1, 1)), *((f"b4_{i}", 1, (1, 1)) for i in range(1, 6)),
    ("b5", 1, (1, 2)), ("b5_1", 1, (2, 2)), ("b5_2", 1, (2, 2)),
    ("b6", 1, (4,)), ("b7", 1, (2,)),
]  # fmt: skip


def small(spatial_dims: int = 2, in_channels: int = 1, seed: int = 0, **keywords) -> WideResNet38Backbone:
    """A narrow one, whose statistics are not those of a fresh one."""
    torch.manual_seed(seed)
    net = WideResNet38Backbone(spatial_dims, in_channels, **{"width": 1 / 16, **keywords})
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
    return net


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def on_meta(spatial_dims: int = 2, **keywords) -> WideResNet38Backbone:
    with torch.device("meta"):
        return WideResNet38Backbone(spatial_dims, 3, **keywords)


def test_size_of_the_published_network():
    """105.09 million with the classifier of 5632 features and two classes, which its code has twice; 105.04 trained."""
    net = on_meta()
    assert sum(net.out_channels[-3:]) == 5632
    classifier = 5632 * 2 + 2
    assert parameters(net) + 2 * classifier == 105_093_444
    assert parameters(on_meta(norm="frozen_batch", frozen_stages=0)) + 2 * classifier == 105_043_972
    assert net.out_channels == [256, 512, 1024, 4096]
    assert net.strides == [(4, 4), (8, 8), (8, 8), (8, 8)] and net.first_level == 2


@pytest.mark.parametrize(
    ("spatial_dims", "width", "millions"),
    [(2, 1 / 2, 26.3), (2, 1 / 4, 6.6), (2, 1 / 8, 1.65), (3, 1, 267), (3, 1 / 4, 16.7)],
)
def test_sizes_of_narrow_networks_and_volumes(spatial_dims, width, millions):
    net = on_meta(spatial_dims, width=width)
    assert abs(parameters(net) / 1e6 / millions - 1) < 0.005
    assert net.out_channels == [width * c for c in (256, 512, 1024, 4096)]


def test_channels_are_multiples_of_eight():
    assert on_meta(width=0.3).out_channels == [80, 152, 304, 1232]
    assert {w.shape[0] for w in on_meta(width=1e-9).parameters()} == {8}


def test_names_and_shapes_of_the_published_files():
    shapes = {name: tuple(value.shape) for name, value in on_meta().state_dict().items()}
    layers = {name.rpartition(".")[0] for name in shapes}
    expected = {"conv1a", "bn7"}
    for name, _, dilations in BLOCKS:
        parts = ["bn_branch2a", "conv_branch2a", "bn_branch2b1", "conv_branch2b1"]
        parts += ["bn_branch2b2", "conv_branch2b2"] if len(dilations) == 1 else []
        parts += ["conv_branch1"] if "_" not in name else []
        expected |= {f"{name}.{part}" for part in parts}
    assert layers == expected
    assert shapes["conv1a.weight"] == (64, 3, 3, 3)
    assert shapes["b5.conv_branch2a.weight"] == (512, 512, 3, 3)
    assert shapes["b5.conv_branch2b1.weight"] == (1024, 512, 3, 3)
    assert shapes["b7.conv_branch2a.weight"] == (1024, 2048, 1, 1)
    assert shapes["b7.conv_branch2b1.weight"] == (2048, 1024, 3, 3)
    assert shapes["b7.conv_branch2b2.weight"] == shapes["b7.conv_branch1.weight"][:1] + (2048, 1, 1)
    assert shapes["b6.bn_branch2b2.running_var"] == (1024,) and shapes["bn7.weight"] == (4096,)


def naive(net: WideResNet38Backbone, x: torch.Tensor) -> list[torch.Tensor]:
    """The published forward pass, layer by layer, from the state dict alone."""
    state, conv = net.state_dict(), CONV[x.ndim - 2]

    def run(name, x, stride=1, dilation=1):
        weight = state[f"{name}.weight"]
        return conv(x, weight, None, stride, (weight.shape[-1] // 2) * dilation, dilation)

    def norm_relu(name, x):
        if f"{name}.weight" in state:
            mean, var, weight, bias = (
                state[f"{name}.{part}"].view(1, -1, *(1,) * (x.ndim - 2))
                for part in ("running_mean", "running_var", "weight", "bias")
            )
            x = (x - mean) / (var + 1e-5) ** 0.5 * weight + bias
        return x.clamp(min=0)

    x, maps = run("conv1a", x), []
    for name, stride, dilations in BLOCKS:
        start = norm_relu(f"{name}.bn_branch2a", x)
        if name in ("b4", "b5", "b6"):
            maps.append(start)
        shortcut = run(f"{name}.conv_branch1", start, stride) if "_" not in name else x
        if len(dilations) == 2:
            inner = run(f"{name}.conv_branch2a", start, stride, dilations[0])
            inner = run(f"{name}.conv_branch2b1", norm_relu(f"{name}.bn_branch2b1", inner), 1, dilations[1])
        else:
            inner = run(f"{name}.conv_branch2a", start, stride)
            inner = run(f"{name}.conv_branch2b1", norm_relu(f"{name}.bn_branch2b1", inner), 1, dilations[0])
            inner = run(f"{name}.conv_branch2b2", norm_relu(f"{name}.bn_branch2b2", inner))
        x = shortcut + inner
    return [*maps, norm_relu("bn7", x)]


@pytest.mark.parametrize("size", [(67,), (35, 40), (17, 9, 20), (1, 1, 1)])
@pytest.mark.parametrize("norm", ["batch", "frozen_batch", None])
def test_naive_reference(size, norm):
    net = small(len(size), 2, norm=norm).double().eval()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    for found, expected in zip(net(x), naive(net, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1, 1), (32, 33, 31), (7, 60, 9)])
def test_maps_have_the_ceiling_of_n_over_stride(spatial_dims, size):
    net = small(spatial_dims, norm="group")
    size = size[:spatial_dims]
    maps = net(torch.rand(2, 1, *size))
    assert [m.shape[1] for m in maps] == net.out_channels
    for m, stride in zip(maps, net.strides, strict=True):
        assert tuple(m.shape[2:]) == tuple(-(-n // s) for n, s in zip(size, stride, strict=True))


def seen_by(run, x: torch.Tensor, place: int) -> list[int]:
    """Offsets along an axis of one map voxel's input, where its gradient is not zero."""
    x = x.clone().requires_grad_()
    run(x)[..., place].sum().backward()
    return torch.nonzero(x.grad.abs().sum((0, 1))).flatten().tolist()


@pytest.mark.parametrize(("last", "radius"), [(2, 262), (4, 278)])
def test_what_a_voxel_of_the_last_map_sees(last, radius):
    """1 (conv1a) + 1 + 5*2 (b2) + 2 + 5*4 (b3) + 4 + 11*8 (b4) + 8 + 5*16 (b5) + 32 (b6) + 8 * last (b7)."""
    net = small(1, dilations=(1, 1, 1, 2, 4, last)).double().eval()
    seen = seen_by(lambda x: net(x)[-1], torch.randn(1, 1, 640, dtype=torch.float64), 40)
    assert (seen[0], seen[-1]) == (320 - radius, 320 + radius)


@pytest.mark.parametrize(
    ("block", "offsets"),
    [("b4_1", range(-2, 3)), ("b5", range(-3, 4)), ("b5_1", range(-4, 5, 2)), ("b6", (-4, 0, 4)), ("b7", (-2, 0, 2))],
)
def test_dilations_of_the_blocks(block, offsets):
    block = getattr(small(1).double().eval(), block)
    x = torch.randn(1, block.bn_branch2a.num_features, 21, dtype=torch.float64)
    assert seen_by(block, x, 10) == [10 + offset for offset in offsets]


@pytest.mark.parametrize(
    ("strides", "dilations", "ours", "usual"),
    [
        ((2, 2, 1, 1, 1, 1), (1, 1, 2, 4, 8, 4), (2, 2), (1, 1)),
        ((2, 2, (2, 1), 1, 1, 1), (1, 1, (1, 2), (2, 4), (4, 8), (2, 4)), (1, 2), (1, 1)),
        ((2, 2, 2, 2, 1, 1), (1, 1, 1, 1, 2, 1), (1, 1), (2, 2)),
    ],
)
def test_another_output_stride_has_the_same_voxels(strides, dilations, ours, usual):
    """With a dilation for a stride, or the other way round, maps agree up to the ends where both have a voxel."""
    image = torch.randn(1, 1, 45, 66, dtype=torch.float64)
    net = small(stage_strides=strides, dilations=dilations).double().eval()
    maps = net(image)
    for m, total in zip(maps, net.strides, strict=True):
        assert tuple(m.shape[2:]) == tuple(-(-n // s) for n, s in zip((45, 66), total, strict=True))
    expected = small().double().eval()(image)
    torch.testing.assert_close(maps[0], expected[0], rtol=1e-9, atol=1e-9)
    for index in (1, 2, 3):
        first = 1 if index == 1 else usual[0]  # b5 begins with what b4 gives, at the stride before its own
        found = maps[index][:, :, :: ours[0], :: ours[1]]
        torch.testing.assert_close(found, expected[index][:, :, ::first, ::first], rtol=1e-9, atol=1e-9)


def test_a_flat_volume_is_an_image():
    flat, deep = small(2).eval(), small(3).eval()
    state = {}
    for name, value in deep.state_dict().items():  # only the middle slice of a window sees anything
        source = flat.state_dict()[name]
        state[name] = source if source.shape == value.shape else F.pad(source[..., None], (value.shape[-1] // 2,) * 2)
    deep.load_state_dict(state)
    image = torch.rand(1, 1, 37, 45)
    for m, volume in zip(flat(image), deep(image[..., None]), strict=True):
        torch.testing.assert_close(volume[..., 0], m, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stages", "still"), [(-1, 0), (0, 0), (1, 6), (6, 37)])
def test_frozen_stages_keep_their_statistics(stages, still):
    net = small(frozen_stages=stages)
    before = {name: value.clone() for name, value in net.state_dict().items() if name.endswith("running_mean")}
    assert net.train() is net and net.training
    for index, part in enumerate(net.parts()):
        assert all(p.requires_grad == (index > stages) for module in part for p in module.parameters())
    net(torch.rand(4, 1, 33, 33))
    assert sum(torch.equal(net.state_dict()[name], value) for name, value in before.items()) == still
    parts = [id(p) for part in net.parts() for module in part for p in module.parameters()]
    assert sorted(parts) == sorted(id(p) for p in net.parameters())


def test_frozen_norms_are_never_trained():
    net = small(norm="frozen_batch").train()
    assert all(p.ndim > 1 for p in net.parameters())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net(torch.rand(2, 1, 20, 20))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@DIMS
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_gradients_reach_every_parameter(spatial_dims, norm):
    net = small(spatial_dims, norm=norm)
    sum(m.square().sum() for m in net(torch.rand(2, 1, *(33, 24, 17)[:spatial_dims]))).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_first_weights_are_he_s():
    weight = small().b7.conv_branch1.weight
    assert abs(weight.var() * weight.shape[0] / 2 - 1) < 0.05


def test_dropout_zeroes_whole_channels_in_training_only():
    net, image = small(norm="frozen_batch"), torch.rand(1, 1, 40, 33)
    net.eval()
    assert all(torch.equal(a, b) for a, b in zip(net(image), net(image), strict=True))
    expected = net(image)
    dropped = net.train()(image)
    assert all(torch.equal(a, b) for a, b in zip(expected[:3], dropped[:3], strict=True))
    assert not torch.equal(expected[3], dropped[3])
    rates = [drop.p for block in (net.b6, net.b7) for drop in (block.dropout_2b1, block.dropout_2b2)]
    assert rates == [0.3, 0.3, 0.5, 0.5]
    channels = net.b7.dropout_2b2(torch.ones(1, 64, 3, 3)).flatten(2)
    assert torch.equal(channels.amin(2), channels.amax(2)) and 10 < (channels == 0).all(2).sum() < 54
    plain = small(norm="frozen_batch", dropout=(0, 0)).train()
    assert all(torch.equal(a, b) for a, b in zip(expected, plain(image), strict=True))


def test_meta_tensor_and_half_precision():
    net, image = small().eval(), torch.rand(1, 1, 33, 33)
    with torch.no_grad():
        exact = net(image)
        for m, plain in zip(net(MetaTensor(image, torch.eye(4))), exact, strict=True):
            assert not isinstance(m, MetaTensor) and torch.equal(m, plain)
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(image)
    for a, b in zip(exact, rough, strict=True):
        assert (a - b).norm() < 0.05 * a.norm()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@DIMS
def test_scripts_traces_and_exports_with_any_size(spatial_dims):
    net = small(spatial_dims).eval()
    image, other = torch.rand(2, 1, *(48,) * spatial_dims), torch.rand(1, 1, *(33, 21, 26)[:spatial_dims])
    free = {"x": {axis: Dim.AUTO for axis in (0, *range(2, spatial_dims + 2))}}
    forms = [torch.jit.script(net), torch.jit.trace(net, image)]
    forms.append(torch.export.export(net, (image,), dynamic_shapes=free).module())
    for form in forms:
        for found, expected in zip(form(other), net(other), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_bad_arguments():
    for width in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"width must be a number above 0, got {width}"):
            small(width=width)
    with pytest.raises(ValueError, match=r"dropout must be two rates .* got \(0.3, 1\)"):
        small(dropout=(0.3, 1))
    with pytest.raises(ValueError, match="stage_strides must have 6 entries, one per stage b2 to b7, got 2"):
        small(stage_strides=2)
    with pytest.raises(ValueError, match=r"an entry of dilations must be one number or 2, .* got \(2, 2, 1\)"):
        small(dilations=(1, 1, 1, (2, 2, 1), 4, 4))
    with pytest.raises(ValueError, match="frozen_stages must be -1 .* up to 6, got 7"):
        small(frozen_stages=7)
    with pytest.raises(ValueError, match="norm must be"):
        small(norm="bach")
    with pytest.raises(ValueError, match=r"WideResNet38Backbone .* in_channels=1 takes .* got \(1, 3, 8, 8\)"):
        small()(torch.rand(1, 3, 8, 8))
