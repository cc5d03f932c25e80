# SPDX-License-Identifier: Apache-2.0
"""The first stage and what goes from it to the second: losses, proposals, samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from monai_labelfx.detectors._packed import pack
from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors.two_stage import TwoStageDetector
from monai_labelfx.ops.box_coding import deltas_to_boxes
from monai_labelfx.ops.box_overlap import box_overlap

SIZE = {2: (24, 16), 3: (16, 24, 8)}


class Given(nn.Module):
    """A network whose parts are set by hand: two levels of two anchors at each place, the first level pooled from."""

    anchors = 2

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.strides = [(4,) * spatial_dims, (8,) * spatial_dims]

    def level_shapes(self, image_size):
        return [tuple(-(-n // s) for n, s in zip(image_size, stride, strict=True)) for stride in self.strides]

    def part_shapes(self, image_size):
        shapes = self.level_shapes(image_size)
        found = {f"rpn_{level}": (2 + 4 * len(image_size), *shape) for level, shape in enumerate(shapes)}
        return found | {"map_0": (3, *shapes[0])}


class Plain(TwoStageDetector):
    """Hands out what the second stage is given."""

    def __init__(self, spatial_dims: int, **options) -> None:
        shapes = [torch.tensor([[4.0] * spatial_dims, [4.0] * (spatial_dims - 1) + [8.0]]) * n for n in (1, 2)]
        settings = {
            "anchors": shapes,
            "anchor_offset": 0.5,
            "rpn_iou": (0.4, 0.15),
            "rpn_samples": 10**6,
            "rpn_positive": 1.0,
            "rpn_nms": 0.6,
            "train_candidates": 40,
            "proposals": (30, 20),
            "roi_iou": 0.4,
            "roi_samples": 10**6,
            "roi_positive": 1.0,
            "smooth_l1": 0.3,
            "spatial_dims": spatial_dims,
            "in_channels": 1,
            "num_classes": 2,
            "class_agnostic": False,
            "image_gate": None,
            "score_threshold": 0.0,
            "nms_threshold": 0.5,
            "topk_per_level": 25,
            "detections_per_image": 10,
        }
        super().__init__(Given(spatial_dims), **settings | options)

    def roi_losses(self, maps, rois, image, matches, targets):
        self.seen = maps, rois, image, matches
        return {}

    def detect_in(self, maps, proposals, sizes):
        return [{"boxes": boxes} for boxes in proposals]


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def dims(request):
    return request.param


def raw_numbers(detector, dims, *, spread: float = 0.4, dtype=torch.float64):
    """Parts of two images, packed; and the logits and box numbers of each anchor, by a loop over what they are."""
    random = torch.Generator().manual_seed(dims)
    shapes = detector.network.part_shapes(SIZE[dims]).values()
    parts = [spread * torch.randn(2, *shape, generator=random, dtype=dtype) for shape in shapes]
    logits, numbers = [], []
    for part in parts[:2]:
        for place in range(part[0, 0].numel()):
            at = part.flatten(2)[:, :, place]
            for anchor in range(2):
                logits.append(at[:, anchor])
                numbers.append(at[:, 2 + anchor * 2 * dims : 2 + (anchor + 1) * 2 * dims])
    return pack(parts), torch.stack(logits, dim=1), torch.stack(numbers, dim=1), parts[2]


def some_targets(dims):
    """Three and one boxes; the second image has two rows of padding."""
    boxes = torch.zeros(2, 3, 2 * dims)
    low = [[1.0, 2, 0], [6, 3, 2], [9, 8, 1]]
    for row, (corner, side) in enumerate(zip(low, ([5.0, 4, 6], [9, 8, 5], [4, 7, 7]), strict=True)):
        corner, side = torch.tensor(corner[:dims]), torch.tensor(side[:dims])
        boxes[0, row] = torch.cat([corner, corner + side])
    boxes[1, 0] = boxes[0, 1] + 1
    boxes[1, 1:] = torch.tensor([0.0] * dims + [30.0] * dims)
    valid = torch.tensor([[True] * 3, [True, False, False]])
    return Targets(boxes, torch.where(valid, torch.tensor([1, 0, 1]), -1), valid, None)


def test_losses_of_the_first_stage(dims):
    detector = Plain(dims)
    raw, logits, numbers, maps = raw_numbers(detector, dims)
    given = some_targets(dims)
    losses = detector.compute_losses(raw, SIZE[dims], given)
    anchors = torch.cat(detector.places(SIZE[dims], torch.device("cpu"))).double()
    entropy = regression = 0.0
    used, positives = 0, 0
    for image in range(2):
        boxes = given.boxes[image][given.valid[image]].double()
        overlap = box_overlap(boxes, anchors)
        best = overlap.max(dim=1).values
        for place, anchor in enumerate(anchors.tolist()):
            own = overlap[:, place]
            positive = own.max() >= 0.4 or bool((own == best).any())
            if not positive and own.max() >= 0.15:
                continue
            used += 1
            z = logits[image, place].item()
            entropy += math.log1p(math.exp(-z)) if positive else math.log1p(math.exp(z))
            if not positive:
                continue
            positives += 1
            box = boxes[own.argmax()].tolist()
            for axis in range(dims):
                size, side = anchor[dims + axis] - anchor[axis], box[dims + axis] - box[axis]
                shift = (box[axis] + box[dims + axis] - anchor[axis] - anchor[dims + axis]) / 2
                for number, true in ((axis, shift / size), (dims + axis, math.log(side / size))):
                    off = abs(numbers[image, place, number].item() - true)
                    regression += off * off / 0.6 if off < 0.3 else off - 0.15
    assert positives > 4 and used < 2 * len(anchors), "some are neither"
    assert losses["rpn_classification"].item() == pytest.approx(entropy / used, rel=1e-6)
    assert losses["rpn_box_regression"].item() == pytest.approx(regression / used, rel=1e-6)
    assert torch.equal(detector.seen[0][0], maps)


def naive_proposals(detector, logits, numbers, image, size, candidates, most):
    """(P, 2 * dims), one level and one box at a time."""
    dims, kept, start = detector.spatial_dims, [], 0
    for anchors in detector.places(SIZE[dims], torch.device("cpu")):
        scores = logits[image, start : start + len(anchors)].tolist()
        boxes = deltas_to_boxes(numbers[image, start : start + len(anchors)], anchors)
        start += len(anchors)
        level = []
        for index in sorted(range(len(anchors)), key=lambda i: -scores[i])[:candidates]:
            box = torch.minimum(boxes[index].clamp(min=0), torch.tensor([*size, *size]))
            thin = (box[dims:] - box[:dims] < 1e-3).any()
            if not thin and all(box_overlap(box[None], other[None]) <= detector.rpn_nms for _, other in level):
                level.append((scores[index], box))
        kept += level
    return torch.stack([box for _, box in sorted(kept, key=lambda pair: -pair[0])[:most]])


def test_proposals_by_the_definition(dims):
    """Suppressed in each level, cut at their own image, the best first, as many as wanted."""
    detector = Plain(dims)
    raw, logits, numbers, _ = raw_numbers(detector, dims)
    sizes = [SIZE[dims], tuple(n - 6 for n in SIZE[dims])]
    found = detector.detect(raw, SIZE[dims], sizes)
    for image, (one, size) in enumerate(zip(found, sizes, strict=True)):
        wanted = naive_proposals(detector, logits, numbers, image, size, 25, 20)
        assert len(one["boxes"]) == len(wanted) and torch.allclose(one["boxes"], wanted.double(), atol=1e-9)
        every = naive_proposals(detector, logits, numbers, image, size, 10**6, 10**6)
        assert len(every) > len(wanted), "the number is a limit here"


def test_training_and_evaluation_have_their_own_numbers(dims):
    detector = Plain(dims, proposals=(7, 5), train_candidates=10**6)
    raw = raw_numbers(detector, dims)[0]
    assert [len(one["boxes"]) for one in detector.detect(raw, SIZE[dims], [SIZE[dims]] * 2)] == [5, 5]
    detector.compute_losses(raw, SIZE[dims], some_targets(dims))
    assert detector.seen[2].tolist() == [0] * 10 + [1] * 8, "7 and the true boxes of each image"


def test_levels_do_not_suppress_each_other():
    detector = Plain(2, anchors=[torch.tensor([[8.0, 8], [1, 1]])] * 2, rpn_nms=0.0)
    detector.network.strides = [(8, 8), (8, 8)]
    raw = pack([torch.zeros(1, 10, 1, 1), torch.ones(1, 10, 1, 1) * 0.0, torch.zeros(1, 3, 1, 1)])
    found = detector.detect(raw, (8, 8), [(8, 8)])[0]["boxes"]
    assert found.tolist() == [[0, 0, 8, 8]] * 2


def test_samples_of_the_second_stage(dims):
    """True boxes are among them, padding is not, and each stands for the box that it overlaps most."""
    detector = Plain(dims)
    given = some_targets(dims)
    found = [given.boxes[0, :2] + 0.2, torch.zeros(0, 2 * dims)]
    rois, image, matches = detector._sampled(found, given)
    assert image.tolist() == [0] * 5 + [1]
    assert torch.equal(rois, torch.cat([found[0], given.boxes[0], given.boxes[1, :1]]))
    assert matches.tolist() == [0, 1, 0, 1, 2, 0]
    far = [given.boxes[0, :2] + 0.2, torch.tensor([[0.0] * dims + [1.0] * dims])]
    assert detector._sampled(far, given)[2].tolist() == [0, 1, 0, 1, 2, -1, 0]


def test_samples_are_drawn_in_their_shares(dims):
    detector = Plain(dims, roi_samples=8, roi_positive=0.25)
    given = some_targets(dims)
    background = torch.tensor([[0.0] * dims + [1.0] * dims])
    found = [torch.cat([given.boxes[0, :2], background.expand(20, -1)]), background.expand(3, -1)]
    _, image, matches = detector._sampled(found, given)
    assert image.tolist() == [0] * 8 + [1] * 4, "the second image has only 3 and its box"
    assert (matches[:8] >= 0).sum() == 2 and (matches[8:] >= 0).sum() == 1


def test_without_boxes_and_without_proposals(dims):
    detector = Plain(dims)
    nothing = some_targets(dims)
    nothing = nothing._replace(valid=torch.zeros_like(nothing.valid), labels=torch.full_like(nothing.labels, -1))
    none = torch.zeros(0, 2 * dims)
    rois, image, matches = detector._sampled([none, none], nothing)
    assert rois.shape == (0, 2 * dims) and len(image) == len(matches) == 0
    raw = raw_numbers(detector, dims)[0].requires_grad_()
    losses = detector.compute_losses(raw, SIZE[dims], nothing)
    assert losses["rpn_box_regression"] == 0 and losses["rpn_classification"] > 0
    assert (detector.seen[3] == -1).all() and len(detector.seen[1]) > 0


def test_numbers_that_are_not_finite_propose_nothing(dims):
    detector = Plain(dims)
    for value in (math.nan, math.inf, -math.inf):
        raw = torch.full_like(raw_numbers(detector, dims)[0], value)
        assert [len(one["boxes"]) for one in detector.detect(raw, SIZE[dims], [SIZE[dims]] * 2)] == [0, 0]


def test_the_samplers_and_matchers_of_monai_are_of_the_first_stage(dims):
    detector = Plain(dims)
    raw, given = raw_numbers(detector, dims)[0], some_targets(dims)
    before = detector.compute_losses(raw, SIZE[dims], given)
    detector.set_regular_matcher(0.9, 0.1, allow_low_quality_matches=False)
    detector.set_balanced_sampler(4, 0.5)
    after = detector.compute_losses(raw, SIZE[dims], given)
    assert after["rpn_box_regression"] == 0 < before["rpn_box_regression"]
    with pytest.warns(UserWarning, match="Plain has a box loss of its own"):
        detector.set_box_regression_loss(nn.L1Loss(), True, False)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"rpn_positive": 0}, "rpn_positive must be above 0 and 1 at most, got 0"),
        ({"roi_positive": 1.5}, "roi_positive must be above 0 and 1 at most, got 1.5"),
        ({"roi_positive": math.nan}, "roi_positive must be above 0"),
        ({"rpn_nms": 1.1}, "rpn_nms must be 0 to 1, got 1.1"),
        ({"roi_iou": -0.1}, "roi_foreground_iou must be 0 to 1, got -0.1"),
        ({"rpn_iou": (0.3, 0.7)}, "rpn_foreground_iou and rpn_background_iou must be .* got 0.3 and 0.7"),
        ({"rpn_samples": 0}, "rpn_samples must be a whole number, 1 or more, got 0"),
        ({"roi_samples": 2.5}, "roi_samples must be a whole number, 1 or more, got 2.5"),
        ({"train_candidates": -3}, "train_candidates must be a whole number, 1 or more, got -3"),
        ({"proposals": (1000, 0)}, r"proposals\[1\] must be a whole number, 1 or more, got 0"),
        ({"proposals": [10]}, r"proposals must be two numbers, in training and in evaluation, got \[10\]"),
        ({"proposals": 10}, "proposals must be two numbers, in training and in evaluation, got 10"),
        ({"smooth_l1": -1}, "smooth_l1 must be 0 or more, got -1"),
        ({"smooth_l1": math.nan}, "smooth_l1 must be 0 or more, got nan"),
    ],
)
def test_options_out_of_range(options, reason):
    with pytest.raises(ValueError, match=reason):
        Plain(2, **options)
