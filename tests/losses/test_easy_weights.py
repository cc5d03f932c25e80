# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from monai_labelfx.losses.easy_example import easy_example_loss, easy_example_weights

WEIGHTINGS = ("normalized_loss", "confidence_max", "confidence_difference", "mixed")
SCOPES = ("image", "block", "batch")


def example(*, classes: int = 3, space=(6, 5), batch: int = 3, seed: int = 0, dtype=torch.float64, scale: float = 2):
    """Random logits that require a gradient, and labels."""
    draw = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn((batch, classes, *space), generator=draw, dtype=dtype)
    return logits.requires_grad_(), torch.randint(0, classes, (batch, 1, *space), generator=draw)


def units_of(shape, scope: str, block: int) -> list[list[tuple[int, ...]]]:
    """The voxels (image, *place) of each image, or of each block of each image."""
    batch, _, *space = shape
    found: dict[tuple[int, ...], list] = {}
    for voxel in itertools.product(range(batch), *map(range, space)):
        place = tuple(i // block for i in voxel[1:]) if scope == "block" else ()
        found.setdefault((voxel[0], *place), []).append(voxel)
    return list(found.values())


def reference(logits, labels, weighting, scope, block, balanced, ignore, temperature) -> np.ndarray:
    """Equations 4 to 8 as they are printed, with a softmax over the voxels of each group."""
    z, y = logits.detach().double().numpy(), labels.numpy()[:, 0]
    log_p, p = log_softmax(z, 1), softmax(z, 1)
    weights = np.zeros(y.shape)
    groups = []
    for unit in units_of(labels.shape, scope, block):
        voxels = [v for v in unit if y[v] != ignore]
        if len({y[v] for v in voxels}) <= 1:
            for v in voxels:
                weights[v] = 1
        else:
            groups.append(voxels)
    if scope == "batch":
        groups = [sum(groups, [])]
    if balanced:
        groups = [[v for v in group if y[v] == k] for group in groups for k in range(z.shape[1])]
    for group in filter(None, groups):
        at = [(v[0], slice(None), *v[1:]) for v in group]
        losses = np.array([-log_p[a][y[v]] for a, v in zip(at, group, strict=True)])
        top, low = np.array([p[a].max() for a in at]), np.array([p[a].min() for a in at])
        share = softmax(-losses / temperature)
        values = {
            "normalized_loss": share / share.mean(),
            "confidence_max": top,
            "confidence_difference": top - low,
            "mixed": share / share.mean() * top,
        }[weighting]
        for v, value in zip(group, values / values.mean() if balanced else values, strict=True):
            weights[v] = value
    return weights[:, None]


@pytest.mark.parametrize("space", [(6, 5), (5, 4, 3)])
@pytest.mark.parametrize(
    ("scope", "block"), [("image", 1), ("batch", 1), ("block", 1), ("block", 2), ("block", 4), ("block", 99)]
)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("ignore", [None, 255])
def test_weights_are_those_of_the_paper(space, scope, weighting, balanced, ignore, block):
    logits, labels = example(space=space, classes=4, batch=4)
    labels[1] = 2  # n = 1
    if ignore is not None:
        labels[0, 0, 1:3] = labels[3] = ignore
        labels[2] = torch.where(labels[2] == 1, ignore, 3)  # n = 1 among the others
    temperature = 1.7 if "confidence" not in weighting else 1.0
    expected = reference(logits, labels, weighting, scope, block, balanced, ignore, temperature)
    weights = easy_example_weights(
        logits,
        labels,
        weighting=weighting,
        scope=scope,
        block_size=block,
        class_balanced=balanced,
        ignore_index=ignore,
        temperature=temperature,
    )
    assert weights.shape == labels.shape and weights.dtype == torch.float64
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-11, atol=1e-14)


def test_blocks_may_differ_by_axis():
    logits, labels = example(space=(6, 5))
    weights = easy_example_weights(logits, labels, scope="block", block_size=(4, 5))
    parts = [easy_example_weights(logits[:, :, a:b], labels[:, :, a:b]) for a, b in ((0, 4), (4, 6))]
    torch.testing.assert_close(weights, torch.cat(parts, 2))


@pytest.mark.parametrize("scope", SCOPES)
def test_means_are_one(scope):
    logits, labels = example(space=(8, 8), classes=2)
    labels[:, :, :, :2] = 255
    options = {"scope": scope, "block_size": 4, "ignore_index": 255}
    weights = easy_example_weights(logits, labels, **options)
    assert weights.sum().item() == pytest.approx((labels != 255).sum().item()) and (weights[labels == 255] == 0).all()
    balanced = easy_example_weights(logits, labels, class_balanced=True, **options)
    for number in range(2):
        assert balanced[labels == number].mean().item() == pytest.approx(1)
    assert (weights[labels == 0].mean() - 1).abs() > 1e-3, "without balance a class may win weight"


def test_two_classes_difference_is_twice_the_maximum_less_one():
    logits, labels = example(classes=2)
    top = easy_example_weights(logits, labels, weighting="confidence_max")
    difference = easy_example_weights(logits, labels, weighting="confidence_difference")
    torch.testing.assert_close(difference, 2 * top - 1)


def test_infinite_temperature_is_cross_entropy_and_low_temperature_takes_the_easiest():
    logits, labels = example()
    labels[0, 0, 0] = 255
    weights = easy_example_weights(logits, labels, temperature=float("inf"), ignore_index=255)
    assert torch.equal(weights, (labels != 255).double())
    cold = easy_example_weights(logits, labels, temperature=1e-5, ignore_index=255).flatten(1)
    assert cold.amax(1).tolist() == pytest.approx([25, 30, 30]) and ((cold > 1e-9).sum(1) == 1).all()


def test_more_than_127_classes():
    logits, labels = example(classes=300, space=(8, 40))
    labels[0] = 1 + 256 * (labels[0] % 2)  # the same as bytes
    labels[1] = 256
    weights = easy_example_weights(logits, labels, ignore_index=0)
    expected = reference(logits, labels, "normalized_loss", "image", 1, False, 0, 1.0)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-11)
    assert (weights[1] == 1).all()


def test_network_without_an_opinion_gets_equal_weights():
    labels = torch.tensor([[[0, 1, 1, 0]]])
    logits = torch.zeros(1, 2, 4)
    for weighting, value in zip(WEIGHTINGS, (1, 0.5, 0, 0.5), strict=True):
        assert (easy_example_weights(logits, labels, weighting=weighting) == value).all()
        balanced = easy_example_weights(logits, labels, weighting=weighting, class_balanced=True)
        assert (balanced == (0 if weighting == "confidence_difference" else 1)).all()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_nothing_to_learn_from_is_zero_with_zero_gradient(scope, balanced, weighting):
    logits, labels = example(dtype=torch.float32)
    options = {"scope": scope, "class_balanced": balanced, "weighting": weighting, "ignore_index": 255}
    expected = easy_example_loss(logits[1:], labels[1:], **options)
    labels[0] = 255
    loss = easy_example_loss(logits, labels, **options)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6), "an ignored image changes nothing"
    loss = easy_example_loss(logits, torch.full_like(labels, 255), **options)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("wrong", [200.0, 1e4, 1e30])
def test_network_that_is_sure_and_wrong_everywhere_keeps_a_gradient(wrong):
    logits = torch.zeros(1, 2, 4, 4)
    logits[:, 1] = wrong
    logits.requires_grad_()
    labels = torch.zeros(1, 1, 4, 4, dtype=torch.long)
    labels[0, 0, 0, 0] = 1  # right
    for ignore in (None, 1):
        loss = easy_example_loss(logits, labels, ignore_index=ignore)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite() and gradient.isfinite().all()
        assert (gradient[0, 0].flatten()[1:] != 0).all() == (ignore == 1), "p underflows, softmax(-L) does not"


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("balanced", [False, True])
def test_order_of_voxels_axes_and_images_does_not_matter(scope, balanced):
    logits, labels = example(space=(4, 5, 3))
    labels[labels == 2] = 255
    options = {"scope": scope, "class_balanced": balanced, "ignore_index": 255}
    expected = easy_example_loss(logits, labels, **options).item()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    changed = [
        (logits.flip(2, 4), labels.flip(2, 4)),
        (logits.transpose(2, 4), labels.transpose(2, 4)),
        (logits.flatten(2)[..., order], labels.flatten(2)[..., order]),
        (logits[[2, 0, 1]], labels[[2, 0, 1]]),
        (logits[..., None], labels[..., None]),
    ]
    for pair in changed:
        assert easy_example_loss(*pair, **options).item() == pytest.approx(expected, rel=1e-12)
