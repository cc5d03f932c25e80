# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle

import pytest
import torch

from monai_labelfx.engines import require_checkpoint


def test_missing_checkpoint_says_how_to_get_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="train one with `labelfx run denoiseg train`"):
        require_checkpoint(tmp_path / "model.pt", command="labelfx run denoiseg train")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        require_checkpoint(tmp_path)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_existing_checkpoint_is_returned(tmp_path, options):
    torch.save({"model": torch.nn.Linear(2, 2).state_dict(), "epoch": 3}, tmp_path / "model.pt", **options)
    assert require_checkpoint(tmp_path / "model.pt") == str(tmp_path / "model.pt")


class Trap:
    def __reduce__(self):
        return open, ("trap", "w")


@pytest.mark.parametrize("name", ["pickle", "torch", "network", "text", "empty", "cut", "number"])
def test_what_holds_no_weights_is_refused_and_not_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    content = {"torch": Trap(), "network": torch.nn.Linear(2, 2), "number": 3, "cut": {"a": torch.zeros(3)}}
    if name in content:
        torch.save(content[name], path)
    else:
        path.write_bytes({"pickle": pickle.dumps(Trap()), "text": b"no weights", "empty": b""}[name])
    if name == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.pt' cannot be loaded, expected weights by name, found ") as caught:
        require_checkpoint(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not (tmp_path / "trap").exists()
