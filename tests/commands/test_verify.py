# SPDX-License-Identifier: Apache-2.0
"""labelfx verify."""

from __future__ import annotations

import pytest

from monai_labelfx.cli import main


def test_a_good_bundle_passes(bundle, capsys):
    assert main(["verify", str(bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 14 and all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1] == "toy_segmentation: all checks passed"


def test_every_check_has_its_line_and_one_fault_fails_all(bundle, capsys):
    (bundle / "LICENSE").unlink()
    (bundle / "configs" / "demo.yaml").write_text("steps: []")
    assert main(["verify", str(bundle)]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith("FAIL")]
    assert len(lines) == 14 and len(failed) == 4 and "LICENSE is missing" in failed[0]
    assert lines[-1] == "toy_segmentation: 4 checks failed"


def test_debug_raises(bundle):
    (bundle / "LICENSE").unlink()
    with pytest.raises(ValueError, match="LICENSE"):
        main(["verify", str(bundle), "--debug"])
