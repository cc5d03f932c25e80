# SPDX-License-Identifier: Apache-2.0
"""The parts of DenoiSeg in MONAI's engine: it must learn, and ranks must not do each other's work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, RandFlipd

from monai_labelfx.engines import (
    DenoiSegPrepareBatch,
    InstanceThresholds,
    LabelAwareSampler,
    RunRecord,
    SeedEpoch,
    ThresholdSearch,
)
from monai_labelfx.losses import DenoiSegLoss
from monai_labelfx.networks import DenoiSegUNet


def noisy_discs(number: int, spatial_dims: int, size: int = 24) -> dict[str, torch.Tensor | bool]:
    """Two noisy balls; two of the items have a label of background, foreground and border."""
    rng = np.random.default_rng(number)
    grid = np.stack(np.meshgrid(*[np.arange(size)] * spatial_dims, indexing="ij"))
    centres = rng.uniform(5, size - 5, (2, spatial_dims))
    distance = np.min([np.linalg.norm(grid - c.reshape(-1, *[1] * spatial_dims), axis=0) for c in centres], axis=0)
    label = np.select([distance < 4, distance < 5.5], [1, 2], 0)
    image = (label == 1) * 2.0 - 0.5 + rng.normal(0, 0.5, label.shape)
    return {
        "image": torch.tensor(image, dtype=torch.float32)[None],
        "label": torch.tensor(label * (number < 2))[None],
        "has_label": number < 2,
    }


def trainer_for(items, spatial_dims: int, epochs: int, *, seed: int = 0, **keywords) -> SupervisedTrainer:
    torch.manual_seed(seed)
    network = DenoiSegUNet(spatial_dims, features=4, depth=1, norm="instance")
    dataset = CacheDataset(items, Compose([RandFlipd(["image", "label"], 0.5, 0)]), progress=False)
    sampler = LabelAwareSampler([item["has_label"] for item in items], 4, num_samples=16)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=DataLoader(dataset, batch_size=4, sampler=sampler),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 0.01),
        loss_function=DenoiSegLoss(**keywords),
        prepare_batch=DenoiSegPrepareBatch(blind_spots={"fraction": 0.05, "window": 5}),
        decollate=False,
    )
    SeedEpoch(seed).attach(trainer)
    return trainer


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_learns(tmp_path, spatial_dims):
    size = 24 if spatial_dims == 2 else 14
    items = [noisy_discs(number, spatial_dims, size) for number in range(6)]
    trainer = trainer_for(items, spatial_dims, 25)
    record = RunRecord(tmp_path)
    record.attach(trainer)
    trainer.run()
    losses = [value for _, value in record._history["train_loss"]]
    assert np.mean(losses[-2:]) < 0.6 * losses[0], losses

    trainer.network.eval()
    with torch.no_grad():
        output = trainer.network(torch.stack([item["image"] for item in items]))
    foreground = output[:2, -3:].softmax(1)[:, 1:2]
    truth = torch.stack([item["label"] for item in items[:2]])
    assert foreground[truth == 1].mean() > foreground[truth == 0].mean() + 0.4


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_pure_losses_train_on_batches_without_the_other_half(alpha):
    items = [noisy_discs(number, 2, 16) for number in range(4)]
    if alpha == 1:
        items = [{"image": item["image"], "has_label": False} for item in items]
    trainer = trainer_for(items, 2, 2, alpha=alpha)
    trainer.data_loader.dataset.transform = Compose([])
    trainer.run()
    assert np.isfinite(trainer.state.output["loss"].item())


def masks_and_samples(rank: int, world: int, epochs: int = 2) -> list[tuple[list[int], list[int]]]:
    """What one rank sees per epoch: numbers of its items, positions of the blind spots in its first image."""
    items = [{"image": torch.rand(1, 16, 16), "number": number} for number in range(10)]
    flags = [number < 2 for number in range(10)]
    sampler = LabelAwareSampler(flags, 2, num_replicas=world, rank=rank)
    prepare = DenoiSegPrepareBatch(blind_spots={"fraction": 0.05})
    seen: dict[int, list] = {}

    def step(engine, batch):
        spots = prepare(batch)[1]["blind_spots"][0].flatten().nonzero().flatten().tolist()
        numbers, first = seen.setdefault(engine.state.epoch, ([], spots))
        numbers.extend(batch["number"].tolist())

    engine = Engine(step)
    SeedEpoch(3).attach(engine)
    torch.manual_seed(0)  # ranks start alike
    engine.run(DataLoader(CacheDataset(items, progress=False), batch_size=2, sampler=sampler), max_epochs=epochs)
    return [seen[epoch] for epoch in sorted(seen)]


def check_ranks(first, second) -> None:
    for (numbers_a, spots_a), (numbers_b, spots_b) in zip(first, second, strict=True):
        assert len(numbers_a) == len(numbers_b) and not set(numbers_a) & set(numbers_b)
        assert set(numbers_a) | set(numbers_b) == set(range(10))
        assert spots_a != spots_b and len(spots_a) == len(spots_b)
    assert first[0] != first[1], "epochs differ"


def test_ranks_see_other_items_and_other_masks(monkeypatch):
    results = []
    for rank in range(2):
        monkeypatch.setattr("ignite.distributed.get_rank", lambda rank=rank: rank)
        results.append(masks_and_samples(rank, 2))
    check_ranks(*results)


def searched_thresholds(rank: int) -> dict[str, float | int]:
    """Thresholds after a pass in which rank 0 has one labelled image and rank 1 none."""
    foreground = torch.tensor([[0.9, 0.9, 0.3, 0.9, 0.9]])
    label = {"label": torch.tensor([[[1, 1, 0, 2, 2]]])} if rank == 0 else {}
    item = {"pred_probabilities": torch.stack([1 - foreground, foreground, 0 * foreground]), **label}
    thresholds = InstanceThresholds()
    engine = Engine(lambda engine, batch: batch)
    ThresholdSearch(thresholds, candidates=[0.2, 0.4, 0.95]).attach(engine)
    engine.run([[item]])
    return thresholds.state_dict()


def test_threshold_search_on_one_rank():
    assert searched_thresholds(0)["ap"] == 0.4 and searched_thresholds(1)["images"] == 0


WORKER = """
    import json, sys
    from datetime import timedelta
    import torch.distributed as dist
    sys.path.insert(0, sys.argv[3])
    from test_denoiseg_training import masks_and_samples, searched_thresholds
    from monai_labelfx.engines import LabelAwareSampler

    dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=int(sys.argv[1]), world_size=2,
                            timeout=timedelta(seconds=90))
    sampler = LabelAwareSampler([True, False, False], 2)
    assert (sampler.rank, sampler.num_replicas) == (dist.get_rank(), 2)
    mine = masks_and_samples(sampler.rank, sampler.num_replicas)
    gathered, thresholds = [None, None], [None, None]
    dist.all_gather_object(gathered, mine)
    dist.all_gather_object(thresholds, searched_thresholds(sampler.rank))
    assert thresholds[0] == thresholds[1] and thresholds[0]["images"] == 1, thresholds
    if dist.get_rank() == 0:
        print(json.dumps(gathered))
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_with_gloo(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    arguments = [str(tmp_path / "meeting"), str(Path(__file__).parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    check_ranks(*json.loads(outputs[0][0].splitlines()[-1]))
