# SPDX-License-Identifier: Apache-2.0
"""Metrics of an earlier stage beside those of the result."""

from __future__ import annotations

import json

import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator

from monai_labelfx.engines.run_record import RunRecord
from monai_labelfx.engines.stage_metrics import StageMetrics

NAMES = {"cam": "cam_mIoU", "pseudo": "pseudo_mIoU"}


def test_they_reach_the_record_of_the_evaluation(tmp_path):
    (tmp_path / "stage.json").write_text('{"cam": 0.25, "pseudo": null, "other": 1}')
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": torch.zeros(1, 1, 2), "label": torch.zeros(1, 1, 2)}],
        network=torch.nn.Identity(),
        val_handlers=[StageMetrics(tmp_path / "stage.json", NAMES), RunRecord(tmp_path / "out")],
    )
    evaluator.run()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {"cam_mIoU": 0.25}


def test_nothing_is_added_where_there_is_no_such_stage(tmp_path):
    engine = Engine(lambda engine, batch: None)
    StageMetrics(tmp_path / "absent.json", NAMES).attach(engine)
    assert engine.run([0]).metrics == {}


@pytest.mark.parametrize(("text", "message"), [("[1]", "holds a list"), ("{", "not readable as JSON")])
def test_a_broken_file_is_named(tmp_path, text, message):
    (tmp_path / "stage.json").write_text(text)
    engine = Engine(lambda engine, batch: None)
    StageMetrics(tmp_path / "stage.json", NAMES).attach(engine)
    with pytest.raises(ValueError, match=f"stage.json.*{message}"):
        engine.run([0])
