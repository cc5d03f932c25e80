# SPDX-License-Identifier: Apache-2.0
"""labelfx new."""

from __future__ import annotations

import os

import pytest

from monai_labelfx.cli import main
from monai_labelfx.commands.bundle_folder import find_bundle
from monai_labelfx.commands.new import copy_bundle


def test_a_copy_is_whole_writable_and_usable(bundle, tmp_path, capsys):
    (bundle / "__pycache__").mkdir()
    source = {f.relative_to(bundle) for f in bundle.rglob("*") if f.is_file()}
    for path in (*bundle.rglob("*"), bundle):
        path.chmod(0o555 if path.is_dir() else 0o444)  # as in a read-only installation
    target = tmp_path / "deep" / "mine"
    try:
        assert main(["new", str(bundle), str(target)]) == 0
    finally:
        for path in (bundle, *bundle.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert "labelfx run" in capsys.readouterr().out
    assert {f.relative_to(target) for f in target.rglob("*") if f.is_file()} == source
    assert all(os.stat(f).st_mode & 0o200 for f in (target, *target.rglob("*")))
    assert not (target / "__pycache__").exists() and find_bundle(target) == target
    assert [f.name for f in target.parent.iterdir()] == ["mine"], "nothing temporary is left"


def test_an_empty_folder_is_filled_and_others_are_kept(bundle, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert copy_bundle(bundle, tmp_path / "empty") == tmp_path / "empty"
    assert main(["new", str(bundle), str(tmp_path / "empty")]) == 1
    assert "is not an empty folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="not an empty folder"):
        copy_bundle(bundle, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
