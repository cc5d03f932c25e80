# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter

import pytest
import torch
from monai.data import DataLoader, Dataset

from monai_labelfx.engines import LabelAwareSampler


def flags(labelled: int, unlabelled: int) -> list[bool]:
    """Labelled items first: indices below ``labelled`` are labelled."""
    return [True] * labelled + [False] * unlabelled


def batches(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


@pytest.mark.parametrize("labelled", [1, 2, 7])
@pytest.mark.parametrize("unlabelled", [1, 5, 20, 23])
@pytest.mark.parametrize(("size", "least"), [(2, 1), (4, 1), (4, 3), (8, 2)])
def test_every_batch_is_full_and_holds_enough_labels(labelled, unlabelled, size, least):
    sampler = LabelAwareSampler(flags(labelled, unlabelled), size, labelled_per_batch=least)
    order = list(sampler)
    assert len(order) == len(sampler) and len(order) % size == 0
    assert all(sum(index < labelled for index in batch) >= least for batch in batches(order, size))
    counts = Counter(order)
    assert all(counts[index] == 1 for index in range(labelled, labelled + unlabelled))
    shown = [counts[index] for index in range(labelled)]
    assert max(shown) - min(shown) <= 1 and min(shown) >= 1


def test_paper_setting_leaves_no_batch_without_label():
    order = list(LabelAwareSampler(flags(10, 3790), 128))
    assert all(any(index < 10 for index in batch) for batch in batches(order, 128))
    plain = torch.utils.data.RandomSampler(range(3800), generator=torch.Generator().manual_seed(0))
    without = [not any(index < 10 for index in batch) for batch in batches(list(plain), 128)]
    assert sum(without) / len(without) > 0.5, "random batches, the problem that the sampler solves"


def test_unlabelled_items_are_spread_evenly():
    order = list(LabelAwareSampler(flags(2, 10), 4))
    per_batch = [sum(index >= 2 for index in batch) for batch in batches(order, 4)]
    assert sorted(per_batch) == [2, 2, 3, 3]


def test_order_follows_seed_and_epoch_alone():
    def draw(seed: int, epoch: int) -> list[int]:
        sampler = LabelAwareSampler(flags(3, 17), 4, seed=seed)
        sampler.set_epoch(epoch)
        torch.manual_seed(epoch + 100 * seed)
        return list(sampler)

    assert draw(0, 1) == draw(0, 1)
    assert draw(0, 1) != draw(0, 2)
    assert draw(0, 1) != draw(1, 1)
    sampler = LabelAwareSampler(flags(3, 17), 4)
    assert list(sampler) == list(sampler), "without set_epoch all epochs are alike, as in DistributedSampler"


@pytest.mark.parametrize("labelled", [2, 5, 12])
@pytest.mark.parametrize("replicas", [2, 3])
def test_ranks_are_disjoint_and_equally_long(labelled, replicas):
    if labelled < replicas:
        labelled = replicas
    samplers = [
        LabelAwareSampler(flags(labelled, 19), 4, num_replicas=replicas, rank=rank, seed=5) for rank in range(replicas)
    ]
    orders = [list(sampler) for sampler in samplers]
    assert len({len(order) for order in orders}) == 1
    for first in range(replicas):
        assert all(any(index < labelled for index in batch) for batch in batches(orders[first], 4))
        for second in range(first):
            assert not set(orders[first]) & set(orders[second])
    counts = Counter(index for order in orders for index in order)
    assert all(counts[index] == 1 for index in range(labelled, labelled + 19))
    assert set(range(labelled)) <= set(counts)


def test_ranks_share_labels_when_there_are_fewer_than_ranks():
    orders = [list(LabelAwareSampler(flags(1, 7), 3, num_replicas=2, rank=rank)) for rank in range(2)]
    assert len(orders[0]) == len(orders[1])
    assert all(0 in batch for order in orders for batch in batches(order, 3))
    unlabelled = [set(order) - {0} for order in orders]
    assert not unlabelled[0] & unlabelled[1] and unlabelled[0] | unlabelled[1] == set(range(1, 8))


def test_fewer_unlabelled_items_than_ranks():
    orders = [list(LabelAwareSampler(flags(4, 1), 2, num_replicas=3, rank=rank)) for rank in range(3)]
    assert len({len(order) for order in orders}) == 1
    assert Counter(index for order in orders for index in order)[4] == 1


@pytest.mark.parametrize("labelled", [True, False])
def test_one_kind_alone_is_a_plain_shuffled_pass(labelled):
    sampler = LabelAwareSampler([labelled] * 11, 4, labelled_per_batch=2)
    order = list(sampler)
    assert sorted(order) == list(range(11)) and len(sampler) == 11
    assert order != sorted(order)
    orders = [list(LabelAwareSampler([labelled] * 11, 4, num_replicas=2, rank=rank)) for rank in range(2)]
    assert [len(order) for order in orders] == [6, 6] and set(orders[0]) | set(orders[1]) == set(range(11))
    longer = list(LabelAwareSampler([labelled] * 3, 4, num_samples=8))
    assert sorted(Counter(longer).values()) == [2, 3, 3]


def test_batch_larger_than_the_set_is_filled_with_labelled_items():
    order = list(LabelAwareSampler(flags(2, 3), 16))
    counts = Counter(order)
    assert len(order) == 16 and [counts[index] for index in (2, 3, 4)] == [1, 1, 1]
    assert sorted(counts[index] for index in (0, 1)) == [6, 7]


@pytest.mark.parametrize("factor", [1, 2, 4, 12])
def test_num_samples_sets_the_length_and_keeps_the_promise(factor):
    sampler = LabelAwareSampler(flags(2, 10), 4, num_samples=4 * factor)
    order = list(sampler)
    assert len(order) == len(sampler) == 4 * factor
    assert all(sum(index < 2 for index in batch) >= 1 for batch in batches(order, 4))
    counts = Counter(order)
    unlabelled = [counts[index] for index in range(2, 12)]
    assert max(unlabelled) - min(unlabelled) <= 1
    assert sum(unlabelled) == 10 * factor // 4


def test_reads_a_datalist():
    items = [{"image": 0}, {"image": 1, "label": "a.png"}, {"image": 2, "label": None}, {"image": 3, "mask": "b.png"}]
    assert all(1 in batch for batch in batches(list(LabelAwareSampler(items, 2)), 2))
    assert all(3 in batch for batch in batches(list(LabelAwareSampler(items, 2, key="mask")), 2))
    empty = [{"image": 0}, {"image": 1, "has_label": True}, {"image": 2, "label": "a.png", "has_label": False}]
    assert all(1 in batch for batch in batches(list(LabelAwareSampler(empty, 2)), 2)), "annotated, but without object"
    assert list(LabelAwareSampler(torch.tensor([0, 1, 0]), 2)).count(1) == 2


def test_works_in_a_loader():
    data = [{"index": index} for index in range(9)]
    loader = DataLoader(Dataset(data), batch_size=3, sampler=LabelAwareSampler(flags(1, 8), 3))
    assert len(loader) == 4
    assert all(0 in batch["index"].tolist() for batch in loader)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"data": []}, "data holds no item"),
        ({"batch_size": 0}, "batch_size must be a whole number at least 1"),
        ({"labelled_per_batch": 5}, "labelled_per_batch must be a whole number from 1 to 4"),
        ({"labelled_per_batch": 0}, "labelled_per_batch"),
        ({"labelled_per_batch": 4}, "never be seen"),
        ({"seed": -1}, "seed"),
        ({"num_samples": 6}, "num_samples must be a multiple of batch_size"),
        ({"num_replicas": 2, "rank": 2}, "rank must be a whole number from 0 to 1"),
    ],
)
def test_refuses(keywords, words):
    with pytest.raises(ValueError, match=words):
        LabelAwareSampler(**{"data": flags(2, 5), "batch_size": 4, **keywords})
    with pytest.raises(ValueError, match="epoch"):
        LabelAwareSampler(flags(2, 5), 4).set_epoch(-1)
