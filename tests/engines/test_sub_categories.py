# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from ignite import distributed as idist
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, ScaleIntensityd, Spacingd
from PIL import Image

from monai_labelfx.cams import PlainCAM
from monai_labelfx.data import load_datalist, save_datalist
from monai_labelfx.engines.patch_prepare_batch import PatchPrepareBatch
from monai_labelfx.engines.sub_categories import SubCategories, place_in_file, sub_categories
from monai_labelfx.inferers.batch_inferer import BatchInferer
from monai_labelfx.transforms.grid_patch_labels import GridPatchLabelsd
from monai_labelfx.transforms.grid_patch_samples import GridPatchSamplesd
from monai_labelfx.transforms.read_patch_labels import ReadPatchLabelsd
from tests.cam_tester import SmallNetwork

PATH_KEYS = ["image", "label", "patches"]


# --- k-means -------------------------------------------------------------------------------------------------------
def groups(count=30, width=6, number=3, seed=0):
    rng = np.random.default_rng(seed)
    own = rng.integers(number, size=count)
    centres = 10 * np.eye(number, width)
    return (centres[own] + 0.1 * rng.standard_normal((count, width))).astype(np.float32), own


def same_partition(one, other):
    return len(set(zip(one.tolist(), other.tolist(), strict=True))) == len(set(one)) == len(set(other))


@pytest.mark.parametrize("seed", range(5))
def test_obvious_groups_are_found_for_each_class(seed):
    features, own = groups(seed=seed, number=2)
    labels = np.stack([np.ones(30), np.arange(30) % 3 - 1], 1)  # class 1: unknown, absent, present in turn
    found = sub_categories(features, labels, 2, seed=seed)
    assert same_partition(found[:, 0], own)
    held = labels[:, 1] == 1
    assert same_partition(found[held, 1], own[held]) and (found[~held, 1] == -1).all()


def test_centres_are_the_means_of_their_nearest_rows():
    features = np.random.default_rng(0).standard_normal((200, 5))
    found = sub_categories(features, np.ones((200, 1)), 7)[:, 0]
    centres = np.stack([features[found == c].mean(0) for c in range(7)])
    nearest = ((features[:, None] - centres) ** 2).sum(2).argmin(1)
    assert (nearest == found).all()  # Lloyd's steps have come to their end


def test_clusters_are_numbered_as_they_come_and_depend_on_the_seed_alone():
    features = np.random.default_rng(1).standard_normal((100, 3))
    labels = np.ones((100, 2))
    found = sub_categories(features, labels, 5, seed=3)
    for k in range(2):
        assert list(dict.fromkeys(found[:, k].tolist())) == [0, 1, 2, 3, 4]
    assert (found == sub_categories(features, labels, 5, seed=3)).all()
    assert (found != sub_categories(features, labels, 5, seed=4)).any()
    alone = sub_categories(features, np.array([[0, 1]] * 100), 5, seed=3)
    assert (alone[:, 1] == found[:, 1]).all() and (alone[:, 0] == -1).all()  # whatever other classes there are


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_fewer_patches_than_clusters_are_clusters_of_their_own(kind):
    features = np.array([[1.0], [2.0], [1.0], [3.0]], kind)
    assert sub_categories(np.ones((6, 2), kind), np.ones((6, 1)), 10)[:, 0].tolist() == [0] * 6
    assert sub_categories(features, np.ones((4, 1)), 10)[:, 0].tolist() == [0, 1, 0, 2]
    assert sub_categories(features, np.zeros((4, 1)), 10)[:, 0].tolist() == [-1] * 4
    assert sub_categories(features[:0], np.zeros((0, 2)), 10).shape == (0, 2)
    assert sub_categories(features, np.ones((4, 1)), 1)[:, 0].tolist() == [0] * 4


def test_duplicates_give_no_warning():
    features = np.repeat(np.eye(4), 25, axis=0)
    features[:3] += 1e-3 * np.eye(4)[:3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sub_categories(features, np.ones((100, 1)), 6)
    assert found.min() == 0 and found.max() <= 5


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="clusters must be 1 or more, got 0"):
        sub_categories(np.zeros((2, 1)), np.zeros((2, 1)), 0)
    with pytest.raises(ValueError, match=r"features must be \(N, F\) and labels \(N, K\), got \(2, 1\) and \(3, 1\)"):
        sub_categories(np.zeros((2, 1)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="features must be finite"):
        sub_categories(np.full((2, 1), np.nan), np.ones((2, 1)))


# --- the stage -----------------------------------------------------------------------------------------------------
def pictures(folder, names):
    """Pictures of 24 x 16 pixels whose brightness grows to the right, with masks."""
    items = []
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.tile(np.linspace(0, 255, 24, dtype=np.uint8), (16, 1)) // (number + 1)
        Image.fromarray(values).save(path)
        Image.fromarray((values > 100).astype(np.uint8)).save(path.with_suffix(".mask.png"))
        items.append({"image": str(path), "label": str(path.with_suffix(".mask.png"))})
    return items


def volumes(folder, names):
    """Volumes that lie left to right and are twice as thick along the third axis, with masks."""
    items = []
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).random((12, 16, 8)).astype(np.float32)
        affine = np.diag([-1.0, 1.0, 2.0, 1.0])
        affine[0, 3] = 30
        nibabel.save(nibabel.Nifti1Image(values, affine), path)
        nibabel.save(
            nibabel.Nifti1Image((values > 0.9).astype(np.uint8), affine), str(path).replace(".nii", "_mask.nii")
        )
        items.append({"image": str(path), "label": str(path).replace(".nii", "_mask.nii")})
    return items


def chain(moved, *more):
    spatial = [
        Orientationd(["image", "label"], "RAS"),
        Spacingd(["image", "label"], (1, 1, 1), mode=("bilinear", "nearest")),
    ]
    return Compose(
        [LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"]), *(spatial if moved else []), *more]
    )


def cluster(folder, splits, *, moved=False, split="training", output=None, **options):
    """Run the stage over patches of 8 voxels every 8."""
    torch.manual_seed(0)
    ndim = 3 if moved else 2
    provider = PlainCAM(SmallNetwork(ndim))
    transform = chain(
        moved, GridPatchLabelsd(patch_size=8, stride=8), ScaleIntensityd("image"), GridPatchSamplesd(output_size=12)
    )
    handler = SubCategories(folder / "next" / "datalist.json", splits, path_keys=PATH_KEYS, **options)
    inferer = BatchInferer(4)
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(splits[split], transform), batch_size=1),
        network=provider,
        inferer=output or (lambda images, network: inferer(images, network.features)),
        prepare_batch=PatchPrepareBatch(),
        val_handlers=[handler],
    ).run()
    return folder / "next" / "datalist.json"


def splits_of(folder, make, names):
    items = make(folder / "data", names)
    return load_datalist(
        save_datalist(folder / "data" / "datalist.json", {"training": items[:-1], "validation": items[-1:]})
    )


@pytest.mark.parametrize("moved", [False, True])
def test_the_next_round_reads_the_same_patches_with_their_clusters(tmp_path, moved):
    names = ["a.nii", "p/a.nii", "b.nii"] if moved else ["a.png", "p/a.png", "b.png"]
    splits = splits_of(tmp_path, volumes if moved else pictures, names)
    written = cluster(tmp_path, splits, moved=moved, clusters=3)
    found = load_datalist(written, path_keys=PATH_KEYS)
    table = str(tmp_path / "next" / "sub_categories.csv")
    assert found["validation"] == splits["validation"]
    assert found["training"] == [{**item, "patches": table} for item in splits["training"]]
    assert json.loads(written.read_text())["training"][0]["patches"] == "sub_categories.csv"
    read = chain(moved, ReadPatchLabelsd(), GridPatchLabelsd(patch_size=8, stride=8))
    made = chain(moved, GridPatchLabelsd(patch_size=8, stride=8))
    numbers, labels = [], []
    for item, source in zip(found["training"], splits["training"], strict=True):
        new, old = read(item), made(source)
        assert new["patches"].shape == old["patches"].shape
        assert (new["patches"] - old["patches"]).abs().max() <= int(moved)  # half a voxel of the file is 1 mm
        assert torch.equal(new["patch_labels"], old["patch_labels"])
        assert ((new["sub_labels"] >= 0) == (new["patch_labels"] == 1)).all()
        numbers.append(new["sub_labels"])
        labels.append(new["patch_labels"])
    numbers, labels = torch.cat(numbers), torch.cat(labels)
    assert (labels[:, 0] == 1).sum() > 3 and set(numbers[labels[:, 0] == 1][:, 0].tolist()) == {0, 1, 2}


def test_clusters_are_those_of_the_features(tmp_path):
    splits = splits_of(tmp_path, pictures, ["a.png", "b.png", "c.png"])
    written = cluster(tmp_path, splits, clusters=2, seed=5, table=tmp_path / "here.csv")
    torch.manual_seed(0)
    provider = PlainCAM(SmallNetwork(2))
    transform = chain(
        False, GridPatchLabelsd(patch_size=8, stride=8), ScaleIntensityd("image"), GridPatchSamplesd(output_size=12)
    )
    patches = [one for item in splits["training"] for one in transform(item)]
    features = provider.features(torch.stack([one["image"] for one in patches])).detach().numpy()
    expected = sub_categories(features, torch.stack([one["patch_label"] for one in patches]).numpy(), 2, seed=5)
    item = load_datalist(written, path_keys=PATH_KEYS)["training"][0]
    assert item["patches"] == str(tmp_path / "here.csv")
    read = chain(False, ReadPatchLabelsd())
    numbers = [read({**one, "patches": item["patches"]})["sub_labels"] for one in splits["training"]]
    assert torch.equal(torch.cat(numbers), torch.from_numpy(expected))
    before = (tmp_path / "here.csv").read_bytes()
    cluster(tmp_path, splits, clusters=2, seed=5, table=tmp_path / "here.csv")
    assert (tmp_path / "here.csv").read_bytes() == before


def test_ranks_are_put_together_and_doubles_counted_once(tmp_path, monkeypatch):
    splits = splits_of(tmp_path, pictures, ["a.png", "b.png", "c.png"])
    cluster(tmp_path, splits)
    alone = (tmp_path / "next" / "sub_categories.csv").read_text()
    gather = idist.all_gather

    def two_ranks(rows):
        keys = list(rows)
        return [{key: rows[key] for key in keys[7:]}, {key: rows[key] for key in keys[:9]}]

    monkeypatch.setattr(idist, "all_gather", lambda rows: two_ranks(rows) if isinstance(rows, dict) else gather(rows))
    cluster(tmp_path, splits)
    assert (tmp_path / "next" / "sub_categories.csv").read_text() == alone
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    Path(tmp_path / "next" / "datalist.json").unlink()
    cluster(tmp_path, splits)
    assert not (tmp_path / "next" / "datalist.json").exists()


def test_continued_patches_end_with_the_image():
    patch = MetaTensor(
        torch.zeros(1, 16, 16), affine=torch.tensor([[1.0, 0, 4, 0], [0, 1, 0, -4], [0, 0, 1, 0], [0, 0, 0, 1]])
    )
    patch.affine = torch.tensor(
        [[0.5, 0, 0, 1.75], [0, 0.5, 0, -2.25], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64
    )
    patch.meta["spatial_shape"] = np.array([10, 5])
    assert place_in_file(patch).tolist() == [2, 0, 8, 5]


@pytest.mark.parametrize(
    ("split", "output", "message"),
    [
        ("validation", None, r"image .*c\.png' is not of the split 'training'"),
        ("training", lambda images, network: network.network.features(images), r"must be its features \(F,\)"),
    ],
)
def test_what_is_wrong_ends_in_a_sentence(tmp_path, split, output, message):
    splits = splits_of(tmp_path, pictures, ["a.png", "b.png", "c.png"])
    with pytest.raises(ValueError, match=message):
        cluster(tmp_path, splits, split=split, output=output)
    assert not (tmp_path / "next" / "datalist.json").exists()


def test_images_without_patches_are_refused(tmp_path):
    splits = splits_of(tmp_path, pictures, ["a.png", "b.png", "c.png"])
    seen = {"training": splits["training"] + splits["validation"], "seen": splits["training"]}
    with pytest.raises(ValueError, match=r"no patch of image .*c\.png' was seen"):
        cluster(tmp_path, seen, split="seen")
    with pytest.raises(ValueError, match="the datalist has no split 'test', it has 'training', 'validation'"):
        SubCategories(tmp_path / "x.json", splits, split="test")
    with pytest.raises(ValueError, match="clusters must be 1 or more, got 0"):
        SubCategories(tmp_path / "x.json", splits, clusters=0)
    handler = SubCategories(tmp_path / "x.json", splits)
    engine = Engine(lambda engine, batch: None)
    handler.attach(engine)
    with pytest.raises(ValueError, match="decollate=True"):
        engine.run([0])
