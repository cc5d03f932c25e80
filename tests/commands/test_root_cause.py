# SPDX-License-Identifier: Apache-2.0
"""The one sentence behind nested errors."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, Lambda, SaveImage

from monai_labelfx.commands.root_cause import root_cause


def _refuse(value):
    raise ValueError("alpha is 2,\n  expected [0, 1]")


@pytest.mark.parametrize(
    "config",
    [
        {"a": {"_target_": f"{__name__}.fail"}, "b": "$@a"},
        {"b": "$(lambda: 1 / 0)()"},
        {"b": {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1, "kernel": 3}},
        {"b": "@absent"},
    ],
    ids=["target", "expression", "keyword", "reference"],
)
def test_nested_bundle_errors(config):
    with pytest.raises(Exception) as caught:
        ConfigParser(config).get_parsed_content("b")
    text = root_cause(caught.value)
    assert "\n" not in text and "Failed to" not in text
    expected = {"target": "fail", "expression": "ZeroDivisionError", "keyword": "kernel", "reference": "@absent"}
    assert any(word in text for word in expected.values())


def test_transform_errors():
    with pytest.raises(RuntimeError) as caught:
        Compose([Lambda(_refuse)])(torch.zeros(1))
    assert root_cause(caught.value) == "alpha is 2, expected [0, 1]"


def test_worker_errors():
    loader = DataLoader(Dataset([1], Lambda(_refuse)), num_workers=1)
    with pytest.raises(RuntimeError) as caught:
        next(iter(loader))
    text = root_cause(caught.value)
    assert "\n" not in text and "Traceback" not in text


def test_writer_errors(tmp_path):
    save = SaveImage(tmp_path, writer="monai_labelfx.data.NiftiWriter", output_ext=".nii", output_dtype="uint8")
    with pytest.raises(RuntimeError) as caught:
        save(torch.full((1, 2, 2), 300.0))
    assert root_cause(caught.value).startswith("ValueError: NiftiWriter cannot write values 300.0 to 300.0 as uint8")


def test_bare_errors():
    assert root_cause(KeyError("train")) == "KeyError: train"
    assert root_cause(FileNotFoundError(2, "No such file", "a.png")) == "[Errno 2] No such file: 'a.png'"
    assert root_cause(ZeroDivisionError()) == "ZeroDivisionError"
