# SPDX-License-Identifier: Apache-2.0
"""The audit of CT numbers: what it must flag, what it must not, on a real slice and on phantoms."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.metrics.ct_number import HU_CLASSES, HUAudit, block_mean_difference


def noise(shape, deviation: float, seed: int = 0, *, sharp: bool = True) -> np.ndarray:
    """Noise of a sharp kernel along the first two axes, else white."""
    values = np.random.default_rng(seed).normal(size=shape)
    if sharp:
        fx, fy = np.meshgrid(np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), indexing="ij")
        filter_ = np.sqrt(np.hypot(fx, fy) * np.exp(-((np.hypot(fx, fy) / 0.25) ** 2)))
        filter_ = filter_.reshape(*filter_.shape, *[1] * (len(shape) - 2))
        values = np.fft.ifft2(np.fft.fft2(values, axes=(0, 1)) * filter_, axes=(0, 1)).real
    return (deviation * values / values.std()).astype(np.float32)


def discs(shape=(160, 144)) -> np.ndarray:
    """Air with a body of soft tissue that holds a lung, fat and bone."""
    x, y = np.meshgrid(*map(np.arange, shape), indexing="ij")
    image = np.full(shape, -1000.0, np.float32)
    for hu, centre, radius in (
        (40, (80, 72), 64), (-700, (50, 60), 18), (-100, (110, 60), 18), (700, (80, 104), 18),
    ):  # fmt: skip
        image[np.hypot(x - centre[0], y - centre[1]) < radius] = hu
    return image


@pytest.fixture(scope="module")
def head() -> tuple[np.ndarray, np.ndarray]:
    """The real slice of a head without padding, and where that was."""
    import pydicom
    from pydicom.data import get_testdata_file

    dataset = pydicom.dcmread(get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is known for what its header says of signs
        stored = dataset.pixel_array.T
    hu = stored.astype(np.float32) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    return np.where(hu == -2000, -1000, hu).astype(np.float32), hu == -2000


@pytest.fixture(scope="module", params=[True, False], ids=["sharp", "white"])
def denoised(request, head) -> tuple[np.ndarray, np.ndarray]:
    """The slice with noise of a quarter dose, and what non-local means make of it."""
    from skimage.restoration import denoise_nl_means

    low = head[0] + noise(head[0].shape, 28.0, sharp=request.param)
    return denoise_nl_means(low, patch_size=5, patch_distance=6, h=22.4, sigma=28.0, fast_mode=True), low


def test_non_local_means_pass(denoised, head):
    report = HUAudit()(*denoised, exclude=head[1])
    assert report.passed, report.failures
    assert {"air", "fat", "soft_tissue", "bone"} <= set(report.classes) and abs(report.worst_region) < 1
    assert report.slope == pytest.approx(1, abs=1e-3) and abs(report.intercept) < 1 and report.low_band < 4


def test_the_clean_slice_passes(denoised, head):
    """Noise taken out wholly: blocks then move by their share of it, beyond the limit of 5 HU."""
    source = denoised[1]
    report = HUAudit()(head[0], source, exclude=head[1])
    assert report.passed and not HUAudit(strict=True)(head[0], source, exclude=head[1]).passed
    assert abs(report.blocks[16].worst) > 5 and "noise can explain it" in report.warnings[-1]
    assert abs(report.structure) < 0.03


def test_five_hu_are_flagged(denoised, head):
    output, source = denoised
    for sign in (1, -1):
        report = HUAudit()(output + 5 * sign, source, exclude=head[1])
        flagged = [sentence.split()[0] for sentence in report.failures]
        assert {"air", "fat", "soft_tissue", "bone"} <= set(flagged)
        assert report.intercept == pytest.approx(5 * sign, abs=1) and report.low_band > 5
    assert not HUAudit()(source + 5, source).passed


def test_air_that_moves_by_122_hu_is_flagged_and_named(denoised, head):
    output, source = denoised
    report = HUAudit()(np.where(head[0] < -900, output - 122, output), source, exclude=head[1])
    assert report.classes["air"].shift == pytest.approx(-122, abs=0.5) and report.blocks[16].worst < -115
    assert abs(report.classes["soft_tissue"].shift) < 1 and report.slope > 1.05
    assert len(report.failures) == 2 and report.failures[0].startswith("air shifts by -12")


def test_noise_does_not_choose_the_voxels_of_a_class():
    """A denoiser that is right everywhere moves nothing, although voxels near a limit of HU seem to tell otherwise."""
    clean = np.full((256, 256), 35.0, np.float32)
    clean[:, 128:] = 5.0
    source = clean + noise(clean.shape, 50.0, sharp=False)
    low, high = HU_CLASSES["water"]
    naive = (clean - source)[(source >= low) & (source < high)].mean()
    assert naive > 15, "regression to the mean"
    report = HUAudit()(clean, source)
    assert report.passed and report.smoothing > 4
    assert set(report.classes) == {"water", "soft_tissue"} and abs(report.worst_region) < 2


def test_what_smoothing_cannot_remove_is_allowed_for():
    clean = np.full((256, 256), 25.0, np.float32)
    source = clean + noise(clean.shape, 600.0, sharp=False)
    audit = HUAudit(smoothing=4.0)
    report = audit(clean, source)
    assert abs(report.worst_region) > 10 and report.passed and report.smoothed_noise > 20
    assert not HUAudit(smoothing=4.0, strict=True)(clean, source).passed
    assert audit(clean - 300, source).failures[0].startswith(tuple(report.classes))


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, lambda a: MetaTensor(torch.as_tensor(a))])
def test_a_volume_is_its_slices(kind):
    clean = np.stack([discs(), discs().T[:144].repeat(2, 0)[:160, :144], discs()[::-1]], axis=-1)
    source = clean + noise(clean.shape, 15.0)
    output = np.where(clean > 300, clean + 9, clean).astype(np.float32)
    report = HUAudit()(kind(output)[None], kind(source))
    single = [HUAudit(smoothing=report.smoothing)(output[..., n], source[..., n]) for n in range(3)]
    for name in report.classes:
        parts = [one.classes[name] for one in single if name in one.classes]
        voxels = sum(part.voxels for part in parts)
        assert report.classes[name].voxels >= voxels
        if len(parts) == 3:
            mean = sum(part.shift * part.voxels for part in parts) / voxels
            assert report.classes[name].shift == pytest.approx(mean, abs=1e-4)
    for size in (8, 16, 32, 64):
        worst = max((one.blocks[size].worst for one in single), key=abs)
        assert report.blocks[size].worst == pytest.approx(worst)
    number = max(range(3), key=lambda n: abs(single[n].blocks[16].worst))
    assert report.blocks[16].place == (*single[number].blocks[16].place, number)
    assert report.low_band == pytest.approx(max(one.low_band for one in single), rel=1e-5)
    assert report.classes["bone"].shift == pytest.approx(9, abs=1) and not report.passed
    assert report.slices is not None and all(one.slices is None for one in single)
    one_slice = HUAudit()(kind(output[..., :1]), kind(source[..., :1]))
    assert one_slice.classes == HUAudit()(kind(output[..., 0]), kind(source[..., 0])).classes


def test_swapping_axes_changes_nothing():
    clean = discs()[:144]
    source = clean + noise(clean.shape, 15.0)
    one, other = HUAudit()(clean, source), HUAudit()(clean.T, source.T)
    for name, shift in one.classes.items():
        assert other.classes[name][:1] == shift[:1] and other.classes[name].shift == pytest.approx(
            shift.shift, abs=1e-4
        )
    assert other.blocks[16].place == one.blocks[16].place[::-1] and other.slope == pytest.approx(one.slope)


def test_regions_of_interest():
    clean = discs()
    source = clean + noise(clean.shape, 15.0)
    roi = np.zeros(clean.shape, np.uint8)
    roi[30:70, 44:76], roi[100:120, 50:70], roi[0, :2] = 3, 7, 9
    output = np.where(roi == 7, clean + 4, clean)
    report = HUAudit(roi_names={7: "liver"})(output, source, roi=torch.as_tensor(roi)[None])
    assert list(report.rois) == ["roi_3", "liver", "roi_9"]
    assert report.rois["liver"].shift == pytest.approx((output - source)[roi == 7].mean(), abs=1e-3)
    assert report.rois["liver"].voxels == 400 and report.rois["liver"].low > 2
    assert any(sentence.startswith("liver shifts by +") for sentence in report.failures)
    assert not any("roi_3" in sentence for sentence in report.failures + report.warnings)
    assert "roi_9" not in " ".join(report.failures)


def test_left_out_voxels_do_not_matter():
    clean, exclude = discs(), np.zeros((160, 144), bool)
    exclude[:30] = True
    source = clean + noise(clean.shape, 15.0)
    expected = HUAudit()(clean, source, exclude=exclude)
    for filling in (-2000.0, math.nan):
        output, before = (np.where(exclude, filling, image) for image in (clean, source))
        assert HUAudit()(output, np.where(exclude, -2000, before), exclude=exclude) == expected
        assert HUAudit()(output, before, exclude=exclude) == expected
    moved = np.where(exclude, clean + 500, clean)
    assert HUAudit()(moved, source, exclude=exclude) == expected and not HUAudit()(moved, source).passed


def test_an_identity_moves_nothing_and_a_seed_gives_one_result():
    source = discs() + noise((160, 144), 30.0)
    report = HUAudit()(source, source)
    assert report.passed and not report.warnings and report.smoothing == 2
    assert report.worst_region == 0 == report.low_band == report.blocks[8].worst
    assert (report.slope, report.intercept) == (1, pytest.approx(0, abs=1e-9))
    output = source + noise(source.shape, 5.0, seed=1)
    assert HUAudit()(output, source) == HUAudit()(output, source)
    assert HUAudit(seed=1)(output, source).classes != HUAudit()(output, source).classes


def test_what_cannot_be_judged_does_not_pass():
    report = HUAudit()(np.zeros((7, 5)), np.zeros((7, 5)))
    assert report.failures == ("no class, region or block is large enough to be judged.",)
    assert math.isnan(report.worst_region) and report.low_band_level == (0, 0)


def test_limits_and_classes_are_arguments():
    source = discs()
    assert HUAudit(region_limit=3.5)(source + 3, source).passed
    report = HUAudit(classes={"body": (-150, 800)}, block_sizes=(8, 24), block_size=8)(source + 6, source)
    assert set(report.classes) == {"body"} and set(report.blocks) == {8, 24} and "8 x 8" in report.failures[-1]


def test_map_of_block_means():
    generator = np.random.default_rng(0)
    source, output = generator.normal(size=(2, 32, 24, 3))
    expected = (output - source).reshape(4, 8, 3, 8, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(block_mean_difference(output, source, 8), expected, atol=1e-6)
    np.testing.assert_allclose(block_mean_difference(output[None], torch.as_tensor(source), 8), expected, atol=1e-6)
    exclude = np.zeros(source.shape, bool)
    exclude[:8, :8, 1] = True
    found = block_mean_difference(output[..., 1], source[..., 1], 8, exclude=exclude[..., 1])
    assert np.isnan(found[0, 0]) and np.isnan(found).sum() == 1
    with pytest.raises(ValueError, match="size must be a number of voxels above 0"):
        block_mean_difference(output, source, 0)


def test_bad_input_is_named():
    image = np.zeros((32, 32))
    for keywords, message in (
        ({"region_limit": 0}, "region_limit must be above 0"),
        ({"block_limit": math.nan}, "block_limit must be above 0"),
        ({"block_size": 12, "block_sizes": (12,)}, "block_size must be a multiple of 8"),
        ({"block_size": 24}, "block_size must be a multiple of 8 and one of"),
        ({"smoothing": -1}, "smoothing must be"),
        ({"confidence": 1}, "replicates must be above 0 and confidence"),
        ({"classes": {"a": (1, 0)}}, "classes"),
    ):
        with pytest.raises(ValueError, match=message):
            HUAudit(**keywords)
    with pytest.raises(ValueError, match=r"output must have .*\(32, 32\), got \(32, 31\)"):
        HUAudit()(image[:, 1:], image)
    with pytest.raises(ValueError, match="output holds NaN or infinity"):
        HUAudit()(np.where(image == 0, np.inf, 0), image)
    with pytest.raises(ValueError, match="roi must hold whole numbers"):
        HUAudit()(image, image, roi=image + 0.5)
    with pytest.raises(ValueError, match="exclude must have"):
        HUAudit()(image, image, exclude=np.zeros((32, 32, 2)))
