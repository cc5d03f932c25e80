# SPDX-License-Identifier: Apache-2.0
"""RetinaNet: the contract, anchors, assignment and losses of the paper, and torchvision's outputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from detector_tester import DetectorTester, nothing

from monai_labelfx.detectors import RetinaNetFPN
from monai_labelfx.networks import load_torchvision_weights

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from golden_retinanet import CLASSES, EVERY, formula, picture

SMALL = {"backbone": {"depth": 18, "features": 8}, "pyramid_channels": 16, "head_depth": 2}


class TestRetinaNetFPN(DetectorTester):
    rate = 0.003
    steps = {2: 120, 3: 200}

    def make(self, spatial_dims, **options):
        level = {"first_level": 3 if spatial_dims == 2 else 2, "extra_levels": 1}
        return RetinaNetFPN(spatial_dims, 1, 2, **SMALL | level | options)

    def default(self, spatial_dims):
        return RetinaNetFPN(spatial_dims, 1, 2)

    def test_losses_of_the_paper(self, dims):
        detector = self.make(dims, alpha=0.3, gamma=1.5)
        images, target = self.images(dims), self.target(dims)
        losses = detector(images, [target, nothing(dims)])
        raw, places = detector.network(images).double(), detector.places(tuple(images.shape[2:]), images.device)
        matches = detector.matcher(target["boxes"][None], torch.ones(1, 1, dtype=torch.bool), places)[0]
        matches = torch.stack([matches, torch.full_like(matches, -1)])
        positives = int((matches >= 0).sum())
        assert positives > 0 and (matches == -2).any()
        focal = regression = 0.0
        for image, column in zip(raw, matches, strict=True):
            p = image[:2].sigmoid()
            t = torch.zeros_like(p)
            t[1] = (column >= 0).double()
            p_t, alpha_t = torch.where(t == 1, p, 1 - p), torch.where(t == 1, 0.3, 0.7)
            focal += (-alpha_t * (1 - p_t) ** 1.5 * p_t.log())[:, column != -2].sum() / positives
            anchors, box = torch.cat(places)[column >= 0].double(), target["boxes"][0].double()
            size, wanted = anchors[:, dims:] - anchors[:, :dims], box[dims:] - box[:dims]
            centre = (box[dims:] + box[:dims] - anchors[:, dims:] - anchors[:, :dims]) / 2 / size
            coded = torch.cat([centre, (wanted / size).log()], dim=1)
            regression += (image[2:, column >= 0].T - coded).abs().sum() / positives
        assert losses["classification"].item() == pytest.approx(focal.item(), rel=1e-5)
        assert losses["box_regression"].item() == pytest.approx(regression.item(), rel=1e-5)

    def test_the_first_score_is_the_prior(self, dims):
        detector = self.make(dims, prior=0.02)
        scores = detector.scores(detector.network(torch.zeros(1, 1, *[64] * dims)))
        assert scores.median().item() == pytest.approx(0.02, rel=0.2)

    def test_a_sampler_and_losses_of_the_caller(self, dims):
        detector = self.make(dims)
        detector.set_balanced_sampler(16, 0.5)
        calls = []

        def loss(found, wanted):
            calls.append((found.shape, wanted.shape))
            return torch.nn.functional.binary_cross_entropy_with_logits(found, wanted)

        detector.set_cls_loss(loss)
        detector.set_box_regression_loss(lambda found, wanted: (found - wanted).square().mean(), False, True)
        losses = detector(self.images(dims), [self.target(dims), nothing(dims)])
        assert calls[0][0] == calls[0][1] and calls[0][0][1] == 2 and calls[0][0][0] <= 32
        assert losses["box_regression"] > 1, "in voxels, not coded"
        empty = detector(self.images(dims), [nothing(dims)] * 2)
        assert empty["box_regression"] == 0 and empty["box_regression"].requires_grad

    def test_options_out_of_range(self, dims):
        for options, reason in (
            ({"backbone": "resnet51"}, "backbone must be"),
            ({"backbone": torch.nn.Identity()}, "must have the attribute 'out_channels'"),
            ({"first_level": 6}, "first_level must be 2 to 5"),
            ({"extra_levels": -1}, "extra_levels must be 0 or more"),
            ({"extra_from": "C4"}, "extra_from must be 'C5' or 'P5'"),
            ({"head_norm": "batch"}, "head_norm must be one of"),
            ({"anchor_sizes": [[8]]}, "one list for each of the"),
            ({"anchor_sizes": [[8], [8, 9], [8], [8]]}, "same number of anchors"),
            ({"anchor_sizes": [[(8,) * (dims + 1)]] * 4}, "an anchor size must be"),
            ({"foreground_iou": 0.2}, "bg_iou_thresh <= fg_iou_thresh"),
        ):
            with pytest.raises(ValueError, match=reason):
                self.make(dims, **{"first_level": 3} | options)


def test_default_anchors_are_those_of_the_paper():
    detector = RetinaNetFPN(2, 1, 2, backbone={"depth": 10, "features": 8}, pyramid_channels=8)
    anchors = detector.places((512, 512), torch.device("cpu"))
    assert sum(map(len, anchors)) == 49104
    first = anchors[0][:9]
    assert torch.allclose((first[:, :2] + first[:, 2:]) / 2, torch.full((9, 2), 4.0))
    sizes = first[:, 2:] - first[:, :2]
    assert torch.allclose(sizes.prod(dim=1).sqrt(), torch.tensor([32.0, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)] * 3))
    assert torch.allclose(sizes[:, 1] / sizes[:, 0], torch.tensor([0.5] * 3 + [1.0] * 3 + [2.0] * 3))


def test_thick_slices_have_flat_anchors():
    backbone = {"depth": 10, "features": 8, "stem_stride": (2, 2, 1)}
    detector = RetinaNetFPN(3, 1, 1, backbone=backbone, pyramid_channels=8, first_level=2, extra_levels=0)
    low, high = detector.places((32, 32, 32), torch.device("cpu"))[0][4].chunk(2)
    size = (high - low).tolist()
    assert size[0] == size[1] > size[2], size


def test_weights_of_torchvision_give_its_output():
    """See benchmarks/golden_retinanet.py for how the golden file was made."""
    golden = json.loads((Path(__file__).parent / "golden_retinanet.json").read_text())
    detector = RetinaNetFPN(
        2,
        3,
        CLASSES,
        backbone={"depth": 10},
        norm="batch",
        extra_from="P5",
        anchor_sizes=[[s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))] for s in (32, 64, 128, 256, 512)],
        anchor_scales=[1.0],
        anchor_offset=0.0,
        round_anchors=True,
    )
    detector.double().eval()
    published = {name: formula(name, torch.empty(shape)) for name, shape in golden["parameters"].items()}
    assert load_torchvision_weights(detector.network, published) == []
    images = picture().transpose(-1, -2)  # MONAI has x first
    size = tuple(images.shape[2:])
    places = detector.places(size, images.device)
    order, start = [], 0
    for level, (columns, rows) in zip(places, detector.network.level_shapes(size), strict=True):
        numbers = torch.arange(start, start + len(level)).reshape(columns, rows, -1)
        order.append(numbers.transpose(0, 1).reshape(-1))
        start += len(level)
    order = torch.cat(order)[::EVERY]
    with torch.no_grad():
        raw = detector.network(images)
    assert torch.allclose(raw[:, :, order].transpose(1, 2), torch.tensor(golden["raw"], dtype=torch.double), atol=1e-4)
    assert torch.allclose(torch.cat(places)[order], torch.tensor(golden["anchors"]), atol=1e-4)
    for found, wanted in zip(detector(images), golden["detections"], strict=True):
        for key, values in wanted.items():
            expected = torch.tensor(values, dtype=torch.double)
            assert torch.allclose(found[key][: len(expected)].double(), expected, atol=1e-4), key


def test_a_classifier_gives_the_backbone():
    detector = RetinaNetFPN(2, 1, 2, backbone={"depth": 10, "features": 8}, norm="batch", pyramid_channels=8)
    source = RetinaNetFPN(2, 3, 2, backbone={"depth": 10, "features": 8}, norm="batch", pyramid_channels=8)
    published = source.network.backbone.state_dict() | {"fc.weight": torch.zeros(9, 64), "fc.bias": torch.zeros(9)}
    kept = load_torchvision_weights(detector.network, published, strict=False)
    assert kept and all(name.startswith(("neck.", "head.")) for name in kept)
    first = source.network.backbone.conv1.weight.sum(1, keepdim=True).transpose(-1, -2)
    assert torch.equal(detector.network.backbone.conv1.weight, first)
