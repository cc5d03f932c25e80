# SPDX-License-Identifier: Apache-2.0
"""Agreement of segmentations with patch labels, patch by patch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.metrics.patch_consistency import PatchConsistency
from monai_labelfx.transforms.grid_patch_labels import GridPatchLabels

SHAPES = {1: (60,), 2: (22, 19), 3: (9, 10, 8)}


def scene(shape, seed: int = 0, patches: int = 25) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A class map of blocks of three classes, patches anywhere (some reach out) and random labels."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 3, [-(-n // 4) for n in shape])
    labels = np.kron(blocks, np.ones([4] * len(shape), int))[tuple(slice(n) for n in shape)]
    start = np.stack([rng.integers(-1, n - 1, patches) for n in shape], axis=1)
    size = rng.integers(2, 7, start.shape)
    return (
        torch.as_tensor(labels)[None],
        torch.as_tensor(np.concatenate([start, size], axis=1)),
        torch.as_tensor(rng.integers(-1, 2, (patches, 3))),
    )


def naive(cases, present: float, absent: float) -> list[float]:
    met = np.zeros((2, 3, 2))  # kind of label, class: met, known
    for labels, patches, ticks in cases:
        axes = labels.ndim - 1
        for patch, tick in zip(patches.tolist(), ticks.tolist(), strict=True):
            window = tuple(slice(max(a, 0), a + b) for a, b in zip(patch[:axes], patch[axes:], strict=True))
            inside = labels[0].numpy()[window]
            for number, known in enumerate(tick):
                share = (inside == number).sum() / inside.size
                if known >= 0:
                    met[known, number] += (share > present if known else share <= absent), 1
    return [(met[0, k, 0] / met[0, k, 1] + met[1, k, 0] / met[1, k, 1]) / 2 for k in range(3)]


@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize(("present", "absent"), [(0.05, None), (0.4, 0.1)])
def test_equals_loops_over_patches(axes, present, absent):
    cases = [scene(SHAPES[axes], seed) for seed in range(3)]
    metric = PatchConsistency(3, present=present, absent=absent)
    scores = metric([case[0] for case in cases], [case[1:] for case in cases])
    rule = (present, present if absent is None else absent)
    np.testing.assert_allclose(scores, [naive([case], *rule) for case in cases])
    expected = naive(cases, *rule)
    np.testing.assert_allclose(metric.aggregate("mean_batch"), expected)
    assert metric.aggregate().item() == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize(
    "rule", [{}, {"absent": 0.005}, {"present": 0.5, "absent": 0.2}, {"present_volume": 6.0, "absent_volume": 3.0}]
)
@pytest.mark.parametrize("unit", ["voxels", "mm"])
def test_the_mask_that_made_the_labels_scores_1_and_others_less(axes, rule, unit):
    affine = torch.diag(torch.tensor([0.5] * axes + [1.0]))
    mask, other = (MetaTensor(scene(SHAPES[axes], seed)[0], affine=affine) for seed in (0, 1))
    size = 3 if unit == "voxels" else 1.5
    found = GridPatchLabels(size, classes=3, unit=unit, **rule)(mask)
    reference = found["patches"], found["patch_labels"]
    metric = PatchConsistency(3, unit=unit, **rule)
    assert metric([mask], [reference]).tolist() == [[1, 1, 1]]
    assert (metric([other], [reference]) < 1).all()
    for constant in range(3):
        flat = torch.zeros_like(mask) + constant
        assert metric([flat], [reference]).tolist() == [[0.5] * 3], "what one kind of label gains the other loses"


def test_thresholds_are_those_of_the_labels():
    """A tenth of the patch is neither more than 0.1 nor above an absent threshold of 0.1."""
    labels = torch.zeros(1, 10, dtype=torch.int64)
    labels[0, 0] = 1
    patches = torch.tensor([[0, 10], [0, 10]])
    for keywords, expected in (
        ({"present": 0.1}, 0.5),
        ({"present": 0.09}, 0.5),
        ({"present": 0.2, "absent": 0.05}, 0.0),
    ):
        metric = PatchConsistency(2, **keywords)
        assert metric([labels], [(patches, torch.tensor([[-1, 1], [-1, 0]]))])[0, 1] == expected


def test_volumes_in_mm():
    """4 voxels of 0.5 mm x 0.5 mm are 1 mm^2, and a sixteenth of the patch."""
    labels = torch.zeros(1, 8, 8)
    labels[:, :2, :2] = 1
    image = MetaTensor(labels, affine=torch.diag(torch.tensor([0.5, 0.5, 1.0])))
    reference = torch.tensor([[0, 0, 8, 8]] * 2), torch.tensor([[-1, 1], [-1, 0]])
    for volume, expected in ((0.9, 0.5), (1.1, 0.0)):
        rule = {"present": 0.5, "absent": 0.01, "present_volume": volume, "absent_volume": 0.1}
        assert PatchConsistency(2, unit="mm", **rule)([image], [reference])[0, 1] == expected
        assert PatchConsistency(2, **rule)([image], [reference])[0, 1] == 0.5, "4 voxels are more than either"


def test_unknown_labels_and_one_kind_of_label():
    labels, patches, ticks = scene(SHAPES[2])
    metric = PatchConsistency(3)
    ticks[:, 1] = 1
    scores = metric([labels], [(patches, ticks)])
    assert scores.isnan().tolist() == [[False, True, False]]
    assert metric.defined() and metric.aggregate().item() == pytest.approx(scores.nanmean().item())
    metric.reset()
    assert not metric.defined()
    metric([labels, labels], [(patches, torch.full_like(ticks, -1)), (patches[:0], ticks[:0])])
    with pytest.raises(ValueError, match="class with present and absent patch labels, but there is none in 2 images"):
        metric.aggregate()


def test_kinds_of_labels_may_come_from_different_images():
    metric = PatchConsistency(2)
    patch = torch.tensor([[0, 4]])
    zeros = torch.zeros(1, 4)
    scores = metric([zeros, zeros], [(patch, torch.tensor([[1, 1]])), (patch, torch.tensor([[-1, 0]]))])
    assert scores.isnan().all()
    assert metric.aggregate().item() == 0.5


def test_containers_agree():
    labels, patches, ticks = scene(SHAPES[2])
    expected = PatchConsistency(3)([labels], [(patches, ticks)])
    batch = PatchConsistency(3)(MetaTensor(labels.float())[None], [(patches.numpy(), MetaTensor(ticks.to(torch.int8)))])
    assert torch.equal(batch, expected) and type(batch) is torch.Tensor


def test_bad_input():
    for keywords, found in (
        ({"classes": 1}, "at least one class more, got 1"),
        ({"classes": 2, "present": 0.1, "absent": 0.2}, "0 <= absent <= present <= 1, got 0.2 and 0.1"),
        ({"classes": 2, "present": math.nan}, "got nan and nan"),
        ({"classes": 2, "present_volume": 3, "absent_volume": 4}, "absent_volume <= present_volume, got 4 and 3"),
        ({"classes": 2, "unit": "cm"}, "unit must be 'voxels' or 'mm', got 'cm'"),
    ):
        with pytest.raises(ValueError, match=found):
            PatchConsistency(**keywords)
    labels, patches, ticks = scene(SHAPES[2])
    metric = PatchConsistency(3)
    for prediction, reference, found in (
        (labels, (patches, ticks[:-1]), r"shape \(25, 3\), a label for each patch and class, got \(24, 3\)"),
        (labels, (patches, ticks * 2), "1 present, 0 absent or -1 unknown, got values from -2 to 2"),
        (labels + 1, (patches, ticks), "y_pred must hold classes from 0 to 2, got 3"),
        (labels[0], (patches, ticks), r"shape \(1, \*spatial\), got \(22, 19\)"),
        (labels, (patches + 40, ticks), r"patch 0 lies outside the image: .* in voxels of \(22, 19\)"),
        (labels, (patches[:, :3], ticks), r"patches must be \(N, 4\) whole numbers"),
    ):
        with pytest.raises(ValueError, match=found):
            metric([prediction], [reference])
    with pytest.raises(ValueError, match="each of the 1 images, got None"):
        metric([labels])
    with pytest.raises(ValueError, match="volumes in mm need class maps with an affine, got a Tensor"):
        PatchConsistency(3, unit="mm")([labels], [(patches, ticks)])
    assert len(metric) == 0, "bad images leave nothing behind"
