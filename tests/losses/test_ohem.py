# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from host_waits import HostWaits
from monai.data import MetaTensor
from scipy.special import log_softmax

from monai_labelfx.losses.ohem import OHEMLoss, ohem_loss


def example(*, classes: int = 3, space=(6, 5), batch: int = 3, seed: int = 0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((batch, classes, *space), generator=draw, dtype=dtype)
    return logits.requires_grad_(), torch.randint(0, classes, (batch, 1, *space), generator=draw)


def reference(logits, labels, threshold, min_kept, scope, ignore) -> tuple[float, np.ndarray]:
    """The mean over the kept voxels and its gradient, voxel by voxel in float64."""
    z, y = logits.detach().double().numpy(), labels.numpy()[:, 0]
    log_p = log_softmax(z, 1)
    rows = [[v for v in np.ndindex(*y.shape) if v[0] == b and y[v] != ignore] for b in range(len(y))]
    images = len(rows)
    if scope == "batch":
        rows = [sum(rows, [])]
    kept = set()
    for row in rows:
        losses = {v: -log_p[(v[0], y[v], *v[1:])] for v in row}
        number = min_kept * (images if scope == "batch" else 1) if isinstance(min_kept, int) else min_kept * len(row)
        number = 0 if min_kept == 0 else max(1, round(number))
        kept |= set(sorted(row, key=losses.get, reverse=True)[:number])
        if threshold is not None:
            kept |= {v for v in row if np.exp(-losses[v]) < threshold}
    value, gradient = 0.0, np.zeros_like(z)
    for v in kept:
        at = (v[0], slice(None), *v[1:])
        value -= log_p[at][y[v]] / len(kept)
        gradient[at] = np.exp(log_p[at]) / len(kept)
        gradient[(v[0], y[v], *v[1:])] -= 1 / len(kept)
    return value, gradient


@pytest.mark.parametrize("space", [(6, 5), (4, 3, 2)])
@pytest.mark.parametrize(
    ("threshold", "min_kept"),
    [*itertools.product([None, 0.3, 0.7], [0.02, 0.25, 0.99, 1, 7]), (0.3, 0), (0.7, 0)],
)
@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("ignore", [None, 255])
def test_value_and_gradient_follow_the_definition(space, threshold, min_kept, scope, ignore):
    logits, labels = example(space=space)
    if ignore is not None:
        labels[0, 0, 1:] = ignore
    value, gradient = reference(logits, labels, threshold, min_kept, scope, ignore)
    loss = OHEMLoss(threshold, min_kept, scope=scope, ignore_index=ignore)(logits, labels)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(logits.grad.numpy(), gradient, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.25, 0.3, 0.5, 0.7, 0.999])
def test_share_is_of_the_valid_voxels_and_the_same_with_an_unused_ignore_index(share):
    logits, labels = example(space=(10, 10), classes=2)
    options = {"threshold": None, "min_kept": share, "reduction": "none"}
    kept = (ohem_loss(logits, labels, **options) > 0).flatten(1).sum(1)
    assert kept.tolist() == [max(1, round(100 * share))] * 3
    assert torch.equal(ohem_loss(logits, labels, **options), ohem_loss(logits, labels, ignore_index=255, **options))
    labels[1, 0, 5:] = 255
    kept = (ohem_loss(logits, labels, ignore_index=255, **options) > 0).flatten(1).sum(1)
    assert kept.tolist() == [max(1, round(n * share)) for n in (100, 50, 100)]


def test_loss_is_never_below_cross_entropy_and_keeping_more_lowers_it():
    logits, labels = example()
    plain = F.cross_entropy(logits, labels[:, 0]).item()
    values = [ohem_loss(logits, labels, threshold=None, min_kept=s).item() for s in (0.05, 0.3, 0.6, 0.95)]
    assert values == sorted(values, reverse=True) and values[-1] > plain


def test_reference_form_that_keeps_everything_is_named_and_is_cross_entropy():
    logits, labels = example()
    with pytest.warns(UserWarning, match="min_kept=100000 is not below the 30 voxels .* plain cross-entropy"):
        loss = OHEMLoss(0.7, 100000)(logits, labels)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, labels[:, 0]).item(), rel=1e-12)
    with pytest.warns(UserWarning, match="min_kept=30"):
        ohem_loss(logits, labels, min_kept=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ohem_loss(logits, labels, min_kept=29)


def test_voxels_as_hard_as_the_last_are_kept_too():
    loss = ohem_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4), threshold=None, min_kept=1, reduction="none")
    assert (loss > 0).all()


def test_nothing_kept_is_zero_with_zero_gradient():
    logits = torch.tensor([[[9.0, 9], [-9, -9]]], requires_grad=True)
    loss = ohem_loss(logits, torch.zeros(1, 1, 2), min_kept=0)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()
    logits, labels = example()
    for min_kept in (0.25, 3):
        loss = ohem_loss(logits, torch.full_like(labels, 255), min_kept=min_kept, ignore_index=255)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss == 0 and (gradient == 0).all()


def test_class_weights_do_not_choose_but_weigh():
    logits, labels = example()
    outer = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)
    losses = ohem_loss(logits, labels, reduction="none")
    at = outer[labels]
    expected = (losses * at).sum() / (at * (losses > 0)).sum()
    assert OHEMLoss(weight=[1.0, 0.0, 3.0])(logits, labels).item() == pytest.approx(expected.item(), rel=1e-12)
    total = ohem_loss(logits, labels, reduction="sum", weight=outer)
    assert total.item() == pytest.approx((losses * at).sum().item(), rel=1e-12)


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_order_of_voxels_and_images_does_not_matter(scope):
    logits, labels = example(space=(4, 5, 3))
    labels[0, 0, 2:] = 255
    options = {"scope": scope, "ignore_index": 255, "threshold": None}
    expected = ohem_loss(logits, labels, **options).item()
    for pair in ((logits.flip(2, 4), labels.flip(2, 4)), (logits[[2, 0, 1]], labels[[2, 0, 1]])):
        assert ohem_loss(*pair, **options).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_metatensors_and_number_types(dtype):
    logits, labels = example(dtype=torch.float32)
    half = (logits * 20).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = OHEMLoss()(MetaTensor(half), MetaTensor(labels.float()))
    assert type(loss) is torch.Tensor and loss.dtype == torch.float32 and loss == ohem_loss(half.float(), labels)


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("ignore", [None, 255])
def test_host_never_waits_for_the_device(scope, ignore):
    logits, labels = example()
    for min_kept in (0.25, 5):
        loss = OHEMLoss(min_kept=min_kept, scope=scope, ignore_index=ignore, weight=[1.0, 2, 3])
        with HostWaits() as waits:
            loss(logits, labels).backward()
        assert waits.found == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.0}, "threshold must be between 0 and 1 or None, got 1.0"),
        ({"threshold": 0}, "threshold must be between 0 and 1"),
        ({"min_kept": 1.0}, "min_kept must be a share from 0 to below 1 or a whole number of voxels, got 1.0"),
        ({"min_kept": -1}, "min_kept must be a share"),
        ({"min_kept": float("nan")}, "min_kept must be a share"),
        ({"min_kept": True}, "min_kept must be a share"),
        ({"min_kept": "all"}, "min_kept must be a share"),
        ({"threshold": None, "min_kept": 0}, "Without a threshold min_kept must be above 0"),
        ({"scope": "block"}, "scope must be one of"),
        ({"reduction": "max"}, "reduction must be one of"),
    ],
)
def test_bad_options_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        OHEMLoss(**change)
    with pytest.raises(ValueError, match=message):
        ohem_loss(*example(), **change)


def test_module_prints_its_options():
    assert repr(OHEMLoss(None, 0.1)).startswith("OHEMLoss(threshold=None, min_kept=0.1, scope='image'")
