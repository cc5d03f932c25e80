# SPDX-License-Identifier: Apache-2.0
"""Faster R-CNN: the contract, what the second stage learns and detects, and torchvision's outputs."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from detector_tester import DetectorTester, nothing

from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors.faster_rcnn import FasterRCNN, bins_per_axis
from monai_labelfx.networks.torchvision_weights import load_torchvision_weights
from monai_labelfx.ops.box_coding import deltas_to_boxes
from monai_labelfx.ops.nms import greedy_nms

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from golden_faster_rcnn import ALL, CHANNELS, CLASSES, EVERY, HIDDEN, SOME, formula, picture, targets

SMALL = {"backbone": {"depth": 18, "features": 8}, "pyramid_channels": 16, "head_channels": 32, "pool_size": 3}


class TestFasterRCNN(DetectorTester):
    rate = 0.003
    steps = {2: 150, 3: 200}

    def make(self, spatial_dims, **options):
        anchors = {"anchor_sizes": [[12], [16], [24], [32], [48]]}
        return FasterRCNN(spatial_dims, 1, 2, **SMALL | anchors | options)

    def default(self, spatial_dims):
        return FasterRCNN(spatial_dims, 1, 2)

    def run_whole(self, detector, images):
        super().run_whole(detector, images)
        detector.network.box_head(torch.empty(detector.roi_samples, 256, *detector.pooling.output_size))

    def check_autocast(self, detector, images):
        """Boxes of all anchors, decoded from a network that ran in bfloat16, beside those of float32."""
        shape = tuple(images.shape[2:])
        with torch.no_grad():
            raw = detector.network(images)
            with torch.autocast("cpu", torch.bfloat16):
                low = detector.network(images).float()
        first, second = (detector._parts(one, shape)[1] for one in (raw, low))
        assert (first - second).abs().max() < 0.01

    # --- the losses of the second stage ----------------------------------------------------------------------------
    @pytest.mark.parametrize("options", [{}, {"smooth_l1": 0.5, "box_weights": (2.0, 3.0)}])
    def test_losses_of_the_paper(self, dims, options):
        detector = self.make(dims, **options).double()
        random = torch.Generator().manual_seed(3)
        boxes = torch.tensor([[2.0] * dims + [20.0] * dims, [9.0] * dims + [30.0] * dims]).expand(2, -1, -1)
        given = Targets(boxes, torch.tensor([[1, 0], [0, -1]]), torch.tensor([[True, True], [True, False]]), None)
        image, matches = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, -1, -1, 0])
        rois = boxes[0, [0, 1, 1, 0, 0]].double() + torch.rand(5, 2 * dims, generator=random, dtype=torch.double)
        maps = [torch.randn(2, 16, *(n,) * dims, generator=random, dtype=torch.double) for n in (12, 6, 3, 2)]
        losses = detector.roi_losses(maps, rois, image, matches, given)
        logits, numbers = detector.network.box_head(detector.pooling(maps, rois, image))
        wanted, weights, beta = [2, 1, 0, 0, 1], options.get("box_weights", (10, 5)), options.get("smooth_l1", 0)
        entropy = regression = 0.0
        for row, label in enumerate(wanted):
            scores = logits[row].tolist()
            entropy += math.log(sum(math.exp(s) for s in scores)) - scores[label]
            if label == 0:
                continue
            box, roi = boxes[0, matches[row]].tolist(), rois[row].tolist()
            for axis in range(dims):
                size, own = roi[dims + axis] - roi[axis], box[dims + axis] - box[axis]
                shift = (box[axis] + box[dims + axis] - roi[axis] - roi[dims + axis]) / 2
                found = numbers[row, label, axis].item(), numbers[row, label, dims + axis].item()
                for number, true in zip(
                    found, (weights[0] * shift / size, weights[1] * math.log(own / size)), strict=True
                ):
                    off = abs(number - true)
                    regression += off * off / (2 * beta) if off < beta else off - beta / 2
        assert losses["classification"].item() == pytest.approx(entropy / 5, rel=1e-9)
        assert losses["box_regression"].item() == pytest.approx(regression / 5, rel=1e-9)

    def test_only_the_numbers_of_the_true_class_learn(self, dims):
        detector = self.make(dims)
        boxes = torch.tensor([[[2.0] * dims + [20.0] * dims]])
        given = Targets(boxes, torch.tensor([[1]]), torch.tensor([[True]]), None)
        maps = [torch.randn(1, 16, *(n,) * dims) for n in (12, 6, 3, 2)]
        rois = torch.cat([boxes[0] + 1, boxes[0]])
        losses = detector.roi_losses(maps, rois, torch.tensor([0, 0]), torch.tensor([0, -1]), given)
        losses["box_regression"].backward()
        rows = detector.network.box_head.bbox_pred.weight.grad.unflatten(0, (3, 2 * dims)).abs().sum(dim=(1, 2))
        assert rows[2] > 0 and rows[:2].tolist() == [0, 0]

    # --- detections ------------------------------------------------------------------------------------------------
    def test_detections_are_those_of_the_definition(self, dims, monkeypatch):
        """Two images of another size each, with scores and numbers of three classes that are set by hand."""
        detector = FasterRCNN(dims, 1, 3, **SMALL, score_threshold=0.2, detections_per_image=9)
        random = torch.Generator().manual_seed(4)
        sizes = [(40,) * dims, (28,) * dims]
        corners = [torch.rand(n, 2, dims, generator=random).sort(dim=1).values * 40 for n in (30, 12)]
        rois = [(one + torch.tensor([0.0, 4.0])[:, None]).flatten(1) for one in corners]
        logits, numbers = 2 * torch.randn(42, 4, generator=random), torch.randn(42, 4, 2 * dims, generator=random)
        monkeypatch.setattr(detector.network.box_head, "forward", lambda pooled: (logits, numbers))
        found = detector.detect_in([torch.zeros(2, 16, *(n,) * dims) for n in (10, 5, 3, 2)], rois, sizes)
        assert [len(one["boxes"]) for one in found][0] == 9
        start = 0
        for one, own, size in zip(found, rois, sizes, strict=True):
            boxes, scores, labels = [], [], []
            for row in range(len(own)):
                every = logits[start + row].softmax(dim=0)
                for label in range(3):
                    box = deltas_to_boxes(numbers[start + row, label + 1], own[row], (10, 5)).clamp(0, size[0])
                    if every[label + 1] > 0.2 and (box[dims:] - box[:dims] >= 0.01).all():
                        boxes.append(box)
                        scores.append(every[label + 1].item())
                        labels.append(label)
            start += len(own)
            kept = [
                index
                for label in range(3)
                for members in [[i for i, other in enumerate(labels) if other == label]]
                for index in [
                    members[k]
                    for k in greedy_nms(
                        torch.stack([boxes[i] for i in members]),
                        torch.tensor([scores[i] for i in members]),
                        detector.nms_threshold,
                    )
                ]
            ]
            kept = sorted(kept, key=lambda index: -scores[index])[:9]
            assert len(set(one["labels"].tolist())) > 1, "several classes are in the result"
            assert one["labels"].tolist() == [labels[index] for index in kept]
            assert one["scores"].tolist() == pytest.approx([scores[index] for index in kept])
            assert torch.allclose(one["boxes"], torch.stack([boxes[index] for index in kept]), atol=1e-4)

    def test_a_score_at_the_threshold_is_none(self, dims, monkeypatch):
        detector = self.make(dims, score_threshold=0.5)
        logits = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 0.01, -torch.inf]])
        monkeypatch.setattr(detector.network.box_head, "forward", lambda pooled: (logits, torch.zeros(2, 3, 2 * dims)))
        roi = torch.tensor([[1.0] * dims + [9.0] * dims, [20.0] * dims + [30.0] * dims])
        found = detector.detect_in([torch.zeros(1, 16, *(n,) * dims) for n in (10, 5, 3, 2)], [roi], [(40,) * dims])
        assert found[0]["labels"].tolist() == [0]
        assert torch.allclose(found[0]["boxes"], roi[1:], atol=1e-4)

    # --- inputs at the edge ----------------------------------------------------------------------------------------
    def test_no_proposal_and_no_object(self, dims, monkeypatch):
        """All moved anchors lie outside: losses still reach every parameter, and nothing is detected."""
        detector = self.make(dims)
        torch.nn.init.constant_(detector.network.rpn.bbox_pred.bias, 1e4)
        losses = detector(self.images(dims), [nothing(dims)] * 2)
        assert losses["classification"] == losses["box_regression"] == 0
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
        found = detector.eval()(self.images(dims))
        assert [one["boxes"].shape for one in found] == [(0, 2 * dims)] * 2
        assert [one["labels"].dtype for one in found] == [torch.int64] * 2

    def test_no_proposal_of_one_image(self, dims, monkeypatch):
        detector, boxes = self.make(dims, score_threshold=0.0), torch.tensor([[3.0] * dims + [25.0] * dims])
        empty = boxes[:0]
        monkeypatch.setattr(detector, "_propose", lambda *given: [empty, boxes])
        losses = detector(self.images(dims), [nothing(dims), self.target(dims)])
        assert all(loss.isfinite() for loss in losses.values()) and losses["classification"] > 0
        found = detector.eval()(self.images(dims))
        assert [len(one["boxes"]) > 0 for one in found] == [False, True]

    def test_a_network_of_nan_detects_nothing(self, dims):
        detector = self.make(dims, score_threshold=0.0)
        torch.nn.init.constant_(detector.network.backbone.conv1.weight, torch.nan)
        assert [len(one["boxes"]) for one in detector.eval()(self.images(dims))] == [0, 0]
        losses = detector.train()(self.images(dims), [self.target(dims), nothing(dims)])
        assert losses["classification"].isnan() and losses["rpn_classification"].isnan()

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_other_dtypes(self, dims, dtype):
        detector, images = self.make(dims, score_threshold=0.0).to(dtype), self.images(dims).to(dtype)
        losses = detector(images, [self.target(dims), nothing(dims)])
        sum(losses.values()).backward()
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        assert {loss.dtype for loss in losses.values()} == {wanted}
        assert all(one["boxes"].dtype == wanted and len(one["boxes"]) for one in detector.eval()(images))

    def test_one_seed_gives_one_set_of_losses(self, dims):
        detector, images = self.make(dims, rpn_samples=16, roi_samples=8), self.images(dims)
        results = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            results.append([loss.item() for loss in detector(images, [self.target(dims)] * 2).values()])
        assert results[0] == results[1] != results[2]

    # --- options ---------------------------------------------------------------------------------------------------
    def test_levels_and_pooling_follow_the_options(self, dims):
        detector = self.make(dims, first_level=3, extra_levels=2, rpn_depth=2, pool_size=[3, 2, 4][:dims])
        assert detector.network.strides == [(s,) * dims for s in (8, 16, 32, 64, 128)]
        assert detector.pooling.strides == [(s,) * dims for s in (8, 16, 32)]
        assert len(detector.network.rpn.conv) == 2
        losses = detector(self.images(dims), [self.target(dims), nothing(dims)])
        assert all(loss.isfinite() for loss in losses.values())

    def test_torchvision_settings(self, dims):
        detector = self.make(dims, **FasterRCNN.torchvision_settings)
        losses = detector(self.images(dims), [self.target(dims), nothing(dims)])
        assert all(loss.isfinite() for loss in losses.values())
        assert detector.proposals == (2000, 1000) and detector.detections_per_image == 100

    def test_options_out_of_range(self, dims):
        for options, reason in (
            ({"pool_size": 0}, "pool_size must be 1 or more, one number or one for each of . axes, got 0"),
            ({"pool_size": 2.5}, "pool_size must be 1 or more"),
            ({"pool_size": [7] * 4}, "pool_size must be 1 or more"),
            ({"pool_sampling": -1}, "pool_sampling must be a whole number, 0 or more, got -1"),
            ({"head_channels": 0}, "head_channels must be a whole number, 1 or more, got 0"),
            ({"rpn_depth": -1}, "rpn_depth must be a whole number, 0 or more, got -1"),
            ({"box_weights": [1.0] * 3}, r"box_weights must have 2 or \d numbers, got 3"),
            ({"box_weights": (10.0, 0.0)}, r"box_weights must be finite and above 0, got \(10.0, 0.0\)"),
        ):
            with pytest.raises(ValueError, match=reason):
                self.make(dims, **options)


def test_defaults_are_those_of_the_papers():
    with torch.device("meta"):
        flat, volume = FasterRCNN(2, 1, 2), FasterRCNN(3, 1, 2)
    assert flat.network.strides == [(s, s) for s in (4, 8, 16, 32, 64)]
    assert [len(level) for level in flat.anchor_shapes] == [3] * 5
    assert [level[1] for level in flat.anchor_shapes] == [[s, s] for s in (32, 64, 128, 256, 512)]
    assert flat.pooling.output_size == (7, 7) and volume.pooling.output_size == (5, 5, 5)
    assert (flat.rpn_nms, flat.roi_iou, flat.nms_threshold) == pytest.approx((0.7, 0.5, 0.5))
    assert [round(v, 3) for v in (volume.rpn_nms, volume.roi_iou, volume.nms_threshold)] == [0.597, 0.374, 0.374]
    assert (flat.roi_samples, volume.roi_samples, flat.roi_positive) == (512, 128, 0.25)


def test_bins_of_each_axis():
    assert bins_per_axis("pool_size", 7, 3) == (7, 7, 7)
    assert bins_per_axis("pool_size", [7, 7.0, 3], 3) == (7, 7, 3)


def test_as_many_parameters_as_torchvision():
    with torch.device("meta"):
        detector = FasterRCNN(2, 3, 90, norm="frozen_batch")
    assert sum(p.numel() for p in detector.parameters()) == 41_755_286  # of fasterrcnn_resnet50_fpn


@pytest.mark.parametrize("published_names", [False, True])
def test_weights_of_torchvision_give_its_output(published_names):
    """See benchmarks/golden_faster_rcnn.py for how the golden file was made."""
    golden = json.loads((Path(__file__).parent / "golden_faster_rcnn.json").read_text())
    small = {"backbone": {"depth": 10}, "norm": "batch", "pyramid_channels": CHANNELS, "head_channels": HIDDEN}
    every = {"rpn_samples": ALL, "roi_samples": ALL}
    detector = FasterRCNN(2, 3, CLASSES, **small, **every, **FasterRCNN.torchvision_settings).double().eval()
    published = {name: formula(name, torch.empty(shape)) for name, shape in golden["parameters"].items()}
    if published_names:
        published = {name.replace("rpn.head.conv.0.0.", "rpn.head.conv."): value for name, value in published.items()}
    assert load_torchvision_weights(detector.network, published) == []
    images = picture().transpose(-1, -2)  # MONAI has x first, as boxes have in both; kernels are turned on loading
    size = tuple(images.shape[2:])
    places, order, start = detector.places(size, images.device), [], 0
    for level, (columns, rows) in zip(places, detector.network.level_shapes(size), strict=True):
        numbers = torch.arange(start, start + len(level)).reshape(columns, rows, -1)
        order.append(numbers.transpose(0, 1).reshape(-1))
        start += len(level)
    index = torch.cat(order)[::EVERY]

    def same(found, wanted, tolerance=1e-4):
        return torch.allclose(found.double(), torch.tensor(wanted, dtype=torch.double), atol=tolerance, rtol=0)

    with torch.no_grad():
        raw = detector.network(images)
        logits, deltas, maps = detector._parts(raw, size)
        assert same(logits[:, index], golden["logits"]) and same(deltas[:, index], golden["deltas"])
        assert same(torch.cat(places)[index], golden["anchors"])
        proposals = detector._propose(logits, deltas, places, [size] * 2, 1000, 1000)
        for boxes, wanted in zip(proposals, golden["proposals"], strict=True):
            assert len(boxes) == wanted["count"] > SOME and same(boxes[:SOME], wanted["boxes"])
        image = torch.tensor([0] * len(proposals[0]) + [1] * len(proposals[1]))
        head = detector.network.box_head(detector.pooling(maps, torch.cat(proposals), image))
        for number in range(2):
            assert same(head[0][image == number][:SOME], golden["class_logits"][number])
            assert same(head[1][image == number][:SOME], golden["box_numbers"][number])
    for found, wanted in zip(detector(images), golden["detections"], strict=True):
        assert len(wanted["boxes"]) > 30 and len(set(wanted["labels"])) > 1
        for key, values in wanted.items():
            assert same(found[key][: len(values)], values), key
    given = [one | {"boxes": one["boxes"].float()} for one in targets()]
    names = {
        "rpn_classification": "loss_objectness",
        "rpn_box_regression": "loss_rpn_box_reg",
        "classification": "loss_classifier",
        "box_regression": "loss_box_reg",
    }
    detector.train()
    detector.network.eval()
    losses = {name: loss.item() for name, loss in detector(images, given).items()}
    assert losses == pytest.approx({name: golden["losses"][theirs] for name, theirs in names.items()}, rel=1e-4)
