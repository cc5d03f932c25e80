# SPDX-License-Identifier: Apache-2.0
"""read_picture and read_npy: what MONAI's readers give, without what they would silently change."""

from __future__ import annotations

import numpy as np
import pytest
from malformed.pictures import Trap
from monai.data import NumpyReader, PILReader
from PIL import Image

from monai_labelfx.data._plain_readers import read_npy, read_picture
from monai_labelfx.data._reading import ImageFileError

GREY = np.arange(35, dtype=np.uint8).reshape(5, 7)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp"])
@pytest.mark.parametrize("channels", [0, 3])
def test_a_picture_is_read_as_by_monai(tmp_path, name, channels):
    Image.fromarray(np.stack([GREY] * channels, axis=-1) if channels else GREY).save(tmp_path / name)
    reader = PILReader()
    expected, expected_meta = reader.get_data(reader.read(tmp_path / name))
    array, meta = read_picture(str(tmp_path / name))
    assert np.array_equal(array, expected) and array.dtype == expected.dtype
    assert {key: str(value) for key, value in meta.items()} == {k: str(v) for k, v in expected_meta.items()}


def test_another_format_under_the_name_of_a_picture_is_refused(tmp_path):
    pages = [Image.fromarray(GREY), Image.fromarray(GREY + 1)]
    pages[0].save(tmp_path / "a.png", "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(OSError, match="cannot identify"):
        read_picture(str(tmp_path / "a.png"))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_colour_models_that_look_like_others_are_refused(tmp_path, monkeypatch, mode):
    Image.new("RGB", (4, 5)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", lambda *_, **__: Image.new(mode, (4, 5)))
    with pytest.raises(ImageFileError, match=rf"a\.png' has the colour model {mode}"):
        read_picture(str(tmp_path / "a.png"))


@pytest.mark.parametrize("array", [GREY, np.asfortranarray(GREY), GREY.astype("f8"), GREY[None, ..., None]])
def test_an_array_is_read_as_by_monai(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    reader = NumpyReader()
    expected, expected_meta = reader.get_data(reader.read(tmp_path / "a.npy"))
    found, meta = read_npy(str(tmp_path / "a.npy"))
    assert np.array_equal(found, expected) and found.dtype == expected.dtype and type(found) is np.ndarray
    assert {key: str(value) for key, value in meta.items()} == {k: str(v) for k, v in expected_meta.items()}


def test_pickles_are_not_run_and_further_arrays_not_dropped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        read_npy("a.npy")
    assert not (tmp_path / "trap").exists()
    with open("a.npy", "wb") as file:
        np.save(file, GREY)
        np.save(file, GREY)
    with pytest.raises(ImageFileError, match="holds more than its header announces"):
        read_npy("a.npy")
