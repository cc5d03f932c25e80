# SPDX-License-Identifier: Apache-2.0
"""What MONAI's engines lack: batch preparation, samplers, handlers."""

from __future__ import annotations

from monai_labelfx.engines.checkpoint import AtomicCheckpointSaver
from monai_labelfx.engines.instance_thresholds import InstanceThresholds
from monai_labelfx.engines.label_aware_sampler import LabelAwareSampler
from monai_labelfx.engines.overview_saver import OverviewSaver
from monai_labelfx.engines.prepare_batch import DenoiSegPrepareBatch
from monai_labelfx.engines.progress import ProgressBar
from monai_labelfx.engines.require_checkpoint import require_checkpoint
from monai_labelfx.engines.run_record import RunRecord
from monai_labelfx.engines.seed_epoch import SeedEpoch

__all__ = [
    "AtomicCheckpointSaver",
    "DenoiSegPrepareBatch",
    "InstanceThresholds",
    "LabelAwareSampler",
    "OverviewSaver",
    "ProgressBar",
    "RunRecord",
    "SeedEpoch",
    "require_checkpoint",
]
