# SPDX-License-Identifier: Apache-2.0
"""Selection and suppression that dense detectors share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_labelfx.detectors.dense import AnchorDetector


class Given(nn.Module):
    """A network whose output is set by hand: two levels of 2 x 2 and 1 x 1 places, one anchor each, two classes."""

    strides = [(4, 4), (8, 8)]

    def __init__(self, raw):
        super().__init__()
        self.raw = nn.Parameter(raw)

    def forward(self, images):
        return self.raw.expand(len(images), -1, -1)

    def level_shapes(self, image_size):
        return [(2, 2), (1, 1)]


class Plain(AnchorDetector):
    def __init__(self, raw, **options):
        settings = {
            "spatial_dims": 2,
            "in_channels": 1,
            "num_classes": 2,
            "class_agnostic": False,
            "image_gate": None,
            "score_threshold": 0.3,
            "nms_threshold": 0.5,
            "topk_per_level": 10,
            "detections_per_image": 10,
        }
        anchors = [torch.tensor([[4.0, 4.0]]), torch.tensor([[8.0, 8.0]])]
        super().__init__(Given(raw), anchors=anchors, anchor_offset=0.5, **settings | options)

    def scores(self, raw):
        return raw[..., :2, :]

    def place_losses(self, raw, places, matches, targets):
        return {}


def raw(scores: list[list[float]], deltas: list[list[float]] | None = None) -> torch.Tensor:
    numbers = torch.zeros(1, 6, 5)
    numbers[0, :2] = torch.tensor(scores)
    if deltas is not None:
        numbers[0, 2:] = torch.tensor(deltas).T
    return numbers


def detect(detector):
    return detector.eval()(torch.zeros(1, 1, 8, 8))[0]


def test_pairs_of_place_and_class_above_the_threshold():
    found = detect(Plain(raw([[0.9, 0.2, 0.4, 0.0, 0.0], [0.8, 0.3, 0.0, 0.0, 0.5]])))
    assert found["scores"].tolist() == pytest.approx([0.9, 0.8, 0.5, 0.4])
    assert found["labels"].tolist() == [0, 1, 1, 0], "a place may hold both classes, which do not suppress each other"
    assert found["boxes"].tolist() == [[0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 8, 8], [4, 0, 8, 4]]


def test_topk_of_each_level_and_cap_of_the_image():
    scores = raw([[0.9, 0.8, 0.7, 0.6, 0.5], [0.0] * 5])
    assert detect(Plain(scores, topk_per_level=2))["scores"].tolist() == pytest.approx([0.9, 0.8, 0.5])
    assert detect(Plain(scores, detections_per_image=2))["scores"].tolist() == pytest.approx([0.9, 0.8])


def test_boxes_are_cut_at_the_image_and_lost_outside_it():
    deltas = [[0.0, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, 0], [3, 0, 0, 0], [0, 0, 2, 2]]
    found = detect(Plain(raw([[0.9, 0.8, 0.7, 0.6, 0.5], [0.0] * 5], deltas)))
    assert found["boxes"].tolist() == [[0, 0, 4, 4], [0, 6, 4, 8], [4, 0, 8, 4], [0, 0, 8, 8]]


def test_suppression_in_a_class():
    deltas = [[0.0, 0, 0, 0], [0, -0.75, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]  # the second nearly the first
    values = [0.6, 0.9, 0.0, 0.0, 0.0]
    assert detect(Plain(raw([values, [0.0] * 5], deltas)))["scores"].tolist() == pytest.approx([0.9])
    split = raw([[0.6, 0, 0, 0, 0], [0, 0.9, 0, 0, 0]], deltas)
    assert detect(Plain(split))["labels"].tolist() == [1, 0]


def test_box_weights_divide_the_numbers():
    deltas = [[0.5, 0.0, 0, 0]] + [[0.0] * 4] * 4
    detector = Plain(raw([[0.9, 0, 0, 0, 0], [0.0] * 5], deltas))
    detector.set_box_coder_weights([2.0, 2.0, 1.0, 1.0])
    assert detect(detector)["boxes"].tolist() == [[1, 0, 5, 4]]
    with pytest.raises(ValueError, match="weights must have 2 or 4 numbers, got 3"):
        detector.set_box_coder_weights([1.0] * 3)


def test_without_a_matcher_training_says_what_to_call():
    target = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([0])}
    with pytest.raises(ValueError, match="call set_regular_matcher or set_atss_matcher"):
        Plain(raw([[0.0] * 5] * 2))(torch.zeros(1, 1, 8, 8), [target])
    with pytest.raises(ValueError, match="one of encode_gt and decode_pred"):
        Plain(raw([[0.0] * 5] * 2)).set_box_regression_loss(nn.L1Loss(), True, True)


def test_box_loss_in_voxels_or_coded():
    detector = Plain(raw([[0.0] * 5] * 2, [[0.25, 0, 0, 0]] + [[0.0] * 4] * 4))
    target = {"boxes": torch.tensor([[0.0, 0, 4, 8]]), "labels": torch.tensor([1])}
    from monai_labelfx.detectors._targets import check_targets

    targets = check_targets(
        [target],
        [(8, 8)],
        ["a"],
        num_classes=2,
        class_agnostic=False,
        box_key="boxes",
        label_key="labels",
        needs_masks=False,
        device=torch.device("cpu"),
    )
    places = detector.places((8, 8), torch.device("cpu"))
    matches = torch.tensor([[0, -1, -1, -2, -1]])
    output = detector.network(torch.zeros(1))
    found, wanted = detector.place_box_loss(output, places, matches, targets)
    assert found.tolist() == [[0.25, 0, 0, 0]]
    assert wanted[0].tolist() == pytest.approx([0.0, 0.5, 0.0, 0.693147], abs=1e-5)
    detector.set_box_regression_loss(nn.L1Loss(), encode_gt=False, decode_pred=True)
    found, wanted = detector.place_box_loss(output, places, matches, targets)
    assert found.tolist() == [[1, 0, 5, 4]] and wanted.tolist() == [[0, 0, 4, 8]]
    assert detector.one_hot(matches, targets)[0].tolist() == [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]


def test_detections_know_their_places():
    scores = [[0.6, 0.0, 0.9, 0.0, 0.8], [0.0, 0.0, 0.7, 0.0, 0.0]]
    detector = Plain(raw(scores)).eval()
    ((found, place),) = detector.detect_places(raw(scores), (8, 8), [(8, 8)])
    assert place.tolist() == [2, 4, 2, 0] and found["labels"].tolist() == [0, 0, 1, 0]
    assert torch.equal(found["boxes"], detect(detector)["boxes"])
    assert detector.detect_places(raw([[0.0] * 5] * 2), (8, 8), [(8, 8)])[0][1].shape == (0,)
