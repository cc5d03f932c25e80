# SPDX-License-Identifier: Apache-2.0
"""prepare.atlas on tiny folders of the layouts of both releases."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from monai_labelfx.data import check_datalist, load_datalist
from monai_labelfx.data.prepare.atlas import prepare

SHAPE = (7, 6, 5)
AFFINE = np.array([[1.0, 0, 0, -98], [0, 1, 0, -134], [0, 0, 1, -72], [0, 0, 0, 1]])


def write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE, slope: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    nibabel.save(image, path)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 100, SHAPE).astype(np.float32)


def lesion(x: int, value: float = 1) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[x, 2:4, 1:3] = value
    return mask


@pytest.fixture
def first(tmp_path):
    """R1.1: ten patients at two sites, one with two lesions, one scanned twice; masks of 1, 255 and mixed."""
    root = tmp_path / "raw" / "ATLAS_R1.1"
    for number in range(10):
        patient = f"{31768 + number:06d}"
        folder = root / f"Site{1 + number % 2}" / patient / "t01"
        write(folder / f"{patient}_t1w_deface_stx.nii.gz", picture(number))
        write(folder / f"{patient}_LesionSmooth_stx.nii.gz", lesion(1, 255 if number % 2 else 1), slope=0.9999999997)
    folder = root / "Site1" / "031768" / "t01"
    write(folder / "031768_LesionSmooth_1_stx.nii.gz", lesion(4, 254))
    write(folder / "031768_LesionSmooth_2_stx.nii.gz", lesion(1, 3))  # overlaps the first
    folder = root / "Site2" / "031769" / "t02"
    write(folder / "031769_t1w_deface_stx.nii.gz", picture(100))
    write(folder / "031769_LesionSmooth_stx.nii.gz", lesion(5))
    return tmp_path / "raw"


@pytest.fixture
def second(tmp_path):
    """R2.0: ten labelled scans of nine patients in Training, two without mask in Testing, and files beside them."""
    root = tmp_path / "raw" / "ATLAS_2"
    for number in range(10):
        part, session = ("Training", number) if number else ("Training", 1)
        name = f"sub-r001s{session:03d}_ses-{1 if number else 2}_space-MNI152NLin2009aSym"
        folder = root / part / "R001" / f"sub-r001s{session:03d}" / f"ses-{1 if number else 2}" / "anat"
        write(folder / f"{name}_T1w.nii.gz", picture(number))
        write(folder / f"{name}_label-L_desc-T1lesion_mask.nii.gz", lesion(2).astype(np.float32))
        (folder / f"{name}_T1w.json").write_text("{}")
    for number in (20, 21):
        name = f"sub-r002s{number:03d}_ses-1"
        folder = root / "Testing" / "R002" / f"sub-r002s{number:03d}" / "ses-1" / "anat"
        write(folder / f"{name}_space-MNI152NLin2009aSym_T1w.nii.gz", picture(number))
    (root / "20220425_ATLAS_2.0_MetaData.csv").write_text("x\n")
    return tmp_path / "raw"


def mask_of(folder: Path, name: str) -> np.ndarray:
    image = nibabel.load(folder / "labels" / f"{name}.nii.gz")
    assert image.get_data_dtype() == np.uint8
    return np.asarray(image.dataobj)


def test_release_one(first, tmp_path):
    out = tmp_path / "out"
    datalist = prepare(first, out, validation=0.2, test=0.1)
    report = check_datalist(datalist, spatial_dims=3, allowed_labels=[1])
    assert report["faults"] == [] and report["warnings"] == []
    splits = load_datalist(datalist)
    patients = {name: {item["subject"] for item in items} for name, items in splits.items()}
    assert {name: len(found) for name, found in patients.items()} == {"training": 7, "validation": 2, "test": 1}
    assert sum(map(len, splits.values())) == 11
    original = first / "ATLAS_R1.1" / "Site2" / "031769" / "t02" / "031769_t1w_deface_stx.nii.gz"
    assert (out / "images" / "031769_t02.nii.gz").read_bytes() == original.read_bytes()
    assert np.array_equal(mask_of(out, "031768_t01"), lesion(1) | lesion(4))
    assert np.array_equal(mask_of(out, "031769_t01"), lesion(1)) and mask_of(out, "031769_t02").sum() == 4
    assert np.array_equal(mask_of(out, "031770_t01"), lesion(1))


def test_release_two(second, tmp_path):
    datalist = prepare(second, tmp_path / "out", validation=0.2, test=0.2)
    assert check_datalist(datalist, spatial_dims=3, allowed_labels=[1])["faults"] == []
    splits = load_datalist(datalist)
    assert [item["subject"] for item in splits["unlabelled"]] == ["sub-r002s020", "sub-r002s021"]
    assert not any("label" in item for item in splits["unlabelled"])
    both = {name for name, items in splits.items() for item in items if item["subject"] == "sub-r001s001"}
    assert len(both) == 1, "two sessions of one patient are in one split"
    assert sum(len(items) for items in splits.values()) == 12
    assert np.array_equal(mask_of(tmp_path / "out", "sub-r001s003_ses-1"), lesion(2))
    assert (tmp_path / "out" / "images" / "sub-r001s001_ses-2.nii.gz").is_file()
    again = prepare(second / "ATLAS_2", tmp_path / "again", validation=0.2, test=0.2)
    assert again.read_text() == datalist.read_text()
    assert prepare(second, tmp_path / "other", validation=0.2, test=0.2, seed=1).read_text() != datalist.read_text()


def test_unpacked_files_are_packed(first, tmp_path):
    for path in sorted(first.rglob("*.nii.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    prepare(first, tmp_path / "out")
    image = nibabel.load(tmp_path / "out" / "images" / "031775_t01.nii.gz")
    assert np.array_equal(image.dataobj, picture(7)) and np.array_equal(image.affine, AFFINE)
    assert mask_of(tmp_path / "out", "031768_t01").sum() == 8


def test_malformed_input_gives_one_sentence_and_leaves_nothing(first, second, tmp_path):
    out = tmp_path / "out"
    source = first / "ATLAS_R1.1"

    def refused(match: str, error: type[Exception] = ValueError, **keywords) -> None:
        with pytest.raises(error, match=match) as caught:
            prepare(keywords.pop("source", source), out, **keywords)
        assert "\n" not in str(caught.value)
        assert not out.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["empty", "raw"]

    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty" / "brain.nii.gz", picture(0))
    refused(r"empty' holds no scan of ATLAS, expected <patient>/t01", source=tmp_path / "empty")
    refused("absent' does not exist", FileNotFoundError, source=tmp_path / "absent")
    refused("test must be a share", test=-1)
    folder = source / "Site1" / "031770" / "t01"
    mask = folder / "031770_LesionSmooth_stx.nii.gz"
    write(mask, lesion(1)[:, :, :4])
    refused(r"LesionSmooth_stx\.nii\.gz' has shape \(7, 6, 4\), but its image .* has \(7, 6, 5\)")
    write(mask, lesion(1), affine=AFFINE + np.diag([0.5, 0, 0, 0]))
    refused(r"LesionSmooth_stx\.nii\.gz' lies up to 3\.50 voxels away from its image")
    write(mask, np.full(SHAPE, np.nan, np.float32))
    refused(r"LesionSmooth_stx\.nii\.gz' holds values that are NaN")
    mask.write_bytes(b"no mask")
    refused(r"LesionSmooth_stx\.nii\.gz' cannot be read as NIfTI")
    write(mask, lesion(1))
    (folder / "031770_t1w_deface_stx.nii.gz").unlink()
    refused(r"031770_LesionSmooth_stx\.nii\.gz' has no T1-weighted image of the same scan and space")
    write(folder / "031770_t1w_deface_stx.nii.gz", np.stack([picture(0)] * 2, -1))
    refused(r"031770_t1w_deface_stx\.nii\.gz' has 4 axes, expected 3")
    write(folder / "031770_t1w_deface_stx.nii.gz", picture(0))
    write(source / "Site2" / "031770" / "t01" / "031770_t1w_deface_stx.nii.gz", picture(0))
    refused("scan 031770_t01 is at .*Site2.* and at .*Site1.*, expected one")
    moved = source / "Site2" / "031771" / "t01" / "031770_LesionSmooth_7_stx.nii.gz"
    write(moved, lesion(1))
    (source / "Site2" / "031770" / "t01" / "031770_t1w_deface_stx.nii.gz").unlink()
    refused(r"031770_LesionSmooth_7_stx\.nii\.gz' is not in the folder of its image")

    new = second / "ATLAS_2"
    anat = new / "Training" / "R001" / "sub-r001s004" / "ses-1" / "anat"
    write(anat / "sub-r001s004_ses-1_space-orig_label-L_desc-T1lesion_mask.nii.gz", lesion(1))
    refused("space-orig_label-L.* has no T1-weighted image of the same scan and space", source=new)
    write(anat / "sub-r001s004_ses-1_space-orig_T1w.nii.gz", picture(1))
    refused("scan sub-r001s004_ses-1 is at .*space-orig.* and at .*space-MNI", source=new)


def test_a_full_destination_is_left_alone(second, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(FileExistsError, match="out' is not empty"):
        prepare(second, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
