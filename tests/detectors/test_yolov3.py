# SPDX-License-Identifier: Apache-2.0
"""YOLOv3: the contract, anchors, assignment, losses and scores of the paper."""

from __future__ import annotations

import math

import pytest
import torch
from detector_tester import SMALL as SHAPES
from detector_tester import DetectorTester, nothing

from monai_labelfx.detectors import yolov3
from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors.yolov3 import YOLOv3

ANCHORS = {
    2: [[(6, 9), (9, 6)], [(12, 12), (16, 24)], [(30, 24), (40, 40)]],
    3: [[(6, 9, 7), (9, 6, 9)], [(12, 12, 12), (16, 24, 9)], [(30, 24, 30)]],
}
FLAT = {"features": 4, "stage_strides": [(2, 2, 1), (2, 2, 1), 2, 2, 2]}


def padded(*images: list[list[float]]) -> Targets:
    """Targets from the boxes of each image, of classes 0, 1, 0 ...; at least one row of each is not valid."""
    rows, numbers = max(map(len, images)) + 1, max(len(box) for boxes in images for box in boxes)
    ignored = torch.tensor([1.0] * (numbers // 2) + [28.0] * (numbers // 2))
    boxes, valid = ignored.repeat(len(images), rows, 1), torch.zeros(len(images), rows, dtype=torch.bool)
    for number, image in enumerate(images):
        for row, box in enumerate(image):
            boxes[number, row], valid[number, row] = torch.tensor(box), True
    return Targets(boxes, torch.where(valid, torch.arange(rows) % 2, -1), valid, None)


def some_boxes(shape: tuple[int, ...], number: int, seed: int) -> list[list[float]]:
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, len(shape), generator=random).sort(dim=1).values * torch.tensor(shape)
    return (corners + torch.tensor([0.0, 1.0])[:, None]).reshape(number, -1).tolist()


def overlap(one: list[float], two: list[float]) -> float:
    axes = len(one) // 2
    shared = math.prod(max(0.0, min(one[axes + i], two[axes + i]) - max(one[i], two[i])) for i in range(axes))
    volumes = [math.prod(box[axes + i] - box[i] for i in range(axes)) for box in (one, two)]
    return shared / (sum(volumes) - shared)


def naive_matches(detector: YOLOv3, places: list[torch.Tensor], boxes: list[list[float]]) -> list[int]:
    """The box of each anchor, from the definition, one anchor and one box at a time."""
    axes = detector.spatial_dims
    rows = [
        (anchor, stride)
        for level, stride in zip(places, detector.network.strides, strict=True)
        for anchor in level.double().tolist()
    ]
    claims: list[tuple[float, int]] = [(-1.0, -1)] * len(rows)
    for number, box in enumerate(boxes):
        middle = [(box[i] + box[axes + i]) / 2 for i in range(axes)]
        own = []
        for index, (anchor, stride) in enumerate(rows):
            cell = [math.floor((anchor[i] + anchor[axes + i]) / 2 / stride[i]) for i in range(axes)]
            if all(math.floor(middle[i] / stride[i]) == cell[i] for i in range(axes)):
                own.append((overlap(box, anchor), index))
        best = max(own, key=lambda pair: pair[0])[1]
        for value, index in own:
            if index == best or value > detector.ignore_iou:
                claim = (value + (index == best), number)
                claims[index] = max(claims[index], claim, key=lambda pair: pair[0])
    found = []
    for (anchor, _), (_, number) in zip(rows, claims, strict=True):
        close = max(overlap(box, anchor) for box in boxes) > detector.ignore_iou
        found.append(number if number >= 0 else -2 if close else -1)
    return found


class TestYOLOv3(DetectorTester):
    rate = 0.003
    steps = {2: 60, 3: 60}

    def make(self, spatial_dims, **options):
        return YOLOv3(spatial_dims, 1, 2, **{"backbone": {"features": 4}, **options})

    def default(self, spatial_dims):
        return YOLOv3(spatial_dims, 1, 2)

    @pytest.mark.parametrize("full", ["all", "some", "none"])
    def test_losses_reach_every_parameter(self, dims, full):
        """As for every detector, but an image without objects teaches the objectness, and no class."""
        detector = self.make(dims)
        targets = [nothing(dims) if full == "none" else self.target(dims)]
        targets.append(self.target(dims) if full == "all" else nothing(dims))
        losses = detector(self.images(dims), targets)
        assert set(losses) == {"classification", "box_regression", "objectness"}
        assert all(loss.ndim == 0 and loss.isfinite() and loss.requires_grad for loss in losses.values())
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
        assert losses["objectness"] > 0
        assert (losses["classification"] == 0) == (losses["box_regression"] == 0) == (full == "none")

    def check_autocast(self, detector, images):
        """Raw sizes are logarithms: what bfloat16 costs the network is a share of an anchor."""
        with torch.no_grad():
            raw = detector.network(images)
            with torch.autocast("cpu", torch.bfloat16):
                low = detector.network(images).float()
        assert (raw - low)[:, 3:].abs().max() < 0.01

    # --- assignment ------------------------------------------------------------------------------------------------
    def test_anchors_answer_for_boxes(self, dims):
        shape = SHAPES[dims]
        images = [some_boxes(shape, 12, seed=1), some_boxes(shape, 4, seed=3)]
        for backbone in ({"features": 4}, FLAT) if dims == 3 else ({"features": 4},):
            detector = self.make(dims, backbone=backbone, anchors=ANCHORS[dims], ignore_iou=0.3 if dims == 2 else 0.15)
            places = detector.places(shape, torch.device("cpu"))
            found = detector.assign(places, padded(*images))
            assert found.dtype == torch.int64 and (found == -2).any()
            assert found.tolist() == [naive_matches(detector, places, boxes) for boxes in images]

    def test_chunks_change_nothing(self, dims, monkeypatch):
        detector, shape = self.make(dims, anchors=ANCHORS[dims]), SHAPES[dims]
        places = detector.places(shape, torch.device("cpu"))
        boxes = padded(some_boxes(shape, 7, seed=2), some_boxes(shape, 2, seed=3), some_boxes(shape, 1, seed=4))
        together = detector.assign(places, boxes)
        monkeypatch.setattr(yolov3, "_PAIRS", 1)
        assert torch.equal(detector.assign(places, boxes), together)

    def test_every_box_has_one_best_anchor(self, dims):
        """A cube of 12 around the middle of a cell: two equal anchors, a good one, and a tiny box far away."""
        anchors = [[(12,) * dims, (12,) * dims], [(9,) * dims], [(60,) * dims]]
        detector = self.make(dims, anchors=anchors)
        boxes = padded([[6.0] * dims + [18.0] * dims, [29.0] * dims + [30.0] * dims])
        places = detector.places((32,) * dims, torch.device("cpu"))
        found = detector.assign(places, boxes)[0]
        place = sum(4**axis for axis in range(dims))  # cell 1 along each axis
        assert found[2 * place].item() == 0 and found[2 * place + 1].item() == 0, "both overlap it by all"
        strict = self.make(dims, anchors=anchors, ignore_iou=1.0).assign(places, boxes)[0]
        assert (strict == 0).nonzero().tolist() == [[2 * place]], "the first of two equals"
        assert (found == 1).sum() == 1, "a box that no anchor fits keeps its best"

    def test_the_better_of_two_boxes_has_the_anchor(self, dims):
        detector = self.make(dims, anchors=[[(12,) * dims], [(90,) * dims], [(90,) * dims]])
        worse, better = [0.0] * dims + [14.0] * dims, [0.0] * dims + [10.0] * dims
        places = detector.places((16,) * dims, torch.device("cpu"))
        best = [(row >= 0).nonzero()[0].item() for row in detector.assign(places, padded([worse], [better]))]
        assert best[0] == best[1]
        both = detector.assign(places, padded([worse, better], [better, worse]))
        assert both[:, best[0]].tolist() == [1, 0]

    # --- losses ----------------------------------------------------------------------------------------------------
    @pytest.mark.parametrize("normaliser", ["positives", "sum"])
    def test_losses_of_the_paper(self, dims, normaliser):
        shape = SHAPES[dims]
        detector = self.make(dims, anchors=ANCHORS[dims], normaliser=normaliser, ignore_iou=0.3)
        boxes = padded(some_boxes(shape, 8, seed=1), some_boxes(shape, 2, seed=3))
        places = detector.places(shape, torch.device("cpu"))
        matches = detector.assign(places, boxes)
        raw = torch.randn(2, 3 + 2 * dims, matches.shape[1], generator=torch.Generator().manual_seed(2))
        losses = detector.place_losses(raw, places, matches, boxes)

        def entropy(logit: float, wanted: float) -> float:
            return wanted * math.log1p(math.exp(-logit)) + (1 - wanted) * math.log1p(math.exp(logit))

        strides = [s for s, level in zip(detector.network.strides, places, strict=True) for _ in level]
        anchors = torch.cat(places).double().tolist()
        classes = centres = sizes = objects = 0.0
        for image, row in enumerate(matches.tolist()):
            for place, match in enumerate(row):
                numbers = raw[image, :, place].double().tolist()
                if match != -2:
                    objects += entropy(numbers[2], float(match >= 0))
                if match < 0:
                    continue
                label, box = boxes.labels[image, match].item(), boxes.boxes[image, match].double().tolist()
                classes += sum(entropy(numbers[c], float(c == label)) for c in range(2))
                for axis in range(dims):
                    low, high = anchors[place][axis], anchors[place][dims + axis]
                    cell = math.floor((low + high) / 2 / strides[place][axis])
                    share = (box[axis] + box[dims + axis]) / 2 / strides[place][axis] - cell
                    centres += entropy(numbers[3 + axis], share)
                    size = math.log((box[dims + axis] - box[axis]) / (high - low))
                    sizes += (numbers[3 + dims + axis] - size) ** 2
        positives = int((matches >= 0).sum())
        assert positives > 8
        wanted = {"classification": classes, "box_regression": 2 * centres + 2 * sizes, "objectness": objects}
        divisor = positives if normaliser == "positives" else 1
        wanted = {name: value / divisor for name, value in wanted.items()}
        assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(wanted, rel=1e-4)

    # --- boxes and scores ------------------------------------------------------------------------------------------
    def test_wanted_numbers_give_the_box(self, dims):
        shape = SHAPES[dims]
        detector, boxes = self.make(dims, anchors=ANCHORS[dims]), padded(some_boxes(shape, 8, seed=1))
        places, start = detector.places(shape, torch.device("cpu")), 0
        matches = detector.assign(places, boxes)[0]
        for level, (anchors, stride) in enumerate(zip(places, detector.network.strides, strict=True)):
            own = matches[start : start + len(anchors)]
            start += len(anchors)
            wanted, chosen = boxes.boxes[0, own[own >= 0]], anchors[own >= 0]
            shares, sizes = detector._encode(wanted, chosen, wanted.new_tensor(stride).expand(len(wanted), -1))
            raw = torch.cat([torch.zeros(len(wanted), 3), shares.logit(), sizes], dim=1).T
            assert torch.allclose(detector.decode(raw, chosen, level), wanted, atol=1e-3)

    def test_a_centre_on_the_border_of_a_cell_is_finite(self, dims):
        detector, box = self.make(dims), torch.tensor([[4.0] * dims + [12.0] * dims])
        anchor = torch.tensor([[8.0] * dims + [16.0] * dims])
        shares, sizes = detector._encode(box, anchor, torch.full((1, dims), 8.0))
        assert shares.logit().isfinite().all() and (shares < 1e-5).all() and (sizes == 0).all()
        flat = detector._encode(torch.zeros(1, 2 * dims), anchor, torch.full((1, dims), 8.0))
        assert all(value.isfinite().all() for value in flat)

    def test_large_numbers_decode_to_finite_boxes(self, dims):
        detector = self.make(dims)
        raw = torch.full((3 + 2 * dims, 1), 1e30)
        box = detector.decode(raw, torch.tensor([[0.0] * dims + [16.0] * dims]), 0)[0]
        assert torch.allclose(box, torch.tensor([12.0 - 500] * dims + [12.0 + 500] * dims))

    def test_scores(self, dims):
        detector = self.make(dims, objectness_threshold=0.5, class_threshold=0.5)
        probabilities = torch.tensor([[0.9, 0.9, 0.6], [0.5, 0.8, 0.7], [0.6, 0.2, 0.5]])
        raw = torch.cat([probabilities.logit(), torch.zeros(2 * dims, 3)]).double()
        wanted = torch.tensor([[0.54, 0, 0.3], [0, 0, 0.35]], dtype=torch.float64)
        assert torch.allclose(detector.scores(raw), wanted, atol=1e-5)

    def test_options_out_of_range(self, dims):
        for options, reason in (
            ({"backbone": "resnet50"}, "backbone must be 'darknet53', keywords"),
            ({"backbone": torch.nn.Identity()}, "must have the attribute 'out_channels'"),
            ({"normaliser": "mean"}, "normaliser must be one of 'positives', 'sum', got 'mean'"),
            ({"ignore_iou": 1.5}, "ignore_iou must be 0 to 1, got 1.5"),
            ({"class_threshold": -1}, "class_threshold must be 0 to 1"),
            ({"anchors": [[(8,) * dims]]}, "anchors must have one list for each of the 3 levels, got 1"),
            ({"anchors": [[(8,)]] * 3}, f"an anchor must have {dims} positive sides, got"),
            ({"anchors": [[(0,) * dims]] * 3}, f"an anchor must have {dims} positive sides, got"),
            ({"anchors": [[], [(8,) * dims], []]}, "every level must have at least one anchor"),
        ):
            with pytest.raises(ValueError, match=reason):
                self.make(dims, **options)


def test_default_anchors_are_those_of_the_paper():
    places = YOLOv3(2, 1, 2, backbone={"features": 2}).places((608, 608), torch.device("cpu"))
    assert [len(level) for level in places] == [3 * 76**2, 3 * 38**2, 3 * 19**2] and sum(map(len, places)) == 22743
    assert places[0][1].tolist() == [4 - 8, 4 - 15, 4 + 8, 4 + 15], "16 wide along axis 0, 30 high along axis 1"
    assert (places[2][2, 2:] - places[2][2, :2]).tolist() == [373, 326]


def test_default_anchors_of_volumes_follow_the_strides():
    levels = YOLOv3(3, 1, 2, backbone=FLAT).anchor_shapes
    assert levels[0] == [pytest.approx([16 * f, 16 * f, 4 * f]) for f in (1, 2 ** (1 / 3), 2 ** (2 / 3))]
    assert levels[2][0] == [64, 64, 16]


def test_as_many_parameters_as_the_published_network():
    with torch.device("meta"):
        detector = YOLOv3(2, 3, 80, norm="batch")
    assert sum(p.numel() for p in detector.parameters()) == 61_949_149
