# SPDX-License-Identifier: Apache-2.0
"""The writer of low-dose CT data sets: files by key and patient, splits by letter, places of parts."""

from __future__ import annotations

import nibabel
import numpy as np

from monai_labelfx.data import load_datalist
from monai_labelfx.data._ldct_writer import PATH_KEYS, LdctWriter, shift


def test_items_of_every_letter(tmp_path):
    writer = LdctWriter(tmp_path)
    volume = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    for letter in "LHVTW":
        arrays = {"image": volume} | ({"reference": volume + 1} if letter == "V" else {})
        writer.add(letter, f"p{letter}", arrays, np.eye(4))
    splits = load_datalist(writer.datalist(name="x"), path_keys=PATH_KEYS)
    found = {split: [(item["domain"], item["patient"]) for item in items] for split, items in splits.items()}
    assert found == {
        "training": [("low", "pL"), ("high", "pH")],
        "validation": [("low", "pV")],
        "test": [("low", "pT")],
        "whole": [("low", "pW")],
    }
    item = splits["validation"][0]
    assert item["reference"] == str(tmp_path / "reference" / "pV.nii.gz")
    assert np.array_equal(nibabel.load(item["reference"]).get_fdata(), volume + 1)


def test_a_part_lies_where_it_was_in_the_whole():
    affine = np.array([[0, -2.0, 0, 5], [1, 0, 0, 7], [0, 0, 3, 9], [0, 0, 0, 1]])
    part = affine @ shift([10, 20, 30])
    np.testing.assert_allclose(part @ [1, 2, 3, 1], affine @ [11, 22, 33, 1])
