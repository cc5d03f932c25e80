# SPDX-License-Identifier: Apache-2.0
"""Choose the threshold of a segmentation by boxes alone, as a metric of MONAI's evaluators."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import Metric

from monai_labelfx.engines.box_threshold import BoxThreshold
from monai_labelfx.engines.metric_handlers import _together, _unbatched
from monai_labelfx.metrics.box_agreement import box_agreement
from monai_labelfx.metrics.per_image import MODES

_TINY = 1e-9  # of a weight
_GRID = (0.01, *(step / 20 for step in range(1, 20)))


class BoxThresholdSearch(Metric):
    """Agreement of predicted with given boxes at the best threshold, which it writes into a :py:class:`BoxThreshold`.

    Probabilities that are learned from boxes have no natural level: with the loss of the paper (Wang and Xia 2021) the
    best one lies near 0.35 for small objects and near 0.6 for large ones. Its authors pick the threshold with the
    validation masks. This metric needs the boxes only: at each candidate it compares the tight boxes of the prediction
    with the given ones (:py:func:`~monai_labelfx.metrics.box_agreement`), and it takes the candidate at which they
    agree best. The value lies within 0 and 1, higher is better, so it also serves as ``key_val_metric`` of MONAI's
    evaluators, to choose the epoch. Attached as "box_iou", it leaves in ``engine.state.metrics`` after each pass:

    - ``box_iou``: the agreement at the chosen threshold,
    - ``box_iou_at_half``: the agreement at 0.5,
    - ``box_iou_threshold``: the chosen threshold.

    Metrics come before handlers, so a checkpoint that is saved for the best value holds the threshold of that epoch.

    It reads the items that MONAI's engines hold after postprocessing, batch and output together: the probabilities and
    ``label_bags``, or else ``label_boxes``, with ``label_box_labels``. Items that lack both, or whose flag is false,
    are left out: nobody has looked at them.

    Args:
        threshold: the object to set.
        candidates: thresholds to try, within 0 to 1; by default 0.01, 0.05, 0.1, ..., 0.95.
        pred_key: key of the probabilities (C, \\*spatial), one channel per class of objects.
        label_key: stem of the keys of the boxes, ``<label_key>_bags``, ``_boxes`` and ``_box_labels``.
        has_boxes_key: key of the flag that tells items that have been searched for objects; absent counts as true.
        weights: what a box counts, ``"volume"`` (default) or ``"count"``, see
            :py:func:`~monai_labelfx.metrics.box_agreement`.
        min_size: components of fewer voxels are no objects. Use the same when you predict.
        connectivity: of the components, as for :py:func:`~monai_labelfx.ops.component_boxes`.
        mode: ``"per_image"`` (default): mean of the agreements of the images; an image without boxes scores 1 where
            nothing is predicted in it, else 0. ``"pooled"``: agreement of all boxes of all images together; take it
            where most images hold no object (slices), or predicting nothing scores high.

    Raises:
        ValueError: for candidates outside 0 to 1 and an unknown mode; for items without probabilities, or whose boxes
            do not fit them; as key metric, when no item had boxes. (As an additional metric it is left out, with a
            warning.)

    Edges:
        * Ties: often neighbouring candidates agree equally well. The middle of the longest such row is taken, of an
          even number the lower of the two in the middle.
        * Empty predictions: a candidate loses the share of images with boxes in which it predicts nothing, when the
          candidates are compared (the value itself does not). So an image with boxes never ends empty because other
          images gain a little by it, and a single image never at all if any candidate fills it.
        * Several ranks: sums are shared, all ranks get the same threshold. An image that the sampler gives to two ranks
          counts twice.
        * Bags are frames; of a frame that a transform has rotated, the box around it is taken, which is not tight.

    Example:
        >>> import torch
        >>> from ignite.engine import Engine
        >>> item = {
        ...     "pred": torch.tensor([[[0.9, 0.4, 0.4, 0.1]]]),
        ...     "label_boxes": torch.tensor([[0.0, 0.0, 1.0, 3.0]]),
        ...     "label_box_labels": torch.tensor([0]),
        ... }
        >>> evaluator, threshold = Engine(lambda engine, batch: batch), BoxThreshold()
        >>> BoxThresholdSearch(threshold, candidates=[0.05, 0.15, 0.25, 0.35, 0.45]).attach(evaluator, "box_iou")
        >>> metrics = evaluator.run([[item]]).metrics
        >>> metrics["box_iou"], threshold, round(metrics["box_iou_at_half"], 3)
        (1.0, BoxThreshold(0.25), 0.333)
    """

    def __init__(
        self,
        threshold: BoxThreshold,
        *,
        candidates: Sequence[float] = _GRID,
        pred_key: str = "pred",
        label_key: str = "label",
        has_boxes_key: str = "has_boxes",
        weights: str = "volume",
        min_size: int = 0,
        connectivity: int | None = None,
        mode: Literal["per_image", "pooled"] = "per_image",
    ) -> None:
        self.threshold = threshold
        self.candidates = sorted({float(value) for value in candidates})
        if not self.candidates or not 0 <= self.candidates[0] <= self.candidates[-1] <= 1:
            raise ValueError(f"candidates must be thresholds from 0 to 1, at least one, got {list(candidates)}.")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}.")
        self.pred_key = pred_key
        self.label_key = label_key
        self.has_boxes_key = has_boxes_key
        self.options: dict[str, Any] = {"weights": weights, "min_size": min_size, "connectivity": connectivity}
        self.mode = mode
        self.logger = logging.getLogger(__name__)
        self._tried = sorted({*self.candidates, 0.5})
        super().__init__()

    def reset(self) -> None:
        """Forget all images."""
        # rows: images, images with boxes; then for each threshold: scores, images left empty, matched, boxes
        self._sums = torch.zeros(6, len(self._tried), dtype=torch.float64)

    @torch.no_grad()
    def iteration_completed(self, engine: Engine) -> None:
        """Add the items of one iteration."""
        items = _together(engine.state.batch, engine.state.output)
        if isinstance(items, Mapping):
            stem = self.label_key
            parts = [f"{stem}_bags", f"{stem}_boxes", f"{stem}_box_labels"]
            items = _unbatched(items, [self.pred_key, *parts, self.has_boxes_key])
        for item in items:
            self.update(item)

    def update(self, output: Mapping[str, Any]) -> None:
        """Add one item."""
        found = self._boxes(output)
        if found is None:
            return
        if self.pred_key not in output:
            raise ValueError(f"an item has no {self.pred_key!r}, its keys are {sorted(map(str, output))}.")
        probabilities = torch.as_tensor(output[self.pred_key])
        if probabilities.numel() and not (probabilities.min() >= 0 and probabilities.max() <= 1):
            raise ValueError(
                f"{self.pred_key!r} must hold probabilities from 0 to 1, got {float(probabilities.min()):g} to "
                f"{float(probabilities.max()):g}; put a sigmoid into the postprocessing."
            )
        counts = box_agreement(probabilities, *found, thresholds=self._tried, **self.options)
        matched, given, predicted = counts.unbind(1)
        boxes = given + predicted
        scores = torch.where(boxes > 0, 2 * matched / boxes.clamp(min=_TINY), 1.0)
        empty = (given > 0) & (predicted == 0)
        self._sums += torch.stack([torch.ones_like(scores), (given > 0).double(), scores, empty, matched, boxes])

    def compute(self) -> float:
        """Set the threshold; return the agreement there, over all ranks."""
        sums = torch.as_tensor(idist.all_reduce(self._sums.to(idist.device()))).cpu()
        images, with_boxes, scores, empty, matched, boxes = sums.unbind(0)
        if images[0] == 0:
            raise ValueError(f"BoxThresholdSearch found no item with boxes under '{self.label_key}_boxes' or '_bags'.")
        if self.mode == "per_image":
            values = scores / images
        else:
            values = torch.where(boxes > 0, 2 * matched / boxes.clamp(min=_TINY), 1.0)
        among = [self._tried.index(value) for value in self.candidates]
        best = among[_middle_of_best((values - empty / with_boxes.clamp(min=1)).numpy()[among])]
        self.threshold.value = self._tried[best]
        self.threshold.images = int(images[0])
        self.threshold.score = float(values[best])
        self.threshold.score_at_half = float(values[self._tried.index(0.5)])
        return self.threshold.score

    def completed(self, engine: Engine, name: str) -> None:
        """Write the values of the pass, or leave them out when no item had boxes."""
        names = (name, f"{name}_at_half", f"{name}_threshold")
        try:
            self.compute()
        except ValueError as error:
            if name == getattr(engine.state, "key_metric_name", None):
                raise
            for one in names:
                engine.state.metrics.pop(one, None)
            warnings.warn(f"metric {name!r} is left out: {error}", stacklevel=2)
            return
        chosen = self.threshold
        engine.state.metrics.update(zip(names, (chosen.score, chosen.score_at_half, chosen.value), strict=True))
        self.logger.info(
            f"Threshold from the boxes of {chosen.images} images: {chosen.value:g} "
            f"(agreement {chosen.score:.4f}, at 0.5 {chosen.score_at_half:.4f})."
        )

    def _boxes(self, item: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Boxes and labels of an item, or ``None`` if nobody has looked at it."""
        flag = item.get(self.has_boxes_key)
        frames, boxes = item.get(f"{self.label_key}_bags"), item.get(f"{self.label_key}_boxes")
        if (flag is not None and not bool(torch.as_tensor(flag).all())) or (frames is None and boxes is None):
            return None
        labels = item.get(f"{self.label_key}_box_labels")
        if labels is None:
            raise ValueError(f"an item has boxes but no {self.label_key}_box_labels, the class channel of each.")
        if frames is not None:
            frames = torch.as_tensor(frames)
            corner, edges = frames[:, 0], frames[:, 1:]
            boxes = torch.cat([corner + edges.clamp(max=0).sum(1), corner + edges.clamp(min=0).sum(1)], dim=1)
        return torch.as_tensor(boxes), torch.as_tensor(labels)


def _middle_of_best(values: np.ndarray) -> int:
    """Index of the best value; of several equal ones the middle of the longest row, the lower of two."""
    best = np.flatnonzero(values >= values.max() - 1e-9)
    rows = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    longest = max(rows, key=len)
    return int(longest[(len(longest) - 1) // 2])
