# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, set_track_meta
from monai.networks.utils import convert_to_onnx, convert_to_torchscript
from testers import AFFINE

from monai_labelfx.losses import DenoiSegLoss
from monai_labelfx.networks import DenoiSegUNet, MaxBlurPool

N2V2 = {"blur_pool": True, "top_skip": False}
FORMS = [{}, N2V2, {"upsample": "linear"}, {"strides": "thin"}, {"norm": "instance"}]


def tiny(spatial_dims: int = 2, seed: int = 0, **keywords) -> DenoiSegUNet:
    """A seeded two-level network in evaluation mode; strides "thin" leave the last axis alone."""
    torch.manual_seed(seed)
    if keywords.get("strides") == "thin":
        keywords["strides"] = (2,) * (spatial_dims - 1) + (1,)
    return DenoiSegUNet(spatial_dims, **{"features": 4, "depth": 2, **keywords}).eval()


def image(spatial_dims: int, *sizes: int, batch: int = 1, channels: int = 1) -> torch.Tensor:
    return torch.rand(batch, channels, *sizes[:spatial_dims], generator=torch.Generator().manual_seed(1))


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_parameter_counts_are_the_papers():
    assert parameters(DenoiSegUNet(2)) == 5_500_548
    assert parameters(DenoiSegUNet(3)) == 16_486_596


def test_n2v2_has_fewer_parameters_by_the_top_skip_only():
    assert parameters(DenoiSegUNet(2)) - parameters(DenoiSegUNet(2, **N2V2)) == 32 * 32 * 9
    assert sum(isinstance(m, MaxBlurPool) for m in DenoiSegUNet(2, depth=3, features=2, **N2V2).modules()) == 3


def test_presets_of_the_reference_code():
    net = DenoiSegUNet(2, features=4)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 18 and {(m.momentum, m.eps) for m in norms} == {(0.01, 1e-3)}
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) == 19 and convs[-1].kernel_size == (1, 1)
    for conv in convs:
        area = math.prod(conv.kernel_size)
        bound = math.sqrt(6 / (area * (conv.in_channels + conv.out_channels)))
        assert (conv.bias == 0).all() and bound * 0.7 < conv.weight.abs().max() <= bound
    assert (DenoiSegUNet(2, features=4, init="torch").head.conv.bias != 0).any()


def by_hand(net: DenoiSegUNet, x: torch.Tensor) -> torch.Tensor:
    """Depth-one network of batch norm, written out with torch functions for a picture of even size."""
    weights = net.state_dict()

    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.conv2d(x, weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"], padding=1)
        mean, var, scale, shift = (
            weights[f"{name}.adn.N.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return torch.relu((x - mean) / torch.sqrt(var + 1e-3) * scale + shift)

    skip = block("encoders.0.1", block("encoders.0.0", x))
    windows = [skip[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
    low = block("bottleneck.2", block("bottleneck.1", torch.stack(windows).amax(0)))
    up = low.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    x = block("decoders.0.1", block("decoders.0.0", torch.cat([up, skip], dim=1)))
    return torch.nn.functional.conv2d(x, weights["head.conv.weight"], weights["head.conv.bias"])


def test_equals_the_network_written_out():
    net = tiny(depth=1)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.uniform_(0.5, 1.5)
    x = image(2, 6, 8, batch=2)
    torch.testing.assert_close(net(x), by_hand(net, x))


@pytest.mark.parametrize("keywords", FORMS[:4], ids=str)
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 7, 3), (5, 1, 13), (8, 8, 8), (9, 4, 2)])
def test_any_size(spatial_dims, sizes, keywords):
    x = image(spatial_dims, *sizes, batch=2)
    assert tiny(spatial_dims, **keywords)(x).shape == (2, 4, *sizes[:spatial_dims])
    net = tiny(spatial_dims, **keywords).train()
    out = net(x)
    out.square().mean().backward()
    assert out.isfinite().all() and all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_odd_sizes_are_padded_by_repetition_at_the_far_end(spatial_dims):
    net, x = tiny(spatial_dims), image(spatial_dims, 8, 7, 5)
    padded = x
    for axis, n in enumerate((8, 8, 8)[:spatial_dims]):
        index = torch.arange(n).clamp(max=x.shape[axis + 2] - 1)
        padded = padded.index_select(axis + 2, index)
    inside = tuple(slice(n) for n in x.shape[2:])
    torch.testing.assert_close(net(x), net(padded)[(..., *inside)])


def test_unit_strides_on_one_axis_treat_a_stack_of_one_as_a_picture():
    """With kernels of one on that axis, a volume of depth one is the picture."""
    flat, deep = tiny(2), tiny(3, strides=(2, 2, 1), kernel_size=(3, 3, 1))
    deep.load_state_dict(
        {k: v[..., None] if v.ndim == 4 else v for k, v in flat.state_dict().items()},
    )
    x = image(2, 9, 12)
    torch.testing.assert_close(deep(x[..., None])[..., 0], flat(x))


def test_channels():
    assert tiny(2, in_channels=2)(image(2, 8, 8, channels=2)).shape == (1, 5, 8, 8)
    assert tiny(2, out_channels=3)(image(2, 8, 8)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("strides", "divisor"),
    [(2, (8, 8, 8)), ((2, 2, 1), (8, 8, 1)), ([[2, 2, 1], [2, 2, 2], 2], (8, 8, 4)), ([3, 1, 2], (27, 1, 8))],
)
def test_divisor(strides, divisor):
    assert DenoiSegUNet(3, features=1, depth=3, strides=strides).divisor == divisor


def measured_halo(net: DenoiSegUNet) -> tuple[int, ...]:
    """The gradient's reach beyond one block of the pooling grid; positive weights and means for maxima hide nothing."""
    net = net.double()
    for parameter in net.parameters():
        parameter.data.uniform_(0.5, 1.0)
    for module in net.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.MaxPool2d):
                setattr(module, name, torch.nn.AvgPool2d(child.kernel_size, child.stride))
    size = tuple(d * -(-2 * h // d) + 2 * d for h, d in zip(net.halo, net.divisor, strict=True))
    start = np.array([d * (n // d // 2) for n, d in zip(size, net.divisor, strict=True)])
    end = start + np.array(net.divisor) - 1
    x = torch.ones(1, 1, *size, dtype=torch.float64, requires_grad=True)
    net(x)[(0, slice(None), *(slice(s, e + 1) for s, e in zip(start, end, strict=True)))].sum().backward()
    touched = np.argwhere(x.grad[0, 0].numpy() != 0)
    reach = np.maximum(start - touched.min(0), touched.max(0) - end)
    return tuple(int(r) for r in reach)


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"depth": 3},
        N2V2,
        {"upsample": "linear"},
        {"kernel_size": 5, "depth": 1},
        {"strides": (3, 1)},
        {"strides": [(2, 1), (2, 3)], "blur_pool": True, "upsample": "linear", "kernel_size": (3, 1)},
    ],
    ids=str,
)
def test_halo_is_the_reach_of_the_gradient(keywords):
    net = tiny(2, features=1, norm=None, **keywords)
    assert net.halo == measured_halo(net)


def test_halos_of_the_paper():
    """What csbdeep tabulates as tile overlap of depths 2, 3 and 4."""
    assert [DenoiSegUNet(2, features=1, depth=d).halo for d in (2, 3, 4)] == [(22, 22), (46, 46), (94, 94)]


@pytest.mark.parametrize("keywords", [{}, N2V2, {"upsample": "linear"}], ids=str)
def test_tile_with_halo_equals_whole_image(keywords):
    net = tiny(2, **keywords)
    whole = image(2, 96, 8)
    margin = -(-net.halo[0] // net.divisor[0]) * net.divisor[0]
    tile = net(whole[:, :, 40 - margin : 52 + margin])[:, :, margin : margin + 12]
    torch.testing.assert_close(tile, net(whole)[:, :, 40:52])


def test_metatensor_is_run_as_tensor_and_keeps_its_metadata():
    net, x = tiny(), image(2, 7, 9, batch=2)
    wrapped = MetaTensor(x, affine=torch.stack([AFFINE, AFFINE]), meta={"filename_or_obj": ["a", "b"]})
    wrapped.is_batch = True
    out = net(wrapped)
    assert isinstance(out, MetaTensor) and out.is_batch and out.meta["filename_or_obj"] == ["a", "b"]
    assert torch.equal(out.affine, wrapped.affine) and out.requires_grad
    assert type(net(x)) is torch.Tensor and torch.equal(out.as_tensor(), net(x))
    set_track_meta(False)
    try:
        assert type(net(wrapped)) is torch.Tensor
    finally:
        set_track_meta(True)


def test_output_is_contiguous_and_input_untouched():
    x = image(2, 7, 9)
    before = x.clone()
    assert tiny()(x).is_contiguous() and torch.equal(x, before)


@pytest.mark.parametrize("norm", ["instance", "batch", ("group", {"num_groups": 2}), None], ids=str)
def test_norms(norm):
    out = tiny(3, norm=norm)(image(3, 8, 8, 8))
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    assert tiny(2).to(dtype)(image(2, 5, 8).to(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims must be 1, 2 or 3, got 4"),
        ({"in_channels": 0}, "in_channels must be 1 or more, got 0"),
        ({"out_channels": 0}, "out_channels must be"),
        ({"depth": 0}, "depth must be"),
        ({"features": -1}, "features must be"),
        ({"strides": (2, 2)}, "strides must be one number or 3, one per axis"),
        ({"strides": 0}, "strides must hold whole numbers of 1 or more"),
        ({"strides": 1.5}, "strides must be one number or 3"),
        ({"strides": [(2, 2, 1)]}, "must have 4 entries, got 1"),
        ({"strides": [(2, 2), 2, 2, 2]}, "strides of a level must be one number or 3"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"kernel_size": (3, 3)}, "kernel_size must be one number or 3"),
        ({"upsample": "cubic"}, "upsample must be one of"),
        ({"init": "he"}, "init must be one of"),
    ],
)
def test_bad_arguments_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        DenoiSegUNet(**{"spatial_dims": 3, "features": 1, **keywords})


# Exports. The static ones are what monai.bundle calls; the dynamic ones take other sizes than the example's.

OTHER = [(12, 8, 16), (5, 13, 9)]


def assert_same_function(exported, net: DenoiSegUNet, spatial_dims: int, sizes=OTHER) -> None:
    for number, size in enumerate(sizes):
        x = image(spatial_dims, *size, batch=number + 1)
        torch.testing.assert_close(torch.as_tensor(exported(x)), net(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("keywords", FORMS, ids=str)
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("use_trace", [False, True])
def test_torchscript(spatial_dims, use_trace, keywords, tmp_path):
    net, x = tiny(spatial_dims, **keywords), image(spatial_dims, 8, 8, 8)
    path = tmp_path / "model.ts"
    convert_to_torchscript(net, path, verify=True, inputs=[x], device="cpu", use_trace=use_trace)
    loaded = torch.jit.load(path)
    assert_same_function(lambda x: loaded(x).detach(), net, spatial_dims, [*OTHER, (1, 5, 1)])


def dynamic(spatial_dims: int) -> tuple[dict[int, object]]:
    return (dict.fromkeys((0, *range(2, spatial_dims + 2)), torch.export.Dim.AUTO),)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_torch_export(spatial_dims, keywords=None):
    net = tiny(spatial_dims, **(keywords or {}))
    x = image(spatial_dims, 8, 8, 8, batch=2)
    program = torch.export.export(net, (x,), dynamic_shapes=dynamic(spatial_dims))
    assert_same_function(lambda x: program.module()(x).detach(), net, spatial_dims)


@pytest.mark.slow
@pytest.mark.parametrize("keywords", FORMS[1:], ids=str)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_torch_export_of_every_form(spatial_dims, keywords):
    test_torch_export(spatial_dims, keywords)


def onnx_session(model):
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_onnx_as_monai_bundle_exports_it(spatial_dims):
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    net, size = tiny(spatial_dims), (9, 8, 7)
    model = convert_to_onnx(net, [image(spatial_dims, *size)], use_trace=False)
    assert_same_function(onnx_session(model), net, spatial_dims, [size])


@pytest.mark.slow
@pytest.mark.parametrize("keywords", FORMS, ids=str)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_onnx_of_every_form_with_any_size(spatial_dims, keywords):
    net = tiny(spatial_dims, **keywords)
    x = image(spatial_dims, 8, 8, 8, batch=2)
    program = torch.onnx.export(net, (x,), dynamo=True, dynamic_shapes=dynamic(spatial_dims), verbose=False)
    assert_same_function(onnx_session(program.model_proto), net, spatial_dims, [*OTHER, (9, 9, 1)])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("keywords", [{}, N2V2], ids=str)
def test_both_terms_fall_on_a_noisy_disc(spatial_dims, keywords):
    generator = torch.Generator().manual_seed(0)
    size = (24, 20, 12)[:spatial_dims]
    radius = sum((torch.arange(n) - n / 2).reshape(-1, *(1,) * (len(size) - i - 1)) ** 2 for i, n in enumerate(size))
    scale = radius.sqrt() / (min(size) / 3)
    label = ((scale < 1).long() + 2 * ((scale >= 1) & (scale < 1.25)).long())[None, None]
    clean = (scale < 1).float()[None, None] * 2 - 1
    noisy = torch.cat([clean + 0.3 * torch.randn(clean.shape, generator=generator) for _ in range(2)])
    target = {
        "image": noisy,
        "blind_spots": torch.rand(noisy.shape, generator=generator) < 0.1,
        "label": torch.cat([label, label * 0 - 1]),
        "has_label": torch.tensor([True, False]),
    }
    masked = torch.where(target["blind_spots"], noisy.roll(1, -1), noisy)
    net, loss = tiny(spatial_dims, norm="batch", **keywords).train(), DenoiSegLoss(alpha=0.5)
    before = [term.item() for term in loss.terms(net(masked), target)]
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss(net(masked), target).backward()
        optimizer.step()
    after = [term.item() for term in loss.terms(net(masked), target)]
    assert after[0] < before[0] / 2 and after[1] < before[1] / 2
