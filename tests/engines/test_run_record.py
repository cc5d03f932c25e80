# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from datetime import datetime

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointLoader, CheckpointSaver, LrScheduleHandler, ValidationHandler
from monai.handlers.ignite_metric import IgniteMetricHandler
from monai.metrics import MSEMetric

import monai_labelfx
from monai_labelfx.engines import RunRecord

BATCHES = [{"image": torch.full((2, 1, 4), value), "label": torch.zeros(2, 1, 4)} for value in (1.0, 3.0)]


def read(folder, name):
    return json.loads((folder / name).read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def parts(folder, epochs: int, *, decollate: bool = False, **keywords):
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 4)
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=BATCHES,
        network=network,
        decollate=False,
        key_val_metric={
            "mse": IgniteMetricHandler(MSEMetric(), output_transform=lambda out: (out["pred"], out["label"]))
        },
    )
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=BATCHES,
        network=network,
        optimizer=optimizer,
        loss_function=torch.nn.MSELoss(),
        decollate=decollate,
    )
    ValidationHandler(2, evaluator).attach(trainer)
    LrScheduleHandler(torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), print_lr=False).attach(trainer)
    record = RunRecord(folder, evaluator=evaluator, **keywords)
    record.attach(trainer)
    return trainer, evaluator


@pytest.mark.parametrize("decollate", [False, True])
def test_record_of_a_training(tmp_path, decollate):
    trainer, evaluator = parts(tmp_path, 3, decollate=decollate, seed=5, config={"alpha": 0.5}, command=["run", "x"])
    losses = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def _(engine):
        output = engine.state.output
        loss = (output[0] if decollate else output)["loss"]  # decollation makes it a float
        losses.append(torch.as_tensor(loss).item())

    trainer.run()
    history = read(tmp_path, "history.json")
    assert set(history) == {"train_loss", "lr", "mse"}
    assert [epoch for epoch, _ in history["train_loss"]] == [1, 2, 3]
    for number, (_, value) in enumerate(history["train_loss"]):
        assert value == pytest.approx(sum(losses[2 * number : 2 * number + 2]) / 2)
    assert history["lr"] == [[1, 0.1], [2, 0.05], [3, 0.025]], "the rate that the epoch was trained with"
    assert history["mse"] == [[2, pytest.approx(evaluator.state.metrics["mse"])]]
    metrics = read(tmp_path, "metrics.json")
    assert metrics == {"mse": history["mse"][-1][1], "train_loss": history["train_loss"][-1][1]}
    run = read(tmp_path, "run.json")
    assert run["seed"] == 5 and run["command"] == ["run", "x"]
    assert run["versions"]["torch"] == torch.__version__
    assert run["versions"]["labelfx"] == monai_labelfx.__version__
    assert {"python", "monai", "numpy", "ignite"} < set(run["versions"])
    assert datetime.fromisoformat(run["started"]) <= datetime.fromisoformat(run["finished"])
    assert 0 < run["seconds"] < 60 and 50 < run["peak_memory_mb"] < 10**5
    assert read(tmp_path, "config.json") == {"alpha": 0.5}
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "history.json", "metrics.json", "config.json"}


def test_record_of_an_evaluation(tmp_path):
    _, evaluator = parts(tmp_path / "unused", 1)
    RunRecord(tmp_path).attach(evaluator)
    evaluator.run()
    assert read(tmp_path, "metrics.json") == {"mse": pytest.approx(evaluator.state.metrics["mse"])}
    assert read(tmp_path, "run.json")["finished"] and not (tmp_path / "history.json").exists()


def test_a_broken_run_leaves_what_it_had(tmp_path):
    trainer, _ = parts(tmp_path, 3)

    @trainer.on(Events.ITERATION_STARTED)
    def _(engine):
        if engine.state.iteration == 4:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        trainer.run()
    assert [epoch for epoch, _ in read(tmp_path, "history.json")["train_loss"]] == [1]
    assert read(tmp_path, "run.json")["finished"] is None and not (tmp_path / "metrics.json").exists()


def test_a_resumed_run_continues_its_history(tmp_path):
    def run(folder, epochs, resume):
        trainer, _ = parts(folder, epochs)
        save = {"trainer": trainer, "network": trainer.network, "optimizer": trainer.optimizer}
        CheckpointSaver(str(folder), save, save_interval=1).attach(trainer)
        if resume:
            CheckpointLoader(str(folder / "checkpoint_epoch=2.pt"), save).attach(trainer)
        trainer.run()
        return read(folder, "history.json")["train_loss"]

    run(tmp_path / "b", 3, False)  # epoch 3 is done again by the resumed run
    resumed = run(tmp_path / "b", 5, True)
    assert [epoch for epoch, _ in resumed] == [1, 2, 3, 4, 5]
    assert resumed[:3] == run(tmp_path / "a", 3, False)
    assert [epoch for epoch, _ in run(tmp_path / "b", 2, False)] == [1, 2], "a new run starts a new history"


def test_a_validation_before_the_resumed_epoch_does_not_hide_the_history(tmp_path):
    (tmp_path / "history.json").write_text(json.dumps({"train_loss": [[1, 0.5], [2, 0.4]]}))
    trainer, evaluator = parts(tmp_path, 3)
    ValidationHandler(1, evaluator, exec_at_start=True).attach(trainer)
    trainer.load_state_dict({"epoch": 1, "max_epochs": 3, "epoch_length": 2})
    trainer.run()
    points = read(tmp_path, "history.json")["train_loss"]
    assert points[0] == [1, 0.5] and [epoch for epoch, _ in points] == [1, 2, 3]


def test_no_history_is_guessed_from_a_foreign_file(tmp_path):
    (tmp_path / "history.json").write_text("[1, 2]")
    trainer, _ = parts(tmp_path, 3)
    trainer.load_state_dict({"epoch": 1, "max_epochs": 3, "epoch_length": 2})
    with pytest.raises(ValueError, match="history.json is not the history of a run"):
        trainer.run()


def test_numbers_that_json_lacks_become_null(tmp_path):
    trainer, evaluator = parts(tmp_path, 2)
    evaluator.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update(odd=math.nan, many=torch.ones(3))
    )
    record = RunRecord(tmp_path / "late", evaluator=evaluator)
    record.attach(trainer)
    trainer.run()
    assert read(tmp_path / "late", "metrics.json")["odd"] is None
    assert read(tmp_path / "late", "history.json")["odd"] == [[2, None]]
    assert "many" not in read(tmp_path / "late", "metrics.json")


def test_only_rank_zero_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
    trainer, _ = parts(tmp_path, 1)
    trainer.run()
    assert not list(tmp_path.iterdir())


def test_a_name_keeps_the_record_of_the_training(tmp_path):
    for name in ("run", "evaluate"):
        engine = Engine(lambda engine, batch: {"loss": 0.0})
        RunRecord(tmp_path, name=name, seed=len(name)).attach(engine)
        engine.run([1])
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 3
    assert json.loads((tmp_path / "evaluate.json").read_text())["seed"] == 8
