# SPDX-License-Identifier: Apache-2.0
"""The toy bundle and its data, one copy per test."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_bundle import make_bundle, make_data


@pytest.fixture
def bundle(tmp_path) -> Path:
    return make_bundle(tmp_path / "bundles")


@pytest.fixture
def data(tmp_path) -> Path:
    """Folder of the toy's images and datalist."""
    return make_data(tmp_path / "data").parent


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Default output folders are relative to the working directory."""
    monkeypatch.chdir(tmp_path)
