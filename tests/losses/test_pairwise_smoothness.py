# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from monai_labelfx.losses.pairwise_smoothness import PairwiseSmoothnessLoss, pairwise_smoothness_loss

SHAPES = {1: (9,), 2: (6, 5), 3: (4, 5, 3)}


def example(spatial_dims: int, batch: int = 2, channels: int = 2, seed: int = 0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, channels, *SHAPES[spatial_dims])
    logits = torch.randn(shape, generator=generator, dtype=dtype) * 3
    return logits, torch.rand(shape, generator=generator) < 0.3


def naive(logits: np.ndarray, region, spacing) -> list[float]:
    """Voxel by voxel and neighbour by neighbour in float64."""
    batch, channels, *space = logits.shape
    p = 1 / (1 + np.exp(-logits))
    spacing = np.broadcast_to(np.ones(len(space)) if spacing is None else spacing, (batch, len(space)))
    values = []
    for c in range(channels):
        total = weight = 0.0
        for b, *k in itertools.product(range(batch), *map(range, space)):
            if region is not None and not region[(b, min(c, region.shape[1] - 1), *k)]:
                continue
            for step in itertools.product((-1, 0, 1), repeat=len(space)):
                other = np.add(k, step)
                if any(step) and (other >= 0).all() and (other < space).all():
                    near = np.linalg.norm(step) * spacing[b].min()
                    w = (near / np.linalg.norm(np.multiply(step, spacing[b]))) ** 2
                    total += w * (p[(b, c, *k)] - p[(b, c, *other)]) ** 2
                    weight += w
        values.append(total / weight if weight else 0.0)
    return values


def published(logits: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """The definition of the paper's code: a mean over directions of zero-padded differences at the voxels in boxes."""
    p, ndim = torch.sigmoid(logits), logits.ndim - 2
    padded = F.pad(p, (1, 1) * ndim)
    total = 0.0
    for step in itertools.product((-1, 0, 1), repeat=ndim):
        if any(step):
            moved = padded[(..., *(slice(1 + s, 1 + s + n) for s, n in zip(step, p.shape[2:], strict=True)))]
            total = total + ((p - moved).square() * region).sum() / region.sum()
    return total / (3**ndim - 1)


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("where", ["all", "class", "shared"])
@pytest.mark.parametrize("sizes", [None, "same", "own"])
def test_value_follows_the_formula(spatial_dims, where, sizes):
    logits, region = example(spatial_dims)
    region = {"all": None, "class": region, "shared": region[:, :1]}[where]
    spacing = {None: None, "same": [1.0, 0.5, 3.0][:spatial_dims], "own": [[1.0, 2.0, 2.5], [0.7, 0.6, 1.9]]}[sizes]
    spacing = np.array(spacing)[..., :spatial_dims] if spacing is not None else None
    expected = naive(logits.numpy(), None if region is None else region.numpy(), spacing)
    options = {"spacing": None if spacing is None else torch.tensor(spacing)}
    assert pairwise_smoothness_loss(logits, region, **options, reduction="none").tolist() == pytest.approx(expected)
    assert pairwise_smoothness_loss(logits, region, **options).item() == pytest.approx(sum(expected))
    assert pairwise_smoothness_loss(logits, region, **options, reduction="mean").item() == pytest.approx(
        sum(expected) / 2
    )


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("region", [True, False])
def test_gradients_of_first_and_second_order(spatial_dims, region):
    logits, inside = example(spatial_dims, batch=1)
    logits, inside = logits[..., :3, :2].clone().requires_grad_(), inside[..., :3, :2]

    def loss(z):
        return pairwise_smoothness_loss(
            z, inside if region else None, spacing=[1.0, 2.0, 0.6][:spatial_dims], reduction="none"
        )

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_boxes_away_from_the_border_have_the_published_value(spatial_dims):
    logits, region = example(spatial_dims, batch=3, channels=1)
    region[:] = False
    region[(0, 0, *(slice(1, n - 1) for n in logits.shape[2:]))] = True
    region[(2, 0, *(slice(1, 2) for _ in logits.shape[2:]))] = True
    assert pairwise_smoothness_loss(logits, region).item() == pytest.approx(published(logits, region).item())


def test_published_value_on_the_set_up_of_the_benchmark():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 1, 128, 128, generator=generator)
    region = torch.zeros_like(logits, dtype=torch.bool)
    for image, corner in zip(region, torch.randint(8, 40, (4, 2), generator=generator).tolist(), strict=True):
        image[0, corner[0] : corner[0] + 80, corner[1] : corner[1] + 80] = True
    value = pairwise_smoothness_loss(logits, region).item()
    assert value == pytest.approx(published(logits.double(), region).item(), rel=2e-6)
    assert value == pytest.approx(0.0868, abs=5e-4)  # of noise of deviation 1: twice the variance of sigmoid


def test_objects_may_touch_the_border_for_free_unlike_in_the_published_code():
    logits, region = torch.full((1, 1, 4, 4), 50.0), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    assert pairwise_smoothness_loss(logits, region) == 0
    assert published(logits, region) > 0.3


def test_one_edge_by_hand():
    logits = torch.tensor([[[[-99.0, 99.0, 99.0]]]])
    region = torch.zeros_like(logits).bool()
    region[..., 1] = True  # looks at both sides, one differs
    assert pairwise_smoothness_loss(logits, region).item() == pytest.approx(1 / 2)
    region[..., 2] = True  # looks at its equal
    assert pairwise_smoothness_loss(logits, region).item() == pytest.approx(1 / 3)
    assert pairwise_smoothness_loss(logits).item() == pytest.approx(1 / 2)


@pytest.mark.parametrize("shape", [(2, 1, 5, 4), (1, 2, 1, 1), (1, 1, 1, 1, 1), (0, 1, 4, 4), (2, 0, 4, 4)])
def test_nothing_to_compare_is_zero_with_zero_gradient(shape):
    logits = torch.randn(shape, requires_grad=True)
    for region in (torch.zeros(shape, dtype=torch.bool), None if 4 not in shape else torch.zeros(shape)):
        loss = pairwise_smoothness_loss(logits, region, spacing=[1.0, 2.0, 3.0][: len(shape) - 2])
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss == 0 and (gradient == 0).all()


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_flips_and_transposes_change_nothing(axis):
    logits, region = example(3)
    value = pairwise_smoothness_loss(logits, region, spacing=[1.0, 2.0, 3.0])
    flipped = pairwise_smoothness_loss(logits.flip(axis), region.flip(axis), spacing=[1.0, 2.0, 3.0])
    assert flipped.item() == pytest.approx(value.item(), rel=1e-12)
    order = [axis, *(a for a in (2, 3, 4) if a != axis)]
    turned = [t.permute(0, 1, *order) for t in (logits, region)]
    sizes = torch.tensor([1.0, 2.0, 3.0])[[a - 2 for a in order]]
    assert pairwise_smoothness_loss(*turned, spacing=sizes).item() == pytest.approx(value.item(), rel=1e-12)


def test_thick_slices_count_less():
    logits = torch.zeros(1, 1, 4, 4, 4)
    logits[..., 2:] = 9.0
    cubes, across, along = (
        pairwise_smoothness_loss(logits, spacing=s) for s in ([2.0, 2, 2], [1.0, 1, 4], [4.0, 4, 1])
    )
    assert cubes == pytest.approx(pairwise_smoothness_loss(logits).item())
    assert 2 * across < cubes < along


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_for_all_finite_logits_in_float32(dtype):
    huge = torch.finfo(dtype).max
    logits = torch.tensor([[[[huge, -huge, 0.0], [-huge, huge, 100.0]]]], dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pairwise_smoothness_loss(logits)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and logits.grad.isfinite().all()
    assert loss.item() == pytest.approx(pairwise_smoothness_loss(logits.double()).item(), rel=1e-6)


def test_module_takes_a_mapping():
    logits, region = example(2)
    target = {"region": MetaTensor(region), "spacing": [1.0, 2.0]}
    loss = PairwiseSmoothnessLoss(reduction="mean")
    assert loss(MetaTensor(logits), target) == pairwise_smoothness_loss(
        logits, region, spacing=[1.0, 2.0], reduction="mean"
    )
    assert type(loss(MetaTensor(logits), target)) is torch.Tensor
    assert loss(logits) == loss(logits, {}) == pairwise_smoothness_loss(logits, reduction="mean")
    assert repr(loss) == "PairwiseSmoothnessLoss(reduction='mean')"
    with pytest.raises(TypeError, match="mapping with region and spacing.*Tensor"):
        loss(logits, region)
    with pytest.raises(ValueError, match="reduction must be one of.*'max'"):
        PairwiseSmoothnessLoss(reduction="max")


def test_much_faster_than_the_published_convolutions():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 256, 256, generator=generator, requires_grad=True)
    region = torch.zeros_like(logits, dtype=torch.bool)
    region[..., 80:160, 80:160] = True
    kernels = torch.zeros(9, 1, 3, 3)
    kernels[:, :, 1, 1] = 1
    kernels.flatten(1)[range(9), range(9)] -= 1

    def convolved():
        p = torch.sigmoid(logits)
        parts = [F.conv2d(p, kernel[None], padding=1).square() * region for kernel in kernels]
        (sum(part.sum() for part in parts) / region.sum() / 8).backward()

    def time_of(step):
        times = []
        for _ in range(4):
            start = time.process_time()
            step()
            times.append(time.process_time() - start)
        return min(times[1:])

    assert time_of(lambda: pairwise_smoothness_loss(logits, region).backward()) < time_of(convolved) / 5
