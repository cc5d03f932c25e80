# SPDX-License-Identifier: Apache-2.0
"""Batches of labelled patches for MONAI's trainer, and a short training with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer

IMAGE, LABEL, SUB = "image", "patch_label", "sub_label"


def patch_pair(
    batch: Mapping[str, Any],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    *,
    image_key: str = IMAGE,
    label_key: str = LABEL,
    sub_key: str = SUB,
    **to: Any,
) -> tuple[torch.Tensor, torch.Tensor | dict[str, torch.Tensor] | None]:
    """The images (B, C, \\*spatial) of a batch and its labels (B, K), with sub-labels a mapping of both.

    ``None`` stands for the labels of a batch that has none. All are plain tensors: no loss reads metadata.

    Raises:
        KeyError: if the batch has no image.
        ValueError: for labels of another shape.
    """

    def take(key: str, **how: Any) -> torch.Tensor:
        value = batch[key]
        value = value.as_tensor() if isinstance(value, MetaTensor) else torch.as_tensor(value)
        return value.to(device=device, non_blocking=non_blocking, **how)

    if image_key not in batch:
        raise KeyError(f"the batch has no {image_key!r}; it has {sorted(map(str, batch))}.")
    images = take(image_key, **to)
    if label_key not in batch:
        return images, None
    labels = take(label_key)
    found = {label_key: labels, **({sub_key: take(sub_key)} if sub_key in batch else {})}
    for key, value in found.items():
        if value.ndim != 2 or len(value) != len(images) or value.shape != labels.shape:
            raise ValueError(
                f"{key!r} must hold one row of class labels for each of the {len(images)} images, "
                f"found {tuple(value.shape)}."
            )
    return images, {"labels": labels, "sub_labels": found[sub_key]} if sub_key in found else labels


def train(
    network: torch.nn.Module,
    loss: Callable[..., torch.Tensor],
    dataset: Dataset,
    *,
    max_epochs: int,
    batch_size: int,
    optimizer: torch.optim.Optimizer,
    device: str | torch.device | None,
    num_workers: int,
    seed: int,
) -> list[float]:
    """Train with a learning rate that falls as ``(1 - step / steps) ** 0.9``; the mean loss of each epoch."""
    where = torch.device(device) if device is not None else next(network.parameters()).device
    network.to(where)
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=True,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(seed),
    )
    trainer = SupervisedTrainer(
        device=where,
        max_epochs=max_epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=loss,
        prepare_batch=patch_pair,
        decollate=False,
    )
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, max_epochs * len(loader), power=0.9)
    steps: list[torch.Tensor] = []
    epochs: list[float] = []

    def after_step(engine: SupervisedTrainer) -> None:
        steps.append(engine.state.output["loss"].detach())  # read once an epoch: each reading waits for the device
        schedule.step()

    def after_epoch() -> None:
        epochs.append(float(torch.stack(steps).mean()))
        steps.clear()

    trainer.add_event_handler(Events.ITERATION_COMPLETED, after_step)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, after_epoch)
    trainer.run()
    return epochs
