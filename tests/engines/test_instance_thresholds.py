# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from monai_labelfx.engines import InstanceThresholds


def test_is_a_number_that_follows_the_search():
    thresholds = InstanceThresholds(ap=0.3, seg=0.6)
    seg = thresholds.for_seg
    assert float(thresholds) == 0.3 and float(seg) == 0.6
    thresholds.ap, thresholds.seg = 0.4, 0.7
    assert float(thresholds) == 0.4 and float(seg) == 0.7


def test_survives_a_file_that_holds_weights_only(tmp_path):
    thresholds = InstanceThresholds(ap=0.3, seg=0.6)
    thresholds.images, thresholds.ap_score, thresholds.seg_score = 5, 0.8, 0.7
    torch.save({"thresholds": thresholds.state_dict()}, tmp_path / "c.pt")
    loaded = InstanceThresholds()
    loaded.load_state_dict(torch.load(tmp_path / "c.pt", weights_only=True)["thresholds"])
    assert loaded.state_dict() == thresholds.state_dict()
    assert (loaded.ap, loaded.seg, loaded.images, loaded.ap_score, loaded.seg_score) == (0.3, 0.6, 5, 0.8, 0.7)


def test_refuses():
    with pytest.raises(ValueError, match="ap must lie between 0 and 1, got 1.2"):
        InstanceThresholds(ap=1.2)
    with pytest.raises(ValueError, match="must hold 'ap' and 'seg'"):
        InstanceThresholds().load_state_dict({"ap": 0.4})
    with pytest.raises(ValueError, match="seg must lie"):
        InstanceThresholds().load_state_dict({"ap": 0.4, "seg": float("nan")})
