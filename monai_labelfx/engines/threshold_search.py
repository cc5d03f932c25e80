# SPDX-License-Identifier: Apache-2.0
"""Find the decoding thresholds in one pass over validation images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from monai_labelfx._atomic import replacing
from monai_labelfx.engines.instance_thresholds import InstanceThresholds
from monai_labelfx.metrics import InstanceAveragePrecision, SegScore
from monai_labelfx.ops import decode_instances

_GRID = tuple(float(value) for value in np.linspace(0.1, 0.95, 18).round(2))


class ThresholdSearch:
    """Handler for an evaluator that sets :py:class:`~monai_labelfx.engines.InstanceThresholds` from labelled images.

    The network runs once. The handler keeps the class probabilities of all labelled images of the pass, then decodes
    them at each candidate threshold and keeps the one with the best average precision and, separately, the one with
    the best SEG score, each averaged over images. (The paper's code runs the network anew for each of 19 thresholds.)

    It is a handler and not a metric, because its result is no score but two numbers that other parts use and that
    checkpoints hold. The scores at the new thresholds also go to ``evaluator.state.metrics``, as ``searched_ap`` and
    ``searched_seg``, where loggers find them; metrics attached to the same evaluator still saw the old thresholds.

    The evaluator decollates (its default), and its postprocessing must have made the probabilities
    (:py:class:`~monai_labelfx.transforms.SplitDenoiSegd`).

    Args:
        thresholds: the object to set.
        candidates: thresholds to try, within 0 to 1; by default 0.1, 0.15, ..., 0.95. The paper's code also tries 1,
            which always decodes to nothing.
        probabilities_key: key of the probabilities (3, \\*spatial): background, foreground, border.
        label_key: key of the reference instances (1, \\*spatial), 0 background.
        has_label_key: key of the flag that tells labelled items; without it, items with a label count as labelled.
        iou_thresholds: intersection over union from which an object counts as found, or several to average over; 0.5
            in the paper.
        decode: further keywords of :py:func:`~monai_labelfx.ops.decode_instances`; they must equal those of the
            decoding at inference.
        checkpoints: files to rewrite with the new thresholds, by rank 0, each under a temporary name and then renamed.
        checkpoint_key: the thresholds' key in these files.

    Raises:
        ValueError: for candidates outside 0 to 1; for an evaluator that does not decollate; for probabilities and
            labels that do not fit; for a checkpoint that is a bare state dict.
        FileNotFoundError: if a checkpoint does not exist.

    Edges:
        * Ties: several thresholds in a row often give the same score. Of all the best ones the middle one is taken, of
          an even number the lower of the two in the middle. (The paper's code takes the largest, the edge of the
          plateau.)
        * No labelled image: the thresholds stay, and one warning is logged. A labelled image without objects counts:
          it scores 1 at thresholds at which nothing is found in it, else 0.
        * Several ranks: each decodes its own images, the metrics gather the scores, and all ranks get the same
          thresholds, also a rank without labelled images. An image that the sampler gives to two ranks counts twice.

    Memory: probabilities wait in main memory as float16, 6 bytes per voxel of a labelled image, besides its label. The
    rounding is below 0.0005, far less than the distance of candidates.

    Example:
        >>> import torch
        >>> from ignite.engine import Engine
        >>> foreground = torch.tensor([0.9, 0.9, 0.3, 0.3, 0.9, 0.9])
        >>> probabilities = torch.stack([1 - foreground, foreground, torch.zeros(6)])[:, None]
        >>> label = torch.tensor([[[1, 1, 0, 0, 2, 2]]])
        >>> evaluator = Engine(lambda engine, batch: [{"pred_probabilities": probabilities, "label": label}])
        >>> thresholds = InstanceThresholds(ap=0.2)
        >>> ThresholdSearch(thresholds, candidates=[0.2, 0.4, 0.6, 0.8]).attach(evaluator)
        >>> evaluator.run([[{}]]).metrics["searched_ap"], thresholds  # 0.4, 0.6 and 0.8 are equally good
        (1.0, InstanceThresholds(ap=0.6, seg=0.6))
    """

    def __init__(
        self,
        thresholds: InstanceThresholds,
        *,
        candidates: Sequence[float] = _GRID,
        probabilities_key: str = "pred_probabilities",
        label_key: str = "label",
        has_label_key: str = "has_label",
        iou_thresholds: float | Sequence[float] = 0.5,
        decode: Mapping[str, Any] | None = None,
        checkpoints: str | Path | Sequence[str | Path] = (),
        checkpoint_key: str = "thresholds",
    ) -> None:
        self.thresholds = thresholds
        self.candidates = sorted({float(value) for value in candidates})
        if not self.candidates or not 0 <= self.candidates[0] <= self.candidates[-1] <= 1:
            raise ValueError(f"candidates must be thresholds from 0 to 1, at least one, got {list(candidates)}.")
        self.probabilities_key = probabilities_key
        self.label_key = label_key
        self.has_label_key = has_label_key
        self.iou_thresholds = iou_thresholds
        self.decode = dict(decode or {})
        self.checkpoints = [Path(p) for p in ([checkpoints] if isinstance(checkpoints, str | Path) else checkpoints)]
        self.checkpoint_key = checkpoint_key
        self.logger = logging.getLogger(__name__)
        self._cache: list[tuple[torch.Tensor, torch.Tensor]] = []

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        self.logger = getattr(engine, "logger", self.logger)
        engine.add_event_handler(Events.EPOCH_STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _forget(self, engine: Engine | None = None) -> None:
        self._cache = []

    def _keep(self, engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output
        if not isinstance(batch, list) or not isinstance(output, list):
            raise ValueError("ThresholdSearch needs an evaluator with decollate=True, whose output is a list of items.")
        for inputs, results in zip(batch, output, strict=True):
            item = {**inputs, **results}
            if self.probabilities_key not in item:
                raise ValueError(
                    f"the evaluator's items have no {self.probabilities_key!r}, they have {sorted(map(str, item))}; "
                    "put SplitDenoiSegd into its postprocessing."
                )
            if item.get(self.label_key) is None or not bool(item.get(self.has_label_key, True)):
                continue
            probabilities, label = _plain(item[self.probabilities_key]), _plain(item[self.label_key])
            if probabilities.shape[1:] != label.shape[1:]:
                raise ValueError(
                    f"{self.probabilities_key!r} of shape {tuple(probabilities.shape)} does not fit "
                    f"{self.label_key!r} of shape {tuple(label.shape)}."
                )
            self._cache.append((probabilities.to("cpu", torch.float16), label.cpu()))

    def __call__(self, engine: Engine) -> None:
        """Search over what the pass has left, set the thresholds, rewrite the checkpoints."""
        images, scores = self._scores()
        self._forget()
        if images == 0:
            self.logger.warning(
                f"ThresholdSearch found no labelled image and keeps the thresholds ap={self.thresholds.ap:g}, "
                f"seg={self.thresholds.seg:g}; give the evaluator items with {self.label_key!r}."
            )
            return
        self.thresholds.images = images
        for name, values in zip(("ap", "seg"), scores, strict=True):
            best = _middle_of_best(values)
            setattr(self.thresholds, name, self.candidates[best])
            setattr(self.thresholds, f"{name}_score", float(values[best]))
            engine.state.metrics[f"searched_{name}"] = float(values[best])
        self.logger.info(
            f"Thresholds from {images} labelled images: ap={self.thresholds.ap:g} (score "
            f"{self.thresholds.ap_score:.4f}), seg={self.thresholds.seg:g} (score {self.thresholds.seg_score:.4f})."
        )
        if idist.get_rank() == 0:
            for path in self.checkpoints:
                self._rewrite(path)

    def _scores(self) -> tuple[int, np.ndarray]:
        """Number of labelled images, and mean AP and SEG over them, (2, candidates); over all ranks."""
        metrics = [(InstanceAveragePrecision(self.iou_thresholds), SegScore()) for _ in self.candidates]
        for probabilities, label in self._cache:
            probabilities = probabilities.float()
            for threshold, pair in zip(self.candidates, metrics, strict=True):
                instances = decode_instances(probabilities, threshold, **self.decode)
                for metric in pair:
                    metric([instances], [label])
        images = len(metrics[0][0].get_buffer())
        if images == 0:
            return 0, np.empty((2, 0))
        return images, np.array([[float(metric.aggregate()) for metric in pair] for pair in metrics]).T

    def _rewrite(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"ThresholdSearch cannot write the thresholds into {path}: there is no such file.")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict) or any(isinstance(value, torch.Tensor) for value in checkpoint.values()):
            raise ValueError(
                f"{path} holds a bare state dict, which has no place for thresholds; "
                f"save a dictionary such as {{'model': network, {self.checkpoint_key!r}: thresholds}}."
            )
        checkpoint[self.checkpoint_key] = self.thresholds.state_dict()
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)


def _middle_of_best(values: np.ndarray) -> int:
    """Index of the best value; of several equal ones the middle one, the lower of two."""
    best = np.flatnonzero(values >= values.max() - 1e-9)
    return int(best[(len(best) - 1) // 2])


def _plain(value: Any) -> torch.Tensor:
    return (value.as_tensor() if isinstance(value, MetaTensor) else torch.as_tensor(value)).detach()
