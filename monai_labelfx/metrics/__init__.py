# SPDX-License-Identifier: Apache-2.0
"""Metrics, as MONAI's cumulative iteration metrics."""

from __future__ import annotations

from monai_labelfx.metrics.box_agreement import box_agreement
from monai_labelfx.metrics.coco_detection import COCO_IOUS, CocoDetectionMetric
from monai_labelfx.metrics.contrast_to_noise import contrast_to_noise
from monai_labelfx.metrics.ct_conventions import CONVENTIONS, CTConvention, CTConventionMetric, ct_psnr, ct_ssim
from monai_labelfx.metrics.ct_number import (
    HU_CLASSES,
    HUAudit,
    HUBlocks,
    HUReport,
    HUShift,
    HUSlices,
    block_mean_difference,
)
from monai_labelfx.metrics.detection_bootstrap import BootstrapInterval, detection_bootstrap
from monai_labelfx.metrics.edge_transfer import EdgeTransfer, edge_transfer
from monai_labelfx.metrics.froc_detection import FROC_RATES, FrocDetectionMetric
from monai_labelfx.metrics.homogeneous_patches import (
    RegionStatistics,
    circle_statistics,
    find_homogeneous_patches,
    patch_statistics,
)
from monai_labelfx.metrics.instance_average_precision import IOU_THRESHOLDS, InstanceAveragePrecision
from monai_labelfx.metrics.noise_power_spectrum import RadialSpectrum, noise_power_spectrum, radial_spectrum
from monai_labelfx.metrics.noise_target import NoiseMatch, NoiseTarget
from monai_labelfx.metrics.object_scores import ObjectDice, ObjectF1, ObjectHausdorff
from monai_labelfx.metrics.patch_consistency import PatchConsistency
from monai_labelfx.metrics.patch_label_score import PatchLabelScore
from monai_labelfx.metrics.seg_score import SegScore
from monai_labelfx.metrics.segmentation_overlap import SegmentationOverlap
from monai_labelfx.metrics.stated_range_psnr import StatedRangePSNR
from monai_labelfx.metrics.surface_distance import PhysicalSurfaceDistance

__all__ = [
    "COCO_IOUS",
    "CONVENTIONS",
    "FROC_RATES",
    "HU_CLASSES",
    "IOU_THRESHOLDS",
    "BootstrapInterval",
    "CTConvention",
    "CTConventionMetric",
    "CocoDetectionMetric",
    "EdgeTransfer",
    "FrocDetectionMetric",
    "HUAudit",
    "HUBlocks",
    "HUReport",
    "HUShift",
    "HUSlices",
    "InstanceAveragePrecision",
    "NoiseMatch",
    "NoiseTarget",
    "ObjectDice",
    "ObjectF1",
    "ObjectHausdorff",
    "PatchConsistency",
    "PatchLabelScore",
    "PhysicalSurfaceDistance",
    "RadialSpectrum",
    "RegionStatistics",
    "SegScore",
    "SegmentationOverlap",
    "StatedRangePSNR",
    "block_mean_difference",
    "box_agreement",
    "circle_statistics",
    "contrast_to_noise",
    "ct_psnr",
    "ct_ssim",
    "detection_bootstrap",
    "edge_transfer",
    "find_homogeneous_patches",
    "noise_power_spectrum",
    "patch_statistics",
    "radial_spectrum",
]
