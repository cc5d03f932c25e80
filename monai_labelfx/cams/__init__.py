# SPDX-License-Identifier: Apache-2.0
"""Providers of class activation maps on one contract, in 2-D and 3-D."""

from __future__ import annotations

from monai_labelfx.cams.adv_cam import AdvCAM
from monai_labelfx.cams.base import CAMProvider
from monai_labelfx.cams.plain_cam import PlainCAM
from monai_labelfx.cams.sc_cam import SCCAM
from monai_labelfx.cams.seam import SEAM

__all__ = [
    "SCCAM",
    "SEAM",
    "AdvCAM",
    "CAMProvider",
    "PlainCAM",
]
