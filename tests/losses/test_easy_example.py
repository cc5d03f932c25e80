# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import math
import time

import pytest
import torch
import torch.nn.functional as F
from host_waits import HostWaits
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from testers import AFFINE

from monai_labelfx.losses.easy_example import EasyExampleLoss, easy_example_loss, easy_example_weights

WEIGHTINGS = ("normalized_loss", "confidence_max", "confidence_difference", "mixed")
SCOPES = ("image", "block", "batch")


def example(*, classes: int = 3, space=(6, 5), batch: int = 3, seed: int = 0, dtype=torch.float64, scale: float = 2):
    """Random logits that require a gradient, and labels."""
    draw = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn((batch, classes, *space), generator=draw, dtype=dtype)
    return logits.requires_grad_(), torch.randint(0, classes, (batch, 1, *space), generator=draw)


def cross_entropy(logits, labels, **options):
    return F.cross_entropy(logits, labels[:, 0], **options)


def minus_log_mean(logits, labels):
    """-log(mean p) per image, averaged over the images."""
    p = logits.softmax(1).gather(1, labels).flatten(1)
    return -p.mean(1).log().mean()


@pytest.mark.parametrize("space", [(7,), (6, 5), (4, 3, 5)])
@pytest.mark.parametrize("classes", [2, 4])
def test_value_lies_below_minus_log_mean_p_and_that_below_cross_entropy(space, classes):
    for seed in range(20):
        logits, labels = example(classes=classes, space=space, seed=seed, scale=1 + seed)
        labels.flatten(1)[:, :2] = torch.arange(2)
        values = [f(logits, labels).item() for f in (easy_example_loss, minus_log_mean, cross_entropy)]
        assert values[0] <= values[1] <= values[2] and values[0] < values[2]


@pytest.mark.parametrize("space", [(6, 5), (4, 3, 5)])
def test_gradient_is_that_of_minus_log_mean_p(space):
    logits, labels = example(space=space)
    (ours,) = torch.autograd.grad(easy_example_loss(logits, labels), logits)
    (theirs,) = torch.autograd.grad(minus_log_mean(logits, labels), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-15)
    sharp = torch.autograd.grad(cross_entropy(logits, labels), logits)[0]
    assert (ours - sharp).abs().max() > 0.1 * sharp.abs().max(), "cross-entropy would pass too"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_is_the_authors_algorithm_where_nothing_is_ignored(dtype, tolerance):
    logits, labels = example(classes=2, space=(32, 40), batch=2, dtype=dtype)
    losses = cross_entropy(logits.double(), labels, reduction="none").flatten(1)
    weights = torch.softmax(-losses, 1)
    expected = (weights / weights.mean(1, keepdim=True) * losses).mean()
    assert easy_example_loss(logits, labels).item() == pytest.approx(expected.item(), rel=tolerance)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("balanced", [False, True])
def test_gradient_is_that_of_constant_weights(weighting, scope, balanced):
    logits, labels = example(space=(6, 5, 3))
    labels[0, 0, 2:4] = 9
    options = {"weighting": weighting, "scope": scope, "block_size": 4, "class_balanced": balanced, "ignore_index": 9}
    weights = easy_example_weights(logits, labels, **options)
    losses = cross_entropy(logits, labels, reduction="none", ignore_index=9)[:, None]
    expected = (weights * losses).sum() / (labels != 9).sum()
    loss = easy_example_loss(logits, labels, **options)
    assert not weights.requires_grad and loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, logits)[0] for value in (loss, expected)), rtol=1e-10, atol=1e-15
    )


def test_gradcheck_where_the_weights_are_constant():
    """Elsewhere finite differences would move the weights, which count as constants."""
    logits, labels = example(space=(2, 2), batch=1)
    assert torch.autograd.gradcheck(lambda x: easy_example_loss(x, torch.zeros_like(labels)), logits)
    assert torch.autograd.gradgradcheck(lambda x: easy_example_loss(x, torch.zeros_like(labels)), logits)


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_ignored_border_is_as_if_it_were_cropped(scope):
    logits, labels = example(space=(8, 9), classes=2)
    labels[:, :, 6:] = labels[:, :, :, :2] = 255
    inner = logits[:, :, :6, 2:]
    loss = easy_example_loss(logits, labels, scope=scope, ignore_index=255)
    expected = easy_example_loss(inner, labels[:, :, :6, 2:], scope=scope)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    (cropped,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, cropped, rtol=1e-10, atol=1e-15)
    assert (gradient[:, :, 6:] == 0).all() and (gradient[:, :, :6, 2:] != 0).all()


def test_reduction_counts_voxels_not_images():
    logits, labels = example(batch=2, classes=2)
    labels[1, 0, 2:] = 255
    apart = [easy_example_loss(logits[i : i + 1], labels[i : i + 1], ignore_index=255).item() for i in range(2)]
    loss = easy_example_loss(logits, labels, ignore_index=255)
    assert loss.item() == pytest.approx((30 * apart[0] + 10 * apart[1]) / 40, rel=1e-12)
    total = easy_example_loss(logits, labels, ignore_index=255, reduction="sum")
    voxels = easy_example_loss(logits, labels, ignore_index=255, reduction="none")
    assert total.item() == pytest.approx(40 * loss.item(), rel=1e-12) == pytest.approx(voxels.sum().item(), rel=1e-12)
    assert voxels.shape == labels.shape and (voxels[1, 0, 2:] == 0).all() and (voxels[1, 0, :2] != 0).all()


@pytest.mark.parametrize("scope", ["image", "block", "batch"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_images_of_one_class_are_plain_cross_entropy(scope, weighting):
    logits, labels = example()
    labels[:] = torch.tensor([0, 2, 1])[:, None, None, None]
    labels[1, 0, 3:] = 255
    options = {"scope": scope, "weighting": weighting, "ignore_index": 255}
    expected = cross_entropy(logits, labels, ignore_index=255)
    assert easy_example_loss(logits, labels, **options).item() == pytest.approx(expected.item(), rel=1e-12)


def test_class_weights_act_from_outside_and_as_in_torch():
    logits, labels = example()
    labels[0, 0, :2] = 255
    weights = [1.0, 0.0, 3.5]
    plain = easy_example_loss(logits, labels, ignore_index=255, weight=weights, temperature=math.inf)
    expected = cross_entropy(logits, labels, ignore_index=255, weight=torch.tensor(weights, dtype=torch.float64))
    assert plain.item() == pytest.approx(expected.item(), rel=1e-12)
    outer = torch.tensor([*weights, *[0.0] * 253], dtype=torch.float64)[labels]
    losses = easy_example_loss(logits, labels, ignore_index=255, reduction="none") * outer
    loss = EasyExampleLoss(ignore_index=255, weight=weights)(logits, labels)
    assert loss.item() == pytest.approx((losses.sum() / outer.sum()).item(), rel=1e-12)
    only = easy_example_loss(logits, torch.ones_like(labels), weight=weights)
    only.backward()
    assert only == 0 and (logits.grad == 0).all(), "all voxels of weight 0"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, labels = example(classes=2, space=(256, 256), batch=1, dtype=torch.float32, scale=5)
    half = logits.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = EasyExampleLoss()(half, labels)
        weights = easy_example_weights(half, labels)
    loss.backward()
    assert loss.dtype == weights.dtype == torch.float32 and loss == easy_example_loss(half.float(), labels)
    assert weights.mean().item() == pytest.approx(1, rel=1e-5) and (weights > 0).all()
    assert half.grad.dtype == dtype and half.grad.isfinite().all()


def test_large_volume_takes_seconds_and_keeps_its_digits():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn((1, 2, 160, 160, 160), generator=draw, requires_grad=True)
    labels = (torch.rand((1, 1, 160, 160, 160), generator=draw) < 0.1).long()
    start = time.process_time()
    loss = easy_example_loss(logits, labels)
    loss.backward()
    assert time.process_time() - start < 20  # about 0.5
    p = logits.detach().softmax(1).gather(1, labels).double()
    assert loss.item() == pytest.approx((-p / p.mean() * p.log()).mean().item(), rel=1e-5)
    assert logits.grad.isfinite().all()


def test_metatensors_and_other_number_types_give_the_same_plain_scalar():
    logits, labels = example(dtype=torch.float32)
    labels[0, 0, 0] = 255
    expected = easy_example_loss(logits, labels, ignore_index=255)
    for dtype in (torch.uint8, torch.int16, torch.float32):
        wrapped = MetaTensor(labels.to(dtype), affine=AFFINE)
        loss = EasyExampleLoss(ignore_index=255)(MetaTensor(logits, affine=AFFINE), wrapped)
        assert type(loss) is torch.Tensor and loss == expected


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("balanced", [False, True])
def test_host_never_waits_for_the_device(scope, balanced):
    logits, labels = example(dtype=torch.float32)
    labels[0, 0, 0] = 255
    for weighting in WEIGHTINGS:
        loss = EasyExampleLoss(weighting, scope, balanced, 255, 2, block_size=4, weight=[1.0, 2, 3])
        with HostWaits() as waits:
            loss(logits, labels).backward()
        assert waits.found == []
    with HostWaits() as waits:
        assert bool(labels.any()) and labels[labels > 1].numel()
    assert len(waits.found) >= 2, "the counter counts"


def test_warm_up_is_plain_cross_entropy_and_resumes():
    logits, labels = example()
    plain, weighted = cross_entropy(logits, labels).item(), easy_example_loss(logits, labels).item()
    loss = EasyExampleLoss(warm_up=3)

    def calls(module, number):
        return [module(logits, labels).item() for _ in range(number)]

    assert calls(loss, 2) == pytest.approx([plain] * 2, rel=1e-12)
    loss.eval()
    assert calls(loss, 5) == pytest.approx([plain] * 5, rel=1e-12), "evaluation does not count"
    resumed = EasyExampleLoss(warm_up=3)
    resumed.load_state_dict(copy.deepcopy(loss.state_dict()))
    for module in (loss, resumed):
        module.train()
        assert calls(module, 3) == pytest.approx([plain, weighted, weighted], rel=1e-12)
        assert module.eval()(logits, labels).item() == pytest.approx(weighted, rel=1e-12)
    assert calls(EasyExampleLoss(), 1) == [weighted]
    assert list(EasyExampleLoss(weight=[1.0, 2, 3]).state_dict()) == ["calls"]


def test_trains_inside_monais_trainer_through_scattered_wrong_labels():
    draw = torch.Generator().manual_seed(0)
    truth = (torch.rand((8, 1, 12, 12), generator=draw) < 0.4).float()
    flipped = torch.where(torch.rand(truth.shape, generator=draw) < 0.2, 1 - truth, truth)
    flipped[:, :, :2] = 255
    images = truth + 0.3 * torch.randn(truth.shape, generator=draw)
    items = [{"image": i, "label": MetaTensor(x)} for i, x in zip(images, flipped, strict=True)]
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
    loss = EasyExampleLoss(ignore_index=255, warm_up=4)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=15,
        train_data_loader=DataLoader(Dataset(items), batch_size=4),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 0.05),
        loss_function=loss,
        decollate=False,
    )
    before = easy_example_loss(network(images), flipped, ignore_index=255).item()
    trainer.run()
    after = easy_example_loss(network(images), flipped, ignore_index=255).item()
    assert loss.calls == 30 and after < 0.7 * before
    assert (network(images).argmax(1, keepdim=True) == truth).float().mean() > 0.9


@pytest.mark.parametrize("label", [-1, -100, 3])
def test_label_out_of_range_is_not_silent(label):
    logits, labels = example()
    labels[1, 0, 2, 2] = label
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        easy_example_loss(logits, labels, ignore_index=255)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weighting": "focal"}, "weighting must be one of"),
        ({"scope": "slice"}, "scope must be one of"),
        ({"reduction": "max"}, "reduction must be one of"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"temperature": math.nan}, "temperature must be above 0, got nan"),
        ({"temperature": 2, "weighting": "confidence_max"}, "temperature=2 has no effect with .*confidence_max"),
        ({"block_size": 0}, "block_size must be whole numbers of voxels above 0, got 0"),
        ({"block_size": (4, 2.5)}, "block_size must be whole numbers"),
        ({"block_size": (4, 4, 4), "scope": "block"}, r"one for each of 2 axes, got \(4, 4, 4\)"),
        ({"weight": [1, 2]}, r"weight must be one number for each of 3 classes, got \(2,\)"),
        ({"target": torch.zeros(3, 6, 5)}, r"target must be class indices \(3, 1, 6, 5\) .* got \(3, 6, 5\)"),
        ({"input": torch.zeros(3, 1, 6, 5)}, "at least 2 classes"),
    ],
)
def test_bad_arguments_are_named(change, message):
    logits, labels = example()
    with pytest.raises(ValueError, match=message):
        easy_example_loss(**{"input": logits, "target": labels, **change})


def test_module_checks_its_options_and_prints_them():
    for change, message in (
        ({"warm_up": -1}, "warm_up must be"),
        ({"warm_up": 1.5}, "warm_up must be"),
        ({"scope": "slice"}, "scope must be"),
        ({"reduction": "max"}, "reduction must be"),
    ):
        with pytest.raises(ValueError, match=message):
            EasyExampleLoss(**change)
    with pytest.raises(TypeError, match=r"input must be a tensor of floating-point logits, got torch.int64"):
        EasyExampleLoss()(torch.zeros(1, 2, 3, 3, dtype=torch.long), torch.zeros(1, 1, 3, 3))
    assert "weighting='mixed', scope='block'" in repr(EasyExampleLoss("mixed", "block", warm_up=7))
    assert "warm_up=7" in repr(EasyExampleLoss("mixed", "block", warm_up=7))
