# SPDX-License-Identifier: Apache-2.0
"""The package's metrics as ignite handlers, and the output_transform that picks their pairs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler

from monai_labelfx.metrics import InstanceAveragePrecision, SegScore, StatedRangePSNR


def from_instances(
    pred_key: str, label_key: str, has_label_key: str | None = None, *, binary: bool = False
) -> Callable[[Any], tuple[list[Any], list[Any]]]:
    """An ``output_transform`` that makes (predictions, references) and drops the items without reference.

    It reads what MONAI's engines hold after decollation, a list with one dictionary per item, and one dictionary of
    batches alike. An item is dropped when it lacks one of the two keys or holds ``None`` there (a network without
    denoised channel predicts none), or when its flag is false. All may be dropped.

    Args:
        pred_key: key of the predictions, for instance ``"pred_probabilities_instances"``.
        label_key: key of the references, for instance ``"label"``.
        has_label_key: key of the flag that tells whether the item has a reference, for instance ``"has_label"``.
            Default ``None``, all have.
        binary: make both foreground masks (values above 0 become 1), for semantic metrics such as Dice.

    Returns:
        A callable for the ``output_transform`` of the handlers in this module. They show it the items of the engine's
        batch and output together; other handlers show the output alone, which must then hold all keys.

    Raises:
        KeyError: in the call, when an item lacks ``has_label_key``.

    Example:
        >>> output = [{"pred": 1, "label": 2, "has_label": True}, {"pred": 3, "label": 0, "has_label": False}]
        >>> from_instances("pred", "label", "has_label")(output)
        ([1], [2])
    """

    def pairs(output: Any) -> tuple[list[Any], list[Any]]:
        items = _unbatched(output, [pred_key, label_key, has_label_key]) if isinstance(output, Mapping) else output
        predictions, references = [], []
        for item in items:
            if has_label_key is not None and has_label_key not in item:
                raise KeyError(f"an item has no flag {has_label_key!r}; its keys are {sorted(map(str, item))}.")
            prediction, reference = item.get(pred_key), item.get(label_key)
            labelled = has_label_key is None or bool(torch.as_tensor(item[has_label_key]).all())
            if labelled and prediction is not None and reference is not None:
                predictions.append(_foreground(prediction) if binary else prediction)
                references.append(_foreground(reference) if binary else reference)
        return predictions, references

    return pairs


def _foreground(instances: Any) -> torch.Tensor:
    return (torch.as_tensor(instances) > 0).float()


def _unbatched(batch: Mapping[Any, Any], keys: Sequence[str | None]) -> list[dict[Any, Any]]:
    """One dictionary per item of a dictionary of batches, with only ``keys``."""
    present = {key: batch[key] for key in keys if batch.get(key) is not None}
    return [dict(zip(present, values, strict=True)) for values in zip(*present.values(), strict=True)]


class PairedMetricHandler(IgniteMetricHandler):
    """Base of the handlers below: sees batch and output together, and does without references.

    MONAI's postprocessing leaves the keys of the batch (flags, clean images) in ``engine.state.batch``; the
    ``output_transform`` gets each item of both as one dictionary, the output first where both have a key. When a whole
    run had no pair to compare, the metric is left out of ``engine.state.metrics`` with a warning; as key metric it
    raises ``ValueError``.

    With ``save_details`` the scores of the images (N, K) go to ``engine.state.metric_details`` under the metric's name.
    Dropped items have no row there, so file names beside the rows fit only when no item is dropped.
    """

    @torch.no_grad()
    def iteration_completed(self, engine: Engine) -> None:
        """Add the pairs of one iteration."""
        self.update(self._output_transform(_together(engine.state.batch, engine.state.output)))

    def completed(self, engine: Engine, name: str) -> None:
        """Write the metric, or leave it out when no pair was seen."""
        if len(self.metric_fn) == 0 and name != getattr(engine.state, "key_metric_name", None):
            engine.state.metrics.pop(name, None)
            getattr(engine.state, "metric_details", {}).pop(name, None)
            warnings.warn(f"metric {name!r} is left out: no item had a prediction and a reference.", stacklevel=2)
            return
        super().completed(engine, name)


def _together(batch: Any, output: Any) -> Any:
    """Items of batch and output as one: for lists of dictionaries and for two dictionaries, else the output."""
    if isinstance(batch, Mapping) and isinstance(output, Mapping):
        return {**batch, **output}
    lists = isinstance(batch, list) and isinstance(output, list) and len(batch) == len(output)
    if lists and all(isinstance(item, Mapping) for item in (*batch, *output)):
        return [{**first, **second} for first, second in zip(batch, output, strict=True)]
    return output


class InstanceAveragePrecisionHandler(PairedMetricHandler):
    """:py:class:`~monai_labelfx.metrics.InstanceAveragePrecision` as a handler of MONAI's engines.

    Args:
        thresholds: see the metric.
        mode: see the metric.
        strict: see the metric.
        output_transform: makes (predictions, references) of the engine's items, see :py:func:`from_instances`.
        save_details: keep the scores of the images in ``engine.state.metric_details``.

    Example:
        >>> engine = Engine(lambda engine, batch: batch)
        >>> handler = InstanceAveragePrecisionHandler(output_transform=from_instances("pred", "label"))
        >>> handler.attach(engine, "AP50")
        >>> labels = torch.tensor([[[0, 1, 2]]])
        >>> engine.run([[{"pred": labels, "label": labels}]]).metrics
        {'AP50': 1.0}
    """

    def __init__(
        self,
        thresholds: float | Sequence[float] = 0.5,
        *,
        mode: Literal["per_image", "pooled"] = "per_image",
        strict: bool = False,
        output_transform: Callable = lambda x: x,
        save_details: bool = True,
    ) -> None:
        metric = InstanceAveragePrecision(thresholds, mode=mode, strict=strict)
        super().__init__(metric_fn=metric, output_transform=output_transform, save_details=save_details)


class SegScoreHandler(PairedMetricHandler):
    """:py:class:`~monai_labelfx.metrics.SegScore` as a handler of MONAI's engines.

    Args:
        mode: see the metric.
        output_transform: makes (predictions, references) of the engine's items, see :py:func:`from_instances`.
        save_details: keep the scores of the images in ``engine.state.metric_details``.

    Example:
        >>> engine = Engine(lambda engine, batch: batch)
        >>> SegScoreHandler(output_transform=from_instances("pred", "label")).attach(engine, "SEG")
        >>> engine.run([[{"pred": torch.tensor([[0, 1, 1]]), "label": torch.tensor([[0, 3, 3]])}]]).metrics
        {'SEG': 1.0}
    """

    def __init__(
        self,
        mode: Literal["per_image", "pooled"] = "per_image",
        *,
        output_transform: Callable = lambda x: x,
        save_details: bool = True,
    ) -> None:
        super().__init__(metric_fn=SegScore(mode), output_transform=output_transform, save_details=save_details)


class StatedRangePSNRHandler(PairedMetricHandler):
    """:py:class:`~monai_labelfx.metrics.StatedRangePSNR` as a handler of MONAI's engines.

    Args:
        data_range: see the metric.
        output_transform: makes (denoised, clean) of the engine's items, see :py:func:`from_instances`.
        save_details: keep the PSNR of the images in ``engine.state.metric_details``.

    Example:
        >>> engine = Engine(lambda engine, batch: batch)
        >>> handler = StatedRangePSNRHandler(output_transform=from_instances("pred_denoised", "clean"))
        >>> handler.attach(engine, "PSNR")
        >>> item = {"pred_denoised": torch.tensor([[0.0, 9.0]]), "clean": torch.tensor([[0.0, 10.0]])}
        >>> round(engine.run([[item]]).metrics["PSNR"], 4)
        23.0103
    """

    def __init__(
        self,
        data_range: Literal["image"] | float = "image",
        *,
        output_transform: Callable = lambda x: x,
        save_details: bool = True,
    ) -> None:
        super().__init__(
            metric_fn=StatedRangePSNR(data_range), output_transform=output_transform, save_details=save_details
        )
