# SPDX-License-Identifier: Apache-2.0
"""check_ct and check_ct_domain: a warning of loss, the groups of a mixture; test_ct_facts.py has what is no CT."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_derived_samples import series
from pydicom.data import get_testdata_file

from monai_labelfx.data.check_ct import CTFacts, check_ct, check_ct_domain


def ct(folder: Path, kernel: str | None = "B30f", thickness: float = 3.0, **options) -> Path:
    def change(image, index):
        image.SliceThickness = thickness
        if kernel is not None:
            image.ConvolutionKernel = kernel

    return series(folder, change, **options)


def nifti(path: Path, *spacing: float) -> Path:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([*spacing, 1])), path)
    return path


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_an_item_and_a_path_give_the_same(tmp_path):
    folder = ct(tmp_path / "a")
    facts = check_ct(folder)
    assert isinstance(facts, CTFacts) and facts == check_ct({"image": str(folder), "domain": "low"})
    assert check_ct_domain([folder, {"image": folder}]) == [facts, facts]


def test_a_loss_is_a_warning():
    path = get_testdata_file("693_J2KI.dcm", download=False)
    with pytest.warns(UserWarning, match=r"693_J2KI\.dcm' was compressed with loss \(LossyImageCompression is 01\)"):
        assert check_ct(path).lossy
    good = get_testdata_file("CT_small.dcm", download=False)
    with pytest.warns(UserWarning, match=r"2 of 3 images of domain 'low' were compressed with loss \(first") as record:
        check_ct_domain([good, path, path], name="low")
    assert len(record) == 1


def test_kernels(tmp_path):
    soft, sharp, unknown = (ct(tmp_path / str(name), name) for name in ("B30f", "B70f", None))
    check_ct_domain([soft, unknown])
    with pytest.raises(
        ValueError,
        match=r"domain 'low' mixes 2 kernels \('B70f' in 2 images, first DICOM series in '.*B70f'; 'B30f' in 1 image,"
        r".*allow_mixed=True",
    ):
        check_ct_domain([soft, sharp, unknown, sharp], name="low")
    assert len(check_ct_domain([soft, sharp, unknown, sharp], allow_mixed=True)) == 4


def test_thicknesses_and_their_tolerance(tmp_path):
    thin, nearly, thick = (ct(tmp_path / str(size), thickness=size) for size in (1.0, 1.09, 5.0))
    check_ct_domain([thin, nearly])
    with pytest.raises(ValueError, match=r"the domain mixes 2 slice thicknesses \(1 to 1.09 mm in 2 .*; 5 mm in 1 "):
        check_ct_domain([thick, thin, nearly])
    with pytest.raises(ValueError, match="mixes 2 slice thicknesses"):
        check_ct_domain([thin, nearly], thickness_tolerance=0)
    check_ct_domain([thin, nearly, thick], thickness_tolerance=4)


def test_pixel_spacings_and_their_tolerance(tmp_path):
    small, nearly, large = (nifti(tmp_path / f"{size}.nii", size, size, 3) for size in (0.6, 0.88, 1.5))
    check_ct_domain([small, nearly])
    with pytest.raises(ValueError, match=r"mixes 2 pixel spacings \(0.6 to 0.88 mm in 2 images.*; 1.5 mm in 1 image"):
        check_ct_domain([large, small, nearly])
    with pytest.raises(ValueError, match="mixes 2 pixel spacings"):
        check_ct_domain([small, nearly], spacing_tolerance=0.4)
    turned = nifti(tmp_path / "turned.nii", 3, 0.6, 0.6)
    with pytest.raises(ValueError, match="2 slice thicknesses .*, 2 pixel spacings"):
        check_ct_domain([small, turned])


def test_dicom_and_nifti_make_one_domain(tmp_path):
    check_ct_domain([ct(tmp_path / "a", spacing=(0.7, 0.9, 2.5)), nifti(tmp_path / "b.nii", 0.7, 0.9, 3.0)])


def test_many_groups_are_cut_short(tmp_path):
    images = [nifti(tmp_path / f"{size}.nii", 1, 1, size) for size in (1, 2, 3, 4, 5, 6, 7)]
    with pytest.raises(ValueError, match=r"7 slice thicknesses \(1 mm .*5 mm in 1 image, first .*; 2 more\)"):
        check_ct_domain(images)


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="domain 'high' has no images"):
        check_ct_domain([], name="high")
    with pytest.raises(ValueError, match="spacing_tolerance must be 0 or above, got -1"):
        check_ct_domain([tmp_path], spacing_tolerance=-1)
    with pytest.raises(ValueError, match="thickness_tolerance must be 0 or above, got nan"):
        check_ct_domain([tmp_path], thickness_tolerance=float("nan"))
