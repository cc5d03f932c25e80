# SPDX-License-Identifier: Apache-2.0
"""Sample data for learning from boxes: what is written, where it lies, and what a seed changes."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from monai_labelfx.data import check_datalist, load_datalist
from monai_labelfx.data.box_samples import blobs, brain_slices, mr_volumes


def arrays(item: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, label = nibabel.load(item["image"]), nibabel.load(item["label"])
    assert np.array_equal(image.affine, label.affine) and label.get_data_dtype() == np.uint8
    return np.asarray(image.dataobj), np.asarray(label.dataobj), image.affine


def fill(label: np.ndarray) -> list[float]:
    """Share of its tight box that each component covers."""
    parts, _ = ndimage.label(label, np.ones((3,) * label.ndim))
    return [float((parts[box] == n).mean()) for n, box in enumerate(ndimage.find_objects(parts), start=1)]


@pytest.mark.parametrize("axes", [2, 3])
def test_blobs(tmp_path, axes):
    datalist = blobs(tmp_path / "a", spatial_dims=axes, counts=(3, 1, 2), size=20)
    report = check_datalist(datalist, spatial_dims=axes, allowed_labels=[1])
    assert report["faults"] == [] and report["warnings"] == []
    splits = load_datalist(datalist)
    assert {name: len(items) for name, items in splits.items()} == {"training": 3, "validation": 1, "test": 2}
    assert splits["test"][1]["subject"] == "test_001"
    again = load_datalist(blobs(tmp_path / "b", spatial_dims=axes, counts=(1, 0, 1), size=20, seed=1))
    assert set(again) == {"training", "test"}
    first, second = arrays(splits["training"][0])[0], arrays(again["training"][0])[0]
    assert first.shape == (20,) * axes and first.dtype == np.float32 and not np.array_equal(first, second)
    assert np.array_equal(arrays(splits["test"][0])[0], arrays(again["test"][0])[0]), (
        "seed leaves the test images alone"
    )


def test_blobs_of_two_objects_and_bad_arguments(tmp_path):
    splits = load_datalist(blobs(tmp_path, counts=(6, 0, 0), size=32, second_object=1.0))
    assert all(len(fill(arrays(item)[1])) == 2 for item in splits["training"])
    for wrong in ({"spatial_dims": 4}, {"size": 8}, {"second_object": 2}, {"noise": -1}, {"counts": (1, -1, 1)}):
        with pytest.raises(ValueError, match="blobs need"):
            blobs(tmp_path / "wrong", **wrong)
    assert not (tmp_path / "wrong").exists()


def source_volume():
    return nibabel.load(Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz")


@pytest.mark.parametrize("axes", [2, 3])
def test_brain_parts_lie_where_they_were_cut(tmp_path, axes):
    datalist = brain_slices(tmp_path, spatial_dims=axes)
    report = check_datalist(datalist, allowed_labels=[1])
    assert report["faults"] == [] and report["warnings"] == []
    splits = load_datalist(datalist)
    counts = {2: (17, 4, 1), 3: (5, 1, 1)}[axes]
    assert tuple(len(splits[name]) for name in ("training", "validation", "test")) == counts
    volume = source_volume()
    whole, back = volume.get_fdata()[..., 0], np.linalg.inv(volume.affine)
    used = np.zeros(whole.shape, int)
    for item in (item for items in splits.values() for item in items):
        assert "subject" not in item
        image, label, affine = arrays(item)
        assert image.ndim == (axes if "test" not in item["image"].rsplit("/", 1)[1] else 3)
        index = np.indices((*image.shape, 1)[:3]).reshape(3, -1)
        place = np.rint((back @ affine @ np.vstack([index, np.ones(index.shape[1])]))[:3]).astype(int)
        assert np.array_equal(whole[tuple(place)], image.reshape(-1)), "every voxel lies where it was in the volume"
        used[tuple(place)] += 1
        shares = fill(label)
        assert len(shares) == 1 and 0.6 < shares[0] < 0.85, "one component, whose box is not filled"
    assert used.max() == 1 and used.sum() == 96 * 96 * 21, "the parts tile the crop: no voxel is used twice"


def test_brain_dimensions(tmp_path):
    with pytest.raises(ValueError, match="spatial_dims must be 2 for slices or 3 for blocks, got 4"):
        brain_slices(tmp_path, spatial_dims=4)


AFFINE = np.array([[0, 0, 3.0, 1], [-1, 0, 0, 2], [0, 2, 0, 3], [0, 0, 0, 1]])


@pytest.fixture
def samples(tmp_path):
    """A folder like volume3d of the samples: ten hippocampi with two parts, three tumours."""
    for number in range(10):
        image = np.random.default_rng(number).integers(0, 255, (6, 8, 5), dtype=np.uint8)
        label = np.zeros((6, 8, 5), np.uint8)
        label[1:4, 2:4, 1:4], label[1:4, 4:7, 2:4], label[2, 7, 2] = 1, 2, 2
        for folder, array in (("images", image), ("labels", label)):
            path = tmp_path / "volume3d" / "hippocampus" / folder / f"hippocampus_{number:03d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    for number in range(3):
        path = tmp_path / "volume3d" / "sarcoma_mr" / f"STS_{number}_MR_T1_image.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(50 + number).normal(size=(6, 8, 5)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, AFFINE), path)
        label = (np.indices(image.shape).sum(0) < 6 + number).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(label, AFFINE), str(path).replace("_image", "_mask"))
    return tmp_path / "volume3d"


def test_volumes_keep_values_and_grid(samples, tmp_path, monkeypatch):
    monkeypatch.setenv("LABELFX_DATA", str(tmp_path))
    datalist = mr_volumes(tmp_path / "a", counts=(5, 2, 3))
    assert check_datalist(datalist, spatial_dims=3, allowed_labels=[1])["faults"] == []
    splits = load_datalist(datalist)
    assert [len(splits[name]) for name in ("training", "validation", "test")] == [5, 2, 3]
    for item in (item for items in splits.values() for item in items):
        image, label, affine = arrays(item)
        original = nibabel.load(samples / "hippocampus" / "images" / f"{item['subject']}.nii.gz")
        assert np.array_equal(image, original.dataobj) and image.dtype == np.uint8
        np.testing.assert_allclose(affine, AFFINE)
        assert label.sum() == 3 * 2 * 3 + 3 * 3 * 2 + 1
    parts = load_datalist(mr_volumes(tmp_path / "b", counts=(5, 2, 3), merge=False, seed=1))
    assert np.unique(arrays(parts["training"][0])[1]).tolist() == [0, 1, 2]
    names = [[item["subject"] for item in s["test"]] for s in (splits, parts)]
    assert names[0] == names[1] and splits["training"] != parts["training"], "seed leaves the test volumes alone"
    tumours = load_datalist(mr_volumes(tmp_path / "c", collection="sarcoma_mr", source=samples, counts=(1, 1, 1)))
    assert {item["subject"] for items in tumours.values() for item in items} == {f"STS_{n}_MR_T1" for n in range(3)}


@pytest.mark.parametrize("axis", [0, 1, 2, None])
def test_slices_lie_where_they_were_cut(samples, tmp_path, axis):
    datalist = mr_volumes(
        tmp_path / "out", source=samples, counts=(4, 1, 1), spatial_dims=2, axis=axis, min_voxels=2, empty=0.5
    )
    report = check_datalist(datalist)
    assert report["faults"] == []
    splits = load_datalist(datalist)
    empty = 0
    for item in splits["training"]:
        image, label, affine = arrays(item)
        volume = nibabel.load(samples / "hippocampus" / "images" / f"{item['subject']}.nii.gz")
        index = np.indices((*image.shape, 1)).reshape(3, -1)
        place = np.linalg.inv(AFFINE) @ affine @ np.vstack([index, np.ones(index.shape[1])])
        values = np.asarray(volume.dataobj)[tuple(np.rint(place[:3]).astype(int))]
        assert image.ndim == 2 and np.array_equal(values, image.reshape(-1))
        assert label.sum() == 0 or label.sum() >= 2, "slices with a crumb of the object are left out"
        empty += not label.any()
    # object in the layers 1-3, 2-6 (7 holds one voxel), 1-3; half as many empty ones where there are some
    full, none = {0: (3, 2), 1: (5, 2), None: (5, 2), 2: (3, 2)}[axis]
    assert (len(splits["training"]) - empty, empty) == (4 * full, 4 * none)
    assert all(arrays(item)[0].ndim == 3 for item in splits["validation"] + splits["test"])


def test_mistakes(samples, tmp_path, monkeypatch):
    monkeypatch.delenv("LABELFX_DATA", raising=False)
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="no folder hippocampus of samples: set LABELFX_DATA, or pass source"):
        mr_volumes(out)
    with pytest.raises(ValueError, match="collection must be one of hippocampus, sarcoma_mr, got 'liver'"):
        mr_volumes(out, collection="liver")
    with pytest.raises(ValueError, match=r"hippocampus holds 10 volumes, \(16, 4, 8\) were asked for"):
        mr_volumes(out, source=samples)
    for wrong in ({"spatial_dims": 4}, {"axis": 3}, {"empty": -1}):
        with pytest.raises(ValueError, match="expected spatial_dims 2 or 3, axis 0, 1 or 2, and empty of at least 0"):
            mr_volumes(out, source=samples, **wrong)
    assert not out.exists()


@pytest.mark.sample_data
@pytest.mark.parametrize("collection", ["hippocampus", "sarcoma_mr"])
def test_real_volumes_and_slices(tmp_path, sample_data, collection):
    for axes in (2, 3):
        folder = tmp_path / str(axes)
        datalist = mr_volumes(folder, collection=collection, source=sample_data / "volume3d", spatial_dims=axes)
        assert check_datalist(datalist, allowed_labels=[1])["faults"] == []
        shares = [share for item in load_datalist(datalist)["training"] for share in fill(arrays(item)[1])]
        assert np.mean(shares) < 0.8


def test_a_relative_destination_is_found_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    item = load_datalist(blobs("a/b", counts=(1, 0, 0), size=32))["training"][0]
    assert all(
        Path(item[key]).is_file() and Path(item[key]).is_relative_to(tmp_path / "a") for key in ("image", "label")
    )
