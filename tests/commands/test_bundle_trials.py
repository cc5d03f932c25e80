# SPDX-License-Identifier: Apache-2.0
"""Each trial passes on the toy and fails on a toy that is broken in just this way."""

from __future__ import annotations

import json

import pytest

from monai_labelfx.commands.bundle_trials import BundleTrials
from monai_labelfx.commands.root_cause import root_cause

EXPORTS = ["net_in_out", "ckpt_export", "onnx_export", "torch_export"]


@pytest.fixture
def trials(bundle, tmp_path):
    (tmp_path / "scratch").mkdir()
    return BundleTrials(bundle, tmp_path / "scratch")


@pytest.mark.parametrize("workflow", ["train", "evaluate", "inference"])
def test_properties(trials, workflow):
    trials.properties(workflow)


@pytest.mark.parametrize("name", [*EXPORTS, "metadata_by_monai"])
def test_network_and_metadata(trials, name):
    getattr(trials, name)()


def test_a_missing_property_is_named(trials, bundle):
    file = bundle / "configs" / "train.yaml"
    file.write_text(file.read_text().replace("inferer: {_target_: SimpleInferer}\n  handlers", "handlers", 1))
    with pytest.raises(Exception) as caught:
        trials.properties("train")
    assert "inferer" in root_cause(caught.value)


def test_a_misnamed_property_is_named(trials, bundle):
    file = bundle / "configs" / "evaluate.yaml"
    file.write_text(
        file.read_text().replace('transform: "@validate#preprocessing"', 'transform: "@train#preprocessing"')
    )
    with pytest.raises(ValueError, match="val_preprocessing"):
        trials.properties("evaluate")


def test_inference_is_tried_on_the_demos_images_when_the_demo_has_no_such_step(trials, bundle):
    file = bundle / "configs" / "demo.yaml"
    text = file.read_text()
    file.write_text(text[: text.index("  - name: predictions")] + text[text.index("table:") :])
    trials.properties("inference")


def test_wrong_number_of_channels(trials, bundle):
    file = bundle / "configs" / "metadata.json"
    meta = json.loads(file.read_text())
    meta["network_data_format"]["outputs"]["pred"]["num_channels"] = 5
    file.write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="output channel number"):
        trials.net_in_out()


def test_metadata_that_monai_refuses(trials, bundle):
    (bundle / "configs" / "metadata.json").write_text('{"schema": "https://example.org"}')
    with pytest.raises(ValueError, match="Failed validating"):
        trials.metadata_by_monai()


@pytest.mark.parametrize("name", EXPORTS[1:])
def test_a_network_that_cannot_be_exported(trials, bundle, name):
    file = bundle / "configs" / "inference.yaml"
    network = file.read_text().split("network_def:\n")[1].split("network:")[0]
    file.write_text(file.read_text().replace(network, f"  _target_: {__name__}.Moody\n"))
    with pytest.raises(Exception):  # noqa: B017  (each exporter has its own errors)
        getattr(trials, name)()


def test_a_missing_exporter_names_the_extra(trials, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"onnx.* not installed: pip install monai-labelfx\[export\]"):
        trials.onnx_export()
