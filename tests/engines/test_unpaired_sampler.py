# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter

import pytest
from ignite.engine import Engine
from monai.data import DataLoader, Dataset

from monai_labelfx.data.unpaired_dataset import UnpairedDataset
from monai_labelfx.engines.seed_epoch import SeedEpoch
from monai_labelfx.engines.unpaired_sampler import UnpairedSampler


def epochs(sampler: UnpairedSampler, count: int = 4) -> list[list[tuple[int, int]]]:
    found = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
        assert len(found[-1]) == len(sampler)
    return found


def test_each_image_of_the_larger_domain_once_and_the_smaller_evenly():
    for numbers in ((10, 4), (4, 10), (7, 7), (1, 3)):
        for pairs in epochs(UnpairedSampler(*numbers)):
            for number, domain in zip(numbers, zip(*pairs, strict=True), strict=True):
                counts = Counter(domain)
                assert set(counts) <= set(range(number))
                assert sum(counts.values()) == max(numbers)
                if number == max(numbers):
                    assert set(counts.values()) == {1}


@pytest.mark.parametrize("per_epoch", [1, 3, 10, 23])
def test_a_run_covers_both_domains_evenly_whatever_an_epoch_is(per_epoch):
    counts = [Counter(domain) for domain in zip(*sum(epochs(UnpairedSampler(10, 4, per_epoch), 13), []), strict=True)]
    for number, count in zip((10, 4), counts, strict=True):
        seen = [count[index] for index in range(number)]
        assert max(seen) - min(seen) <= 1 and sum(seen) == 13 * per_epoch


def test_domains_are_shuffled_apart_and_anew_in_each_epoch():
    found = epochs(UnpairedSampler(40, 40))
    pairs = [pair for epoch in found for pair in epoch]
    assert len(set(pairs)) > 0.9 * len(pairs), "the same i meets another j"
    assert sum(i == j for i, j in pairs) < 0.1 * len(pairs), "chance makes 2.5 % of it"
    for domain in (0, 1):
        orders = [[pair[domain] for pair in epoch] for epoch in found]
        assert len({tuple(order) for order in orders}) == 4 and orders[0] != sorted(orders[0])


def test_order_is_a_function_of_seed_and_epoch():
    assert epochs(UnpairedSampler(9, 5, seed=1)) == epochs(UnpairedSampler(9, 5, seed=1))
    assert epochs(UnpairedSampler(9, 5, seed=1)) != epochs(UnpairedSampler(9, 5, seed=2))
    late = UnpairedSampler(9, 5, seed=1)
    late.set_epoch(3)
    assert list(late) == epochs(UnpairedSampler(9, 5, seed=1))[3] == list(late)


def test_ranks_share_out_the_pairs_of_an_epoch():
    whole = epochs(UnpairedSampler(9, 5, 12))
    shares = [epochs(UnpairedSampler(9, 5, 4, num_replicas=3, rank=rank)) for rank in range(3)]
    for number, pairs in enumerate(whole):
        assert [pair for group in zip(*(share[number] for share in shares), strict=True) for pair in group] == pairs
    assert len(UnpairedSampler(9, 5, num_replicas=2, rank=1)) == 5


def test_with_loader_and_seed_epoch():
    data = [{"image": [float(n)]} for n in range(6)]
    sampler = UnpairedSampler(6, 3)
    loader = DataLoader(UnpairedDataset(Dataset(data), Dataset(data[:3])), batch_size=2, sampler=sampler)
    seen: list[tuple] = []
    engine = Engine(
        lambda engine, batch: seen.extend(zip(*(batch[d].ravel().tolist() for d in ("low", "high")), strict=True))
    )
    SeedEpoch(1).attach(engine)
    engine.run(loader, max_epochs=2)
    expected = epochs(UnpairedSampler(6, 3), 3)
    assert seen == [pair for epoch in expected[1:] for pair in epoch], "SeedEpoch counts from one"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_low": 0}, "num_low must be a whole number at least 1, got 0"),
        ({"num_high": 2.5}, "num_high must be a whole number"),
        ({"num_samples": 0}, "num_samples must be a whole number at least 1"),
        ({"seed": -1}, "seed must be a whole number at least 0"),
        ({"num_replicas": 2, "rank": 2}, "rank must be a whole number from 0 to 1, got 2"),
    ],
)
def test_bad_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        UnpairedSampler(**{"num_low": 3, "num_high": 3, **arguments})
