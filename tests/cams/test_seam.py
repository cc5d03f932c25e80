# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from monai_labelfx.cams.seam import SEAM, brought_to_one
from monai_labelfx.networks.cam_network import CAMNetwork
from monai_labelfx.networks.resnet_backbone import ResNetBackbone
from tests.cam_tester import CAMTester, SmallNetwork


class TestSEAM(CAMTester):
    epochs = 20

    def make(self, network, **options):
        return SEAM(network, **{"pixel_width": 8, "scale": 0.5, **options})


class Pointwise(torch.nn.Module):
    """A network of stride 1 that looks at single voxels: features are the channels of the image."""

    def __init__(self, spatial_dims, channels, classes):
        super().__init__()
        self.in_channels = channels
        conv = {2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[spatial_dims]
        self.head = conv(channels, classes, 1)

    def features(self, x):
        return x


def seam(spatial_dims=2, classes=3, channels=2, **options):
    torch.manual_seed(0)
    return SEAM(Pointwise(spatial_dims, channels, classes), pixel_width=4, scale=0.5, **options).double()


def scaled_to_one(one):
    one = one.clamp(min=0)
    return (one - one.min()) / (one.max() - one.min() + 1e-5)


def naive_terms(output, labels, *, foreground, hardest=0.2):
    """Class loss, ER and ECR of maps of equal size, written out patch by patch."""
    cls, er, ecr = [], [], []
    for number, marks in enumerate(labels.tolist()):
        views = []
        for prefix in ("", "small_"):
            maps, refined = output[f"{prefix}maps"][number], output[f"{prefix}refined"][number]
            for k, y in enumerate(marks):
                if y >= 0 and (k or not foreground):
                    p = maps[k].mean().sigmoid()
                    cls.append(-(p if y else 1 - p).log() / 2)
            held = [1 if y == 1 or (foreground and k == 0) else 0 for k, y in enumerate(marks)]
            a = torch.stack([h * scaled_to_one(m) for h, m in zip(held, maps, strict=True)])
            r = torch.stack([h * scaled_to_one(m) for h, m in zip(held, refined, strict=True)])
            t = a.clone()
            rest = a[1:] if foreground else a
            for k in range(1 if foreground else 0, len(a)):
                t[k][a[k] < rest.max(0).values] = 0
            if foreground:
                t[0] = 1 - rest.max(0).values
            views.append((rest, t, r))
        er.append((views[0][0] - views[1][0]).abs().mean())
        for mine, other in ((0, 1), (1, 0)):
            values = (views[other][1] - views[mine][2]).abs().flatten().sort(descending=True).values
            ecr.append(values[: int(hardest * len(values))].mean())
    known = sum(1 for row in labels.tolist() for k, y in enumerate(row) if y >= 0 and (k or not foreground))
    return sum(cls) / known, sum(er) / len(er), 2 * sum(ecr) / len(ecr)


@pytest.mark.parametrize("scoring", ["competing", "foreground"])
@pytest.mark.parametrize("shape", [(5, 6), (4, 3, 5)])
def test_loss_is_that_of_the_terms_written_out(shape, scoring):
    provider = seam(len(shape), scoring=scoring)
    output = {
        name: torch.randn(3, 3, *shape, dtype=torch.float64)
        for name in ("maps", "refined", "small_maps", "small_refined")
    }
    labels = torch.tensor([[1, 0, 1], [1, 1, -1], [0, 1, 0]])
    expected = sum(naive_terms(output, labels, foreground=scoring == "foreground"))
    torch.testing.assert_close(provider.loss(output, labels), expected)


def test_a_network_that_commutes_with_scaling_has_no_equivariance_loss():
    """Of single voxels of an image that is even in blocks of 2, view 2 is the image itself, at half its size."""
    provider = seam(channels=1, classes=2)
    provider.network.head.weight.data[:] = torch.tensor([2.0, 1.0]).reshape(2, 1, 1, 1)
    image = torch.rand(1, 1, 6, 5, dtype=torch.float64).repeat_interleave(2, 2).repeat_interleave(2, 3)
    provider.smaller = lambda images: images[:, :, ::2, ::2]  # without the triangle, which mixes blocks
    output = provider(image)
    torch.testing.assert_close(output["small_maps"], output["maps"][..., ::2, ::2])
    torch.testing.assert_close(output["small_refined"], output["refined"][..., ::2, ::2])
    output = {name: value[..., ::2, ::2] if value.shape[-1] == 10 else value for name, value in output.items()}
    labels = torch.tensor([[1, 1]])
    _, er, _ = naive_terms(output, labels, foreground=False)
    assert er < 1e-12
    shifted = {**output, "small_maps": output["small_maps"].roll(1, -1)}
    assert naive_terms(shifted, labels, foreground=False)[1] > 0.05
    assert provider.loss(shifted, labels) > provider.loss(output, labels) + 0.05


def test_gradients_flow_where_the_paper_lets_them():
    provider = seam()
    images = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    labels = torch.tensor([[1, 0, 1], [1, 1, 0]])
    output = provider(images)
    by_module = torch.autograd.grad(output["refined"].square().sum(), list(provider.correlation.parameters()))
    assert all(g.abs().sum() > 0 for g in by_module)
    by_head = torch.autograd.grad(provider(images)["refined"].sum(), provider.network.head.weight, allow_unused=True)[0]
    assert by_head is None  # the module alone learns from refined maps
    output = {name: value.detach().requires_grad_() for name, value in output.items()}
    loss = provider._crossed(output["maps"], output["refined"])
    gradients = torch.autograd.grad(loss, [output["maps"], output["refined"]], allow_unused=True)
    assert gradients[0] is None and gradients[1] is not None  # the target of the cross terms is fixed
    er = provider.loss(output, labels)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(er, list(output.values())))


def test_nothing_is_edited_in_place():
    provider = seam(scoring="foreground", min_pooling=1.0)
    output = {k: v.detach() for k, v in provider(torch.randn(2, 2, 8, 8, dtype=torch.float64)).items()}
    before = {k: v.clone() for k, v in output.items()}
    labels = torch.tensor([[1, 0, 1], [1, 1, 0]])
    first = provider.loss(output, labels)
    assert torch.equal(first, provider.loss(output, labels))
    assert all(torch.equal(value, before[key]) for key, value in output.items())
    assert labels.tolist() == [[1, 0, 1], [1, 1, 0]]


def test_min_pooling_is_the_lowest_quarter_of_the_refined_foreground():
    output = {
        name: torch.rand(2, 3, 4, 4, dtype=torch.float64) for name in ("maps", "refined", "small_maps", "small_refined")
    }
    labels = torch.tensor([[1, 0, 1], [0, 1, 0]])
    loss = seam(scoring="foreground", min_pooling=2.0).loss(output, labels)
    without = seam(scoring="foreground").loss(output, labels)
    expected = []
    for name in ("refined", "small_refined"):
        for refined, marks in zip(output[name], labels, strict=True):
            strongest = (refined[1:] * marks[1:, None, None]).max(0).values.flatten()
            expected.append(strongest.sort().values[:4].mean())
    torch.testing.assert_close(loss - without, 2 * torch.stack(expected).mean())


def test_maps_keep_the_scale_of_the_scores():
    provider = seam(scoring="competing")
    images = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    maps = provider.network.head(images)
    found = provider.cam(images)
    assert (found.amax((2, 3)) <= maps.amax((2, 3)) + 1e-9).all() and (
        found.amin((2, 3)) >= maps.amin((2, 3)) - 1e-9
    ).all()
    with torch.no_grad():
        provider.network.head.weight *= 3
        provider.network.head.bias *= 3
    torch.testing.assert_close(provider.cam(images), 3 * found)


def test_foreground_maps_are_refined_maps_times_the_maximum():
    provider = seam(scoring="foreground")
    images = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    output = provider(images)  # refined: of maps from 0 to 1
    found = provider.cam(images)
    torch.testing.assert_close(found[:, :1], output["refined"][:, :1])
    peaks = output["maps"][:, 1:].amax((2, 3), keepdim=True).relu()
    torch.testing.assert_close(found[:, 1:], output["refined"][:, 1:] * peaks)
    assert (found >= 0).all() and found[:, 0].max() <= 1


def test_suppression_keeps_the_strongest_class():
    maps = torch.tensor([[0.2, 0.1], [0.5, 0.3], [0.4, 0.6]])[None]
    assert seam().suppressed(maps)[0].tolist() == torch.tensor([[0, 0], [0.5, 0], [0, 0.6]]).tolist()
    found = seam(scoring="foreground").suppressed(maps)[0]
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.4], [0.5, 0], [0, 0.6]]))


def test_maps_reach_from_zero_to_one():
    maps = torch.tensor([[[2.0, 4.0, 6.0], [-1.0, 0.0, 5.0]]])
    torch.testing.assert_close(brought_to_one(maps), torch.tensor([[[0, 0.5, 1], [0, 0, 1]]]), atol=1e-5, rtol=0)


def test_maps_of_one_value_become_zero_and_stay_finite():
    maps = torch.stack([torch.full((3, 3), value) for value in (-1.0, 0.0, 2.0)])[None].requires_grad_()
    found = brought_to_one(maps)
    assert not found.any()
    found.sum().backward()
    assert maps.grad.isfinite().all()


def test_the_second_view_is_smaller():
    provider = SEAM(SmallNetwork(3), scale=0.3)
    assert provider.smaller(torch.rand(1, 1, 20, 11, 1)).shape == (1, 1, 6, 3, 1)
    output = provider(torch.rand(2, 1, 40, 40, 40))
    assert output["maps"].shape == output["refined"].shape == (2, 2, 10, 10, 10)
    assert output["small_maps"].shape == output["small_refined"].shape == (2, 2, 3, 3, 3)


def test_the_module_looks_at_all_stages_but_the_last():
    def channels(**options):
        return SEAM(CAMNetwork(ResNetBackbone(2, 1, depth=10, features=4), 2, **options)).pixel_channels

    assert channels(fused=3) == 8 + 16
    provider = SEAM(CAMNetwork(ResNetBackbone(2, 1, depth=10, features=4), 2)).eval()
    seen = []
    provider.correlation.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    image = torch.randn(1, 1, 32, 32)
    provider.cam(image)
    stages = provider.network.backbone(image)
    assert torch.equal(seen[0][:, :8], stages[1]) and seen[0].shape == (1, 24, 4, 4)
    assert channels(fused=1) == 32
    assert SEAM(SmallNetwork(2)).pixel_channels == 8


def test_memory_of_the_module_changes_nothing():
    images = torch.randn(2, 2, 9, 8, dtype=torch.float64)
    labels = torch.tensor([[1, 0, 1], [1, 1, 0]])
    found = []
    for mebibytes in (256.0, 0.01):
        provider = seam(pixel_mebibytes=mebibytes)
        loss = provider.loss(provider(images), labels)
        found.append([loss, *torch.autograd.grad(loss, list(provider.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 1.0}, "scale must be between 0 and 1, got 1.0"),
        ({"hardest": 0.0}, "hardest must be a share above 0"),
        ({"min_pooling": -1.0, "scoring": "foreground"}, "min_pooling must be 0 or more"),
        ({"min_pooling": 1.0}, "needs scoring='foreground'"),
        ({"pixel_width": 0}, "pixel_width must be 1 or more"),
        ({"pixel_mebibytes": 0.0}, "pixel_mebibytes must be above 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SEAM(SmallNetwork(2), **options)


def test_a_network_must_tell_its_channels():
    network = SmallNetwork(2)
    del network.in_channels
    with pytest.raises(TypeError, match="SEAM needs a network with in_channels"):
        SEAM(network)
