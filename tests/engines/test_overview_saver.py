# SPDX-License-Identifier: Apache-2.0
"""Pictures of what an evaluator produced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.engines import SupervisedEvaluator
from PIL import Image

from monai_labelfx.engines import OverviewSaver


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


def test_one_picture_per_item_is_named_by_its_stem(tmp_path):
    saver = OverviewSaver(tmp_path, items=[["image", "image"]], per_item=True, panel_size=40)
    items = [_item(name, (6, 6)) for name in ("a", "b", "a")]
    _run(saver, _batches(*items))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.png", "a_3.png", "b.png"]
    _run(saver, [{"image": torch.zeros(1, 1, 6, 6), "label": torch.zeros(1, 1, 6, 6)}])
    assert (tmp_path / "item 1.png").is_file(), "items without a file name are numbered, and each run starts afresh"


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
