# SPDX-License-Identifier: Apache-2.0
"""What every segmentation network of any size promises, written once: a test class inherits it and makes one."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.utils import convert_to_torchscript
from testers import AFFINE

DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])


def image(*size: int, batch: int = 1, channels: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


class SegmentationNetworkContract:
    """``make(spatial_dims, in_channels, out_channels, **keywords)`` returns a small network."""

    larger = (19, 24, 17)  # to be padded, and of several voxels at the deepest level
    noise = 18  # side of the images that running statistics are taken from

    @staticmethod
    def make(spatial_dims: int, in_channels: int, out_channels: int, **keywords) -> torch.nn.Module:
        raise NotImplementedError

    def ready(self, spatial_dims: int = 2, in_channels: int = 2, out_channels: int = 3, **keywords) -> torch.nn.Module:
        """A seeded network in evaluation mode, with running statistics of noise and random values for its zeros."""
        torch.manual_seed(0)
        net = self.make(spatial_dims, in_channels, out_channels, **keywords)
        with torch.no_grad():
            for parameter in net.parameters():
                if not parameter.any():
                    parameter.normal_(0, 0.1)
            for _ in range(6):
                net(torch.rand(4, in_channels, *[self.noise] * spatial_dims))
        return net.eval()

    @DIMS
    @pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 7, 3), (16, 8, 8), (5, 21, 3)])
    def test_any_size_forward_and_backward(self, spatial_dims, sizes):
        net, x = self.ready(spatial_dims), image(*sizes[:spatial_dims], batch=2)
        before = x.clone()
        out = net(x)
        assert out.shape == (2, 3, *sizes[:spatial_dims]) and out.isfinite().all() and torch.equal(x, before)
        out = net.train()(x)
        out.square().mean().backward()
        assert out.isfinite().all() and all(p.grad.isfinite().all() for p in net.parameters()), "no parameter is idle"

    @DIMS
    def test_gradients_reach_every_parameter(self, spatial_dims):
        """In evaluation mode: in training, batch norm takes the bias of a convolution before it away."""
        net, x = self.ready(spatial_dims), image(*self.larger[:spatial_dims], batch=2).requires_grad_()
        (net(x) * torch.linspace(-1, 1, 3).view(1, 3, *[1] * spatial_dims)).square().mean().backward()
        assert not [name for name, p in net.named_parameters() if not p.grad.any()]
        assert (x.grad != 0).flatten(2).any(1).all(), "every voxel is seen"

    @DIMS
    def test_one_image_trains(self, spatial_dims):
        net, x = self.ready(spatial_dims).train(), image(*self.larger[:spatial_dims])
        truth = torch.zeros(1, *self.larger[:spatial_dims], dtype=torch.long)
        truth[:, x.shape[2] // 2 :] = 1
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        losses = []
        for _ in range(12):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(x), truth)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]

    @DIMS
    def test_odd_sizes_are_padded_by_repetition_at_the_far_end(self, spatial_dims):
        net, x = self.ready(spatial_dims), image(*self.larger[:spatial_dims])
        padded = x
        for axis, divisor in enumerate(net.divisor):
            length = -(-x.shape[axis + 2] // divisor) * divisor
            padded = padded.index_select(axis + 2, torch.arange(length).clamp(max=x.shape[axis + 2] - 1))
        inside = tuple(slice(n) for n in x.shape[2:])
        torch.testing.assert_close(net(x), net(padded)[(..., *inside)])

    @DIMS
    def test_images_of_a_batch_do_not_meet_and_evaluation_is_a_function(self, spatial_dims):
        net, x = self.ready(spatial_dims), image(*self.larger[:spatial_dims], batch=3)
        whole = net(x)
        assert torch.equal(whole, net(x)) and whole.is_contiguous()
        torch.testing.assert_close(whole, torch.cat([net(one) for one in x.split(1)]), rtol=1e-4, atol=1e-5)

    def test_meta_tensors_keep_their_metadata(self):
        net, x = self.ready(), image(12, 9)
        wrapped = MetaTensor(x, affine=AFFINE)
        out = net(wrapped)
        assert isinstance(out, MetaTensor) and torch.equal(out.affine, wrapped.affine)
        assert type(net(x)) is torch.Tensor and torch.equal(out.as_tensor(), net(x))

    @pytest.mark.parametrize("norm", ["instance", "batch", "group", None], ids=str)
    def test_norms(self, norm):
        assert self.ready(norm=norm)(image(32, 32)).isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_dtypes(self, dtype):
        assert self.ready().to(dtype)(image(9, 12).to(dtype)).dtype == dtype

    @DIMS
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_is_finite_and_near(self, spatial_dims, dtype):
        net, x = self.ready(spatial_dims), image(*self.larger[:spatial_dims], batch=2)
        exact = net(x)
        with torch.autocast("cpu", dtype):
            out = net(x)
        out.float().square().mean().backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())
        assert (out.float() - exact).abs().max() < 0.15 * exact.abs().max(), "also says that it is finite"

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
    @DIMS
    def test_torchscript(self, spatial_dims, tmp_path):
        net, path = self.ready(spatial_dims), tmp_path / "model.ts"
        sizes = [(12, 8, 16), (5, 13, 9), (1, 5, 1)]
        example = image(8, 16, 8)[(..., 0)] if spatial_dims == 2 else image(8, 16, 8)
        convert_to_torchscript(net, path, verify=True, inputs=[example], device="cpu", use_trace=False)
        loaded = torch.jit.load(path)
        for batch, size in enumerate(sizes, start=1):
            x = image(*size[:spatial_dims], batch=batch)
            torch.testing.assert_close(loaded(x).detach(), net(x).detach(), rtol=1e-4, atol=1e-5)

    def test_bad_inputs_are_named(self):
        net = self.ready()
        name = type(net).__name__
        for shape in ((1, 3, 8, 8), (1, 2, 8, 8, 8), (2, 8, 8)):
            with pytest.raises(ValueError, match=rf"{name} .* takes \(B, 2, size, size\), got \("):
                net(torch.zeros(shape))
        with pytest.raises(ValueError, match="without voxels"):
            net(torch.zeros(1, 2, 0, 8))
        with pytest.raises(ValueError, match="Batch norm has one voxel"):
            net.train()(torch.zeros(1, 2, 1, 1))
        assert net.eval()(torch.zeros(1, 2, 1, 1)).shape == (1, 3, 1, 1)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((4, 1, 1), "spatial_dims must be 1, 2 or 3, got 4"),
            ((2, 0, 1), "in_channels must be 1 or more, got 0"),
            ((2, 1, 0), "out_channels must be 1 or more, got 0"),
        ],
    )
    def test_bad_arguments_are_named(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            self.make(*arguments)
