# SPDX-License-Identifier: Apache-2.0
"""The names of the classes of a datalist."""

from __future__ import annotations

import json

import pytest

from monai_labelfx.data import load_datalist, save_datalist
from monai_labelfx.data.class_names import class_names_note, load_class_names

ITEMS = {"training": [{"image": "a.png"}]}


def test_names_come_back_in_order_and_are_no_split(tmp_path):
    names = [f"class {number}" for number in range(12)]
    path = save_datalist(tmp_path / "datalist.json", ITEMS, notes=class_names_note(names))
    assert load_class_names(path) == names
    assert list(load_datalist(path)) == ["training"]
    assert load_class_names(save_datalist(tmp_path / "other.json", ITEMS)) == []


@pytest.mark.parametrize("names", [{"0": "a", "2": "b"}, {"0": 1}, ["a"], "a", None])
def test_odd_names(tmp_path, names):
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps(ITEMS | {"class_names": names}))
    with pytest.raises(ValueError, match="must name the classes 0 to N - 1"):
        load_class_names(path)


def test_odd_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_class_names(tmp_path / "no.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ValueError, match="is not a JSON file"):
        load_class_names(tmp_path / "text.json")
