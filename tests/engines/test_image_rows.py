# SPDX-License-Identifier: Apache-2.0
"""A handler with one row per image: names, gathering, key metric."""

from __future__ import annotations

import ignite.distributed as idist
import pytest
from ignite.engine import Engine

from monai_labelfx.engines._image_rows import ImageRowsHandler


class Largest(ImageRowsHandler):
    label = "largest"

    def _row(self, item):
        return {"value": item["value"]} if item["value"] is not None else None

    def _results(self, rows):
        values = [row["value"] for row in rows]
        return {"largest": max(values), "images": len(values)}


def run(*values, key=None):
    engine = Engine(lambda engine, batch: batch)
    if key is not None:
        engine.state.key_metric_name = key
    Largest().attach(engine, key)
    return engine.run([[{"value": value}] for value in values]).metrics


def test_results_under_their_own_names():
    assert run(3.0, None, 5.0) == {"largest": 5.0, "images": 2} == run(3.0, 5.0, key="images")
    assert run(None) == {}


def test_rows_of_other_processes_count(monkeypatch):
    monkeypatch.setattr(idist, "all_gather", lambda rows: [rows, [{"value": 9.0}], []])
    assert run(3.0, 5.0) == {"largest": 9.0, "images": 3}


def test_batch_and_output_are_read_together():
    engine = Engine(lambda engine, batch: [{"other": 1} for _ in batch])
    Largest().attach(engine)
    assert engine.run([[{"value": 2.0}, {"value": 7.0}]]).metrics == {"largest": 7.0, "images": 2}


def test_a_key_metric_must_be_a_finite_result():
    for value, key, words in (
        (None, "largest", "there are none"),
        (1.0, "smallest", "there are largest, images"),
        (float("nan"), "largest", "largest is nan"),
    ):
        with pytest.raises(ValueError, match=f"the key metric '{key}' must be a result of Largest, but {words}"):
            run(value, key=key)
