# SPDX-License-Identifier: Apache-2.0
"""What metrics of rows share: gathering from processes without rows, and reset."""

from __future__ import annotations

import os
import socket

import pytest
import torch
from ignite import distributed as idist

from monai_labelfx.metrics._rows import RowMetric, check_reduction
from monai_labelfx.metrics.object_scores import ObjectDice, ObjectF1, ObjectHausdorff
from monai_labelfx.metrics.patch_consistency import PatchConsistency
from monai_labelfx.metrics.patch_label_score import PatchLabelScore
from monai_labelfx.metrics.segmentation_overlap import SegmentationOverlap

METRICS = {
    "overlap": lambda: SegmentationOverlap(3),
    "object f1": ObjectF1,
    "object dice": ObjectDice,
    "object hausdorff": ObjectHausdorff,
    "likelihood": lambda: PatchLabelScore(3),
    "average precision": lambda: PatchLabelScore(3, "average_precision"),
    "consistency": lambda: PatchConsistency(3),
}


def items(build, count: int = 4) -> tuple[list, list]:
    """Predictions and references that the metric takes."""
    generator = torch.Generator().manual_seed(0)
    metric = build()
    maps = [torch.randint(0, 3, (1, 6, 7), generator=generator) for _ in range(count)]
    if isinstance(metric, PatchLabelScore):
        labels = torch.randint(-1, 2, (count, 3), generator=generator)
        return list(torch.randn(count, 3, generator=generator)), list(labels)
    if isinstance(metric, PatchConsistency):
        patches = torch.tensor([[0, 0, 1, 2], [2, 3, 2, 1], [4, 4, 2, 2]])
        return maps, [(patches, torch.randint(-1, 2, (3, 3), generator=generator)) for _ in range(count)]
    return maps, [torch.randint(0, 3, (1, 6, 7), generator=generator) for _ in range(count)]


@pytest.mark.parametrize("build", METRICS.values(), ids=METRICS)
def test_batches_in_any_order_and_number_give_the_same(build):
    predictions, references = items(build)
    one, many = build(), build()
    scores = one(predictions, references)
    value = one.aggregate()
    for order in ([3], [1, 0], [], [2]):
        many([predictions[k] for k in order], [references[k] for k in order])
    assert many.aggregate().item() == pytest.approx(value.item()) and value.ndim == 0
    torch.testing.assert_close(one.get_buffer(), scores, equal_nan=True)
    torch.testing.assert_close(one.aggregate("mean_batch"), many.aggregate("mean_batch"), equal_nan=True)
    assert len(one) == len(many) == len(predictions)
    one.reset()
    assert len(one) == 0
    with pytest.raises(ValueError, match="reset"):
        one.aggregate()
    one(predictions, references)
    assert one.aggregate() == value
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'mean_batch', got 'sum'"):
        one.aggregate("sum")


def test_a_row_metric_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        RowMetric(3)
    check_reduction("mean")


def _gather_in(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
    torch.set_num_threads(1)
    with idist.Parallel(backend="gloo"):
        for build in METRICS.values():
            predictions, references = items(build)
            whole = build()
            rows = whole._compute_list(predictions, references)
            for shares in ((slice(0, 4), slice(0, 0)), (slice(0, 1), slice(1, 4))):
                metric = build()
                metric(predictions[shares[rank]], references[shares[rank]])
                torch.testing.assert_close(metric.get_buffer(), whole._score(rows), equal_nan=True)
                assert len(metric) == 4 and torch.isfinite(metric.aggregate())


@pytest.mark.slow
def test_two_processes_of_which_one_may_have_no_item():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_gather_in, args=(port,), nprocs=2)


@pytest.mark.parametrize("build", METRICS.values(), ids=METRICS)
def test_void_rows_of_other_processes_do_not_count(build, monkeypatch):
    """As if a second process without any item had taken part in the gathering."""
    seen = []

    def gather(data, concat=True):
        seen.append(len(data))
        return torch.cat([torch.full_like(data[:1], torch.nan), data])

    predictions, references = items(build)
    expected = build()
    expected(predictions, references)
    value = expected.aggregate()
    monkeypatch.setattr("monai.metrics.metric.evenly_divisible_all_gather", gather)
    full, void = build(), build()
    full(predictions, references)
    assert full.aggregate() == value and len(full) == 4 and len(void) == 0
    assert seen == [4, 1], "a process without items must take part, or the others wait for ever"
