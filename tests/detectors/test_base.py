# SPDX-License-Identifier: Apache-2.0
"""What the base of all detectors does by itself; the contract is in detector_tester.py."""

from __future__ import annotations

import pytest
import torch

from monai_labelfx.detectors.base import Detector, normaliser, trained_classes


class Whole(Detector):
    """One box, the image, whose score is its mean."""

    def __init__(self, **options):
        settings = {
            "spatial_dims": 2,
            "in_channels": 1,
            "num_classes": 2,
            "class_agnostic": False,
            "image_gate": None,
            "score_threshold": 0.1,
            "nms_threshold": 0.5,
            "topk_per_level": 10,
            "detections_per_image": 5,
        }
        super().__init__(torch.nn.Flatten(2), **settings | options)

    def compute_losses(self, raw, image_size, targets):
        return {"classification": raw.mean(), "dtype": torch.zeros((), dtype=raw.dtype)}

    def detect(self, raw, image_size, sizes):
        return [
            {"boxes": torch.tensor([[0.0, 0.0, *size]]), "labels": torch.tensor([1]), "scores": one.mean()[None]}
            for one, size in zip(raw, sizes, strict=True)
        ]


def test_training_and_evaluation():
    detector = Whole()
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    assert detector(torch.ones(1, 1, 3, 4), [none])["classification"] == 1
    assert detector(torch.ones(1, 1, 3, 4, dtype=torch.bfloat16), [none])["dtype"].dtype == torch.float32
    assert detector(torch.ones(1, 1, 3, 4, dtype=torch.float64), [none])["dtype"].dtype == torch.float64
    found = detector.eval()([torch.zeros(1, 3, 4), torch.ones(1, 2, 2)])
    assert [one["boxes"].tolist() for one in found] == [[[0, 0, 3, 4]], [[0, 0, 2, 2]]]
    detector.set_target_keys("box", "label")
    assert set(detector(torch.ones(1, 1, 3, 4))[0]) == {"box", "label", "label_scores"}


def test_settings_without_meaning_say_so():
    detector = Whole()
    for call in (
        lambda: detector.set_cls_loss(torch.nn.BCELoss()),
        lambda: detector.set_box_regression_loss(torch.nn.L1Loss(), True, False),
        lambda: detector.set_regular_matcher(0.5, 0.4),
        lambda: detector.set_atss_matcher(),
        lambda: detector.set_balanced_sampler(8, 0.5),
        lambda: detector.set_hard_negative_sampler(8, 0.5),
        lambda: detector.set_box_coder_weights([1.0, 1.0]),
    ):
        with pytest.warns(UserWarning, match=r"set_\w+ changes nothing: Whole "):
            call()


def test_windows_out_of_range_are_refused_when_they_are_set():
    with pytest.raises(ValueError, match="overlap"):
        Whole().set_sliding_window_inferer(roi_size=4, overlap=1.5)


def test_classes_and_normaliser():
    assert trained_classes(3, True) == 1 and trained_classes(3, False) == 3
    with pytest.raises(ValueError, match="num_classes must be 1 or more"):
        trained_classes(0, True)
    assert normaliser(torch.tensor(0)) == 1 and normaliser(torch.tensor(7)) == 7
