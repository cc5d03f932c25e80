# SPDX-License-Identifier: Apache-2.0
"""Detection metrics as an ignite metric that writes each of their results under its own name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced

from monai_labelfx.engines.metric_handlers import _together
from monai_labelfx.metrics._detection_metric import DetectionMetric
from monai_labelfx.metrics.coco_detection import CocoDetectionMetric
from monai_labelfx.metrics.detection_bootstrap import detection_bootstrap


def from_detections(
    pred_key: str = "pred", target_keys: Sequence[str] = ("target", "label")
) -> Callable[[Any], tuple[list[Any], list[Any]]]:
    """An ``output_transform`` that makes (predictions, targets) of a list with one dictionary per image.

    Args:
        pred_key: key of the predictions, a dictionary of ``boxes``, ``labels`` and ``scores``. Default ``"pred"``.
        target_keys: keys of the targets, a dictionary of ``boxes`` and ``labels``; the first that an item has counts.

    Raises:
        TypeError: in the call, when the output is no list of dictionaries.
        ValueError: in the call, when an item lacks predictions or targets. An image without objects has empty ones.

    Example:
        >>> from_detections()([{"pred": {"scores": []}, "label": {"labels": []}}])
        ([{'scores': []}], [{'labels': []}])
    """

    def pairs(output: Any) -> tuple[list[Any], list[Any]]:
        if not isinstance(output, list | tuple) or not all(isinstance(item, Mapping) for item in output):
            raise TypeError(f"detections must be a list with one dictionary per image, got {type(output).__name__}.")
        predictions, targets = [], []
        for item in output:
            target = next((item[key] for key in target_keys if isinstance(item.get(key), Mapping)), None)
            if not isinstance(item.get(pred_key), Mapping) or target is None:
                raise ValueError(
                    f"an image must have a dictionary under {pred_key!r} and under one of {tuple(target_keys)}; "
                    f"its keys are {sorted(map(str, item))}."
                )
            predictions.append(item[pred_key])
            targets.append(target)
        return predictions, targets

    return pairs


class DetectionMetricHandler(Metric):
    """A detection metric for MONAI's engines: ``box_mAP``, ``box_AP50``, ... go to ``engine.state.metrics``.

    It reads batch and output together, as lists with one dictionary per image, the output first where both have a key.
    Results are over the images of all processes. Give it to an evaluator as
    ``key_val_metric={"box_mAP": DetectionMetricHandler()}``, by the name of the result that decides, or under any name
    among the ``additional_metrics``; all results are written in both cases. When a run had no image, they are left out
    with a warning.

    A result that is not defined, for lack of objects, is NaN. As key result it is an error: MONAI would take a NaN of
    the first epoch for the best there is, for ever.

    Args:
        metric: a :py:class:`~monai_labelfx.metrics.coco_detection.CocoDetectionMetric` or
            :py:class:`~monai_labelfx.metrics.froc_detection.FrocDetectionMetric`. Default ``None``, the first.
        bootstrap: replicates of :py:func:`~monai_labelfx.metrics.detection_bootstrap.detection_bootstrap`, seed 0. Each
            result then also has the ends of its 95 % interval over images, ``box_mAP_low`` and ``box_mAP_high``.
            Default 0, none.
        prefix: put before the names of the results, to tell two handlers of one kind apart. Default none.
        output_transform: makes (predictions, targets) of the items. Default ``None``, :py:func:`from_detections`.

    Raises:
        ValueError: when ``bootstrap`` is below 0; at the end of a run, when it is the key metric and its name
            is none of the results, the result is not defined, or no image came.

    Example:
        >>> engine = Engine(lambda engine, batch: batch)
        >>> metric = CocoDetectionMetric(max_detections=(1,), area_ranges={})
        >>> DetectionMetricHandler(metric).attach(engine, "box_mAP")
        >>> target = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([0])}
        >>> engine.run([[{"pred": {**target, "scores": torch.tensor([0.5])}, "target": target}]]).metrics
        {'box_mAP': 1.0, 'box_AP50': 1.0, 'box_AP75': 1.0, 'box_AR_1': 1.0}
    """

    def __init__(
        self,
        metric: DetectionMetric | None = None,
        *,
        bootstrap: int = 0,
        prefix: str = "",
        output_transform: Callable[[Any], tuple[list[Any], list[Any]]] | None = None,
    ) -> None:
        if bootstrap < 0:
            raise ValueError(f"bootstrap must be a number of replicates, 0 for none, got {bootstrap}.")
        self.bootstrap = bootstrap
        self.metric = CocoDetectionMetric() if metric is None else metric
        self.prefix = prefix
        self._written: list[str] = []
        super().__init__(from_detections() if output_transform is None else output_transform)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all images."""
        self.metric.reset()

    @reinit__is_reduced
    def update(self, output: tuple[list[Any], list[Any]]) -> None:
        """Add the images of (predictions, targets)."""
        self.metric.update(*output)

    def compute(self) -> dict[str, float]:
        """The results by name."""
        results = self.metric.aggregate()
        if self.bootstrap:
            intervals = detection_bootstrap(self.metric, list(results), replicates=self.bootstrap)
            for name, (_, low, high) in intervals.items():
                results |= {f"{name}_low": low, f"{name}_high": high}
        return {f"{self.prefix}{name}": value for name, value in results.items()}

    @torch.no_grad()
    def iteration_completed(self, engine: Engine) -> None:
        """Add the images of one iteration."""
        self.update(self._output_transform(_together(engine.state.batch, engine.state.output)))

    def completed(self, engine: Engine, name: str) -> None:
        """Write the results, or leave them out when no image was seen."""
        for written in self._written:
            engine.state.metrics.pop(written, None)
        self._written = []
        key = name == getattr(engine.state, "key_metric_name", None)
        if len(self.metric) == 0 and not key:
            warnings.warn(f"the results of {name!r} are left out: no image was evaluated.", stacklevel=2)
            return
        results = self.compute()
        if key and name not in results:
            raise ValueError(f"the key metric must be called as one of {', '.join(results)}, got {name!r}.")
        if key and math.isnan(results[name]):
            raise ValueError(f"the key metric {name!r} is not defined: the targets of the run have no such object.")
        self._written = list(results)
        engine.state.metrics.update(results)
