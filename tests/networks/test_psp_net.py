# SPDX-License-Identifier: Apache-2.0
"""PSPNet: a naive head, published sizes, single images with batch norm, auxiliary logits, any size, export."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.networks.utils import convert_to_onnx
from torch.export import Dim

from monai_labelfx.networks.psp_net import PSPNet
from monai_labelfx.networks.resnet_backbone import ResNetBackbone
from monai_labelfx.networks.wide_resnet38_backbone import WideResNet38Backbone

CONV, POOL, MODE = (
    {2: F.conv2d, 3: F.conv3d},
    {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d},
    {2: "bilinear", 3: "trilinear"},
)
DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])
KINDS = pytest.mark.parametrize("kind", ["resnet", "wide"])
NORM = "running_mean", "running_var", "weight", "bias"


def network(kind: str = "wide", spatial_dims: int = 2, in_channels: int = 1, norm="batch", **keywords) -> PSPNet:
    """A small one in evaluation mode, whose statistics are not those of a fresh one."""
    torch.manual_seed(0)
    if kind == "wide":
        backbone = WideResNet38Backbone(spatial_dims, in_channels, width=1 / 16, norm=norm)
    else:
        backbone = ResNetBackbone(spatial_dims, in_channels, depth=10, features=8, norm=norm)
    net = PSPNet(backbone, 3, **{"features": 8, "auxiliary_features": 8, "norm": norm, **keywords}).eval()
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
        elif name.startswith(("classifier", "auxiliary.1")):
            value.normal_(0, 0.5)  # so that differences are seen
    return net


def image(spatial_dims: int, *size: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, *size[:spatial_dims], generator=torch.Generator().manual_seed(1))


def naive(net: PSPNet, x: torch.Tensor, bins=(1, 2, 3, 6)) -> tuple[torch.Tensor, torch.Tensor]:
    """Main and auxiliary logits of the paper's head, from the state dict and PyTorch's own operators."""
    state, axes = net.state_dict(), x.ndim - 2

    def run(name, x):
        weight = state[f"{name}.0.weight"]
        x = CONV[axes](x, weight, state.get(f"{name}.0.bias"), padding=weight.shape[-1] // 2)
        if f"{name}.1.weight" in state:
            mean, var, weight, bias = (state[f"{name}.1.{part}"] for part in NORM)
            x = F.batch_norm(x, mean, var, weight, bias)
        return x.clamp(min=0)

    def classify(name, x):
        x = CONV[axes](x, state[f"{name}.1.weight"], state[f"{name}.1.bias"])
        return F.interpolate(x, size=padded.shape[2:], mode=MODE[axes], align_corners=False)[cut]

    cut = (..., *(slice(0, n) for n in x.shape[2:]))
    pad = [p for n, s in reversed(list(zip(x.shape[2:], net.stride, strict=True))) for p in (0, -n % s)]
    padded = F.pad(x, pad, mode="replicate")
    maps = net.backbone(padded)
    joined = [maps[-1]]
    for index, count in enumerate(bins):
        branch = run(f"branches.{index}", POOL[axes](maps[-1], count))
        joined.append(F.interpolate(branch, size=maps[-1].shape[2:], mode=MODE[axes], align_corners=False))
    main = classify("classifier", run("bottleneck", torch.cat(joined, dim=1)))
    return main, classify("auxiliary.1", run("auxiliary.0", maps[-2]))


@KINDS
@DIMS
@pytest.mark.parametrize("size", [(1, 1, 1), (33, 41, 18), (64, 8, 24)])
def test_naive_reference_at_any_size(kind, spatial_dims, size):
    net, x = network(kind, spatial_dims).double(), image(spatial_dims, *size).double()
    expected, auxiliary = naive(net, x)
    assert net(x).shape == (2, 3, *x.shape[2:])
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-9)
    net.training = True  # of the network itself: norms and dropout stay as they are
    torch.testing.assert_close(net(x), torch.cat([expected, auxiliary], dim=1), rtol=1e-9, atol=1e-9)


def test_sizes_of_the_published_head():
    with torch.device("meta"):
        net = PSPNet(WideResNet38Backbone(2, 3), 2)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    norms = 2 * 512  # a scale and a shift; the branch of one bin has a bias in their place
    assert count["branches"] == 4 * 4096 * 512 + 3 * norms + 512  # 8.4 million
    assert count["bottleneck"] == (4096 + 4 * 512) * 512 * 9 + norms  # 28.3 million
    assert count["auxiliary"] == 1024 * 256 * 9 + 2 * 256 + 256 * 2 + 2  # 2.4 million
    assert count["classifier"] == 512 * 2 + 2
    assert abs(sum(count.values()) - count["backbone"] - 39.1e6) < 0.05e6
    assert [branch[0].bias is None for branch in net.branches] == [False, True, True, True]
    assert abs(PSPNet(network().backbone, 30).classifier[1].weight.std() - 0.01) < 0.001


@DIMS
@pytest.mark.parametrize("norm", ["batch", "group", "instance", None])
def test_trains_on_a_single_image(spatial_dims, norm):
    """Whose branch of one bin has one voxel, where a norm has nothing to go by; the gradient reaches everything."""
    net = network("wide", spatial_dims, norm=norm, dropout=0.0).train()
    assert net.train() is net
    net(image(spatial_dims, 33, 24, 17, batch=1)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all() and (parameter.grad.any() or norm == "instance"), name
    assert net.branches[0][0].weight.grad.any()


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_map_of_one_voxel_is_refused_where_a_norm_cannot_do_it(norm):
    net = network(norm=norm).train()
    with pytest.raises(ValueError, match=rf"{norm.title()} norm has one voxel .* \(1, 1, 8, 5\) is pooled by \(8, 8\)"):
        net(image(2, 8, 5, batch=1))
    assert network(norm="group").train()(image(2, 8, 5, batch=1)).shape == (1, 6, 8, 5)


def test_auxiliary_logits_come_in_training_only():
    net, x = network(norm="frozen_batch"), image(2, 33, 24)
    assert net(x).shape[1] == 3 and net.train()(x).shape[1] == 6 and net.eval()(x).shape[1] == 3
    bare = network(norm="frozen_batch", auxiliary=False)
    assert bare.auxiliary is None and bare.train()(x).shape[1] == 3
    bare.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("auxiliary")})
    assert torch.equal(bare.eval()(x), net(x))


def test_dropout_in_training_only():
    net, x = network(norm="frozen_batch", dropout=0.5), image(2, 33, 24)
    assert torch.equal(net(x), net(x)) and torch.equal(net(x), network(norm="frozen_batch")(x))
    net.train()
    net.backbone.eval()
    first, second = net(x), net(x)
    assert not torch.allclose(first[:, :3], second[:, :3]) and not torch.allclose(first[:, 3:], second[:, 3:])


def test_bins_per_axis():
    net = network("wide", 3, bins=(1, (6, 2, 1)), features=16)
    assert [tuple(b) for b in net.bins] == [(1, 1, 1), (6, 2, 1)]
    x = image(3, 40, 24, 9)
    expected, _ = naive(net, x, bins=(1, (6, 2, 1)))
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


def test_the_image_s_own_averages_reach_every_voxel():
    """A change in one corner is seen in the other, which the backbone alone does not see."""
    net, x = network("resnet", norm="frozen_batch"), image(2, 512, 64, batch=1)
    other = x.clone()
    other[..., :8, :] += 5
    assert torch.equal(net.backbone(x)[-1][:, :, -1:], net.backbone(other)[-1][:, :, -1:])
    assert (net(x)[..., -8:, :] - net(other)[..., -8:, :]).abs().max() > 1e-4


def test_metadata_is_kept():
    net, x = network(), image(2, 33, 40)
    affine = torch.diag(torch.tensor([2.0, 3, 1, 1]))
    result = net(MetaTensor(x, affine))
    assert isinstance(result, MetaTensor) and torch.equal(result.affine.float(), affine)
    assert torch.equal(result.as_tensor(), net(x))


def test_half_precision_stays_close():
    net, x = network(), image(2, 64, 64)
    with torch.no_grad():
        exact = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(x)
    assert (exact - rough).norm() < 0.05 * exact.norm()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@KINDS
@DIMS
def test_scripts_and_traces_with_any_size(kind, spatial_dims):
    net, x = network(kind, spatial_dims), image(spatial_dims, 24, 40, 20)
    other = image(spatial_dims, 41, 19, 26, batch=3)
    for form in (torch.jit.trace(net, x), *([torch.jit.script(net)] if kind == "wide" else [])):
        torch.testing.assert_close(form(other), net(other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "spatial_dims", "bins"),
    [
        ("wide", 2, (3,)),
        *(pytest.param(*case, (1, 2, 3, 6), marks=pytest.mark.slow) for case in [("resnet", 2), ("wide", 3)]),
    ],
)
def test_exports_with_any_size(kind, spatial_dims, bins):
    net, x = network(kind, spatial_dims, bins=bins), image(spatial_dims, 72, 70, 80)
    free = ({axis: Dim.AUTO for axis in (0, *range(2, spatial_dims + 2))},)
    program = torch.export.export(net, (x,), dynamic_shapes=free).module()
    other = image(spatial_dims, 41, 99, 66, batch=3)
    torch.testing.assert_close(program(other), net(other), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@DIMS
def test_onnx_as_monai_bundle_exports_it(spatial_dims):
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    net, x = network("wide", spatial_dims), image(spatial_dims, 33, 40, 20, batch=1)
    model = convert_to_onnx(net, [x], use_trace=False)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.as_tensor(found), net(x), rtol=1e-3, atol=1e-4)


def test_learns_a_disc():
    grid = torch.meshgrid(torch.arange(48) - 24, torch.arange(40) - 20, indexing="ij")
    truth = (sum(g**2 for g in grid).float().sqrt() < 12).long().expand(2, 48, 40)
    x = truth[:, None] + 0.3 * torch.randn(2, 1, 48, 40, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net = PSPNet(ResNetBackbone(2, 1, depth=10, features=8, stage_strides=(1, 1, 1, 1)), 2, features=16, norm="group")
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(30):
        main, auxiliary = net(x).chunk(2, dim=1)
        loss = F.cross_entropy(main, truth) + 0.4 * F.cross_entropy(auxiliary, truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (net.eval()(x).argmax(1) == truth).float().mean() > 0.93


def test_bad_arguments():
    backbone = ResNetBackbone(2, 1, depth=10, features=8)
    with pytest.raises(TypeError, match="backbone must give maps, as WideResNet38Backbone does, got Conv2d"):
        PSPNet(torch.nn.Conv2d(1, 1, 1), 2)
    with pytest.raises(ValueError, match="classes must be 1 or more, got 0"):
        PSPNet(backbone, 0)
    with pytest.raises(ValueError, match="auxiliary_features must be 1 or more, got 0"):
        PSPNet(backbone, 2, auxiliary_features=0)
    for bins in ((), 6):
        with pytest.raises(ValueError, match="bins must name the parts of one branch or more, got "):
            PSPNet(backbone, 2, bins=bins)
    with pytest.raises(ValueError, match=r"an entry of bins must be one number or 2, .* got \(6, 6, 1\)"):
        PSPNet(backbone, 2, bins=(1, (6, 6, 1)))
    with pytest.raises(ValueError, match="dropout must be a rate from 0 to below 1, got -0.1"):
        PSPNet(backbone, 2, dropout=-0.1)
    backbone.out_channels = backbone.out_channels[-1:]
    with pytest.raises(ValueError, match="ResNetBackbone has one map: it takes auxiliary=False"):
        PSPNet(backbone, 2)
    net = network()
    with pytest.raises(ValueError, match=r"PSPNet with spatial_dims=2 and in_channels=1 takes .* got \(1, 3, 8, 8\)"):
        net(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"PSPNet got an image without voxels, of shape \(1, 1, 0, 8\)"):
        net(torch.rand(1, 1, 0, 8))
