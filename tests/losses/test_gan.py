# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import PatchDiscriminator

from monai_labelfx.losses.gan import GANDiscriminatorLoss, GANGeneratorLoss


def logits(seed: int = 0, shape=(3, 1, 4, 5), dtype=torch.float64) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", [(3, 1, 4, 5), (2, 1, 3, 4, 2), (4, 1), (4,)])
def test_values_follow_the_formulas(shape):
    real, fake = logits(0, shape), logits(1, shape)
    r, f = real.numpy(), fake.numpy()
    assert GANGeneratorLoss()(fake).item() == pytest.approx(np.mean((f - 1) ** 2))
    assert GANGeneratorLoss("wasserstein")(fake).item() == pytest.approx(-f.mean())
    expected = (np.mean((r - 1) ** 2) + np.mean(f**2)) / 2
    assert GANDiscriminatorLoss()(real, fake).item() == pytest.approx(expected)
    assert GANDiscriminatorLoss("wasserstein")(real, fake).item() == pytest.approx(f.mean() - r.mean())


def test_least_squares_are_monais_without_its_activation():
    monai = PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)
    real, fake = logits(0), logits(1)
    assert torch.equal(GANGeneratorLoss()(fake), monai(fake, target_is_real=True, for_discriminator=False))
    both = monai(real, True, True) + monai(fake, False, True)
    assert torch.equal(GANDiscriminatorLoss()(real, fake), both / 2)
    with_activation = PatchAdversarialLoss(criterion="least_squares")
    assert GANGeneratorLoss()(fake).item() != pytest.approx(with_activation(fake, True, False).item(), rel=0.05)


@pytest.mark.parametrize("criterion", ["least_squares", "wasserstein"])
def test_the_two_sides_pull_against_each_other(criterion):
    real, fake = logits(0).requires_grad_(), torch.full((3, 1, 4, 5), 0.4, requires_grad=True)
    GANDiscriminatorLoss(criterion)(torch.full_like(fake, 0.6).requires_grad_(), fake).backward()
    assert (fake.grad > 0).all()  # the discriminator lowers the logits of made images
    fake.grad = None
    GANGeneratorLoss(criterion)(fake).backward()
    assert (fake.grad < 0).all()  # the generator raises them
    assert torch.autograd.gradcheck(GANDiscriminatorLoss(criterion), (real, logits(1).requires_grad_()))


def test_maps_of_different_numbers_are_averaged_apart():
    real, fake = logits(0, (3, 1, 4, 4)), logits(1, (5, 1, 2, 2))
    expected = ((real - 1).square().mean() + fake.square().mean()) / 2
    assert GANDiscriminatorLoss()(real, fake).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("criterion", ["least_squares", "wasserstein"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(criterion, dtype):
    big = torch.full((1, 1, 64, 64), 300.0, dtype=dtype)  # whose squares and sums leave float16
    with torch.autocast("cpu", dtype=dtype):
        made = GANGeneratorLoss(criterion)(big)
        seen = GANDiscriminatorLoss(criterion)(MetaTensor(big), MetaTensor(-big))
    for loss in (made, seen):
        assert loss.dtype == torch.float32 and loss.isfinite() and type(loss) is torch.Tensor
    exact = big.double()
    assert seen.item() == pytest.approx(GANDiscriminatorLoss(criterion)(exact, -exact).item())


def test_no_state_and_a_printed_form():
    assert not GANGeneratorLoss().state_dict() and not list(GANDiscriminatorLoss().parameters())
    assert "criterion='wasserstein'" in repr(GANGeneratorLoss("wasserstein"))
    assert "criterion='least_squares'" in repr(GANDiscriminatorLoss())


def test_bad_input():
    for loss in (GANGeneratorLoss, GANDiscriminatorLoss):
        with pytest.raises(ValueError, match="criterion must be one of .*'least_squares', 'wasserstein'.* got 'hinge'"):
            loss("hinge")
    features = PatchDiscriminator(spatial_dims=2, channels=4, in_channels=1, num_layers_d=1)(torch.zeros(2, 1, 16, 16))
    with pytest.raises(TypeError, match="fake_logits must be a floating-point tensor, got list; .* the last"):
        GANGeneratorLoss()(features)
    with pytest.raises(TypeError, match="real_logits .* got torch.int64"):
        GANDiscriminatorLoss()(logits().long(), logits())
    with pytest.raises(ValueError, match=r"fake_logits must hold logits, got the shape \(0, 1\)"):
        GANDiscriminatorLoss()(logits(), torch.zeros(0, 1))
