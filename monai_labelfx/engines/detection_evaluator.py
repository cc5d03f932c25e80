# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a detector, whose predictions differ in number from image to image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from ignite.engine import Engine, EventEnum
from ignite.metrics import Metric
from monai.engines import Evaluator
from monai.engines.utils import IterationEvents, default_metric_cmp_fn
from monai.transforms import Transform
from monai.utils.enums import CommonKeys
from torch.utils.data import DataLoader

from monai_labelfx.detectors.window_inferer import detector_keys
from monai_labelfx.engines.detection_prepare_batch import DetectionPrepareBatch, detection_items

IMAGE, PRED, TARGET = CommonKeys.IMAGE.value, CommonKeys.PRED.value, "target"


class DetectionEvaluator(Evaluator):
    """Evaluator of a detector: ``SupervisedEvaluator`` for networks that return a list of detections.

    After each iteration ``engine.state.output`` is a list with one dictionary for each image, and
    ``engine.state.batch`` the list of the items, as postprocessing, metrics and handlers of MONAI read them:

    - ``image``: (C, \\*spatial) as it came from the loader, with its meta data;
    - ``pred``: ``boxes`` (N, 2 \\* D), ``labels`` (N,), ``scores`` (N,)[, ``masks``], whatever the detector calls them;
    - ``target``: ``boxes`` (M, 2 \\* D), ``labels`` (M,)[, ``masks``]; absent for an image that nobody annotated.

    The detector runs in evaluation mode without gradients. FORWARD_COMPLETED and MODEL_COMPLETED are fired.

    Args:
        device: where images and targets go; the detector must be there.
        val_data_loader: gives batches for ``prepare_batch``; lists of items, with
            ``collate_fn=monai.data.utils.no_collation``.
        detector: ``detector(images)`` returns a list of mappings in evaluation mode.
        epoch_length: iterations; default the length of the loader.
        non_blocking: of the copies to the device.
        prepare_batch: makes (images, targets) of a batch.
        iteration_update: replaces the whole iteration, see MONAI's evaluators.
        inferer: called with (images, detector), such as
            :py:class:`~monai_labelfx.detectors.WindowDetectionInferer`. Default ``None``: whole images.
        postprocessing: transforms of each item, batch and output together.
        key_val_metric: the metric to compare checkpoints by.
        additional_metrics: further metrics.
        metric_cmp_fn: tells whether a metric is better than the best one so far.
        val_handlers: handlers, attached in this order.
        amp: run the detector under ``torch.autocast`` of the device.
        event_names: further events.
        event_to_attr: see MONAI's evaluators.
        decollate: ``False`` leaves the batch as it came and makes the output one dictionary of lists.
        to_kwargs: for ``Tensor.to`` of the images.
        amp_kwargs: for ``torch.autocast``.

    Raises:
        ValueError: in an iteration where the detector returns another number of predictions than images.

    Example:
        >>> nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
        >>> class Detector(torch.nn.Module):
        ...     def forward(self, images):
        ...         return [nothing for _ in images]
        >>> evaluator = DetectionEvaluator("cpu", [[{"image": torch.ones(1, 8, 8)}]], Detector())
        >>> evaluator.run()
        >>> [sorted(item) for item in evaluator.state.output]
        [['image', 'pred']]
    """

    def __init__(
        self,
        device: str | torch.device,
        val_data_loader: Iterable | DataLoader,
        detector: torch.nn.Module,
        epoch_length: int | None = None,
        non_blocking: bool = False,
        prepare_batch: Callable | None = None,
        iteration_update: Callable[[Engine, Any], Any] | None = None,
        inferer: Callable | None = None,
        postprocessing: Transform | None = None,
        key_val_metric: dict[str, Metric] | None = None,
        additional_metrics: dict[str, Metric] | None = None,
        metric_cmp_fn: Callable = default_metric_cmp_fn,
        val_handlers: Sequence | None = None,
        amp: bool = False,
        event_names: list[str | EventEnum | type[EventEnum]] | None = None,
        event_to_attr: dict | None = None,
        decollate: bool = True,
        to_kwargs: dict | None = None,
        amp_kwargs: dict | None = None,
    ) -> None:
        super().__init__(
            device=device,
            val_data_loader=val_data_loader,
            epoch_length=epoch_length,
            non_blocking=non_blocking,
            prepare_batch=DetectionPrepareBatch() if prepare_batch is None else prepare_batch,
            iteration_update=iteration_update,
            postprocessing=postprocessing,
            key_val_metric=key_val_metric,
            additional_metrics=additional_metrics,
            metric_cmp_fn=metric_cmp_fn,
            val_handlers=val_handlers,
            amp=amp,
            event_names=event_names,
            event_to_attr=event_to_attr,
            decollate=decollate,
            to_kwargs=to_kwargs,
            amp_kwargs=amp_kwargs,
        )
        self.detector = detector
        self.inferer = inferer

    def _iteration(self, engine: Any, batchdata: Any) -> dict:
        """Detect in one batch."""
        if batchdata is None:
            raise ValueError("the data loader gave None instead of a batch.")
        images, targets = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        engine.state.output = {IMAGE: images, TARGET: targets}
        with (
            engine.mode(engine.detector),
            torch.autocast(engine.state.device.type, enabled=engine.amp, **engine.amp_kwargs),
        ):
            found = engine.detector(images) if engine.inferer is None else engine.inferer(images, engine.detector)
        if len(found) != len(images):
            raise ValueError(
                f"the detector must return one prediction for each of {len(images)} images, got {len(found)}."
            )
        names = {own: name for name, own in detector_keys(engine.detector).items()}
        engine.state.output[PRED] = [{names.get(key, key): v for key, v in one.items()} for one in found]
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _register_decollate(self) -> None:
        """Items instead of batches, where MONAI would take lists of boxes apart row by row."""

        @self.on(IterationEvents.MODEL_COMPLETED)
        def _decollate(engine: Any) -> None:
            key = getattr(self.prepare_batch, "image_key", IMAGE)
            output = engine.state.output
            engine.state.batch = detection_items(engine.state.batch, key)
            engine.state.output = [
                {IMAGE: item[key], PRED: pred, **({} if target is None else {TARGET: target})}
                for item, pred, target in zip(engine.state.batch, output[PRED], output[TARGET], strict=True)
            ]
