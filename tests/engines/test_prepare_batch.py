# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor, list_data_collate
from monai.engines import SupervisedEvaluator
from monai.engines.utils import PrepareBatch

from monai_labelfx.engines import DenoiSegPrepareBatch
from monai_labelfx.losses import DenoiSegLoss


def batch(spatial_dims: int = 2, **changes):
    shape = (2, 1, *range(6, 6 + spatial_dims))
    generator = torch.Generator().manual_seed(0)
    made = {
        "image": MetaTensor(torch.randn(shape, generator=generator)),
        "image_target": MetaTensor(torch.randn(shape, generator=generator)),
        "image_blind_spots": MetaTensor(torch.rand(shape, generator=generator) < 0.2),
        "label": MetaTensor(torch.randint(0, 3, shape, generator=generator)),
        "has_label": torch.tensor([True, False]),
        "label_ignore": MetaTensor(torch.rand(shape, generator=generator) < 0.2),
    }
    made.update(changes)
    return {key: value for key, value in made.items() if value is not None}


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_gives_what_the_loss_takes(spatial_dims):
    data = batch(spatial_dims)
    image, target = DenoiSegPrepareBatch()(data, "cpu", False)
    assert isinstance(DenoiSegPrepareBatch(), PrepareBatch)
    assert torch.equal(image, data["image"].as_tensor())
    for key, name in [
        ("image_target", "image"),
        ("image_blind_spots", "blind_spots"),
        ("label", "label"),
        ("has_label", "has_label"),
        ("label_ignore", "ignore"),
    ]:
        assert torch.equal(target[name], torch.as_tensor(data[key]).as_subclass(torch.Tensor)), name
    assert not any(isinstance(value, MetaTensor) for value in [image, *target.values()])
    assert {name: value.dtype for name, value in target.items()} == {
        "image": torch.float32,
        "blind_spots": torch.bool,
        "label": torch.int64,
        "has_label": torch.bool,
        "ignore": torch.bool,
    }
    assert torch.isfinite(DenoiSegLoss()(torch.zeros(2, 4, *image.shape[2:]), target))


def test_a_batch_without_labels_counts_as_unlabelled():
    _, target = DenoiSegPrepareBatch()(batch(label=None, has_label=None, label_ignore=None))
    assert target["has_label"].tolist() == [False, False]
    assert target["label"].shape == (2, 1, 6, 7) and not target["label"].any() and "ignore" not in target
    loss = DenoiSegLoss(alpha=0.5)(torch.zeros(2, 4, 6, 7), target)
    torch.testing.assert_close(loss, 0.5 * target["image"][target["blind_spots"]].square().mean())


def test_labels_without_flags_count_as_labelled():
    _, target = DenoiSegPrepareBatch()(batch(has_label=None, label=torch.ones(2, 1, 6, 7)))
    assert target["has_label"].tolist() == [True, True] and target["label"].dtype == torch.int64


@pytest.mark.parametrize(
    "flags", [[True, False], np.array([1, 0]), torch.tensor([[1.0], [0.0]]), torch.tensor([True, False])]
)
def test_flags_in_any_form(flags):
    _, target = DenoiSegPrepareBatch()(batch(has_label=flags))
    assert target["has_label"].dtype == torch.bool and target["has_label"].tolist() == [True, False]


def test_flags_survive_the_collation_of_monai():
    items = [
        {"image": torch.zeros(1, 4, 4), "label": torch.zeros(1, 4, 4), "has_label": flag} for flag in (True, False)
    ]
    _, target = DenoiSegPrepareBatch()(list_data_collate(items))
    assert target["has_label"].tolist() == [True, False]


def test_without_masks_the_image_is_its_own_target():
    image, target = DenoiSegPrepareBatch()(batch(image_target=None, image_blind_spots=None))
    assert target["image"] is image and "blind_spots" not in target
    assert torch.isfinite(DenoiSegLoss(alpha=0)(torch.zeros(2, 3, 6, 7), target))
    with pytest.raises(ValueError, match="blind_spots"):
        DenoiSegLoss(alpha=0.5)(torch.zeros(2, 4, 6, 7), target)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_draws_the_masks_for_the_whole_batch(spatial_dims):
    data = batch(spatial_dims, image_target=None, image_blind_spots=None)
    before = data["image"].clone()
    prepare = DenoiSegPrepareBatch(blind_spots={"fraction": 0.1, "window": 3})
    torch.manual_seed(0)
    image, target = prepare(data)
    spots = target["blind_spots"]
    voxels = image[0].numel()
    assert spots.flatten(1).sum(1).tolist() == [round(0.1 * voxels)] * 2
    assert torch.equal(target["image"], before.as_tensor()) and torch.equal(data["image"], before)
    assert torch.equal(image[~spots], target["image"][~spots]) and not (image[spots] == target["image"][spots]).any()
    torch.manual_seed(0)
    assert torch.equal(prepare(data)[1]["blind_spots"], spots), "the global generator decides"
    assert not torch.equal(prepare(data)[1]["blind_spots"], spots)


def test_keys_can_be_named():
    data = {f"my_{key}": value for key, value in batch().items()}
    prepare = DenoiSegPrepareBatch("my_image", label_key="my_label", has_label_key="my_has_label")
    image, target = prepare(data)
    expected = DenoiSegPrepareBatch()(batch())
    assert torch.equal(image, expected[0]) and all(torch.equal(target[name], expected[1][name]) for name in expected[1])


@pytest.mark.parametrize(
    ("changes", "keywords", "error", "words"),
    [
        ({"image": None}, {}, KeyError, "the batch has no 'image'"),
        ({"label": None}, {}, ValueError, "'has_label' says that images are labelled"),
        ({"label": torch.zeros(2, 1, 5, 5)}, {}, ValueError, "'label' has shape"),
        ({"has_label": torch.tensor([True])}, {}, ValueError, "one flag for each of the 2 images"),
        ({}, {"blind_spots": {"fraction": 0.1}}, ValueError, "already has 'image_blind_spots'"),
    ],
)
def test_refuses(changes, keywords, error, words):
    with pytest.raises(error, match=words):
        DenoiSegPrepareBatch(**keywords)(batch(**changes))


def test_evaluator_computes_the_loss():
    losses = []
    loss = DenoiSegLoss()
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=[batch(), batch(label=None, has_label=None, label_ignore=None)],
        network=torch.nn.Conv2d(1, 4, 1),
        prepare_batch=DenoiSegPrepareBatch(),
        decollate=False,
    )
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: losses.append(loss(engine.state.output["pred"], engine.state.output["label"]).item()),
    )
    evaluator.run()
    assert len(losses) == 2 and all(np.isfinite(losses))
