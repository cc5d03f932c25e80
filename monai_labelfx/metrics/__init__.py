# SPDX-License-Identifier: Apache-2.0
"""Metrics, as MONAI's cumulative iteration metrics."""

from __future__ import annotations

from monai_labelfx.metrics.box_agreement import box_agreement
from monai_labelfx.metrics.coco_detection import COCO_IOUS, CocoDetectionMetric
from monai_labelfx.metrics.detection_bootstrap import BootstrapInterval, detection_bootstrap
from monai_labelfx.metrics.froc_detection import FROC_RATES, FrocDetectionMetric
from monai_labelfx.metrics.instance_average_precision import IOU_THRESHOLDS, InstanceAveragePrecision
from monai_labelfx.metrics.seg_score import SegScore
from monai_labelfx.metrics.stated_range_psnr import StatedRangePSNR
from monai_labelfx.metrics.surface_distance import PhysicalSurfaceDistance

__all__ = [
    "COCO_IOUS",
    "FROC_RATES",
    "IOU_THRESHOLDS",
    "BootstrapInterval",
    "CocoDetectionMetric",
    "FrocDetectionMetric",
    "InstanceAveragePrecision",
    "PhysicalSurfaceDistance",
    "SegScore",
    "StatedRangePSNR",
    "box_agreement",
    "detection_bootstrap",
]
