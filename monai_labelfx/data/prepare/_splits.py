# SPDX-License-Identifier: Apache-2.0
"""What the adapters share: a free destination, a split by image, and labels hidden by a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def check_destination(target: Path) -> None:
    """Refuse a destination that holds anything: nothing is ever overwritten or mixed."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"destination {str(target)!r} is not empty, expected a new or empty folder")


def split_by_image(items: list[dict], *, validation: float, test: float, seed: int) -> dict[str, list[dict]]:
    """Shuffle by ``seed`` and cut; each split keeps the order of ``items``. A share above 0 gets at least one item."""
    for name, share in (("validation", validation), ("test", test)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} must be a share of at least 0 and below 1, got {share}")
    counts = [max(1, round(share * len(items))) if share else 0 for share in (validation, test)]
    if sum(counts) >= len(items):
        raise ValueError(f"{len(items)} images leave none for training with validation={validation} and test={test}")
    order = np.random.RandomState(seed).permutation(len(items))
    parts = np.split(order, np.cumsum(counts))
    names = ("validation", "test", "training")
    split = {name: [items[index] for index in sorted(part)] for name, part in zip(names, parts, strict=True)}
    return {name: split[name] for name in ("training", "validation", "test") if split[name]}


def hide_labels(training: list[dict], labelled: int | None, *, seed: int) -> None:
    """Leave only ``labelled`` items with a label; the files stay, the datalist does not name them."""
    if labelled is None:
        return
    holders = [index for index, item in enumerate(training) if "label" in item]
    if not 0 <= labelled <= len(holders):
        raise ValueError(f"labelled must be 0 to {len(holders)} (training images with a label), got {labelled}")
    for position in np.random.RandomState(seed).permutation(len(holders))[labelled:]:
        del training[holders[position]]["label"]
