# SPDX-License-Identifier: Apache-2.0
"""DetectionSaver: files in the geometry of the images as they were read, whatever preprocessing did to them."""

from __future__ import annotations

import json

import ignite.distributed as idist
import nibabel
import numpy as np
import pytest
import torch
from dicom_samples import phantom, write_series
from ignite.engine import Engine
from instance_samples import blocks_of, found_in, solids
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Flipd,
    LoadImaged,
    Orientationd,
    Resized,
    Rotate90d,
    Spacingd,
    SpatialCropd,
    SpatialPadd,
)
from PIL import Image

from monai_labelfx.data import AutoReader, load_detections
from monai_labelfx.engines.detection_saver import DetectionSaver
from monai_labelfx.ops.box_affine import boxes_through_affine, masks_to_boxes
from monai_labelfx.ops.run_length import decode_run_lengths


def detections(boxes, labels=None, scores=None) -> dict[str, torch.Tensor]:
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    count = len(boxes)
    labels = torch.arange(count) if labels is None else torch.tensor(labels)
    return {"boxes": boxes, "labels": labels, "scores": torch.tensor(scores or [0.5] * count)}


def run(saver: DetectionSaver, items: list[dict]) -> None:
    """Each item is a batch; the image comes from the batch, the prediction from the output."""
    outputs = iter([[{"pred": item["pred"]}] for item in items])
    evaluator = Engine(lambda engine, batch: next(outputs))
    saver.attach(evaluator)
    evaluator.run([[{key: value for key, value in item.items() if key != "pred"}] for item in items])


def coco(folder, name="detections.coco.json") -> list[dict]:
    return json.loads((folder / name).read_text())


def image_of(path, shape=(8, 6), **meta) -> MetaTensor:
    return MetaTensor(torch.zeros(1, *shape), meta={"filename_or_obj": str(path), **meta})


def test_pictures_in_pixels_of_the_file(tmp_path):
    Image.new("L", (40, 20)).save(tmp_path / "film.png")  # 40 wide: axis 0
    steps = [
        LoadImaged("image"),
        EnsureChannelFirstd("image"),
        Flipd("image", 0),
        Rotate90d("image"),
        Resized("image", (30, 60)),
        SpatialPadd("image", (50, 70)),
        SpatialCropd("image", roi_start=(2, 3), roi_end=(48, 70)),
    ]
    item = Compose(steps)({"image": str(tmp_path / "film.png")})
    marked = Compose(steps[2:])({"image": MetaTensor(torch.zeros(1, 40, 20))})["image"]
    assert marked.shape == item["image"].shape
    # where the rectangle 8..32 x 4..10 of the file lies now
    source = torch.zeros(1, 40, 20)
    source[0, 8:32, 4:10] = 1
    steps[4] = Resized("image", (30, 60), mode="nearest")
    now = masks_to_boxes(Compose(steps[2:])({"image": MetaTensor(source)})["image"].as_tensor())
    item["pred"] = detections(now, [3])
    run(DetectionSaver(tmp_path / "out", [tmp_path / "film.png"], names={"3": "mass"}), [item])
    found = load_detections(tmp_path / "out" / "film_detections.mrk.json")
    assert np.allclose(found["boxes"], [[8, 4, 32, 10]]) and found["names"] == {3: "mass"}
    (entry,) = coco(tmp_path / "out")
    assert np.allclose(entry.pop("bbox"), [8, 4, 24, 6])
    assert entry == {"image_id": 1, "category_id": 4, "score": 0.5, "file_name": "film"}


def test_volumes_in_voxels_and_world_of_the_file(tmp_path):
    affine = np.array([[-2.0, 0, 0, 30], [0, 0, 3.0, -7], [0, 1.5, 0, 4], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(np.zeros((12, 16, 10), np.float32), affine), tmp_path / "a.nii.gz")
    steps = [
        LoadImaged("image", reader=AutoReader()),
        EnsureChannelFirstd("image"),
        Orientationd("image", "RAS", labels=None),
        Spacingd("image", (1, 1, 1)),
    ]
    item = Compose(steps)({"image": str(tmp_path / "a.nii.gz")})
    box = torch.tensor([[3.0, 4, 5, 9, 12, 8]])
    moved = torch.linalg.inv(item["image"].affine) @ torch.from_numpy(affine)
    item["pred"] = detections(boxes_through_affine(box, moved))
    run(DetectionSaver(tmp_path / "out", [{"image": tmp_path / "a.nii.gz"}]), [item])
    path = tmp_path / "out" / "a_detections.mrk.json"
    found = load_detections(path)
    assert np.allclose(found["boxes"], box, atol=1e-4) and np.allclose(found["affine"], affine)
    corner = json.loads(path.read_text())["labelfx"]["detections"][0]["corners_lps"][0]
    assert np.allclose(corner, (affine @ [2.5, 3.5, 4.5, 1])[:3] * [-1, -1, 1], atol=1e-4)
    assert np.allclose(coco(tmp_path / "out")[0]["bbox"], [3, 4, 5, 6, 8, 3], atol=1e-4)


def test_a_dicom_series_is_called_by_its_folder(tmp_path):
    series = [write_series(tmp_path / patient / "1.2.840.1", phantom()) for patient in ("p1", "p2")]
    load = Compose(
        [LoadImaged("image", reader=AutoReader()), EnsureChannelFirstd("image"), Resized("image", (8, 6, 4))]
    )
    items = [{**load({"image": str(one)}), "pred": detections([[1, 1, 1, 3, 3, 2]])} for one in series]
    run(DetectionSaver(tmp_path / "out", series), items)
    assert [entry["file_name"] for entry in coco(tmp_path / "out")] == ["p1/1.2.840.1", "p2/1.2.840.1"]
    for patient in ("p1", "p2"):
        found = load_detections(tmp_path / "out" / patient / "1.2.840.1_detections.mrk.json")
        assert np.allclose(found["boxes"], [[2, 2, 2, 6, 6, 4]])


def test_boxes_end_with_the_image_and_those_in_padding_are_left_out(tmp_path):
    padded = SpatialPadd("image", (12, 12), method="end")({"image": image_of("a.png", spatial_shape=(8, 6))})
    boxes = [[-2, 1, 5, 9], [9, 0, 12, 12], [1, 1, 1, 4], [0, 0, 8, 6]]
    item = {**padded, "pred": detections(boxes, scores=[0.4, 0.9, 0.8, 0.3])}
    run(DetectionSaver(tmp_path, ["a.png"], min_score=0.35), [item])
    assert load_detections(tmp_path / "a_detections.mrk.json")["boxes"].tolist() == [[0, 1, 5, 6]]


def test_nothing_found_and_numbers_of_images(tmp_path):
    images = [{"image": name, "image_id": number} for name, number in (("b.png", 7), ("a.png", 3), ("c.png", 5))]
    items = [
        {"image": image_of(name), "pred": detections(boxes)}
        for name, boxes in (
            ("a.png", [[0, 0, 2, 2], [1, 1, 3, 3]]),
            ("c.png", torch.zeros(0, 4)),
            ("b.png", [[0, 0, 4, 4]]),
        )
    ]
    saver = DetectionSaver(tmp_path, images, category_ids={"0": 11, 1: 12}, coco="all.json")
    run(saver, items)
    assert [(e["image_id"], e["category_id"]) for e in coco(tmp_path, "all.json")] == [(7, 11), (3, 11), (3, 12)]
    assert len(load_detections(tmp_path / "c_detections.mrk.json")["boxes"]) == 0
    run(saver, items[1:2])
    assert coco(tmp_path, "all.json") == [], "each run starts afresh"
    run(DetectionSaver(tmp_path / "none", images, coco=None), items)
    assert len(list((tmp_path / "none").iterdir())) == 3


def test_all_processes_write_one_file(tmp_path, monkeypatch):
    saver = DetectionSaver(tmp_path, ["a.png", "b.png", "c.png"])
    # the sampler gave b to both ranks
    other = {2: [{"image_id": 2, "score": 0.5}], 3: [{"image_id": 3, "score": 0.1}]}
    monkeypatch.setattr(idist, "all_gather", lambda own: [own, other])
    items = [{"image": image_of(name), "pred": detections([[0, 0, 2, 2]])} for name in ("b.png", "a.png")]
    run(saver, items)
    assert [entry["image_id"] for entry in coco(tmp_path)] == [1, 2, 3]
    (tmp_path / "detections.coco.json").unlink()
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    run(saver, items)
    assert not (tmp_path / "detections.coco.json").exists() and (tmp_path / "a_detections.mrk.json").exists()


def test_refused(tmp_path):
    with pytest.raises(ValueError, match="'image_id' 4 belongs to 2 images"):
        DetectionSaver(tmp_path, [{"image": "a", "image_id": 4}, {"image": "b", "image_id": 4}])
    with pytest.raises(ValueError, match="all images or none must have 'image_id', got 1 of 2"):
        DetectionSaver(tmp_path, [{"image": "a", "image_id": 4}, {"image": "b"}])
    saver = DetectionSaver(tmp_path, ["dir/a.png"], category_ids={1: 1})
    good = image_of("dir/a.png")
    for item, message in (
        ({"image": image_of("b.png"), "pred": detections([])}, "'b.png' is not among|b.png' is not among"),
        ({"image": torch.zeros(1, 4, 4), "pred": detections([])}, "'image' with meta data that name its file"),
        ({"image": good, "pred": detections([[0, 0, 0, 1, 1, 1]])}, r"boxes of 'a' must have the shape \(N, 4\)"),
        ({"image": good, "pred": detections([[0, 0, 1, 1]])}, "category_ids must have the label 0 of 'a'"),
        (
            {"image": good, "pred": detections([[0, 0, 1, 1]], scores=[float("nan")])},
            "of 'a' cannot be written: .*finite",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(saver, [item])
    evaluator = Engine(lambda engine, batch: {"pred": []})
    saver.attach(evaluator)
    with pytest.raises(ValueError, match="decollate=True"):
        evaluator.run([0])
    assert not (tmp_path / "detections.coco.json").exists()


def test_images_without_original_affine(tmp_path):
    """Pictures that moved were read with the identity; arrays with an affine that did not move have it still."""
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0]))
    still = MetaTensor(torch.zeros(1, 8, 6), affine=affine, meta={"filename_or_obj": "a.png"})
    box = detections([[1, 1, 3, 3]])
    run(DetectionSaver(tmp_path, ["a.png"]), [{"image": still, "pred": box}])
    found = load_detections(tmp_path / "a_detections.mrk.json")
    assert np.array_equal(found["affine"], affine) and found["boxes"].tolist() == [[1, 1, 3, 3]]
    moved = Flipd("image", 0)({"image": image_of("a.png")})
    run(DetectionSaver(tmp_path, ["a.png"]), [{**moved, "pred": box}])
    found = load_detections(tmp_path / "a_detections.mrk.json")
    assert np.array_equal(found["affine"], np.eye(4)) and found["boxes"].tolist() == [[5, 1, 7, 3]]


@pytest.mark.parametrize("form", [torch.as_tensor, blocks_of])
def test_masks_are_run_lengths_of_the_file(tmp_path, form):
    masks = solids((8, 6, 5))
    image = image_of("a.nii.gz", (8, 6, 5), spatial_shape=(8, 6, 5))
    moved = Flipd("image", 1)({"image": image})["image"]
    pred = found_in(np.flip(masks, 2).copy(), scores=[0.3, 0.9, 0.6], labels=[0, 1, 2], form=form)
    run(DetectionSaver(tmp_path, ["a.nii.gz"], min_score=0.5), [{"image": moved, "pred": pred}])
    entries = coco(tmp_path)
    assert [entry["category_id"] for entry in entries] == [2, 3], "in falling order of the scores"
    assert entries[0]["segmentation"]["size"] == [5, 6, 8]
    assert np.array_equal(decode_run_lengths([entry["segmentation"] for entry in entries]), masks[1:])


def test_without_masks_or_without_the_file_of_all_images(tmp_path):
    pred = found_in(solids((8, 6)))
    run(DetectionSaver(tmp_path, ["a.png"]), [{"image": image_of("a.png"), "pred": {**pred, "masks": None}}])
    assert len(coco(tmp_path)) == 3 and all("segmentation" not in entry for entry in coco(tmp_path))
    wrong = {"image": image_of("a.png"), "pred": {**pred, "masks": pred["masks"][:2]}}
    run(DetectionSaver(tmp_path / "boxes", ["a.png"], coco=None), [wrong])
    with pytest.raises(ValueError, match=r"the masks of 'a' must be \(3, \*\(8, 6\)\)"):
        run(DetectionSaver(tmp_path, ["a.png"]), [wrong])
