# SPDX-License-Identifier: Apache-2.0
"""The detection bundle between file and file, with masks: geometry, windows, label maps, run lengths, overlaps.

A detector that finds every object stands in for the network.
"""

from __future__ import annotations

import json
from pathlib import Path

import bright_instances
import numpy as np
import pytest
import torch
from detection_bundle import call, metrics
from dicom_samples import affine_of, save, series_slices
from instance_samples import dice, solids
from monai.data import MetaTensor
from monai.transforms import LoadImage
from samples import write_image
from scipy import ndimage

from monai_labelfx.cli import main
from monai_labelfx.data import AutoReader, DicomSegWriter, load_detections, save_datalist
from monai_labelfx.ops import decode_run_lengths

SHAPE = {2: (40, 30), 3: (40, 30, 14)}


def _objects(spatial_dims: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of two bright objects and, second, a dark one, and their numbers."""
    numbers = ndimage.label(solids(SHAPE[spatial_dims]).any(axis=0))[0].astype(np.uint16)
    return np.array([100, 200, 0, 200], np.float32)[numbers], numbers


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    reader = AutoReader()
    array, meta = reader.get_data(reader.read(path))
    return array, np.asarray(meta.get("affine", np.eye(4)))


def _detect(images: Path, out: Path, *arguments: str, **settings: float | bool) -> Path:
    """The label map of the one image in a folder, from the detector that finds everything."""
    chosen = bright_instances.arguments(out.parent / "model.pt", **settings)
    assert call("inference", out, "--dataset_dir", images, *chosen, *arguments) == 0
    (found,) = out.glob("*_instances.*")
    return found


def _masks(out: Path) -> np.ndarray:
    """The masks of the one image of a run, (N, *shape)."""
    rows = json.loads((out / "detections.coco.json").read_text())
    return decode_run_lengths([row["segmentation"] for row in rows]).numpy()


def _same_objects(found: np.ndarray, truth: np.ndarray, least: float) -> None:
    assert sorted(np.unique(found)) == sorted(np.unique(truth))
    for number in range(1, truth.max() + 1):
        assert dice(found == number, truth == number) >= least, number


# --- geometry ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("size", "least"), [("null", 1.0), ("80", 1.0), ("100", 0.98), ("30", 0.9)])
def test_masks_of_resized_pictures_come_back_in_their_own_pixels(size, least, tmp_path):
    image, truth = _objects(2)
    write_image(tmp_path / "data" / "a", image, "png")
    file = _detect(tmp_path / "data", tmp_path / "out", "--image_size", size)
    assert file.name == "a_instances.png"
    found = _read(file)[0]
    assert found.shape == SHAPE[2]
    _same_objects(found, truth, least)
    for number, mask in enumerate(_masks(tmp_path / "out"), start=1):
        assert np.array_equal(mask, found == number)


def test_all_files_leave_out_what_is_below_the_least_score(tmp_path):
    image, truth = _objects(2)
    write_image(tmp_path / "data" / "a", image, "png")
    file = _detect(tmp_path / "data", tmp_path / "out", "--image_size", "null", "--min_score", "0.75")
    assert np.array_equal(_read(file)[0], np.where(truth < 3, truth, 0))  # scores are 0.9, 0.8 and 0.7
    assert len(_masks(tmp_path / "out")) == 2
    assert len(load_detections(tmp_path / "out" / "a_detections.mrk.json")["scores"]) == 2


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
@pytest.mark.parametrize("orientation", ["axial", "sagittal", "oblique"])
def test_masks_of_resampled_volumes_come_back_in_their_own_voxels(kind, orientation, tmp_path):
    image, truth = _objects(3)
    write_image(tmp_path / "data" / "a", image, kind, orientation)
    spacing = np.sqrt((affine_of(orientation)[:3, :3] ** 2).sum(axis=0)) * [0.8, 0.7, 0.6]
    options = ["--preset", "3d", "--window_size", "null", "--class_names", "[solid, shell]"]
    file = _detect(tmp_path / "data", tmp_path / "out", *options, "--spacing", str(spacing.tolist()))
    assert file.name == ("a_instances.nii.gz" if kind == "nifti" else "a_instances.dcm")
    found, affine = _read(file)
    assert found.shape == SHAPE[3] and np.allclose(affine, affine_of(orientation), atol=1e-4)
    _same_objects(found, truth, 0.9)
    detections = load_detections(tmp_path / "out" / "a_detections.mrk.json")
    for number, box in enumerate(detections["boxes"], start=1):
        places = np.argwhere(found == number)
        assert np.allclose([*places.min(axis=0), *(places.max(axis=0) + 1)], box, atol=1.0)
    if kind == "dicom":
        import pydicom

        seg = pydicom.dcmread(file)
        assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["solid 1", "shell 2", "solid 3"]
        assert seg.PatientID == "phantom" and seg.Modality == "SEG"


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("crop_masks", [False, True])
def test_windows_give_one_mask_of_an_object_that_none_holds(spatial_dims, crop_masks, tmp_path):
    """A bright block with a hole and a dark one, in windows that are shorter along each axis; holes stay holes."""
    truth = np.zeros((40, 30, 14), np.uint8)
    truth[3:25, 2:20, 1:12], truth[9:14, 8:12, 4:9], truth[28:38, 3:27, 2:10] = 1, 0, 2
    truth = truth[:, :, 5] if spatial_dims == 2 else truth
    image = np.array([100, 200, 0], np.float32)[truth]
    write_image(tmp_path / "data" / "a", image, "png" if spatial_dims == 2 else "nifti")
    options = ["--preset", f"{spatial_dims}d", "--image_size", "null", "--window_size", str([14, 12, 6][:spatial_dims])]
    file = _detect(tmp_path / "data", tmp_path / "out", *options, crop_masks=crop_masks)
    assert np.array_equal(_read(file)[0], truth)
    assert np.array_equal(_masks(tmp_path / "out"), [truth == 1, truth == 2])


# --- reference --------------------------------------------------------------------------------------------------------
def _datalist(folder: Path, item: dict) -> Path:
    return save_datalist(folder / "datalist.json", {split: [item] for split in ("training", "validation", "test")})


@pytest.mark.parametrize(
    ("spatial_dims", "options"),
    [
        (2, ["--image_size", "80"]),
        (2, ["--image_size", "null", "--window_size", "[14, 12]"]),
        (3, ["--spacing", "[0.35, 0.45, 1.25]"]),
    ],
)
def test_what_is_right_is_measured_as_right(spatial_dims, options, tmp_path):
    """Label maps and images take the same way, and a run tells masks, boxes and classes apart."""
    image, truth = _objects(spatial_dims)
    kind = "png" if spatial_dims == 2 else "nifti"
    item = {"image": str(write_image(tmp_path / "data" / "a", image, kind)), "box_label": [0, 1, 0]}
    item["label"] = str(write_image(tmp_path / "data" / "label", truth, "tiff" if kind == "png" else kind))
    common = ["--preset", f"{spatial_dims}d", *([] if spatial_dims == 2 else ["--window_size", "null"]), *options]
    chosen = bright_instances.arguments(tmp_path / "model.pt")
    scores = {}
    for name, classes in {"right": [0, 1, 0], "wrong class": [1, 0, 1]}.items():
        datalist = _datalist(tmp_path, item | {"box_label": classes})
        assert call("evaluate", tmp_path / name, "--datalist", datalist, *common, *chosen) == 0
        scores[name] = metrics(tmp_path / name)
    for key in ("mask_AP50", "box_AP50", "mask_agnostic_AP50", "box_agnostic_AP50"):
        assert scores["right"][key] == 1, key
        assert scores["wrong class"][key] == (1 if "agnostic" in key else 0), key
    predictions = tmp_path / "right" / "predictions"
    assert _read(next(predictions.glob("a_instances.*")))[0].shape == SHAPE[spatial_dims]
    assert len(_masks(predictions)) == 3


def test_without_classes_all_objects_are_of_one(tmp_path):
    image, truth = _objects(2)
    item = {"image": str(write_image(tmp_path / "data" / "a", image, "png")), "box_label": [0, 1, 0]}
    item["label"] = str(write_image(tmp_path / "data" / "label", truth, "png"))
    scores = {}
    for agnostic in ("true", "false"):
        chosen = bright_instances.arguments(tmp_path / "model.pt", one_class=True)
        options = ["--datalist", _datalist(tmp_path, item), "--image_size", "null", "--class_agnostic", agnostic]
        assert call("evaluate", tmp_path / agnostic, *options, *chosen) == 0
        scores[agnostic] = metrics(tmp_path / agnostic)["mask_AP50"]
    assert scores["true"] == 1 and scores["false"] < 0.5


def test_a_seg_of_some_slices_is_placed_on_the_image(tmp_path):
    """Drawn on the slices 3 to 9 of a series, and evaluated on all."""
    image, truth = np.full(SHAPE[3], 100, np.float32), np.zeros(SHAPE[3], np.uint8)
    truth[5:20, 4:22, 4:9], truth[24:36, 10:26, 3:8] = 1, 2
    image += 100 * (truth == 1) - 100 * (truth == 2)
    series = save(tmp_path / "data" / "a", series_slices(image), shuffled=False)
    drawn = LoadImage(reader=AutoReader(), ensure_channel_first=True)(sorted(series.iterdir())[3:9])
    writer = DicomSegWriter()
    writer.set_data_array(MetaTensor(torch.from_numpy(truth[None, :, :, 3:9]), meta=drawn.meta), channel_dim=0)
    writer.set_metadata(drawn.meta)
    writer.write(tmp_path / "seg.dcm", verbose=False)
    item = {"image": str(series), "label": str(tmp_path / "seg.dcm"), "box_label": [0, 1]}
    options = ["--datalist", _datalist(tmp_path, item), "--preset", "3d", "--window_size", "null"]
    assert call("evaluate", tmp_path / "out", *options, *bright_instances.arguments(tmp_path / "model.pt")) == 0
    assert metrics(tmp_path / "out")["mask_mAP"] == 1
    assert np.array_equal(_read(tmp_path / "out" / "predictions" / "a_instances.dcm")[0], truth)


def _overlapping() -> np.ndarray:
    """Three objects (3, x, y), of which two overlap."""
    masks = np.zeros((3, *SHAPE[2]), bool)
    masks[0, 4:20, 4:18] = True
    masks[1, 14:34, 8:16] = True
    masks[2, 24:36, 20:28] = True
    return masks


def _overlay(masks: np.ndarray) -> np.ndarray:
    """The image in which object k has the bit k, in units of 10."""
    return np.float32(10) * sum(mask * 2**k for k, mask in enumerate(masks))


def test_objects_that_overlap_are_measured_and_kept(tmp_path):
    """As two label maps; the map of the result gives a pixel to the better score, run lengths give it to both."""
    masks = _overlapping()
    maps = [masks[0] + 2 * masks[2], masks[1]]
    labels = [write_image(tmp_path / "data" / f"label{k}", one.astype(np.uint16), "png") for k, one in enumerate(maps)]
    item = {"image": str(write_image(tmp_path / "data" / "a", _overlay(masks), "png")), "label": list(map(str, labels))}
    item |= {"box_label": [0, 0, 0]}
    chosen = bright_instances.arguments(tmp_path / "model.pt", bit=10.0)
    options = ["--datalist", _datalist(tmp_path, item), "--image_size", "null", *chosen]
    assert call("evaluate", tmp_path / "out", *options) == 0
    measured = metrics(tmp_path / "out")
    assert measured["mask_mAP"] == measured["box_mAP"] == 1
    predictions = tmp_path / "out" / "predictions"
    assert np.array_equal(_masks(predictions), masks)
    expected = np.where(masks.any(axis=0), masks.argmax(axis=0) + 1, 0)
    assert np.array_equal(_read(predictions / "a_instances.png")[0], expected)


def test_images_without_objects_have_empty_maps(tmp_path):
    """An empty list of boxes or an empty label map: measured alike, and the maps of the result are empty."""
    image, truth = _objects(2)
    full = {"image": str(write_image(tmp_path / "data" / "a", image, "png")), "box_label": [0, 1, 0]}
    full["label"] = str(write_image(tmp_path / "data" / "full", truth, "png"))
    empty = str(write_image(tmp_path / "data" / "b", np.full(SHAPE[2], 100), "png"))
    blank = str(write_image(tmp_path / "data" / "blank", np.zeros(SHAPE[2], np.uint16), "png"))
    scores = []
    for name, own in {"map": {"label": blank}, "list": {"box": [], "box_label": []}}.items():
        items = [full, {"image": empty, **own}]
        datalist = save_datalist(tmp_path / "datalist.json", {"training": items, "test": items})
        chosen = bright_instances.arguments(tmp_path / "model.pt")
        assert call("evaluate", tmp_path / name, "--datalist", datalist, "--image_size", "null", *chosen) == 0
        scores.append({key: value for key, value in metrics(tmp_path / name).items() if "AP" in key})
        assert not _read(tmp_path / name / "predictions" / "b_instances.png")[0].any()
    assert scores[0] == scores[1] and scores[0]["mask_mAP"] == 1


def test_a_coco_data_set_is_judged_in_its_own_pixels(tmp_path):
    """Polygons of objects that overlap, in and out: the run lengths of the result are those of the polygons."""
    masks = _overlapping()
    images, annotations = [], []
    for number in (1, 2, 3):
        write_image(tmp_path / "raw" / f"p{number}", _overlay(masks) + number, "png")  # no two alike
        images.append({"id": number, "file_name": f"p{number}.png", "width": SHAPE[2][0], "height": SHAPE[2][1]})
        for mask in masks:
            places = np.argwhere(mask)
            (x0, y0), (x1, y1) = places.min(axis=0).tolist(), (places.max(axis=0) + 1).tolist()
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": 4, "iscrowd": 0}
            annotation |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(mask.sum())}
            annotations.append(annotation | {"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 4, "name": "nodule"}]}
    (tmp_path / "raw" / "coco.json").write_text(json.dumps(content))
    own = ["--masks", "true", "--validation", "0.34", "--test", "0.34"]
    assert main(["prepare", "coco", str(tmp_path / "raw"), str(tmp_path / "data"), *own]) == 0
    assert main(["check", str(tmp_path / "data" / "datalist.json")]) == 0
    chosen = bright_instances.arguments(tmp_path / "model.pt", bit=10.0)
    options = ["--datalist", tmp_path / "data" / "datalist.json", "--image_size", "null", *chosen]
    assert call("evaluate", tmp_path / "out", *options) == 0
    assert metrics(tmp_path / "out")["mask_mAP"] == metrics(tmp_path / "out")["box_mAP"] == 1
    assert np.array_equal(_masks(tmp_path / "out" / "predictions"), masks)
