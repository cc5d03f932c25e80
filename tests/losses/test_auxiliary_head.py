# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_labelfx.losses.auxiliary_head import AuxiliaryHeadLoss
from monai_labelfx.losses.easy_example import EasyExampleLoss, easy_example_loss


def example(space=(6, 5)):
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 6, *space), generator=draw, dtype=torch.float64, requires_grad=True)
    return logits, torch.randint(0, 3, (2, 1, *space), generator=draw)


@pytest.mark.parametrize("space", [(6, 5), (4, 3, 5)])
def test_is_main_plus_weighted_auxiliary_loss(space):
    logits, labels = example(space)
    main, auxiliary = (easy_example_loss(part, labels) for part in logits.split(3, 1))
    loss = AuxiliaryHeadLoss(EasyExampleLoss(), classes=3)
    assert loss(logits, labels).item() == pytest.approx((main + 0.4 * auxiliary).item(), rel=1e-12)
    assert AuxiliaryHeadLoss(EasyExampleLoss(), 3, 2)(logits, labels).item() == pytest.approx(
        (main + 2 * auxiliary).item(), rel=1e-12
    )
    assert loss(logits[:, :3], labels) == main, "evaluation has the main head alone"


def test_weight_zero_leaves_the_auxiliary_head_alone():
    logits, labels = example()
    AuxiliaryHeadLoss(EasyExampleLoss(), 3, 0)(logits, labels).backward()
    assert (logits.grad[:, 3:] == 0).all() and (logits.grad[:, :3] != 0).any()


def test_each_head_counts_its_own_warm_up():
    logits, labels = example()
    loss = AuxiliaryHeadLoss(EasyExampleLoss(warm_up=2), 3)
    plain = sum(w * F.cross_entropy(p, labels[:, 0]) for w, p in zip((1, 0.4), logits.split(3, 1), strict=True))
    found = [loss(logits, labels).item() for _ in range(3)]
    assert found[:2] == pytest.approx([plain.item()] * 2, rel=1e-12) and found[2] < plain
    resumed = AuxiliaryHeadLoss(EasyExampleLoss(warm_up=2), 3)
    resumed.load_state_dict(loss.state_dict())
    assert resumed(logits, labels).item() == found[2]
    assert sorted(loss.state_dict()) == ["auxiliary_loss.calls", "loss.calls"]


def test_takes_any_function_and_target():
    logits, labels = example()

    def loss(input, target):
        return (input - target["image"]).abs().mean()

    found = AuxiliaryHeadLoss(loss, classes=3, weight=0.5)(logits, {"image": 0.0})
    assert found.item() == pytest.approx((logits[:, :3].abs().mean() + 0.5 * logits[:, 3:].abs().mean()).item())


def test_bad_arguments_are_named():
    logits, labels = example()
    for channels in (2, 4, 5):
        with pytest.raises(ValueError, match=rf"3 channels, or 6 with the auxiliary head, got \(2, {channels}, 6, 5\)"):
            AuxiliaryHeadLoss(EasyExampleLoss(), 3)(logits[:, :channels], labels)
    with pytest.raises(TypeError, match="loss must be a function or module .* got str"):
        AuxiliaryHeadLoss("dice", 3)
    for classes in (0, 2.0, True):
        with pytest.raises(ValueError, match="classes must be a whole number"):
            AuxiliaryHeadLoss(EasyExampleLoss(), classes)
    for weight in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weight must be a finite number of 0 or more"):
            AuxiliaryHeadLoss(EasyExampleLoss(), 3, weight)
    assert "classes=3, weight=0.4" in repr(AuxiliaryHeadLoss(EasyExampleLoss(), 3))
