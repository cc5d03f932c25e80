# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.data import Dataset

from monai_labelfx.cams import CAMProvider, PlainCAM
from monai_labelfx.cams.base import evaluating, pooled
from tests.cam_tester import SmallNetwork, squares


def test_evaluation_mode_ends_however_it_is_left():
    module = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.ReLU()))
    module[1][0].eval()
    before = [part.training for part in module.modules()]
    with pytest.raises(RuntimeError, match="inside"), evaluating(module):
        assert not any(part.training for part in module.modules())
        raise RuntimeError("inside")
    assert [part.training for part in module.modules()] == before == [True, True, True, False, True]


def test_pooling_is_the_mean_over_space():
    maps = torch.rand(2, 3, 4, 5, 6)
    torch.testing.assert_close(pooled(maps), maps.mean((2, 3, 4)))


def test_a_provider_must_say_how_it_learns():
    with pytest.raises(TypeError, match="abstract"):
        CAMProvider(SmallNetwork(2))


def test_target_may_be_a_mapping():
    provider = PlainCAM(SmallNetwork(2))
    output, labels = provider(torch.randn(2, 1, 8, 8)), torch.tensor([[1, 0], [0, -1]])
    sub = {"labels": labels, "sub_labels": torch.zeros(2, 2)}
    assert torch.equal(provider.loss(output, labels), provider.loss(output, sub))


def test_weights_stay_out_of_checkpoints():
    provider = PlainCAM(SmallNetwork(2), positive_weight=2.0)
    assert provider.positive_weight.tolist() == [2.0, 2.0]
    assert provider.state_dict().keys() == PlainCAM(SmallNetwork(2)).state_dict().keys()
    assert provider.double().positive_weight.dtype == torch.float64


def test_fit_spares_what_is_frozen_and_takes_its_defaults():
    torch.manual_seed(0)
    provider = PlainCAM(SmallNetwork(2))
    provider.network.first.requires_grad_(False)
    before = [p.clone() for p in (provider.network.first.weight, provider.network.second.weight)]
    losses = provider.fit(Dataset(squares(2, 8)), max_epochs=2, batch_size=4, learning_rate=0.1, device="cpu")
    assert len(losses) == 2
    assert torch.equal(provider.network.first.weight, before[0])
    assert not torch.equal(provider.network.second.weight, before[1])
