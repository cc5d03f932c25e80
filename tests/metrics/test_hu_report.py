# SPDX-License-Identifier: Apache-2.0
"""When a shift is a failure, when noise explains it, and what the report says in JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import norm

from monai_labelfx.metrics._hu_regions import HUShift
from monai_labelfx.metrics._hu_report import judge_blocks, judge_region, summarise_blocks
from monai_labelfx.metrics.ct_number import HUAudit


def judged(shift: float, low: float, high: float, *, choice: float = 0.0, strict: bool = False):
    return judge_region("air", HUShift(900, -1000.0, shift, low, high), 2.0, choice, 0.95, strict)


def test_regions_fail_when_the_whole_interval_lies_beyond_the_limit():
    assert judged(2.0, 1.9, 2.1) is None and judged(-1.9, -5.0, 5.0) is None
    for sign in (1, -1):
        ends = sorted((sign * 2.2, sign * 3.8))
        sentence, failed = judged(sign * 3.0, *ends)
        assert failed and sentence.startswith(f"air shifts by {sign * 3:+.2f} HU (95 % interval {ends[0]:+.2f} to ")
        sentence, failed = judged(sign * 3.0, *sorted((sign * 1.5, sign * 4.5)))
        assert not failed and sentence.endswith("limit 2 HU: noise can explain it.")
        assert judged(sign * 3.0, *sorted((sign * 1.5, sign * 4.5)), strict=True)[1]
        assert not judged(sign * 3.0, *ends, choice=0.5)[1] and judged(sign * 3.0, *ends, choice=0.1)[1]


def test_a_region_in_one_block_is_not_judged_unless_strict():
    sentence, failed = judged(9.0, math.nan, math.nan)
    assert not failed and "lies in one block" in sentence
    assert judged(9.0, math.nan, math.nan, strict=True) == ("air shifts by +9.00 HU, limit 2 HU.", True)


def test_blocks_fail_beyond_limit_and_noise():
    difference = np.zeros((2, 4, 5))
    difference[1, 2, 3], difference[0, 0, 0], difference[0, 1, 1] = -7.0, 6.0, np.nan
    factor = norm.isf(0.005 / 39)
    noise = np.full(difference.shape, 1.5 / factor)
    sentence, failed = judge_blocks(difference, noise, 16, 5.0, False)
    assert failed and sentence == (
        "one block of 16 x 16 voxels shifts by more than 5 HU, the worst by -7.00 HU at (32, 48, 1), of which noise "
        "explains 1.50 HU."
    )
    sentence, failed = judge_blocks(difference, 2 * noise, 16, 5.0, False)
    assert not failed and sentence.startswith("2 blocks of 16 x 16 voxels shift by") and "-7.00" in sentence
    sentence, failed = judge_blocks(difference, 2 * noise, 16, 5.0, True)
    assert failed and sentence.startswith("2 blocks") and sentence.endswith("at (32, 48, 1).")
    assert judge_blocks(difference, noise, 16, 7.0, False) is None
    assert judge_blocks(np.full((1, 2, 2), np.nan), np.zeros((1, 2, 2)), 16, 5.0, False) is None


def test_the_worst_block_beyond_noise_is_named():
    difference, noise = np.array([[[20.0, 12.0]]]), np.array([[[5.0, 0.0]]])
    sentence, failed = judge_blocks(difference, noise, 8, 5.0, False)
    assert failed and "the worst by +12.00 HU at (0, 8)" in sentence


def test_summary_of_a_map():
    difference = np.arange(100.0).reshape(1, 10, 10) - 98.5
    found = summarise_blocks(difference, 8)
    assert found[:2] == (100, -98.5) and found.place == (0, 0)
    assert found.percentile_99 == pytest.approx(np.quantile(np.abs(difference), 0.99))
    nothing = summarise_blocks(np.full((1, 1, 1), np.nan), 8)
    assert nothing.number == 0 and math.isnan(nothing.worst) and nothing.place == ()


def test_as_json():
    image = np.full((40, 40, 2), 50.0)
    report = HUAudit()(image + 3, image)
    content = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert content["passed"] is False is report.passed and content["failures"] == list(report.failures)
    assert content["classes"]["soft_tissue"]["shift"] == 3 == report.worst_region
    assert content["blocks"]["16"]["place"] == [0, 0, 0] and content["blocks"]["64"]["worst"] is None
    assert content["slope"] is None and content["slices"] == {"before": 0, "after": 0, "shift": 0}
    assert content["low_band_level"] == [3, 3]
