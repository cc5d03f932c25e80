# SPDX-License-Identifier: Apache-2.0
"""Sampler of pairs whose halves have nothing to do with each other."""

from __future__ import annotations

from collections.abc import Iterator

import ignite.distributed as idist
import numpy as np
from torch.utils.data import Sampler

from monai_labelfx.engines.label_aware_sampler import _whole


class UnpairedSampler(Sampler[tuple[int, int]]):
    """Pairs (i, j) of an image of each domain for ``UnpairedDataset``, both domains in orders of their own.

    The orders are independent endless sequences of permutations, and an epoch is a piece of them: each image of a
    domain comes as often as any other of it, give or take one, over the whole run and not only in an epoch. The smaller
    domain recurs. The same i meets another j each time, so that images which lie at the same place of two sorted lists
    are no pair (the paper's released code takes both from the same index).

    The order depends on ``(seed, epoch)`` alone. As with torch's ``DistributedSampler``, call ``set_epoch`` before each
    epoch (:py:class:`~monai_labelfx.engines.SeedEpoch` does), or all epochs have the same order. Several ranks share
    the pairs of an epoch out among themselves.

    Args:
        num_low: images of the noisy domain.
        num_high: images of the clean domain.
        num_samples: pairs per epoch and rank. Default ``None``: as many as it takes to show each image of the larger
            domain once.
        seed: seed of all orders, not negative.
        num_replicas: number of ranks, by default those of ``torch.distributed``, 1 if it is not initialised.
        rank: rank of this process, by default that of ``torch.distributed``.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> sampler = UnpairedSampler(4, 2)
        >>> low, high = zip(*sampler)
        >>> sorted(low), sorted(high)
        ([0, 1, 2, 3], [0, 0, 1, 1])
    """

    def __init__(
        self,
        num_low: int,
        num_high: int,
        num_samples: int | None = None,
        seed: int = 0,
        *,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        self.num_low = _whole("num_low", num_low, 1)
        self.num_high = _whole("num_high", num_high, 1)
        self.seed = _whole("seed", seed, 0)
        self.num_replicas = _whole("num_replicas", idist.get_world_size() if num_replicas is None else num_replicas, 1)
        self.rank = _whole("rank", idist.get_rank() if rank is None else rank, 0, self.num_replicas - 1)
        per_rank = -(-max(num_low, num_high) // self.num_replicas)
        self._length = per_rank if num_samples is None else _whole("num_samples", num_samples, 1)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order: the same ``epoch`` gives the same one again."""
        self.epoch = _whole("epoch", epoch, 0)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        count = self._length * self.num_replicas
        low, high = (self._piece(domain, number, count) for domain, number in enumerate((self.num_low, self.num_high)))
        return iter(list(zip(low[self.rank :: self.num_replicas], high[self.rank :: self.num_replicas], strict=True)))

    def _piece(self, domain: int, number: int, count: int) -> list[int]:
        """Entries ``epoch * count`` and following of the sequence of permutations of a domain."""
        first, skipped = divmod(self.epoch * count, number)
        rounds = -(-(skipped + count) // number)
        passes = [np.random.default_rng([self.seed, domain, first + one]).permutation(number) for one in range(rounds)]
        return np.concatenate(passes)[skipped : skipped + count].tolist()
