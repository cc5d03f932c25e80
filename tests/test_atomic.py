# SPDX-License-Identifier: Apache-2.0
"""replacing: all or nothing, for files and folders."""

from __future__ import annotations

import pytest

from monai_labelfx._atomic import replacing


def test_file_appears_at_the_end(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with replacing(target) as temporary:
        temporary.write_text("text")
        assert not target.exists() and temporary.parent == target.parent
    assert target.read_text() == "text" and list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("folder", [False, True])
def test_failure_leaves_the_old_state(tmp_path, folder):
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        if folder:
            (temporary / "deep").mkdir(parents=True)
        else:
            temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_folder_replaces_an_empty_one_only(tmp_path):
    for name in ("missing", "empty", "full"):
        target = tmp_path / name
        if name != "missing":
            target.mkdir()
        if name == "full":
            (target / "old").touch()
            with pytest.raises(OSError), replacing(target) as temporary:
                temporary.mkdir()
            assert [path.name for path in target.iterdir()] == ["old"]
            continue
        with replacing(target) as temporary:
            temporary.mkdir()
            (temporary / "new").touch()
        assert [path.name for path in target.iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full", "missing"]
