# SPDX-License-Identifier: Apache-2.0
"""Detectors on one contract, in 2-D and 3-D."""

from __future__ import annotations

from monai_labelfx.detectors.blendmask import BlendMask
from monai_labelfx.detectors.faster_rcnn import FasterRCNN
from monai_labelfx.detectors.fcos import FCOS
from monai_labelfx.detectors.mask_rcnn import MaskRCNN
from monai_labelfx.detectors.retinanet import RetinaNetFPN
from monai_labelfx.detectors.solov2 import SOLOv2
from monai_labelfx.detectors.ssd512 import SSD512
from monai_labelfx.detectors.window_inferer import WindowDetectionInferer
from monai_labelfx.detectors.yolov3 import YOLOv3

__all__ = [
    "FCOS",
    "SSD512",
    "BlendMask",
    "FasterRCNN",
    "MaskRCNN",
    "RetinaNetFPN",
    "SOLOv2",
    "WindowDetectionInferer",
    "YOLOv3",
]
