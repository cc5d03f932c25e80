# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage
from PIL import Image

from monai_labelfx.transforms.to_channels import ToChannels, ToChannelsd
from tests.testers import check_transform

GREY = np.arange(20, dtype=np.uint8).reshape(1, 4, 5) * 12
COLOR = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
OPAQUE = np.full((1, 4, 5), 255, np.uint8)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("number", [1, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_contract(spatial_dims, number, channels):
    image = np.random.default_rng(0).integers(0, 256, (number, *(5, 6, 7)[:spatial_dims])).astype(np.float32)
    check_transform(ToChannels, ToChannelsd, {"channels": channels}, image)
    check_transform(ToChannels, ToChannelsd, {"channels": channels}, image.astype(np.uint8))


def test_grey_is_repeated_and_constant_alpha_dropped():
    for image in (GREY, np.concatenate([GREY, OPAQUE]), np.concatenate([GREY, OPAQUE // 2])):
        found = ToChannels()(image)
        assert found.dtype == torch.uint8 and np.array_equal(found, np.repeat(GREY, 3, 0))
        assert np.array_equal(ToChannels(1)(image), GREY)
    for alpha in (255, 100, 0):
        assert np.array_equal(ToChannels()(np.concatenate([COLOR, np.full_like(OPAQUE, alpha)])), COLOR)


def test_colour_becomes_the_luminance_of_pillow():
    expected = np.asarray(Image.fromarray(COLOR.transpose(1, 2, 0)).convert("L"))
    assert np.abs(ToChannels(1)(COLOR)[0].numpy().astype(int) - expected).max() <= 1
    floating = ToChannels(1)(COLOR.astype(np.float32))
    assert floating.dtype == torch.float32 and np.abs(floating[0].numpy() - expected).max() < 1


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int32])
def test_transparent_pictures_are_laid_on_white_as_pillow_does(dtype):
    alpha = np.linspace(0, 255, 20).astype(np.uint8).reshape(1, 4, 5)
    rgba = np.concatenate([COLOR, alpha])
    ground = Image.new("RGBA", (5, 4), "white")
    ground.alpha_composite(Image.fromarray(np.ascontiguousarray(rgba.transpose(1, 2, 0)), "RGBA"))
    expected = np.asarray(ground.convert("RGB")).transpose(2, 0, 1).astype(float)
    found = ToChannels()(rgba.astype(dtype))
    assert found.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
    assert np.abs(found.numpy() - expected).max() <= 1.01
    assert found[:, 0, 0].tolist() == [255] * 3 and found[:, 3, 4].tolist() == COLOR[:, 3, 4].tolist()
    assert ToChannels(1)(rgba.astype(dtype))[0, 0, 0] == 255


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 257, 65535], np.uint16, [0, 1, 255]),
        ([0, 257, 65535], np.float32, [0, 1, 255]),
        ([0, 2.57, 300], np.float64, [0, 0.01, 300 / 257]),
        ([0, 17, 255], np.int16, [0, 17, 255]),
        ([0.5, 17, 254.5], np.float32, [0.5, 17, 254.5]),
        ([0, 0.2, 1], np.float32, [0, 51, 255]),
        ([0, 0.2, 0.4], np.float16, [0, 51, 102]),
        ([0, 1, 1], np.bool_, [0, 255, 255]),
        ([0, 1, 1], np.int32, [0, 1, 1]),
        ([0, 0, 0], np.float32, [0, 0, 0]),
    ],
)
def test_the_range_is_found_by_dtype_and_values(values, dtype, expected):
    found = ToChannels()(np.array(values, dtype).reshape(1, 1, 3))
    assert found.dtype == (torch.float64 if dtype == np.float64 else torch.float32)
    assert np.allclose(found.numpy(), np.broadcast_to(expected, (3, 1, 3)), atol=0.05, rtol=1e-6)
    again = ToChannels(input_range=(0, 255))(found)
    assert torch.equal(again, found)


def test_a_range_that_is_named_and_values_that_stay():
    twelve = torch.tensor([[[0, 2047.5, 4095, 5000, -3]]])
    assert ToChannels(1, input_range=(0, 4095))(twelve).tolist() == [[[0, 127.5, 255, 255, 0]]]
    hounsfield = torch.tensor([[[[-1000, 40]]]], dtype=torch.int16)
    found = ToChannels(1, input_range=None)(hounsfield)
    assert torch.equal(found, hounsfield) and found.dtype == torch.int16
    assert ToChannels(input_range=None)(hounsfield).shape == (3, 1, 1, 2)


def test_a_dark_tile_of_a_file_has_the_range_of_its_mode(tmp_path):
    load = LoadImage(ensure_channel_first=True)
    dark = np.array([[0, 1], [1, 0]], np.uint8)
    for mode, array, top in (("L", dark, 1), ("RGB", np.stack([dark] * 3, 2), 1), ("1", dark > 0, 255)):
        Image.fromarray(array).save(tmp_path / f"{mode}.png")
        picture = load(tmp_path / f"{mode}.png")
        assert picture.meta["mode"] == mode and ToChannels()(picture).max() == top
    Image.fromarray((dark * 200).astype(np.uint16)).save(tmp_path / "16.png")
    picture = load(tmp_path / "16.png")
    found = ToChannels()(picture)
    assert float(found.max()) == pytest.approx(200 / 257)
    assert picture.meta["mode"] == "I;16" and found.meta["mode"] == "RGB", "the file stays what it was"
    scaled = picture / 200  # as ScaleIntensity does
    assert ToChannels()(MetaTensor(scaled + 0.5 * (scaled < 1), meta=picture.meta)).max() == 255


def test_grey_and_alpha_from_a_file_need_not_be_constant(tmp_path):
    array = np.stack([np.full((2, 2), 100), [[0, 255], [255, 255]]], 2).astype(np.uint8)
    Image.fromarray(array, "LA").save(tmp_path / "a.png")
    picture = LoadImage(ensure_channel_first=True)(tmp_path / "a.png")
    assert ToChannels(1)(picture).tolist() == [[[255, 100], [100, 100]]]


def test_pictures_without_rgb_are_named(tmp_path):
    Image.fromarray(COLOR.transpose(1, 2, 0)).quantize(8).save(tmp_path / "a.png")
    Image.fromarray(COLOR.transpose(1, 2, 0)).convert("CMYK").save(tmp_path / "b.jpg")
    for name, mode in (("a.png", "P"), ("b.jpg", "CMYK")):
        with pytest.raises(ValueError, match=rf"image '.*{name}' is a picture of mode '{mode}', .*: store it as RGB"):
            ToChannels()(LoadImage(ensure_channel_first=True)(tmp_path / name))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(5, 4, 4), r"the image must be \(C, \*spatial\) with 1 \(grey\), 2 .*, got shape \(5, 4, 4\)"),
        (torch.zeros(0, 4, 4), r"got shape \(0, 4, 4\)"),
        (torch.zeros(3), r"got shape \(3,\)"),
        (torch.arange(32.0).reshape(2, 4, 4), "has two channels, and the second is no constant alpha: choose one"),
        (torch.full((1, 2, 2), -1.0), "must hold values from 0 to 1, 255 or 65535, got -1 to -1: name its range"),
        (torch.full((1, 2, 2), 7e4), "got 70000 to 70000"),
        (torch.full((1, 2, 2), float("nan")), "must hold values from 0 to 1, 255 or 65535"),
        (torch.full((1, 2, 2), float("inf")), "must hold values from 0 to 1, 255 or 65535"),
    ],
)
def test_other_pictures_are_named(image, message):
    with pytest.raises(ValueError, match=message):
        ToChannels()(image)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        ToChannels(2)
    for bad in ("dtype", (1, 0), (1,)):
        with pytest.raises(ValueError, match="input_range must be"):
            ToChannels(input_range=bad)
    with pytest.raises(ValueError, match="transparent in parts, and input_range=None does not tell what is white"):
        ToChannels(input_range=None)(torch.arange(16.0).reshape(4, 2, 2))
