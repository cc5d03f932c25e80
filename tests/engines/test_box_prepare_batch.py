# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.engines import PrepareBatch, SupervisedTrainer

from monai_labelfx.engines.box_prepare_batch import BoxTightnessPrepareBatch
from monai_labelfx.losses.box_tightness import BoxTightnessLoss
from monai_labelfx.ops.box_frames import boxes_to_frames

SIZES = (8, 9, 7)


def item(spatial_dims: int = 2, seed: int = 0, **changes):
    """An image of 0.5 x 2 [x 3] mm with two boxes, one of them padding, and a label of two classes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, *SIZES[:spatial_dims])
    affine = torch.diag(torch.tensor([0.5, 2.0, 3.0][:spatial_dims] + [1.0]))
    box = torch.tensor([2.0] * spatial_dims + [5.0] * spatial_dims)
    boxes = torch.stack([box, torch.zeros_like(box)])
    made = {
        "image": MetaTensor(torch.randn(shape, generator=generator), affine=affine),
        "label": MetaTensor(torch.randint(0, 3, shape, generator=generator), affine=affine),
        "label_boxes": MetaTensor(boxes, affine=affine),
        "label_box_labels": torch.tensor([1, -1]),
        "label_box_ignore": MetaTensor(torch.rand(shape, generator=generator) < 0.2, affine=affine),
        "has_boxes": torch.tensor(True),
        "has_mask": torch.tensor(seed == 0),
    }
    made.update(changes)
    return {key: value for key, value in made.items() if value is not None}


def batch(spatial_dims: int = 2, **changes):
    return list_data_collate([item(spatial_dims, seed, **changes) for seed in (0, 1)])


def frames(spatial_dims: int) -> torch.Tensor:
    boxes = item(spatial_dims)["label_boxes"].as_tensor()
    return torch.stack([boxes_to_frames(boxes[:1])[0], torch.zeros(spatial_dims + 1, spatial_dims)])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kind", ["boxes", "bags"])
def test_gives_what_the_loss_takes(spatial_dims, kind):
    extra = {"label_bags": frames(spatial_dims)} if kind == "bags" else {}
    data = batch(spatial_dims, **extra)
    prepare = BoxTightnessPrepareBatch(masks="labelled", classes=2)
    image, target = prepare(data, "cpu", False)
    assert isinstance(prepare, PrepareBatch)
    assert set(target) == {kind, "labels", "has_boxes", "ignore", "masks", "has_masks", "image", "spacing"}
    assert not any(isinstance(value, MetaTensor) for value in [image, *target.values()])
    assert target["image"] is image and torch.equal(image, data["image"].as_tensor())
    assert torch.equal(target[kind], torch.as_tensor(data[f"label_{kind}"]).as_subclass(torch.Tensor))
    assert target["labels"].tolist() == [[1, -1]] * 2 and target["has_boxes"].tolist() == [True, True]
    assert torch.equal(target["ignore"], data["label_box_ignore"].as_tensor())
    assert target["spacing"].tolist() == [[0.5, 2.0, 3.0][:spatial_dims]] * 2
    logits = torch.zeros(2, 2, *image.shape[2:], requires_grad=True)
    loss = BoxTightnessLoss(affinity=1.0)(logits, target)
    loss.backward()
    assert torch.isfinite(loss) and loss > 0 and logits.grad.isfinite().all()


def test_bags_and_boxes_of_an_unmoved_image_give_one_loss():
    loss, logits = BoxTightnessLoss(), torch.randn(2, 2, 8, 9)
    losses = [loss(logits, BoxTightnessPrepareBatch()(data)[1]) for data in (batch(), batch(label_bags=frames(2)))]
    torch.testing.assert_close(*losses)


def test_masks_are_channels_and_only_of_flagged_images():
    data = batch()
    for masks, flags in (("labelled", [True, False]), ("all", [True, True])):
        _, target = BoxTightnessPrepareBatch(masks=masks, classes=3)(data)
        assert target["has_masks"].tolist() == flags and target["masks"].shape == (2, 3, 8, 9)
        for number, flag in enumerate(flags):
            for channel in range(3):
                expected = (data["label"][number, 0] == channel + 1) & flag
                assert torch.equal(target["masks"][number, channel].bool(), expected.as_tensor())
    assert target["masks"].sum() == (data["label"] > 0).sum(), "the third class has no voxel"


def test_without_masks_the_label_is_never_looked_at():
    image, target = BoxTightnessPrepareBatch()(batch(has_mask=torch.tensor(True)))
    assert "masks" not in target and "has_masks" not in target
    _, without = BoxTightnessPrepareBatch()(batch(label=None))
    assert set(without) == set(target)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bool])
def test_masks_that_are_channels_already(dtype):
    filled = (torch.rand(2, 8, 9) < 0.5).to(dtype)
    data = batch(label_filled=MetaTensor(filled), label=None, has_mask=None, label_boxes=None, label_box_labels=None)
    _, target = BoxTightnessPrepareBatch(masks="all", mask_key="label_filled")(data)
    assert torch.equal(target["masks"], torch.stack([filled, filled])) and target["masks"].dtype == dtype
    assert target["has_masks"].tolist() == [True, True] and target["has_boxes"].tolist() == [False, False]
    assert torch.isfinite(BoxTightnessLoss()(torch.zeros(2, 2, 8, 9), target))


@pytest.mark.parametrize("flag", ["has_label", "has_pseudo"])
def test_labels_that_were_only_filled_in_are_no_masks(flag):
    data = {**batch(pseudo=torch.ones(2, 8, 9)), flag: torch.tensor([False, True])}
    key = None if flag == "has_label" else "pseudo"
    _, target = BoxTightnessPrepareBatch(masks="all", classes=2, mask_key=key)(data)
    assert target["has_masks"].tolist() == [False, True] and not target["masks"][0].any() and target["masks"][1].any()
    _, target = BoxTightnessPrepareBatch(masks="labelled", classes=2, mask_key=key)(data)
    assert target["has_masks"].tolist() == [False, False], "has_mask holds only for the first"


@pytest.mark.parametrize("flags", [[True, False], np.array([1, 0]), torch.tensor([[1.0], [0.0]])])
def test_flags_of_boxes_in_any_form(flags):
    _, target = BoxTightnessPrepareBatch()({**batch(), "has_boxes": flags})
    assert target["has_boxes"].dtype == torch.bool and target["has_boxes"].tolist() == [True, False]
    _, target = BoxTightnessPrepareBatch()(batch(has_boxes=None))
    assert target["has_boxes"].tolist() == [True, True]


def test_lists_of_boxes_stay_lists():
    image = torch.zeros(2, 1, 8, 9)
    data = {"image": image, "label_boxes": [MetaTensor(torch.tensor([[1, 1, 4, 4.0]])), None]}
    data["label_box_labels"] = [torch.tensor([0]), None]
    data["label_tight_sides"] = [torch.tensor([[True, True, False, True]]), None]
    _, target = BoxTightnessPrepareBatch()(data)
    assert target["boxes"][1] is None and not isinstance(target["boxes"][0], MetaTensor)
    assert "spacing" not in target and target["tight_sides"][0].tolist() == [[True, True, False, True]]


def test_voxel_sizes_from_a_key_and_from_one_affine_for_all():
    plain = batch(image=torch.zeros(1, 8, 9))
    assert "spacing" not in BoxTightnessPrepareBatch()(plain)[1]
    plain["image_spacing"] = torch.tensor([[1, 2], [3, 4]])
    assert BoxTightnessPrepareBatch()(plain)[1]["spacing"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    both = {**batch(), "image_spacing": torch.tensor([[1, 2], [3, 4]])}
    assert BoxTightnessPrepareBatch()(both)[1]["spacing"].tolist() == [[1.0, 2.0], [3.0, 4.0]], "the key is on purpose"
    one = {**batch(), "image": MetaTensor(torch.zeros(2, 1, 8, 9), affine=torch.diag(torch.tensor([4.0, 5, 1, 1])))}
    assert BoxTightnessPrepareBatch()(one)[1]["spacing"].tolist() == [[4.0, 5.0]] * 2


def test_devices_types_and_other_keys():
    data = {"picture": torch.zeros(1, 1, 8, 9, dtype=torch.float64), "weak_boxes": torch.tensor([[[1, 1, 4, 4.0]]])}
    data |= {"weak_box_labels": torch.tensor([[0]]), "seen": torch.tensor([False]), "own": torch.ones(1, 1, 8, 9)}
    prepare = BoxTightnessPrepareBatch(
        "picture", label_key="weak", masks="all", mask_key="own", has_boxes_key="seen", has_mask_key="no"
    )
    image, target = prepare(data, "meta", True, dtype=torch.float32)
    assert image.dtype == torch.float32 and image.device.type == target["masks"].device.type == "meta"
    assert target["boxes"].device.type == target["labels"].device.type == "cpu", "the loss reads them there"
    assert target["has_boxes"].tolist() == [False]


def test_in_monais_trainer():
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch(), batch()],
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 0.1),
        loss_function=BoxTightnessLoss(),
        prepare_batch=BoxTightnessPrepareBatch(masks="labelled", classes=2),
        decollate=False,
    )
    before = network.weight.detach().clone()
    trainer.run()
    assert not torch.equal(network.weight, before)


@pytest.mark.parametrize(
    ("options", "changes", "error", "words"),
    [
        ({}, {"image": None}, KeyError, "the batch has no 'image'; it has"),
        ({}, {"label_boxes": None}, KeyError, "has no label_bags or label_boxes, nor may it use masks"),
        ({}, {"label_box_labels": None}, KeyError, "has label_boxes but no label_box_labels"),
        ({"masks": "labelled"}, {"has_mask": None}, KeyError, "needs the flags 'has_mask'"),
        ({"masks": "all"}, {"label": None}, KeyError, "masks='all' needs 'label'"),
        ({"masks": "all", "mask_key": "pseudo"}, {}, KeyError, "masks='all' needs 'pseudo'"),
        ({"masks": "all"}, {}, ValueError, r"from 0 to classes=1, got shape .* numbers up to 2"),
        ({"masks": "all"}, {"label": torch.zeros(2, 8, 9)}, ValueError, r"class indices \(B, 1, \*spatial\)"),
        ({"masks": "all"}, {"label": torch.zeros(1, 8, 8)}, ValueError, "'label' has shape .* does not fit"),
        ({}, {"label_box_ignore": torch.zeros(1, 8, 8)}, ValueError, "'label_box_ignore' has shape"),
        ({}, {"image_spacing": torch.ones(3)}, ValueError, r"\(B, D\) = \(2, 2\), got shape \(2, 3\)"),
        ({}, {"has_boxes": torch.tensor([True, False])}, ValueError, "one flag for each of the 2 images, found 4"),
    ],
)
def test_bad_batches_are_named(options, changes, error, words):
    with pytest.raises(error, match=words):
        BoxTightnessPrepareBatch(**options)(batch(**changes))


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="masks must be one of 'none', 'labelled', 'all', got 'some'"):
        BoxTightnessPrepareBatch(masks="some")
    with pytest.raises(ValueError, match="classes must be"):
        BoxTightnessPrepareBatch(classes=0)
