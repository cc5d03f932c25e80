# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset, DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointLoader, LrScheduleHandler, ValidationHandler
from monai.handlers.ignite_metric import IgniteMetricHandler
from monai.metrics import MSEMetric
from monai.transforms import Compose, RandGaussianNoised, RandShiftIntensityd, ScaleIntensityd

from monai_labelfx.engines import AtomicCheckpointSaver, InstanceThresholds, LabelAwareSampler, SeedEpoch

ITEMS = [{"image": torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(n)), "number": n} for n in range(7)]
AUGMENT = [RandGaussianNoised("image", prob=0.8, std=0.5), RandShiftIntensityd("image", offsets=0.5, prob=0.5)]


def drawing_engine(loader, **keywords) -> tuple[Engine, list]:
    """An engine that notes the images it sees, in the order of epochs."""
    seen: list[tuple[int, torch.Tensor]] = []
    engine = Engine(lambda engine, batch: seen.append((engine.state.epoch, batch["image"].clone())))
    SeedEpoch(**keywords).attach(engine)
    return engine, seen


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        a[0] == b[0] and torch.equal(torch.as_tensor(a[1]), torch.as_tensor(b[1]))
        for a, b in zip(first, second, strict=True)
    )


def augmented_loader(workers: int = 0, **keywords) -> DataLoader:
    dataset = CacheDataset(ITEMS, Compose([ScaleIntensityd("image"), *AUGMENT]), progress=False)
    return DataLoader(dataset, batch_size=3, num_workers=workers, **{"shuffle": True, **keywords})


def test_global_generators_follow_seed_and_epoch():
    def numbers(seed: int) -> list[tuple[float, float, float]]:
        drawn = []
        engine = Engine(
            lambda engine, batch: drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))  # noqa: NPY002
        )
        SeedEpoch(seed).attach(engine)
        engine.run([0], max_epochs=3)
        return drawn

    assert numbers(1) == numbers(1)
    assert not set(sum(numbers(1), ())) & set(sum(numbers(2), ()))
    assert len(set(sum(numbers(1), ()))) == 9


@pytest.mark.parametrize("workers", [0, 2])
def test_data_of_an_epoch_do_not_depend_on_the_past(workers):
    torch.manual_seed(0)
    whole, expected = drawing_engine(None, seed=4)
    whole.run(augmented_loader(workers), max_epochs=3)
    torch.manual_seed(99)
    loader = augmented_loader(workers)
    for _ in loader:
        pass  # move every generator on
    late, seen = drawing_engine(None, seed=4)
    late.load_state_dict({"epoch": 2, "max_epochs": 3, "epoch_length": len(loader)})
    late.run(loader)
    assert same(seen, [entry for entry in expected if entry[0] == 3])
    assert not same([(0, image) for epoch, image in expected if epoch == 1], [(0, image) for _, image in seen])
    other, different = drawing_engine(None, seed=5)
    other.run(augmented_loader(workers), max_epochs=3)
    assert not same(expected, different)


def test_generators_of_loader_and_sampler_are_seeded():
    def order(junk: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(junk)
        sampler = torch.utils.data.RandomSampler(ITEMS, generator=torch.Generator().manual_seed(junk))
        loader = DataLoader(Dataset(ITEMS), batch_size=7, sampler=sampler, generator=generator)
        orders: list[list[int]] = []
        engine = Engine(lambda engine, batch: orders.append(batch["number"].tolist()))
        SeedEpoch().attach(engine)
        engine.run(loader, max_epochs=2)
        return orders

    assert order(1) == order(2)
    assert order(1)[0] != order(1)[1]


def test_sampler_learns_the_epoch():
    sampler = LabelAwareSampler([True] + [False] * 6, 4)
    loader = DataLoader(Dataset(ITEMS), batch_size=4, sampler=sampler)
    epochs = []
    engine = Engine(lambda engine, batch: epochs.append(sampler.epoch))
    SeedEpoch().attach(engine)
    engine.run(loader, max_epochs=2)
    assert epochs == [1] * len(loader) + [2] * len(loader)


def test_every_epoch_is_a_new_pass():
    numbers = []
    engine = Engine(lambda engine, batch: numbers.append(batch["number"].tolist()))
    SeedEpoch().attach(engine)
    engine.run(DataLoader(Dataset(ITEMS), batch_size=2), max_epochs=2, epoch_length=2)
    assert numbers == [[0, 1], [2, 3]] * 2, "without the handler ignite would go on with 4, 5"


@pytest.mark.parametrize("workers", [0, 2])
def test_fixed_repeats_each_pass_and_leaves_global_generators_alone(workers):
    engine, seen = drawing_engine(None, seed=1, fixed=True)
    states = []
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: states.append(torch.get_rng_state()))
    before = torch.get_rng_state()
    engine.run(augmented_loader(workers), max_epochs=2)
    half = len(seen) // 2
    assert same([(0, image) for _, image in seen[:half]], [(0, image) for _, image in seen[half:]])
    assert torch.equal(states[0], before)


def test_refuses_what_it_cannot_seed(caplog):
    engine, _ = drawing_engine(None)
    with pytest.raises(ValueError, match="persistent_workers"):
        engine.run(augmented_loader(1, persistent_workers=True), max_epochs=1)
    with pytest.raises(ValueError, match="seed must be a whole number"):
        SeedEpoch(-1)
    with pytest.raises(ValueError, match="must hold 'seed'"):
        SeedEpoch().load_state_dict({"sed": 1})
    handler = SeedEpoch(1)
    handler.load_state_dict({"seed": 2})
    assert handler.state_dict() == {"seed": 2} and "instead of 1" in caplog.text


def test_warns_when_a_run_resumes_inside_an_epoch(caplog):
    for iteration, warned in ((4, False), (5, True)):
        caplog.clear()
        engine = Engine(lambda engine, batch: None)
        SeedEpoch().attach(engine)
        engine.load_state_dict({"iteration": iteration, "max_epochs": 4, "epoch_length": 2})
        engine.run([0, 1])
        assert ("Resuming inside epoch" in caplog.text) is warned
        assert engine.state.iteration == 8


class Run:
    """A small training with everything that must survive a stop."""

    def __init__(self, folder, epochs: int, *, workers: int, junk: int, resume: str | None = None) -> None:
        torch.manual_seed(junk if resume else 0)
        self.network = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3, padding=1),
            torch.nn.BatchNorm2d(4),
            torch.nn.Dropout(0.3),
            torch.nn.Conv2d(4, 1, 1),
        )
        optimizer = torch.optim.Adam(self.network.parameters(), 0.05)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="min", factor=0.5, patience=0, threshold=0.9
        )
        self.thresholds = InstanceThresholds()
        seed = SeedEpoch(7)
        sampler = LabelAwareSampler([True, True] + [False] * 5, 3)
        self.evaluator = SupervisedEvaluator(
            device="cpu",
            val_data_loader=DataLoader(CacheDataset(ITEMS, Compose(AUGMENT), progress=False), batch_size=4),
            network=self.network,
            prepare_batch=denoise,
            decollate=False,
            key_val_metric={"mse": IgniteMetricHandler(MSEMetric(), output_transform=pair)},
            val_handlers=[SeedEpoch(7, fixed=True)],
        )
        self.best = AtomicCheckpointSaver(
            str(folder / "best"), {"n": self.network}, save_key_metric=True, key_metric_negative_sign=True
        )
        self.best.attach(self.evaluator)
        self.trainer = SupervisedTrainer(
            device="cpu",
            max_epochs=epochs,
            train_data_loader=augmented_loader(workers, shuffle=False, sampler=sampler),
            network=self.network,
            optimizer=optimizer,
            loss_function=torch.nn.MSELoss(),
            prepare_batch=denoise,
            decollate=False,
        )
        save = {
            "network": self.network,
            "optimizer": optimizer,
            "lr_scheduler": schedule,
            "trainer": self.trainer,
            "random_state": seed,
            "thresholds": self.thresholds,
            "best": self.best,
        }
        handlers = [
            seed,
            ValidationHandler(1, self.evaluator),
            LrScheduleHandler(schedule, step_transform=lambda _: self.evaluator.state.metrics["mse"]),
            AtomicCheckpointSaver(str(folder), save, save_interval=1, n_saved=2),
        ]
        if resume is not None:
            handlers.append(CheckpointLoader(str(folder / resume), save, map_location="cpu"))
        for handler in handlers:
            handler.attach(self.trainer)
        self.losses: list[float] = []
        self.trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: self.losses.append(engine.state.output["loss"].item())
        )
        self.schedule, self.optimizer = schedule, optimizer


def denoise(batch, device, non_blocking, **_):
    image = batch["image"].as_tensor().to(device)
    return image, image.flip(-1)


def pair(output):
    return output["pred"], output["label"]


@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, workers):
    whole = Run(tmp_path / "whole", 5, workers=workers, junk=0)
    whole.trainer.run()

    stopped = Run(tmp_path / "stopped", 2, workers=workers, junk=0)
    stopped.thresholds.ap = 0.35
    stopped.trainer.run()
    resumed = Run(tmp_path / "stopped", 5, workers=workers, junk=123, resume="checkpoint_epoch=2.pt")
    torch.rand(17), np.random.rand(3), random.random()  # noqa: NPY002 - the past of a new process is another one
    resumed.trainer.run()

    assert stopped.losses + resumed.losses == whole.losses
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    assert resumed.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"] < 0.05
    assert resumed.schedule.state_dict() == whole.schedule.state_dict()
    assert resumed.evaluator.state.metrics == whole.evaluator.state.metrics
    assert resumed.best.state_dict() == whole.best.state_dict()
    assert resumed.thresholds.ap == 0.35
    assert resumed.trainer.state.iteration == whole.trainer.state.iteration

    checkpoint = torch.load(tmp_path / "stopped" / "checkpoint_epoch=5.pt", weights_only=True)
    assert set(checkpoint) == {"network", "optimizer", "lr_scheduler", "trainer", "random_state", "thresholds", "best"}


def test_the_comparison_can_fail(tmp_path):
    """The twin of the test above without the handler's seed: resumed weights differ."""
    whole = Run(tmp_path / "whole", 3, workers=0, junk=0)
    whole.trainer.run()
    Run(tmp_path / "stopped", 2, workers=0, junk=0).trainer.run()
    resumed = Run(tmp_path / "stopped", 3, workers=0, junk=1, resume="checkpoint_epoch=2.pt")
    resumed.trainer.add_event_handler(Events.EPOCH_STARTED, lambda: torch.manual_seed(5))
    resumed.trainer.run()
    assert resumed.losses != whole.losses[-len(resumed.losses) :]


def test_finished_checkpoint_runs_no_further_epoch(tmp_path):
    Run(tmp_path, 2, workers=0, junk=0).trainer.run()
    again = Run(tmp_path, 2, workers=0, junk=1, resume="checkpoint_epoch=2.pt")
    again.trainer.run()
    assert again.losses == [] and again.trainer.state.epoch == 2
