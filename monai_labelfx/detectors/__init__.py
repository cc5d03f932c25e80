# SPDX-License-Identifier: Apache-2.0
"""Detectors on one contract, in 2-D and 3-D."""

from __future__ import annotations

from monai_labelfx.detectors.fcos import FCOS
from monai_labelfx.detectors.retinanet import RetinaNetFPN
from monai_labelfx.detectors.ssd512 import SSD512
from monai_labelfx.detectors.window_inferer import WindowDetectionInferer
from monai_labelfx.detectors.yolov3 import YOLOv3

__all__ = ["FCOS", "SSD512", "RetinaNetFPN", "WindowDetectionInferer", "YOLOv3"]
