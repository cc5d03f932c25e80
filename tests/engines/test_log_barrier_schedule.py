# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace

import pytest
from ignite.engine import Engine, Events

from monai_labelfx.engines.log_barrier_schedule import LogBarrierSchedule
from monai_labelfx.losses.global_constraints import GlobalConstraintsLoss


def run(loss, **options):
    seen = []
    trainer = Engine(lambda engine, batch: seen.append(loss.t))
    LogBarrierSchedule(loss, **options).attach(trainer)
    return seen, trainer


def test_grows_from_epoch_to_epoch_not_within():
    loss = GlobalConstraintsLoss(5.0)
    seen, trainer = run(loss)
    trainer.run([0, 0], max_epochs=3)
    assert seen == pytest.approx([5.0, 5.0, 5.5, 5.5, 6.05, 6.05]) and seen[0] == 5.0


def test_a_resumed_run_goes_on_where_it_stopped():
    whole, trainer = run(SimpleNamespace(t=5), factor=1.3)
    trainer.run([0], max_epochs=6)
    first, trainer = run(SimpleNamespace(t=5), factor=1.3)
    trainer.run([0], max_epochs=3)
    state = trainer.state_dict()
    second, trainer = run(SimpleNamespace(t=5), factor=1.3)
    trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "max_epochs", 6))
    trainer.load_state_dict({**state, "max_epochs": 6})
    trainer.run([0])
    assert first + second == whole and len(second) == 3


def test_stops_at_the_maximum_and_never_overflows():
    loss = SimpleNamespace(t=5.0)
    schedule = LogBarrierSchedule(loss, factor=2.0, maximum=30.0)
    found = []
    for epoch in (1, 3, 4, 10**6):
        schedule(SimpleNamespace(state=SimpleNamespace(epoch=epoch)))
        found.append(loss.t)
    assert found == [5.0, 20.0, 30.0, 30.0]


def test_arguments():
    for wrong in (SimpleNamespace(), SimpleNamespace(t="5"), object()):
        with pytest.raises(TypeError, match="must have a number t, as GlobalConstraintsLoss"):
            LogBarrierSchedule(wrong)
    with pytest.raises(ValueError, match="t of the loss must be above 0 and finite, got -1"):
        LogBarrierSchedule(SimpleNamespace(t=-1))
    with pytest.raises(ValueError, match="factor must be 1 or more and finite, got 0.9"):
        LogBarrierSchedule(SimpleNamespace(t=5), 0.9)
    with pytest.raises(ValueError, match="no less than the t of the loss, 5, got 4"):
        LogBarrierSchedule(SimpleNamespace(t=5), maximum=4)
