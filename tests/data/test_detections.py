# SPDX-License-Identifier: Apache-2.0
"""Detections: exact round trip, world positions of the corners, and ROIs where 3D Slicer would draw them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_samples import ORIENTATIONS, affine_of
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_labelfx.data._reading import ImageFileError
from monai_labelfx.data.detections import load_detections, save_detections

LPS = np.array([-1.0, -1.0, 1.0])
SHEARED = affine_of("axial") @ np.array([[1, 0, 0, 0], [0, 1, 0.4, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def save_one(path, box, affine, **more) -> dict:
    save_detections(path, [box], labels=[1], scores=[0.5], affine=affine, **more)
    return json.loads(path.read_text())


def roi_corners(markup: dict) -> np.ndarray:
    """The corners (8, 3), LPS, of a Slicer ROI: center + axes (the columns of orientation) x half of size."""
    axes, half = np.array(markup["orientation"]).reshape(3, 3), np.array(markup["size"]) / 2
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T
    return np.array(markup["center"]) + (signs * half) @ axes.T


def as_set(points: np.ndarray) -> set[tuple[float, ...]]:
    return {tuple(point) for point in (np.round(points, 6) + 0.0).tolist()}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_round_trip_is_exact(tmp_path, dims, kind):
    low = torch.rand(20, dims, dtype=kind) * 100
    boxes = torch.cat([low, low + 0.1 + torch.rand(20, dims, dtype=kind) * 30], dim=1)
    labels, scores = torch.randint(-1, 5, (20,)), torch.rand(20, dtype=kind)
    affine, names = affine_of("oblique"), {1: "nodule", 3: "Gefäß"}
    path = save_detections(tmp_path / "a.mrk.json", boxes, labels=labels, scores=scores, affine=affine, names=names)
    found = load_detections(path)
    assert np.array_equal(found["boxes"], boxes.numpy()) and found["boxes"].dtype == np.float64
    assert np.array_equal(found["labels"], labels.numpy()) and found["labels"].dtype == np.int64
    assert np.array_equal(found["scores"], scores.numpy()) and np.array_equal(found["affine"], affine)
    assert found["names"] == names
    assert save_detections(tmp_path / "b.mrk.json", **found).read_bytes() == path.read_bytes()


def test_a_box_in_the_world_by_hand(tmp_path):
    """Voxels 2 and 3 of 0.7 mm: from 1.5 * 0.7 to 3.5 * 0.7 mm, in LPS along the image's own axes."""
    document = save_one(tmp_path / "a.json", [2, 0, 0, 4, 1, 1], np.diag([-0.7, -0.9, 2.5, 1]), names={1: "x"})
    (markup,) = document["markups"]
    assert markup["center"] == pytest.approx([2.5 * 0.7, 0, 0]) and markup["size"] == pytest.approx([1.4, 0.9, 2.5])
    assert markup["name"] == "x 0.50" and np.abs(markup["orientation"]).reshape(3, 3) == pytest.approx(np.eye(3))
    corners = np.array(document["labelfx"]["detections"][0]["corners_lps"])
    assert corners[0] == pytest.approx([1.05, -0.45, -1.25]) and corners[7] == pytest.approx([2.45, 0.45, 1.25])
    assert corners[1] == pytest.approx([2.45, -0.45, -1.25]) and corners[4] == pytest.approx([1.05, -0.45, 1.25])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("mirrored", [False, True])
def test_roi_is_the_box_in_every_orientation(tmp_path, orientation, mirrored):
    affine = affine_of(orientation) @ (np.diag([-1.0, 1, 1, 1]) if mirrored else np.eye(4))
    document = save_one(tmp_path / "a.json", [1, 2, 3, 5, 4, 8.5], affine)
    index = np.array([[x, y, z, 1] for x in (0.5, 4.5) for y in (1.5, 3.5) for z in (2.5, 8.0)])
    world = (index @ affine.T)[:, :3] * LPS
    (markup,), (detection,) = document["markups"], document["labelfx"]["detections"]
    assert as_set(np.array(detection["corners_lps"])) == as_set(world)
    axes = np.array(markup["orientation"]).reshape(3, 3)
    assert np.linalg.det(axes) == pytest.approx(1) and np.allclose(axes.T @ axes, np.eye(3))
    if orientation == "tilted":
        inside = np.abs((world - markup["center"]) @ axes) <= np.array(markup["size"]) / 2 + 1e-9
        assert inside.all() and np.allclose(np.abs(axes[:, 2]), [0, 0, 1])  # it lies along the slices
        assert markup["size"][1] > 2 * 0.9 + 0.1, "the tilt widens it along y"
    else:
        assert as_set(roi_corners(markup)) == as_set(world)


def test_sheared_affine_keeps_exact_corners_and_an_enclosing_roi(tmp_path):
    document = save_one(tmp_path / "a.json", [0, 0, 0, 4, 4, 4], SHEARED)
    (markup,), (detection,) = document["markups"], document["labelfx"]["detections"]
    world = np.array(detection["corners_lps"])
    assert np.allclose(world[2] - world[0], [0, 4 * 0.9, 0]) and np.allclose(world[4] - world[0], [0, 1.6 * 0.9, 10])
    assert np.allclose(sorted(markup["size"]), sorted([2.8, 5.6 * 0.9, 10]))
    assert np.allclose(roi_corners(markup).min(0), world.min(0))
    assert np.allclose(roi_corners(markup).max(0), world.max(0))


def test_two_axes_are_one_slice_thick(tmp_path):
    document = save_one(tmp_path / "a.json", [1, 2, 5, 4], affine_of("sagittal"))
    assert document["labelfx"]["spatial_dims"] == 2
    flat, thick = document["markups"][0], save_one(tmp_path / "b.json", [1, 2, 0, 5, 4, 1], affine_of("sagittal"))
    assert flat == thick["markups"][0] and flat["size"] == pytest.approx([4 * 0.7, 2 * 0.9, 2.5])


def test_no_boxes_keep_their_number_of_axes(tmp_path):
    for axes in (4, 6):
        path = save_detections(tmp_path / "a.json", np.zeros((0, axes)), labels=[], scores=[], affine=np.eye(4))
        found = load_detections(path)
        assert found["boxes"].shape == (0, axes) and found["labels"].dtype == np.int64 and found["names"] == {}
        assert json.loads(path.read_text())["markups"] == []


def test_the_file_has_what_the_markups_schema_wants(tmp_path):
    document = save_one(tmp_path / "a.json", [0, 0, 0, 1, 1, 1], np.eye(4))
    assert document["@schema"].endswith("/markups-schema-v1.0.3.json#")
    (markup,) = document["markups"]
    texts = {key: markup[key] for key in ("type", "coordinateSystem", "coordinateUnits", "roiType")}
    assert texts == {"type": "ROI", "coordinateSystem": "LPS", "coordinateUnits": "mm", "roiType": "Box"}
    assert [len(markup[key]) for key in ("center", "orientation", "size")] == [3, 9, 3]
    (point,) = markup["controlPoints"]
    assert point["position"] == markup["center"] and isinstance(point["id"], str)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": [[0, 0, 1, 1, 1]]}, r"\(N, 4\) or \(N, 6\), got \(1, 5\)"),
        ({"boxes": [0, 0, 1, 1]}, r"got \(4,\)"),
        ({"boxes": [[0, 0, 0, 1]]}, "box 0 is empty"),
        ({"boxes": [[5, 0, 4, 1]]}, "box 0 is empty"),
        ({"boxes": [[0, 0, np.nan, 1]]}, "finite"),
        ({"scores": [np.inf]}, "finite"),
        ({"scores": [0.5, 0.5]}, "1 boxes need as many labels and scores"),
        ({"labels": []}, "1 boxes need as many labels and scores"),
        ({"labels": [1.5]}, "labels must be whole numbers"),
        ({"labels": [True]}, "labels must be whole numbers"),
        ({"labels": [2**63]}, "labels must be whole numbers"),
        ({"affine": np.eye(3)}, "affine must be an invertible 4 x 4"),
        ({"affine": np.zeros((4, 4))}, "affine must be an invertible 4 x 4"),
        ({"names": {"1": "a"}}, "names must map"),
        ({"names": {1: 2}}, "names must map"),
    ],
)
def test_refused_arguments(tmp_path, change, message):
    good = {"boxes": [[0, 0, 1, 1]], "labels": [1], "scores": [0.5], "affine": np.eye(4)}
    with pytest.raises(ValueError, match=message):
        save_detections(tmp_path / "a.json", **(good | change))
    assert not (tmp_path / "a.json").exists()


def test_nothing_half_written_stays_and_the_old_file_survives(tmp_path, monkeypatch):
    save_one(tmp_path / "a.json", [0, 0, 1, 1], np.eye(4))
    before = (tmp_path / "a.json").read_bytes()
    write = Path.write_text

    def fail(path, text, **options):
        write(path, text[: len(text) // 2], **options)
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        save_one(tmp_path / "a.json", [0, 0, 2, 2], np.eye(4))
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a JSON file"),
        ("{", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ("\udcff", "not a JSON file"),
        ("[]", "no 'labelfx' entry"),
        ('{"markups": []}', "no 'labelfx' entry.*Slicer drops"),
        ('{"labelfx": 3}', "no 'labelfx' entry"),
        ('{"labelfx": {"version": 2}}', "version 2, this package reads 1"),
        ('{"labelfx": {"version": 1}}', "unusable 'labelfx' entry"),
    ],
)
def test_unusable_files(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ImageFileError, match=message) as caught:
        load_detections(tmp_path / "a.json")
    assert "\n" not in str(caught.value) and "a.json" in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"b\.json"):
        load_detections(tmp_path / "b.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["spatial_dims", "affine_ras", "names", "detections", "box", "label", "score"]


@settings(max_examples=150, deadline=None)
@given(key=st.sampled_from(KEYS), value=JSON)
def test_any_change_of_a_field_is_refused_or_a_good_box(tmp_path_factory, key, value):
    path = tmp_path_factory.mktemp("fuzz") / "a.json"
    document = save_one(path, [0, 0, 0, 1, 1, 1], np.eye(4))
    block = document["labelfx"]
    (block if key in block else block["detections"][0])[key] = value
    path.write_text(json.dumps(document))
    try:
        found = load_detections(path)
    except ImageFileError as error:
        assert "a.json" in str(error)
    else:
        count = len(found["labels"])
        assert found["boxes"].shape in ((count, 4), (count, 6)) and np.isfinite(found["boxes"]).all()
        assert found["scores"].shape == (count,) and found["affine"].shape == (4, 4)
