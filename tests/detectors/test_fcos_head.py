# SPDX-License-Identifier: Apache-2.0
"""The head of FCOS: its layout, its scales, and names of torchvision."""

from __future__ import annotations

import pytest
import torch

from monai_labelfx.detectors._fcos_head import FCOSHead


def head(spatial_dims: int, **options) -> FCOSHead:
    torch.manual_seed(0)
    defaults = {"depth": 2, "norm": "group", "prior": 0.02, "centerness_on": "regression", "first_distance": 1.0}
    return FCOSHead(spatial_dims, 8, 3, 2, **{**defaults, **options})


def maps(spatial_dims: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(2, 8, *[size] * spatial_dims, generator=random) for size in (4, 2)]


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("tower", ["regression", "classification"])
def test_classes_then_centreness_then_distances(spatial_dims, tower):
    module = head(spatial_dims, centerness_on=tower)
    levels = maps(spatial_dims)
    raw = module(levels)
    places = [4**spatial_dims, 2**spatial_dims]
    assert raw.shape == (2, 3 + 1 + 2 * spatial_dims, sum(places))
    central = getattr(module, f"{tower}_head")
    for level, found in zip(levels, raw.split(places, dim=2), strict=True):
        classes = module.classification_head.cls_logits(module.classification_head.conv(level))
        distances = module.regression_head.bbox_reg(module.regression_head.conv(level))
        wanted = torch.cat([classes, central.bbox_ctrness(central.conv(level)), distances], dim=1).flatten(2)
        assert torch.allclose(found, wanted, atol=1e-6)


def test_each_level_has_its_scale():
    module, levels = head(2), maps(2)
    before = module(levels)
    with torch.no_grad():
        module.scales.copy_(torch.tensor([2.0, 3.0]))
    after = module(levels)
    assert torch.equal(after[:, :4], before[:, :4])
    assert torch.allclose(after[:, 4:, :16], 2 * before[:, 4:, :16]) and not torch.allclose(after, before)
    assert torch.allclose(after[:, 4:, 16:], 3 * before[:, 4:, 16:])
    after.square().sum().backward()
    assert (module.scales.grad > 0).all()


def test_a_fresh_head_starts_at_the_prior_and_the_first_distance():
    raw = head(2, norm="none")([torch.zeros(1, 8, 4, 4)])
    assert torch.allclose(raw[:, :3].sigmoid(), torch.tensor(0.02)) and (raw[:, 3] == 0).all()
    assert (raw[:, 4:] == 1).all()


def test_names_are_those_of_torchvision():
    towers = [
        f"{tower}_head.conv.{n}.{p}" for tower in ("classification", "regression") for n in (0, 1, 3, 4) for p in "wb"
    ]
    names = [name.replace(".w", ".weight").replace(".b", ".bias") for name in towers]
    outputs = ("classification_head.cls_logits", "regression_head.bbox_reg", "regression_head.bbox_ctrness")
    names += [f"{output}.{p}" for output in outputs for p in ("weight", "bias")]
    module = FCOSHead(2, 8, 3, None, depth=2, norm="group", prior=0.01, centerness_on="regression", first_distance=0.0)
    assert sorted(module.state_dict()) == sorted(names)


def test_maps_of_the_tower_of_distances():
    module, levels = head(3), maps(3)
    raw, towers = module.with_features(levels)
    assert torch.equal(raw, module(levels)) and len(towers) == 2
    for tower, level in zip(towers, levels, strict=True):
        assert torch.equal(tower, module.regression_head.conv(level))
