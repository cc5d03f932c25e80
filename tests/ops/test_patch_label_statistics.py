# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

patch_label_statistics = importlib.import_module("monai_labelfx.ops.patch_label_statistics").patch_label_statistics


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), number=st.integers(0, 30), classes=st.integers(1, 5))
def test_statistics_are_those_of_a_loop(seed, number, classes):
    labels = np.random.default_rng(seed).integers(-1, 2, (number, classes))
    found = patch_label_statistics(torch.from_numpy(labels).to(torch.int8))
    bits, information = [], 0.0
    for column in labels.T:
        known = [label for label in column if label >= 0]
        share = sum(known) / len(known) if known else 0.0
        bits.append(float(entropy([share, 1 - share], base=2)) if known else 0.0)
        information += len(known) * bits[-1]
    known_rows = [row for row in labels.tolist() if max(row) >= 0]
    several = sum(row.count(1) > 1 for row in known_rows)
    assert found == {
        "patches": number,
        "known_patches": len(known_rows),
        "present": [int((column == 1).sum()) for column in labels.T],
        "absent": [int((column == 0).sum()) for column in labels.T],
        "unknown": [int((column == -1).sum()) for column in labels.T],
        "entropy": pytest.approx(bits),
        "several_classes": pytest.approx(several / max(len(known_rows), 1)),
        "label_bits": int((labels >= 0).sum()),
        "information_bits": pytest.approx(information),
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_labels_that_say_everything_and_nothing():
    assert patch_label_statistics(torch.tensor([[1, 0], [0, 1]]))["entropy"] == [1, 1]
    dense = torch.tensor([[1, 1]] * 111 + [[1, 0]] * 6)  # the patches of one GlaS image
    found = patch_label_statistics(dense)
    assert found["entropy"][0] == 0 and found["entropy"][1] == pytest.approx(0.292, abs=1e-3)
    assert str(found["entropy"][0]) == "0.0", "no minus"
    assert found["several_classes"] == pytest.approx(0.949, abs=1e-3) and found["label_bits"] == 234


def test_bad_labels_are_named():
    with pytest.raises(ValueError, match=r"labels must be \(N, K\), got shape \(3,\)"):
        patch_label_statistics(torch.zeros(3))
    with pytest.raises(ValueError, match=r"labels must be 1 \(present\), 0 \(absent\) or -1 \(unknown\), got 0.5"):
        patch_label_statistics(torch.tensor([[1, 0.5]]))
