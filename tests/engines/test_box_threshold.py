# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from monai_labelfx.engines.box_threshold import BoxThreshold


def test_is_a_number_that_survives_a_file_of_weights(tmp_path):
    threshold = BoxThreshold(0.3)
    threshold.images, threshold.score, threshold.score_at_half = 5, 0.8, 0.1
    torch.save({"threshold": threshold.state_dict()}, tmp_path / "c.pt")
    loaded = BoxThreshold()
    assert float(loaded) == 0.5 and repr(threshold) == "BoxThreshold(0.3)"
    loaded.load_state_dict(torch.load(tmp_path / "c.pt", weights_only=True)["threshold"])
    assert (float(loaded), loaded.images, loaded.score, loaded.score_at_half) == (0.3, 5, 0.8, 0.1)
    assert loaded.state_dict() == threshold.state_dict()


def test_only_the_value_is_needed():
    threshold = BoxThreshold()
    threshold.images = 3
    threshold.load_state_dict({"value": 0.2})
    assert threshold.state_dict() == {"value": 0.2, "images": 0, "score": 0.0, "score_at_half": 0.0}


def test_refuses():
    with pytest.raises(ValueError, match="value must lie between 0 and 1, got 1.2"):
        BoxThreshold(1.2)
    with pytest.raises(ValueError, match="value must lie"):
        BoxThreshold().load_state_dict({"value": float("nan")})
    with pytest.raises(ValueError, match=r"must hold 'value', it holds \['ap'\]"):
        BoxThreshold().load_state_dict({"ap": 0.4})
