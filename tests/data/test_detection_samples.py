# SPDX-License-Identifier: Apache-2.0
"""The synthetic data set for detectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from monai.transforms import LoadImage
from scipy import ndimage

from monai_labelfx.data import check_datalist, load_datalist
from monai_labelfx.data.class_names import load_class_names
from monai_labelfx.data.detection_samples import shape_image, solids_and_shells
from monai_labelfx.ops.box_affine import masks_to_boxes

SHAPES = {2: (128, 128), 3: (48, 48, 48)}


def drawn(ndim: int, number: int, **keywords):
    options = {"empty": 0.0, "background": 0.0, "noise": 0.0} | keywords
    for index in range(number):
        yield shape_image(np.random.default_rng([5, index]), SHAPES[ndim], **options)


@pytest.mark.parametrize("ndim", [2, 3])
def test_objects_differ_in_what_is_inside(ndim):
    seen = {0: [], 1: []}
    for image, label, classes in drawn(ndim, 60 if ndim == 2 else 12):
        assert image.dtype == np.float32 and label.dtype == np.uint8 and label.max() == len(classes) > 0
        holes = [
            ndimage.binary_fill_holes(label == number + 1) & (label != number + 1) for number in range(len(classes))
        ]
        for number, hollow in enumerate(classes):
            mask = label == number + 1
            assert ndimage.label(mask)[1] == 1
            assert holes[number].any() == bool(hollow)
            assert not label[holes[number]].any()  # nothing lies in a hollow object
            seen[hollow].append((mask.sum() + holes[number].sum(), image[mask].mean()))
            if hollow:
                assert image[holes[number]].mean() < 0.6 * image[mask].mean()
    for volumes in (np.array(seen[0]), np.array(seen[1])):  # neither size nor brightness tells the class
        assert len(volumes) > 8 and volumes[:, 0].max() > 4 * volumes[:, 0].min()
    ratio = np.mean(seen[0], axis=0) / np.mean(seen[1], axis=0)
    assert (0.4 < ratio).all() and (ratio < 2.5).all()


@pytest.mark.parametrize("ndim", [2, 3])
def test_some_touch_and_some_images_are_empty(ndim):
    empty = [len(classes) for *_, classes in drawn(ndim, 40, empty=0.5)]
    assert 10 < empty.count(0) < 30
    dilated = 0
    for _, label, classes in drawn(ndim, 16):
        for number in range(1, len(classes) + 1):
            near = ndimage.binary_dilation(label == number) & (label != number) & (label > 0)
            dilated += bool(near.any())
    assert dilated > 0


@pytest.mark.parametrize(("ndim", "pictures"), [(2, False), (2, True), (3, False)])
def test_files_boxes_and_datalist(tmp_path, ndim, pictures):
    import torch

    path = solids_and_shells(tmp_path / "a", spatial_dims=ndim, counts=(5, 2, 3), pictures=pictures, empty=0.3)
    report = check_datalist(path, spatial_dims=ndim)
    assert report["faults"] == [] and load_class_names(path) == ["solid", "shell"]
    splits = load_datalist(path)
    assert {name: len(items) for name, items in splits.items()} == {"training": 5, "validation": 2, "test": 3}
    boxes = 0
    for item in (item for items in splits.values() for item in items):
        image, label = (LoadImage(image_only=True)(item[key]).as_subclass(torch.Tensor) for key in ("image", "label"))
        assert image.shape == label.shape == SHAPES[ndim] and Path(item["image"]).suffix == (
            ".png" if pictures else ".gz"
        )
        numbers = torch.arange(1, len(item["box"]) + 1).reshape(-1, *(1,) * ndim)
        assert masks_to_boxes(label == numbers).tolist() == item["box"] and len(item["box_label"]) == len(item["box"])
        boxes += len(item["box"])
        if item["box"]:
            assert image[label > 0].double().mean() > image[label == 0].double().mean()
    assert boxes > 10


def test_seeds_and_counts(tmp_path):
    def items(name: str, **keywords) -> dict:
        splits = load_datalist(solids_and_shells(tmp_path / name, **{"counts": (2, 1, 2), **keywords}))
        return {
            split: [(item["box"], item["box_label"], Path(item["image"]).read_bytes()) for item in part]
            for split, part in splits.items()
        }

    first = items("a")
    assert items("b") == first
    more = items("c", counts=(3, 1, 2))
    assert more["training"][:2] == first["training"] and more["test"] == first["test"]
    other = items("d", seed=1)
    assert other["test"] == first["test"] and other["training"] != first["training"] != other["validation"]
    assert items("e", test_seed=1)["test"] != first["test"]
    small = load_datalist(solids_and_shells(tmp_path / "f", counts=(1, 0, 0), size=64))
    assert list(small) == ["training"]


def test_bad_arguments(tmp_path):
    for match, keywords in (
        ("spatial_dims must be 2 or 3", {"spatial_dims": 4}),
        ("2 for pictures, got 3", {"spatial_dims": 3, "pictures": True}),
        ("size must be at least 64 voxels, got 10", {"size": 10}),
        ("size must be at least 24 voxels, got 10", {"size": 10, "spatial_dims": 3}),
        ("a share empty", {"empty": 1.5}),
        ("background and noise of at least 0", {"noise": -1}),
        ("three counts", {"counts": (1, 2)}),
    ):
        with pytest.raises(ValueError, match=match):
            solids_and_shells(tmp_path / "out", **keywords)
    assert not (tmp_path / "out").exists()


def test_a_relative_destination_is_found_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    item = load_datalist(solids_and_shells("a/b", counts=(1, 0, 0), size=64))["training"][0]
    image = Path(item["image"])
    assert image == tmp_path / "a" / "b" / "image" / "training_000.nii.gz" and image.is_file()
