# SPDX-License-Identifier: Apache-2.0
"""The label update of DeepCut: its field, its boxes, and what becomes of boxes without a prediction."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from testers import AFFINE

from monai_labelfx.ops.dense_field import refine_by_field
from monai_labelfx.transforms.refine_pseudo_label import RefinePseudoLabel, RefinePseudoLabeld

OFF = {"field": {"weights": (0.0, 0.0)}}  # no field: the prediction above one half


def case(*shape: int, classes: int = 1, seed: int = 0):
    """A noisy prediction of a ball, its noisy image far from 0 to 255, and a box around it."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"))
    ball = grid.norm(dim=0) < min(shape) / 3
    prediction = torch.sigmoid(2.0 * ball - 1 + torch.randn(classes, *shape, generator=generator))
    image = (3.0 * ball + 0.2 * torch.randn(shape, generator=generator))[None] - 7
    filled = torch.zeros(classes, *shape, dtype=torch.uint8)
    filled[(slice(None), *[slice(2, n - 2) for n in shape])] = 1
    return prediction, image, filled, ball


def by_hand(prediction, image, filled, **options):
    """Energies of probabilities, 8-bit grey values, the field on the whole image, the boxes."""
    values = image.numpy().astype(np.float64)
    low, high = np.percentile(values, (0.5, 99.5))
    grey = torch.tensor(np.clip((values - low) / (high - low), 0, 1) * 255)
    result = []
    for one, box in zip(prediction.double(), filled, strict=True):
        energy = torch.stack([-torch.log(1 - one), -torch.log(one)])
        q = refine_by_field(-energy[None], grey[None], **options)
        result.append(q[0].argmax(0) * (box > 0))
    return torch.stack(result)


@pytest.mark.parametrize("shape", [(20, 18), (11, 9, 10)])
@pytest.mark.parametrize("options", [{}, {"window": 5, "iterations": 2, "weights": (4.0, 1.0)}], ids=str)
def test_equals_the_steps_by_hand(shape, options):
    prediction, image, filled, _ = case(*shape, classes=2)
    filled[1, :6] = 0
    result = RefinePseudoLabel(margin=None, field=options)(prediction, image, filled)
    assert torch.equal(result, by_hand(prediction, image, filled, **options).to(torch.uint8))
    assert result.dtype == torch.uint8 and not torch.equal(result, ((prediction > 0.5) & (filled > 0)).to(torch.uint8))
    logits = RefinePseudoLabel("logits", margin=None, field=options)(prediction.logit(), image, filled)
    assert torch.equal(logits, result)


@pytest.mark.parametrize("shape", [(24, 24), (13, 12, 14)])
def test_labels_follow_the_image(shape):
    prediction, image, filled, ball = case(*shape)
    result = RefinePseudoLabel(field={"window": 5})(prediction, image, filled)[0].bool()
    wrong = ((prediction[0] > 0.5) != ball) & (filled[0] > 0)
    assert wrong.sum() > 50 and ((result != ball) & (filled[0] > 0)).sum() < wrong.sum() / 8
    assert not result[filled[0] == 0].any()


def test_without_a_field_it_is_the_prediction_in_the_boxes():
    prediction, image, filled, _ = case(12, 10, classes=2)
    expected = ((prediction > 0.5) & (filled > 0)).to(torch.uint8)
    assert torch.equal(RefinePseudoLabel(**OFF)(prediction, image, filled), expected)
    assert RefinePseudoLabel(**OFF)(torch.full((1, 12, 10), 0.5), image, filled[:1]).sum() == 0, "one half is no object"


def test_certain_predictions_are_finite():
    image, filled = torch.zeros(1, 6, 6), torch.ones(2, 6, 6)
    certain = torch.stack([torch.zeros(6, 6), torch.ones(6, 6)])
    for transform, values in ((RefinePseudoLabel(), certain), (RefinePseudoLabel("logits"), 2e6 * certain - 1e6)):
        assert transform(values, image, filled).flatten(1).float().mean(1).tolist() == [0, 1]
    certain[1, 3, 3] = 0  # certain, and wrong
    strong = {"field": {"weights": (30.0, 3.0)}}
    assert RefinePseudoLabel(**strong)(certain, image, filled)[1].all(), "no infinite energy"
    assert RefinePseudoLabel("logits", **strong)(2e6 * certain - 1e6, image, filled)[1].all()


def test_the_margin_changes_nothing_beyond_the_reach_of_the_field():
    prediction, image, filled, _ = case(26, 24)
    filled[:] = 0
    filled[0, 9:14, 8:15] = 1
    field = {"window": 3, "iterations": 2}
    whole = RefinePseudoLabel(margin=None, field=field)(prediction, image, filled)
    assert torch.equal(RefinePseudoLabel(margin=5, field=field)(prediction, image, filled), whole)
    near = RefinePseudoLabel(margin=0, field=field)(prediction, image, filled)
    assert near[filled == 0].sum() == 0 and whole.sum() > 0
    moved = RefinePseudoLabel(margin=5, field=field)(prediction.roll(4, 1), image.roll(4, 1), filled.roll(4, 1))
    assert torch.equal(moved.roll(-4, 1), whole), "the window is cut at the right place"


def test_the_part_of_the_image_is_that_of_the_boxes():
    image, filled = torch.zeros(1, 24, 24), torch.zeros(1, 24, 24)
    image[:, 14:, 10:] = 1
    filled[:, 12:20, 12:20] = 1
    prediction = 0.45 + 0.1 * image
    prediction[0, 14:, 12:14] = 0.49  # the image decides there
    result = RefinePseudoLabel(margin=2, percentiles=(0, 100))(prediction, image, filled)
    assert torch.equal(result.float(), image * filled)


def test_boxes_without_a_prediction():
    image, filled = torch.zeros(1, 8, 12), torch.zeros(2, 8, 12)
    filled[0, 1:4, 1:4] = filled[0, 5:8, 1:4] = filled[1, 2:6, 6:10] = 1
    prediction = torch.full((2, 8, 12), 0.1)
    prediction[0, 2, 2] = 0.9
    lost = RefinePseudoLabel(**OFF)(prediction, image, filled)
    assert lost.sum() == lost[0, 2, 2] == 1
    kept = RefinePseudoLabel(keep_empty_boxes=True, **OFF)(prediction, image, filled)
    expected = filled.clone()
    expected[0, 1:4, 1:4] = 0
    expected[0, 2, 2] = 1
    assert torch.equal(kept.float(), expected)


def test_no_boxes_and_constant_images():
    prediction, image, filled, _ = case(12, 10)
    assert RefinePseudoLabel(keep_empty_boxes=True)(prediction, image, 0 * filled).sum() == 0
    flat = RefinePseudoLabel()(prediction, torch.full_like(image, 5.0), filled)
    assert torch.equal(flat, RefinePseudoLabel()(prediction, torch.zeros_like(image), filled))


def test_the_scale_of_the_image_does_not_matter_and_outliers_are_cut():
    prediction, image, filled, _ = case(40, 30)
    expected = RefinePseudoLabel()(prediction, image, filled)
    assert torch.equal(RefinePseudoLabel()(prediction, 1000 * image.double() + 3, filled), expected)
    image[0, 0, 0] = 1e4
    assert torch.equal(RefinePseudoLabel()(prediction, image, filled), expected)
    minimum = RefinePseudoLabel(percentiles=(0, 100))(prediction, image, filled)
    assert not torch.equal(minimum, expected), "as in the paper's code one voxel can hide the rest"


def test_spacing_of_the_image_in_units_of_the_shortest_axis():
    prediction, image, filled, _ = case(9, 8, 10)
    sized = MetaTensor(image, affine=torch.diag(torch.tensor([0.5, 1.0, 3.0, 1.0])))
    weak = {"field": {"weights": (0.0, 1.5), "window": 5}}
    found = RefinePseudoLabel(spacing="image", **weak)(prediction, sized, filled)
    assert torch.equal(found, RefinePseudoLabel(spacing=(1.0, 2.0, 6.0), **weak)(prediction, image, filled))
    assert not torch.equal(found, RefinePseudoLabel(**weak)(prediction, sized, filled))
    with pytest.raises(ValueError, match="spacing='image' needs an image with an affine, got a plain Tensor"):
        RefinePseudoLabel(spacing="image")(prediction, image, filled)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_containers_and_twin(spatial_dims):
    prediction, image, filled, _ = case(*(10, 9, 8)[:spatial_dims], classes=2)
    expected = RefinePseudoLabel()(prediction, image, filled)
    found = RefinePseudoLabel()(prediction.numpy(), image.numpy(), filled.numpy())
    assert isinstance(found, np.ndarray) and found.dtype == np.uint8 and (found == expected.numpy()).all()
    item = {"pred": MetaTensor(prediction, affine=AFFINE), "image": MetaTensor(image), "label_filled": filled, "x": 1}
    before = item["pred"].clone()
    twin = RefinePseudoLabeld("pred", keep_empty_boxes=True)
    out = pickle.loads(pickle.dumps(twin))(item)
    assert torch.equal(item["pred"], before) and set(out) == set(item)
    assert isinstance(out["pred"], MetaTensor) and torch.equal(out["pred"].affine, AFFINE)
    assert torch.equal(out["pred"].as_tensor(), expected) and out["pred"].dtype == torch.uint8
    keys = {"a": prediction, "scan": image, "boxes": filled}
    twin = RefinePseudoLabeld(["a", "b"], image_key="scan", filled_key="boxes", allow_missing_keys=True)
    assert torch.equal(twin(keys)["a"], expected)


def test_the_dense_method_names_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    prediction, image, filled, _ = case(8, 8)
    with pytest.raises(ImportError, match="pydensecrf2"):
        RefinePseudoLabel(method="dense")(prediction, image, filled)


@pytest.mark.peer("pydensecrf")
def test_the_dense_method_gives_nearly_the_labels_of_a_wide_window():
    prediction, image, filled, _ = case(20, 18)
    dense = RefinePseudoLabel(method="dense", margin=None)(prediction, image, filled)
    window = RefinePseudoLabel(margin=None, field={"window": 39})(prediction, image, filled)
    assert (dense != window).float().mean() < 0.01 and dense.sum() > 20


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"kind": "mask"}, "kind must be 'probabilities' or 'logits', got 'mask'"),
        ({"method": "lattice"}, "method must be one of 'window', 'dense'"),
        ({"percentiles": (5, 5)}, "percentiles must be two numbers"),
        ({"margin": -1}, "margin must be a number of voxels"),
        ({"spacing": "label"}, "spacing must be voxel sizes, 'image' or None, got 'label'"),
    ],
)
def test_bad_options_are_named(keywords, words):
    with pytest.raises(ValueError, match=words):
        RefinePseudoLabel(**keywords)


def test_bad_items_are_named():
    prediction, image, filled, _ = case(8, 8)
    with pytest.raises(ValueError, match=r"got \(1, 8, 8\), \(2, 8, 8\) and \(1, 8, 8\)"):
        RefinePseudoLabel()(prediction, image, filled.expand(2, -1, -1))
    with pytest.raises(ValueError, match="probabilities must lie between 0 and 1, got 3 to 3"):
        RefinePseudoLabel()(torch.full((1, 8, 8), 3.0), image, filled)
    with pytest.raises(ValueError, match="image must be finite"):
        RefinePseudoLabel()(prediction, image * torch.nan, filled)
    with pytest.raises(KeyError, match="the item has no 'label_filled'; keys"):
        RefinePseudoLabeld("pred")({"pred": prediction, "image": image})
    with pytest.raises(KeyError):
        RefinePseudoLabeld("pred")({"image": image, "label_filled": filled})
