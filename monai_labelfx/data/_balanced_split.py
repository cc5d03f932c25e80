# SPDX-License-Identifier: Apache-2.0
"""A split in which groups, such as patients, stay together and kinds, such as grades, have about equal shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def balanced_split(
    items: Sequence[Mapping[str, Any]], shares: Mapping[str, float], *, group: str, kind: str, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Draw whole groups for the splits named in ``shares``; all others are "training".

    In an order drawn by ``seed`` each group goes where it brings the numbers of each kind nearest to the share, if
    anywhere. So a group that is twice as large as a split stays in training. A share above 0 gets at least one group.

    Args:
        items: each with the keys ``group`` and ``kind``.
        shares: split -> share of the items, at least 0, together below 1.
        group: key of what stays together.
        kind: key of what is balanced.
        seed: of the order.

    Returns:
        Split -> copies of its items in the order of ``items``; splits with a share of 0 are left out.

    Raises:
        ValueError: shares out of range, or too few groups.
    """
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name} must be a share of at least 0 and below 1, got {share}")
    wanted = {name: share for name, share in shares.items() if share}
    groups: dict[str, Counter[str]] = {}
    for item in items:
        groups.setdefault(str(item[group]), Counter())[str(item[kind])] += 1
    if len(groups) <= len(wanted) or sum(wanted.values()) >= 1:
        told = " and ".join(f"{name}={share}" for name, share in wanted.items()) or "no other split"
        raise ValueError(f"{len(groups)} different values of {group!r} leave none for training with {told}")
    total = sum(groups.values(), Counter())
    missing = {name: {k: share * total[k] for k in total} for name, share in wanted.items()}
    names = list(groups)
    order = [names[index] for index in np.random.RandomState(seed).permutation(len(names))]
    place: dict[str, str] = {}
    for name in order:
        gains = {split: _gain(left, groups[name]) for split, left in missing.items()}
        best = max(gains, key=gains.__getitem__, default="")
        empty = [split for split in wanted if split not in (best, *place.values())]
        if best and gains[best] > 0 and len(order) - len(place) - 1 > len(empty):  # one is left for training
            place[name] = best
            missing[best] = {k: left - groups[name][k] for k, left in missing[best].items()}
    for split in wanted:
        if split not in place.values():
            free = [name for name in order if name not in place]
            place[min(free, key=lambda name: groups[name].total())] = split
    result: dict[str, list[dict[str, Any]]] = {"training": [], **{split: [] for split in wanted}}
    for item in items:
        result[place.get(str(item[group]), "training")].append(dict(item))
    return result


def _gain(left: Mapping[str, float], found: Counter[str]) -> float:
    """How many items nearer to its targets a split comes."""
    return sum(abs(number) - abs(number - found[k]) for k, number in left.items())
