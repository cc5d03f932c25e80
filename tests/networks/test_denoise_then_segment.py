# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from monai_labelfx.inferers import HaloInferer
from monai_labelfx.networks import DenoiSegUNet, DenoiseThenSegment


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_only_the_segmenter_learns(spatial_dims):
    torch.manual_seed(0)
    denoiser, segmenter = (DenoiSegUNet(spatial_dims, features=4, depth=1, norm="batch") for _ in range(2))
    network = DenoiseThenSegment(denoiser, segmenter).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=0.1)
    image = torch.rand(2, 1, *[8] * spatial_dims)
    output = network(image)
    output[:, 1:].square().mean().backward()
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("segmenter.") for name in changed)
    assert not denoiser.training and segmenter.training


def test_output_is_denoised_image_then_logits_of_the_denoised_image():
    denoiser, segmenter = (DenoiSegUNet(2, features=4, depth=1).eval() for _ in range(2))
    network = DenoiseThenSegment(denoiser, segmenter)
    image = torch.rand(1, 1, 12, 10)
    output = network(image)
    assert torch.equal(output[:, :1], denoiser(image)[:, :1])
    assert torch.equal(output[:, 1:], segmenter(denoiser(image)[:, :1])[:, 1:])


def test_tiles_equal_the_whole_image():
    denoiser, segmenter = (DenoiSegUNet(2, features=4, depth=2).double().eval() for _ in range(2))
    network = DenoiseThenSegment(denoiser, segmenter)
    image = torch.rand(1, 1, 150, 130, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(HaloInferer(32)(image, network), network(image), atol=1e-10)
