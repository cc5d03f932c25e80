# SPDX-License-Identifier: Apache-2.0
"""The surface distance against plain loops, its unit, and what it says about empty masks."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.metrics.surface_distance import PhysicalSurfaceDistance


def surface(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Object voxels with a face neighbour outside the object; what lies outside the image is no object."""
    padded = np.pad(mask, 1)
    result = []
    for place in np.argwhere(padded):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            neighbour = place.copy()
            neighbour[axis] += step
            if not padded[tuple(neighbour)]:
                result.append(tuple(place))
                break
    return result


def naive(prediction: np.ndarray, reference: np.ndarray, spacing) -> float:
    one, two = surface(prediction), surface(reference)

    def nearest(place, places):
        return min(math.dist(np.multiply(place, spacing), np.multiply(other, spacing)) for other in places)

    return sum([nearest(p, two) for p in one] + [nearest(p, one) for p in two]) / (len(one) + len(two))


def blobs(shape, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    grid = np.indices(shape)
    centre = [rng.uniform(n / 3, 2 * n / 3) for n in shape]
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)))
    return torch.tensor(distance < min(shape) / 3).float()


def spaced(masks: torch.Tensor, spacing) -> MetaTensor:
    """Masks (C, *spatial) whose affine has these voxel sizes, an axis that runs backwards, and an origin."""
    affine = torch.eye(len(spacing) + 1)
    affine[range(len(spacing)), range(len(spacing))] = torch.tensor(spacing)
    affine[0, 0] *= -1
    affine[:-1, -1] = 7.0
    return MetaTensor(masks, affine=affine)


@pytest.mark.parametrize(("shape", "spacing"), [((14, 12), (0.5, 3.0)), ((9, 8, 10), (1.0, 0.7, 4.0))])
def test_equals_plain_loops_in_the_unit_of_the_affine(shape, spacing):
    prediction = torch.stack([blobs(shape, 0), blobs(shape, 1)])
    reference = torch.stack([blobs(shape, 2), blobs(shape, 3)])
    expected = [naive(p.numpy(), r.numpy(), spacing) for p, r in zip(prediction, reference, strict=True)]
    metric = PhysicalSurfaceDistance(classes=2)
    scores = metric([prediction], [spaced(reference, spacing)])
    np.testing.assert_allclose(scores.numpy(), [expected], rtol=1e-5)
    in_voxels = [naive(p.numpy(), r.numpy(), (1,) * len(shape)) for p, r in zip(prediction, reference, strict=True)]
    np.testing.assert_allclose(metric([prediction], [reference]).numpy(), [in_voxels], rtol=1e-5)
    assert metric.aggregate().item() == pytest.approx(np.mean([expected, in_voxels]), rel=1e-5)
    np.testing.assert_allclose(metric.aggregate("mean_batch").numpy(), np.mean([expected, in_voxels], 0), rtol=1e-5)
    assert metric.not_computed().tolist() == [0, 0]


def test_objects_at_the_border_and_whole_images():
    mask = torch.zeros(1, 6, 6)
    mask[:, :3] = 1
    metric = PhysicalSurfaceDistance()
    full = torch.ones(1, 6, 6)
    for p, r in ((mask, full), (full, mask), (mask, mask.flip(1))):
        assert metric([p], [r]).item() == pytest.approx(naive(p[0].numpy(), r[0].numpy(), (1, 1)), rel=1e-5)
    assert metric([full], [full]).item() == 0


def test_images_of_one_call_keep_their_own_spacing_in_lists_and_batches():
    prediction, reference = blobs((14, 12), 0)[None], blobs((14, 12), 2)[None]
    spacings = [(1.0, 1.0), (2.0, 2.0), (0.5, 0.5)]
    metric = PhysicalSurfaceDistance()
    references = [spaced(reference, s) for s in spacings]
    scores = metric([prediction] * 3, references)[:, 0]
    torch.testing.assert_close(scores, scores[0] * torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
    from monai.data import list_data_collate

    batch = list_data_collate([{"label": r} for r in references])["label"]
    torch.testing.assert_close(PhysicalSurfaceDistance()(prediction.expand(3, -1, -1, -1), batch)[:, 0], scores)
    torch.testing.assert_close(metric([reference], [spaced(prediction, (1.0, 1.0))])[0], scores[:1])  # symmetric


def test_empty_masks():
    something, nothing = torch.ones(1, 3, 3), torch.zeros(1, 3, 3)
    shifted = torch.tensor([[[0, 0, 0, 1]]]), torch.tensor([[[0, 1, 0, 0]]])
    metric = PhysicalSurfaceDistance()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = metric([nothing, something, nothing, shifted[0]], [nothing, nothing, something, shifted[1]])
    assert scores[0] == 0 and scores[1:3].isnan().all() and scores[3] == 2
    assert metric.aggregate() == 1 and metric.not_computed().tolist() == [2]
    assert metric.aggregate("mean_batch").tolist() == [1]
    assert len(metric.get_buffer()) == 4, "a missing distance must not take the image away"
    metric.reset()
    metric([nothing], [something])
    assert metric.aggregate().isnan() and metric.not_computed().tolist() == [1]


def test_one_missing_class_does_not_hide_the_other():
    found = torch.tensor([[[1, 0, 0]], [[0, 0, 0]]])
    reference = torch.tensor([[[0, 1, 0]], [[0, 0, 1]]])
    metric = PhysicalSurfaceDistance(classes=2)
    assert torch.equal(metric([found], [reference])[0].isnan(), torch.tensor([False, True]))
    assert metric.aggregate() == 1 and metric.not_computed().tolist() == [0, 1]


def test_bool_and_integer_masks():
    one, two = blobs((14, 12), 0)[None], blobs((14, 12), 2)[None]
    expected = PhysicalSurfaceDistance()([one], [two])
    assert torch.equal(PhysicalSurfaceDistance()([one.bool()], [two.to(torch.uint8)]), expected)


def test_bad_input_is_named():
    metric = PhysicalSurfaceDistance()
    with pytest.raises(ValueError, match="classes must be the number of class channels"):
        PhysicalSurfaceDistance(classes=0)
    with pytest.raises(ValueError, match="y_pred must hold masks of 0 and 1 for classes=1, got shape .* from 0.5"):
        metric([torch.full((1, 3, 3), 0.5)], [torch.zeros(1, 3, 3)])
    with pytest.raises(ValueError, match=r"y_pred must hold masks .* got shape \(2, 3, 3\)"):
        metric([torch.zeros(2, 3, 3)], [torch.zeros(2, 3, 3)])
    with pytest.raises(ValueError, match="y must hold one reference for each of the 1"):
        metric([torch.zeros(1, 3, 3)], [])
    with pytest.raises(ValueError, match="must have one shape"):
        metric([torch.zeros(1, 3, 3)], [torch.zeros(1, 3, 4)])
    with pytest.raises(ValueError, match="no image to aggregate"):
        metric.aggregate()
    with pytest.raises(ValueError, match="reduction must be"):
        metric([torch.zeros(1, 3, 3)], [torch.zeros(1, 3, 3)])
        metric.aggregate("sum")
