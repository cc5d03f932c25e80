# SPDX-License-Identifier: Apache-2.0
"""labelfx prepare."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import types

import pytest

from monai_labelfx.cli import main
from monai_labelfx.commands import prepare as command


@pytest.fixture
def adapter(monkeypatch):
    """A data set adapter that notes its call."""
    calls = []

    def prepare(source, destination, *, fraction=0.1, seed=0):
        calls.append((source, destination, fraction, seed))
        return destination / "datalist.json"

    module = types.ModuleType("monai_labelfx.data.prepare.toy")
    module.prepare = prepare
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(command, "dataset_names", lambda: ["toy"])
    return calls


def test_options_come_from_the_signature(adapter, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["prepare", "toy", str(tmp_path), str(out), "--fraction", "0.5"]) == 0
    assert adapter == [(tmp_path, out, 0.5, 0)]
    assert f"labelfx check {out / 'datalist.json'}" in capsys.readouterr().out


def test_what_patch_labels_tell_is_printed(adapter, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    told = {"112": {"patches": 9, "with_both_labels": 0.949, "entropy_in_bits": [0.05, 0.3]}}
    (out / "datalist.json").write_text(json.dumps({"training": [], "patch_labels": told}))
    assert main(["prepare", "toy", str(tmp_path), str(out)]) == 0
    assert "patches of 112: 95 % hold both classes, 0.05, 0.3 bit per label\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["other", ".", "out"], "no data set 'other': there are toy"),
        (["toy", "absent", "out"], "absent does not exist"),
        (["toy", ".", "out", "--size", "3"], "no option --size: this data set has --fraction, --seed"),
    ],
)
def test_mistakes(adapter, arguments, message, capsys):
    assert main(["prepare", *arguments]) == 1
    assert message in capsys.readouterr().err and not adapter


def test_every_installed_data_set_fits_the_command():
    names = command.dataset_names()
    assert {"dsb2018", "denoiseg"} <= set(names)
    for name in names:
        function = importlib.import_module(f"monai_labelfx.data.prepare.{name}").prepare
        assert list(inspect.signature(function).parameters)[:2] == ["source", "destination"], name
