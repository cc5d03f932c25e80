# SPDX-License-Identifier: Apache-2.0
"""Box files: both formats by hand, mm through affines against the detections writer, and every kind of bad input."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from dicom_samples import affine_of
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_labelfx.data import AutoReader
from monai_labelfx.data._reading import ImageFileError
from monai_labelfx.data.box_files import load_boxes
from monai_labelfx.data.detections import save_detections

FLIPPED = np.array([[0, -2.0, 0, 30], [0.5, 0, 0, -4], [0, 0, 3, 7], [0, 0, 0, 1]])  # axes swapped, one turned round
OBLIQUE = affine_of("oblique")


def coco() -> dict:
    return {
        "images": [
            {"id": 7, "file_name": "images/a.png", "width": 64, "height": 48},
            {"id": "b", "file_name": "images/b.png", "width": 10, "height": 20},
        ],
        "categories": [{"id": 1, "name": "right_lung"}, {"id": 90, "name": "left_lung"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [10, 20.5, 5, 4], "area": 20, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 64, 48]},
        ],
    }


def own(*boxes, dims: int = 3, affine=None, **image) -> dict:
    """A file with one image, whose boxes are (voxels or mm) entries."""
    entry = {"file_name": "case.nii.gz", "boxes": [{"label": 0} | box for box in boxes]} | image
    if affine is not None:
        entry["affine_ras"] = np.asarray(affine).tolist()
    return {"labelfx": {"version": 1, "spatial_dims": dims, "names": {"0": "prostate"}, "images": [entry]}}


def load(folder: Path, document) -> dict:
    path = folder / "boxes.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return load_boxes(path)


def test_coco_boxes_keep_x_first(tmp_path):
    found = load(tmp_path, coco())
    assert list(found) == ["images/a.png", "images/b.png"]
    first, second = found.values()
    assert first["boxes"].tolist() == [[10, 20.5, 15, 24.5], [0, 0, 64, 48]] and first["boxes"].dtype == np.float64
    assert first["labels"].tolist() == [90, 1] and first["labels"].dtype == np.int64
    assert first["names"] == second["names"] == {1: "right_lung", 90: "left_lung"}
    assert second["boxes"].shape == (0, 4) and second["labels"].shape == (0,), "looked at, and nothing found"


def test_a_coco_box_frames_the_same_pixels_in_the_loaded_picture(tmp_path):
    """A bright rectangle in a picture of unequal sides, its bbox as an annotation tool writes it."""
    from PIL import Image

    rows = np.zeros((20, 30), np.uint8)  # height, width
    rows[3:5, 10:22] = 200
    Image.fromarray(rows).save(tmp_path / "a.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 30, "height": 20}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [10, 3, 12, 2]}],
    }
    x0, y0, x1, y1 = load(tmp_path, document)["a.png"]["boxes"][0].astype(int)
    picture, _ = AutoReader().get_data(AutoReader().read(str(tmp_path / "a.png")))
    assert (picture[x0:x1, y0:y1] == 200).all() and (picture == 200).sum() == (x1 - x0) * (y1 - y0)


def test_voxel_boxes_of_both_numbers_of_axes(tmp_path):
    found = load(tmp_path, own({"box": [1, 2, 3, 4, 5.5, 6]}, shape=[9, 9, 9]))["case.nii.gz"]
    assert found["boxes"].tolist() == [[1, 2, 3, 4, 5.5, 6]] and found["names"] == {0: "prostate"}
    found = load(tmp_path, own({"box": [1, 2, 4, 5], "label": 0}, dims=2))["case.nii.gz"]
    assert found["boxes"].tolist() == [[1, 2, 4, 5]]
    assert load(tmp_path, own())["case.nii.gz"]["boxes"].shape == (0, 6)


def test_mm_by_hand(tmp_path):
    """Voxels of 2 mm, the centre of voxel 0 at 100 mm: voxels 3 and 4 reach from 105 to 109 mm."""
    affine = np.diag([2.0, 1, 1, 1])
    affine[0, 3] = 100
    found = load(tmp_path, own({"box_ras": [105, -0.5, 6.5, 109, 0.5, 7.5]}, affine=affine))
    assert found["case.nii.gz"]["boxes"].tolist() == [[3, 0, 7, 5, 1, 8]]


@pytest.mark.parametrize("affine", [FLIPPED, affine_of("axial"), affine_of("sagittal"), affine_of("coronal")])
def test_boxes_in_mm_come_back_as_the_voxels_they_are_made_of(tmp_path, affine):
    """The corners of random boxes through the affine, sorted per axis of the patient."""
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.integers(0, 20, (5, 2, 3)), axis=1) + [[0, 0, 0], [1, 1, 1]]
    entries = []
    for box in boxes:
        ends = (box - 0.5) @ affine[:3, :3].T + affine[:3, 3]
        entries.append({"box_ras": [*ends.min(0).tolist(), *ends.max(0).tolist()]})
    found = load(tmp_path, own(*entries, affine=affine, shape=[30, 30, 30]))["case.nii.gz"]
    np.testing.assert_array_equal(found["boxes"], boxes.reshape(5, 6))


@pytest.mark.parametrize("orientation", ["axial", "coronal", "oblique", "tilted"])
@pytest.mark.parametrize("dims", [2, 3])
def test_corners_that_save_detections_writes_are_exact_for_any_affine(tmp_path, orientation, dims):
    affine = affine_of(orientation)
    box = [2, 3, 1, 7, 4, 9][: 2 * dims] if dims == 3 else [2, 3, 7, 4]
    save_detections(tmp_path / "a.json", [box], labels=[0], scores=[1.0], affine=affine)
    (entry,) = json.loads((tmp_path / "a.json").read_text())["labelfx"]["detections"]
    del entry["box"]
    entry["corners_lps"] = entry["corners_lps"][::-1]
    found = load(tmp_path, own(entry, affine=affine, dims=dims))["case.nii.gz"]
    assert found["boxes"].tolist() == [box]


def test_the_voxel_box_of_an_entry_counts_before_its_corners(tmp_path):
    entry = {"box": [0, 0, 0, 1, 1, 1], "box_ras": [5, 5, 5, 9, 9, 9], "corners_lps": []}
    assert load(tmp_path, own(entry))["case.nii.gz"]["boxes"].tolist() == [[0, 0, 0, 1, 1, 1]]


def test_a_picture_in_mm(tmp_path):
    affine = np.diag([0.5, 0.25, 1, 1])
    found = load(tmp_path, own({"box_ras": [0.75, 0.125, 1.75, 0.625]}, dims=2, affine=affine))
    assert found["case.nii.gz"]["boxes"].tolist() == [[2, 1, 4, 3]]


def test_an_oblique_affine_is_refused_only_where_the_box_gets_looser(tmp_path):
    for angle, size, message in ((0.2, 5, None), (0.2, 100, "obliquely"), (10, 5, "obliquely")):
        cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        affine = np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        document = own({"box_ras": [60, 60, 60, 60 + size, 60 + size, 60 + size]}, affine=affine)
        if message is None:
            box = load(tmp_path, document)["case.nii.gz"]["boxes"][0]
            assert np.abs((box[3:] - box[:3]) - size).max() < 0.1
        else:
            with pytest.raises(ImageFileError, match=r"boxes\[0\] of 'case.nii.gz' lies obliquely .*no box of voxels"):
                load(tmp_path, document)


def test_rounding_errors_are_cut_and_no_more(tmp_path):
    document = coco()
    document["annotations"][0]["bbox"] = [-0.4, 20, 64.8, 28.5]
    assert load(tmp_path, document)["images/a.png"]["boxes"][0].tolist() == [0, 20, 64, 48]
    del document["images"][0]["width"], document["images"][0]["height"]
    found = load(tmp_path, document)["images/a.png"]["boxes"][0]
    assert found.tolist() == [0, 20, -0.4 + 64.8, 48.5], "no size, no upper bound"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"][0].update(bbox=[1, 1, 0, 4]), r"annotations\[0\] of .* width and height > 0"),
        (lambda d: d["annotations"][0].update(bbox=[9, 9, -3, 4]), r"bbox \[9.0, 9.0, -3.0, 4.0\], expected width"),
        (lambda d: d["annotations"][0].update(bbox=[1, 1, 2]), "4 finite numbers under 'bbox'"),
        (lambda d: d["annotations"][0].update(bbox=[1, 1, 2, "3"]), "4 finite numbers under 'bbox'"),
        (lambda d: d["annotations"][0].update(bbox=[1, 1, 2, 10**400]), "4 finite numbers under 'bbox'"),
        (lambda d: d["annotations"][0].update(bbox=[60, 1, 5, 5]), r"outside the image of shape \(64, 48\)"),
        (lambda d: d["annotations"][0].update(bbox=[1, 45, 5, 5]), r"outside the image of shape \(64, 48\)"),
        (lambda d: d["annotations"][0].update(bbox=[-1, 1, 5, 5]), "outside the image"),
        (lambda d: d["annotations"][0].update(bbox=[-0.4, 1, 0.3, 5]), "outside the image"),
        (lambda d: d["annotations"][0].update(category_id=5), "category_id 5, which no category has"),
        (lambda d: d["annotations"][0].update(image_id=5), "image_id 5, which no image has"),
        (lambda d: d["annotations"][0].pop("image_id"), r"annotations\[0\] must have a whole number .* or a text"),
        (lambda d: d["annotations"][1].update(iscrowd=1), r"annotations\[1\] of 'images/a.png' is a crowd"),
        (lambda d: d["images"][1].update(file_name="images/a.png"), r"images\[1\].*'images/a.png', which another"),
        (lambda d: d["images"][1].update(file_name=""), r"images\[1\] has the file_name ''"),
        (lambda d: d["images"][1].update(id=7), r"images\[1\] has the id 7 of another image"),
        (lambda d: d["images"][0].pop("height"), "a whole number of 64 bits under 'height', found None"),
        (lambda d: d["categories"][1].update(id=1), r"categories\[1\] has the id 1 of another category"),
        (lambda d: d["categories"][1].update(id=True), "a whole number of 64 bits under 'id', found True"),
        (lambda d: d["categories"][1].update(id=2**70), "a whole number of 64 bits under 'id'"),
        (lambda d: d["categories"][1].pop("name"), "a text under 'name'"),
        (lambda d: d.pop("categories"), "the file must have a list under 'categories'"),
        (lambda d: d.update(annotations=[3]), r"annotations\[0\] must be an object, found 3"),
        (lambda d: d.pop("annotations"), "neither 'images' and 'annotations'"),
    ],
)
def test_unusable_coco_files(tmp_path, change, message):
    document = coco()
    change(document)
    with pytest.raises(ImageFileError, match=message) as caught:
        load(tmp_path, document)
    assert "\n" not in str(caught.value) and "boxes.json" in str(caught.value)


GOOD = {"box": [0, 0, 0, 1, 1, 1]}
MM = {"box_ras": [0, 0, 0, 4, 4, 4]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (own({"box": [3, 0, 0, 1, 1, 1]}), r"boxes\[0\] of 'case.nii.gz' is empty or inverted"),
        (own({"box": [1, 0, 0, 1, 1, 1]}), "is empty or inverted"),
        (own({"box": [0, 0, 1, 1]}), "6 finite numbers under 'box'"),
        (own({"box": [-2, 0, 0, 1, 1, 1]}), "outside the image of unknown shape"),
        (own({"box": [0, 0, 0, 1, 1, 9]}, shape=[9, 9, 8]), r"outside the image of shape \(9.0, 9.0, 8.0\)"),
        (own(GOOD, shape=[9, 9]), "3 finite numbers under 'shape'"),
        (own({"box": [0, 0, 0, 1, 1, 1], "label": 4}), r"the label 4, which has no name; names \[0\]"),
        (own({"box": [0, 0, 0, 1, 1, 1], "label": 0.5}), "a whole number of 64 bits under 'label'"),
        (own({"mask": 1}), "none of 'box', 'box_ras' and 'corners_lps'"),
        (own(MM), "is in mm, but its image has no 'affine_ras'"),
        (own(MM, affine=np.eye(3)), "4 x 4 finite numbers under 'affine_ras'"),
        (own(MM, affine=np.diag([1, 0, 1, 1])), "needs an invertible affine_ras"),
        (own(MM, affine=np.full((4, 4), 1.0) + np.eye(4)), "needs an invertible affine_ras"),
        (own({"box_ras": [9, 0, 0, 4, 4, 4]}, affine=np.eye(4)), "empty or inverted: box_ras"),
        (own({"box_ras": [9, 9, 9, 12, 12, 12]}, affine=np.eye(4), shape=[9] * 3), "outside the image of shape"),
        (own(MM, affine=OBLIQUE), "lies obliquely to the voxels"),
        (own({"box_ras": [0, 0, 4, 4]}, dims=2, affine=affine_of("sagittal")), "the picture lies obliquely in space"),
        (own({"corners_lps": [[0, 0, 0]] * 8}, affine=np.eye(4)), "is empty or inverted"),
        (own({"corners_lps": [[0, 0, 0]] * 7}, affine=np.eye(4)), "8 x 3 finite numbers"),
        ({"labelfx": {"version": 2}}, "version 2, this package reads 1"),
        ({"labelfx": {"version": 1, "spatial_dims": 4}}, "spatial_dims must be 2 or 3, found 4"),
        ({"labelfx": {"version": 1, "spatial_dims": 2, "names": {"a": "b"}}}, "names must map labels"),
        ({"labelfx": {"version": 1, "spatial_dims": 2}}, "a list under 'images'"),
        ({"labelfx": {"version": 1, "detections": []}}, "read it with load_detections"),
        ({"labelfx": 3}, "an object under 'labelfx', found 3"),
        ("[]", "neither 'images' and 'annotations'"),
        ("{", "is not a JSON file"),
        ("", "is not a JSON file"),
        ("[" * 100_000, "is not a JSON file"),
        (json.dumps(own(GOOD)).replace("[0, 0, 0, 1, 1, 1]", "[0, 0, 0, 1, 1, NaN]"), "NaN is no JSON value"),
        (json.dumps(own(GOOD)).replace("[0, 0, 0, 1, 1, 1]", "[0, 0, 0, 1, 1, 1e999]"), "finite numbers under 'box'"),
    ],
)
def test_unusable_files_of_our_own(tmp_path, document, message):
    with pytest.raises(ImageFileError, match=message) as caught:
        load(tmp_path, document)
    assert "\n" not in str(caught.value) and "boxes.json" in str(caught.value)


def test_an_image_twice_and_no_file(tmp_path):
    document = own(GOOD)
    document["labelfx"]["images"] *= 2
    with pytest.raises(ImageFileError, match=r"images\[1\] has the file_name 'case.nii.gz', which another image has"):
        load(tmp_path, document)
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        load_boxes(tmp_path / "absent.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def places(document, path=()):
    """The path to each field."""
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in pairs:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


FULL = own(GOOD, MM, affine=FLIPPED * 0.5 + np.diag([0, 0, 0, 0.5]), shape=[90, 90, 90])
FULL["labelfx"]["images"][0]["boxes"][1]["box_ras"] = [0, 0, 5, 4, 4, 9]
FIELDS = [(kind, place) for kind, document in enumerate((coco(), FULL)) for place in places(document)]


@settings(max_examples=300, deadline=None)
@given(field=st.sampled_from(FIELDS), value=JSON)
def test_any_change_of_a_field_is_refused_or_gives_good_boxes(tmp_path_factory, field, value):
    kind, place = field
    document = copy.deepcopy((coco(), FULL)[kind])
    target = document
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    try:
        found = load(tmp_path_factory.mktemp("fuzz"), document)
    except ImageFileError as error:
        assert "boxes.json" in str(error) and "\n" not in str(error)
        return
    for entry in found.values():
        low, high = np.split(entry["boxes"], 2, axis=1)
        assert (0 <= low).all() and (low < high).all() and np.isfinite(high).all()
        assert entry["labels"].shape == low.shape[:1] and entry["labels"].dtype == np.int64


@pytest.mark.sample_data
def test_real_coco_files(sample_data):
    counts = {"findings": (31, 30), "lungs_boxes": (53, 106), "lungs_instances": (53, 106)}
    for name, (images, boxes) in counts.items():
        found = load_boxes(sample_data / "cxr" / f"{name}.coco.json")
        assert (len(found), sum(len(entry["boxes"]) for entry in found.values())) == (images, boxes)
        assert all((sample_data / "cxr" / file).is_file() for file in found)
    lungs = load_boxes(sample_data / "cxr" / "lungs_instances.coco.json")
    checked = 0
    for file, entry in lungs.items():
        mask = sample_data / "cxr" / "lungs" / "masks" / Path(file).name
        array, _ = AutoReader().get_data(AutoReader().read(str(mask)))
        for box, label in zip(entry["boxes"], entry["labels"], strict=True):
            voxels = np.argwhere(array == label)
            np.testing.assert_array_equal(box, [*voxels.min(0), *(voxels.max(0) + 1)], err_msg=file)
            checked += 1
    assert checked == 106, "each box is tight around its mask, as our readers load it"
