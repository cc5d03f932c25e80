# SPDX-License-Identifier: Apache-2.0
"""Readers, writers, datalist checks and sample builders."""

from __future__ import annotations

from monai_labelfx.data.auto_reader import AutoReader
from monai_labelfx.data.check_datalist import CheckReport, CheckRow, check_datalist
from monai_labelfx.data.datalist import load_datalist, save_datalist
from monai_labelfx.data.denoiseg_samples import brain_mr, nuclei
from monai_labelfx.data.find_images import find_images
from monai_labelfx.data.quiet_monai import quiet_monai
from monai_labelfx.data.safe_globals import allow_safe_globals
from monai_labelfx.data.tiff_reader import TiffReader
from monai_labelfx.data.tiff_writer import TiffWriter

__all__ = [
    "AutoReader",
    "CheckReport",
    "CheckRow",
    "TiffReader",
    "TiffWriter",
    "allow_safe_globals",
    "brain_mr",
    "check_datalist",
    "find_images",
    "load_datalist",
    "nuclei",
    "quiet_monai",
    "save_datalist",
]
