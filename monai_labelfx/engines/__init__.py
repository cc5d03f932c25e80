# SPDX-License-Identifier: Apache-2.0
"""What MONAI's engines lack: batch preparation, samplers, handlers."""

from __future__ import annotations

from monai_labelfx.engines.checkpoint import AtomicCheckpointSaver
from monai_labelfx.engines.instance_thresholds import InstanceThresholds
from monai_labelfx.engines.label_aware_sampler import LabelAwareSampler
from monai_labelfx.engines.metric_handlers import (
    InstanceAveragePrecisionHandler,
    PairedMetricHandler,
    SegScoreHandler,
    StatedRangePSNRHandler,
    from_instances,
)
from monai_labelfx.engines.overview_saver import OverviewSaver
from monai_labelfx.engines.prepare_batch import DenoiSegPrepareBatch
from monai_labelfx.engines.progress import ProgressBar
from monai_labelfx.engines.require_checkpoint import require_checkpoint
from monai_labelfx.engines.run_record import RunRecord
from monai_labelfx.engines.seed_epoch import SeedEpoch
from monai_labelfx.engines.threshold_search import ThresholdSearch

__all__ = [
    "AtomicCheckpointSaver",
    "DenoiSegPrepareBatch",
    "InstanceAveragePrecisionHandler",
    "InstanceThresholds",
    "LabelAwareSampler",
    "OverviewSaver",
    "PairedMetricHandler",
    "ProgressBar",
    "RunRecord",
    "SeedEpoch",
    "SegScoreHandler",
    "StatedRangePSNRHandler",
    "ThresholdSearch",
    "from_instances",
    "require_checkpoint",
]
