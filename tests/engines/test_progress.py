# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import pytest
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator

from monai_labelfx.engines import ProgressBar


def engine_with_bar(output={"loss": 0.123456}, **keywords) -> Engine:  # noqa: B006 - never changed
    engine = Engine(lambda engine, batch: output)
    ProgressBar(**keywords).attach(engine)
    return engine


def test_one_bar_counts_the_whole_run(capsys):
    engine_with_bar(enabled=True).run([{"image": "secret.png"}] * 4, max_epochs=3)
    shown = capsys.readouterr().err
    assert "12/12" in shown and "/4 " not in shown and shown.count("\n") == 1
    assert "secret" not in shown


def test_shows_epoch_loss_and_time_left(capsys, monkeypatch):
    import tqdm

    monkeypatch.setattr("monai_labelfx.engines.progress.tqdm", lambda **k: tqdm.tqdm(**k, mininterval=0, miniters=1))
    engine_with_bar(enabled=True).run([0] * 4, max_epochs=2)
    shown = capsys.readouterr().err
    assert "epoch=2/2" in shown and "loss=0.1235" in shown and "<00:" in shown


def test_decollated_and_lossless_outputs(capsys, monkeypatch):
    import tqdm

    monkeypatch.setattr("monai_labelfx.engines.progress.tqdm", lambda **k: tqdm.tqdm(**k, mininterval=0, miniters=1))
    engine_with_bar([{"loss": 0.5}, {"loss": 0.5}], enabled=True).run([0] * 3)
    assert "loss=0.5" in capsys.readouterr().err
    engine_with_bar([{"pred": 0.5}], enabled=True).run([0] * 3)
    assert "loss" not in capsys.readouterr().err


def test_a_resumed_run_starts_where_it_stopped(capsys):
    engine = engine_with_bar(enabled=True)
    engine.load_state_dict({"epoch": 2, "max_epochs": 3, "epoch_length": 4})
    engine.run([0] * 4)
    shown = capsys.readouterr().err
    assert "8/12" in shown and "12/12" in shown


@pytest.mark.parametrize(
    ("terminal", "rank", "enabled", "shown"),
    [
        (False, 0, None, False),
        (True, 0, None, True),
        (True, 1, None, False),
        (False, 0, True, True),
        (True, 0, False, False),
    ],
)
def test_is_off_away_from_terminals(terminal, rank, enabled, shown, capsys, monkeypatch):
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: rank)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    engine_with_bar(enabled=enabled).run([0, 1])
    assert ("2/2" in capsys.readouterr().err) is shown


def test_errors_pass_through(capsys):
    def step(engine, batch):
        raise RuntimeError("stop")

    engine = Engine(step)
    ProgressBar(enabled=True).attach(engine)
    with pytest.raises(RuntimeError, match="stop"):
        engine.run([0])


def test_evaluator(capsys):
    evaluator = SupervisedEvaluator(
        device="cpu", val_data_loader=[{"image": 0}] * 3, network=None, iteration_update=lambda engine, batch: {}
    )
    ProgressBar(enabled=True, desc="evaluate").attach(evaluator)
    evaluator.run()
    shown = capsys.readouterr().err
    assert "evaluate" in shown and "3/3" in shown
