# SPDX-License-Identifier: Apache-2.0
"""PSNR and SSIM under named conventions, against scikit-image and formulas written anew in NumPy."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from pydicom.data import get_testdata_file
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from monai_labelfx.metrics.ct_conventions import CONVENTIONS, CTConventionMetric, ct_psnr, ct_ssim

WINDOWS = {"chest": (-600, 1500), "abdomen": (50, 400), "neuro": (40, 80)}


def phantom(size=(40, 44), seed=0) -> np.ndarray:
    """Air, water, fat and bone in HU, smooth enough to have structure, with negative and positive values."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=size), 3)
    hu = np.select([smooth < -0.08, smooth < 0.0, smooth < 0.08], [-990.0, -90.0, 45.0], 900.0)
    return hu + rng.normal(0, 15, size=size)


def pair(size=(40, 44), seed=0) -> tuple[np.ndarray, np.ndarray]:
    reference = phantom(size, seed)
    return reference + np.random.default_rng(seed + 1).normal(0, 25, size=size), reference


def values(hu: np.ndarray, name: str) -> np.ndarray:
    """What each code makes of HU, as its lines read."""
    if name == "dml_ct":
        return (hu + 1000) / 2000
    if name == "kwon_ye":
        return np.where(hu < -1000, -1000, hu) / 4000
    if name == "red_cnn":
        return np.where(hu <= -160, -160, np.where(hu >= 240, 240, hu))
    if name == "ldct_benchmark_training":
        return np.clip(hu + 1024, 0, 2924)
    if name == "range_4096":
        return hu
    centre, width = WINDOWS[name.removeprefix("ldct_benchmark_")]  # of DICOM, on stored values HU + 1024
    stored, centre = hu + 1024, centre + 1024
    inside = (stored - (centre - 0.5)) / (width - 1) + 0.5
    low, high = (centre - 0.5 + sign * (width - 1) / 2 for sign in (-1, 1))
    return np.where(stored <= low, 0, np.where(stored > high, 1, inside))


def extent(reference: np.ndarray, name: str) -> float:
    fixed = {"red_cnn": 400, "ldct_benchmark_training": 2924, "range_4096": 4096}
    if name in ("dml_ct", "kwon_ye"):
        return reference.max()
    return fixed.get(name, 1)


def psnr(prediction: np.ndarray, reference: np.ndarray, name: str) -> float:
    prediction, reference = values(prediction, name), values(reference, name)
    return 20 * np.log10(extent(reference, name) / np.sqrt(((prediction - reference) ** 2).mean()))


def gaussian_ssim(first: np.ndarray, second: np.ndarray, data_range: float) -> float:
    """11 x 11 Gaussian, zeros beyond the border, pixel by pixel."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    first, second = np.pad(first, 5), np.pad(second, 5)
    c1, c2, total = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2, []
    for i in range(first.shape[0] - 10):
        for j in range(first.shape[1] - 10):
            a, b = first[i : i + 11, j : j + 11], second[i : i + 11, j : j + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * a * a).sum() - ma**2, (window * b * b).sum() - mb**2
            covariance = (window * a * b).sum() - ma * mb
            total.append((2 * ma * mb + c1) * (2 * covariance + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(total))


def ssim(prediction: np.ndarray, reference: np.ndarray, name: str) -> float:
    prediction, reference = values(prediction, name), values(reference, name)
    if name == "red_cnn":
        return gaussian_ssim(prediction, reference, 400)
    return structural_similarity(reference, prediction, data_range=extent(reference, name))


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_codes(name, dtype):
    prediction, reference = pair()
    given = [torch.tensor(image, dtype=dtype)[None] for image in (prediction, reference)]
    prediction, reference = (image[0].double().numpy() for image in given)
    assert float(ct_psnr(*given, convention=name)) == pytest.approx(psnr(prediction, reference, name), abs=1e-9)
    assert float(ct_ssim(*given, convention=name)) == pytest.approx(ssim(prediction, reference, name), abs=1e-9)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_volumes_are_scored_slice_by_slice_along_the_last_axis(name):
    prediction, reference = pair((16, 18, 5))
    reference[..., 2] *= 1.3  # so that slices have ranges of their own
    prediction[..., 2] *= 1.3
    slices = [(prediction[..., k], reference[..., k]) for k in range(5)]
    given = torch.tensor(prediction)[None], torch.tensor(reference)[None]
    for ours, theirs in ((ct_psnr, psnr), (ct_ssim, ssim)):
        expected = np.mean([theirs(*one, name) for one in slices])
        assert float(ours(*given, convention=name)) == pytest.approx(expected, abs=1e-9)
        flat = [ours(*(torch.tensor(image)[None] for image in one), convention=name) for one in slices]
        assert float(torch.stack(flat).mean()) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["dml_ct", "range_4096", "ldct_benchmark_chest"])
def test_a_volume_as_a_whole(name):
    prediction, reference = pair((14, 15, 9))
    given = torch.tensor(prediction)[None], torch.tensor(reference)[None]
    assert float(ct_psnr(*given, convention=name, slicewise=False)) == pytest.approx(psnr(prediction, reference, name))
    found = float(ct_ssim(*given, convention=name, slicewise=False))
    assert found == pytest.approx(ssim(prediction, reference, name), abs=1e-9)


def test_chunks_do_not_matter(monkeypatch):
    given = tuple(torch.tensor(image)[None] for image in pair((12, 12, 7)))
    whole = [float(score(*given, convention="dml_ct")) for score in (ct_psnr, ct_ssim)]
    monkeypatch.setattr("monai_labelfx.metrics.ct_conventions._CHUNK", 300)
    assert [float(score(*given, convention="dml_ct")) for score in (ct_psnr, ct_ssim)] == pytest.approx(whole, abs=1e-9)


def test_one_pair_of_images_scores_anything():
    """A real head slice with noise on both: relations that were measured with full and quarter dose of it."""
    reference = pydicom.dcmread(get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)).pixel_array[::2, ::2]
    reference = np.where(reference < -1000, -1000, reference).astype(float)
    rng = np.random.default_rng(0)
    given = [torch.tensor(reference + rng.normal(0, std, reference.shape))[None] for std in (20, 12)]
    score = {name: float(ct_psnr(*given, convention=name)) for name in CONVENTIONS}
    assert max(score.values()) - min(score.values()) > 25
    assert score["range_4096"] - score["dml_ct"] == pytest.approx(45.01 - 42.06, abs=0.3)
    assert score["ldct_benchmark_training"] - score["dml_ct"] == pytest.approx(42.18 - 42.06, abs=0.4)
    assert score["dml_ct"] - score["kwon_ye"] == pytest.approx(42.06 - 38.94, abs=1)
    assert score["red_cnn"] - score["ldct_benchmark_abdomen"] == pytest.approx(27.40 - 27.38, abs=0.2)
    order = ("ldct_benchmark_neuro", "ldct_benchmark_abdomen", "red_cnn", "ldct_benchmark_chest", "kwon_ye", "dml_ct")
    assert [score[name] for name in order] == sorted(score[name] for name in order)

    reference = torch.tensor(reference)[None]
    shifted = {name: float(ct_psnr(reference + 5, reference, convention=name)) for name in CONVENTIONS}
    for name in ("dml_ct", "range_4096", "ldct_benchmark_training"):
        assert 55 < shifted[name] < 58.5, "a constant error of 5 HU is nearly invisible"
    assert float(ct_ssim(reference + 5, reference, convention="range_4096")) > 0.997
    assert float(ct_ssim(reference + 5, reference, convention="ldct_benchmark_neuro")) > 0.98


def test_conventions_cannot_be_changed():
    with pytest.raises(TypeError):
        CONVENTIONS["dml_ct"] = CONVENTIONS["red_cnn"]
    with pytest.raises(AttributeError):
        CONVENTIONS["dml_ct"].scale = 1.0
    assert all(one.source and one.scale > 0 and one.window[0] < one.window[1] for one in CONVENTIONS.values())


def test_slices_without_a_score_are_left_out():
    prediction, reference = (torch.tensor(image)[None] for image in pair((12, 12, 4)))
    both = [ct_psnr(prediction[..., 2:], reference[..., 2:], convention="kwon_ye")]
    reference[..., :2] -= 5000  # no voxel above 0 HU
    both.append(ct_psnr(prediction, reference, convention="kwon_ye"))
    assert both[0] == both[1] and torch.isfinite(both[0])
    assert ct_psnr(prediction[..., :2], reference[..., :2], convention="kwon_ye").isnan()
    assert ct_ssim(prediction[..., :2], reference[..., :2], convention="kwon_ye").isnan()
    air = torch.full_like(prediction[..., :2], -1000.0)
    assert ct_psnr(air, air, convention="ldct_benchmark_neuro") == math.inf
    mixed = [torch.cat([air, image[..., 2:]], dim=-1) for image in (prediction, reference)]
    alone = [image[..., 2:] for image in (prediction, reference)]
    assert ct_psnr(*mixed, convention="red_cnn") == ct_psnr(*alone, convention="red_cnn")


@pytest.mark.parametrize("kind", ["PSNR", "SSIM"])
def test_metric(kind):
    metric = CTConventionMetric("dml_ct", kind)
    assert metric.name == f"{kind}_dml_ct"
    function = {"PSNR": ct_psnr, "SSIM": ct_ssim}[kind]
    images = [tuple(torch.tensor(image)[None] for image in pair((12, 12 + seed), seed)) for seed in range(3)]
    expected = [float(function(*image, convention="dml_ct")) for image in images]
    scores = metric([MetaTensor(a) for a, _ in images], [b for _, b in images])
    assert scores.flatten().tolist() == pytest.approx(expected, abs=1e-9)
    assert float(metric.aggregate()) == pytest.approx(np.mean(expected))
    assert metric.aggregate("mean_batch").shape == (1,) and metric.get_buffer().shape == (3, 1)
    assert metric([], []).shape == (0, 1)
    volume = CTConventionMetric("dml_ct", kind, slicewise=False)
    assert volume.name == f"{kind}_dml_ct_volume"
    pickle.loads(pickle.dumps(metric))


def test_the_mean_of_images_is_over_finite_scores():
    metric = CTConventionMetric("kwon_ye")
    prediction, reference = (torch.tensor(image)[None] for image in pair((12, 12)))
    scores = metric([prediction, reference, prediction], [reference, reference, reference - 5000])
    assert torch.isfinite(scores[0]) and scores[1] == math.inf and scores[2].isnan()
    assert metric.aggregate() == scores[0, 0] and len(metric) == 3
    metric.reset()
    metric([reference], [reference])
    assert metric.aggregate() == math.inf
    metric.reset()
    metric([prediction], [reference - 5000])
    assert metric.aggregate().isnan()


def test_bad_input():
    image = torch.zeros(1, 8, 8)
    for call in (lambda: ct_psnr(image, image, convention="4096"), lambda: CTConventionMetric("4096")):
        with pytest.raises(ValueError, match="convention must be one of dml_ct, .*range_4096, got '4096'"):
            call()
    with pytest.raises(ValueError, match="kind must be one of .* got 'RMSE'"):
        CTConventionMetric("dml_ct", "RMSE")
    for other in (torch.zeros(1, 8, 9), torch.zeros(8, 8)):
        with pytest.raises(ValueError, match="prediction and reference must have one shape"):
            ct_psnr(other, image if other.ndim == 3 else other, convention="dml_ct")
    with pytest.raises(ValueError, match="must hold finite HU"):
        ct_psnr(image * math.nan, image, convention="dml_ct")
    with pytest.raises(ValueError, match="images must have 7 voxels along each axis for SSIM, got 8 x 6"):
        ct_ssim(image[..., :6], image[..., :6], convention="range_4096")
    with pytest.raises(ValueError, match="no image to aggregate"):
        CTConventionMetric("dml_ct").aggregate()
