# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from testers import AFFINE

from monai_labelfx.losses import DenoiSegLoss, denoiseg_loss, denoiseg_loss_terms

WEIGHTS = (1.0, 1.0, 5.0)


def example(spatial_dims: int = 2, channels: int = 1, batch: int = 3, seed: int = 0, dtype=torch.float64):
    """Network output and targets: the first and third image labelled, the others with labels out of range."""
    rng = np.random.default_rng(seed)
    space = (5, 4, 3)[:spatial_dims]
    has_label = np.arange(batch) % 2 == 0
    label = rng.integers(0, 3, (batch, 1, *space))
    label[~has_label] = -1
    target = {
        "image": torch.tensor(rng.normal(size=(batch, channels, *space)), dtype=dtype),
        "blind_spots": torch.tensor(rng.random((batch, channels, *space)) < 0.2),
        "label": torch.tensor(label),
        "has_label": torch.tensor(has_label),
    }
    return torch.tensor(rng.normal(size=(batch, channels + 3, *space)) * 3, dtype=dtype), target


def reference(output: np.ndarray, target: dict, alpha: float, normalization: str) -> tuple[float, np.ndarray]:
    """Value and hand-derived gradient, voxel by voxel in float64."""
    batch, channels, *space = output.shape
    channels -= 3
    image, spots, label = (target[k].numpy() for k in ("image", "blind_spots", "label"))
    ignore = target["ignore"].numpy() if "ignore" in target else np.zeros(label.shape, bool)
    voxels = [(b, *v) for b in range(batch) for v in np.ndindex(*space)]
    value, gradient = 0.0, np.zeros_like(output)
    for c in range(channels):
        hidden = [(b, c, *v) for b, *v in voxels if spots[(b, c, *v)]]
        scale = alpha / max(len(hidden), 1) / (1 if normalization == "paper" else channels)
        for place in hidden:
            value += scale * (output[place] - image[place]) ** 2
            gradient[place] += scale * 2 * (output[place] - image[place])
    annotated = [(b, *v) for b, *v in voxels if target["has_label"][b] and not ignore[(b, 0, *v)]]
    scale = (1 - alpha) / (len(voxels) if normalization == "paper" else max(len(annotated), 1))
    for b, *v in annotated:
        logits = output[(b, slice(channels, None), *v)]
        probabilities = np.exp(logits) / np.exp(logits).sum()
        truth = label[(b, 0, *v)]
        value += scale * WEIGHTS[truth] * -math.log(probabilities[truth])
        probabilities[truth] -= 1
        gradient[(b, slice(channels, None), *v)] += scale * WEIGHTS[truth] * probabilities
    return value, gradient


@pytest.mark.parametrize("normalization", ["paper", "labelled"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("partial", [False, True])
def test_value_and_gradient_follow_the_formula(spatial_dims, channels, alpha, normalization, partial):
    output, target = example(spatial_dims, channels)
    if partial:
        target["ignore"] = torch.rand(target["label"].shape, generator=torch.Generator().manual_seed(0)) < 0.4
        target["label"][target["ignore"]] = 99
    value, gradient = reference(output.numpy(), target, alpha, normalization)
    output.requires_grad_()
    loss = DenoiSegLoss(alpha, normalization=normalization)(output, target)
    loss.backward()
    assert loss.ndim == 0 and loss.dtype == torch.float64
    assert loss.item() == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(output.grad.numpy(), gradient, rtol=1e-10, atol=1e-15)


def test_gradcheck():
    output, target = example()
    assert torch.autograd.gradcheck(lambda x: denoiseg_loss(x, **target, alpha=0.3), output.requires_grad_())


def test_modes_agree_exactly_when_all_is_labelled_and_differ_otherwise():
    output, target = example()
    few = [denoiseg_loss_terms(output, **target, normalization=n)[1] for n in ("labelled", "paper")]
    assert few[1] == pytest.approx(float(few[0]) * 2 / 3)
    target["has_label"][:] = True
    target["label"].clamp_(min=0)
    every = [denoiseg_loss_terms(output, **target, normalization=n)[1] for n in ("labelled", "paper")]
    assert every[0] == every[1]


@pytest.mark.parametrize("normalization", ["paper", "labelled"])
def test_batch_without_labels_is_exactly_the_denoising_term(normalization):
    output, target = example()
    target["has_label"][:] = False
    output.requires_grad_()
    loss = denoiseg_loss(output, **target, alpha=0.25, normalization=normalization)
    denoising, segmentation = denoiseg_loss_terms(output, **target, normalization=normalization)
    loss.backward()
    assert segmentation == 0 and loss == 0.25 * denoising
    assert output.grad.isfinite().all() and (output.grad[:, 1:] == 0).all() and (output.grad[:, :1] != 0).any()


def test_nothing_to_learn_from_is_zero_with_zero_gradient():
    output, target = example()
    target["has_label"][:] = False
    target["blind_spots"][:] = False
    output.requires_grad_()
    loss = denoiseg_loss(output, **target)
    loss.backward()
    assert loss == 0 and (output.grad == 0).all()


def test_pure_losses_need_only_their_own_targets_and_leave_the_other_channels_alone():
    output, target = example()
    poisoned = output.clone()
    poisoned[:, 1:] = math.nan
    poisoned.requires_grad_()
    loss = DenoiSegLoss(alpha=1)(poisoned, {k: target[k] for k in ("image", "blind_spots")})
    loss.backward()
    assert loss.isfinite() and (poisoned.grad[:, 1:] == 0).all()
    assert loss == denoiseg_loss_terms(output, **target)[0]

    poisoned = output.clone()
    poisoned[:, :1] = math.nan
    poisoned.requires_grad_()
    loss = DenoiSegLoss(alpha=0)(poisoned, {k: target[k] for k in ("label", "has_label")})
    loss.backward()
    assert loss.isfinite() and (poisoned.grad[:, :1] == 0).all()
    assert loss == denoiseg_loss_terms(output, **target)[1]
    assert loss == DenoiSegLoss(alpha=0)(output[:, 1:], target), "a plain 3-class network"


def test_annotated_but_empty_image_trains_background():
    output, target = example()
    target["label"][:] = 0
    target["has_label"] = torch.tensor([False, True, False])
    output.requires_grad_()
    denoiseg_loss(output, **target, alpha=0).backward()
    assert (output.grad[1, 1] < 0).all() and (output.grad[1, 2:] > 0).all() and (output.grad[[0, 2]] == 0).all()


def test_border_counts_five_times():
    logits, flag = torch.zeros(1, 3, 2, 2), torch.tensor([True])
    per_class = [
        float(denoiseg_loss(logits, label=torch.full((1, 1, 2, 2), c), has_label=flag, alpha=0)) for c in range(3)
    ]
    assert per_class == pytest.approx([math.log(3), math.log(3), 5 * math.log(3)])


def test_values_at_voxels_without_annotation_do_not_matter():
    output, target = example(dtype=torch.float32)
    target["ignore"] = target["label"] == 1
    expected = denoiseg_loss(output, **target)
    target["label"] = target["label"].float()
    target["label"][1] = math.nan
    target["label"][target["ignore"]] = 1e9
    target["image"][~target["blind_spots"]] = math.nan
    output.requires_grad_()
    loss = denoiseg_loss(output, **target)
    loss.backward()
    assert loss == expected and output.grad.isfinite().all()


def test_extreme_logits_stay_finite():
    output = torch.zeros(1, 4, 2, 2)
    output[:, 1], output[:, 2] = 1e4, -1e4
    output.requires_grad_()
    target = {"label": torch.ones(1, 1, 2, 2, dtype=torch.long), "has_label": torch.tensor([True])}
    loss = DenoiSegLoss(alpha=0)(output, target)
    loss.backward()
    assert loss == 2e4 and output.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    output, target = example(dtype=torch.float32)
    half = (output * 40).to(dtype)
    target["image"] *= 400  # the squared error overflows float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = DenoiSegLoss()(half, target)
    assert loss.dtype == torch.float32 and loss == DenoiSegLoss()(half.float(), target)


@pytest.mark.parametrize("normalization", ["paper", "labelled"])
def test_flips_and_batch_order_do_not_matter(normalization):
    output, target = example(3)
    target["ignore"] = target["label"] == 2
    loss = DenoiSegLoss(normalization=normalization)
    expected = loss(output, target)
    flipped = {k: v if k == "has_label" else v.flip(2, 4) for k, v in target.items()}
    assert loss(output.flip(2, 4), flipped) == pytest.approx(expected.item(), rel=1e-12)
    order = torch.tensor([2, 0, 1])
    permuted = loss(output[order], {k: v[order] for k, v in target.items()})
    assert permuted == pytest.approx(expected.item(), rel=1e-12)


def test_volume_of_depth_one_is_the_picture():
    output, target = example(2)
    deep = {k: v if k == "has_label" else v[..., None] for k, v in target.items()}
    assert DenoiSegLoss()(output[..., None], deep) == DenoiSegLoss()(output, target)


def test_metatensors_and_other_containers_give_the_same_plain_scalar():
    output, target = example(dtype=torch.float32)
    expected = DenoiSegLoss()(output, target)
    wrapped = {k: MetaTensor(v, affine=AFFINE) for k, v in target.items()}
    loss = DenoiSegLoss()(MetaTensor(output, affine=AFFINE), wrapped)
    assert type(loss) is torch.Tensor and loss == expected
    target["has_label"] = [bool(flag) for flag in target["has_label"]]
    target["blind_spots"], target["label"] = target["blind_spots"].to(torch.uint8), target["label"].to(torch.int16)
    assert DenoiSegLoss()(output, target) == expected


def test_shared_blind_spots_of_one_channel():
    output, target = example(channels=2)
    shared = target["blind_spots"][:, :1]
    target["blind_spots"] = shared.expand_as(target["image"])
    expected = denoiseg_loss(output, **target)
    target["blind_spots"] = shared
    assert denoiseg_loss(output, **target) == expected


def test_terms_make_up_the_loss():
    output, target = example()
    loss = DenoiSegLoss(0.3, normalization="paper")
    denoising, segmentation = loss.terms(output, target)
    assert loss(output, target) == 0.3 * denoising + 0.7 * segmentation
    assert loss.terms(output, {"image": target["image"], "blind_spots": target["blind_spots"]}) == (denoising, 0)
    assert repr(loss) == "DenoiSegLoss(alpha=0.3, class_weights=(1.0, 1.0, 5.0), normalization='paper')"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 1.5}, "alpha must be from 0 to 1, got 1.5"),
        ({"alpha": math.nan}, "alpha must be from 0 to 1"),
        ({"class_weights": (1, 5)}, "class_weights must be 3"),
        ({"class_weights": (1, 1, -5)}, "class_weights must be 3"),
        ({"normalization": "sum"}, "normalization must be one of"),
        ({"blind_spots": None}, "alpha=0.5 the loss needs image and blind_spots"),
        ({"has_label": None}, "alpha=0.5 the loss needs label and has_label"),
        ({"image": torch.zeros(3, 2, 5, 4)}, "shape of the denoised channels"),
        ({"label": torch.zeros(3, 5, 4)}, "label must be"),
        ({"has_label": [True]}, "has_label"),
        ({"ignore": torch.zeros(3, 1, 5, 5)}, "ignore must be"),
        ({"label": torch.full((3, 1, 5, 4), 7)}, "classes from 0 to 7 .* InstancesToBorderClasses"),
        ({"label": torch.full((3, 1, 5, 4), -1)}, "classes from -1 to 0"),
        ({"input": torch.zeros(3, 3, 5, 4)}, "more than 3 output channels; .* alpha=0"),
        ({"input": torch.zeros(3, 2, 5, 4)}, r"input must be \(B, C \+ 3"),
    ],
)
def test_bad_arguments_are_named(change, message):
    output, target = example()
    with pytest.raises(ValueError, match=message):
        denoiseg_loss(**{"input": output, **target, **change})


def test_module_names_bad_targets_and_options():
    output, target = example()
    with pytest.raises(TypeError, match="takes a mapping .* got Tensor"):
        DenoiSegLoss()(output, target["label"])
    with pytest.raises(ValueError, match="needs label and has_label"):
        DenoiSegLoss()(output, {"image": target["image"], "blind_spots": target["blind_spots"]})
    with pytest.raises(ValueError, match="normalization"):
        DenoiSegLoss(normalization="none")
    with pytest.raises(ValueError, match="both image and blind_spots"):
        denoiseg_loss_terms(output, image=target["image"])
    with pytest.raises(ValueError, match="both label and has_label"):
        denoiseg_loss_terms(output, label=target["label"])
