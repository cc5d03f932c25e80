# SPDX-License-Identifier: Apache-2.0
"""One workflow in this process: files, overrides, output folder."""

from __future__ import annotations

import sys

import pytest
import yaml

from monai_labelfx.commands.bundle_folder import PACKAGE
from monai_labelfx.commands.workflow import (
    check_overrides,
    config_files,
    execute,
    merge_configs,
    parse_overrides,
    writable_folder,
)


def test_order_of_files(bundle):
    heavy = bundle / "configs" / "rivals" / "heavy.yaml"
    names = [f.stem for f in config_files(bundle, "evaluate", ["wide"], [heavy])]
    assert names == ["train", "wide", "heavy", "evaluate"]
    assert [f.stem for f in config_files(bundle, "inference", ["wide"])] == ["inference", "wide"]
    with pytest.raises(ValueError, match="workflow is 'fly'"):
        config_files(bundle, "fly")


def test_later_files_override_and_inference_ignores_what_it_lacks(bundle):
    files = config_files(bundle, "train", ["short", "wide"])
    merged = merge_configs(files)
    assert merged["max_epochs"] == 1 and merged["channels"] == [8, 8]
    assert merged["train"]["dataloader"]["batch_size"] == 1
    alone = merge_configs(config_files(bundle, "inference", ["short", "wide"]))
    assert alone["channels"] == [8, 8] and "train" not in alone
    (bundle / "configs" / "presets" / "odd.yaml").write_text("absent#a: 1")
    with pytest.raises(ValueError, match="'absent#a' changes 'absent', which train.yaml does not have"):
        merge_configs(config_files(bundle, "train", ["odd"]))
    (bundle / "configs" / "presets" / "odd.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="holds a list, expected a mapping"):
        merge_configs(config_files(bundle, "train", ["odd"]))


def test_overrides_are_yaml():
    with pytest.raises(ValueError, match=r"--a '\[1' is not valid YAML"):
        parse_overrides({"a": "[1"})


@pytest.mark.parametrize("name", ["a", "b#c", "b#new", "b::c", "d#0#e", "output_dir"])
def test_known_identifiers_pass(name):
    check_overrides({"a": 1, "b": {"c": 1}, "d": [{"e": 1}]}, {name: 2})


@pytest.mark.parametrize(
    ("name", "message"),
    [("max_epoch", "'max_epoch': did you mean 'max_epochs'"), ("train#trainr#x", "did you mean 'train#trainer'")],
)
def test_misspelt_identifiers_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        check_overrides({"max_epochs": 1, "train": {"trainer": {}}}, {name: 2})


def test_nothing_is_written_into_the_package(tmp_path):
    with pytest.raises(ValueError, match="inside the installed package"):
        writable_folder(PACKAGE / "bundles" / "denoiseg_segmentation" / "eval")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        writable_folder(tmp_path / "file")


def test_a_run_leaves_its_configuration_and_no_path(bundle, data, tmp_path):
    before = list(sys.path)
    out = execute(bundle, "train", config_files(bundle), tmp_path / "out", {"dataset_dir": str(data), "max_epochs": 1})
    assert sys.path == before
    assert (out / "models" / "model.pt").is_file() and (out / "history.json").is_file()
    saved = yaml.safe_load((out / "config_train.yaml").read_text())
    assert saved["max_epochs"] == 1 and saved["output_dir"] == str(out) and "_meta_" not in saved
    # what was saved is what was run: it runs again by itself
    again = execute(bundle, "train", [out / "config_train.yaml"], tmp_path / "again")
    assert (again / "models" / "model.pt").read_bytes()[:2] == (out / "models" / "model.pt").read_bytes()[:2]


def test_the_bar_belongs_to_the_engines_that_run(bundle, data, tmp_path, monkeypatch):
    import monai_labelfx.engines

    seen = []

    class Bar:
        def __init__(self, desc):
            self.desc = desc

        def attach(self, engine):
            seen.append((self.desc, type(engine).__name__))

    monkeypatch.setattr(monai_labelfx.engines, "ProgressBar", Bar)
    execute(bundle, "train", config_files(bundle), tmp_path / "out", {"dataset_dir": str(data)})
    assert seen == [("train", "SupervisedTrainer")]
    execute(bundle, "evaluate", config_files(bundle, "evaluate"), tmp_path / "out", {"dataset_dir": str(data)})
    assert seen[1:] == [("validate", "SupervisedEvaluator")]
    execute(bundle, "train", config_files(bundle), tmp_path / "out", {"dataset_dir": str(data)}, progress=False)
    assert len(seen) == 2
