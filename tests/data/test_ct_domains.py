# SPDX-License-Identifier: Apache-2.0
"""load_ct_domains: sorted lists, nobody on two sides, one sentence for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_derived_samples import series

from monai_labelfx.data.ct_domains import load_ct_domains


def item(image, domain="low", patient="1", **more) -> dict:
    return {"image": str(image), "domain": domain, "patient": patient, **more}


def datalist(folder: Path, **splits) -> Path:
    path = folder / "datalist.json"
    path.write_text(json.dumps(splits))
    return path


def pair(**splits) -> dict:
    return {"training": [item("a.nii"), item("b.nii", "high", "2")], **splits}


def load(folder: Path, *, check: bool = False, shared_patients: bool = False, **splits):
    return load_ct_domains(datalist(folder, **splits), check=check, shared_patients=shared_patients)


def nifti(path: Path, size: float = 0.7) -> Path:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([size, size, 3, 1])), path)
    return path


def ct(folder: Path, *, like: Path | None = None, keywords: tuple[str, ...] = ()) -> Path:
    """A series; ``like`` another one in ``keywords``."""
    other = pydicom.dcmread(like / "0000.dcm") if like else None

    def change(image, index):
        for keyword in keywords:
            setattr(image, keyword, getattr(other, keyword))

    return series(folder, change)


def test_items_are_sorted_and_keep_everything(tmp_path):
    found = load(
        tmp_path,
        name="a study",
        training=[item("a.nii"), item("b.nii", "high", 2), item(["c/1.dcm", "c/2.dcm"], patient="3", weight=2)],
        validation=[item("d.nii", patient=4, reference="e.nii", roi="f.nii"), item("g.nii", "high", 5)],
        test=[item("h.nii", "high", 6), item("i.nii", patient=7)],
        other=[{"image": "z.nii"}],
    )
    assert list(found) == ["training_low", "training_high", "validation", "validation_high", "test", "test_high"]
    names = {name: [Path(str(one["image"])).name for one in items] for name, items in found.items()}
    assert names["training_high"] == ["b.nii"] and names["validation"] == ["d.nii"] and names["test"] == ["i.nii"]
    assert names["validation_high"] == ["g.nii"] and names["test_high"] == ["h.nii"]
    assert found["training_low"][1]["weight"] == 2
    (one,) = found["validation"]
    assert [one[key] for key in ("image", "reference", "roi")] == [str(tmp_path / f"{n}.nii") for n in "def"]


def test_a_list_of_files_stays_a_list(tmp_path):
    training = [item("", "low") | {"image": ["c/1.dcm", "c/2.dcm"]}, item("b.nii", "high", 2)]
    assert load(tmp_path, training=training)["training_low"][0]["image"][1] == str(tmp_path / "c/2.dcm")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"training": [item("a.nii")]},
            "has no items for training_high, expected at least one; it has 1 under training_low",
        ),
        ({"training": [item("a.nii", "high")]}, "has no items for training_low"),
        ({"test": [item("a.nii")]}, "has no items for training_low, expected at least one; it has 1 under test"),
        ({"training": []}, "has no items for training_low, expected at least one; it has none at all"),
        (pair(test=[{"image": "c.nii", "patient": 3}]), r"test\[0\] \('.*c.nii'\) has no domain, expected 'low' or"),
        (
            pair(test=[item("c.nii", "Low", 3)]),
            r"test\[0\] \('.*c.nii'\) has the domain 'Low', expected 'low' or 'high'",
        ),
        (pair(test=[item("c.nii", ["low"], 3)]), r"has the domain \['low'\]"),
        (
            pair(test=[item("c.nii", "low", None)]),
            r"test\[0\] \('.*c.nii'\) has no patient, so nobody.*shared_patients",
        ),
        (pair(test=[item("c.nii", "low", " ")]), "has no patient"),
        (pair(test=[{"domain": "low"}]), r"test\[0\] has no 'image'"),
        (
            {"training": [item("a.nii"), item("b.nii", "high")]},
            r"1 patient \(1\) have images in low of training and in high of training.*shared_patients=True",
        ),
        (pair(validation=[item("c.nii", patient=2)]), r"1 patient \(2\) have images in training and in validation"),
        (pair(test=[item("c.nii", "high", 1)]), r"1 patient \(1\) have images in training and in test"),
        (
            pair(validation=[item("c.nii", patient=3)], test=[item("d.nii", patient="3 ")]),
            r"1 patient \(3\) have images in validation and in test, expected different patients: move",
        ),
        (pair(test=[item("b.nii", patient=3)]), "the image '.*b.nii' stands in both domains"),
    ],
)
def test_refusals(tmp_path, splits, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **splits)


def test_at_most_five_patients_are_listed(tmp_path):
    low = [item(f"{n}.nii", patient=f"p{n}") for n in range(7)]
    high = [item(f"h{n}.nii", "high", f"p{n}") for n in range(7)]
    with pytest.raises(ValueError, match=r"7 patients \(p0, p1, p2, p3, p4 and 2 more\) have"):
        load(tmp_path, training=low + high)


def test_shared_patients_are_shared_in_training_only(tmp_path):
    both = [item("a.nii"), item("b.nii", "high"), {"image": "c.nii", "domain": "low"}]
    found = load(tmp_path, shared_patients=True, training=both)
    assert len(found["training_low"]) == 2 and len(found["training_high"]) == 1
    with pytest.raises(ValueError, match=r"1 patient \(1\) have images in training and in test, .* side$"):
        load(tmp_path, shared_patients=True, training=both, test=[item("d.nii")])


def test_required_lists(tmp_path):
    path = datalist(tmp_path, test=[item("a.nii")])
    assert len(load_ct_domains(path, check=False, required=("test",))["test"]) == 1
    with pytest.raises(ValueError, match="has no items for test_high"):
        load_ct_domains(path, check=False, required=("test", "test_high"))
    with pytest.raises(ValueError, match=r"required must be names of training_low, .*, got \['training'\]"):
        load_ct_domains(path, check=False, required=("training",))


def test_headers_are_checked(tmp_path):
    low, high = ct(tmp_path / "low"), nifti(tmp_path / "high.nii")
    good = {"training": [item(low), item(high, "high", 2)]}
    assert len(load(tmp_path, check=True, **good)["training_low"]) == 1
    mixed = nifti(tmp_path / "mixed.nii", 2.0)
    with pytest.raises(ValueError, match="domain 'high' mixes 2 pixel spacings"):
        load(tmp_path, check=True, **good, test=[item(mixed, "high", 3)])
    path = datalist(tmp_path, **good, test=[item(mixed, "high", 3)])
    for options in ({"allow_mixed": True}, {"spacing_tolerance": 3.0}):
        assert load_ct_domains(path, **options)["test_high"]
    with pytest.raises(ValueError, match="domain 'high' mixes 2 slice thicknesses"):
        thin = tmp_path / "thin.nii"
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([0.7, 0.7, 2.5, 1])), thin)
        load(tmp_path, check=True, **good, test=[item(thin, "high", 3)])
    assert load_ct_domains(path, spacing_tolerance=3.0, thickness_tolerance=1.0)
    picture = nifti(tmp_path / "bytes.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), picture)
    with pytest.raises(ValueError, match="stores 8 bits per voxel"):
        load(tmp_path, check=True, **good, test=[item(picture, patient=3)])
    with pytest.raises(FileNotFoundError, match="absent"):
        load(tmp_path, check=True, **good, test=[item("absent.nii", patient=3)])


def test_a_reference_fits_its_image(tmp_path):
    low, high = nifti(tmp_path / "low.nii"), nifti(tmp_path / "high.nii")
    training = [item(low), item(high, "high", 2)]
    load(tmp_path, check=True, training=training, test=[item(low, patient=3, reference=str(high))])
    wide = nifti(tmp_path / "wide.nii", 0.75)
    with pytest.raises(
        ValueError, match=r"reference NIfTI file '.*wide.nii' has shape \(4, 5, 6\) and spacing \(0.75, "
    ):
        load(tmp_path, check=True, training=training, test=[item(low, patient=3, reference=str(wide))])


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_one_patient_under_two_names(tmp_path, keyword):
    low, high, other = (ct(tmp_path / name) for name in ("low", "high", "other"))
    training = [item(low), item(high, "high", 2)]
    load(tmp_path, check=True, training=training, validation=[item(other, patient=3)])
    same = ct(tmp_path / "same", like=high, keywords=(keyword,))
    with pytest.raises(
        ValueError,
        match=f"'.*high' in training and DICOM series in '.*same' in validation have the same {keyword}, so they are",
    ):
        load(tmp_path, check=True, training=training, validation=[item(same, patient=3)])
    mixed = [*training, item(same, patient=3)]
    with pytest.raises(ValueError, match=f"same' in low of training and .*high' in high of training .* {keyword}"):
        load(tmp_path, check=True, training=mixed)
    load(tmp_path, check=True, shared_patients=True, training=mixed)


def test_one_series_in_both_domains(tmp_path):
    low = ct(tmp_path / "low")
    copy = ct(tmp_path / "copy", like=low, keywords=("SeriesInstanceUID",))
    training = [item(low), item(copy, "high", 2)]
    with pytest.raises(ValueError, match=r"low' in low and .*copy' in high are one series \(SeriesInstanceUID\)"):
        load(tmp_path, check=True, shared_patients=True, training=training)
    assert load(tmp_path, training=training)
