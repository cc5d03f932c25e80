# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.losses.gradient_penalty import GradientPenalty

SHAPES = {1: (3, 2, 6), 2: (3, 1, 4, 5), 3: (2, 1, 3, 4, 2)}


def images(spatial_dims: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(spatial_dims)
    return tuple(torch.randn(SHAPES[spatial_dims], generator=generator, dtype=dtype) for _ in range(2))


def seeded(discriminator, real, fake, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return GradientPenalty()(discriminator, real, fake)


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_a_linear_critic_has_the_norm_of_its_weights(spatial_dims):
    real, fake = images(spatial_dims)
    weights = torch.randn_like(real)  # one critic per image: norms are those of single images, over all their axes
    expected = sum((row.flatten().norm().item() - 1) ** 2 for row in weights) / len(weights)
    for critic in (
        lambda x: (x * weights).flatten(1).sum(1),
        lambda x: (x * weights).flatten(1).sum(1)[:, None],
    ):
        assert seeded(critic, real, fake).item() == pytest.approx(expected)


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_slopes_are_taken_between_the_images(spatial_dims):
    real, fake = images(spatial_dims)
    torch.manual_seed(7)
    share = torch.rand((len(real), *[1] * (spatial_dims + 1)), dtype=real.dtype)
    between = share * real + (1 - share) * fake  # where the slope of |x|^2 / 2 is x
    expected = (between.flatten(1).norm(dim=1) - 1).square().mean()
    found = seeded(lambda x: x.square().flatten(1).sum(1) / 2, real, fake, seed=7)
    assert found.item() == pytest.approx(expected.item())
    assert seeded(lambda x: x.square().flatten(1).sum(1) / 2, real, fake, seed=8).item() != found.item()
    assert len(share.unique()) == len(real)


def test_a_map_counts_as_its_mean():
    real, fake = images(2)
    weights = torch.randn_like(real[0])
    single = seeded(lambda x: (x * weights).flatten(1).sum(1), real, fake)
    assert torch.allclose(seeded(lambda x: (x * weights).flatten(1).sum(1)[:, None].expand(-1, 9), real, fake), single)
    assert torch.allclose(seeded(lambda x: x * weights * weights.numel(), real, fake), single)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_parameters_get_the_gradient_of_finite_differences(spatial_dims):
    real, fake = images(spatial_dims)
    torch.manual_seed(0)
    conv = (torch.nn.Conv2d, torch.nn.Conv3d)[spatial_dims - 2]
    critic = torch.nn.Sequential(conv(1, 3, 3, padding=1), torch.nn.Tanh(), conv(3, 1, 3, padding=1)).double()
    seeded(critic, real, fake).backward()
    for parameter in (critic[0].weight, critic[2].weight):
        flat, step = parameter.data.view(-1), 1e-5
        numeric = []
        for i in range(0, flat.numel(), 7):
            old, values = flat[i].item(), []
            for sign in (1, -1):
                flat[i] = old + sign * step
                values.append(seeded(critic, real, fake).item())
            flat[i] = old
            numeric.append((values[0] - values[1]) / (2 * step))
        assert parameter.grad.view(-1)[::7].tolist() == pytest.approx(numeric, rel=1e-5, abs=1e-9)


def test_images_get_no_gradient_and_the_discriminator_no_stray_one():
    real, fake = (tensor.requires_grad_() for tensor in images(2))
    critic = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3), torch.nn.Tanh()).double()  # slopes depend on the images
    loss = seeded(critic, real, fake * 2)
    assert critic[0].weight.grad is None
    loss.backward()
    assert real.grad is None and fake.grad is None and critic[0].weight.grad.any()


def test_the_value_is_the_same_where_gradients_are_off():
    real, fake = images(2)
    critic = torch.nn.Conv2d(1, 1, 3).double()
    expected = seeded(critic, real, fake)
    with torch.no_grad():
        found = seeded(critic, real, fake)
    assert found.item() == pytest.approx(expected.item()) and not found.requires_grad and expected.requires_grad


def test_a_flat_critic_has_a_finite_gradient():
    real, fake = images(2)
    critic = torch.nn.Conv2d(1, 1, 3).double()
    torch.nn.init.zeros_(critic.weight)
    loss = seeded(critic, real, fake)
    loss.backward()
    assert loss.item() == 1 and critic.weight.grad.isfinite().all()


def test_descent_brings_the_slope_to_1():
    real, fake = images(2, torch.float32)
    torch.manual_seed(0)
    critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(20, 1))
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        GradientPenalty()(critic, real, fake).backward()
        optimizer.step()
    assert critic[1].weight.norm().item() == pytest.approx(1, abs=1e-3)


def test_autocast_half_precision_and_metadata_change_nothing():
    real, fake = images(2, torch.float32)
    critic = torch.nn.Conv2d(1, 1, 3)
    expected = seeded(critic, real, fake)
    exact = seeded(copy.deepcopy(critic).double(), real.double(), fake.double())
    assert expected.item() == pytest.approx(exact.item(), rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(seeded(critic, MetaTensor(real), MetaTensor(fake)), expected)
        rough = seeded(critic, real.bfloat16(), fake.bfloat16())
    assert rough.dtype == torch.float32 and rough.item() == pytest.approx(expected.item(), rel=0.05)


def test_bad_input():
    real, fake = images(2)
    critic = torch.nn.Conv2d(1, 1, 3).double()
    for one, other in ((real, fake[:2]), (real, fake[..., :3]), (real[0, 0], fake[0, 0]), (real[:0], fake[:0])):
        with pytest.raises(ValueError, match=r"as many images \(B, C, \*spatial\) of one size, got"):
            GradientPenalty()(critic, one, other)
    with pytest.raises(TypeError, match="fake must be a floating-point tensor, got torch.int64"):
        GradientPenalty()(critic, real, fake.long())
    with pytest.raises(TypeError, match="must return its logits as a tensor, got list"):
        GradientPenalty()(lambda x: [x], real, fake)
    for output in (lambda x: x.mean(), lambda x: x[:1]):
        with pytest.raises(ValueError, match="logits of each of 3 images, got"):
            GradientPenalty()(output, real, fake)
