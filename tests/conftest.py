# SPDX-License-Identifier: Apache-2.0
"""Fixtures, and the honest count of tests that need something which is absent."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections import Counter
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

_DESELECTED: Counter[str] = Counter()


def _absent(item: pytest.Item) -> str | None:
    if item.get_closest_marker("sample_data") and not os.environ.get("LABELFX_DATA"):
        return "LABELFX_DATA is not set"
    for marker in item.iter_markers("peer"):
        for name in marker.args:
            if importlib.util.find_spec(name) is None:
                return f"{name} is not installed"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {item: _absent(item) for item in items}
    missing = [item for item, reason in reasons.items() if reason]
    if missing:
        config.hook.pytest_deselected(items=missing)
        items[:] = [item for item, reason in reasons.items() if not reason]
    _DESELECTED.clear()
    _DESELECTED.update(reason for reason in reasons.values() if reason)


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)  # present only in a worker of pytest-xdist
    if output is not None:
        output["deselected"] = dict(_DESELECTED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    _DESELECTED.clear()
    _DESELECTED.update(getattr(node, "workeroutput", {}).get("deselected", {}))


def pytest_terminal_summary(terminalreporter) -> None:
    for reason, count in sorted(_DESELECTED.items()):
        terminalreporter.write_line(f"deselected {count} tests: {reason}")


@pytest.fixture(autouse=True)
def _own_log_handlers():
    """A bundle's logging.conf gives the root logger a handler of the stream of that test, which is closed behind it."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def sample_data() -> Path:
    """The folder of real samples; only for tests marked ``sample_data``."""
    return Path(os.environ["LABELFX_DATA"])


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
