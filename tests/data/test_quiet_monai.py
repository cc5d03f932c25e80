# SPDX-License-Identifier: Apache-2.0
"""quiet_monai: hides two messages, and nothing else; in a process of its own, since MONAI speaks once per process."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOUD = "from monai.transforms import LoadImage; LoadImage()"
QUIET = (
    "import warnings; from monai.transforms import LoadImage; from monai_labelfx.data import quiet_monai;"
    "quiet_monai(); LoadImage(reader='monai_labelfx.data.AutoReader'); LoadImage(); warnings.warn('something else')"
)


@pytest.mark.parametrize(("code", "spoken", "other"), [(LOUD, True, False), (QUIET, False, True)])
def test_loaders_are_silent_and_other_warnings_are_not(code, spoken, other):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ("nvImageCodec" in done.stderr) is spoken
    assert ("something else" in done.stderr) is other
