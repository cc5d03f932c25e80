# SPDX-License-Identifier: Apache-2.0
"""Training of a detector, which computes its losses itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, EventEnum
from ignite.metrics import Metric
from monai.engines import Trainer, Workflow
from monai.engines.utils import IterationEvents, default_metric_cmp_fn
from monai.transforms import Transform
from monai.utils.enums import CommonKeys
from torch.optim.optimizer import Optimizer
from torch.utils.data import DataLoader

from monai_labelfx.detectors._targets import image_names
from monai_labelfx.detectors.window_inferer import detector_keys
from monai_labelfx.engines.detection_prepare_batch import DetectionPrepareBatch, detection_items

IMAGE, LABEL, LOSS = CommonKeys.IMAGE.value, CommonKeys.LABEL.value, CommonKeys.LOSS.value


class DetectionTrainer(Trainer):
    """Trainer of a detector: ``SupervisedTrainer`` for networks that take targets and return a dictionary of losses.

    It minimises

    .. math:: L = \\sum_k w_k L_k

    over the losses of ``detector(images, targets)``. ``engine.state.output`` holds ``image`` (list of images),
    ``label`` (list of targets), ``loss`` (L, not scaled) and each loss under its name, as the detector returned it. The
    events of MONAI's trainers are fired: FORWARD_COMPLETED when the detector has returned, LOSS_COMPLETED when L is
    there, BACKWARD_COMPLETED, and MODEL_COMPLETED after the step.

    Args:
        device: where images and targets go; the detector must be there.
        max_epochs: number of epochs.
        train_data_loader: gives batches for ``prepare_batch``; lists of items, with
            ``collate_fn=monai.data.utils.no_collation``.
        detector: ``detector(images, targets)`` returns a mapping of scalar losses in training mode.
        optimizer: over the parameters of the detector.
        epoch_length: iterations of an epoch; default the length of the loader.
        non_blocking: of the copies to the device.
        prepare_batch: makes (images, targets) of a batch.
        loss_weights: name of a loss -> its weight; 1 for losses that are not named.
        iteration_update: replaces the whole iteration, see MONAI's trainers.
        postprocessing: transforms of the output, after each iteration.
        key_train_metric: the metric to compare checkpoints by, of what the output holds; there are no predictions.
        additional_metrics: further metrics.
        metric_cmp_fn: tells whether a metric is better than the best one so far.
        train_handlers: handlers, attached in this order.
        amp: run the detector under ``torch.autocast`` of the device. Gradients are scaled where its type is float16.
        event_names: further events.
        event_to_attr: see MONAI's trainers.
        decollate: make ``state.batch`` and ``state.output`` lists with one dictionary per image, each with all losses.
            Default ``False``, unlike MONAI's: nothing here needs it.
        optim_set_to_none: of ``optimizer.zero_grad``.
        to_kwargs: for ``Tensor.to`` of the images.
        amp_kwargs: for ``torch.autocast``, such as ``{"dtype": torch.bfloat16}``.
        clip_grad_norm: greatest 2-norm of the gradient of all parameters; a longer one is shortened. Default ``None``.
        accumulation_steps: batches whose mean gradient makes one step; the last step of an epoch may have fewer batches
            behind it. Default 1.

    Raises:
        ValueError: for options out of their range; in an iteration for a weight of a loss that the detector does not
            return, an image that nobody annotated, and a loss that is not finite: the message tells which losses and
            names the files of the images. No step is done then, so the last checkpoint is sound.

    Example:
        >>> class Detector(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.network = torch.nn.Conv2d(1, 1, 1)
        ...     def forward(self, images, targets=None):
        ...         return {"classification": sum(self.network(image).square().mean() for image in images)}
        >>> detector = Detector()
        >>> batch = [{"image": torch.ones(1, 8, 8), "box": [[0, 0, 4, 4]], "box_label": [0]}]
        >>> trainer = DetectionTrainer("cpu", 1, [batch], detector, torch.optim.SGD(detector.parameters(), 0.1))
        >>> trainer.run()
        >>> sorted(trainer.state.output)
        ['classification', 'image', 'label', 'loss']
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable | DataLoader,
        detector: torch.nn.Module,
        optimizer: Optimizer,
        epoch_length: int | None = None,
        non_blocking: bool = False,
        prepare_batch: Callable | None = None,
        loss_weights: Mapping[str, float] | None = None,
        iteration_update: Callable[[Engine, Any], Any] | None = None,
        postprocessing: Transform | None = None,
        key_train_metric: dict[str, Metric] | None = None,
        additional_metrics: dict[str, Metric] | None = None,
        metric_cmp_fn: Callable = default_metric_cmp_fn,
        train_handlers: Sequence | None = None,
        amp: bool = False,
        event_names: list[str | EventEnum | type[EventEnum]] | None = None,
        event_to_attr: dict | None = None,
        decollate: bool = False,
        optim_set_to_none: bool = False,
        to_kwargs: dict | None = None,
        amp_kwargs: dict | None = None,
        clip_grad_norm: float | None = None,
        accumulation_steps: int = 1,
    ) -> None:
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be 1 or above, got {accumulation_steps!r}.")
        if clip_grad_norm is not None and not clip_grad_norm > 0:
            raise ValueError(f"clip_grad_norm must be above 0 or None, got {clip_grad_norm!r}.")
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            non_blocking=non_blocking,
            prepare_batch=DetectionPrepareBatch() if prepare_batch is None else prepare_batch,
            iteration_update=iteration_update,
            postprocessing=postprocessing,
            key_metric=key_train_metric,
            additional_metrics=additional_metrics,
            metric_cmp_fn=metric_cmp_fn,
            handlers=train_handlers,
            amp=amp,
            event_names=event_names,
            event_to_attr=event_to_attr,
            decollate=decollate,
            to_kwargs=to_kwargs,
            amp_kwargs=amp_kwargs,
        )
        self.detector = detector
        self.optimizer = optimizer
        self.loss_weights = dict(loss_weights or {})
        self.optim_set_to_none = optim_set_to_none
        self.clip_grad_norm = clip_grad_norm
        self.accumulation_steps = accumulation_steps

    def run(self) -> None:  # type: ignore[override]
        """Train; called again, it goes on where it stopped."""
        kind = self.state.device.type
        dtype = self.amp_kwargs.get("dtype", torch.get_autocast_dtype(kind))
        # MONAI makes a scaler of CUDA whatever the device, and for bfloat16, which needs none
        self.scaler = torch.amp.GradScaler(kind) if self.amp and dtype == torch.float16 else None  # type: ignore[assignment]
        Workflow.run(self)

    def _iteration(self, engine: Any, batchdata: Any) -> dict:
        """One batch: losses, gradients and, when enough batches have been seen, a step."""
        if batchdata is None:
            raise ValueError("the data loader gave None instead of a batch.")
        images, targets = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        missing = [name for name, target in zip(image_names(images), targets, strict=True) if target is None]
        if missing:
            raise ValueError(
                f"no boxes are known of {', '.join(missing)}: leave images that nobody annotated out of training, and "
                "give those without objects an empty list of boxes."
            )
        engine.state.output = {IMAGE: images, LABEL: targets}
        keys = detector_keys(engine.detector)
        first, last = engine._accumulation()
        engine.detector.train()
        if first:
            engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
        with torch.autocast(engine.state.device.type, enabled=engine.amp, **engine.amp_kwargs):
            losses = engine.detector(images, [{keys.get(key, key): v for key, v in one.items()} for one in targets])
            engine.fire_event(IterationEvents.FORWARD_COMPLETED)
            loss = engine._weighted_sum(losses)
        engine.state.output |= {LOSS: loss, **losses}
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        if not torch.isfinite(loss.detach()):
            values = ", ".join(f"{name} {float(value.detach()):.4g}" for name, value in losses.items())
            raise ValueError(
                f"the loss is not finite ({values}) in epoch {engine.state.epoch}, iteration {engine.state.iteration}, "
                f"for {', '.join(image_names(images))}: look at their boxes and values, or lower the learning rate."
            )
        scaled = loss / engine.accumulation_steps
        (scaled if engine.scaler is None else engine.scaler.scale(scaled)).backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if last:
            engine._step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _accumulation(self) -> tuple[bool, bool]:
        """Whether this is the first and whether the last batch of a step; an epoch ends a step."""
        length = self.state.epoch_length
        number = self.state.iteration - 1 if length is None else (self.state.iteration - 1) % length
        steps = self.accumulation_steps
        return number % steps == 0, (number + 1) % steps == 0 or number + 1 == length

    def _weighted_sum(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        unknown = [name for name in self.loss_weights if name not in losses]
        taken = {IMAGE, LABEL, LOSS} & set(losses)
        if unknown or taken or not losses:
            raise ValueError(
                f"the detector must return losses with the names in loss_weights ({', '.join(self.loss_weights)}), and "
                f"none called image, label or loss; it returned {', '.join(losses) or 'none'}."
            )
        return sum(self.loss_weights.get(name, 1.0) * value for name, value in losses.items())  # type: ignore[return-value]

    def _step(self) -> None:
        if self.clip_grad_norm is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_grad_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _register_decollate(self) -> None:
        """Items instead of batches, where MONAI would take lists of boxes apart row by row."""

        @self.on(IterationEvents.MODEL_COMPLETED)
        def _decollate(engine: Any) -> None:
            output = dict(engine.state.output)
            images, targets = output.pop(IMAGE), output.pop(LABEL)
            numbers = {name: float(value.detach()) for name, value in output.items()}
            engine.state.batch = detection_items(engine.state.batch, getattr(self.prepare_batch, "image_key", "image"))
            engine.state.output = [
                {IMAGE: image, LABEL: target, **numbers} for image, target in zip(images, targets, strict=True)
            ]
