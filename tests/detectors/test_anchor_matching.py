# SPDX-License-Identifier: Apache-2.0
"""Anchors of detectors and the settings that match and draw them."""

from __future__ import annotations

import pytest
import torch

from monai_labelfx.detectors._anchor_matching import AnchorMatching, checked_box_weights


class Network:
    strides = [(4, 8), (8, 16)]

    def level_shapes(self, image_size):
        return [tuple(-(-n // s) for n, s in zip(image_size, stride, strict=True)) for stride in self.strides]


class Plain(AnchorMatching):
    spatial_dims = 2

    def __init__(self) -> None:
        self.network = Network()
        self.lay_anchors([torch.tensor([[4.0, 8], [8, 8]]), torch.tensor([[8.0, 16], [16, 16]])], 0.5)


def matched(detector: Plain, boxes: list[list[float]]) -> list[int]:
    places = detector.places((16, 16), torch.device("cpu"))
    return detector.matcher(torch.tensor([boxes]), torch.ones(1, len(boxes), dtype=torch.bool), places)[0].tolist()


def test_anchors_of_each_level():
    first, second = Plain().places((16, 16), torch.device("cpu"))
    assert first.shape == (4 * 2 * 2, 4) and second.shape == (2 * 1 * 2, 4)
    assert first[:4].tolist() == [[0, 0, 4, 8], [-2, 0, 6, 8], [0, 8, 4, 16], [-2, 8, 6, 16]]
    assert second[2].tolist() == [8, 0, 16, 16]


def test_matching_by_overlap():
    detector = Plain()
    detector.set_regular_matcher(0.7, 0.3)
    found = matched(detector, [[0.0, 0, 4, 8], [9, 3, 15, 15]])
    assert found[:2] == [0, -2], "the anchor itself, and one of IoU 0.5 with it"
    assert found[18] == 1, "the best anchor of the other box, of IoU 0.56"
    detector.set_regular_matcher(0.7, 0.3, allow_low_quality_matches=False)
    assert matched(detector, [[0.0, 0, 4, 8], [9, 3, 15, 15]])[18] == -2


def test_matching_by_atss():
    detector = Plain()
    detector.set_atss_matcher(num_candidates=1)
    assert matched(detector, [[0.0, 0, 4, 8]])[0] == 0


def test_samplers_draw_from_the_matches():
    detector = Plain()
    matches, logits = torch.tensor([[0, -1, -1, -2, -1, 0]]), torch.tensor([[[0.0, 3, 1, 9, 2, 0], [0, 0, 0, 0, 0, 0]]])
    detector.set_balanced_sampler(4, 0.5)
    positive, negative = detector.sampler(logits, matches)
    assert positive.tolist() == [[True, False, False, False, False, True]]
    assert negative.sum() == 2 and (matches[negative] == -1).all()
    detector.set_hard_negative_sampler(4, 0.5, min_neg=1, pool_size=1)
    assert detector.sampler(logits, matches)[1].tolist() == [[False, True, False, False, True, False]]


def test_bad_settings():
    detector = Plain()
    with pytest.raises(ValueError, match="Plain has no matcher: call set_regular_matcher or set_atss_matcher"):
        matched(detector, [[0.0, 0, 4, 8]])
    for high, low in ((0.3, 0.7), (1.1, 0.3), (0.5, -0.1), (float("nan"), 0.3)):
        with pytest.raises(ValueError, match="0 <= bg_iou_thresh <= fg_iou_thresh <= 1, got"):
            detector.set_regular_matcher(high, low)
    with pytest.raises(ValueError, match="weights must have 2 or 4 numbers, got 3"):
        detector.set_box_coder_weights([1.0] * 3)
    with pytest.raises(ValueError, match=r"weights must be finite and above 0, got \(1.0, nan\)"):
        detector.set_box_coder_weights([1.0, float("nan")])


def test_box_weights():
    detector = Plain()
    assert detector.box_weights == (1.0, 1.0)
    detector.set_box_coder_weights([10, 10, 5, 5])
    assert detector.box_weights == (10.0, 10.0, 5.0, 5.0)
    assert checked_box_weights("box_weights", (10, 5), 3) == (10.0, 5.0)
