# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from monai_labelfx.cams.sc_cam import SCCAM
from monai_labelfx.networks.cam_network import CAMNetwork
from monai_labelfx.networks.resnet_backbone import ResNetBackbone
from tests.cam_tester import CAMTester, SmallNetwork


class TestSCCAM(CAMTester):
    sub = True

    def make(self, network, **options):
        return SCCAM(network, clusters=2, **options)


def test_sub_labels_say_what_is_known():
    provider = SCCAM(SmallNetwork(2, 1, 4), clusters=3)
    labels = torch.tensor([[1, 1, 0, -1]], dtype=torch.int8)
    found = provider.sub_targets(labels, torch.tensor([[2, -1, -1, 1]]))
    assert found.tolist() == [[[0, 0, 1], [-1, -1, -1], [0, 0, 0], [-1, -1, -1]]]


@pytest.mark.parametrize("scoring", ["competing", "foreground"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_loss_is_that_of_parents_and_five_times_that_of_sub_categories(spatial_dims, scoring):
    provider = SCCAM(SmallNetwork(spatial_dims, 1, 3), clusters=2, scoring=scoring).double()
    output = provider(torch.randn(2, 1, *(16, 12, 8)[:spatial_dims], dtype=torch.float64))
    labels, number = torch.tensor([[1, 0, -1], [1, 1, 0]]), torch.tensor([[1, -1, -1], [-1, 0, -1]])
    sub = output["sub_logits"]
    known = {(0, 0): [0.0, 1.0], (0, 1): [0.0, 0.0], (1, 1): [1.0, 0.0], (1, 2): [0.0, 0.0]}
    known = {place: values for place, values in known.items() if place[1] or scoring == "competing"}
    expected = (
        5
        * torch.stack(
            [
                binary_cross_entropy_with_logits(sub[place], torch.tensor(values, dtype=torch.float64))
                for place, values in known.items()
            ]
        ).mean()
    )
    expected = expected + provider.class_loss(output["logits"], labels)
    torch.testing.assert_close(provider.loss(output, {"labels": labels, "sub_labels": number}), expected)
    half = SCCAM(provider.network, clusters=2, sub_weight=2.5, scoring=scoring)
    change = provider.loss(output, {"labels": labels, "sub_labels": number}) - half.loss(
        output, {"labels": labels, "sub_labels": number}
    )
    torch.testing.assert_close(2 * change, expected - provider.class_loss(output["logits"], labels))


def test_the_first_round_is_an_ordinary_classifier():
    provider = SCCAM(SmallNetwork(2), clusters=2)
    labels = torch.tensor([[1, 0], [0, 1]])
    output = provider(torch.randn(2, 1, 16, 16))
    loss = provider.loss(output, labels)
    assert torch.equal(loss, provider.class_loss(output["logits"], labels))
    assert torch.equal(loss, provider.loss(output, {"labels": labels}))
    loss.backward()
    assert not provider.sub_head.weight.grad.any()


def test_both_layers_see_the_same_dropped_features():
    network = CAMNetwork(ResNetBackbone(2, 1, depth=10, features=4), classes=2, dropout=0.5)
    provider = SCCAM(network, clusters=1)
    network.backbone.eval()
    provider.sub_head.weight.data = network.head.weight.data.flatten(1)
    provider.sub_head.bias.data = network.head.bias.data
    images = torch.randn(2, 1, 32, 32)
    output = provider(images)
    torch.testing.assert_close(output["logits"], output["sub_logits"][..., 0])
    assert not torch.equal(output["logits"], provider(images)["logits"])


def test_wrong_numbers_are_refused():
    provider = SCCAM(SmallNetwork(2), clusters=2)
    output, labels = provider(torch.randn(1, 1, 16, 16)), torch.tensor([[1, 0]])
    with pytest.raises(ValueError, match=r"numbers of 2 clusters, 0 to 1 or -1, got 2"):
        provider.loss(output, {"labels": labels, "sub_labels": torch.tensor([[2, -1]])})
    with pytest.raises(ValueError, match=r"sub_labels must have the shape of the labels, \(1, 2\), got \(1, 3\)"):
        provider.loss(output, {"labels": labels, "sub_labels": torch.tensor([[1, -1, -1]])})
    with pytest.raises(ValueError, match="clusters must be 1 or more, got 0"):
        SCCAM(SmallNetwork(2), clusters=0)
    with pytest.raises(ValueError, match="sub_weight must be 0 or more"):
        SCCAM(SmallNetwork(2), sub_weight=-1.0)
