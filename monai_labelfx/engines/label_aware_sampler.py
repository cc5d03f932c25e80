# SPDX-License-Identifier: Apache-2.0
"""Sampler that puts labelled items into every batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
from torch.utils.data import Sampler


class LabelAwareSampler(Sampler[int]):
    """Order of items in which every batch of ``batch_size`` holds at least ``labelled_per_batch`` labelled ones.

    With 10 labelled among 3,800 items, the setting of DenoiSeg's Table 1, 71 % of random batches of 128 hold no label
    at all, and the segmentation loss rests in all of them. In an epoch of this sampler each unlabelled item comes
    once, spread evenly over the batches, and labelled items fill all other places; they recur equally often, give or
    take one. Every batch is full, and its labelled items stand first.

    The order depends on ``(seed, epoch)`` alone. As with torch's ``DistributedSampler``, call ``set_epoch`` before each
    epoch (:py:class:`~monai_labelfx.engines.SeedEpoch` does), or all epochs have the same order.

    Args:
        data: one flag per item (``True``: labelled), or the datalist itself, a sequence of mappings in which an item is
            labelled if it holds ``key`` and the value is not ``None``, unless its flag ``has_<key>`` says otherwise (as
            for ``FillMissingLabeld``).
        batch_size: batch size of the ``DataLoader`` that uses the sampler; the promise holds for this size only.
        labelled_per_batch: least number of labelled items in a batch, 1 to ``batch_size``.
        key: key of the label, read only if ``data`` holds mappings.
        seed: seed of all orders, not negative.
        num_samples: indices per epoch and rank, a multiple of ``batch_size``. Default ``None``: as many as it takes to
            show each unlabelled item once. With another number the unlabelled items get the same share of the places
            and recur, or are drawn without repetition, as evenly as possible.
        num_replicas: number of ranks, by default those of ``torch.distributed``, 1 if it is not initialised.
        rank: rank of this process, by default that of ``torch.distributed``.

    Raises:
        ValueError: if ``data`` is empty, or a number is out of its range, or ``labelled_per_batch`` equals
            ``batch_size`` although there are unlabelled items, which would then never be seen.

    Several ranks get disjoint items and equally many indices. There is one exception: with fewer labelled items than
    ranks, ranks share them.

    Edges:
        * No item is labelled, or all are: there is nothing to mix, and an epoch is a plain shuffled pass, each item
          once; its last batch may be smaller. So ``labelled_per_batch`` is no promise without labels, and one
          configuration serves Noise2Void (no labels) and full supervision. As in ``DistributedSampler`` a few items
          recur where their number does not divide by that of the ranks.
        * Fewer items than ``batch_size``: one full batch, in which labelled items recur.

    Example:
        >>> sampler = LabelAwareSampler([True, False, False, False, False, False], batch_size=3)
        >>> len(sampler)
        9
        >>> order = list(sampler)
        >>> [order[start] for start in (0, 3, 6)]
        [0, 0, 0]
        >>> sorted(index for index in order if index)
        [1, 2, 3, 4, 5]
    """

    def __init__(
        self,
        data: Sequence[Any],
        batch_size: int,
        *,
        labelled_per_batch: int = 1,
        key: str = "label",
        seed: int = 0,
        num_samples: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        flags = np.array([_is_labelled(item, key) for item in data], dtype=bool)
        self.batch_size = _whole("batch_size", batch_size, 1)
        self.labelled_per_batch = _whole("labelled_per_batch", labelled_per_batch, 1, batch_size)
        self.seed = _whole("seed", seed, 0)
        self.num_replicas = _whole("num_replicas", idist.get_world_size() if num_replicas is None else num_replicas, 1)
        self.rank = _whole("rank", idist.get_rank() if rank is None else rank, 0, self.num_replicas - 1)
        self.epoch = 0
        if flags.size == 0:
            raise ValueError("data holds no item; a sampler needs at least one.")
        if num_samples is not None and (num_samples < batch_size or num_samples % batch_size):
            raise ValueError(f"num_samples must be a multiple of batch_size ({batch_size}), got {num_samples}.")
        self._labelled, self._unlabelled = np.flatnonzero(flags), np.flatnonzero(~flags)
        self._mixed = 0 < self._labelled.size < flags.size
        if self._mixed and labelled_per_batch == batch_size:
            raise ValueError(
                f"labelled_per_batch equals batch_size ({batch_size}), so the {self._unlabelled.size} unlabelled items "
                "would never be seen; lower it, or take them out of the data."
            )
        self._pass_batches = self._batches_of_one_pass()
        if num_samples is not None:
            self._length = num_samples
        elif self._mixed:
            self._length = self._pass_batches * batch_size
        else:
            self._length = -(-flags.size // self.num_replicas)

    def _batches_of_one_pass(self) -> int:
        """Batches that the rank with the most items needs to show each of them once."""
        labelled, unlabelled = (-(-group.size // self.num_replicas) for group in (self._labelled, self._unlabelled))
        room = max(self.batch_size - self.labelled_per_batch, 1)
        return max(-(-(labelled + unlabelled) // self.batch_size), -(-unlabelled // room))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order: the same ``epoch`` gives the same one again."""
        self.epoch = _whole("epoch", epoch, 0)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        shared = np.random.default_rng([self.seed, self.epoch])  # equal on all ranks, so that their shares are disjoint
        labelled, unlabelled = (shared.permutation(group) for group in (self._labelled, self._unlabelled))
        own = np.random.default_rng([self.seed, self.epoch, self.rank + 1])
        if not self._mixed:
            order = np.resize(np.concatenate([labelled, unlabelled]), self._whole_ranks())
            return iter(_recycle(order[self.rank :: self.num_replicas], self._length, own).tolist())
        labelled = self._share(labelled) if labelled.size >= self.num_replicas else labelled
        unlabelled = self._share(unlabelled)
        batches = self._length // self.batch_size
        places = unlabelled.size * batches // self._pass_batches
        blind = _recycle(unlabelled, places, own)
        shown = _recycle(labelled, self._length - places, own)
        order = np.empty(self._length, dtype=np.int64)
        column = np.arange(self._length).reshape(batches, self.batch_size) % self.batch_size
        per_batch = np.diff(np.arange(batches + 1) * places // batches)  # whole numbers that differ by one at most
        is_blind = (column >= self.batch_size - per_batch[:, None]).ravel()
        order[is_blind], order[~is_blind] = blind, shown
        return iter(order.tolist())

    def _whole_ranks(self) -> int:
        count = self._labelled.size + self._unlabelled.size
        return -(-count // self.num_replicas) * self.num_replicas

    def _share(self, order: np.ndarray) -> np.ndarray:
        return order[self.rank :: self.num_replicas]


def _recycle(items: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` of ``items`` in random order, each as often as any other, give or take one."""
    if count == 0:
        return items[:0]
    rounds = -(-count // items.size)
    return np.concatenate([rng.permutation(items) for _ in range(rounds)])[:count]


def _is_labelled(item: Any, key: str) -> bool:
    return bool(item.get(f"has_{key}", item.get(key) is not None)) if isinstance(item, Mapping) else bool(item)


def _whole(name: str, value: int, least: int, most: int | None = None) -> int:
    if isinstance(value, bool) or int(value) != value or value < least or (most is not None and value > most):
        wanted = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {wanted}, got {value!r}.")
    return int(value)
