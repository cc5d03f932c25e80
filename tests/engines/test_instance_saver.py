# SPDX-License-Identifier: Apache-2.0
"""InstanceSaver: label maps in the geometry of the files, whatever preprocessing did to the images."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from dicom_samples import ORIENTATIONS, affine_of, phantom, write_series
from ignite.engine import Engine
from instance_samples import blocks_of, dice, found_in, load, moved_with, solids, write_volume
from monai.data import MetaTensor
from monai.transforms import (
    Flipd,
    LoadImage,
    Orientationd,
    Resized,
    Rotate90d,
    Spacingd,
    SpatialCropd,
    SpatialPadd,
)
from PIL import Image

from monai_labelfx.data import DicomSegReader, TiffReader, load_detections
from monai_labelfx.engines.detection_saver import DetectionSaver
from monai_labelfx.engines.instance_saver import _MOST, InstanceSaver, _numbered
from monai_labelfx.metrics._mask_crops import crop_masks
from monai_labelfx.ops.run_length import decode_run_lengths

EXACT = [Flipd("image", 0), Rotate90d("image"), SpatialPadd("image", (60, 50)), SpatialCropd("image", (3, 4), (59, 49))]


def run(folder: Path, items: list[dict], **options) -> None:
    """Both savers, as in a bundle; each item is a batch."""
    outputs = iter([[{"pred": item["pred"]}] for item in items])
    evaluator = Engine(lambda engine, batch: next(outputs))
    images = [item["image"].meta["filename_or_obj"] for item in items]
    names = options.get("names")
    DetectionSaver(folder, images, names=names, min_score=options.get("min_score", 0.0)).attach(evaluator)
    InstanceSaver(folder, images, **options).attach(evaluator)
    evaluator.run([[{"image": item["image"]}] for item in items])


def run_lengths(folder: Path) -> np.ndarray:
    entries = json.loads((folder / "detections.coco.json").read_text())
    return decode_run_lengths([entry["segmentation"] for entry in entries]).numpy()


def film(path: Path, shape: tuple[int, int] = (50, 40)) -> Path:
    Image.new("L", shape).save(path)
    return path


@pytest.mark.parametrize("form", [torch.as_tensor, blocks_of])
@pytest.mark.parametrize("steps", [EXACT, [*EXACT, Resized("image", (90, 140))], [Resized("image", (30, 33))]])
def test_pictures(tmp_path, steps, form):
    masks = solids((50, 40))
    item = load(film(tmp_path / "film.png"), steps)
    item["pred"] = found_in(moved_with(item["image"], masks, steps), form=form)
    run(tmp_path / "out", [item])
    with Image.open(tmp_path / "out" / "film_instances.png") as picture:
        assert picture.mode == "L" and picture.size == (50, 40)
        labels = np.asarray(picture).T
    exact = steps is EXACT
    for number, mask in enumerate(masks, start=1):
        assert np.array_equal(labels == number, mask) if exact else dice(labels == number, mask) > 0.9
    assert np.array_equal(run_lengths(tmp_path / "out"), [labels == number for number in (1, 2, 3)])


@pytest.mark.parametrize("form", [torch.as_tensor, blocks_of])
@pytest.mark.parametrize("spacing", [None, (1, 1, 1), (1.7, 1.9, 2.3)])
def test_volumes(tmp_path, spacing, form):
    masks = solids((24, 30, 20))
    affine = np.array([[-1.5, 0, 0, 30], [0, 0, 2.0, -7], [0, 1.2, 0, 4], [0, 0, 0, 1]])
    write_volume(tmp_path / "a.nii.gz", np.zeros((24, 30, 20)), affine)
    steps = [Orientationd("image", "RAS", labels=None), *([] if spacing is None else [Spacingd("image", spacing)])]
    item = load(tmp_path / "a.nii.gz", steps)
    item["pred"] = found_in(moved_with(item["image"], masks, steps), form=form)
    run(tmp_path / "out", [item])
    found = nibabel.load(tmp_path / "out" / "a_instances.nii.gz")
    labels = np.asarray(found.dataobj)
    assert found.get_data_dtype() == np.uint8 and np.allclose(found.affine, affine) and labels.shape == (24, 30, 20)
    for number, mask in enumerate(masks, start=1):
        assert np.array_equal(labels == number, mask) if spacing is None else dice(labels == number, mask) > 0.9
    assert np.array_equal(run_lengths(tmp_path / "out"), [labels == number for number in (1, 2, 3)])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_dicom_series_gets_a_segmentation(tmp_path, orientation):
    masks = solids((24, 20, 10))
    series = write_series(tmp_path / "p1" / "1.2.3", phantom((24, 20, 10)), orientation=orientation)
    steps = [Flipd("image", 1), SpatialPadd("image", (30, 24, 12))]
    item = load(series, steps)
    item["pred"] = found_in(moved_with(item["image"], masks, steps), labels=[1, 0, 1])
    codes = {"1": ["4147007", "SCT", "Mass"]}
    run(tmp_path / "out", [item], names={"0": "nodule", 1: "m" * 70}, codes=codes)
    (file,) = (tmp_path / "out").glob("*.dcm")
    assert file.name == "1.2.3_instances.dcm"
    found = LoadImage(DicomSegReader(), dtype=None)(file)
    expected = sum(number * mask for number, mask in enumerate(masks.astype(int), start=1))
    assert np.array_equal(found.numpy(), expected)
    assert np.allclose(found.affine, affine_of(orientation), atol=1e-5)
    segments = pydicom.dcmread(file).SegmentSequence
    assert [one.SegmentLabel for one in segments] == ["m" * 62 + " 1", "nodule 2", "m" * 62 + " 3"]
    meanings = [one.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for one in segments]
    assert meanings == ["Mass", "Tissue", "Mass"]


def test_resized_dicom_series(tmp_path):
    masks = solids((24, 20, 10))
    item = load(write_series(tmp_path / "s", phantom((24, 20, 10))), steps := [Resized("image", (48, 30, 17))])
    item["pred"] = found_in(moved_with(item["image"], masks, steps))
    run(tmp_path / "out", [item])
    labels = LoadImage(DicomSegReader(), dtype=None)(tmp_path / "out" / "s_instances.dcm").numpy()
    assert all(dice(labels == number, mask) > 0.9 for number, mask in enumerate(masks, start=1))


def test_numbers_are_those_of_the_list_and_the_better_score_keeps_the_voxel(tmp_path):
    masks = np.zeros((4, 50, 40), bool)
    masks[0, 5:20, 5:20] = masks[1, 10:30, 10:30] = masks[2, 12:15, 12:15] = masks[3, 40:45, 2:9] = True
    item = load(film(tmp_path / "a.png"), [])
    item["pred"] = found_in(masks, labels=[3, 1, 2, 0], scores=[0.5, 0.9, 0.7, 0.2])
    run(tmp_path / "out", [item], min_score=0.3)
    labels = np.asarray(Image.open(tmp_path / "out" / "a_instances.png")).T
    assert labels[11, 11] == 1 and labels[6, 6] == 3 and not (labels == 2).any() and labels.max() == 3
    listed = load_detections(tmp_path / "out" / "a_detections.mrk.json")
    assert listed["labels"].tolist() == [1, 2, 3]
    entries = json.loads((tmp_path / "out" / "detections.coco.json").read_text())
    assert [entry["category_id"] for entry in entries] == [2, 3, 4]
    assert np.array_equal(run_lengths(tmp_path / "out"), masks[[1, 2, 0]]), "overlaps are kept here"


def test_without_instances(tmp_path):
    write_volume(tmp_path / "a.nii.gz", np.zeros((6, 5, 4)), np.diag([2.0, 3, 4, 1]))
    films = [film(tmp_path / "b.png"), tmp_path / "a.nii.gz", write_series(tmp_path / "s", phantom((6, 5, 4)))]
    items = [load(path, [Flipd("image", 0)]) for path in films]
    for item, form in zip(items, (torch.as_tensor, blocks_of, torch.as_tensor), strict=True):
        shape = item["image"].shape[1:]
        item["pred"] = found_in(np.zeros((1, *shape), bool), boxes=[[0] * len(shape) + [2] * len(shape)], form=form)
        item["pred"] = {key: value[:0] for key, value in item["pred"].items()}
    run(tmp_path / "out", items, names={0: "nodule"})
    assert not np.asarray(Image.open(tmp_path / "out" / "b_instances.png")).any()
    volume = nibabel.load(tmp_path / "out" / "a_instances.nii.gz")
    assert volume.shape == (6, 5, 4) and not np.asarray(volume.dataobj).any()
    segmentation = LoadImage(DicomSegReader(), dtype=None)(tmp_path / "out" / "s_instances.dcm")
    assert segmentation.shape == (6, 5, 4) and not segmentation.any()
    assert json.loads((tmp_path / "out" / "detections.coco.json").read_text()) == []


def test_an_empty_mask_keeps_its_number(tmp_path):
    masks = solids((50, 40))
    masks[1] = False
    item = load(film(tmp_path / "a.png"), [])
    item["pred"] = found_in(masks, boxes=[[0, 0, 50, 40]] * 3)
    run(tmp_path / "out", [item])
    assert np.unique(np.asarray(Image.open(tmp_path / "out" / "a_instances.png"))).tolist() == [0, 1, 3]
    assert not run_lengths(tmp_path / "out")[1].any()


@pytest.mark.parametrize(
    ("extension", "kind"), [(".png", "I;16"), (".nii.gz", "uint16"), (".tif", "uint16"), (".dcm", "")]
)
def test_many_instances(tmp_path, extension, kind):
    """300 of one voxel each."""
    path = (
        write_series(tmp_path / "a", phantom((20, 16, 1)))
        if extension == ".dcm"
        else film(tmp_path / "a.png", (20, 16))
    )
    item = load(path, [])
    places = torch.arange(300)
    masks = torch.zeros(300, 20 * 16, dtype=torch.bool)
    masks[places, places] = True
    item["pred"] = found_in(masks.reshape(300, 20, 16).numpy())
    run(tmp_path / "out", [item], extension=extension)
    file = tmp_path / "out" / f"a_instances{extension}"
    if extension == ".png":
        picture = Image.open(file)
        assert picture.mode == kind
        labels = np.asarray(picture).T
    elif extension == ".nii.gz":
        assert nibabel.load(file).get_data_dtype() == kind
        labels = np.asarray(nibabel.load(file).dataobj)
    else:
        labels = LoadImage(TiffReader() if extension == ".tif" else DicomSegReader(), dtype=None)(file).numpy()
    assert np.array_equal(labels.ravel()[:300], np.arange(1, 301)) and not labels.ravel()[300:].any()


def test_smallest_type_of_numbers():
    for count, kind in ((0, np.uint8), (255, np.uint8), (256, np.uint16), (65536, np.uint32)):
        crops = crop_masks(np.ones((1, 1, 1), bool)).take(np.zeros(count, int))
        assert _numbered(crops).dtype == kind and _numbered(crops).item() == (count > 0)


def test_refused(tmp_path, monkeypatch):
    images = [film(tmp_path / "a.png"), write_volume(tmp_path / "v.nii", np.zeros((6, 5, 4)), np.eye(4))]
    picture, volume = (load(path, []) for path in images)
    good = found_in(solids((50, 40)))
    deep = found_in(np.ones((1, 6, 5, 4), bool))
    bare = MetaTensor(torch.zeros(1, 60, 40), meta={"filename_or_obj": str(images[0])})
    moved = Flipd("image", 0)({"image": bare})["image"]
    with pytest.raises(ValueError, match=r"extension must be one of .png, .dcm, .* or None, got '.jpg'"):
        InstanceSaver(tmp_path, images, extension=".jpg")
    monkeypatch.setitem(_MOST, ".png", 2)
    for image, pred, options, message in (
        (
            picture["image"],
            {k: v for k, v in good.items() if k != "masks"},
            {},
            r"of 'a' has no 'masks', found \['boxes'",
        ),
        (picture["image"], good, {}, r"'a' has 3 instances, a .png file numbers at most 2: set min_score, or write"),
        (picture["image"], {**good, "masks": good["masks"][:2]}, {}, r"the masks of 'a' must be \(3, \*\(50, 40\)\)"),
        (picture["image"], {**good, "masks": good["masks"].float()}, {}, "of 'a' must be boolean or integer"),
        (picture["image"], {**good, "scores": good["scores"][:2]}, {}, "3 boxes of 'a' need as many labels and scores"),
        (
            picture["image"],
            good,
            {"extension": ".dcm"},
            "instances of 'a' cannot be written as .dcm: the image does not",
        ),
        (volume["image"], deep, {"extension": ".png"}, r"of 'v' cannot be written as .png: a picture has 2 axes"),
        (moved, found_in(np.ones((1, 60, 40), bool)), {}, "meta data of 'a' have no 'spatial_shape'"),
        (torch.zeros(1, 50, 40), good, {}, "InstanceSaver needs 'image' with meta data that name its file"),
        (MetaTensor(torch.zeros(1, 50, 40), meta={"filename_or_obj": "b.png"}), good, {}, "b.png' is not among"),
    ):
        evaluator = Engine(lambda engine, batch, item={"image": image, "pred": pred}: [item])
        InstanceSaver(tmp_path / "out", images, **options).attach(evaluator)
        with pytest.raises(ValueError, match=message):
            evaluator.run([0])
    evaluator = Engine(lambda engine, batch: {"pred": []})
    InstanceSaver(tmp_path / "out", images).attach(evaluator)
    with pytest.raises(ValueError, match="InstanceSaver needs decollated items"):
        evaluator.run([0])
    assert list((tmp_path / "out").iterdir()) == []


def test_files_are_complete_or_not_there(tmp_path, monkeypatch):
    def interrupted(picture, file, **options):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    item = load(film(tmp_path / "a.png"), [])
    item["pred"] = found_in(solids((50, 40)))
    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(OSError, match="disk full"):
        run(tmp_path / "out", [item])
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a_detections.mrk.json"]
