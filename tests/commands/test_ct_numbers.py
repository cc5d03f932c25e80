# SPDX-License-Identifier: Apache-2.0
"""labelfx ct_numbers: the table, PASS and FAIL, files, and what does not fit together."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_samples import affine_of, write_series
from samples import write_image

from monai_labelfx.cli import OverrideParser
from monai_labelfx.commands.ct_numbers import add_arguments, main, parse_circles, parse_media

MEDIA = ("--media", "tissue=0:80", "bone=300:900")
OPTIONS = ("--patch", 12, "--count", 20)


def ct_numbers(*arguments) -> int:
    parser = OverrideParser()
    add_arguments(parser)
    return main(parser.parse_args([str(argument) for argument in arguments]))


def body() -> np.ndarray:
    """Whole HU: air and noisy tissue, (x, y, z)."""
    image = np.full((48, 40, 3), -1000.0)
    image[20:] = 40
    image += np.random.default_rng(0).normal(0, 8, image.shape).clip(-24)  # the series hold -1024 HU and above
    return np.rint(image).astype(np.float32)


def smooth() -> np.ndarray:
    return np.where(body() < -500, -1000, 40).astype(np.float32)


def test_a_denoised_image_passes(tmp_path, capsys):
    before = write_image(tmp_path / "low", body(), "nifti")
    after = write_image(tmp_path / "denoised", smooth(), "nifti")
    assert ct_numbers(before, after, *OPTIONS, "--circle", "inner=35,20,1,4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("|")[1:-1] and [cell.strip() for cell in lines[0].split("|")[1:5]] == [
        "image", "air", "brain", "inner",
    ]  # fmt: skip
    low, denoised = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:4])
    assert low[0] == "low.nii.gz" and denoised[0] == "denoised.nii.gz"
    mean, std = map(float, low[2].split(" / "))
    assert abs(mean - 40) < 1 and abs(std - 8) < 1
    assert denoised[2] == f"40.00 ({40 - mean:+.2f}) / 0.00"
    assert "PASS denoised.nii.gz" in lines and not any(line.startswith("FAIL") for line in lines)


def test_a_shift_fails_and_is_written(tmp_path, capsys):
    before = write_image(tmp_path / "low", body(), "nifti")
    good, bad = (write_image(tmp_path / n, smooth() + s, "nifti") for n, s in (("good", 0), ("bad", 5)))
    out = tmp_path / "out"
    assert ct_numbers(before, good, bad, *OPTIONS, *MEDIA, "--out", out) == 1
    text = capsys.readouterr().out
    assert "PASS good.nii.gz" in text and "FAIL bad.nii.gz\n  air shifts by +" in text
    assert "bone: no homogeneous patches of 12 x 12 voxels from 300 to 900 HU." in text
    assert (out / "table.md").read_text() in text
    content = json.loads((out / "ct_numbers.json").read_text())
    assert content["audits"]["good.nii.gz"]["passed"] and not content["audits"]["bad.nii.gz"]["passed"]
    assert content["statistics"]["bad.nii.gz"]["tissue"] == {"mean": 45, "std": 0, "number": 20}
    assert content["statistics"]["low.nii.gz"]["bone"] == {"mean": None, "std": None, "number": 0}
    limits = ("--region-limit", 7, "--block-limit", 9)
    assert ct_numbers(before, bad, *OPTIONS, *limits) == 0 and ct_numbers(before, good, *OPTIONS, "--strict") == 0


def test_dicom_series_against_nifti_and_a_region(tmp_path, capsys):
    series = write_series(tmp_path / "series", body())
    after = write_image(tmp_path / "after", smooth(), "nifti")
    roi = np.zeros((48, 40, 3), np.uint8)
    roi[26:44, 8:30] = 4
    labels = write_image(tmp_path / "labels", roi, "nifti")
    assert ct_numbers(series, after, series, *OPTIONS, "--roi", labels) == 0
    text = capsys.readouterr().out
    assert "roi_4" in text and "series (2)" in text and "PASS after.nii.gz" in text
    flipped = nibabel.as_closest_canonical(nibabel.load(after))  # other axes, same place
    nibabel.save(flipped, tmp_path / "flipped.nii.gz")
    assert ct_numbers(series, tmp_path / "flipped.nii.gz", *OPTIONS) == 0
    assert text.splitlines()[3].split("|")[2:] == capsys.readouterr().out.splitlines()[3].split("|")[2:]


def test_padding_is_left_out(tmp_path):
    low, denoised = body(), smooth()
    low[:16, :16], denoised[:16, :16] = -2000, -1024
    paths = [write_image(tmp_path / name, image, "nifti") for name, image in (("low", low), ("denoised", denoised))]
    assert ct_numbers(*paths, *OPTIONS) == 0 and ct_numbers(*paths[::-1], *OPTIONS) == 1


def test_slices_without_depth_and_names_that_two_files_share(tmp_path, capsys):
    paths = [write_image(tmp_path / name / "a", smooth()[..., 0] + s, "nifti") for name, s in (("x", 0), ("y", 0.5))]
    assert ct_numbers(*paths, *OPTIONS, "--circle", "inner=35,20,4") == 0
    assert f"PASS {paths[1]}" in capsys.readouterr().out


def test_what_does_not_fit_is_one_sentence(tmp_path):
    before = write_image(tmp_path / "low", body(), "nifti")
    small = write_image(tmp_path / "small", body()[:40], "nifti")
    with pytest.raises(
        ValueError, match=r"small.nii.gz has shape \(40, 40, 3\) and affine .* expected the same voxels"
    ):
        ct_numbers(before, small, *OPTIONS)
    affine = affine_of("axial")
    affine[0, 3] += 7
    nibabel.save(nibabel.Nifti1Image(body(), affine), tmp_path / "moved.nii.gz")
    with pytest.raises(ValueError, match="moved.nii.gz has shape .* expected the same voxels"):
        ct_numbers(before, tmp_path / "moved.nii.gz", *OPTIONS)
    with pytest.raises(ValueError, match=r"--circle far: centre \[90.0, 5.0, 0.0\] \(voxel\) lies outside"):
        ct_numbers(before, before, *OPTIONS, "--circle", "far=90,5,0,4")
    with pytest.raises(ValueError, match="'air' is a medium and a circle"):
        ct_numbers(before, before, "--circle", "air=1,1,1,1")
    with pytest.raises(FileNotFoundError):
        ct_numbers(before, Path("absent.nii.gz"))


def test_arguments():
    for wrong in ("air", "air=1", "air=2:1", "=1:2", "air=a:b", "air=0:nan"):
        with pytest.raises(ValueError, match="--media is"):
            parse_media([wrong])
    for wrong in ("a=1,2", "a=1,2,3,4,5", "a=1,2,0", "1,2,3", "a=1,2,x"):
        with pytest.raises(ValueError, match="--circle is"):
            parse_circles([wrong])
    assert parse_circles(["a=1,2,3"]) == {"a": ([1.0, 2.0], 3.0)}
