# SPDX-License-Identifier: Apache-2.0
"""find_dicom_series: what belongs together in a folder, and what is left out."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
from dicom_samples import CASES, colour, enhanced, new_slice, phantom, save, series_slices, write_series

from monai_labelfx.data.dicom_series import find_dicom_series


def test_series_are_told_apart(tmp_path):
    first, second = series_slices(phantom()), series_slices(phantom()[:, :, :5])
    for image in first:
        image.SeriesDescription = "thorax\x07 5 mm"
    save(tmp_path, first, prefix="a")
    save(tmp_path, second, prefix="b")
    found = {one.uid: one for one in find_dicom_series(tmp_path)}
    assert list(found) == sorted([first[0].SeriesInstanceUID, second[0].SeriesInstanceUID])
    one = found[first[0].SeriesInstanceUID]
    assert one.size == (16, 12, 8) and one.modality == "CT" and one.description == "thorax\x07 5 mm"
    assert one.paths == tuple(str(tmp_path / f"a{n:04d}.dcm") for n in range(8))
    assert str(one) == f"'thorax 5 mm', 16 x 12 x 8, CT, {one.uid}"
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_multi_frame_file_is_one_path(tmp_path):
    (one,) = find_dicom_series(CASES["Enhanced multi-frame"](tmp_path))
    assert one.size == (16, 12, 8) and one.paths == (str(tmp_path / "0000.dcm"),)


def test_a_list_of_files(tmp_path):
    files = sorted(write_series(tmp_path, phantom()).iterdir())
    (one,) = find_dicom_series(files[:3])
    assert one.size == (16, 12, 3) and one.paths == tuple(map(str, files[:3]))
    (one,) = find_dicom_series(str(files[0]))
    assert one.size == (16, 12, 1)
    (tmp_path / "notes.txt").write_text("no picture, but named")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        find_dicom_series([*files, tmp_path / "notes.txt"])


def test_what_is_no_image_is_left_out(tmp_path):
    write_series(tmp_path, phantom())
    for number, sop_class in enumerate(("88.11", "66.4", "481.3")):
        other = new_slice(np.zeros((4, 5), np.uint16), sop_class=f"1.2.840.10008.5.1.4.1.1.{sop_class}")
        if sop_class != "66.4":
            del other.Rows, other.Columns, other.PixelData
        save(tmp_path, [other], prefix=f"other{number}")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "empty").touch()
    (tmp_path / "._0000.dcm").write_bytes(b"left behind by another system")
    (tmp_path / ".DS_Store").write_bytes(b"also")
    (one,) = find_dicom_series(tmp_path)
    assert one.size == (16, 12, 8)


def test_suffixes_do_not_matter(tmp_path):
    write_series(tmp_path / "a", phantom())
    (tmp_path / "b").mkdir()
    names = ["IM0", "1.2.840.3", "b.IMA", "c.DCM", "d.dcm", "e.dicom", "f.img", "g"]
    for name, file in zip(names, sorted((tmp_path / "a").iterdir()), strict=True):
        shutil.copy(file, tmp_path / "b" / name)
    assert find_dicom_series(tmp_path / "b")[0].size == (16, 12, 8)


def test_folders_of_a_folder_only_where_asked(tmp_path):
    slices = series_slices(phantom())
    save(tmp_path / "a", slices[:4])
    save(tmp_path / "b" / "c", slices[4:])
    save(tmp_path / ".hidden", [colour()])
    assert find_dicom_series(tmp_path) == []
    (one,) = find_dicom_series(tmp_path, recursive=True)
    assert one.size == (16, 12, 8) and str(tmp_path / "b" / "c" / "0000.dcm") in one.paths
    save(tmp_path, [enhanced(phantom())], prefix="top")
    assert len(find_dicom_series(tmp_path)) == 1 and len(find_dicom_series(tmp_path, recursive=True)) == 2


def test_a_cut_off_export_is_not_overlooked(tmp_path):
    write_series(tmp_path, phantom())
    (tmp_path / "0003.dcm").write_bytes(b"")
    with pytest.raises(ValueError, match=r"0003\.dcm"):
        find_dicom_series(tmp_path)


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        find_dicom_series(tmp_path / "absent")


def test_images_without_a_series_are_together(tmp_path):
    image = colour()
    del image.SeriesInstanceUID, image.Modality
    (one,) = find_dicom_series(save(tmp_path, [image]))
    assert one.uid == "" and str(one) == "'', 20 x 16 x 1, no modality, no SeriesInstanceUID"
