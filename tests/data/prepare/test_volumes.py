# SPDX-License-Identifier: Apache-2.0
"""The shared parts of the volume adapters: bytes that repeat, one grid, patients that stay together."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from monai_labelfx.data.prepare._volumes import check_same_grid, save_volume, split_by_subject


def test_files_are_repeatable_and_keep_values_and_grid(tmp_path):
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4) - 9
    affine = np.array([[0, -2.0, 0, 5], [3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
    for name in ("a", "b"):
        save_volume(tmp_path / name / "x.nii.gz", array, affine)
    assert (tmp_path / "a" / "x.nii.gz").read_bytes() == (tmp_path / "b" / "x.nii.gz").read_bytes()
    image = nibabel.load(tmp_path / "a" / "x.nii.gz")
    assert image.get_data_dtype() == np.int16 and np.array_equal(image.dataobj, array)
    assert np.array_equal(image.affine, affine)


def test_grids():
    names = {"image": Path("i"), "image_shape": (10, 20, 30)}
    affine = np.diag([-0.5, -0.5, 3.0, 1.0])
    for shift, fits in ((0.04, True), (0.06, False), (np.nan, False)):
        other = affine.copy()
        other[0, 3] += shift  # of voxels of 0.5 mm: 0.08, 0.12
        if fits:
            check_same_grid(Path("m"), (10, 20, 30), other, expected=affine, **names)
        else:
            with pytest.raises(ValueError, match="mask 'm' lies up to .* voxels away from its image 'i'"):
                check_same_grid(Path("m"), (10, 20, 30), other, expected=affine, **names)
    turned = affine.copy()
    turned[2, 0] = 0.05  # small at the origin, large at the far end
    with pytest.raises(ValueError, match="lies up to 0.17 voxels"):
        check_same_grid(Path("m"), (10, 20, 30), turned, expected=affine, **names)
    with pytest.raises(ValueError, match=r"mask 'm' has shape \(10, 20, 29\), but its image 'i' has \(10, 20, 30\)"):
        check_same_grid(Path("m"), (10, 20, 29), affine, expected=affine, **names)


def test_all_scans_of_a_patient_share_a_split():
    items = [{"image": f"{p}_{t}", "subject": f"s{p}"} for p in range(10) for t in range(1 + p % 3)]
    splits = split_by_subject(items, validation=0.2, test=0.3, seed=1)
    subjects = {name: {item["subject"] for item in part} for name, part in splits.items()}
    assert {name: len(found) for name, found in subjects.items()} == {"training": 5, "validation": 2, "test": 3}
    assert not subjects["training"] & subjects["validation"] and not subjects["training"] & subjects["test"]
    assert sorted(item["image"] for part in splits.values() for item in part) == sorted(i["image"] for i in items)
    assert splits == split_by_subject(items, validation=0.2, test=0.3, seed=1)
    assert splits != split_by_subject(items, validation=0.2, test=0.3, seed=2)
