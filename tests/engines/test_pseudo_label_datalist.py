# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os

import nibabel
import numpy as np
import pytest
import torch
from ignite import distributed as idist
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, SaveImaged

from monai_labelfx.data import NiftiWriter, OutputLayout, load_datalist, save_datalist
from monai_labelfx.engines.pseudo_label_datalist import PseudoLabelDatalist

PATH_KEYS = ["image", "label", "clean", "pseudo"]


def dataset(folder, names):
    """A datalist of NIfTI images that hold their number."""
    for number, name in enumerate(names):
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(np.full((4, 3, 2), number, np.float32), np.diag([1.0, 2, 3, 1])), path)
    items = [{"image": str(folder / "data" / name), "box": [[0, 0, 0, 2, 2, 2]]} for name in names]
    splits = {"training": items[:-1], "validation": items[-1:]}
    return load_datalist(save_datalist(folder / "data" / "datalist.json", splits))


def predict(folder, splits, layout, items=None, split="training", path="next/datalist.json"):
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(
            Dataset(
                splits[split] if items is None else items,
                Compose([LoadImaged("image"), EnsureChannelFirstd("image")]),
            ),
            batch_size=1,
        ),
        network=torch.nn.Identity(),
        postprocessing=SaveImaged(
            "pred", folder_layout=layout, output_ext=".nii.gz", writer=NiftiWriter, print_log=False, resample=True
        ),
        val_handlers=[PseudoLabelDatalist(folder / path, splits, layout, split=split)],
    )
    evaluator.run()
    return folder / path


@pytest.mark.parametrize("names", [["a.nii.gz", "b.nii.gz", "c.nii.gz"], ["p1/a.nii.gz", "p2/a.nii", "p2/b.nii"]])
def test_each_item_gets_the_file_that_was_saved_for_it(tmp_path, names):
    splits = dataset(tmp_path, names)
    layout = OutputLayout(tmp_path / "out", postfix="pseudo", extension=".nii.gz", images=splits["training"])
    written = predict(tmp_path, splits, layout)
    read = load_datalist(written, path_keys=PATH_KEYS, required=["training", "validation"])
    assert [{k: v for k, v in item.items() if k != "pseudo"} for item in read["training"]] == splits["training"]
    assert read["validation"] == splits["validation"], "other splits stay, without pseudo labels"
    for number, item in enumerate(read["training"]):
        assert os.path.isabs(item["pseudo"]) and (nibabel.load(item["pseudo"]).get_fdata() == number).all()
    raw = json.loads(written.read_text())["training"]
    assert not any(os.path.isabs(item[key]) for item in raw for key in ("image", "pseudo")), "the folder can move"
    assert sorted(p.name for p in written.parent.iterdir()) == ["datalist.json"]


def test_other_keys_and_splits(tmp_path):
    splits = dataset(tmp_path, ["a.nii", "b.nii", "c.nii"])
    layout = OutputLayout(tmp_path / "out", postfix="x", extension=".nii", images=splits["validation"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "c_x.nii").touch()
    handler = PseudoLabelDatalist(tmp_path / "n.json", splits, layout, split="validation", key="mask")
    handler(Engine(lambda engine, batch: None))
    document = json.loads((tmp_path / "n.json").read_text())
    assert document["validation"][0]["mask"] == "out/c_x.nii" and "mask" not in document["training"][0]


def test_several_splits_at_once(tmp_path):
    splits = dataset(tmp_path, ["a.nii", "b.nii", "c.nii"])
    splits["test"] = splits["training"][:1]
    layout = OutputLayout(
        tmp_path / "out", postfix="x", extension=".nii", images=splits["training"] + splits["validation"]
    )
    (tmp_path / "out").mkdir()
    for name in "abc":
        (tmp_path / "out" / f"{name}_x.nii").touch()
    PseudoLabelDatalist(tmp_path / "n.json", splits, layout, split=["training", "validation"])(
        Engine(lambda e, b: None)
    )
    document = json.loads((tmp_path / "n.json").read_text())
    assert [item["pseudo"] for name in ("training", "validation") for item in document[name]] == [
        f"out/{name}_x.nii" for name in "abc"
    ]
    assert "pseudo" not in document["test"][0]
    with pytest.raises(ValueError, match="no split 'other'"):
        PseudoLabelDatalist(tmp_path / "n.json", splits, layout, split=["training", "other"])


def test_a_list_of_files_is_named_after_the_first(tmp_path):
    splits = {"training": [{"image": [str(tmp_path / "t1.nii"), str(tmp_path / "t2.nii")]}]}
    layout = OutputLayout(tmp_path, postfix="x", extension=".nii", images=splits["training"])
    (tmp_path / "t1_x.nii").touch()
    PseudoLabelDatalist(tmp_path / "n.json", splits, layout)(Engine(lambda engine, batch: None))
    read = load_datalist(tmp_path / "n.json", path_keys=PATH_KEYS)
    assert read["training"] == [{**splits["training"][0], "pseudo": str(tmp_path / "t1_x.nii")}]


def test_a_missing_file_leaves_no_datalist(tmp_path):
    splits = dataset(tmp_path, ["a.nii", "b.nii", "c.nii"])
    layout = OutputLayout(tmp_path / "out", postfix="pseudo", extension=".nii.gz", images=splits["training"])
    with pytest.raises(FileNotFoundError, match=r"no pseudo label '.*b_pseudo.nii.gz' of image '.*b.nii'"):
        predict(tmp_path, splits, layout, items=splits["training"][:1])
    assert not (tmp_path / "next").exists()


def test_only_the_first_rank_writes_and_all_wait(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(idist, "barrier", lambda: waits.append(1))
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    splits = {"training": [{"image": "a.nii"}]}
    layout = OutputLayout(tmp_path, postfix="x", extension=".nii", images=splits["training"])
    PseudoLabelDatalist(tmp_path / "n.json", splits, layout)(Engine(lambda engine, batch: None))
    assert waits == [1] and not (tmp_path / "n.json").exists()


def test_an_unknown_split_is_named(tmp_path):
    layout = OutputLayout(tmp_path, postfix="x", extension=".nii", images=[])
    with pytest.raises(ValueError, match="has no split 'training', it has 'test'"):
        PseudoLabelDatalist(tmp_path / "n.json", {"test": []}, layout)
