# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage
from scipy import ndimage

from monai_labelfx.losses.intensity_affinity import IntensityAffinityLoss, intensity_affinity_loss

SHAPES = {1: (40,), 2: (6, 5), 3: (4, 5, 3)}


def example(spatial_dims: int, batch: int = 2, channels: int = 2, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    space = SHAPES[spatial_dims]
    logits = torch.randn(batch, channels, *space, generator=generator, dtype=torch.float64) * 3
    image = torch.randn(batch, 2, *space, generator=generator, dtype=torch.float64)
    return logits, image, torch.rand(logits.shape, generator=generator) < 0.3


def steps(ndim: int, dilation: int):
    return [s for s in itertools.product((-dilation, 0, dilation), repeat=ndim) if any(s)]


def naive_sigma(image: np.ndarray, inside) -> np.ndarray:
    """1.3 medians over the pairs of face neighbours with a voxel inside, per image and channel."""
    found = []
    for b, j in np.ndindex(*image.shape[:2]):
        differences = []
        for axis in range(image.ndim - 2):
            for k in np.ndindex(*image.shape[2:]):
                other = tuple(np.add(k, np.eye(image.ndim - 2, dtype=int)[axis]))
                if other[axis] < image.shape[2 + axis]:
                    near = (
                        inside is None or inside[(b, slice(None), *k)].any() or inside[(b, slice(None), *other)].any()
                    )
                    differences += [abs(image[(b, j, *k)] - image[(b, j, *other)])] if near else []
        differences.sort()
        found.append(1.3 * differences[(len(differences) - 1) // 2])
    return np.array(found).reshape(image.shape[:2])


def naive(logits, image, inside, sigma, threshold, dilation, spacing) -> list[float]:
    """Pair by pair from probabilities in float64."""
    batch, channels, *space = logits.shape
    p = 1 / (1 + np.exp(-logits))
    sigma = naive_sigma(image, inside) if sigma == "auto" else np.broadcast_to(sigma, image.shape[:2])
    values = []
    for c in range(channels):
        total = weight = 0.0
        for b, *k in itertools.product(range(batch), *map(range, space)):
            if inside is not None and not inside[(b, min(c, inside.shape[1] - 1), *k)]:
                continue
            for step in steps(len(space), dilation):
                other = np.add(k, step)
                if not ((other >= 0).all() and (other < space).all()):
                    continue
                difference = image[(b, slice(None), *k)] - image[(b, slice(None), *other)]
                if math.exp(-(difference**2 / (2 * sigma[b] ** 2)).sum()) < threshold:
                    continue
                sizes = np.ones(len(space)) if spacing is None else np.array(spacing)
                near = np.linalg.norm(step) * sizes.min()
                w = (near / np.linalg.norm(np.multiply(step, sizes))) ** 2
                first, second = p[(b, c, *k)], p[(b, c, *other)]
                total -= w * math.log(first * second + (1 - first) * (1 - second))
                weight += w
        values.append(total / weight if weight else 0.0)
    return values


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("where", ["all", "class", "shared"])
@pytest.mark.parametrize("sigma", ["auto", 0.9, [0.5, 2.0]])
@pytest.mark.parametrize("dilation", [1, 2])
def test_value_follows_the_formula(spatial_dims, where, sigma, dilation):
    logits, image, inside = example(spatial_dims)
    inside = {"all": None, "class": inside, "shared": inside[:, :1]}[where]
    spacing = [1.0, 0.5, 3.0][:spatial_dims] if dilation == 1 else None
    options = {"sigma": sigma, "dilation": dilation, "spacing": spacing, "threshold": 0.3 if dilation == 1 else 0.6}
    expected = naive(logits.numpy(), image.numpy(), None if inside is None else inside.numpy(), **options)
    assert min(expected) > 0
    value = intensity_affinity_loss(logits, image, inside, **options, reduction="none")
    assert value.tolist() == pytest.approx(expected)
    assert intensity_affinity_loss(logits, image, inside, **options).item() == pytest.approx(sum(expected))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("region", [True, False])
def test_gradients_of_first_and_second_order(spatial_dims, region):
    logits, image, inside = (t[:1, ..., :3, :3] for t in example(spatial_dims))
    logits = logits[..., :2].clone().requires_grad_()
    image, inside = image[..., :2], inside[..., :2]

    def loss(z):
        return intensity_affinity_loss(z, image, inside if region else None, sigma=1.5, dilation=1, reduction="none")

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


def test_pairs_by_hand():
    image = torch.tensor([[[[0.0, 1.0, 1.0]]]])
    logits = torch.tensor([[[[-9.0, 0.0, 9.0]]]], dtype=torch.float64)
    log2 = pytest.approx(math.log(2))
    how = {"dilation": 1, "sigma": 0.5}
    # a voxel of even odds agrees with anything half of the time; without the edge two such pairs remain
    assert intensity_affinity_loss(logits, image, **how).item() == log2
    assert intensity_affinity_loss(logits, image, dilation=1, sigma=9).item() == log2
    # an opposite pair pays as much as its less certain voxel
    assert intensity_affinity_loss(logits, image, dilation=2, sigma=9).item() == pytest.approx(
        9 - math.log(2), abs=1e-3
    )
    assert intensity_affinity_loss(logits, image, dilation=2, sigma=0.5) == 0
    # affinity of a difference of 1: exp(-1 / (2 * 0.64)) = 0.46
    wide = torch.zeros_like(logits).bool()
    wide[..., 0] = True
    for threshold, expected in ((0.45, log2), (0.47, 0)):
        assert (
            intensity_affinity_loss(logits, image, wide, sigma=0.8, dilation=1, threshold=threshold).item() == expected
        )


def test_auto_needs_no_normalisation_and_looks_at_each_image_by_itself():
    logits, image, inside = example(3)
    value = intensity_affinity_loss(logits, image, inside)
    factors = torch.tensor([[0.01, 30.0], [1e3, 1.0]], dtype=torch.float64).view(2, 2, 1, 1, 1)
    assert intensity_affinity_loss(logits, image * factors - 5, inside).item() == pytest.approx(value.item(), rel=1e-9)
    loud = image.clone()
    loud[:, :, 0] += torch.linspace(0, 1e4, 5)[:, None] * ~inside.any(1)[:, None, 0]  # far from the region
    far = inside.clone()
    far[:, :, :2] = False
    assert intensity_affinity_loss(logits, loud, far, dilation=1) == intensity_affinity_loss(
        logits, image, far, dilation=1
    )


@pytest.mark.parametrize("sigma", ["auto", 1.0])
@pytest.mark.parametrize("shape", [(2, 1, 5, 4), (1, 2, 1, 1), (1, 1, 1, 1, 1), (1, 1, 2, 2), (0, 1, 4, 4)])
def test_nothing_to_compare_is_zero_with_zero_gradient(shape, sigma):
    logits = torch.randn(shape, requires_grad=True)
    cases = [(torch.randn(shape), torch.zeros(shape)), (torch.full(shape, math.nan), None)]
    for image, region in cases:
        loss = intensity_affinity_loss(logits, image, region, sigma=sigma)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss == 0 and (gradient == 0).all()


def test_constant_images_are_alike_everywhere_and_a_median_of_zero_means_equal():
    logits, _, _ = example(2)
    flat = torch.zeros(2, 1, 6, 5)
    everything = intensity_affinity_loss(logits, flat, sigma=1.0)
    assert everything > 0 and intensity_affinity_loss(logits, flat, sigma="auto") == everything
    steps_of_one = flat.clone()
    steps_of_one[..., 3:] = 1e-6  # most neighbours are equal
    assert intensity_affinity_loss(logits, steps_of_one, sigma="auto") == intensity_affinity_loss(
        logits, steps_of_one, sigma=1e-9
    )


@pytest.mark.parametrize("size", [20.0, 1e4, 1e38, 3.4e38])
def test_finite_for_all_finite_logits(size):
    logits = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(0)).sign() * size
    logits[..., 2] = 0
    logits.requires_grad_()
    loss = intensity_affinity_loss(logits, torch.zeros(1, 1, 5, 5))
    loss.backward()
    assert loss.isfinite() and loss >= 0 and logits.grad.isfinite().all() and (logits.grad != 0).any()
    same = torch.full((1, 1, 5, 5), -size) + torch.arange(5.0)
    assert 0 <= intensity_affinity_loss(same, torch.zeros(1, 1, 5, 5)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, image, inside = example(2)
    logits, image = logits.to(dtype), image.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = intensity_affinity_loss(logits, image, inside)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(
        intensity_affinity_loss(logits.double(), image.float(), inside).item(), rel=1e-5
    )


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_flips_and_transposes_change_nothing(axis):
    parts, sizes = example(3), torch.tensor([1.0, 2.0, 3.0])
    value = intensity_affinity_loss(*parts, spacing=sizes).item()
    assert value > 0
    assert intensity_affinity_loss(*(t.flip(axis) for t in parts), spacing=sizes).item() == pytest.approx(value)
    order = [axis, *(a for a in (2, 3, 4) if a != axis)]
    turned = [t.permute(0, 1, *order) for t in parts]
    assert intensity_affinity_loss(*turned, spacing=sizes[[a - 2 for a in order]]).item() == pytest.approx(value)


def edge_share(image: torch.Tensor, mask: torch.Tensor, sigma) -> float:
    """How much of the cost of the true segmentation remains: what pairs across its edge are alike by mistake."""
    region = torch.zeros_like(mask)
    region[..., *(slice(p.start, p.stop) for p in ndimage.find_objects(mask[0, 0].int().numpy())[0])] = True
    truth = torch.where(mask, 8.0, -8.0)
    every = intensity_affinity_loss(truth, image, region, sigma=1e6 * float(image.std()))
    return float(intensity_affinity_loss(truth, image, region, sigma=sigma) / every)


@pytest.mark.parametrize("shape", [(40, 40), (16, 18, 14)])
@pytest.mark.parametrize("noise", [0.02, 0.2])
def test_auto_keeps_edges_out_and_interiors_in(shape, noise):
    grid = torch.stack(torch.meshgrid(*(torch.linspace(-1.5, 1.5, n) for n in shape), indexing="ij"))
    mask = (grid.square().sum(0) < 1)[None, None]
    generator = torch.Generator().manual_seed(0)
    image = 500.0 * (mask + noise * torch.randn(1, 1, *shape, generator=generator))
    assert edge_share(image, mask, "auto") < 0.06
    inside = torch.where(mask, torch.randn(mask.shape, generator=generator), -8.0)
    interior = ndimage.binary_erosion(mask[0, 0].numpy(), iterations=2)
    inside.requires_grad_()
    intensity_affinity_loss(inside, image, mask).backward()
    assert (inside.grad[0, 0][torch.from_numpy(interior)] != 0).float().mean() > 0.95


@pytest.mark.sample_data
def test_auto_on_real_volumes_of_any_intensity(sample_data):
    folder = sample_data / "volume3d"
    pairs = [(f, folder / "hippocampus" / "labels" / f.name) for f in sorted((folder / "hippocampus/images").iterdir())]
    pairs = pairs[:6] + [
        (f, f.with_name(f.name.replace("image", "mask"))) for f in sorted((folder / "sarcoma_mr").glob("*image*"))[:3]
    ]
    load = LoadImage(image_only=True, ensure_channel_first=True)
    shares = [edge_share(load(a).as_tensor()[None], load(b).as_tensor()[None] > 0, "auto") for a, b in pairs]
    assert max(shares) < 0.85 and sum(shares) / len(shares) < 0.65


def test_module_takes_a_mapping():
    logits, image, inside = example(2)
    loss = IntensityAffinityLoss(sigma=[1.0, 2.0], threshold=0.5, dilation=1, reduction="mean")
    target = {"image": MetaTensor(image), "region": MetaTensor(inside), "spacing": [1.0, 2.0]}
    value = loss(MetaTensor(logits), target)
    assert type(value) is torch.Tensor
    assert value == intensity_affinity_loss(logits, image, inside, spacing=[1.0, 2.0], **loss.options)
    assert repr(loss).startswith("IntensityAffinityLoss(sigma=[1.0, 2.0], threshold=0.5, dilation=1, reduction='mean'")
    with pytest.raises(TypeError, match="mapping with image.*Tensor"):
        loss(logits, image)
    with pytest.raises(ValueError, match=r"needs an image in its target, which has \['region'\]"):
        loss(logits, {"region": inside})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "sigma must be a number above 0, one for each of 2 channels.*got 0.0"),
        ({"sigma": [1.0, 2.0, 3.0]}, "each of 2 channels"),
        ({"sigma": math.nan}, "got nan"),
        ({"sigma": "median"}, "got 'median'"),
        ({"threshold": 0.0}, "threshold must be above 0 and at most 1, got 0.0"),
        ({"threshold": 1.1}, "got 1.1"),
        ({"dilation": 0}, "dilation must be a whole number of steps, 1 or more, got 0"),
        ({"dilation": 1.5}, "got 1.5"),
        ({"reduction": "max"}, "reduction must be one of"),
        ({"spacing": [1.0]}, "spacing must be one size above 0 for each of 2 axes"),
        ({"image": torch.zeros(2, 2, 6, 4)}, r"image must be \(B, K, \*spatial\).*\(2, 2, 6, 5\), got \(2, 2, 6, 4\)"),
        ({"region": torch.zeros(2, 2, 6, 4)}, r"region must be \(2, 2, 6, 5\)"),
    ],
)
def test_bad_arguments(change, message):
    logits, image, _ = example(2)
    with pytest.raises(ValueError, match=message):
        intensity_affinity_loss(logits, **{"image": image, **change})
