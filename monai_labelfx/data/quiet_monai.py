# SPDX-License-Identifier: Apache-2.0
"""Silence what MONAI 1.6.1 says about an absent GPU DICOM decoder whenever any image loader is built."""

from __future__ import annotations

import logging
import warnings

__all__ = ["quiet_monai"]


def quiet_monai() -> None:
    """Silence the warning and the log line about nvImageCodec that each ``LoadImage`` of MONAI 1.6.1 gives.

    ``LoadImage`` builds all its default readers, among them one for a GPU decoder, also when another reader was asked
    for. This call hides exactly these two messages, in this process, and nothing else. A program that uses the
    decoder (``MONAI_DICOM_READER=nvimgcodec``) should not call it.

    Example:
        >>> from monai.transforms import LoadImage
        >>> quiet_monai()
        >>> loader = LoadImage(reader="monai_labelfx.data.AutoReader")
    """
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader: nvImageCodec decoder plugin did not register")
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
