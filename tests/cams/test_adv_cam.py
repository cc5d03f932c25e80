# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from monai_labelfx.cams.adv_cam import AdvCAM
from monai_labelfx.cams.plain_cam import PlainCAM
from monai_labelfx.cams.sc_cam import SCCAM
from monai_labelfx.cams.seam import SEAM
from tests.cam_tester import CAMTester, SmallNetwork


class TestAdvCAM(CAMTester):
    def make(self, network, **options):
        return AdvCAM(PlainCAM(network, **options), steps=3)


class TestOnSEAM(CAMTester):
    epochs = 20

    def make(self, network, **options):
        return AdvCAM(SEAM(network, pixel_width=8, scale=0.5, **options), steps=2)


def network(spatial_dims=2, classes=3):
    torch.manual_seed(3)
    return SmallNetwork(spatial_dims, 1, classes).double()


def naive(net, image, number, *, steps, step_size=0.08, threshold=0.5, weight=7.0, foreground=False):
    """The mean of the maps of a class and the last image, of one image, written out."""
    first_class = 1 if foreground else 0
    weights, bias = net.head.weight.flatten(1), net.head.bias
    low, high = image.min(), image.max()
    x, first, total = image.clone(), None, 0
    for step in range(steps + 1):
        x = x.detach().requires_grad_()
        features = net.features(x)[0]
        maps = (weights @ features.flatten(1) + bias[:, None]).reshape(-1, *features.shape[1:])
        shown = maps[number].clamp(min=0)
        first = shown.detach() if first is None else first
        total = total + (shown if foreground else maps[number]).detach()
        if step == steps:
            return total / (steps + 1), x.detach()
        y = [m.mean() for m in maps]
        goal = y[number] - sum(y[k] for k in range(first_class, len(y)) if k != number)
        found = shown.detach() / shown.detach().max() > threshold
        goal = goal - weight * (found * (shown - first).abs()).sum() / shown.numel()
        gradient = torch.autograd.grad(goal, x)[0]
        x = (x.detach() + step_size * gradient / gradient.abs().max()).clamp(low, high)


@pytest.mark.parametrize("scoring", ["competing", "foreground"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_averages_the_maps_of_a_climb(spatial_dims, scoring):
    net = network(spatial_dims)
    images = torch.randn(2, 1, *(16, 12, 8)[:spatial_dims], dtype=torch.float64)
    images[1] *= 3
    found = AdvCAM(PlainCAM(net, scoring=scoring), steps=4).cam(images)
    foreground = scoring == "foreground"
    for row in range(2):
        for number in range(int(foreground), 3):
            expected, _ = naive(net, images[row : row + 1], number, steps=4, foreground=foreground)
            torch.testing.assert_close(found[row, number], expected)
    assert not foreground or not found[:, 0].any()


def test_options_reach_the_climb():
    net, image = network(), torch.randn(1, 1, 16, 16, dtype=torch.float64)
    options = {"steps": 5, "step_size": 0.2, "mask_threshold": 0.2, "regularization": 2.0}
    found = AdvCAM(net, **options).cam(image)
    expected, _ = naive(net, image, 1, steps=5, step_size=0.2, threshold=0.2, weight=2.0)
    torch.testing.assert_close(found[0, 1], expected)
    for other in ({"step_size": 0.1}, {"mask_threshold": 0.9}, {"regularization": 0.0}, {"steps": 4}):
        assert not torch.allclose(AdvCAM(net, **{**options, **other}).cam(image)[0, 1], expected)


def test_what_was_below_zero_counts_as_not_found():
    net, image = network(), torch.randn(1, 1, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        net.head.bias -= PlainCAM(net).cam(image).mean((0, 2, 3))
    options = {"steps": 5, "step_size": 0.5, "regularization": 3.0}
    for number in range(3):
        expected, _ = naive(net, image, number, steps=5, step_size=0.5, threshold=0.0, weight=3.0)
        found = AdvCAM(net, mask_threshold=0.0, **options).cam(image)[0, number]
        torch.testing.assert_close(found, expected)


def test_climbing_raises_the_score_of_its_class_alone():
    net, image = network(), torch.randn(1, 1, 16, 16, dtype=torch.float64)
    before = PlainCAM(net).eval()(image)[0]
    for number in range(3):
        _, image_after = naive(net, image, number, steps=10, weight=0.0)
        after = PlainCAM(net).eval()(image_after)[0]
        margin = 2 * (after[number] - before[number]) - (after - before).sum()
        assert margin > 0.05


def test_climbs_in_float32_whatever_autocast_does():
    net, images = network().float(), torch.randn(1, 1, 16, 12)
    expected = AdvCAM(net, steps=3).cam(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(AdvCAM(net, steps=3).cam(images), expected)
        found = AdvCAM(net, steps=3).cam(images.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_no_step_is_the_map_itself():
    net, images = network(), torch.randn(2, 1, 16, 12, dtype=torch.float64)
    plain = PlainCAM(net)
    torch.testing.assert_close(AdvCAM(net, steps=0).cam(images), plain.cam(images))
    foreground = AdvCAM(PlainCAM(net, scoring="foreground"), steps=0).cam(images)
    torch.testing.assert_close(foreground[:, 1:], plain.cam(images)[:, 1:].relu())
    assert not foreground[:, 0].any()


def test_the_image_stays_within_its_own_range(monkeypatch):
    net = network()
    seen = []
    features = net.features
    monkeypatch.setattr(net, "features", lambda x: seen.append(x.detach()) or features(x))
    image = torch.rand(1, 1, 16, 12, dtype=torch.float64)
    AdvCAM(net, steps=6, step_size=0.5).cam(image)
    assert min(x.min() for x in seen) == image.min() and max(x.max() for x in seen) == image.max()
    assert len(seen) == 1 + 3 * 7


def test_absent_classes_are_not_climbed(monkeypatch):
    net = network()
    images = torch.randn(3, 1, 16, 12, dtype=torch.float64)
    labels = torch.tensor([[1, 0, 0], [0, -1, 0], [1, 1, 0]])
    provider = AdvCAM(net, steps=3)
    full, plain = provider.cam(images), PlainCAM(net).cam(images)
    features, rows = net.features, []
    monkeypatch.setattr(net, "features", lambda x: rows.append(len(x)) or features(x))
    found = provider.cam(images, labels)
    assert rows == [3, 2, 2, 2, 2, 2, 2, 2, 2]
    climbed = (labels != 0)[..., None, None]
    torch.testing.assert_close(found, torch.where(climbed, full, plain))
    with pytest.raises(ValueError, match=r"labels must have the shape \(B, 3\)"):
        provider.cam(images, labels[:, :2])


def test_a_flat_image_and_a_dead_network_stay_finite():
    net = network()
    flat = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(AdvCAM(net, steps=2).cam(flat), PlainCAM(net).cam(flat))
    torch.nn.init.zeros_(net.head.weight)
    torch.testing.assert_close(AdvCAM(net, steps=2).cam(flat.normal_()), PlainCAM(net).cam(flat))


def test_grad_cam_of_the_logit_is_the_map_without_bias_over_the_voxels():
    net, image = network(), torch.randn(1, 1, 16, 12, dtype=torch.float64)
    features = net.features(image).detach().requires_grad_()
    logit = net.head(features).mean((2, 3))[0, 1]
    weights = torch.autograd.grad(logit, features)[0].mean((2, 3), keepdim=True)
    grad_cam = (weights * features).sum(1)[0] * features[0, 0].numel()
    torch.testing.assert_close(grad_cam, PlainCAM(net).cam(image)[0, 1] - net.head.bias[1])


def test_checkpoints_are_those_of_the_provider():
    plain, images = PlainCAM(network()), torch.randn(1, 1, 16, 12, dtype=torch.float64)
    climbing = AdvCAM(SmallNetwork(2, 1, 3).double(), steps=2)
    assert climbing.state_dict().keys() == plain.state_dict().keys()
    assert climbing.load_state_dict(plain.state_dict()) == ([], [])
    torch.testing.assert_close(climbing.cam(images), AdvCAM(plain, steps=2).cam(images))
    holder = torch.nn.ModuleDict({"provider": climbing})
    holder.load_state_dict(torch.nn.ModuleDict({"provider": plain}).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        climbing.load_state_dict({})


def test_trains_as_the_provider_it_wraps():
    torch.manual_seed(0)
    provider = SCCAM(SmallNetwork(2), clusters=2)
    climbing = AdvCAM(provider)
    images = torch.randn(2, 1, 16, 16)
    target = {"labels": torch.tensor([[1, 0], [0, 1]]), "sub_labels": torch.tensor([[1, -1], [-1, 0]])}
    assert torch.equal(climbing.loss(climbing(images), target), provider.loss(provider(images), target))
    assert climbing.eval()(images).shape == (2, 2) and not provider.training
    assert len(list(climbing.parameters())) == len(list(provider.parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be 0 or more, got -1"),
        ({"step_size": 0.0}, "step_size must be above 0"),
        ({"mask_threshold": 1.5}, "mask_threshold must be a share from 0 to 1"),
        ({"regularization": -1.0}, "regularization must be 0 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdvCAM(SmallNetwork(2), **options)
