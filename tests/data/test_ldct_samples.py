# SPDX-License-Identifier: Apache-2.0
"""Low-dose CT samples: domains that share no part, references of the same anatomy, noise as stated."""

from __future__ import annotations

import importlib
import json

import nibabel
import numpy as np
import pytest
from dicom_samples import write_series

from monai_labelfx.data import load_datalist

samples = importlib.import_module("monai_labelfx.data.ldct_samples")
KEYS = ("image", "reference", "roi")


def splits_of(path):
    splits = load_datalist(path, path_keys=KEYS)
    training = splits["training"]
    patients = {d: {item["patient"] for item in training if item["domain"] == d} for d in ("low", "high")}
    held_out = {item["patient"] for name in splits if name != "training" for item in splits[name]}
    assert patients["low"] and patients["high"]
    assert not patients["low"] & patients["high"] and not held_out & (patients["low"] | patients["high"])
    for name in set(splits) - {"training"}:
        for item in splits[name]:
            assert item["domain"] == "low"
            image, reference, roi = (nibabel.load(item[key]) for key in KEYS)
            assert image.shape == reference.shape == roi.shape and len(image.shape) == 3
            assert np.array_equal(image.affine, reference.affine) and np.array_equal(image.affine, roi.affine)
    return splits


def volume(path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def box(item) -> tuple[np.ndarray, np.ndarray]:
    """The corners of an image in mm, exact to a thousandth."""
    image = nibabel.load(item["image"])
    ends = image.affine @ np.array([[-0.5, -0.5, -0.5, 1], [*(np.array(image.shape) - 0.5), 1]]).T
    return np.round(ends[:3].min(axis=1), 3), np.round(ends[:3].max(axis=1), 3)


@pytest.mark.parametrize("depth", [1, 3])
def test_phantoms(tmp_path, depth):
    path = samples.phantom_ldct(tmp_path, size=64, depth=depth, counts=(2, 1, 1, 1), photons=1e6, seed=3)
    splits = splits_of(path)
    assert [len(splits[name]) for name in ("training", "validation", "test")] == [3, 1, 1]
    item = splits["test"][0]
    image, reference, roi = (volume(item[key]) for key in KEYS)
    assert image.shape == (64, 64, depth) and image.dtype == np.float32 and set(np.unique(roi)) == set(range(7))
    body = roi == 6
    assert image[body].std() / reference[body].std() == pytest.approx(2.0, rel=0.1)
    for label, value in enumerate((-1000, -95, 0, 120, 955, 40), 1):
        assert image[roi == label].mean() == pytest.approx(value, abs=8)
    again = samples.phantom_ldct(tmp_path / "again", size=64, depth=depth, counts=(2, 1, 1, 1), photons=1e6, seed=3)
    assert np.array_equal(volume(splits_of(again)["test"][0]["image"]), image)
    with pytest.raises(ValueError, match="counts must be the patients"):
        samples.phantom_ldct(tmp_path, counts=(1, 1))


def test_head_is_four_parts_of_one_slice(tmp_path):
    path = samples.head_ct(tmp_path, angles=90)
    splits = splits_of(path)
    assert "one person" in json.loads(path.read_text())["note"]
    parts = [item for name in ("training", "validation", "test") for item in splits[name]]
    assert [item["patient"] for item in parts] == ["part_a", "part_b", "part_c", "part_d"]
    assert all(volume(item["image"]).shape == (256, 256, 1) for item in parts)
    whole = splits["whole"][0]
    image, reference = volume(whole["image"]), volume(whole["reference"])
    assert image.shape == (512, 512, 1) and image.min() > -1500, "padding became air"
    for item, part in zip(parts, np.ndindex(2, 2), strict=True):
        place = (slice(256 * part[1], 256 * part[1] + 256), slice(256 * part[0], 256 * part[0] + 256))
        assert np.array_equal(volume(item["image"]), (reference if item["domain"] == "high" else image)[place])
        inverse = np.linalg.inv(nibabel.load(whole["image"]).affine)
        corner = inverse @ nibabel.load(item["image"]).affine[:, 3]
        np.testing.assert_allclose(corner[:3], [place[0].start, place[1].start, 0], atol=1e-3)
    roi = volume(whole["roi"])
    assert set(np.unique(roi)) == {0, 1, 2, 3}
    difference = (image - reference)[roi == 1]  # the noise of the one minus that of the other: variances 4 + 1
    assert abs(difference.mean()) < 3
    assert image[roi == 1].mean() == pytest.approx(31, abs=5) and image[roi == 2].mean() < -900
    assert image[roi == 3].mean() > 500


def series(folder, *, slices=20, shift=0.0):
    """A series of the size that the builders expect, with a body, two lungs and bone, small."""
    x, y = np.indices((64, 64)) - 32
    hu = np.where(np.hypot(x / 28, y / 24) < 1, 50.0, -1000.0)
    hu[np.hypot(x - 12, y) < 8] = -850
    hu[np.hypot(x + 12, y) < 6] = 700
    array = np.repeat(hu[..., None], slices, axis=2) + shift * (hu > -500)[..., None]
    return write_series(folder, array + np.arange(slices), spacing=(5.0, 5.0, 5.0))


@pytest.fixture
def source(tmp_path):
    for name, shift in (("kernel_L_sharp", 20.0), ("kernel_B_smooth", 0.0)):
        series(tmp_path / "data" / "ct" / "lungdx_A0001" / name, shift=shift)
    return tmp_path / "data"


def check_runs(splits):
    training = splits["training"]
    assert sum(volume(item["image"]).shape[2] for item in training if item["domain"] == "low") == 8
    assert sum(volume(item["image"]).shape[2] for item in training if item["domain"] == "high") == 8
    heights = sorted((box(item)[0][2], box(item)[1][2]) for items in splits.values() for item in items)
    assert all(top == bottom for (_, top), (bottom, _) in zip(heights, heights[1:], strict=False)), "each slice once"
    assert heights[-1][1] - heights[0][0] == 100


def test_kernels(tmp_path, source):
    splits = splits_of(samples.lung_kernels(tmp_path / "out", source))
    check_runs(splits)
    assert [len(splits[name]) for name in ("training", "validation", "test")] == [6, 1, 3]
    for item in (*splits["validation"], *splits["test"]):
        image, reference, roi = (volume(item[key]) for key in KEYS)
        assert (image - reference)[roi == 1].mean() == 20, "the values of the files"


def test_abdomen(tmp_path, source, monkeypatch):
    monkeypatch.setenv("LABELFX_DATA", str(source))
    splits = splits_of(samples.simulated_abdomen(tmp_path / "out", photons=1e6, angles=60))
    check_runs(splits)
    low, full = (
        np.concatenate([(volume(i[key]) - 50)[30:34, 28:36].ravel() for i in splits["test"]]) for key in KEYS[:2]
    )
    assert 1.5 < (low - low.mean()).std() / (full - full.mean()).std() < 2.6
    item = splits["test"][0]
    assert set(np.unique(volume(item["roi"]))) <= {0, 1, 2, 3} and (volume(item["roi"]) > 0).any()


def test_the_high_domain_from_another_scanner(tmp_path, source):
    options = {"photons": 1e5, "angles": 180, "crop": 40}
    plain = splits_of(samples.simulated_abdomen(tmp_path / "plain", source, **options))
    other = splits_of(
        samples.simulated_abdomen(tmp_path / "other", source, **options, high_filter="hann", high_air=100.0)
    )
    for name in plain:
        for first, second in zip(plain[name], other[name], strict=True):
            a, b = volume(first["image"]), volume(second["image"])
            assert a.shape[:2] == (40, 40) and np.array_equal(*(box(item) for item in (first, second)))
            assert np.array_equal(a, b) == (first["domain"] == "low"), "low dose and references stay"
    high = [volume(next(i for i in s["training"] if i["domain"] == "high")["image"]) for s in (plain, other)]
    lung, body = (np.hypot(*(np.indices((40, 40)) - np.array(c)[:, None, None])) < 3 for c in ((32, 20), (20, 30)))
    assert (high[1] - high[0])[lung].mean() == pytest.approx(85, abs=25)
    assert (high[1] - high[0])[body].mean() == pytest.approx(0, abs=10)
    assert high[1][body].std() < 0.8 * high[0][body].std()


def test_what_is_missing_or_wrong(tmp_path, source, monkeypatch):
    monkeypatch.delenv("LABELFX_DATA", raising=False)
    with pytest.raises(
        FileNotFoundError, match=r"no folder ct/lungdx_A0001/kernel_L_sharp of samples: set LABELFX_DATA"
    ):
        samples.lung_kernels(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="kernel_B_smooth"):
        samples.simulated_abdomen(tmp_path / "out", tmp_path)
    with pytest.raises(ValueError, match="crop must be 1 to 64 pixels, got 65"):
        samples.simulated_abdomen(tmp_path / "out", source, crop=65)
    with pytest.raises(ValueError, match="dose_fraction must be above 0"):
        samples.simulated_abdomen(tmp_path / "out", source, dose_fraction=0)
    series(tmp_path / "short" / "ct" / "lungdx_A0001" / "kernel_B_smooth", slices=5)
    with pytest.raises(ValueError, match=r"has the shape \(64, 64, 5\), expected 20 slices"):
        samples.simulated_abdomen(tmp_path / "out", tmp_path / "short")
    monkeypatch.setattr("pydicom.data.get_testdata_file", lambda *_, **__: None)
    with pytest.raises(FileNotFoundError, match="pydicom does not ship J2K_pixelrep_mismatch"):
        samples.head_ct(tmp_path / "out")


@pytest.mark.sample_data
def test_real_kernels(tmp_path, sample_data):
    splits = splits_of(samples.lung_kernels(tmp_path, sample_data))
    check_runs(splits)
    for item in splits["test"]:
        image, reference, roi = (volume(item[key]) for key in KEYS)
        assert image[roi == 1].std() > 3 * reference[roi == 1].std()
        assert 0 < (image - reference)[roi == 1].mean() < 3
