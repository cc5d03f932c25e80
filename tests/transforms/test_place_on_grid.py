# SPDX-License-Identifier: Apache-2.0
"""PlaceOnGridd: labels of another extent or direction, exactly on the voxels of the image."""

from __future__ import annotations

import itertools
import pickle
import time

import numpy as np
import pytest
import torch
from dicom_samples import ORIENTATIONS, affine_of
from monai.data import MetaTensor
from monai.transforms import Flip, Orientation, SpatialCrop

from monai_labelfx.transforms.place_on_grid import PlaceOnGridd


def image_of(orientation: str = "oblique", shape: tuple[int, ...] = (7, 6, 5)) -> MetaTensor:
    return MetaTensor(torch.rand(1, *shape), affine=torch.as_tensor(affine_of(orientation)))


def label_like(image: MetaTensor, seed: int = 0) -> MetaTensor:
    """Labels of no symmetry, with an empty margin of one voxel."""
    voxels = torch.zeros(image.shape, dtype=torch.int32)
    inner = tuple(slice(1, -1) for _ in image.shape[1:])
    values = np.random.default_rng(seed).integers(0, 4, voxels[(slice(None), *inner)].shape)
    voxels[(slice(None), *inner)] = torch.as_tensor(values, dtype=torch.int32)
    return MetaTensor(voxels, meta={"affine": image.affine.clone(), "filename_or_obj": "label.dcm", "own": "kept"})


def place(image, label):
    return PlaceOnGridd("label", "image")({"image": image, "label": label})["label"]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("axes", ["".join(axes) for axes in itertools.permutations("xyz")])
def test_every_flip_and_permutation_comes_back(orientation, axes):
    image = image_of(orientation)
    expected = label_like(image)
    order = ["xyz".index(letter) for letter in axes]
    for flips in itertools.product((False, True), repeat=3):
        matrix = np.eye(4)[:, [*order, 3]]
        voxels = expected.as_tensor().permute(0, *(axis + 1 for axis in order))
        for axis, flip in enumerate(flips):
            if flip:
                step = np.eye(4)
                step[axis, axis], step[axis, 3] = -1, voxels.shape[axis + 1] - 1
                matrix, voxels = matrix @ step, voxels.flip(axis + 1)
        label = MetaTensor(voxels.clone(), meta={**expected.meta, "affine": image.affine.numpy() @ matrix})
        before = label.affine.clone()
        placed = place(image, label)
        assert torch.equal(placed.as_tensor(), expected.as_tensor()) and placed.dtype == torch.int32
        assert torch.equal(placed.affine, image.affine) and torch.equal(label.affine, before)
        assert placed.meta["own"] == "kept" and isinstance(placed, MetaTensor)


def test_monais_own_orientation_and_crop_are_undone():
    image = image_of("coronal")
    expected = label_like(image)
    moved = Orientation("RAS", labels=None)(expected)
    assert moved.shape != expected.shape
    assert torch.equal(place(image, moved).as_tensor(), expected.as_tensor())
    cropped = SpatialCrop(roi_start=(1, 1, 1), roi_end=(6, 5, 4))(expected)
    assert torch.equal(place(image, Flip(1)(cropped)).as_tensor(), expected.as_tensor())


def test_larger_label_loses_only_its_empty_margin():
    image = image_of()
    label = label_like(image)
    small = SpatialCrop(roi_start=(1, 1, 1), roi_end=(6, 5, 4))(image)
    placed = place(small, label)
    assert torch.equal(placed.as_tensor(), label.as_tensor()[:, 1:6, 1:5, 1:4])
    label[0, 0, 0, 0] = label[0, 6, 5, 4] = 1
    with pytest.raises(ValueError, match=r"label 'label.dcm' has 2 labelled voxels outside of 'image'"):
        place(small, label)


def test_a_label_elsewhere_is_refused_even_when_it_only_touches():
    image = image_of()
    label = label_like(image)
    label.affine[:3, 3] += 5 * label.affine[:3, 2]
    with pytest.raises(ValueError, match="labelled voxels outside"):
        place(image, label)
    assert not place(image, label * 0).any()


@pytest.mark.parametrize("index", range(5))
def test_one_slice_finds_its_place_whatever_its_thickness(index):
    image = image_of("tilted")
    expected = label_like(image)
    flat = torch.zeros_like(expected.as_tensor())
    flat[..., index] = expected.as_tensor()[..., index]
    affine = image.affine.numpy().copy()
    affine[:3, 3] += affine[:3, 2] * index
    affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1]) * 7.0  # no slice of the tilted grid lies there
    for voxels in (flat[..., index], flat[..., index : index + 1]):
        label = MetaTensor(voxels.clone(), affine=affine)
        assert torch.equal(place(image, label).as_tensor(), flat)


def test_volume_of_one_labelled_slice_for_a_picture():
    picture = MetaTensor(torch.rand(1, 7, 6), affine=affine_of("sagittal"))
    volume = label_like(image_of("sagittal", (7, 6, 3)))
    volume.affine[:3, 3] -= volume.affine[:3, 2]
    placed = place(picture, volume)
    assert placed.shape == (1, 7, 6) and torch.equal(placed.as_tensor(), volume.as_tensor()[..., 1])
    volume[..., 2] = 1
    with pytest.raises(ValueError, match="42 labelled voxels outside"):
        place(picture, volume)


def test_pictures_are_placed_in_two_dimensions():
    picture = MetaTensor(torch.rand(1, 7, 6), affine=affine_of("axial"))
    label = label_like(picture)
    placed = place(picture, Flip(0)(SpatialCrop(roi_start=(1, 1), roi_end=(6, 5))(label)))
    assert torch.equal(placed.as_tensor(), label.as_tensor())


def test_what_fits_passes_as_the_same_object():
    image = image_of()
    label = label_like(image)
    assert place(image, label) is label
    label.affine[:3, 3] += 0.005 * label.affine[:3, 0]
    assert place(image, label) is label


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_without_a_position_everything_passes(scale):
    image = image_of()
    sizes = MetaTensor(torch.ones(1, 7, 6, 5), affine=np.diag([scale, scale, 3 * scale, 1.0]))
    assert place(image, sizes) is sizes and place(sizes, image) is image
    for other in (torch.ones(1, 7, 6, 5), np.ones((1, 7, 6, 5)), MetaTensor(torch.ones(1, 3, 3))):
        assert place(image, other) is other and place(other, image) is image
    broken = MetaTensor(torch.ones(1, 7, 6, 5), affine=np.full((4, 4), np.nan))
    assert place(image, broken) is broken


@pytest.mark.parametrize("fault", ["size", "angle", "half a voxel", "every second slice"])
def test_grids_that_do_not_fit_are_refused(fault):
    image = image_of("axial")
    label = label_like(image)
    if fault == "size":
        label.affine[:3, 0] *= 1.1
    elif fault == "angle":
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
        label.affine = torch.as_tensor(label.affine.numpy() @ turn)
    elif fault == "half a voxel":
        label.affine[:3, 3] += 0.5 * label.affine[:3, 1]
    else:
        label.affine[:3, 2] *= 2
    with pytest.raises(ValueError, match=r"label 'label.dcm' does not fit the grid of 'image': its voxels lie up to"):
        place(image, label)


def test_rounded_headers_still_fit_exactly():
    image = image_of("axial", (64, 64, 5))
    label = label_like(image)
    label.affine[:3, 0] *= 1 + 5e-4  # 0.03 voxels at the far end
    placed = place(image, label)
    assert placed is not label and torch.equal(placed.as_tensor(), label.as_tensor())
    assert torch.equal(placed.affine, image.affine)


def test_missing_none_and_several_keys():
    image = image_of()
    transform = pickle.loads(pickle.dumps(PlaceOnGridd(["label", "mask"], "image", allow_missing_keys=True)))
    item = {"image": image, "mask": None}
    assert transform(item) == item
    label = label_like(image)
    out = transform({"image": image, "label": Flip(0)(label), "mask": Flip(1)(label)})
    assert torch.equal(out["label"].as_tensor(), out["mask"].as_tensor())
    with pytest.raises(KeyError, match="no 'image'"):
        transform({"label": label})
    with pytest.raises(KeyError):
        PlaceOnGridd("label")({"image": image})


def test_channels_move_together():
    image = image_of()
    label = MetaTensor(torch.cat([label_like(image), label_like(image, 1)]), affine=image.affine.clone())
    assert torch.equal(place(image, Flip(2)(label)).as_tensor(), label.as_tensor())


def test_passing_costs_less_than_a_millisecond():
    image = image_of(shape=(128, 128, 32))
    item = {"image": image, "label": MetaTensor(torch.zeros(image.shape), affine=image.affine.clone())}
    transform = PlaceOnGridd("label")
    times = []
    for _ in range(20):
        start = time.perf_counter()
        transform(item)
        times.append(time.perf_counter() - start)
    assert min(times) < 1e-3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64, torch.float32, torch.float64, torch.bool])
def test_every_dtype_is_kept(dtype):
    image = image_of()
    expected = label_like(image).as_tensor().to(dtype)
    label = MetaTensor(expected.flip(2).clone(), meta={"affine": Flip(1)(label_like(image)).affine})
    placed = place(image, label)
    assert placed.dtype == dtype and torch.equal(placed.as_tensor(), expected)
