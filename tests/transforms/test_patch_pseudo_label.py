# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor

from monai_labelfx.ops.patch_grid import patch_grid
from monai_labelfx.transforms.grid_patch_labels import GridPatchLabels
from monai_labelfx.transforms.patch_pseudo_label import PatchPseudoLabel, PatchPseudoLabeld
from tests.testers import assert_same, containers

SHAPES = {2: (13, 11), 3: (9, 8, 7)}


def case(spatial_dims: int, classes: int = 3, seed: int = 0, gap: bool = False):
    """Scores, overlapping patches and random labels, each patch with a class that is not absent."""
    rng = np.random.default_rng(seed)
    shape = SHAPES[spatial_dims]
    starts = patch_grid(shape, 4, 6 if gap else 2)
    patches = torch.cat([starts, torch.full_like(starts, 4)], 1)
    labels = rng.integers(-1, 2, (len(patches), classes))
    labels[np.arange(len(patches)), rng.integers(0, classes, len(patches))] = rng.integers(0, 2, len(patches)) * 2 - 1
    return rng.normal(size=(classes, *shape)) * 3, patches, torch.from_numpy(labels)


def window(row) -> tuple[slice, ...]:
    half = len(row) // 2
    return tuple(slice(s, s + n) for s, n in zip(row[:half], row[half:], strict=True))


def naive(scores, patches, labels, score) -> tuple[np.ndarray, np.ndarray]:
    """Patch by patch in float64: sums of masked scores and the number of patches; ``score`` masks one patch."""
    total, count = np.zeros(scores.shape), np.zeros(scores.shape[1:])
    for row, label in zip(patches.tolist(), labels.tolist(), strict=True):
        place = window(row)
        allowed = np.array([one != 0 for one in label])
        total[(slice(None), *place)] += score(scores[(slice(None), *place)], allowed)
        count[place] += 1
    return total, count


def masked_softmax(scores, allowed, temperature=1.0) -> np.ndarray:
    powers = np.exp(scores / temperature) * allowed.reshape(-1, *[1] * (scores.ndim - 1))
    return powers / powers.sum(0)


def hard_vote(scores, patches, labels) -> np.ndarray:
    """Argmax in each patch, mean of the numbers of the classes, rounded half to even."""

    def vote(part, allowed):
        part = np.where(allowed.reshape(-1, *[1] * (part.ndim - 1)), part, -np.inf)
        return np.broadcast_to(part.argmax(0), part.shape)

    total, count = naive(scores, patches, labels, vote)
    return np.rint(total[0] / count).astype(int)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("gap", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_competing_classes_are_those_of_a_loop_over_patches(spatial_dims, gap, temperature):
    scores, patches, labels = case(spatial_dims, gap=gap)
    found = PatchPseudoLabel(temperature=temperature)(scores, patches, labels)
    total, count = naive(scores, patches, labels, lambda part, allowed: masked_softmax(part, allowed, temperature))
    assert bool((count == 0).any()) is gap, "the case shows nothing"
    everything = masked_softmax(scores, np.ones(3, bool), temperature)
    expected = np.where(count > 0, total / np.maximum(count, 1), everything)
    assert found[""].dtype == np.float64 and np.allclose(found[""], expected, atol=1e-12)
    assert np.allclose(found[""].sum(0), 1)
    assert np.array_equal(found["_pseudo"][0], expected.argmax(0)) and found["_pseudo"].dtype == np.uint8
    assert np.array_equal(found["_cam"][0], scores.argmax(0)) and found["_cam"].dtype == np.uint8
    single = PatchPseudoLabel(temperature=temperature)(scores.astype(np.float32), patches, labels)
    assert single[""].dtype == np.float32 and np.allclose(single[""], expected, atol=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("gap", [False, True])
def test_foreground_scores_are_those_of_a_loop_over_patches(spatial_dims, gap):
    scores, patches, labels = case(spatial_dims, gap=gap, seed=1)
    found = PatchPseudoLabel("foreground", background=0.3)(scores, patches, labels)
    allowing, count = naive(
        scores,
        patches,
        labels,
        lambda part, allowed: np.broadcast_to(allowed.reshape(-1, *[1] * (part.ndim - 1)), part.shape),
    )
    allowing, count = np.where(count > 0, allowing, 1), np.maximum(count, 1)
    expected = np.full(scores.shape, 0.3)
    for k in range(1, 3):
        seen = np.maximum(scores[k], 0) * (allowing[k] > 0)
        expected[k] = seen / seen.max()
    expected *= allowing / count
    assert np.allclose(found[""], expected, atol=1e-12) and found[""].min() >= 0 and found[""].max() <= 1
    assert np.array_equal(found["_pseudo"][0], np.where(allowing > 0, expected, -1).argmax(0))
    whole = np.maximum(scores, 0) / np.maximum(scores, 0).max((*range(1, scores.ndim),), keepdims=True)
    whole[0] = 0.3
    assert np.array_equal(found["_cam"][0], whole.argmax(0))


def test_the_default_background_is_a_constant_and_absent_background_never_wins():
    scores = torch.tensor([[[9.0, 9, 9, 9]], [[4.0, 1, 1.2, -1]]])
    patches = torch.tensor([[0, 0, 1, 3], [0, 3, 1, 1]])
    found = PatchPseudoLabel("foreground")(scores, patches, torch.tensor([[1, 1], [0, 1]]))
    assert found["_pseudo"].tolist() == [[[1, 0, 1, 1]]] and found["_cam"].tolist() == [[[1, 0, 1, 0]]]
    assert torch.allclose(found[""][0, 0], torch.tensor([0.26, 0.26, 0.26, 0]))
    none = PatchPseudoLabel("foreground")(-scores, patches, torch.tensor([[1, 1], [1, 0]]))
    assert none["_pseudo"].tolist() == [[[0, 0, 0, 0]]] and none[""].isfinite().all()


def test_ties_that_a_hard_vote_loses():
    scores = np.array([[[0.1]], [[0.0]]])
    patches, labels = torch.tensor([[0, 0, 1, 1]] * 4), torch.tensor([[1, 1], [1, 1], [0, 1], [0, 1]])
    found = PatchPseudoLabel()(scores, patches, labels)
    assert hard_vote(scores, patches, labels).tolist() == [[0]] and found["_pseudo"].tolist() == [[[1]]]
    assert float(found[""][1, 0, 0]) == pytest.approx((2 + 2 / (1 + np.exp(0.1))) / 4)


def test_classes_0_and_2_never_become_1():
    scores = np.random.default_rng(0).normal(size=(3, 20, 20))
    starts = patch_grid((20, 20), 8, 4)
    patches = torch.cat([starts, torch.full_like(starts, 8)], 1)
    labels = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 0, 1]])[torch.arange(len(patches)) % 3]
    found = PatchPseudoLabel()(scores, patches, labels)
    assert set(np.unique(found["_pseudo"])) == {0, 2} and found[""][1].max() == 0
    assert (hard_vote(scores, patches, labels) == 1).mean() > 0.2, "the vote of the authors invents class 1"


@pytest.mark.parametrize("classes", [2, 3])
def test_soft_merging_is_nearer_to_the_truth_than_the_hard_vote_and_than_no_labels(classes):
    rng = np.random.default_rng(3)
    truth = np.repeat(np.repeat(rng.integers(0, classes, (8, 8)), 8, 0), 8, 1)
    scores = np.stack([(truth == k) * 1.0 for k in range(classes)]) + rng.normal(size=(classes, 64, 64))
    ticked = GridPatchLabels(12, stride=6, classes=classes)(truth[None])
    patches, labels = ticked["patches"], ticked["patch_labels"]
    found = PatchPseudoLabel()(scores, patches, labels)
    soft, hard, plain = (
        float((one == truth).mean())
        for one in (found["_pseudo"][0], hard_vote(scores, patches, labels), found["_cam"][0])
    )
    assert soft > hard and soft > plain + 0.02, (soft, hard, plain)


def test_no_seams_where_all_patches_agree_and_small_steps_where_they_do_not():
    place = torch.linspace(-2, 2, 64)
    scores = torch.stack([place, -place]).unsqueeze(-1)
    starts = patch_grid((64, 1), (16, 1), (4, 1))
    patches = torch.cat([starts, torch.tensor([[16, 1]]).expand_as(starts)], 1)
    same = torch.ones(len(patches), 2, dtype=torch.int8)
    whole = PatchPseudoLabel()(scores, patches, same)[""]
    assert torch.allclose(whole, scores.softmax(0), atol=1e-6)
    one = same.clone()
    one[len(one) // 2, 0] = 0
    step = PatchPseudoLabel()(scores, patches, one)[""][0].diff(dim=0).abs().max()
    assert step <= 0.25 + 0.05, "of four patches that cover a voxel one has changed"


def test_unsure_and_uncovered_voxels_are_ignored():
    scores = torch.tensor([[[0.0, 2.0, 0.0]], [[0.1, 0.0, 9.0]]])
    patches, labels = torch.tensor([[0, 0, 1, 2]]), torch.tensor([[-1, -1]])
    assert PatchPseudoLabel(min_confidence=0.6)(scores, patches, labels)["_pseudo"].tolist() == [[[255, 0, 1]]]
    left = PatchPseudoLabel(uncovered="ignore", ignore_index=7)(scores, patches, labels)
    assert left["_pseudo"].tolist() == [[[1, 0, 7]]] and left[""][:, 0, 2].tolist() == [0, 0]
    none = PatchPseudoLabel()(scores, torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 2))
    assert none["_pseudo"].tolist() == [[[1, 0, 1]]]


def test_large_scores_stay_finite_in_half_precision():
    scores = torch.tensor([[[3e4, -3e4]], [[-3e4, 3e4]]], dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = PatchPseudoLabel()(scores, torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 1]]))
    assert found[""].tolist() == [[[0, 0]], [[1, 1]]] and found[""].dtype == torch.float32


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_patches_in_another_order_and_flipped_images_give_the_same(spatial_dims):
    scores, patches, labels = case(spatial_dims)
    expected = PatchPseudoLabel()(scores, patches, labels)[""]
    order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))
    assert np.allclose(PatchPseudoLabel()(scores, patches[order], labels[order])[""], expected, atol=1e-12)
    turned = patches.clone()
    turned[:, 1] = SHAPES[spatial_dims][1] - patches[:, 1] - patches[:, spatial_dims + 1]
    found = PatchPseudoLabel()(np.flip(scores, 2).copy(), turned, labels)[""]
    assert np.allclose(np.flip(found, 2), expected, atol=1e-12)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_containers_twin_pickle_and_cache(spatial_dims):
    scores, patches, labels = case(spatial_dims)
    expected = PatchPseudoLabel()(scores, patches, labels)
    for data in containers(scores).values():
        before = copy.deepcopy(data)
        found = PatchPseudoLabel()(data, patches.numpy(), labels.numpy())
        assert_same(found, expected)
        assert_same(data, before)
        assert {type(value) for value in found.values()} == {type(data)}
        if isinstance(data, MetaTensor):
            assert all(torch.equal(value.affine, data.affine) for value in found.values())
    item = {"pred": scores, "patches": patches, "patch_labels": labels, "id": 3}
    twin = pickle.loads(pickle.dumps(PatchPseudoLabeld(min_confidence=0.5)))
    found = CacheDataset([item], twin, progress=False)[0]
    assert set(found) == {*item, "pred_cam", "pred_pseudo"}
    assert np.array_equal(
        found["pred_pseudo"], PatchPseudoLabel(min_confidence=0.5)(scores, patches, labels)["_pseudo"]
    )
    assert PatchPseudoLabeld(["pred", "no"], allow_missing_keys=True)(item)["pred_cam"].shape == (
        1,
        *SHAPES[spatial_dims],
    )
    for missing in ("pred", "patches", "patch_labels"):
        with pytest.raises(KeyError, match=missing):
            PatchPseudoLabeld()({key: value for key, value in item.items() if key != missing})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "voc"}, "mode must be one of 'competing', 'foreground', got 'voc'"),
        ({"uncovered": "no"}, "uncovered must be one of 'all', 'ignore', got 'no'"),
        ({"temperature": 0}, "temperature must be a positive finite number, got 0"),
        ({"mode": "foreground", "temperature": 2}, "foreground scores have no softmax, so no temperature, got 2"),
        ({"background": 0.2}, "competing classes learn their background, so it has no constant, got 0.2"),
        ({"mode": "foreground", "background": 2}, "background and min_confidence must be from 0 to 1, got 2 and 0"),
        ({"min_confidence": -0.1}, "background and min_confidence must be from 0 to 1"),
        ({"ignore_index": 256}, "ignore_index must be from 0 to 255"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PatchPseudoLabel(**options)


def test_bad_input_is_named():
    scores, patches, labels = torch.zeros(2, 4, 4), torch.tensor([[0, 0, 4, 4]] * 2), torch.tensor([[1, 0], [0, 0]])
    named = MetaTensor(scores, meta={"filename_or_obj": "a.png"})
    with pytest.raises(ValueError, match="patch 1 of image 'a.png' has all classes marked as absent"):
        PatchPseudoLabel()(named, patches, labels)
    with pytest.raises(ValueError, match=r"patch labels of image 'a.png' must be \(N, 2\), .* got shape \(2, 3\)"):
        PatchPseudoLabel()(named, patches, torch.ones(2, 3))
    with pytest.raises(ValueError, match="patch 0 of image 'a.png' must lie in the image"):
        PatchPseudoLabel()(named, patches + 1, labels)
    with pytest.raises(ValueError, match="scores of the image must be finite"):
        PatchPseudoLabel()(scores / 0, patches, labels)
    for bad in (torch.zeros(1, 4, 4), torch.zeros(256, 1, 1), torch.zeros(4)):
        with pytest.raises(ValueError, match=r"must be \(K, \*spatial\) with 2 to 255 classes, got shape"):
            PatchPseudoLabel()(bad, patches, labels)
