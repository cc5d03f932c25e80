# SPDX-License-Identifier: Apache-2.0
"""SSD512: the contract, and the published default boxes, matching, choice of negatives, losses and scores."""

from __future__ import annotations

import math

import pytest
import torch
from detector_tester import SMALL, DetectorTester
from torch import nn

from monai_labelfx.detectors._anchors import iou_per_axis
from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors.ssd512 import SSD512
from monai_labelfx.ops.box_coding import boxes_to_deltas


class TestSSD512(DetectorTester):
    rate = 0.003
    steps = {2: 60, 3: 60}

    def make(self, spatial_dims, **options):
        size = self.size[spatial_dims]
        return SSD512(spatial_dims, 1, 2, **{"image_size": size, "backbone": {"features": 8}} | options)

    def default(self, spatial_dims):
        return SSD512(spatial_dims, 1, 2)

    # --- levels and default boxes ----------------------------------------------------------------------------------
    def test_the_published_default_boxes(self):
        with torch.device("meta"):
            detector = SSD512(2, 3, 80)
        places = detector.places((512, 512), torch.device("cpu"))
        counts = [
            side * side * boxes for side, boxes in zip((64, 32, 16, 8, 4, 2, 1), (4, 6, 6, 6, 6, 4, 4), strict=True)
        ]
        assert [len(level) for level in places] == counts and sum(counts) == 24_564
        cells = [level.view(-1, boxes, 4) for level, boxes in zip(places, (4, 6, 6, 6, 6, 4, 4), strict=True)]
        sides = [(level[:, :, 2:] - level[:, :, :2]).mean(dim=0) for level in cells]
        assert torch.allclose(
            torch.stack([side[0, 0] for side in sides]), torch.tensor([20.0, 51, 133, 215, 296, 378, 460])
        )
        for level, stride in zip(cells, (8, 16, 32, 64, 128, 256, 512), strict=True):
            centres = (level[:, :, 2:] + level[:, :, :2]) / 2
            steps = torch.arange(stride / 2, 512, stride)
            wanted = torch.cartesian_prod(steps, steps).view(-1, 1, 2)
            assert torch.allclose(centres, wanted.expand_as(centres), atol=1e-3)
        assert detector.box_weights == (10, 5)
        chosen = (
            detector.score_threshold,
            detector.nms_threshold,
            detector.topk_per_level,
            detector.detections_per_image,
        )
        assert chosen == (0.02, 0.45, 1000, 200)

    def test_an_axis_with_one_place_has_it_in_the_middle(self):
        detector = self.make(2)  # strides 4, 8, 16, 32 and 64
        for shape, middle in (((64, 64), (32, 32)), ((40, 130), (20, None))):
            boxes = detector.places(shape, torch.device("cpu"))[-1]
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            assert torch.allclose(centres[:, 0], torch.tensor(float(middle[0])))
            if middle[1] is None:  # three places of stride 64, which do not move with the size
                assert set(centres[:, 1].round(decimals=3).tolist()) == {32, 96, 160}

    @pytest.mark.parametrize("size", [32, 33, 47, 64, 100, 300, 512])
    @pytest.mark.parametrize("made_for", [64, 512])
    def test_maps_have_the_shapes_that_boxes_are_made_for(self, size, made_for):
        for axes in (2, 3):
            shape = (size, size + 5, 37)[:axes]
            with torch.device("meta"):
                network = SSD512(axes, 1, 2, image_size=made_for, backbone={"features": 4}).network
                maps = network.neck(network.backbone(torch.empty(1, 1, *shape)))
            assert [tuple(m.shape[2:]) for m in maps] == network.level_shapes(shape)
            assert maps[-1].shape[2:].numel() >= 1

    def test_slices_that_are_thick(self):
        options = {"pool_strides": [(2, 2, 1), (2, 2, 1), 1, 2], "features": 4}
        detector = SSD512(3, 1, 2, image_size=(64, 64, 16), backbone=options)
        assert detector.network.strides == [(4, 4, 1), (8, 8, 2), (16, 16, 4), (32, 32, 8), (64, 64, 16)]
        for shape in ((64, 64, 16), (65, 40, 33)):
            assert detector.network(torch.rand(1, 1, *shape)).shape[2] == sum(
                len(level) for level in detector.places(shape, torch.device("cpu"))
            )
        for level, stride in zip(detector.anchor_shapes, detector.network.strides, strict=True):
            assert level[0][0] == level[0][1] == pytest.approx(stride[0] / stride[2] * level[0][2])

    def test_boxes_that_the_user_names(self):
        detector = self.make(2, box_sizes=[6, 12, 24, 48], box_ratios=[(2,), (3, 4), ()])
        assert [level[0] for level in detector.anchor_shapes] == [[6, 6], [12, 12], [24, 24]]
        assert [len(level) for level in detector.anchor_shapes] == [4, 6, 2]
        assert len(self.make(2, box_ratios=[(2,)] * 4).anchor_shapes) == 4

    # --- assignment ------------------------------------------------------------------------------------------------
    def test_a_box_has_all_default_boxes_of_half_iou_and_its_best_one(self, dims):
        size, enough = self.size[dims], iou_per_axis(0.5, dims)  # the same overlap along each axis
        detector = self.make(dims)
        places = detector.places((size,) * dims, torch.device("cpu"))
        large, thin = [[6.0, 7, 5][:dims] + [21.0, 25, 22][:dims], [1.0, 1, 1][:dims] + [2.0, 9, 2][:dims]]
        boxes = torch.tensor([[large, thin, [0.0] * 2 * dims]])
        targets = Targets(boxes, torch.tensor([[0, 1, -1]]), torch.tensor([[True, True, False]]), None)
        matches = detector.assign(places, targets)
        overlaps = [[iou(anchor, box) for anchor in torch.cat(places).tolist()] for box in (large, thin)]
        best = [row.index(max(row)) for row in overlaps]
        for place, found in enumerate(matches[0].tolist()):
            own = [row[place] for row in overlaps]
            wanted = best.index(place) if place in best else own.index(max(own)) if max(own) >= enough else -1
            assert found == wanted
        assert max(overlaps[1]) < enough and (matches == 1).sum() == 1 and (matches == 0).sum() > 1

    def test_of_default_boxes_that_tie_one_is_matched(self):
        detector = self.make(2, box_sizes=[4, 16, 32, 64])
        places = detector.places((64, 64), torch.device("cpu"))
        box = [10.5, 10.5, 13.5, 13.5]  # within the boxes of size 8 of four cells
        overlaps = [iou(anchor, box) for anchor in places[0].tolist()]
        assert max(overlaps) < 0.5 and overlaps.count(max(overlaps)) == 4
        targets = Targets(torch.tensor([[box]]), torch.tensor([[0]]), torch.tensor([[True]]), None)
        assert (detector.assign(places, targets) == 0).nonzero().tolist() == [[0, overlaps.index(max(overlaps))]]

    # --- negatives -------------------------------------------------------------------------------------------------
    def random_places(self):
        generator = torch.Generator().manual_seed(3)
        losses = torch.rand(3, 50, generator=generator)
        matches = torch.full((3, 50), -1)
        matches[0, torch.randperm(50, generator=generator)[:4]] = 0
        matches[1, 7] = 1
        matches[:, 40:44] = -2
        return losses, matches

    @pytest.mark.parametrize("mining", ["batch", "per_image", "reference"])
    @pytest.mark.parametrize(("ratio", "least"), [(3.0, 2), (2.0, 0), (20.0, 5)])
    def test_hard_negatives_as_a_loop_finds_them(self, mining, ratio, least):
        losses, matches = self.random_places()
        detector = self.make(2, mining=mining, negative_ratio=ratio, min_negatives=least)
        wanted = torch.zeros_like(matches, dtype=torch.bool)
        everywhere = []
        for image in range(3):
            rows = [(losses[image, a].item(), image, a) for a in range(50) if matches[image, a] == -1]
            everywhere += rows
            count = int(ratio * (matches[image] >= 0).sum()) if mining != "batch" else 0
            for _, i, a in sorted(rows, reverse=True)[: max(count, 0 if mining == "reference" else least)]:
                wanted[i, a] = True
        if mining == "batch":
            for _, i, a in sorted(everywhere, reverse=True)[: int(ratio * 5)]:
                wanted[i, a] = True
        assert torch.equal(detector.hard_negatives(losses, matches), wanted)
        assert wanted[2].any() == (mining == "batch" or (mining != "reference" and least > 0))

    def test_negatives_beyond_the_ratio_share_its_weight(self):
        losses, matches = self.random_places()
        detector = self.make(2, mining="per_image", min_negatives=15)  # 15 each, where 5 positives stand for 15 in all
        weights = detector.place_weights(losses, matches)
        assert set(weights[matches >= 0].tolist()) == {1} and (weights[matches == -2] == 0).all()
        assert weights[matches == -1].sum() == pytest.approx(15) and (weights[matches == -1] > 0).sum() == 45
        fewer = self.make(2, mining="reference").place_weights(losses, matches)
        assert set(fewer.flatten().tolist()) == {0, 1} and fewer.sum() == 5 + 15
        nothing = detector.place_weights(losses, torch.full_like(matches, -1))
        assert nothing.sum() == pytest.approx(3)

    # --- losses ----------------------------------------------------------------------------------------------------
    @pytest.mark.parametrize("mining", ["batch", "per_image", "reference"])
    def test_losses_follow_their_formula(self, dims, mining):
        detector = self.make(dims, mining=mining, min_negatives=4)
        images = self.images(dims)
        raw = torch.randn(detector.network(images).shape, dtype=torch.float64)
        target = self.target(dims)
        boxes = torch.stack([target["boxes"], torch.zeros_like(target["boxes"])])
        targets = Targets(boxes, torch.tensor([[1], [-1]]), torch.tensor([[True], [False]]), None)
        places = detector.places(SMALL[dims], images.device)
        got = detector.compute_losses(raw, SMALL[dims], targets)

        matches = detector.assign(places, targets)
        positives = int((matches >= 0).sum())
        assert positives > 0
        terms = [[0.0] * matches.shape[1] for _ in range(2)]
        box_loss = 0.0
        for image in range(2):
            for place, match in enumerate(matches[image].tolist()):
                logits = raw[image, :3, place].tolist()
                wanted = 1 if match >= 0 else 2
                terms[image][place] = math.log(sum(math.exp(x) for x in logits)) - logits[wanted]
                if match >= 0:
                    anchor = torch.cat(places)[place].double()
                    code = boxes_to_deltas(target["boxes"][0].double(), anchor, (10.0, 5.0)).tolist()
                    for value, own in zip(raw[image, 3:, place].tolist(), code, strict=True):
                        distance = abs(value - own)
                        box_loss += 0.5 * distance**2 if distance < 1 else distance - 0.5
        chosen = detector.hard_negatives(torch.tensor(terms, dtype=torch.float64), matches)
        weight = min(1.0, 3 * positives / int(chosen.sum()))
        class_loss = sum(
            (weight if chosen[i, p] else 1.0) * terms[i][p]
            for i in range(2)
            for p in range(matches.shape[1])
            if chosen[i, p] or matches[i, p] >= 0
        )
        assert got["classification"].item() == pytest.approx(class_loss / positives, rel=1e-9)
        assert got["box_regression"].item() == pytest.approx(box_loss / positives, rel=1e-6)  # boxes are float32
        if mining == "reference":
            assert chosen.sum() == 3 * positives

    def test_images_without_objects_teach_but_for_the_published_choice(self, dims):
        images, empty = self.images(dims), [self.empty(dims)] * 2
        for mining in ("batch", "per_image"):
            losses = self.make(dims, mining=mining)(images, empty)
            assert 1 < losses["classification"] < 10 and losses["box_regression"] == 0
        detector = self.make(dims, mining="reference")
        losses = detector(images, empty)
        assert losses["classification"] == 0 == losses["box_regression"] and losses["classification"].requires_grad
        sum(losses.values()).backward()
        assert all(p.grad is not None and (p.grad == 0).all() for p in detector.parameters())

    def test_an_empty_image_beside_a_full_one_gives_negatives(self, dims):
        detector = self.make(dims, min_negatives=0)
        images = self.images(dims).requires_grad_()
        targets = [self.target(dims), self.empty(dims)]
        detector(images, targets)["classification"].backward()
        assert images.grad[1].abs().sum() > 0
        images.grad = None
        detector.mining = "reference"
        detector(images, targets)["classification"].backward()
        assert images.grad[0].abs().sum() > 0 and images.grad[1].abs().sum() == 0

    def test_a_loss_and_a_sampler_of_ones_own(self, dims):
        detector, images = self.make(dims), self.images(dims)
        targets = [self.target(dims), self.empty(dims)]
        seen = []

        class Loss(nn.Module):
            def forward(self, logits, wanted):
                seen.append((logits, wanted))
                return (logits - wanted).square().mean()

        detector.set_cls_loss(Loss())
        detector(images, targets)["classification"].backward()
        logits, wanted = seen[0]
        assert logits.shape == wanted.shape and wanted.shape[1] == 3 and (wanted.sum(dim=1) == 1).all()
        assert wanted[:, 1].sum() > 0 == wanted[:, 0].sum()
        mined = len(wanted)
        detector.set_hard_negative_sampler(8, 0.5, min_neg=2)
        detector(images, targets)
        assert 0 < len(seen[1][1]) <= 16 < mined
        detector.set_box_regression_loss(nn.L1Loss(), encode_gt=False, decode_pred=True)
        assert detector(images, targets)["box_regression"] > 1, "in voxels"

    # --- scores ----------------------------------------------------------------------------------------------------
    def test_scores_are_probabilities_beside_the_background(self):
        raw = torch.randn(2, 7, 5)
        scores = self.make(2).scores(raw)
        assert scores.shape == (2, 2, 5)
        background = raw[:, :3].exp()[:, 2] / raw[:, :3].exp().sum(dim=1)
        assert torch.allclose(scores.sum(dim=1) + background, torch.ones(2, 5), atol=1e-6)
        assert torch.allclose(scores[:, 0] / scores[:, 1], (raw[:, 0] - raw[:, 1]).exp(), rtol=1e-4)

    def test_the_published_network_has_no_norm(self):
        detector = self.make(2, norm=None)
        assert not any(isinstance(module, nn.GroupNorm) for module in detector.modules())
        assert all(loss.isfinite() for loss in detector(self.images(2), [self.target(2), self.empty(2)]).values())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"mining": "all"}, "mining must be one of 'batch', 'per_image', 'reference', got 'all'"),
            ({"min_negatives": -1}, "must be 0 or more, got 3.0 and -1"),
            ({"foreground_iou": 1.5}, "foreground_iou must be 0 to 1, got 1.5"),
            ({"image_size": 20}, "image_size must be one number or 2, the largest 32 or more, got 20"),
            ({"image_size": (64, 64, 64)}, "image_size must be one number or 2"),
            ({"box_sizes": [8, 16]}, "box_sizes must be 3 or more numbers above 0"),
            ({"box_sizes": [8, 0, 16]}, "box_sizes must be 3 or more numbers above 0"),
            ({"box_sizes": [8, 16, 32], "box_ratios": [(2,)]}, "one list for each of the 2 levels, got 1"),
            ({"backbone": "resnet50"}, "backbone must be 'vgg16'"),
        ],
    )
    def test_options_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.make(2, **options)


def iou(first: list[float], second: list[float]) -> float:
    axes = len(first) // 2
    common = math.prod(max(0.0, min(first[a + axes], second[a + axes]) - max(first[a], second[a])) for a in range(axes))
    total = sum(math.prod(box[a + axes] - box[a] for a in range(axes)) for box in (first, second))
    return common / (total - common)
