# SPDX-License-Identifier: Apache-2.0
"""The pixels inside polygons, beside a point-in-polygon test of each pixel and the code of COCO."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_labelfx.data.polygon_masks import polygons_to_mask
from monai_labelfx.ops.run_length import decode_run_lengths

# pycocotools 2.0.11: mask.merge(mask.frPyObjects(polygons, 40, 60)), 40 high and 60 wide
CURVE = [3.2, 5.1, 20.7, 1.4, 33.5, 9.8, 52.3, 7.7, 55.9, 21.2, 41.0, 36.6, 30.1, 24.9, 12.4, 33.3, 8.8, 18.0]
GOLDEN = {
    "one": (
        [CURVE],
        "m31W12N2M4M2N2N4L4K5L4L00O10O0100O10O11N101N2O0O2O1N101N2O010000O2N1N2O1O1O1O1O00O1O1O1O001O1O1O1O1O1O5K5K4L^4",
    ),
    "two": (
        [[3.2, 5.1, 20.7, 1.4, 18.5, 19.8], [40.5, 20.5, 55.5, 20.5, 55.5, 38.0, 40.5, 38.0]],
        "U51W11N2O1O1O1O1N2O1O1O1O1N2O1O1OH7Ili0>nUO000000000000000000000000000[4",
    ),
}


def naive(polygon: list[float], shape: tuple[int, int]) -> np.ndarray:
    """A ray from the centre of each pixel towards higher y crosses the outline an odd number of times."""
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    result = np.zeros(shape, bool)
    for i, j in np.ndindex(*shape):
        x, y = i + 0.5, j + 0.5
        for side in zip(points.tolist(), np.roll(points, -1, axis=0).tolist(), strict=True):
            (x0, y0), (x1, y1) = sorted(side)
            if x0 < x <= x1 and y0 + (x - x0) / (x1 - x0) * (y1 - y0) < y:
                result[i, j] ^= True
    return result


def random_polygon(generator: np.random.Generator, shape: tuple[int, int], decimals: int = 9) -> list[float]:
    points = generator.uniform(-0.3, 1.3, (generator.integers(3, 9), 2)) * shape
    return points.round(decimals).ravel().tolist()


@pytest.mark.parametrize("decimals", [9, 1, 0])
def test_each_pixel_by_itself(decimals):
    generator = np.random.default_rng(decimals)
    for _ in range(20):
        polygon = random_polygon(generator, (17, 11), decimals)
        assert np.array_equal(polygons_to_mask([polygon], (17, 11)), naive(polygon, (17, 11)))


@pytest.mark.parametrize("name", GOLDEN)
def test_as_the_code_of_coco_has_it(name):
    polygons, counts = GOLDEN[name]
    wanted = decode_run_lengths([{"size": [40, 60], "counts": counts}])[0].numpy()
    found = polygons_to_mask(polygons, (60, 40))
    assert found.shape == (60, 40) and found.dtype == bool
    assert (found & wanted).sum() / (found | wanted).sum() > 0.97


def test_boxes_are_exact_and_x_is_first():
    mask = polygons_to_mask([[11, 4, 13, 4, 13, 9, 11, 9]], (20, 30))
    assert mask.sum() == 10 and mask[11:13, 4:9].all()
    clockwise = polygons_to_mask([[11, 9, 13, 9, 13, 4, 11, 4]], (20, 30))
    assert np.array_equal(mask, clockwise)


def test_neighbours_share_no_pixel_and_leave_none_out():
    """Fans of triangles around one point, with corners and sides on the centres of pixels too."""
    generator = np.random.default_rng(0)
    for step in (0.5, 0.25, 1e-9):
        corners = [[0, 0], [9, 0], [12, 0], [12, 5.5], [12, 8], [4, 8], [0, 8], [0, 2.5]]
        centre = (generator.uniform(2, 6, 2) / step).round() * step
        pairs = zip(corners, corners[1:] + corners[:1], strict=True)
        masks = [polygons_to_mask([[*first, *second, *centre]], (12, 8)) for first, second in pairs]
        assert (np.sum(masks, axis=0) == 1).all()


def test_rings_are_united_and_a_crossing_outline_has_a_hole():
    left, right = [1, 1, 5, 1, 5, 5, 1, 5], [3, 8, 8, 0, 8, 8]
    both = polygons_to_mask([left, right], (10, 8))
    assert np.array_equal(both, polygons_to_mask([left], (10, 8)) | polygons_to_mask([right], (10, 8)))
    assert both.sum() > max(polygons_to_mask([ring], (10, 8)).sum() for ring in (left, right))
    twice = polygons_to_mask([[*left, 1, 1, 5, 1, 5, 5, 1, 5]], (10, 8))
    assert not twice.any()
    angles = np.pi * (0.5 + 0.8 * np.arange(5))
    star = (20 + 18 * np.stack([np.cos(angles), np.sin(angles)], 1)).ravel().tolist()
    mask = polygons_to_mask([star], (40, 40))
    assert not mask[20, 20] and mask[20, 33]


def test_moved_turned_and_cut_off():
    generator = np.random.default_rng(3)
    for _ in range(10):
        polygon = random_polygon(generator, (16, 9))
        mask = polygons_to_mask([polygon], (16, 9))
        points = np.reshape(polygon, (-1, 2))
        assert np.array_equal(polygons_to_mask([points[:, ::-1].ravel().tolist()], (9, 16)), mask.T)
        assert np.array_equal(polygons_to_mask([points[::-1].ravel().tolist()], (16, 9)), mask)
        moved = polygons_to_mask([(points + [40, 25]).ravel().tolist()], (90, 60))
        assert np.array_equal(moved[40:56, 25:34], mask)
        for offset in ([100, 0], [-100, 0], [0, 100], [0, -100]):
            assert not polygons_to_mask([(points + offset).ravel().tolist()], (16, 9)).any()


def test_the_area_of_large_polygons():
    generator = np.random.default_rng(5)
    for _ in range(10):
        (x0, y0), (x1, y1), (x2, y2) = points = generator.uniform(0, 400, (3, 2))
        area = abs((x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)) / 2
        assert abs(polygons_to_mask([points.ravel().tolist()], (400, 400)).sum() - area) < 25


@pytest.mark.parametrize(
    "polygon",
    [
        [],
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5, 6, 7],
        [1, 2, 3, 4, 5, float("nan")],
        [1, 2, 3, 4, 5, 1e300],
        [1, 2, 3, 4, 5, 10**400],
        [1, 2, 3, 4, 5, "6"],
        [1, 2, 3, 4, 5, True],
        [1, 2, 3, 4, 5, None],
        [[1, 2], [3, 4], [5, 6]],
        [[1, 2], [3], [5, 6]],
        "abcdef",
        7,
        None,
        {"x": 1},
    ],
)
def test_what_is_no_outline(polygon):
    with pytest.raises(ValueError, match=r"^polygons\[1\] must be .* three points or more, finite numbers, found") as e:
        polygons_to_mask([CURVE, polygon], (9, 9))
    assert "\n" not in str(e.value) and len(str(e.value)) < 250


@pytest.mark.parametrize("shape", [(9,), (9, 0), (9.0, 9.0), (9, 9, 9)])
def test_what_is_no_shape(shape):
    with pytest.raises(ValueError, match="shape must be two whole numbers above 0"):
        polygons_to_mask([CURVE], shape)


def test_no_polygon_and_one_between_the_centres():
    assert not polygons_to_mask([], (3, 4)).any()
    assert not polygons_to_mask([[0.6, 0.6, 1.4, 0.6, 1.0, 1.4], [2, 2, 2, 2, 2, 2]], (3, 4)).any()


@pytest.mark.sample_data
def test_lungs_as_their_mask_pictures_have_them(sample_data):
    folder = Path(sample_data) / "cxr"
    document = json.loads((folder / "lungs_instances.coco.json").read_text())
    images = {image["id"]: image for image in document["images"]}
    for annotation in document["annotations"]:
        image = images[annotation["image_id"]]
        picture = np.array(Image.open(folder / "lungs" / "masks" / Path(image["file_name"]).name)).T
        wanted = picture == annotation["category_id"]
        found = polygons_to_mask(annotation["segmentation"], (image["width"], image["height"]))
        assert (found & wanted).sum() / (found | wanted).sum() > 0.99
