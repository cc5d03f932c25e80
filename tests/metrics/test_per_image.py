# SPDX-License-Identifier: Apache-2.0
"""The shared life cycle: lists and batches, reset, details, and gathering from processes without images."""

from __future__ import annotations

import os
import socket

import numpy as np
import pytest
import torch
from ignite import distributed as idist
from monai.data import MetaTensor

from monai_labelfx.metrics import IOU_THRESHOLDS, InstanceAveragePrecision, SegScore, StatedRangePSNR

METRICS = {
    "ap": lambda: InstanceAveragePrecision(IOU_THRESHOLDS),
    "ap pooled": lambda: InstanceAveragePrecision(IOU_THRESHOLDS, mode="pooled"),
    "seg": SegScore,
    "seg pooled": lambda: SegScore("pooled"),
    "psnr": lambda: StatedRangePSNR(data_range=255),
}


def pairs(images: int, shape=(1, 9, 8), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Block labels and a disturbed copy, (images, *shape)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, (images, 1, *(-(-n // 3) for n in shape[1:])))
    labels = np.kron(coarse, np.ones((1, 1, *[3] * (len(shape) - 1)), int))[(..., *(slice(n) for n in shape[1:]))]
    return torch.as_tensor(np.where(rng.random(labels.shape) < 0.8, labels, 0)), torch.as_tensor(labels)


@pytest.mark.parametrize("build", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize("shape", [(1, 9, 8), (1, 5, 6, 7)])
def test_batches_lists_arrays_and_metatensors_agree(build, shape):
    prediction, reference = pairs(5, shape)
    batch, items, single = build(), build(), build()
    scores = batch(prediction, reference)
    assert torch.equal(items(list(prediction.int()), [r.numpy() for r in reference]), scores)
    for p, r in zip(prediction, reference, strict=True):
        single([MetaTensor(p)], [MetaTensor(r)])
    for metric in (batch, items, single):
        assert torch.equal(metric.get_buffer(), scores) and type(metric.get_buffer()) is torch.Tensor
        assert len(metric) == 5
        assert metric.aggregate() == batch.aggregate() and metric.aggregate().ndim == 0
        assert torch.isfinite(metric.aggregate())
        assert metric.aggregate("mean_batch").shape == scores.shape[1:]
        torch.testing.assert_close(metric.aggregate("mean_batch").mean(), metric.aggregate())


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_device_tensors(device):
    prediction, reference = pairs(3)
    metric = InstanceAveragePrecision()
    assert torch.equal(metric(prediction.to(device), reference), InstanceAveragePrecision()(prediction, reference))


@pytest.mark.parametrize("build", METRICS.values(), ids=METRICS)
def test_reset_and_empty_calls(build):
    prediction, reference = pairs(3)
    metric = build()
    assert len(metric([], [])) == 0 and len(metric) == 0
    with pytest.raises(ValueError, match=f"{type(metric).__name__} has no image to aggregate"):
        metric.aggregate()
    metric(prediction, reference)
    value = metric.aggregate()
    metric([], [])
    assert metric.aggregate() == value and len(metric) == 3
    metric(prediction, reference)
    assert len(metric) == 6, "images may be added after aggregate()"
    metric.reset()
    assert len(metric) == 0 and len(metric.get_buffer()) == 0
    metric(prediction, reference)
    assert metric.aggregate() == value


def test_modes_differ_where_images_differ_in_objects():
    few = torch.tensor([[[1, 0, 0, 0, 0, 0, 0]]])
    many = torch.tensor([[[1, 0, 2, 0, 3, 0, 4]]])
    predictions, references = [few, torch.zeros_like(many)], [few, many]
    for metric, pooled in ((InstanceAveragePrecision, 0.2), (SegScore, 0.2)):
        for mode, expected in (("per_image", 0.5), ("pooled", pooled)):
            one = metric(mode=mode)
            one(predictions, references)
            assert float(one.aggregate()) == pytest.approx(expected)


def test_errors_say_what_is_wrong():
    labels = torch.ones(2, 1, 4, 4, dtype=torch.int64)
    metric = InstanceAveragePrecision()
    with pytest.raises(ValueError, match="each of the 2 predictions, got 1"):
        metric(labels, labels[:1])
    with pytest.raises(ValueError, match="each of the 2 predictions, got None"):
        metric(labels)
    with pytest.raises(ValueError, match=r"one shape \(C, \*spatial\), got \(1, 4, 4\) and \(1, 4, 3\)"):
        metric(labels, labels[..., :3])
    with pytest.raises(ValueError, match=r"shape \(1, \*spatial\), got \(2, 4, 4\)"):
        metric(labels.movedim(0, 1), labels.movedim(0, 1))
    with pytest.raises(ValueError, match="mode must be one of .*, got 'both'"):
        SegScore("both")
    metric(labels, labels)
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'mean_batch', got 'sum'"):
        metric.aggregate("sum")


def test_rows_of_all_processes_count_and_void_rows_do_not(monkeypatch):
    """As if a second process without any image had taken part in the gathering."""
    seen = []

    def gather(data, concat=True):
        seen.append(len(data))
        void = torch.full_like(data[:1], torch.nan)
        return torch.cat([void, data])

    prediction, reference = pairs(3)
    expected = InstanceAveragePrecision()(prediction, reference).mean()
    monkeypatch.setattr("monai.metrics.metric.evenly_divisible_all_gather", gather)
    full, void = InstanceAveragePrecision(), InstanceAveragePrecision()
    full(prediction, reference)
    assert full.aggregate() == expected and len(full) == 3
    assert len(void) == 0
    assert seen == [3, 1], "a process without images must take part, or the others wait for ever"


def _gather_in(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
    torch.set_num_threads(1)
    with idist.Parallel(backend="gloo"):
        prediction, reference = pairs(3)
        share = slice(0, 3) if rank == 0 else slice(0, 0)
        for build in METRICS.values():
            metric, whole = build(), build()
            metric(prediction[share], reference[share])
            scores = whole._score(whole._compute_list(prediction, reference))
            assert torch.equal(metric.get_buffer(), scores)
            assert len(metric) == 3 and torch.isfinite(metric.aggregate())


@pytest.mark.slow
def test_two_processes_of_which_one_has_no_image():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_gather_in, args=(port,), nprocs=2)
