# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import Compose, Flip, RandFlipd

from monai_labelfx.transforms.grid_patch_samples import GridPatchSamplesd, RandGridPatchSamplesd
from tests.testers import AFFINE, assert_same, containers

SHAPES = {2: (20, 14), 3: (12, 10, 8)}
GRIDS = {
    2: [[0, 0, 8, 6], [12, 8, 8, 6], [4, 3, 8, 6], [2, 2, 8, 6]],
    3: [[0, 0, 0, 8, 6, 4], [4, 4, 4, 8, 6, 4], [1, 2, 3, 8, 6, 4], [2, 2, 2, 8, 6, 4]],
}
LABELS = torch.tensor([[1, 0], [-1, -1], [-1, 1], [1, 1]])


def item_of(spatial_dims: int, channels: int = 3, image=None) -> dict:
    values = np.random.default_rng(0).normal(size=(channels, *SHAPES[spatial_dims])).astype(np.float32)
    return {
        "image": values if image is None else image,
        "patches": torch.tensor(GRIDS[spatial_dims]),
        "patch_labels": LABELS.to(torch.int8),
        "patient": "p",
    }


def cut(values, row) -> torch.Tensor:
    ndim = values.ndim - 1
    return torch.as_tensor(values)[
        (slice(None), *(slice(s, s + n) for s, n in zip(row[:ndim], row[ndim:], strict=True)))
    ]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_every_known_patch_in_order(spatial_dims):
    item = item_of(spatial_dims)
    item["sub_labels"] = torch.arange(8).reshape(4, 2)
    before = copy.deepcopy(item)
    samples = GridPatchSamplesd()(item)
    assert [one["patch_index"] for one in samples] == [0, 2, 3]
    for one in samples:
        row = one["patch_index"]
        assert set(one) == {"image", "patch_label", "patch_index", "sub_label"}
        assert torch.equal(one["image"], cut(item["image"], GRIDS[spatial_dims][row]))
        assert one["patch_label"].tolist() == LABELS[row].tolist() and one["patch_label"].dtype == torch.int8
        assert one["sub_label"].tolist() == item["sub_labels"][row].tolist()
        one["image"].zero_()
    assert np.array_equal(item["image"], before["image"]), "samples share the memory of the image"


@pytest.mark.parametrize(("spatial_dims", "mode"), [(2, "bilinear"), (3, "trilinear")])
def test_patches_are_resized_as_torch_does(spatial_dims, mode):
    item = item_of(spatial_dims)
    size = (16, 13, 9)[:spatial_dims]
    for one in GridPatchSamplesd("image", size)(item):
        patch = cut(item["image"], GRIDS[spatial_dims][one["patch_index"]])
        expected = F.interpolate(patch[None], size, mode=mode)[0]
        assert torch.allclose(one["image"], expected, atol=1e-6)


def test_masks_are_resized_to_the_nearest_voxel():
    item = item_of(2)
    item["label"] = torch.randint(0, 5, (1, *SHAPES[2]), dtype=torch.uint8)
    for one in GridPatchSamplesd(["image", "label"], (16, 3), mode=["linear", "nearest"])(item):
        patch = cut(item["label"], GRIDS[2][one["patch_index"]])
        expected = F.interpolate(patch[None].float(), (16, 3), mode="nearest-exact")[0].to(torch.uint8)
        assert torch.equal(one["label"], expected) and one["image"].shape == (3, 16, 3)


def test_whole_number_pictures_are_resized_as_floats():
    item = item_of(2, image=torch.arange(3 * 280, dtype=torch.uint8).reshape(3, 20, 14))
    assert GridPatchSamplesd()(item)[0]["image"].dtype == torch.uint8
    assert GridPatchSamplesd("image", 4)(item)[0]["image"].dtype == torch.float32


@pytest.mark.parametrize("extent", [1, 2, 5, 9])
def test_an_image_shorter_than_the_patch_is_continued_by_reflection(extent):
    image = np.random.default_rng(0).normal(size=(2, extent, 20)).astype(np.float32)
    item = {"image": image, "patches": torch.tensor([[0, 4, extent, 10]]), "patch_labels": torch.tensor([[1, 0]])}
    (one,) = GridPatchSamplesd("image", patch_size=10)(item)
    before = (10 - extent) // 2
    expected = np.pad(image, ((0, 0), (before, 10 - extent - before), (0, 0)), mode="reflect")[:, :, 4:14]
    assert torch.equal(one["image"], torch.from_numpy(expected))
    assert GridPatchSamplesd()(item)[0]["image"].shape == (2, extent, 10)
    assert GridPatchSamplesd(patch_size=4)(item)[0]["image"].shape == (2, max(extent, 4), 10)
    world = MetaTensor(torch.zeros(1, extent, 20), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    assert GridPatchSamplesd(patch_size=20, unit="mm")({**item, "image": world})[0]["image"].shape == (1, 10, 10)


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_containers_agree_and_the_affine_is_that_of_the_piece(spatial_dims, random):
    def fresh():
        options = {"scale": (0.4, 0.9), "ratio": (0.8, 1.2)} if random else {}
        kind = RandGridPatchSamplesd if random else GridPatchSamplesd
        transform = kind(output_size=(16, 13, 9)[:spatial_dims], **options)
        return transform.set_random_state(5) if random else transform

    # An image whose values are its own world coordinates, which linear interpolation keeps where it enlarges.
    places = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in SHAPES[spatial_dims]), indexing="ij"))
    flat = torch.cat(
        [places.flatten(1), torch.zeros(3 - spatial_dims, places[0].numel()), torch.ones(1, places[0].numel())]
    )
    world = (AFFINE @ flat)[:3].reshape(3, *SHAPES[spatial_dims])
    results = [fresh()(item_of(spatial_dims, image=data)) for data in containers(world.numpy()).values()]
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            assert_same(one, other)
    for one in results[2]:
        piece = one["image"]
        assert isinstance(piece, MetaTensor) and not piece.applied_operations
        middle = [slice(2, -2)] * spatial_dims  # at the edge the outermost voxels are repeated
        at = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in piece.shape[1:]), indexing="ij")).flatten(1)
        at = torch.cat([at, torch.zeros(3 - spatial_dims, at.shape[1]), torch.ones(1, at.shape[1])]).double()
        expected = (piece.affine @ at)[:3].reshape(3, *piece.shape[1:])[(slice(None), *middle)]
        assert torch.allclose(piece.as_subclass(torch.Tensor)[(slice(None), *middle)].double(), expected, atol=1e-4)


def test_the_same_seed_gives_the_same_draws_and_another_one_others():
    item = item_of(2)
    options = {"num_samples": 5, "output_size": 8, "scale": (0.5, 1), "ratio": (0.75, 1.3), "balanced": True}

    def draws(seed, transform=None):
        return (transform or RandGridPatchSamplesd(**options)).set_random_state(seed)(item)

    clone = pickle.loads(pickle.dumps(RandGridPatchSamplesd(**options)))
    for first, second in zip(draws(3), draws(3, clone), strict=True):
        assert_same(first, second)
    assert any(not torch.equal(a["image"], b["image"]) for a, b in zip(draws(3), draws(4), strict=True))


def test_draws_go_through_all_known_patches_before_they_repeat():
    draw = RandGridPatchSamplesd(num_samples=7).set_random_state(0)
    for _ in range(5):
        rows = [one["patch_index"] for one in draw(item_of(2))]
        assert sorted(rows[:3]) == sorted(rows[3:6]) == [0, 2, 3] and rows[6] in (0, 2, 3)


def test_balanced_draws_show_each_class_present_and_absent():
    labels = torch.tensor([[1, 1]] * 18 + [[1, 0]] + [[-1, -1]])
    item = {"image": torch.zeros(1, 4, 40), "patch_labels": labels}
    item["patches"] = torch.tensor([[0, 2 * n, 2, 2] for n in range(20)])
    plain = RandGridPatchSamplesd(num_samples=6).set_random_state(0)
    balanced = RandGridPatchSamplesd(num_samples=6, balanced=True).set_random_state(0)
    absent = [[one["patch_label"].tolist() == [1, 0] for one in draw(item)] for draw in [plain] * 50 + [balanced] * 50]
    rare, alike = np.mean(absent[:50]), np.mean(absent[50:])
    assert rare == pytest.approx(1 / 19, abs=0.03)
    assert alike >= 1 / 3, "the only absent label comes every third time at least"
    assert all(sum(one) >= 2 for one in absent[50:]), "in each call"


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_windows_have_the_wanted_volume_and_lie_in_the_patch(spatial_dims):
    shape = (60, 60, 60)[:spatial_dims]
    places = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"))
    item = {"image": places, "patches": torch.tensor([[10] * spatial_dims + [40] * spatial_dims])}
    item["patch_labels"] = torch.tensor([[1, 0]])
    draw = RandGridPatchSamplesd(num_samples=60, scale=(0.5, 0.7), ratio=(0.75, 4 / 3)).set_random_state(0)
    shares, ratios = [], []
    for one in draw(item):
        values = one["image"].flatten(1)
        assert values.min() >= 10 and values.max() <= 49
        sides = [n / 40 for n in one["image"].shape[1:]]
        shares.append(np.prod(sides))
        ratios.append(sides[0] / sides[1])
    slack = 0.03 * spatial_dims
    assert 0.5 - slack <= min(shares) < 0.56 and 0.64 < max(shares) <= 0.7 + slack
    assert 0.7 <= min(ratios) < 0.85 and 1.2 < max(ratios) <= 1.4
    assert len({tuple(one["image"].flatten(1)[:, 0].tolist()) for one in draw(item)}) > 10, "places must differ"


def test_lists_go_through_compose_cache_and_loader():
    items = [item_of(2, image=MetaTensor(torch.rand(3, *SHAPES[2]), affine=AFFINE)) for _ in range(2)]
    chain = Compose([GridPatchSamplesd("image", 6), RandFlipd("image", prob=0.5)])
    batch = next(iter(DataLoader(CacheDataset(items, chain, progress=False), batch_size=2)))
    assert batch["image"].shape == (6, 3, 6, 6) and batch["patch_label"].shape == (6, 2)
    assert batch["patch_index"].tolist() == [0, 2, 3, 0, 2, 3]
    cached = CacheDataset(items, RandGridPatchSamplesd(num_samples=1), progress=False)
    assert len({one["patch_index"] for _ in range(40) for one in cached[0]}) == 3, "a cache must not freeze the draws"


def test_a_piece_does_not_remember_what_cannot_be_undone_on_it():
    moved = Flip(0)(MetaTensor(torch.rand(3, *SHAPES[2]), affine=AFFINE))
    assert moved.applied_operations
    assert not GridPatchSamplesd()(item_of(2, image=moved))[0]["image"].applied_operations
    assert moved.applied_operations


def test_bad_input_is_named():
    named = MetaTensor(torch.zeros(1, *SHAPES[2]), meta={"filename_or_obj": "a.png"})
    unknown = {**item_of(2, image=named), "patch_labels": torch.full((4, 2), -1)}
    for transform in (GridPatchSamplesd(), RandGridPatchSamplesd()):
        with pytest.raises(
            ValueError, match="image 'a.png' has 4 patches and no known label: tick some of them, or take"
        ):
            transform(unknown)
    with pytest.raises(KeyError, match="GridPatchSamplesd: the item has no 'patch_labels'"):
        GridPatchSamplesd()({"image": 1, "patches": 1})
    for keys, allow in (("other", False), ("other", True), (["image", "other"], False)):
        with pytest.raises(KeyError, match="other"):
            GridPatchSamplesd(keys, allow_missing_keys=allow)(item_of(2))
    assert "other" not in GridPatchSamplesd(["other", "image"], allow_missing_keys=True)(item_of(2))[0]
    with pytest.raises(
        ValueError, match=r"'label' of the image must lie on the grid of 'image', \(20, 14\), got \(5, 5\)"
    ):
        GridPatchSamplesd(["image", "label"])({**item_of(2), "label": torch.zeros(1, 5, 5)})
    with pytest.raises(ValueError, match="patch 0 of the image must lie in the image"):
        GridPatchSamplesd()({**item_of(2), "patches": torch.tensor([[0, 0, 99, 1]] * 4)})
    for options, message in (
        ({"num_samples": 0}, "num_samples must be a whole number of 1 or more, got 0"),
        ({"scale": (0, 1)}, r"scale must be two numbers, 0 < low <= high <= 1, got \(0, 1\)"),
        ({"scale": (0.5, 1.5)}, "scale must be"),
        ({"ratio": (2, 1)}, "ratio must be two numbers, 0 < low <= high"),
        ({"mode": "cubic"}, "mode must be one of 'linear', 'nearest', got 'cubic'"),
        ({"unit": "cm"}, "unit must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            RandGridPatchSamplesd(**options)
