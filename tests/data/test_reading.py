# SPDX-License-Identifier: Apache-2.0
"""reading: one sentence about any error, with the file name."""

from __future__ import annotations

import struct

import pytest

from monai_labelfx.data._reading import ImageFileError, check_size, reading


@pytest.mark.parametrize(
    ("error", "text"),
    [(struct.error("two\nlines"), "two"), (EOFError(), "EOFError"), (MemoryError("x" * 900), "x" * 200)],
)
def test_any_error_becomes_one_sentence(tmp_path, error, text):
    path = tmp_path / "a.png"
    path.touch()
    with pytest.raises(ImageFileError) as caught, reading(str(path), "PNG"):
        raise error
    message = str(caught.value)
    assert message == f"image file {str(path)!r} cannot be read as PNG (corrupt or incomplete?): {text}"
    assert caught.value.__cause__ is error


def test_own_sentences_and_absent_files_stay(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent' does not exist"), reading(str(tmp_path / "absent"), "PNG"):
        raise AssertionError("never reached")
    (tmp_path / "a").touch()
    with pytest.raises(ImageFileError, match="^own words$"), reading(str(tmp_path / "a"), "PNG"):
        raise ImageFileError("own words")


def test_size(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    check_size(str(tmp_path / "a"), "PNG", 20, 2.0)
    with pytest.raises(ImageFileError, match="announces 21 bytes.*file of 10 bytes"):
        check_size(str(tmp_path / "a"), "PNG", 21, 2.0)
