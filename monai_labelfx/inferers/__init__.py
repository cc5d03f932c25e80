# SPDX-License-Identifier: Apache-2.0
"""Inferers: how a network is run over images larger than memory."""

from __future__ import annotations

from monai_labelfx.inferers.batch_inferer import BatchInferer
from monai_labelfx.inferers.halo_inferer import HaloInferer
from monai_labelfx.inferers.multi_scale_inferer import MultiScaleInferer
from monai_labelfx.inferers.slicewise_inferer import SlicewiseInferer

__all__ = ["BatchInferer", "HaloInferer", "MultiScaleInferer", "SlicewiseInferer"]
