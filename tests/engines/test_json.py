# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_labelfx.engines._json import plain_numbers, write_json


def test_single_numbers_become_floats():
    values = {
        "int": 2,
        "numpy": np.float32(0.5),
        "tensor": torch.tensor([0.25]),
        "nan": float("nan"),
        "infinite": torch.tensor(float("inf")),
        "word": "0.5",
        "many": torch.ones(2),
        "none": None,
    }
    assert plain_numbers(values) == {"int": 2.0, "numpy": 0.5, "tensor": 0.25, "nan": None, "infinite": None}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"path": Path("x")})
    assert json.loads(path.read_text()) == {"path": "x"}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"path": "x"} and len(list(path.parent.iterdir())) == 1
