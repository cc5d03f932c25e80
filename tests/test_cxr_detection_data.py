# SPDX-License-Identifier: Apache-2.0
"""The detection bundle between file and file: geometry, films, results, and data as bad as they come.

A detector that is always right stands in for the network where what comes before and behind it is tested.
"""

from __future__ import annotations

import json
from pathlib import Path

import bright_detector
import nibabel
import numpy as np
import pytest
from detection_bundle import KEEP_ALL, call, metrics, options, run
from dicom_frame_samples import with_table
from dicom_samples import affine_of, new_slice
from samples import write_image

from monai_labelfx.cli import main
from monai_labelfx.data import load_detections, save_datalist

BLOCK = {2: [10, 6, 20, 16], 3: [10, 6, 4, 20, 16, 9]}
SHAPE = {2: (40, 30), 3: (40, 30, 14)}
DX = "1.2.840.10008.5.1.4.1.1.1.1"


def _block(spatial_dims: int, bright: float = 100.0) -> np.ndarray:
    box = BLOCK[spatial_dims]
    image = np.zeros(SHAPE[spatial_dims], np.float32)
    image[tuple(slice(box[a], box[a + spatial_dims]) for a in range(spatial_dims))] = bright
    return image


def _detect(images: Path, out: Path, *arguments: str, level: float = 50.0) -> dict[str, dict]:
    """File name -> what the detector that is always right says of the images in a folder."""
    chosen = bright_detector.arguments(out.parent / "model.pt", level)
    assert call("inference", out, "--dataset_dir", images, *chosen, *arguments) == 0
    return {path.name.split("_detections")[0]: load_detections(path) for path in out.glob("*.mrk.json")}


# --- geometry ---------------------------------------------------------------------------------------------------------
def test_resized_pictures_come_back_in_their_own_pixels(tmp_path):
    """Twice as long, the edges of the block lie between pixels and are exact; three quarters, they are within one."""
    write_image(tmp_path / "data" / "a", _block(2), "png")
    for size, tolerance in ((80, 1e-4), (30, 1.0), ("null", 1e-6)):
        found = _detect(tmp_path / "data", tmp_path / f"out{size}", "--image_size", str(size))["a"]
        assert np.allclose(found["boxes"], [BLOCK[2]], atol=tolerance), size
        assert found["scores"].tolist() == [0.75]


@pytest.mark.parametrize("orientation", ["axial", "sagittal", "oblique"])
def test_resampled_volumes_come_back_in_their_own_voxels(orientation, tmp_path):
    """Voxels of half the size: voxel i becomes 2 i, and those between are means, of which none is above 60.

    So 10 to 19 become 20 to 38. They reach from 19.5 to 38.5, counted from the centre of the first voxel. That is 9.75
    to 19.25 in voxels of the file, and 10.25 to 19.75 counted from the edge of the first.
    """
    write_image(tmp_path / "data" / "a", _block(3), "nifti", orientation)
    spacing = np.sqrt((affine_of(orientation)[:3, :3] ** 2).sum(axis=0)) / 2
    options = ["--preset", "3d", "--window_size", "null", "--spacing", str(spacing.tolist())]
    found = _detect(tmp_path / "data", tmp_path / "out", *options, level=60)["a"]
    expected = np.add(BLOCK[3], [0.25] * 3 + [-0.25] * 3)
    # where an affine is not exact, MONAI puts the new voxels between those of the file
    assert np.allclose(found["boxes"], [expected], atol=0.5 if orientation == "oblique" else 1e-3)
    assert np.allclose(found["affine"], affine_of(orientation), atol=1e-4)


def test_windows_give_one_box_of_an_object_that_none_holds(tmp_path):
    write_image(tmp_path / "data" / "a", _block(3), "nifti")
    options = ["--preset", "3d", "--window_size", "[12, 12, 6]"]
    assert np.allclose(_detect(tmp_path / "data", tmp_path / "out", *options)["a"]["boxes"], [BLOCK[3]])


@pytest.mark.parametrize("orientation", ["axial", "coronal"])
def test_boxes_in_world_coordinates_are_those_in_voxels(orientation, tmp_path):
    """In mm (RAS): the centre of voxel i is at affine @ i, so a box ends half a voxel before its low corner."""
    path = write_image(tmp_path / "data" / "a", _block(3), "nifti", orientation)
    affine = affine_of(orientation)
    ends = [affine[:3, :3] @ (np.array(part) - 0.5) + affine[:3, 3] for part in (BLOCK[3][:3], BLOCK[3][3:])]
    world = [*np.minimum(*ends).tolist(), *np.maximum(*ends).tolist()]
    chosen = bright_detector.arguments(tmp_path / "model.pt")
    for mode, box in {"voxel": BLOCK[3], "world": world}.items():
        item = {"image": str(path), "box": [box], "box_label": [0]}
        datalist = save_datalist(tmp_path / f"{mode}.json", {"training": [item], "validation": [item], "test": [item]})
        options = ["--datalist", datalist, "--preset", "3d", "--window_size", "null", "--box_mode", mode]
        assert call("evaluate", tmp_path / mode, *options, *chosen) == 0
        assert metrics(tmp_path / mode)["box_mAP"] == 1, mode


def test_results_of_coco_are_in_pixels_of_the_files(tmp_path):
    path = write_image(tmp_path / "data" / "a", _block(2), "png")
    empty = write_image(tmp_path / "data" / "b", np.zeros(SHAPE[2]), "png")
    items = [{"image": str(empty), "box": [], "box_label": [], "image_id": 3}]
    items.append({"image": str(path), "box": [BLOCK[2]], "box_label": [0], "image_id": 8})
    datalist = save_datalist(tmp_path / "datalist.json", {"training": items, "validation": items, "test": items})
    chosen = bright_detector.arguments(tmp_path / "model.pt")
    assert call("evaluate", tmp_path / "out", "--datalist", datalist, "--image_size", "80", *chosen) == 0
    rows = json.loads((tmp_path / "out" / "predictions" / "detections.coco.json").read_text())
    assert [row["image_id"] for row in rows] == [8] and rows[0]["category_id"] == 1 and rows[0]["score"] == 0.75
    assert np.allclose(rows[0]["bbox"], [10, 6, 10, 10], atol=1e-4)
    assert metrics(tmp_path / "out")["box_mAP"] == 1


# --- films ------------------------------------------------------------------------------------------------------------
def _film(stored: np.ndarray, photometric: str):
    image = new_slice(np.ascontiguousarray(stored.T.astype(np.uint16)), sop_class=DX, modality="DX")
    image.PhotometricInterpretation = photometric
    image.BitsStored, image.HighBit = 12, 11
    image.ImagerPixelSpacing = [0.4, 0.2]  # rows are 0.4 mm apart
    image.PresentationIntentType, image.PixelIntensityRelationshipSign = "FOR PRESENTATION", 1
    return image


def _films() -> dict:
    """The same film stored in three ways. Only as it is to be displayed, the block is what is bright."""
    upright = _block(2, 3000.0) + 500
    marked = np.where(_block(2) > 0, 1100, 1000)
    marked[:4, :4] = 4000  # a marker that the lookup table hides
    table = [4095 if 1050 <= value < 1500 else 0 for value in range(4096)]
    return {
        "MONOCHROME2": _film(upright, "MONOCHROME2"),
        "MONOCHROME1": _film(4095 - upright, "MONOCHROME1"),
        "VOI LUT": with_table(_film(marked, "MONOCHROME2"), "VOILUTSequence", 0, table, bits=12),
    }


@pytest.mark.parametrize("kind", list(_films()))
def test_films_are_read_as_they_are_displayed(kind, tmp_path):
    (tmp_path / "data").mkdir()
    _films()[kind].save_as(tmp_path / "data" / "film.dcm", enforce_file_format=True)
    found = _detect(tmp_path / "data", tmp_path / "out", "--image_size", "80", "--preset", "dicom", level=2000)["film"]
    assert np.allclose(found["boxes"], [BLOCK[2]], atol=1e-3)
    assert np.allclose(np.abs(found["affine"][:2, :2]), np.diag([0.2, 0.4]), atol=1e-6)
    assert (tmp_path / "out" / "film_detections.dcm").is_file() and (tmp_path / "out" / "overview.png").is_file()


# --- bad input --------------------------------------------------------------------------------------------------------
@pytest.fixture
def pictures(tmp_path) -> dict:
    """Two pictures for training, one for validation and one for testing, with a box each."""
    splits: dict[str, list[dict]] = {}
    for number, split in enumerate(("training", "training", "validation", "test")):
        path = write_image(tmp_path / "images" / f"film{number}", _block(2) + number, "png")
        splits.setdefault(split, []).append({"image": str(path), "box": [BLOCK[2]], "box_label": [1]})
    return splits


def _fails(workflow: str, folder: Path, splits: dict, capsys, *arguments: str) -> str:
    """The one sentence with which a run refuses the data."""
    datalist = save_datalist(folder / "datalist.json", splits)
    assert call(workflow, folder / "out", "--datalist", datalist, *arguments, *options()) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("labelfx ")]
    assert len(error) == 1
    return error[0]


def test_films_without_boxes_are_learned_and_judged(pictures, tmp_path):
    """As empty lists, in part of every split and in a whole batch."""
    for split in pictures:
        pictures[split].append({**pictures[split][0], "image": write_copy(pictures[split][0]["image"], split)})
        pictures[split][-1] |= {"box": [], "box_label": []}
    pictures["training"] = [pictures["training"][0], *[pictures["training"][-1]] * 3]
    datalist = save_datalist(tmp_path / "datalist.json", pictures)
    run("train", tmp_path / "out", datalist, max_epochs="2")
    run("evaluate", tmp_path / "out", datalist, detector_ops=KEEP_ALL)
    assert 0 <= metrics(tmp_path / "out")["box_mAP"] <= 1
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert all(0 < loss < np.inf for _, loss in history["train_loss"])


def test_a_split_without_any_box_cannot_choose_a_network(pictures, tmp_path, capsys):
    pictures["validation"][0] |= {"box": [], "box_label": []}
    assert "'box_mAP' is not defined" in _fails("train", tmp_path, pictures, capsys)


def write_copy(path: str, name: str) -> str:
    """A copy of a file beside it."""
    copy = Path(path).with_name(f"{name}.png")
    copy.write_bytes(Path(path).read_bytes())
    return str(copy)


def test_useless_boxes_are_dropped_and_the_image_is_named(pictures, tmp_path):
    """Zero size, inverted, outside, not finite: counted, and the run goes on with the good one."""
    good = save_datalist(tmp_path / "good.json", pictures)
    run("train", tmp_path / "good", good)
    bad = [[5, 5, 5, 9], [9, 9, 5, 5], [50, 5, 60, 9], [2, 2, float("nan"), 9]]
    pictures["training"][1] |= {"box": [*bad[:3], BLOCK[2]], "box_label": [0, 1, 0, 1]}
    datalist = save_datalist(tmp_path / "datalist.json", pictures)
    with pytest.warns(UserWarning, match=r"film1\.png.*dropped 3 of 4 boxes \(2 without volume or inverted, 1 outside"):
        run("train", tmp_path / "out", datalist)
    losses = [metrics(tmp_path / name)["train_loss"] for name in ("good", "out")]
    assert losses[0] == losses[1]


def test_boxes_for_another_image_size(pictures, tmp_path, capsys):
    """What reaches out is cut, what lies outside is dropped and told; `labelfx check` finds both before."""
    pictures["training"][0] |= {"box": [[20, 12, 80, 32], [60, 40, 90, 70]], "box_label": [0, 1]}
    datalist = save_datalist(tmp_path / "datalist.json", pictures)
    assert main(["check", str(datalist)]) == 1
    assert "training[0]" in capsys.readouterr().out
    with pytest.warns(UserWarning, match=r"film0\.png.*dropped 1 of 2 boxes \(1 outside the image\)"):
        run("train", tmp_path / "out", datalist)


@pytest.mark.parametrize("workflow", ["train", "evaluate"])
def test_a_class_beyond_num_classes_is_one_sentence(workflow, pictures, tmp_path, capsys):
    run("train", tmp_path / "out", save_datalist(tmp_path / "good.json", pictures))
    for split in pictures:
        pictures[split][0] |= {"box_label": [2]}
    sentence = _fails(workflow, tmp_path, pictures, capsys)
    assert "box_label of image" in sentence and "0 to 1, got 2" in sentence


def test_image_ids_that_occur_twice_are_one_sentence(pictures, tmp_path, capsys):
    run("train", tmp_path / "out", save_datalist(tmp_path / "good.json", pictures))
    pictures["test"] = [{**item, "image_id": 4} for item in pictures["training"]]
    assert "'image_id' 4 belongs to 2 images" in _fails("evaluate", tmp_path, pictures, capsys)
    pictures["test"] = [pictures["training"][0]] * 2
    assert "film0.png" in _fails("evaluate", tmp_path, pictures, capsys)


def test_other_numbers_of_objects_in_list_and_label_map_are_one_sentence(pictures, tmp_path, capsys):
    label = write_image(tmp_path / "labels" / "a", (_block(2) > 0).astype(np.uint16), "tiff")
    item = {"image": pictures["training"][0]["image"], "label": str(label), "box_label": [0, 1]}
    assert "for each of 1 boxes" in _fails("train", tmp_path, {**pictures, "training": [item]}, capsys)
    other = write_image(tmp_path / "labels" / "b", np.ones((9, 9), np.uint16), "tiff")
    item |= {"label": str(other), "box_label": [0]}
    assert "grid of the image" in _fails("train", tmp_path, {**pictures, "training": [item]}, capsys)


def test_truncated_films_are_one_sentence(pictures, tmp_path, capsys):
    film = tmp_path / "images" / "film.dcm"
    _films()["MONOCHROME1"].save_as(film, enforce_file_format=True)
    film.write_bytes(film.read_bytes()[:-900])
    pictures["training"][0] |= {"image": str(film)}
    assert "film.dcm" in _fails("train", tmp_path, pictures, capsys)
    chosen = bright_detector.arguments(tmp_path / "model.pt")
    assert call("inference", tmp_path / "out", "--dataset_dir", film, *chosen) == 1
    error = capsys.readouterr().err
    assert "film.dcm" in error and "Traceback" not in error


def test_boxes_of_lists_are_those_of_label_maps(tmp_path):
    """The same objects as a label map and as a list: the same run."""
    losses = {}
    for kind in ("label", "box"):
        items = []
        for number in range(4):
            image = _block(3) + np.random.default_rng(number).normal(0, 5, SHAPE[3]).astype(np.float32)
            item = {"image": str(write_image(tmp_path / kind / f"image{number}", image, "nifti"))}
            label = write_image(tmp_path / kind / f"label{number}", (_block(3) > 0).astype(np.uint8), "nifti")
            items.append(item | ({"label": str(label)} if kind == "label" else {"box": [BLOCK[3]], "box_label": [0]}))
        datalist = save_datalist(tmp_path / f"{kind}.json", {"training": items[:3], "validation": items[3:]})
        sizes = {"patch_size": "[24, 24, 12]", "window_size": "[24, 24, 12]"}
        run("train", tmp_path / f"out_{kind}", datalist, "--preset", "3d", "--label_kind", "classes", **sizes)
        losses[kind] = metrics(tmp_path / f"out_{kind}")["train_loss"]
    assert losses["label"] == losses["box"] and nibabel.load(items[0]["image"]).shape == SHAPE[3]
