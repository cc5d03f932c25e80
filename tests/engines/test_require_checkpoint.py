# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from monai_labelfx.engines import require_checkpoint


def test_missing_checkpoint_says_how_to_get_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="train one with `labelfx run denoiseg train`"):
        require_checkpoint(tmp_path / "model.pt", command="labelfx run denoiseg train")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        require_checkpoint(tmp_path)


def test_existing_checkpoint_is_returned(tmp_path):
    (tmp_path / "model.pt").touch()
    assert require_checkpoint(tmp_path / "model.pt") == str(tmp_path / "model.pt")
