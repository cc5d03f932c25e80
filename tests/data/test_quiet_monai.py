# SPDX-License-Identifier: Apache-2.0
"""quiet_monai: hides two messages, and nothing else."""

from __future__ import annotations

import logging
import warnings

from monai.transforms import LoadImage

from monai_labelfx.data import quiet_monai

LOGGER = "monai.data.nvimgcodec_pydicom_plugin"


def test_loaders_are_silent_and_other_warnings_are_not(caplog):
    level = logging.getLogger(LOGGER).level
    try:
        with warnings.catch_warnings(record=True) as loud:
            warnings.simplefilter("always")
            LoadImage()
        spoken = [record for record in caplog.records if record.name == LOGGER]
        assert spoken and any("nvImageCodec" in str(warning.message) for warning in loud)
        caplog.clear()
        with warnings.catch_warnings(record=True) as quiet:
            warnings.simplefilter("always")
            quiet_monai()
            LoadImage(reader="monai_labelfx.data.AutoReader")
            warnings.warn("something else", stacklevel=1)
        assert [str(warning.message) for warning in quiet] == ["something else"] and not caplog.records
    finally:
        logging.getLogger(LOGGER).setLevel(level)
