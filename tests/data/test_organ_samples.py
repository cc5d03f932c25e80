# SPDX-License-Identifier: Apache-2.0
"""Volumes with an organ: synthetic ones, and those of the folder of samples."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_samples import save, series_slices
from monai.transforms import LoadImage
from scipy import ndimage

from monai_labelfx.data import check_datalist, load_datalist
from monai_labelfx.data.organ_samples import organ_blocks, organ_volume, synthetic_organs

SHAPES = {2: ((96, 96), (2.0, 2.0)), 3: ((64, 64, 32), (2.0, 2.0, 4.0))}


@pytest.mark.parametrize("ndim", [2, 3])
def test_organs_differ_by_texture_and_loops_are_as_bright(ndim):
    shape, spacing = SHAPES[ndim]
    loops = []
    for seed in range(3):
        image, label = organ_volume(np.random.default_rng(seed), shape, spacing, 2)
        assert image.dtype == np.int16 and label.dtype == np.uint8 and np.unique(label).tolist() == [0, 1, 2]
        grainy, even = (image[ndimage.binary_erosion(label == n, iterations=2)] for n in (1, 2))
        assert 85 < grainy.mean() < 135 < 150 < even.mean() < 180 and grainy.std() > 1.3 * even.std()
        assert image[0].max() < -900, "air around the body"
        blurred = ndimage.gaussian_filter(image.astype(float), 1)
        alike = (blurred > 85) & (blurred < 135) & ~ndimage.binary_dilation(label > 0, iterations=2)
        loops.append(int(ndimage.binary_opening(alike).sum()))
        if ndim == 3:
            blocks = np.array([(label[..., z : z + 4] == 1).mean() for z in range(0, 32, 4)])
            assert (blocks == 0).any() and (blocks > 0.05).any(), "some blocks have the organ, others not"
        one, alone = organ_volume(np.random.default_rng(seed), shape, spacing, 1)
        assert ((label == 1) == alone).all() and (one[label == 1] == image[label == 1]).all()
    assert sum(loops) > 0, "something else is as bright as the organ"


@pytest.mark.parametrize("ndim", [2, 3])
def test_files_seeds_and_counts(tmp_path, ndim):
    def build(name: str, **keywords):
        size = (24, 20, 16)[:ndim]
        path = synthetic_organs(tmp_path / name, **{"counts": (2, 1, 1), "size": size, "spatial_dims": ndim} | keywords)
        return path, {
            split: [Path(item["image"]).read_bytes() for item in items] for split, items in load_datalist(path).items()
        }

    path, first = build("a", spacing=(1.5, 1.5, 5.0)[:ndim])
    report = check_datalist(path, spatial_dims=ndim, allowed_labels=[1])
    assert report["faults"] == [] == report["warnings"]
    assert report["rows"][0]["spacing"] == pytest.approx([1.5, 1.5, 5.0][:ndim])
    items = [item for part in load_datalist(path).values() for item in part]
    assert len({item["patient"] for item in items}) == len(items) == 4
    assert build("b", spacing=(1.5, 1.5, 5.0)[:ndim])[1] == first != build("c")[1]
    default, other, test = build("d")[1], build("e", seed=1)[1], build("f", test_seed=1, counts=(1, 0, 2))[1]
    assert other["test"] == default["test"] and other["training"] != default["training"]
    assert test["training"][0] == default["training"][0] and test["test"][0] != default["test"][0]


def test_a_synthetic_volume_as_dicom(tmp_path):
    item = load_datalist(synthetic_organs(tmp_path / "a", counts=(1, 0, 0), size=(24, 20, 16)))["training"][0]
    values = np.asarray(nibabel.load(item["image"]).dataobj)
    save(tmp_path / "series", series_slices(values))
    read = LoadImage(reader="monai_labelfx.data.AutoReader", image_only=True)(tmp_path / "series")
    assert sorted(read.shape) == sorted(values.shape)
    assert float(read.mean()) == pytest.approx(float(values.mean()), abs=1)


def test_synthetic_organs_refuse_bad_arguments(tmp_path):
    for match, keywords in (
        ("spatial_dims 2 or 3 and 1 to 2 organs, got 4 and 1", {"spatial_dims": 4}),
        ("got 3 and 3", {"organs": 3}),
        ("expected 3 sizes of at least 16 and 3 spacings above 0, got .8, 64, 32.", {"size": (8, 64, 32)}),
        (r"3 spacings above 0, got .* and \(2, 2\)", {"spacing": (2, 2)}),
        (r"and \(1, 1, 0\)", {"spacing": (1, 1, 0)}),
        ("counts must be three numbers of volumes of at least 0", {"counts": (1, -1, 0)}),
    ):
        with pytest.raises(ValueError, match=match):
            synthetic_organs(tmp_path / "out", **keywords)
    assert not (tmp_path / "out").exists()


def test_organ_blocks_merge_the_parts_of_an_organ(tmp_path, monkeypatch):
    for folder in ("images", "labels"):
        (tmp_path / "volume3d" / "hippocampus" / folder).mkdir(parents=True)
    for number in range(5):
        label = np.zeros((8, 9, 10), np.uint8)
        label[2:4], label[4:6] = 1, 2
        for folder, array in (("images", label * 50.0 + number), ("labels", label)):
            path = tmp_path / "volume3d" / "hippocampus" / folder / f"hippocampus_{number}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    monkeypatch.setenv("LABELFX_DATA", str(tmp_path))
    path = organ_blocks(tmp_path / "out", counts=(2, 1, 2))
    splits = load_datalist(path)
    assert [len(items) for items in splits.values()] == [2, 1, 2]
    assert json.loads(path.read_text())["licence"] == "CC BY-SA 4.0"
    assert len({item["patient"] for items in splits.values() for item in items}) == 5
    for items in splits.values():
        for item in items:
            assert set(item) == {"image", "label", "patient"}
            assert np.unique(np.asarray(nibabel.load(item["label"]).dataobj)).tolist() == [0, 1]
    monkeypatch.delenv("LABELFX_DATA")
    with pytest.raises(FileNotFoundError, match="set LABELFX_DATA, or pass source"):
        organ_blocks(tmp_path / "none")
    with pytest.raises(ValueError, match="collection must be one of hippocampus, sarcoma_mr, got 'spleen'"):
        organ_blocks(tmp_path / "none", collection="spleen")


@pytest.mark.sample_data
@pytest.mark.parametrize(("collection", "numbers"), [("hippocampus", [16, 4, 8]), ("sarcoma_mr", [3, 1, 2])])
def test_real_organs_lie_in_some_blocks(sample_data, tmp_path, collection, numbers):
    path = organ_blocks(tmp_path, collection=collection)
    splits = load_datalist(path)
    assert [len(items) for items in splits.values()] == numbers
    assert check_datalist(path, spatial_dims=3, allowed_labels=[1])["faults"] == []
    label = np.asarray(nibabel.load(splits["training"][0]["label"]).dataobj)
    starts = [range(0, size - 7, 8) for size in label.shape]
    parts = [label[x : x + 8, y : y + 8, z : z + 8].mean() for x in starts[0] for y in starts[1] for z in starts[2]]
    assert min(parts) < 0.005 and max(parts) > 0.05
