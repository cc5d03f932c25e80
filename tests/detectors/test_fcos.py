# SPDX-License-Identifier: Apache-2.0
"""FCOS: the contract, places, losses and scores of the paper, and torchvision's outputs."""

from __future__ import annotations

import json
import math
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from detector_tester import SMALL as SHAPES
from detector_tester import DetectorTester, nothing

from monai_labelfx.detectors import fcos
from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors.fcos import FCOS
from monai_labelfx.networks.torchvision_weights import load_torchvision_weights

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from golden_fcos import CHANNELS, CLASSES, EVERY, formula, picture, targets

SMALL = {"backbone": {"depth": 10, "features": 8}, "pyramid_channels": 24, "first_level": 2, "extra_levels": 0}
FLAT = {"depth": 10, "features": 8, "stem_stride": (2, 2, 1), "stage_strides": [1, (2, 2, 1), 2, 2]}


def padded(*images: list[list[float]]) -> Targets:
    """Targets of class 1 from the boxes of each image; at least one row of each is not valid."""
    rows, axes = max(map(len, images)) + 1, max(len(box) for boxes in images for box in boxes)
    ignored = torch.tensor([1.0] * (axes // 2) + [28.0] * (axes // 2))
    boxes, valid = ignored.repeat(len(images), rows, 1), torch.zeros(len(images), rows, dtype=torch.bool)
    for number, image in enumerate(images):
        for row, box in enumerate(image):
            boxes[number, row], valid[number, row] = torch.tensor(box), True
    return Targets(boxes, torch.where(valid, 1, -1), valid, None)


def some_boxes(shape: tuple[int, ...], number: int, seed: int) -> list[list[float]]:
    """Boxes in an image; half of them of whole numbers, so that sides and centres meet places and borders of ranges."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, len(shape), generator=random).sort(dim=1).values * torch.tensor(shape)
    corners[::2] = corners[::2].round()
    return corners.reshape(number, -1).tolist()


def naive_matches(detector: FCOS, image_size: tuple[int, ...], boxes: list[list[float]]) -> list[int]:
    """The box of each place, from the definition, one place and one box at a time."""
    axes, found, strides = len(image_size), [], detector.network.strides
    for level, stride in enumerate(strides):
        cells = [range(math.ceil(n / s)) for n, s in zip(image_size, stride, strict=True)]
        for place in product(*cells):
            point = [(i + detector.point_offset) * s for i, s in zip(place, stride, strict=True)]
            best = (math.inf, -1)
            for number, box in enumerate(boxes):
                low = [p - b for p, b in zip(point, box[:axes], strict=True)]
                high = [b - p for p, b in zip(point, box[axes:], strict=True)]
                middle = [(a + b) / 2 for a, b in zip(box[:axes], box[axes:], strict=True)]
                far = [max(a, b) for a, b in zip(low, high, strict=True)]
                inside = min(low + high) > 0
                radius = detector.center_sampling
                if radius is not None:
                    inside &= all(abs(p - m) < radius * s for p, m, s in zip(point, middle, stride, strict=True))
                if level + 1 < len(strides):
                    inside &= all(f <= detector.reach * s for f, s in zip(far, stride, strict=True))
                if level > 0:
                    inside &= any(f > detector.reach * s for f, s in zip(far, strides[level - 1], strict=True))
                volume = math.prod(b - a for a, b in zip(box[:axes], box[axes:], strict=True))
                if inside and (volume, number) < best:
                    best = (volume, number)
            found.append(best[1])
    return found


class TestFCOS(DetectorTester):
    rate = 0.003
    steps = {2: 90, 3: 90}

    def make(self, spatial_dims, **options):
        return FCOS(spatial_dims, 1, 2, **{**SMALL, "head_depth": 1, **options})

    def default(self, spatial_dims):
        return FCOS(spatial_dims, 1, 2)

    def check_autocast(self, detector, images):
        """Raw distances are strides: what bfloat16 costs the network is a share of a stride."""
        with torch.no_grad():
            raw = detector.network(images)
            with torch.autocast("cpu", torch.bfloat16):
                low = detector.network(images).float()
        assert (raw - low)[:, 3:].abs().max() < 0.0125  # 0.05 voxels at stride 4

    # --- assignment ------------------------------------------------------------------------------------------------
    @pytest.mark.parametrize(
        "options", [{}, {"center_sampling": None, "reach": 1.5}, {"reach": 2.0, "point_offset": 0.0}]
    )
    def test_places_answer_for_boxes(self, dims, options):
        shape = SHAPES[dims]
        images = [some_boxes(shape, 20, seed=3), some_boxes(shape, 9, seed=4)]
        for backbone in (SMALL["backbone"], FLAT) if dims == 3 else (SMALL["backbone"],):
            detector = self.make(dims, backbone=backbone, **options)
            found = detector.assign(detector.places(shape, torch.device("cpu")), padded(*images))
            wanted = [naive_matches(detector, shape, boxes) for boxes in images]
            assert found.dtype == torch.int64 and (found >= 0).sum() > 5
            assert found.tolist() == wanted

    def test_chunks_change_nothing(self, dims, monkeypatch):
        detector, shape = self.make(dims), SHAPES[dims]
        places, boxes = detector.places(shape, torch.device("cpu")), padded(some_boxes(shape, 9, seed=5))
        together = detector.assign(places, boxes)
        monkeypatch.setattr(fcos, "_PAIRS", 70)
        assert torch.equal(detector.assign(places, boxes), together)

    def test_every_place_of_a_box_has_one_level(self, dims):
        backbone = SMALL["backbone"] if dims == 2 else {**FLAT, "stage_strides": [1, (2, 2, 1), (1, 2, 4), 2]}
        detector = self.make(dims, backbone=backbone, center_sampling=None, reach=1.3)
        levels = set()
        for size in (6.0, 10.0, 15.0, 33.0, 70.0):
            high = [size] * (dims - 1) + [size / 4]
            points = torch.rand(200, dims, generator=torch.Generator().manual_seed(0)) * torch.tensor(high)
            found = detector.assign([points] * 4, padded([[0.0] * dims + high])).reshape(4, 200)
            assert ((found == 0).sum(dim=0) == 1).all()
            levels |= set((found == 0).any(dim=1).nonzero()[:, 0].tolist())
        assert levels == {0, 1, 2, 3}

    def test_the_least_box_wins_and_the_first_of_equals(self, dims):
        detector = self.make(dims, center_sampling=None)
        large, small = [0.0] * dims + [32.0] * dims, [8.0] * dims + [24.0] * dims
        places = detector.places((32,) * dims, torch.device("cpu"))
        one, two, same = detector.assign(places, padded([large, small], [small, large], [small, small]))
        inside = (places[0] > 8).all(dim=1) & (places[0] < 24).all(dim=1)
        first = len(places[0])
        assert (one[:first] == inside).all() and (two[:first] == ~inside).all()
        assert set(same.tolist()) == {-1, 0}

    def test_a_reflection_of_the_image_reflects_the_places(self, dims):
        detector, shape = self.make(dims), (64,) * dims
        boxes = padded(some_boxes(shape, 6, seed=8))
        low, high = boxes.boxes.chunk(2, dim=2)
        mirrored = boxes._replace(boxes=torch.cat([64 - high, 64 - low], dim=2))
        places = detector.places(shape, torch.device("cpu"))
        counts = [len(level) for level in places]
        pairs = [detector.assign(places, one)[0].split(counts) for one in (boxes, mirrored)]
        assert all(torch.equal(one, two.flip(0)) for one, two in zip(*pairs, strict=True))

    # --- losses ----------------------------------------------------------------------------------------------------
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"box_loss": "iou", "center_sampling": None, "alpha": 0.4, "gamma": 1.0},
            {"weight_box_loss": False, "level_scales": False},
            {"distances": "exp", "centerness_on": "classification"},
        ],
    )
    def test_losses_of_the_paper(self, dims, options):
        detector = self.make(dims, reach=2.0, **options)
        shape = SHAPES[dims]
        boxes = padded(some_boxes(shape, 9, seed=6), some_boxes(shape, 2, seed=7))
        boxes.labels[0, 0] = 0
        places = detector.places(shape, torch.device("cpu"))
        matches = detector.assign(places, boxes)
        raw = torch.randn(2, 3 + 2 * dims, matches.shape[1], generator=torch.Generator().manual_seed(2))
        losses = detector.place_losses(raw, places, matches, boxes)
        alpha, gamma = options.get("alpha", 0.25), options.get("gamma", 2.0)
        focal, terms, central, weights = 0.0, [], 0.0, []
        strides = [s for s, level in zip(detector.network.strides, places, strict=True) for _ in level]
        points = torch.cat(places).tolist()
        for image, row in enumerate(matches.tolist()):
            for place, match in enumerate(row):
                numbers = raw[image, :, place].double().tolist()
                for c, logit in enumerate(numbers[:2]):
                    p = 1 / (1 + math.exp(-logit))
                    if match >= 0 and boxes.labels[image, match] == c:
                        focal -= alpha * (1 - p) ** gamma * math.log(p)
                    else:
                        focal -= (1 - alpha) * p**gamma * math.log(1 - p)
                if match < 0:
                    continue
                box = boxes.boxes[image, match].double().tolist()
                share, shared, hull, own, other = 1.0, 1.0, 1.0, 1.0, 1.0
                for axis, (x, s) in enumerate(zip(points[place], strides[place], strict=True)):
                    t, u = numbers[3 + axis], numbers[3 + dims + axis]
                    below, above = (
                        (math.exp(t), math.exp(u))
                        if options.get("distances") == "exp"
                        else (max(t, 0) * s, max(u, 0) * s)
                    )
                    low, high = x - box[axis], box[dims + axis] - x
                    share *= min(low, high) / max(low, high)
                    shared *= min(low, below) + min(high, above)
                    hull *= max(low, below) + max(high, above)
                    own, other = own * (below + above), other * (low + high)
                union = own + other - shared
                iou = shared / union
                loss = (
                    1 - (iou - (hull - union) / hull) if options.get("box_loss") != "iou" else -math.log(max(iou, 1e-6))
                )
                weights.append(share ** (1 / dims))
                terms.append(loss)
                central += math.log1p(math.exp(-numbers[2])) + (1 - weights[-1]) * numbers[2]
        assert len(terms) > 5
        if options.get("weight_box_loss", True):
            box_loss = sum(w * t for w, t in zip(weights, terms, strict=True)) / sum(weights)
        else:
            box_loss = sum(terms) / len(terms)
        wanted = {"classification": focal / len(terms), "box_regression": box_loss, "centerness": central / len(terms)}
        assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(wanted, rel=1e-4)

    def test_one_place_far_from_the_centre_counts_in_full(self, dims):
        detector = self.make(dims)
        places, boxes = detector.places((32,) * dims, torch.device("cpu")), padded([[5.0] * dims + [8.0] * dims])
        matches = detector.assign(places, boxes)
        assert (matches >= 0).sum() == 1, "at 6, of centreness 1 / 2"
        raw = torch.ones(1, 3 + 2 * dims, matches.shape[1])
        loss = detector.place_losses(raw, places, matches, boxes)["box_regression"]
        assert loss.item() == pytest.approx(1 - (3 / 8) ** dims), "a box from 2 to 10"

    def test_losses_of_any_raw_numbers_are_finite(self, dims):
        for options in ({}, {"distances": "exp", "box_loss": "iou"}):
            detector, shape = self.make(dims, **options), SHAPES[dims]
            places, boxes = detector.places(shape, torch.device("cpu")), padded([[3.0] * dims + [25.0] * dims])
            matches = detector.assign(places, boxes)
            for size in (0.0, 1e4, -1e4, 1e30):
                raw = torch.full((1, 3 + 2 * dims, matches.shape[1]), size, requires_grad=True)
                losses = detector.place_losses(raw, places, matches, boxes)
                sum(losses.values()).backward()
                assert raw.grad.isfinite().all() and all(loss.isfinite() for loss in losses.values()), (size, losses)

    # --- boxes and scores ------------------------------------------------------------------------------------------
    @pytest.mark.parametrize("distances", ["relu", "exp"])
    def test_right_distances_give_the_box(self, dims, distances):
        detector, box = self.make(dims, distances=distances), torch.tensor([3.0] * dims + [29.5] * dims)
        for level, (stride, points) in enumerate(
            zip(detector.network.strides, detector.places((32,) * dims, box.device), strict=True)
        ):
            exact = torch.cat([points - box[:dims], box[dims:] - points], dim=1)
            inside = (exact > 0).all(dim=1)
            raw = exact.clamp(min=1e-3).log() if distances == "exp" else exact / stride[0]
            found = detector.decode(raw.T, points, level)
            assert inside.any() or level > 2
            assert torch.allclose(found[inside], box.expand(int(inside.sum()), -1), atol=1e-3)

    def test_scores(self, dims):
        raw = torch.tensor([[0.0, 2.0], [1.0, -1.0], [0.5, 0.5], *[[9.0, 9.0]] * (2 * dims)])
        both = raw[:2].sigmoid() * raw[2].sigmoid()
        assert torch.equal(self.make(dims, score="product").scores(raw), both)
        assert torch.equal(self.make(dims).scores(raw), both.sqrt())

    @pytest.mark.parametrize("settings", [FCOS.plain_settings, FCOS.torchvision_settings])
    def test_named_settings(self, dims, settings):
        detector = self.make(dims, **{"pyramid_channels": 32, **settings})
        losses = detector(self.images(dims), [self.target(dims), nothing(dims)])
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in detector.parameters()) and losses["box_regression"] > 0

    def test_options_out_of_range(self, dims):
        for options, reason in (
            ({"box_loss": "diou"}, "box_loss must be one of 'giou', 'iou', got 'diou'"),
            ({"centerness_on": "both"}, "centerness_on must be one of"),
            ({"distances": "log"}, "distances must be one of"),
            ({"score": "sum"}, "score must be one of"),
            ({"center_sampling": 0.0}, "center_sampling must be a positive number of strides, got 0"),
            ({"reach": -1}, "reach must be a positive number"),
            ({"head_norm": "batch"}, "head_norm must be one of"),
        ):
            with pytest.raises(ValueError, match=reason):
                self.make(dims, **options)


def test_levels_are_those_of_the_paper():
    detector = FCOS(2, 1, 2, backbone={"depth": 10, "features": 8}, pyramid_channels=8, center_sampling=None)
    assert detector.network.strides == [(s, s) for s in (8, 16, 32, 64, 128)]
    points = [torch.tensor([[100.0, 100.0]])] * 5
    for farthest, level in ((64, 0), (64.1, 1), (128, 1), (129, 2), (256, 2), (257, 3), (512, 3), (513, 4), (9999, 4)):
        found = detector.assign(points, padded([[99.0, 99.0, 101.0, 100.0 + farthest]]))[0]
        assert found.tolist() == [0 if number == level else -1 for number in range(5)], farthest


def test_a_volume_beyond_1e8_is_a_box():
    detector = FCOS(3, 1, 2, backbone={"depth": 10, "features": 8}, pyramid_channels=8, center_sampling=None)
    box = [0.0] * 3 + [512.0] * 3
    found = detector.assign([torch.full((1, 3), 256.0)] * 5, padded([box]))
    assert found.tolist() == [[-1, -1, 0, -1, -1]]


def test_as_many_parameters_as_torchvision():
    with torch.device("meta"):
        detector = FCOS(2, 3, 91, norm="frozen_batch", **FCOS.torchvision_settings)
    assert sum(p.numel() for p in detector.parameters()) == 32_269_600  # of fcos_resnet50_fpn


def test_weights_of_torchvision_give_its_output():
    """See benchmarks/golden_fcos.py for how the golden file was made."""
    golden = json.loads((Path(__file__).parent / "golden_fcos.json").read_text())
    small = {"backbone": {"depth": 10}, "norm": "batch", "pyramid_channels": CHANNELS}
    detector = FCOS(2, 3, CLASSES, **small, **FCOS.torchvision_settings).double().eval()
    published = {name: formula(name, torch.empty(shape)) for name, shape in golden["parameters"].items()}
    parts = {"backbone.body.": "backbone.", "backbone.fpn.": "neck.fpn.", "head.": "head."}
    assert load_torchvision_weights(detector.network, published, prefix_map=parts) == []
    images = picture().transpose(-1, -2)  # MONAI has x first, as boxes have in both; kernels are turned on loading
    size = tuple(images.shape[2:])
    places, order, start = detector.places(size, images.device), [], 0
    for level, shape in zip(places, detector.network.level_shapes(size), strict=True):
        order.append(torch.arange(start, start + len(level)).reshape(shape).T.flatten())
        start += len(level)
    index = torch.cat(order)[::EVERY]
    with torch.no_grad():
        raw = detector.network(images)
    kept = raw[:, :, index].transpose(1, 2).clone()
    kept[..., -4:].clamp_(min=0)  # torchvision has this in its network
    assert torch.allclose(kept, torch.tensor(golden["raw"], dtype=torch.double), atol=1e-4)
    assert torch.cat(places)[index].tolist() == golden["points"]
    for found, wanted in zip(detector(images), golden["detections"], strict=True):
        assert len(wanted["boxes"]) > 30
        for key, values in wanted.items():
            expected = torch.tensor(values, dtype=torch.double)
            assert torch.allclose(found[key][: len(expected)].double(), expected, atol=1e-4), key
    boxes = padded(*[one["boxes"].tolist() for one in targets()])
    boxes = boxes._replace(labels=torch.tensor([[*targets()[0]["labels"].tolist(), -1], [-1] * 5]))
    losses = {name: loss.item() for name, loss in detector.compute_losses(raw, size, boxes).items()}
    names = {"classification": "classification", "box_regression": "bbox_regression", "centerness": "bbox_ctrness"}
    assert losses == pytest.approx({name: golden["losses"][theirs] for name, theirs in names.items()}, rel=1e-4)
