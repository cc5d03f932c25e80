# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import CacheDataset, MetaTensor

from monai_labelfx.transforms.grid_patch_labels import GridPatchLabels, GridPatchLabelsd
from tests.testers import containers

SHAPES = {2: (21, 16), 3: (9, 12, 8)}


def mask_of(spatial_dims: int, classes: int, seed: int = 0) -> np.ndarray:
    """Slabs of classes with some noise, so that shares of all sizes occur; 255 in a corner."""
    rng = np.random.default_rng(seed)
    shape = SHAPES[spatial_dims]
    slabs = np.arange(shape[0]).reshape(-1, *[1] * (spatial_dims - 1)) * classes // shape[0]
    mask = np.where(rng.random(shape) < 0.1, rng.integers(0, classes, shape), np.broadcast_to(slabs, shape))
    mask[tuple(slice(0, 5) for _ in shape)] = 255
    return mask[None].astype(np.float32)


def naive(mask: np.ndarray, patches, classes: int, rule) -> list[list[int]]:
    found = []
    ndim = mask.ndim - 1
    for row in patches.tolist():
        part = mask[0][tuple(slice(s, s + n) for s, n in zip(row[:ndim], row[ndim:], strict=True))]
        valid = int((part != 255).sum())
        counts = [int((part == k).sum()) for k in range(classes)]
        found.append([rule(count / valid, count) if valid else -1 for count in counts])
    return found


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("classes", [2, 4])
def test_labels_are_those_of_a_loop(spatial_dims, classes):
    mask = mask_of(spatial_dims, classes)
    one_sided = GridPatchLabels(5, classes=classes)(mask)
    expected = naive(mask, one_sided["patches"], classes, lambda share, count: int(share > 0.05))
    assert one_sided["patch_labels"].tolist() == expected
    assert one_sided["patches"].dtype == torch.int64 and one_sided["patch_labels"].dtype == torch.int8
    two_sided = GridPatchLabels(5, classes=classes, present=0.3, absent=0.05, present_volume=6, absent_volume=1)(mask)

    def rule(share, count):
        return 1 if share > 0.3 or count > 6 else 0 if share <= 0.05 and count <= 1 else -1

    expected = naive(mask, two_sided["patches"], classes, rule)
    assert two_sided["patch_labels"].tolist() == expected
    assert {-1, 0, 1} <= {label for row in expected[1:] for label in row}, "the case shows nothing"
    assert expected[0] == [-1] * classes, "the first patch is ignored as a whole"


def test_the_defaults_are_those_of_the_paper():
    mask = torch.zeros(1, 522, 775)
    mask[0, :200, :200] = 1
    found = GridPatchLabels()(mask)
    assert len(found["patches"]) == 117 and found["patches"][0].tolist() == [0, 0, 112, 112]
    assert found["patches"][-1].tolist() == [522 - 112, 775 - 112, 112, 112]
    assert set(map(tuple, found["patch_labels"].tolist())) == {(0, 1), (1, 1), (1, 0)}


def test_a_share_of_exactly_the_threshold_is_not_present():
    mask = torch.zeros(1, 10, 10)
    mask[0, 0, :5] = 1
    assert GridPatchLabels(10)(mask)["patch_labels"].tolist() == [[1, 0]]
    mask[0, 0, 5] = 1
    assert GridPatchLabels(10)(mask)["patch_labels"].tolist() == [[1, 1]]


def test_a_small_organ_in_a_large_block_needs_the_volume():
    mask = torch.zeros(1, 32, 32, 32)
    mask[0, :8, :8, :8] = 1  # 1.6 %
    share = GridPatchLabels(32)(mask)
    both = GridPatchLabels(32, present_volume=500)(mask)
    assert share["patch_labels"].tolist() == [[1, 0]] and both["patch_labels"].tolist() == [[1, 1]]


def test_millimetres_follow_the_affine():
    mask = torch.zeros(1, 40, 20, 10)
    mask[0, :4, :4, :2] = 1
    affine = torch.diag(torch.tensor([1.0, 2.0, 4.0, 1.0]))
    found = GridPatchLabels(20, unit="mm", present=1, present_volume=255)(MetaTensor(mask, affine=affine))
    assert found["patches"][0].tolist() == [0, 0, 0, 20, 10, 5]
    assert found["patches"][1].tolist() == [0, 0, 2, 20, 10, 5]
    assert found["patch_labels"][0].tolist() == [1, 1]  # 4 * 4 * 2 voxels of 8 mm^3 are 256
    higher = GridPatchLabels(20, unit="mm", present=1, present_volume=256)(MetaTensor(mask, affine=affine))
    assert higher["patch_labels"][0].tolist() == [1, 0]
    with pytest.raises(ValueError, match="unit='mm' needs an image with an affine"):
        GridPatchLabels(20, unit="mm")(mask)


def test_an_image_smaller_than_the_patch_is_one_patch_of_its_own_size():
    found = GridPatchLabels(8, stride=4)(torch.ones(1, 5, 10))
    assert found["patches"].tolist() == [[0, 0, 5, 8], [0, 2, 5, 8]]
    assert found["patch_labels"].tolist() == [[0, 1]] * 2


def test_numbers_of_objects_are_foreground_and_255_is_still_ignored():
    mask = torch.tensor([[[0, 3, 17, 255]]])
    assert GridPatchLabels(1, foreground=True)(mask)["patch_labels"].tolist() == [[1, 0], [0, 1], [0, 1], [-1, -1]]
    found = GridPatchLabels(1, foreground=True, ignore_index=None)(mask)
    assert found["patch_labels"].tolist()[-1] == [0, 1]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), axis=st.integers(0, 2))
def test_flips_move_patches_with_their_labels(seed, axis):
    mask = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (1, 6, 8, 4)))
    options = {"patch_size": (2, 4, 2), "stride": 2, "classes": 3, "present": 0.4, "absent": 0.2}
    found, turned = (GridPatchLabels(**options)(one) for one in (mask, mask.flip(1 + axis)))
    patches = found["patches"].clone()
    patches[:, axis] = mask.shape[1 + axis] - patches[:, axis] - patches[:, 3 + axis]
    labels = {tuple(p): tuple(v) for p, v in zip(patches.tolist(), found["patch_labels"].tolist(), strict=True)}
    turned_labels = dict(
        zip(map(tuple, turned["patches"].tolist()), map(tuple, turned["patch_labels"].tolist()), strict=True)
    )
    assert labels == turned_labels


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_containers_twin_pickle_and_cache(spatial_dims):
    mask = mask_of(spatial_dims, 2)
    expected = GridPatchLabels(4)(mask)
    for data in containers(mask).values():
        before = copy.deepcopy(data)
        found = GridPatchLabels(4)(data)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert np.array_equal(np.asarray(before), np.asarray(data))
    twin = pickle.loads(pickle.dumps(GridPatchLabelsd(patch_size=4, patches_key="p", labels_key="q")))
    item = CacheDataset([{"label": mask, "id": 7}], twin, progress=False)[0]
    assert set(item) == {"label", "id", "p", "q"}
    assert torch.equal(item["p"], expected["patches"]) and torch.equal(item["q"], expected["patch_labels"])
    assert GridPatchLabelsd.backend == GridPatchLabels.backend


def test_the_twin_leaves_what_people_have_ticked():
    item = {"label": torch.zeros(1, 4, 4), "patches": "ticked", "patch_labels": "by hand"}
    assert GridPatchLabelsd()(item) == item
    assert GridPatchLabelsd()({"patches": 1, "patch_labels": 2}) == {"patches": 1, "patch_labels": 2}
    with pytest.raises(ValueError, match=r"has 'patches' 'a.csv' and no 'patch_labels': put ReadPatchLabelsd before"):
        GridPatchLabelsd()({"label": torch.zeros(1, 4, 4), "patches": "a.csv"})
    with pytest.raises(KeyError):
        GridPatchLabelsd()({"image": 1})
    assert GridPatchLabelsd(allow_missing_keys=True)({"image": 1}) == {"image": 1}
    with pytest.raises(ValueError, match="keys must be one key, that of the mask"):
        GridPatchLabelsd(["label", "other"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "cm"}, "unit must be one of 'voxels', 'mm', got 'cm'"),
        ({"classes": 1}, "classes must be the number of classes with the background, 2 or above, got 1"),
        ({"classes": 3, "foreground": True}, "foreground=True makes the classes 0 and 1, so classes must be 2, got 3"),
        ({"present": 0.1, "absent": 0.2}, "0 <= absent <= present <= 1, got 0.2 and 0.1"),
        ({"present": 1.1}, "0 <= absent <= present <= 1"),
        ({"present_volume": 5, "absent_volume": 6}, "absent_volume <= present_volume, got 6 and 5"),
        ({"absent_volume": -1}, "0 <= absent_volume"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GridPatchLabels(8, **options)


def test_bad_masks_are_named():
    named = MetaTensor(torch.tensor([[[0, 1, 2, 7, 7, 9, 10, 11, 12]]]), meta={"filename_or_obj": "a.bmp"})
    with pytest.raises(
        ValueError, match=r"mask of image 'a.bmp' must hold classes 0 to 1, got 2, 7, 9, 10, 11, \.\.\."
    ):
        GridPatchLabels(2)(named)
    with pytest.raises(ValueError, match=r"the mask of the image must be \(1, \*spatial\), got shape \(3, 4, 4\)"):
        GridPatchLabels(2)(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="the mask of the image must hold whole numbers"):
        GridPatchLabels(2)(torch.full((1, 4, 4), 0.5))
    for mask in (torch.tensor([[[0, 255]]]), torch.tensor([[[255]]])):
        with pytest.raises(
            ValueError, match="holds nothing but 0 and 255: with ignore_index=None 255 is the foreground"
        ):
            GridPatchLabels(1, foreground=True)(mask)
        assert GridPatchLabels(1, foreground=True, ignore_index=None)(mask)["patch_labels"].tolist()[-1] == [0, 1]
        assert GridPatchLabels(1)(mask)["patch_labels"].tolist()[-1] == [-1, -1]
    with pytest.raises(ValueError, match=r"got -1"):
        GridPatchLabels(2)(torch.full((1, 4, 4), -1.0))
