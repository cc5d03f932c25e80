# SPDX-License-Identifier: Apache-2.0
"""Padding, cropping, checks and exports that the networks of any image size share, on both of them."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
from monai.data import MetaTensor, set_track_meta
from monai.networks.utils import convert_to_onnx, convert_to_torchscript
from testers import AFFINE

from monai_labelfx.networks._any_size import AnySizeNetwork, strides_per_level
from monai_labelfx.networks.denoiseg_unet import DenoiSegUNet
from monai_labelfx.networks.enet import ENet
from monai_labelfx.networks.residual_unet import ResidualUNet


class Blocks(AnySizeNetwork):
    """Each block of ``strides`` voxels becomes its sum: what is padded is seen, and so is the place of a block."""

    def __init__(self, spatial_dims: int, strides) -> None:
        super().__init__(spatial_dims, 1, 1, [strides])

    def run_padded(self, x):
        for axis, stride in enumerate(self.divisor, start=2):
            assert x.shape[axis] % stride == 0
            x = x.unflatten(axis, (-1, stride)).sum(axis + 1).repeat_interleave(stride, axis)
        return x


def tiny(kind: type, spatial_dims: int = 2, **keywords):
    """A seeded network with running statistics of its own, in evaluation mode."""
    torch.manual_seed(0)
    shape = {"features": 8} if kind is ENet else {"features": 4, "depth": 2}
    net = kind(spatial_dims, **{**shape, **keywords})
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def image(spatial_dims: int, *sizes: int, batch: int = 1, channels: int = 1) -> torch.Tensor:
    return torch.rand(batch, channels, *sizes[:spatial_dims], generator=torch.Generator().manual_seed(1))


KINDS = pytest.mark.parametrize("kind", [ResidualUNet, ENet])
DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])


def test_blocks_are_padded_by_repetition_at_the_far_end_and_cropped():
    out = Blocks(2, (2, 3))(torch.tensor([[[[1.0, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]]]))
    assert out.tolist() == [[[[24, 24, 24, 36], [24, 24, 24, 36], [60, 60, 60, 72]]]]


@KINDS
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 7, 3), (5, 1, 13), (16, 16, 8), (9, 4, 2)])
def test_any_size_forward_and_backward(kind, spatial_dims, sizes):
    x = image(spatial_dims, *sizes, batch=2, channels=2)
    net = tiny(kind, spatial_dims, in_channels=2, out_channels=3)
    assert net(x).shape == (2, 3, *sizes[:spatial_dims])
    out = net.train()(x)
    out.square().mean().backward()
    assert out.isfinite().all() and all(p.grad.isfinite().all() for p in net.parameters()), "no parameter is idle"


@KINDS
@DIMS
def test_odd_sizes_are_padded_by_repetition_at_the_far_end(kind, spatial_dims):
    net, x = tiny(kind, spatial_dims), image(spatial_dims, 8, 7, 5)
    padded = x
    for axis in range(spatial_dims):
        padded = padded.index_select(axis + 2, torch.arange(8).clamp(max=x.shape[axis + 2] - 1))
    inside = tuple(slice(n) for n in x.shape[2:])
    torch.testing.assert_close(net(x), net(padded)[(..., *inside)])


@KINDS
def test_thin_stacks_keep_their_thin_axis(kind):
    net = tiny(kind, 3, strides=(2, 2, 1))
    assert net.divisor[2] == 1 and net.divisor[0] == net.divisor[1] > 1
    assert net(image(3, 9, 8, 3)).shape == (1, 1, 9, 8, 3)


@KINDS
def test_strides_per_level_of_a_network(kind):
    levels = [(2, 2, 1), 2] if kind is ResidualUNet else [(2, 2, 1), 1, 2]
    net = tiny(kind, 3, strides=levels)
    assert net.divisor == (4, 4, 2)
    assert net(image(3, 9, 8, 3)).shape == (1, 1, 9, 8, 3)


@KINDS
def test_batch_entries_do_not_meet(kind):
    net, x = tiny(kind), image(2, 9, 12, batch=3)
    torch.testing.assert_close(net(x), torch.cat([net(one) for one in x.split(1)]))


@KINDS
def test_meta_tensors_keep_their_metadata(kind):
    net, x = tiny(kind), image(2, 7, 9)
    wrapped = MetaTensor(x, affine=AFFINE)
    out = net(wrapped)
    assert isinstance(out, MetaTensor) and torch.equal(out.affine, wrapped.affine)
    assert type(net(x)) is torch.Tensor and torch.equal(out.as_tensor(), net(x))
    set_track_meta(False)
    try:
        assert type(net(wrapped)) is torch.Tensor
    finally:
        set_track_meta(True)


@KINDS
def test_output_is_contiguous_and_input_untouched(kind):
    x = image(2, 7, 9)
    before = x.clone()
    assert tiny(kind)(x).is_contiguous() and torch.equal(x, before)


@KINDS
@pytest.mark.parametrize("norm", ["instance", "batch", ("group", {"num_groups": 2}), None], ids=str)
def test_norms(kind, norm):
    assert tiny(kind, 2, norm=norm, features=8)(image(2, 16, 16)).isfinite().all()


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(kind, dtype):
    assert tiny(kind).to(dtype)(image(2, 5, 8).to(dtype)).dtype == dtype


@KINDS
def test_autocast(kind):
    with torch.autocast("cpu", torch.bfloat16):
        out = tiny(kind).train()(image(2, 12, 17, batch=2))
    out.float().square().mean().backward()
    assert out.isfinite().all()


@pytest.mark.parametrize("kind", [partial(DenoiSegUNet, out_channels=1, norm="batch"), ResidualUNet, ENet])
def test_bad_inputs_are_named(kind):
    net = tiny(kind)
    name = type(net).__name__
    for shape in ((1, 2, 8, 8), (1, 1, 8, 8, 8), (1, 8, 8), (8, 8)):
        with pytest.raises(ValueError, match=rf"{name} .* takes \(B, 1, size, size\), got \("):
            net(torch.zeros(shape))
    with pytest.raises(ValueError, match="without voxels"):
        net(torch.zeros(1, 1, 0, 8))
    with pytest.raises(ValueError, match="Batch norm has one voxel"):
        net.train()(torch.zeros(1, 1, 4, 3))
    assert net.eval()(torch.zeros(1, 1, 4, 3)).shape == (1, 1, 4, 3)
    assert net.train()(torch.zeros(2, 1, 4, 3)).shape == (2, 1, 4, 3)
    with pytest.raises(ValueError, match="Instance norm has one voxel"):
        tiny(kind, norm="instance")(torch.zeros(2, 1, 4, 3))
    assert tiny(kind, norm=None).train()(torch.zeros(1, 1, 4, 3)).shape == (1, 1, 4, 3)


@KINDS
@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims must be 1, 2 or 3, got 4"),
        ({"in_channels": 0}, "in_channels must be 1 or more, got 0"),
        ({"out_channels": 0}, "out_channels must be"),
        ({"strides": (2, 2)}, "strides must be one number or 3, one per axis"),
        ({"strides": 0}, "strides must hold whole numbers of 1 or more"),
        ({"strides": 1.5}, "strides must be one number or 3"),
        ({"strides": [(2, 2, 1)]}, "entries, got 1"),
        ({"init": "he"}, "init must be one of"),
    ],
)
def test_bad_arguments_are_named(kind, keywords, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"spatial_dims": 3, "features": 4, **keywords})


def test_strides_per_level():
    assert strides_per_level(2, 2, 3) == [(2, 2, 2)] * 2
    assert strides_per_level((2, 1), 3, 2) == [(2, 1)] * 3
    assert strides_per_level([(2, 1), 4], 2, 2) == [(2, 1), (4, 4)]
    with pytest.raises(ValueError, match="strides of a level must be one number or 2"):
        strides_per_level([(2,), 2], 2, 2)


# Exports: the static ones are what monai.bundle calls; other sizes than the example's where the format allows.

OTHER = [(12, 8, 16), (5, 13, 9)]


def assert_same_function(exported, net, spatial_dims: int, sizes) -> None:
    for number, size in enumerate(sizes):
        x = image(spatial_dims, *size, batch=number + 1)
        torch.testing.assert_close(torch.as_tensor(exported(x)), net(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@KINDS
@DIMS
@pytest.mark.parametrize("use_trace", [False, True])
def test_torchscript(kind, spatial_dims, use_trace, tmp_path):
    net, x = tiny(kind, spatial_dims), image(spatial_dims, 8, 8, 8)
    path = tmp_path / "model.ts"
    convert_to_torchscript(net, path, verify=True, inputs=[x], device="cpu", use_trace=use_trace)
    loaded = torch.jit.load(path)
    assert_same_function(lambda x: loaded(x).detach(), net, spatial_dims, [*OTHER, (1, 5, 1)])


@KINDS
@pytest.mark.parametrize("spatial_dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_torch_export(kind, spatial_dims):
    net = tiny(kind, spatial_dims)
    x = image(spatial_dims, 16, 16, 16, batch=2)
    sizes = (dict.fromkeys((0, *range(2, spatial_dims + 2)), torch.export.Dim.AUTO),)
    program = torch.export.export(net, (x,), dynamic_shapes=sizes)
    assert_same_function(lambda x: program.module()(x).detach(), net, spatial_dims, [(16, 32, 24), (17, 13, 9)])


@KINDS
@pytest.mark.parametrize("spatial_dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_onnx_as_monai_bundle_exports_it(kind, spatial_dims):
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    net, size = tiny(kind, spatial_dims), (9, 8, 7)
    model = convert_to_onnx(net, [image(spatial_dims, *size)], use_trace=False)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    assert_same_function(lambda x: session.run(None, {name: x.numpy()})[0], net, spatial_dims, [size])


@KINDS
@DIMS
def test_a_network_learns_a_disc(kind, spatial_dims):
    size = (24, 20, 12)[:spatial_dims]
    grid = torch.meshgrid(*(torch.arange(n) - n / 2 for n in size), indexing="ij")
    truth = (sum(g**2 for g in grid).sqrt() < min(size) / 3).float().expand(2, 1, *size)
    noisy = truth + 0.3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    net = tiny(kind, spatial_dims).train()
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    before = loss(net(noisy), truth).item()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss(net(noisy), truth).backward()
        optimizer.step()
    assert loss(net(noisy), truth).item() < before / 2
