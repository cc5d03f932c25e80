# SPDX-License-Identifier: Apache-2.0
"""Text files are whole or absent."""

from __future__ import annotations

import pytest

from monai_labelfx.commands.files import read_json, write_json, write_text


def test_round_trip_and_no_leftovers(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"a": [1, None]})
    assert read_json(tmp_path / "new" / "a.json", {}) == {"a": [1, None]}
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["a.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "\ud800")
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_read_json_faults(tmp_path):
    assert read_json(tmp_path / "absent.json", {}) == {}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json", {})
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list, expected a dict"):
        read_json(tmp_path / "a.json", {})
