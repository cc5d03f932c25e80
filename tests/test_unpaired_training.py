# SPDX-License-Identifier: Apache-2.0
"""UnpairedTrainer with its data set, sampler, pool and handlers: learning, exact resume, two processes."""

from __future__ import annotations

import os
import socket

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.handlers import CheckpointLoader, LrScheduleHandler
from monai.transforms import Compose, RandGaussianNoised, RandShiftIntensityd
from unpaired_recipe import REAL, TERMS, Line, data, parameters, tell, term, trainer_of

from monai_labelfx.data.unpaired_dataset import UnpairedDataset
from monai_labelfx.engines.checkpoint import AtomicCheckpointSaver
from monai_labelfx.engines.image_pool import ImagePool
from monai_labelfx.engines.seed_epoch import SeedEpoch
from monai_labelfx.engines.unpaired_sampler import UnpairedSampler
from monai_labelfx.engines.unpaired_trainer import UnpairedTrainer


def test_learns_to_move_one_distribution_onto_another():
    torch.manual_seed(0)
    items = [{"low": 0.3 * torch.randn(1, 4, 4), "high": 2 + 0.3 * torch.randn(1, 4, 4)} for _ in range(16)]
    generator = torch.nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        generator.weight.fill_(1.0), generator.bias.zero_()
    discriminator = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 1), torch.nn.LeakyReLU(0.2), torch.nn.Conv2d(8, 1, 1))
    terms = [TERMS[0], term("tell", "d", tell, REAL, "discriminator(pool(generator(low)))", weight=0.5)]
    trainer = trainer_of(
        generator, discriminator, items=items, terms=terms, lr=0.05, epochs=10, functions={"pool": ImagePool(8)}
    )
    trainer.run()
    assert 1.0 < float(generator(torch.zeros(1, 1, 1, 1)).detach()) < 3.0


class Run:
    """A small training with everything that must survive a stop."""

    def __init__(self, folder, epochs: int, *, junk: int, workers: int = 0, resume: str | None = None) -> None:
        torch.manual_seed(junk if resume else 0)
        self.networks = {
            "generator": torch.nn.Sequential(
                torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Dropout(0.2), torch.nn.Conv2d(2, 1, 1)
            ),
            "discriminator": torch.nn.Sequential(
                torch.nn.utils.parametrizations.spectral_norm(torch.nn.Conv2d(1, 4, 3)), torch.nn.Conv2d(4, 1, 1)
            ),
        }
        optimizers = {name: torch.optim.Adam(net.parameters(), 0.01) for name, net in self.networks.items()}
        schedules = {name: torch.optim.lr_scheduler.StepLR(one, 1, 0.7) for name, one in optimizers.items()}
        self.pool = ImagePool(3)
        random_state = SeedEpoch(5)
        low, high = (
            CacheDataset(
                [{"image": MetaTensor(item[name]).float()} for item in data(count)],
                Compose([RandGaussianNoised("image", prob=0.7), RandShiftIntensityd("image", 0.5, prob=0.5)]),
                progress=False,
            )
            for name, count in (("low", 5), ("high", 3))
        )
        loader = DataLoader(
            UnpairedDataset(low, high), batch_size=2, sampler=UnpairedSampler(5, 3, 6), num_workers=workers
        )
        terms = [*TERMS[:2], term("tell", "d", tell, REAL, "discriminator(pool(generator(low)))")]
        phases = {name[0]: {"train": [name], "optimizer": optimizers[name]} for name in self.networks}
        self.trainer = UnpairedTrainer(
            "cpu", epochs, loader, self.networks, phases, terms, functions={"pool": self.pool}
        )
        save = {"trainer": self.trainer, "random_state": random_state, "pool": self.pool, **self.networks}
        save |= {f"{name}_optimizer": one for name, one in optimizers.items()}
        save |= {f"{name}_schedule": one for name, one in schedules.items()}
        handlers = [random_state, *(LrScheduleHandler(one) for one in schedules.values())]
        handlers.append(AtomicCheckpointSaver(str(folder), save, save_interval=1, n_saved=2))
        if resume:
            handlers.append(CheckpointLoader(str(folder / resume), save, map_location="cpu"))
        for handler in handlers:
            handler.attach(self.trainer)
        self.losses: list[tuple[float, ...]] = []
        self.trainer.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine: self.losses.append(tuple(engine.state.output[one].item() for one in ("loss", "d_loss"))),
        )


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, workers):
    whole = Run(tmp_path / "whole", 4, junk=0, workers=workers)
    whole.trainer.run()
    stopped = Run(tmp_path / "stopped", 2, junk=0, workers=workers)
    stopped.trainer.run()
    resumed = Run(tmp_path / "stopped", 4, junk=99, workers=workers, resume="checkpoint_epoch=2.pt")
    torch.rand(17)
    resumed.trainer.run()
    assert stopped.losses + resumed.losses == whole.losses and len(whole.losses) == 12
    first, second = (
        torch.load(tmp_path / name / "checkpoint_epoch=4.pt", weights_only=True) for name in ("whole", "stopped")
    )
    assert len(first["pool"]["images"]) == 3
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("forgotten", ["pool", "random_state", "discriminator_optimizer"])
def test_the_comparison_can_fail(tmp_path, forgotten):
    whole = Run(tmp_path / "whole", 3, junk=0)
    whole.trainer.run()
    Run(tmp_path / "stopped", 2, junk=0).trainer.run()
    path = tmp_path / "stopped" / "checkpoint_epoch=2.pt"
    state = torch.load(path, weights_only=True)
    state["pool"] = {"images": []} if forgotten == "pool" else state["pool"]
    state["random_state"] = {"seed": 8} if forgotten == "random_state" else state["random_state"]
    if forgotten == "discriminator_optimizer":
        state[forgotten]["state"] = {}
    torch.save(state, path)
    resumed = Run(tmp_path / "stopped", 3, junk=1, resume=path.name)
    resumed.trainer.run()
    assert resumed.losses != whole.losses[-3:]


def halves(rank: int | None, *, epochs: int = 2, resume: str | None = None) -> UnpairedTrainer:
    """A trainer of batches of 4 (``rank`` None), or of one of two ranks with half of each batch."""
    items = data(6)
    low, high = (
        Dataset([{"image": item[name]} for item in items[:count]]) for name, count in (("low", 6), ("high", 4))
    )
    whole = rank is None
    sampler = UnpairedSampler(6, 4, 8 if whole else 4, seed=1)
    trainer = trainer_of(
        Line(0.5 if not rank else 9.0, 0.2),  # rank 0 decides
        Line(0.7 if not rank else 9.0, -0.1),
        loader=DataLoader(UnpairedDataset(low, high), batch_size=4 if whole else 2, sampler=sampler),
        kind=torch.optim.Adam,
        epochs=epochs,
    )
    SeedEpoch(3).attach(trainer)
    if resume:
        CheckpointLoader(resume, trainer.networks).attach(trainer)
    return trainer


def _train_in(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
    torch.set_num_threads(1)
    with idist.Parallel(backend="gloo"):
        trainer = halves(rank)
        trainer.run()
        torch.save(parameters(trainer), f"{folder}/rank{rank}.pt")
        resumed = halves(rank, epochs=1, resume=f"{folder}/start{rank}.pt")
        resumed.run()
        torch.save(parameters(resumed), f"{folder}/resumed{rank}.pt")
        broken = float("nan") if rank else 1.0  # behind the sharing of weights, so that one rank alone has it
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda: trainer.networks["generator"].a.data.fill_(broken))
        trainer.state.max_epochs = 3
        try:
            trainer.run()
        except ValueError as error:
            torch.save(str(error), f"{folder}/error{rank}.pt")


@pytest.mark.slow
def test_two_processes_are_one_with_the_whole_batch(tmp_path):
    whole = halves(None)
    for rank, value in enumerate((1.5, 7.0)):  # each rank loads another checkpoint, at the start of the run
        torch.save(
            {"generator": Line(value).state_dict(), "discriminator": Line(0.4).state_dict()},
            tmp_path / f"start{rank}.pt",
        )
    resumed = halves(None, epochs=1, resume=str(tmp_path / "start0.pt"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_train_in, args=(port, str(tmp_path)), nprocs=2)
    for name, expected in (("rank", whole), ("resumed", resumed)):
        start = parameters(expected)
        expected.run()
        first, second = (torch.load(tmp_path / f"{name}{rank}.pt") for rank in range(2))
        assert first == second and first == pytest.approx(parameters(expected), abs=1e-12)
        assert min(abs(now - then) for now, then in zip(first, start, strict=True)) > 1e-3
    errors = [torch.load(tmp_path / f"error{rank}.pt") for rank in range(2)]
    assert "phase 'g' is not finite in another process, in epoch 3" in errors[0] and "adversarial nan" in errors[1]
