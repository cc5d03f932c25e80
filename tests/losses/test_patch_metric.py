# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.losses.patch_metric import PatchMetricLoss, PatchPositions, patch_metric_loss


def unit(batch: int = 2, patches: int = 6, length: int = 5, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    drawn = torch.randn(batch, patches, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=-1).to(dtype)


def naive(output: torch.Tensor, source: torch.Tensor, tau: float) -> float:
    """Pair by pair, the mean over the images of a batch."""
    total = 0.0
    for w, z in zip(output.double().tolist(), source.double().tolist(), strict=True):
        count = len(w)

        def term(a, b):
            return math.exp((sum(x * y for x, y in zip(a, b, strict=True)) - 1) / tau)

        total -= sum(term(z[k], w[k]) for k in range(count)) / count
        for side in (z, w):
            total += sum(term(side[k], side[j]) for k in range(count) for j in range(count) if j != k) / count**2
    return total / len(output)


def released(output: torch.Tensor, source: torch.Tensor, tau: float) -> torch.Tensor:
    """The released code's value of one image (K, C): the diagonal is -10 before the division by tau."""
    diagonal = torch.eye(len(output), dtype=torch.bool)
    push = [(x @ x.T).masked_fill(diagonal, -10.0).div(tau).exp().mean() for x in (output, source)]
    return (sum(push) - (output * source).sum(1).div(tau).exp().mean()) / output.shape[1]


@pytest.mark.parametrize("tau", [0.05, 0.15, 2.0])
@pytest.mark.parametrize(("batch", "patches"), [(1, 1), (1, 7), (3, 6), (5, 2)])
def test_value_follows_equation_3(tau, batch, patches):
    output, source = unit(batch, patches, seed=0), unit(batch, patches, seed=1)
    expected = naive(output, source, tau)
    assert patch_metric_loss(output, source, tau=tau).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)
    scale = math.exp(1 / tau) / 5
    assert patch_metric_loss(output, source, tau=tau, reference=True).item() == pytest.approx(expected * scale)
    single = patch_metric_loss(output.float(), source.float(), tau=tau)
    assert single.dtype == torch.float32 and single.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("tau", [0.12, 0.15])
def test_reference_is_the_released_code_on_each_image(tau):
    output, source = unit(3, 9, 16, seed=0), unit(3, 9, 16, seed=1)
    expected = torch.stack([released(w, z, tau) for w, z in zip(output, source, strict=True)]).mean()
    assert patch_metric_loss(output, source, tau=tau, reference=True).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("tau", [0.12, 0.15])
@pytest.mark.parametrize("patches", [1, 2, 128])
def test_collapsed_embeddings_have_the_closed_form(tau, patches):
    alike = unit(2, 1, 128).expand(2, patches, 128)
    expected = 2 * (patches - 1) / patches - 1
    assert patch_metric_loss(alike, alike, tau=tau).item() == pytest.approx(expected)
    scaled = patch_metric_loss(alike, alike, tau=tau, reference=True).item()
    assert scaled == pytest.approx(math.exp(1 / tau) / 128 * expected)
    if (tau, patches) == (0.15, 128):
        assert scaled == pytest.approx(6.043, abs=5e-4)


def test_random_directions_with_perfect_positives_are_near_the_bound():
    apart = unit(4, 128, 128)
    assert patch_metric_loss(apart, apart, tau=0.15, reference=True).item() == pytest.approx(-6.12, abs=0.01)
    bound = -math.exp(1 / 0.15) / 128
    assert bound == pytest.approx(-6.139, abs=5e-4)
    assert bound < patch_metric_loss(apart, apart, reference=True).item()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tau", [0.0125, 0.1, 1.0, 50.0])
def test_the_loss_stays_between_minus_1_and_2(seed, tau):
    for length in (1, 2, 16):
        output, source = unit(2, 8, length, seed=seed), unit(2, 8, length, seed=seed + 9)
        for pair in ((output, source), (source, source), (output, -output)):
            assert -1 - 1e-12 <= patch_metric_loss(*pair, tau=tau).item() <= 2 + 1e-12


@pytest.mark.parametrize("tau", [0.0125, 0.02, 0.07, 0.15])
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_in_float32(tau, reference, dtype):
    free, alike = unit(2, 32, 128, dtype=dtype), unit(2, 1, 128, dtype=dtype).repeat(1, 32, 1)
    for pair in ((free, free), (alike, alike), (free, -free), (free, torch.zeros_like(free))):
        output, source = (tensor.clone().requires_grad_() for tensor in pair)
        loss = patch_metric_loss(output, source, tau=tau, reference=reference)
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite()
        if dtype == torch.float32:
            assert output.grad.isfinite().all() and source.grad.isfinite().all()


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
def test_a_batch_is_the_mean_of_its_images(batch):
    output, source = unit(batch, 16, seed=0), unit(batch, 16, seed=1)
    alone = [patch_metric_loss(output[b : b + 1], source[b : b + 1]).item() for b in range(batch)]
    assert patch_metric_loss(output, source).item() == pytest.approx(sum(alone) / batch, rel=1e-12)


def test_invariances():
    output, source = unit(seed=0), unit(seed=1)
    value = patch_metric_loss(output, source).item()
    assert patch_metric_loss(source, output).item() == pytest.approx(value)
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    assert patch_metric_loss(output[:, order], source[:, order]).item() == pytest.approx(value)
    turn = torch.linalg.qr(unit(1, 5, 5)[0]).Q
    assert patch_metric_loss(output @ turn, source @ turn).item() == pytest.approx(value)
    assert patch_metric_loss(MetaTensor(output), MetaTensor(source)).item() == value
    assert type(patch_metric_loss(MetaTensor(output), MetaTensor(source))) is torch.Tensor


def test_layers_of_any_width_are_averaged():
    first, second = (unit(seed=0), unit(seed=1)), (unit(2, 3, 8, seed=2), unit(2, 3, 8, seed=3))
    for reference in (False, True):
        each = [patch_metric_loss(*layer, reference=reference).item() for layer in (first, second)]
        both = patch_metric_loss(
            [first[0], second[0]], (tensor for tensor in (first[1], second[1])), reference=reference
        )
        assert both.item() == pytest.approx(sum(each) / 2)


def test_both_images_get_the_gradient_of_the_formula():
    output, source = unit(2, 4, 3, seed=0).requires_grad_(), unit(2, 4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda w, z: patch_metric_loss(w, z, tau=0.3), (output, source))
    patch_metric_loss(output, source).backward()
    assert output.grad.abs().max() > 1e-4 and source.grad.abs().max() > 1e-4


def test_descent_joins_the_places_and_parts_the_patches():
    output, source = (unit(1, 12, 16, seed=seed, dtype=torch.float32).requires_grad_() for seed in (0, 0))
    with torch.no_grad():
        output += 0.3 * unit(1, 12, 16, seed=1, dtype=torch.float32)
    optimizer = torch.optim.SGD([output, source], lr=2.0)
    normalize = torch.nn.functional.normalize

    def state():
        w, z = normalize(output.detach(), dim=-1)[0], normalize(source.detach(), dim=-1)[0]
        apart = (w @ w.T - torch.eye(12)).max()
        return (w * z).sum(1).mean().item(), apart.item()

    before = state()
    for _ in range(40):
        optimizer.zero_grad()
        patch_metric_loss(normalize(output, dim=-1), normalize(source, dim=-1)).backward()
        optimizer.step()
    assert state()[0] > before[0] and state()[1] < before[1]


def test_autocast_changes_nothing():
    output, source = unit(dtype=torch.float32), unit(seed=1, dtype=torch.float32)
    expected = patch_metric_loss(output, source)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = patch_metric_loss(output, source)
    assert torch.equal(found, expected)


def test_module_is_the_function():
    output, source = unit(), unit(seed=1)
    loss = PatchMetricLoss(tau=0.12, reference=True)
    assert torch.equal(loss(output, source), patch_metric_loss(output, source, tau=0.12, reference=True))
    assert repr(loss) == "PatchMetricLoss(tau=0.12, reference=True)"
    assert torch.equal(PatchMetricLoss()([output], [source]), patch_metric_loss(output, source))


@pytest.mark.parametrize("tau", [0, -1.0, 0.01, math.inf, math.nan])
def test_bad_tau(tau):
    with pytest.raises(ValueError, match=f"tau must be a finite number of 0.0125 or more, got {tau}"):
        PatchMetricLoss(tau)
    with pytest.raises(ValueError, match="tau"):
        patch_metric_loss(unit(), unit(), tau=tau)


def test_bad_input():
    with pytest.raises(ValueError, match="one tensor for each layer, got 2 and 1"):
        patch_metric_loss([unit(), unit()], [unit()])
    with pytest.raises(ValueError, match="got 0 and 0"):
        patch_metric_loss([], [])
    for wrong in (unit(3), unit()[0], unit(2, 5), unit(2, 6, 4)):
        with pytest.raises(ValueError, match=r"of the same patches, got \(2, 6, 5\) and"):
            patch_metric_loss(unit(), wrong)
    with pytest.raises(ValueError, match="same patches"):
        patch_metric_loss(unit()[:, :0], unit()[:, :0])
    with pytest.raises(TypeError, match="got torch.int64"):
        patch_metric_loss(unit().long(), unit())
    with pytest.raises(TypeError, match="got list"):
        patch_metric_loss([[1.0]], [[1.0]])


@pytest.mark.parametrize("size", [(12, 10), (6, 8, 5)])
def test_positions_follow_the_image(size):
    positions = PatchPositions(10, stride=2)
    torch.manual_seed(0)
    places = positions(MetaTensor(torch.ones(3, 4, *size)))
    assert places.shape == (3, 10, len(size)) and (places % 2 == 0).all() and type(places) is torch.Tensor
    torch.manual_seed(0)
    assert torch.equal(positions(torch.zeros(3, 1, *size)), places)
    assert not torch.equal(positions(torch.zeros(3, 1, *size)), places)
    mask = torch.zeros(3, 1, *size)
    mask[:, :, :2, :2] = 1
    single = PatchPositions(1)(mask, mask)
    assert (single[..., :2] < 2).all()
    assert repr(positions) == "PatchPositions(10, stride=2)" and PatchPositions().count == 128


@pytest.mark.parametrize(("count", "stride"), [(0, 1), (4, 0), (4, (2, 0)), (4, ())])
def test_bad_positions(count, stride):
    with pytest.raises(ValueError, match="count and stride must be 1 or more"):
        PatchPositions(count, stride=stride)
    with pytest.raises(ValueError, match="fewer than the 128 to draw"):
        PatchPositions()(torch.zeros(1, 1, 8, 8))
