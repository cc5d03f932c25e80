# SPDX-License-Identifier: Apache-2.0
"""A split by group with balanced kinds."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_labelfx.data._balanced_split import balanced_split


def items_of(sizes: dict[str, dict[str, int]]) -> list[dict]:
    return [
        {"image": f"{group}{kind}{n}", "patient": group, "grade": kind}
        for group, kinds in sizes.items()
        for kind, number in kinds.items()
        for n in range(number)
    ]


def split(items: list[dict], seed: int = 0, **shares: float) -> dict[str, list[dict]]:
    return balanced_split(items, shares, group="patient", kind="grade", seed=seed)


def test_groups_stay_together_and_kinds_are_balanced():
    items = items_of({f"{n}": {"benign" if n % 2 else "malignant": 4} for n in range(20)})
    drawn = set()
    for seed in range(5):
        parts = split(items, seed, validation=0.2, test=0.3)
        assert {name: len(part) for name, part in parts.items()} == {"training": 40, "validation": 16, "test": 24}
        for part in parts.values():
            assert Counter(item["grade"] for item in part)["benign"] == len(part) / 2
            assert [items.index(item) for item in part] == sorted(items.index(item) for item in part)
        patients = [{item["patient"] for item in part} for part in parts.values()]
        assert sum(map(len, patients)) == len(set.union(*patients)) == 20
        drawn.add(frozenset(patients[1]))
    assert len(drawn) > 1 and split(items, 3, validation=0.2) == split(items, 3, validation=0.2)


def test_a_group_larger_than_a_split_stays_in_training():
    items = items_of({"large": {"benign": 50}, "a": {"benign": 5}, "b": {"malignant": 5}, "c": {"malignant": 5}})
    for seed in range(6):
        part = split(items, seed, validation=0.1)["validation"]
        assert {item["patient"] for item in part} <= {"a", "b", "c"}
        assert any(item["patient"] == "a" for item in part)
    two = items_of({"x": {"benign": 9}, "y": {"benign": 3}})
    assert {item["patient"] for item in split(two, validation=0.01)["validation"]} == {"y"}
    assert list(split(two, validation=0.0)) == ["training"]


def test_shares_out_of_range_and_too_few_groups():
    items = items_of({"a": {"benign": 3}, "b": {"benign": 3}})
    for match, shares in (
        ("validation must be a share of at least 0 and below 1, got 1", {"validation": 1}),
        ("test must be a share .*, got -0.5", {"test": -0.5}),
        ("2 different values of 'patient' leave none for training", {"validation": 0.2, "test": 0.2}),
        ("leave none for training with validation=0.6 and test=0.5", {"validation": 0.6, "test": 0.5}),
    ):
        with pytest.raises(ValueError, match=match):
            split(items, **shares)
    with pytest.raises(ValueError, match="0 different values of 'patient' leave none for training with no other split"):
        split([])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from("ab")), min_size=1, max_size=40),
    st.floats(0, 0.99),
    st.floats(0, 0.99),
    st.integers(0, 3),
)
def test_any_items(pairs, validation, test, seed):
    items = [{"image": f"{n}", "patient": f"{p}", "grade": g} for n, (p, g) in enumerate(pairs)]
    number = len({item["patient"] for item in items})
    wanted = [name for name, share in (("validation", validation), ("test", test)) if share]
    try:
        parts = split(items, seed, validation=validation, test=test)
    except ValueError as error:
        assert "leave none for training" in str(error) and (number <= len(wanted) or validation + test >= 1)
        return
    assert list(parts) == ["training", *wanted] and all(parts.values()) and number > len(wanted)
    assert sorted(item["image"] for part in parts.values() for item in part) == sorted(i["image"] for i in items)
