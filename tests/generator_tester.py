# SPDX-License-Identifier: Apache-2.0
"""What every generator of an image promises, written once: a test class inherits it and says how to make one."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from monai.data import MetaTensor
from testers import AFFINE

from monai_labelfx.inferers import HaloInferer

DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])


def image(*size: int, batch: int = 1, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 1, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def without_zeros(net: torch.nn.Module) -> torch.nn.Module:
    """The network in evaluation mode, with random values for what starts at zero: biases, last convolutions."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net.eval()


class DenoiserContract:
    """For all, trained or not; ``make(spatial_dims, **keywords)`` returns a small network."""

    long = 60  # of the axis that is cut into tiles, more than the halo and a few tiles

    @staticmethod
    def make(spatial_dims: int, **keywords) -> torch.nn.Module:
        raise NotImplementedError

    def ready(self, spatial_dims: int, seed: int = 0, **keywords) -> torch.nn.Module:
        torch.manual_seed(seed)
        return without_zeros(self.make(spatial_dims, **keywords))

    @DIMS
    @pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 7, 3), (5, 1, 9), (8, 4, 2)])
    def test_any_size(self, spatial_dims, sizes):
        x = image(*sizes[:spatial_dims], batch=2)
        before = x.clone()
        y = self.ready(spatial_dims)(x)
        assert y.shape == x.shape and y.isfinite().all() and torch.equal(x, before)

    @DIMS
    @pytest.mark.parametrize("long_axis", [0, -1])
    def test_tiles_with_the_halo_equal_the_whole(self, spatial_dims, long_axis):
        net = self.ready(spatial_dims).double()
        size = [9, 7, 6][:spatial_dims]
        size[long_axis] = self.long
        x = image(*size, batch=2, dtype=torch.float64)
        tile = [8] * spatial_dims
        tile[long_axis] = 16
        with torch.no_grad():
            whole = net(x)
            assert len(net.halo) == len(net.divisor) == spatial_dims
            assert (HaloInferer(tile)(x, net) - whole).abs().max() < 1e-5 * whole.abs().max()
            short = [max(h - d, 0) for h, d in zip(net.halo, net.divisor, strict=True)]
            short[long_axis] = net.halo[long_axis] // 3
            assert not torch.equal(HaloInferer(tile, halo=short)(x, net), whole), "or this proves nothing"

    @DIMS
    def test_images_of_a_batch_do_not_meet(self, spatial_dims):
        net, x = self.ready(spatial_dims), image(9, *[6] * (spatial_dims - 1), batch=8)
        with torch.no_grad():
            torch.testing.assert_close(net(x), torch.cat([net(one) for one in x.split(1)]), rtol=1e-5, atol=1e-5)

    @DIMS
    def test_channels_last_gives_the_same(self, spatial_dims):
        form = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
        net, x = self.ready(spatial_dims), image(10, *[6] * (spatial_dims - 1), batch=2)
        with torch.no_grad():
            expected = net(x)
            torch.testing.assert_close(
                net.to(memory_format=form)(x.to(memory_format=form)), expected, rtol=1e-5, atol=1e-5
            )

    def test_passes_in_evaluation_mode_are_identical_and_change_nothing(self):
        net, x = self.ready(2), image(12, 9)
        before = copy.deepcopy(net.state_dict())
        assert torch.equal(net(x), net(x))
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())

    def test_meta_tensors_keep_their_metadata(self):
        net, x = self.ready(2), image(9, 12)
        wrapped = MetaTensor(x, affine=AFFINE)
        y = net(wrapped)
        assert isinstance(y, MetaTensor) and torch.equal(y.affine, wrapped.affine)
        assert type(net(x)) is torch.Tensor and torch.equal(y.as_tensor(), net(x))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_types_are_kept(self, dtype):
        net = self.ready(2)
        y = net.to(dtype)(image(9, 8, dtype=dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), self.ready(2)(image(9, 8, dtype=dtype).float()), rtol=0.1, atol=0.1)

    def test_bad_images_are_named(self):
        net = self.ready(2)
        for shape in ((1, 2, 8, 8), (1, 1, 8, 8, 8), (1, 8, 8)):
            with pytest.raises(ValueError, match=rf"takes \(B, 1, size, size\), got {re.escape(str(shape))}"):
                net(torch.zeros(shape))
        with pytest.raises(ValueError, match="without voxels"):
            net(torch.zeros(1, 1, 0, 8))
        with pytest.raises(ValueError, match="spatial_dims must be"):
            self.make(4)
        with pytest.raises(ValueError, match="in_channels must be 1 or more, got 0"):
            self.make(2, in_channels=0)


class GeneratorContract(DenoiserContract):
    """For networks that are trained."""

    @staticmethod
    def full(spatial_dims: int) -> torch.nn.Module:
        """As deep as by default, for the halo; narrow."""
        raise NotImplementedError

    @DIMS
    def test_halo_is_how_far_the_gradient_reaches(self, spatial_dims):
        torch.manual_seed(0)
        net = self.full(spatial_dims).double().eval()
        with torch.no_grad():  # positive weights: no rectifier is shut, nothing cancels
            for parameter in net.parameters():
                parameter.copy_(torch.rand_like(parameter) * 0.1 + 0.05)
            for _ in range(10):  # spectral norms of the new weights
                net.train()(torch.ones(1, 1, *net.divisor, dtype=torch.float64))
        net.eval()
        for axis in range(spatial_dims):
            halo, step = net.halo[axis], net.divisor[axis]
            before = -(-(halo + 3) // step) * step
            size = [net.divisor[a] for a in range(spatial_dims)]
            size[axis] = 2 * before + step
            x = torch.rand(1, 1, *size, dtype=torch.float64).requires_grad_()
            net(x).narrow(2 + axis, before, step).sum().backward()
            seen = x.grad[0, 0].movedim(axis, 0).flatten(1).abs().amax(1).nonzero()[:, 0]
            assert max(before - seen[0].item(), seen[-1].item() - (before + step - 1)) == halo

    @DIMS
    def test_all_parameters_learn(self, spatial_dims):
        net = self.ready(spatial_dims).train()
        net(image(9, *[6] * (spatial_dims - 1), batch=2)).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())

    def test_state_dict_round_trip(self):
        net, x = self.ready(2).train(), image(16, 12)
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        other = self.ready(2, seed=1)
        assert not torch.equal(other(x), net.eval()(x))
        other.load_state_dict(copy.deepcopy(net.state_dict()))
        assert torch.equal(other(x), net(x))
        assert torch.equal(copy.deepcopy(net)(x), net(x))

    def test_autocast(self):
        net, x = self.ready(2), image(16, 12)
        expected = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = net.train()(x)
        y.float().square().mean().backward()
        assert (y - expected).abs().max() < 0.1 * expected.abs().max()
        assert all(p.grad.isfinite().all() for p in net.parameters())
