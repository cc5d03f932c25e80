# SPDX-License-Identifier: Apache-2.0
"""Pictures of what an evaluator produced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from instance_samples import blocks_of
from monai.data import MetaTensor, list_data_collate
from monai.engines import SupervisedEvaluator
from monai.transforms import Orientation
from PIL import Image

from monai_labelfx.engines import OverviewSaver
from monai_labelfx.ops.box_affine import masks_to_boxes
from monai_labelfx.visualize import overview_page


def _item(name: str, shape: tuple[int, ...]) -> dict:
    image = MetaTensor(torch.rand(1, *shape), affine=torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0])))
    image.meta["filename_or_obj"] = f"/somewhere/private/{name}.nii.gz"
    return {"image": image, "label": torch.ones(1, *shape)}


def _run(saver: OverviewSaver, items: list[dict], **options) -> None:
    saver.attach(evaluator := SupervisedEvaluator("cpu", items, torch.nn.Identity(), **options))
    evaluator.run()


def _batches(*items: dict) -> list[dict]:
    return [list_data_collate([item]) for item in items]


@pytest.mark.parametrize("shape", [(8, 9), (6, 7, 5)])
def test_one_page_of_the_first_items(tmp_path, shape):
    items = [_item(f"case{number}", shape) for number in range(3)]
    batches = _batches(*items)
    kinds = [["image", "image"], ["pred", "image", "denoised"], ["label", "labels"], ["absent", "image"]]
    _run(OverviewSaver(tmp_path / "out", items=kinds, maximum=2, panel_size=50), batches)
    (page,) = (tmp_path / "out").iterdir()
    assert page.name == "overview.png"
    height, width = np.asarray(Image.open(page)).shape[:2]
    one = OverviewSaver(tmp_path / "one", items=kinds, maximum=1, panel_size=50)
    _run(one, batches)
    assert np.asarray(Image.open(tmp_path / "one" / "overview.png")).shape[0] < height and width >= 3 * 30


@pytest.mark.parametrize("shape", [(8, 9), (6, 7, 5)])
def test_pictures_keep_their_colours(tmp_path, shape):
    item = _item("case", shape)
    item["picture"] = MetaTensor(torch.zeros(3, *shape), affine=torch.eye(4))
    item["picture"][0] = 200
    _run(OverviewSaver(tmp_path, items=[["picture", "colour"], ["label", "labels"]], panel_size=50), _batches(item))
    page = np.asarray(Image.open(tmp_path / "overview.png"))
    assert (page == (200, 0, 0)).all(axis=-1).any()


def test_an_item_without_a_reference_is_drawn_without_it(tmp_path):
    """The evaluator sets ``label`` to None where an image has no mask."""
    kinds = [["image", "image"], ["label", "labels"]]
    for name, label in (("with", torch.ones(1, 8, 9)), ("without", None)):
        item = {**_item("case", (8, 9)), "label": label}
        saver = OverviewSaver(tmp_path / name, items=kinds, panel_size=50)
        engine = Engine(lambda engine, batch: batch)
        saver.attach(engine)
        engine.run([[item]])
    drawn, bare = (Image.open(tmp_path / name / "overview.png").size for name in ("with", "without"))
    assert drawn[0] > bare[0] and drawn[1] == bare[1]


def test_one_picture_per_item_is_named_by_its_stem(tmp_path):
    saver = OverviewSaver(tmp_path, items=[["image", "image"]], per_item=True, panel_size=40)
    items = [_item(name, (6, 6)) for name in ("a", "b", "a")]
    _run(saver, _batches(*items))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.png", "a_3.png", "b.png"]
    _run(saver, [{"image": torch.zeros(1, 1, 6, 6), "label": torch.zeros(1, 1, 6, 6)}])
    assert (tmp_path / "item 1.png").is_file(), "items without a file name are numbered, and each run starts afresh"


def test_differences_and_windows(tmp_path, monkeypatch):
    import monai_labelfx.engines.overview_saver as module

    drawn = {}
    monkeypatch.setattr(module, "save_overview", lambda path, rows, **options: drawn.update(rows=rows, **options))
    items = [["image", "image"], ["change", "image", "taken away"], ["lost", "image"]]
    options = {
        "differences": {"change": ("image", "label"), "lost": ("image", "absent")},
        "windows": {"change": (-1, 1)},
    }
    _run(OverviewSaver(tmp_path, items=items, **options), _batches(item := _item("a", (6, 6))))
    (_, panels) = drawn["rows"][0]
    assert [caption for caption, _, _ in panels] == ["image", "taken away"]
    assert torch.equal(panels[1][1], (item["image"] - item["label"]).as_tensor())
    assert drawn["windows"] == {"taken away": (-1, 1)}


def test_volumes_are_drawn_upright():
    volume = MetaTensor(torch.zeros(1, 4, 4, 3), affine=torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0])))
    volume[0, 3, 3, 1] = 1.0  # right anterior in RAS: the left upper corner of a radiological view
    upright, spacing = OverviewSaver(".", items=[["image", "image"]])._prepared(volume)
    assert upright.shape == (1, 4, 4, 1) and upright[0, 0, 0, 0] == 1 and spacing == [1.0, 1.0, 2.0]
    loaded, _ = OverviewSaver(".", items=[["image", "image"]], orientation=None)._prepared(volume)
    assert loaded[0, 3, 3, 0] == 1
    whole, _ = OverviewSaver(".", items=[["image", "image"]], planes=3)._prepared(volume)
    assert whole.shape == (1, 4, 4, 3)


def test_needs_decollated_items_and_well_formed_panels(tmp_path):
    saver = OverviewSaver(tmp_path, items=[["image", "image"]])
    with pytest.raises(ValueError, match="decollate=True"):
        _run(saver, [{"image": torch.zeros(1, 1, 4, 4), "label": torch.zeros(1, 1, 4, 4)}], decollate=False)
    for wrong in ([], ["image"], [["image"]], [["a", "b", "c", "d"]]):
        with pytest.raises(ValueError, match="items must be a list"):
            OverviewSaver(tmp_path, items=wrong)


def test_no_items_no_picture(tmp_path):
    _run(OverviewSaver(tmp_path / "out", items=[["absent", "image"]]), _batches(_item("a", (4, 4))))
    assert not (tmp_path / "out").exists()


def _found(*rows, **more) -> dict:
    boxes, labels, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor(labels).long(),
        "scores": torch.tensor(scores),
        **more,
    }


def _detect(saver: OverviewSaver, image: torch.Tensor, **found) -> None:
    evaluator = Engine(lambda engine, batch: [found])
    saver.attach(evaluator)
    evaluator.run([[{"image": image}]])


BOXES = [["image", "image"], ["pred", "boxes"], [["pred", "target"], "boxes", "both"]]


def test_boxes_are_drawn_over_the_image(tmp_path):
    pred = _found(((1, 2, 5, 7), 0, 0.9), ((3, 3, 6, 6), 1, 0.1))
    target = {key: value for key, value in _found(((1, 1, 5, 6), 2, 1.0)).items() if key != "scores"}
    saver = OverviewSaver(tmp_path, items=BOXES, panel_size=60, min_score=0.5, names={0: "mass"})
    _detect(saver, MetaTensor(torch.rand(1, 8, 9)), pred=pred, target=target)
    page = np.asarray(Image.open(tmp_path / "overview.png"))
    panels = [("image", torch.zeros(1, 8, 9), "image"), ("pred", pred, "boxes"), ("both", [pred, target], "boxes")]
    options = {"panel_size": 60, "min_score": 0.5, "names": {0: "mass"}}
    assert page.shape == overview_page([("item 1", panels)], **options).shape
    colours = {tuple(pixel) for pixel in page.reshape(-1, 3).tolist()}
    assert (86, 180, 233) in colours and (0, 158, 115) in colours and (230, 159, 0) not in colours


@pytest.mark.parametrize("form", [torch.as_tensor, blocks_of])
def test_boxes_of_volumes_turn_with_them_and_choose_the_slice(form):
    affine = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0]))  # RAS: the first two axes are turned round for drawing
    volume = MetaTensor(torch.zeros(1, 8, 6, 10), affine=affine)
    masks = torch.zeros(2, 8, 6, 10, dtype=torch.bool)
    masks[0, 1:4, 1:3, 6:9] = masks[1, 5:8, 0:6, 0:3] = True
    volume[0, 1:4, 1:3, 7] = 1.0
    pred = _found(((1, 1, 6, 4, 3, 9), 0, 0.9), ((5, 0, 0, 8, 6, 3), 1, 0.5))
    pred["masks"] = masks if form is torch.as_tensor else form(masks, pred["boxes"])
    saver = OverviewSaver(".", items=BOXES[:2])
    saver._save = lambda engine: None  # type: ignore[method-assign]
    _detect(saver, volume, pred=pred)
    ((_, [(_, film, _), (_, [found], kind)]),) = saver._rows
    assert kind == "boxes" and film.shape == (1, 8, 6, 1) and saver._spacings == [[1.0, 1.0, 2.0]]
    assert found["boxes"].tolist() == [[4, 3, 0, 7, 5, 1]] and found["labels"].tolist() == [0]
    shown = (film[0, ..., 0] > 0).numpy()
    assert np.array_equal(np.argwhere(shown).min(0), found["masks"].low[0, :2]) and film.sum() == 6
    assert found["masks"].crops[0].shape == (3, 2, 1) and shown[4:7, 3:5].all(), "the best box's slice, turned alike"
    # all slices, all boxes
    saver.planes = 3
    _detect(saver, volume, pred=pred)
    ((_, [(_, film, _), (_, [found], _)]),) = saver._rows
    assert film.shape == (1, 8, 6, 10) and found["boxes"].tolist() == [[4, 3, 6, 7, 5, 9], [0, 0, 0, 3, 6, 3]]
    assert found["masks"].low.tolist() == [[4, 3, 6], [0, 0, 0]]
    assert found["masks"].high.tolist() == [[7, 5, 9], [3, 6, 3]]


@pytest.mark.parametrize("codes", ["LPS", "SAR", "IPL", "ASL"])
def test_masks_turn_with_the_image(codes):
    rng = np.random.default_rng(0)
    affine = torch.as_tensor([[0.0, -1.5, 0, 4], [2.0, 0, 0, -3], [0, 0, 3.0, 1], [0, 0, 0, 1]])
    masks = torch.zeros(2, 5, 6, 7, dtype=torch.bool)
    masks[0, 1:4, 2:6, 3:5] = torch.as_tensor(rng.random((3, 4, 2)) < 0.5)
    masks[1, 0:2, 0:3, 0:6] = torch.as_tensor(rng.random((2, 3, 6)) < 0.5)
    saver = OverviewSaver(".", items=BOXES[:2], orientation=codes, planes=3)
    pred = {**_found(((1, 2, 3, 4, 6, 5), 0, 0.9), ((0, 0, 0, 2, 3, 6), 0, 0.5)), "masks": masks}
    found = saver._upright_boxes(pred, MetaTensor(torch.zeros(1, 5, 6, 7), affine=affine))
    expected = Orientation(codes, labels=None)(MetaTensor(masks, affine=affine)).numpy()
    assert found["shape"] == expected.shape[1:] == found["masks"].shape
    for low, high, crop, mask in zip(*found["masks"][:2], found["masks"].crops, expected, strict=True):
        whole = np.zeros_like(mask)
        whole[tuple(map(slice, low, high))] = crop
        assert np.array_equal(whole, mask)


def test_masks_of_the_slice_are_drawn(tmp_path):
    """A reference that the slice misses, and one that it meets."""
    masks = torch.zeros(2, 8, 6, 10, dtype=torch.bool)
    masks[0, 1:4, 1:5, 6:9] = masks[1, 5:8, 0:3, 0:8] = True
    target = {"boxes": masks_to_boxes(masks), "labels": torch.tensor([1, 2]), "masks": masks}
    pred = _found(((5, 0, 0, 7, 2, 5), 0, 0.9), masks=[masks[1, 5:7, 0:2, 0:5]])
    volume = MetaTensor(torch.zeros(1, 8, 6, 10), affine=torch.eye(4))
    _detect(OverviewSaver(tmp_path, items=BOXES, panel_size=80), volume, pred=pred, target=target)
    page = np.asarray(Image.open(tmp_path / "overview.png")).reshape(-1, 3)
    present = {tuple(pixel) for pixel in page.tolist()}
    assert {(86, 180, 233), (0, 158, 115)} <= present and (230, 159, 0) not in present


def test_only_the_best_masks_are_kept():
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    pred = _found(*(((0, 0, k + 1, 1), k, 0.2 * (k + 1)) for k in range(3)), masks=masks)
    saver = OverviewSaver(".", items=BOXES[:2], max_boxes=2)
    kept = saver._upright_boxes(pred, torch.zeros(1, 4, 4))
    assert kept["labels"].tolist() == [2, 1] and len(kept["masks"].crops) == 2 and kept["boxes"].shape == (2, 4)
    pred["masks"] = blocks_of(masks, pred["boxes"])
    assert len(saver._upright_boxes(pred, torch.zeros(1, 4, 4))["masks"].crops) == 2


@pytest.mark.parametrize("shape", [(8, 9), (6, 7, 5)])
def test_nothing_found_or_known(tmp_path, shape):
    _detect(OverviewSaver(tmp_path, items=BOXES), MetaTensor(torch.rand(1, *shape)), pred=_found())
    assert (tmp_path / "overview.png").is_file()
    with pytest.raises(ValueError, match="boxes are drawn over an image"):
        OverviewSaver(tmp_path, items=BOXES[1:])
