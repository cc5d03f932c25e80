# SPDX-License-Identifier: Apache-2.0
"""The CT phantom: HU as stated, edges one voxel wide where they should be, slices that change slowly."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from scipy import ndimage

phantom = importlib.import_module("monai_labelfx.data.ct_phantom")
ct_phantom = phantom.ct_phantom


@pytest.mark.parametrize("seed", [None, 0, 7])
@pytest.mark.parametrize("depth", [None, 1, 6])
def test_hu_inside_and_mixtures_at_edges_only(depth, seed):
    image, labels = ct_phantom(96, depth=depth, seed=seed)
    assert image.shape == labels.shape == ((96, 96) if depth is None else (96, 96, depth))
    assert image.dtype == np.float32 and labels.dtype == np.uint8
    kernel = (3, 3, 1)[: labels.ndim]
    even = ndimage.grey_dilation(labels, kernel) == ndimage.grey_erosion(labels, kernel)
    for label, value in enumerate((*phantom.INSERTS, 40.0), 1):
        assert (labels == label).any() and (image[even & (labels == label)] == value).all()
    assert (image[even & (labels == 0)] == -1000).all()
    assert image.min() == -1000 and image.max() == 955
    assert 0.01 < ((image > -999) & (image < -101)).mean() < 0.06, "the edge of the body is soft, and thin"


def test_an_insert_has_the_area_and_the_edge_of_a_disc():
    image, labels = ct_phantom(256)
    share = (image - 40) / (955 - 40)  # of the bone insert in the body
    near = ndimage.binary_dilation(labels == 5, iterations=3)
    area = share[near].sum()
    assert area == pytest.approx(np.pi * (0.05 * 256) ** 2, rel=0.01)
    centre = [(np.indices(image.shape)[axis] * share)[near].sum() / area for axis in (0, 1)]
    x, y = np.indices(image.shape)
    distance = np.hypot(x - centre[0], y - centre[1])[near]
    np.testing.assert_allclose(share[near], np.clip(0.5 - (distance - 0.05 * 256), 0, 1), atol=0.02)


def test_slices_change_slowly_and_patients_differ():
    _, labels = ct_phantom(128, depth=12)
    steps = [(labels[..., z] != labels[..., z + 1]).mean() for z in range(11)]
    assert 0 < max(steps) < 0.04 and (labels[..., 0] != labels[..., -1]).any()
    areas = (labels == 1).sum(axis=(0, 1))
    assert areas.max() - areas.min() <= 0.15 * areas.mean(), "the radius of the inserts stays"
    first, second = (ct_phantom(64, seed=seed)[0] for seed in (1, 2))
    assert np.array_equal(first, ct_phantom(64, seed=1)[0]) and abs(first - second).mean() > 5
    assert np.array_equal(*(ct_phantom(64)[0] for _ in "ab"))


def test_own_inserts():
    image, labels = ct_phantom(128, inserts=(50.0, 60.0), body=0.0)
    assert [float(np.median(image[labels == n])) for n in (1, 2, 3)] == [50, 60, 0]
    many = ct_phantom(256, inserts=range(10, 22), seed=3)[1]
    assert all(ndimage.label(many == n)[1] == 1 for n in range(1, 13))
    kernel = np.ones((3, 3))
    for n in range(1, 13):  # no insert touches another: each has the body (or itself) around it
        assert set(np.unique(many[ndimage.binary_dilation(many == n, kernel)])) == {n, 13}


@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ({"size": 16}, "size of at least 32"),
        ({"depth": 0}, "depth of at least 1"),
        ({"inserts": ()}, "inserts must be 1 to 12"),
        ({"inserts": (float("nan"),)}, "finite HU"),
    ],
)
def test_bad_arguments(keywords, match):
    with pytest.raises(ValueError, match=match):
        ct_phantom(**keywords)
