# SPDX-License-Identifier: Apache-2.0
"""Splits by image and hidden labels: seeded, disjoint, complete."""

from __future__ import annotations

import copy

import pytest

from monai_labelfx.data.prepare._splits import check_destination, hide_labels, split_by_image


def items(count: int) -> list[dict]:
    return [{"image": f"{number:03d}.png", "label": f"{number:03d}.png"} for number in range(count)]


def test_shares_are_disjoint_complete_and_seeded():
    splits = split_by_image(items(50), validation=0.1, test=0.2, seed=0)
    assert {name: len(part) for name, part in splits.items()} == {"training": 35, "validation": 5, "test": 10}
    names = [item["image"] for part in splits.values() for item in part]
    assert sorted(names) == [item["image"] for item in items(50)]
    assert splits == split_by_image(items(50), validation=0.1, test=0.2, seed=0)
    assert splits != split_by_image(items(50), validation=0.1, test=0.2, seed=1)
    assert list(splits["training"]) == sorted(splits["training"], key=lambda item: item["image"])


def test_small_and_absent_shares():
    assert {k: len(v) for k, v in split_by_image(items(3), validation=0.01, test=0.01, seed=0).items()} == {
        "training": 1,
        "validation": 1,
        "test": 1,
    }
    assert set(split_by_image(items(3), validation=0, test=0, seed=0)) == {"training"}
    with pytest.raises(ValueError, match="2 images leave none for training"):
        split_by_image(items(2), validation=0.1, test=0.1, seed=0)
    with pytest.raises(ValueError, match="test must be a share.*got 1.5"):
        split_by_image(items(9), validation=0.1, test=1.5, seed=0)


def test_hidden_labels():
    training = items(20)
    draws = []
    for labelled in (0, 3, 20, None):
        part = copy.deepcopy(training)
        hide_labels(part, labelled, seed=4)
        kept = {item["image"] for item in part if "label" in item}
        assert len(kept) == (20 if labelled is None else labelled)
        draws.append(kept)
    assert draws[1] < draws[2]
    other = copy.deepcopy(training)
    hide_labels(other, 3, seed=5)
    assert {item["image"] for item in other if "label" in item} != draws[1]
    with pytest.raises(ValueError, match="labelled must be 0 to 20.*got 21"):
        hide_labels(training, 21, seed=0)


def test_destination(tmp_path):
    check_destination(tmp_path)
    check_destination(tmp_path / "absent")
    (tmp_path / "file").touch()
    for bad in (tmp_path, tmp_path / "file"):
        with pytest.raises(FileExistsError, match="is not empty"):
            check_destination(bad)
