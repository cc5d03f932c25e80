# SPDX-License-Identifier: Apache-2.0
"""Metrics, as MONAI's cumulative iteration metrics."""

from __future__ import annotations

from monai_labelfx.metrics.box_agreement import box_agreement
from monai_labelfx.metrics.instance_average_precision import IOU_THRESHOLDS, InstanceAveragePrecision
from monai_labelfx.metrics.seg_score import SegScore
from monai_labelfx.metrics.stated_range_psnr import StatedRangePSNR
from monai_labelfx.metrics.surface_distance import PhysicalSurfaceDistance

__all__ = [
    "IOU_THRESHOLDS",
    "InstanceAveragePrecision",
    "PhysicalSurfaceDistance",
    "SegScore",
    "StatedRangePSNR",
    "box_agreement",
]
