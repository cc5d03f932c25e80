# SPDX-License-Identifier: Apache-2.0
"""What MONAI's engines lack: batch preparation, samplers, handlers."""

from __future__ import annotations

from monai_labelfx.engines.box_prepare_batch import BoxTightnessPrepareBatch
from monai_labelfx.engines.box_threshold import BoxThreshold
from monai_labelfx.engines.box_threshold_search import BoxThresholdSearch
from monai_labelfx.engines.checkpoint import AtomicCheckpointSaver
from monai_labelfx.engines.ct_convention_handler import CTConventionHandler
from monai_labelfx.engines.detection_evaluator import DetectionEvaluator
from monai_labelfx.engines.detection_metric_handler import DetectionMetricHandler, from_detections
from monai_labelfx.engines.detection_prepare_batch import DetectionPrepareBatch, detection_items
from monai_labelfx.engines.detection_saver import DetectionSaver
from monai_labelfx.engines.detection_trainer import DetectionTrainer
from monai_labelfx.engines.from_probabilities import from_probabilities
from monai_labelfx.engines.hu_audit_handler import HUAuditHandler
from monai_labelfx.engines.image_pool import ImagePool
from monai_labelfx.engines.instance_saver import InstanceSaver
from monai_labelfx.engines.instance_thresholds import InstanceThresholds
from monai_labelfx.engines.label_aware_sampler import LabelAwareSampler
from monai_labelfx.engines.log_barrier_schedule import LogBarrierSchedule
from monai_labelfx.engines.metric_handlers import (
    InstanceAveragePrecisionHandler,
    PairedMetricHandler,
    SegScoreHandler,
    StatedRangePSNRHandler,
    from_instances,
)
from monai_labelfx.engines.noise_match_handler import NoiseMatchHandler
from monai_labelfx.engines.overview_saver import OverviewSaver
from monai_labelfx.engines.patch_label_report import PatchLabelReport
from monai_labelfx.engines.patch_prepare_batch import PatchPrepareBatch
from monai_labelfx.engines.prepare_batch import DenoiSegPrepareBatch
from monai_labelfx.engines.progress import ProgressBar
from monai_labelfx.engines.pseudo_label_datalist import PseudoLabelDatalist
from monai_labelfx.engines.require_checkpoint import require_checkpoint
from monai_labelfx.engines.run_record import RunRecord
from monai_labelfx.engines.seed_epoch import SeedEpoch
from monai_labelfx.engines.segmentation_handlers import PatchLabelHandler, from_components, from_patches
from monai_labelfx.engines.stage_metrics import StageMetrics
from monai_labelfx.engines.sub_categories import SubCategories
from monai_labelfx.engines.surface_distance_handler import PhysicalSurfaceDistanceHandler
from monai_labelfx.engines.threshold_search import ThresholdSearch
from monai_labelfx.engines.unpaired_sampler import UnpairedSampler
from monai_labelfx.engines.unpaired_trainer import UnpairedTrainer

__all__ = [
    "AtomicCheckpointSaver",
    "BoxThreshold",
    "BoxThresholdSearch",
    "BoxTightnessPrepareBatch",
    "CTConventionHandler",
    "DenoiSegPrepareBatch",
    "DetectionEvaluator",
    "DetectionMetricHandler",
    "DetectionPrepareBatch",
    "DetectionSaver",
    "DetectionTrainer",
    "HUAuditHandler",
    "ImagePool",
    "InstanceAveragePrecisionHandler",
    "InstanceSaver",
    "InstanceThresholds",
    "LabelAwareSampler",
    "LogBarrierSchedule",
    "NoiseMatchHandler",
    "OverviewSaver",
    "PairedMetricHandler",
    "PatchLabelHandler",
    "PatchLabelReport",
    "PatchPrepareBatch",
    "PhysicalSurfaceDistanceHandler",
    "ProgressBar",
    "PseudoLabelDatalist",
    "RunRecord",
    "SeedEpoch",
    "SegScoreHandler",
    "StageMetrics",
    "StatedRangePSNRHandler",
    "SubCategories",
    "ThresholdSearch",
    "UnpairedSampler",
    "UnpairedTrainer",
    "detection_items",
    "from_components",
    "from_detections",
    "from_instances",
    "from_patches",
    "from_probabilities",
    "require_checkpoint",
]
