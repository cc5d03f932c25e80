# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader

from monai_labelfx.engines import AtomicCheckpointSaver


def run(saver, scores, network):
    engine = Engine(lambda engine, batch: None)

    @engine.on(Events.EPOCH_COMPLETED)
    def _(engine):
        engine.state.metrics["ap"] = scores[engine.state.epoch - 1]
        with torch.no_grad():
            network.weight.fill_(engine.state.epoch)

    saver.attach(engine)
    engine.run([0], max_epochs=len(scores))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def weight(path):
    state = torch.load(path, weights_only=True)
    return state["weight"].item()


def best_saver(folder, network):
    return AtomicCheckpointSaver(
        str(folder), {"network": network}, save_key_metric=True, key_metric_name="ap", key_metric_filename="model.pt"
    )


def test_keeps_the_best_and_the_latest(tmp_path):
    network = torch.nn.Linear(1, 1, bias=False)
    run(best_saver(tmp_path / "best", network), [0.2, 0.6, 0.4], network)
    assert names(tmp_path / "best") == ["model.pt"] and weight(tmp_path / "best" / "model.pt") == 2
    every = AtomicCheckpointSaver(str(tmp_path / "every"), {"network": network}, save_interval=1, n_saved=2)
    run(every, [0, 0, 0, 0], network)
    assert names(tmp_path / "every") == ["network_epoch=3.pt", "network_epoch=4.pt"]
    final = AtomicCheckpointSaver(
        str(tmp_path / "last"), {"network": network}, save_final=True, final_filename="last.pt"
    )
    run(final, [0, 0], network)
    assert names(tmp_path / "last") == ["last.pt"]


def test_a_save_that_breaks_off_leaves_the_last_good_file(tmp_path, monkeypatch):
    network = torch.nn.Linear(1, 1, bias=False)
    run(best_saver(tmp_path, network), [0.2], network)
    save = torch.save

    def broken(content, file, **keywords):
        file.write(b"half a check")
        raise KeyboardInterrupt

    saver = best_saver(tmp_path, network)
    monkeypatch.setattr(torch, "save", lambda *a, **k: save(*a, **k) if network.weight.item() < 2 else broken(*a, **k))
    with pytest.raises(KeyboardInterrupt):
        run(saver, [0.3, 0.9], network)
    assert names(tmp_path) == ["model.pt"] and weight(tmp_path / "model.pt") == 1


def test_a_resumed_run_remembers_its_best_score(tmp_path):
    network = torch.nn.Linear(1, 1, bias=False)
    first = best_saver(tmp_path, network)
    run(first, [0.2, 0.8], network)
    torch.save({"best": first.state_dict()}, tmp_path / "resume.pt")

    forgetful = best_saver(tmp_path / "other", network)
    run(forgetful, [0.5], network)
    assert (tmp_path / "other" / "model.pt").is_file(), "without its state a saver takes any score for the best"

    resumed = best_saver(tmp_path, network)
    CheckpointLoader(str(tmp_path / "resume.pt"), {"best": resumed})(Engine(lambda engine, batch: None))
    assert resumed.state_dict() == first.state_dict() == {"saved": [[0.8, "network_key_metric=0.8000.pt"]]}
    run(resumed, [0.5], network)
    assert weight(tmp_path / "model.pt") == 2
    (tmp_path / "model.pt").unlink()  # a folder that was tidied up must not stop the run
    run(resumed, [0.9], network)
    assert weight(tmp_path / "model.pt") == 1


def test_files_can_be_read_by_the_group(tmp_path):
    network = torch.nn.Linear(1, 1)
    run(best_saver(tmp_path, network), [0.1], network)
    assert (tmp_path / "model.pt").stat().st_mode & 0o044 == 0o044


def test_refuses_a_state_that_it_cannot_use(tmp_path):
    saver = AtomicCheckpointSaver(str(tmp_path), {"network": torch.nn.Linear(1, 1)}, save_interval=1)
    assert saver.state_dict() == {"saved": []}
    with pytest.raises(ValueError, match="watches no key metric"):
        saver.load_state_dict({"saved": []})


def test_a_key_metric_that_nothing_measured_is_named(tmp_path):
    saver = AtomicCheckpointSaver(
        str(tmp_path), {"network": torch.nn.Linear(1, 1)}, save_key_metric=True, key_metric_name="dice"
    )
    with pytest.raises(ValueError, match="key metric 'dice' was not measured; the metrics are: ap"):
        run(saver, [0.5], torch.nn.Linear(1, 1, bias=False))
