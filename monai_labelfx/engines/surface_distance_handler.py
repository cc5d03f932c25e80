# SPDX-License-Identifier: Apache-2.0
"""The surface distance as an ignite handler that also tells how often there was none."""

from __future__ import annotations

from collections.abc import Callable

from ignite.engine import Engine

from monai_labelfx.engines.metric_handlers import PairedMetricHandler
from monai_labelfx.metrics.surface_distance import PhysicalSurfaceDistance


class PhysicalSurfaceDistanceHandler(PairedMetricHandler):
    """:py:class:`~monai_labelfx.metrics.PhysicalSurfaceDistance` as a handler of MONAI's engines.

    Beside the metric, ``engine.state.metrics`` gets ``<name>_not_computed``: the number of images and classes of which
    either prediction or reference is empty, so that they are missing in the mean.

    Args:
        classes: see the metric.
        output_transform: makes (predictions, references) of the engine's items, see :py:func:`from_probabilities`.
        save_details: keep the distances of the images in ``engine.state.metric_details``.

    Example:
        >>> import torch
        >>> from monai_labelfx.engines import from_instances
        >>> engine = Engine(lambda engine, batch: batch)
        >>> handler = PhysicalSurfaceDistanceHandler(output_transform=from_instances("pred", "label"))
        >>> handler.attach(engine, "ASSD")
        >>> found, missed = torch.tensor([[[0, 1, 0]]]), torch.tensor([[[0, 0, 0]]])
        >>> engine.run([[{"pred": found, "label": found}, {"pred": missed, "label": found}]]).metrics
        {'ASSD': 0.0, 'ASSD_not_computed': 1}
    """

    def __init__(
        self,
        classes: int = 1,
        *,
        output_transform: Callable = lambda x: x,
        save_details: bool = True,
    ) -> None:
        super().__init__(
            metric_fn=PhysicalSurfaceDistance(classes), output_transform=output_transform, save_details=save_details
        )

    def completed(self, engine: Engine, name: str) -> None:
        """Write the metric and the number of missing distances."""
        super().completed(engine, name)
        engine.state.metrics.pop(f"{name}_not_computed", None)
        if name in engine.state.metrics:
            missing = self.metric_fn.not_computed().sum()  # type: ignore[attr-defined]
            engine.state.metrics[f"{name}_not_computed"] = int(missing)
