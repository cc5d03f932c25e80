# SPDX-License-Identifier: Apache-2.0
"""How well a classifier knows the labels of patches: a criterion that needs no mask."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.nn.functional import logsigmoid

from monai_labelfx.metrics._rows import RowMetric, check_reduction

_SCORES = ("log_likelihood", "average_precision", "balanced_accuracy")


class PatchLabelScore(RowMetric):
    """Agreement of logits with patch labels that may be unknown. Larger is better, whichever ``score``.

    A patch has a label for each class: 1 present, 0 absent, -1 unknown; unknown ones count nowhere. With the logit x:

    ``"log_likelihood"``
        mean of ``log sigmoid(x)`` over the labels 1 and ``log sigmoid(-x)`` over the labels 0, of all classes together;
        at most 0, and log 0.5 = -0.69 for a classifier that always says "perhaps". The negative of the training loss.
    ``"average_precision"``
        of each class, ``sum_n (R_n - R_(n-1)) P_n`` with precision P_n and recall R_n of the patches whose logit is at
        least the n-th largest different logit (equal logits enter together, so that their order does not matter), mean
        over the classes: mAP. It sees the ranking only.
    ``"balanced_accuracy"``
        of each class, the mean of the shares of right answers among present and among absent labels, where the answer
        is "present" for a logit above 0; mean over the classes. 0.5 by chance.

    The last two need both kinds of labels: classes that have one kind only are left out of the mean.

    ``metric(y_pred, y)`` takes logits and labels, batches (B, K) or lists of (K,), and returns the log likelihood of
    each label (B, K), NaN where it is unknown; ``get_buffer()`` gives the same for all patches. ``aggregate()`` gives
    the score, ``aggregate("mean_batch")`` that of each class (K,), NaN where it has none. They are those of all patches
    together, however these are spread over batches and processes.

    Args:
        classes: K.
        score: see above. Default ``"log_likelihood"``, which is defined as soon as one label is known.

    Raises:
        ValueError: when an argument is out of its range, logits are NaN or labels anything but 1, 0 and -1, or their
            shapes do not fit; in ``aggregate()``, when there is no score.

    Notes:
        The code of OEEM (Li et al., MICCAI 2022) chooses its classifier by the IoU of masks, which patch labels are
        meant to do without; the paper does not say how.

    Example:
        >>> metric = PatchLabelScore(2, "average_precision")
        >>> logits = torch.tensor([[2.0, 5.0], [1.0, 0.0], [-1.0, 0.0]])
        >>> likelihood = metric(logits, torch.tensor([[1, -1], [0, -1], [1, 1]]))
        >>> metric.aggregate("mean_batch")
        tensor([0.8333,    nan], dtype=torch.float64)
        >>> round(metric.aggregate().item(), 4)
        0.8333
    """

    def __init__(
        self,
        classes: int,
        score: Literal["log_likelihood", "average_precision", "balanced_accuracy"] = "log_likelihood",
    ) -> None:
        if classes < 1:
            raise ValueError(f"classes must be the number of classes, 1 or above, got {classes}.")
        if score not in _SCORES:
            raise ValueError(f"score must be one of {_SCORES}, got {score!r}.")
        super().__init__(columns=2 * classes)
        self.classes = classes
        self.score = score

    def defined(self) -> bool:
        """Whether ``aggregate()`` has a number to give; asks all processes."""
        return bool((~self._of_classes().isnan()).any())

    def aggregate(self, reduction: str = "mean") -> torch.Tensor:
        """The score over all patches since ``reset()``, of all processes.

        Args:
            reduction: ``"mean"`` for one number, ``"mean_batch"`` for one per class, (K,).

        Raises:
            ValueError: when no class has what the score needs, or ``reduction`` is unknown.
        """
        check_reduction(reduction)
        scores = self._of_classes()
        if scores.isnan().all():
            patches = len(self._gathered())
            needed = "a known label" if self.score == "log_likelihood" else "a class with present and absent labels"
            raise ValueError(f"{self.score} needs {needed}, but there is none in {patches} patches since reset().")
        if reduction == "mean_batch":
            return scores
        return self.get_buffer().nanmean() if self.score == "log_likelihood" else scores.nanmean()

    def _of_classes(self) -> torch.Tensor:
        """Score (K,) of each class, NaN where it has none."""
        rows = self._gathered()
        if self.score == "log_likelihood":
            return self._score(rows).nanmean(dim=0)
        score = _average_precision if self.score == "average_precision" else _balanced_accuracy
        pairs = zip(*(part.mT for part in rows.chunk(2, dim=1)), strict=True)
        return torch.stack([score(logits[labels >= 0], labels[labels >= 0] > 0) for logits, labels in pairs])

    def _compute_list(self, y_pred: Any, y: Any = None, **kwargs: Any) -> torch.Tensor:
        logits, labels = self._table(y_pred, "y_pred"), self._table(y, "y")
        if logits.shape != labels.shape:
            raise ValueError(f"y must hold labels for each of the {len(logits)} patches, got {len(labels)}.")
        if logits.isnan().any():
            raise ValueError("y_pred must hold logits, got NaN: has the training diverged?")
        if not ((labels == 1) | (labels == 0) | (labels == -1)).all():
            raise ValueError(
                "y must hold the labels 1 present, 0 absent and -1 unknown, got values from "
                f"{float(labels.min()):g} to {float(labels.max()):g}."
            )
        return torch.cat([logits, labels], dim=1)

    def _table(self, values: Any, name: str) -> torch.Tensor:
        """(B, K) float64 on the CPU of a batch or a list."""
        if isinstance(values, (list, tuple)) and values:
            values = torch.stack([torch.as_tensor(one).as_subclass(torch.Tensor) for one in values])
        if values is None or (len(values) and tuple(values.shape[1:]) != (self.classes,)):
            found = None if values is None else tuple(values.shape)
            raise ValueError(f"{name} must have the shape (B, {self.classes}), one number per class, got {found}.")
        plain = torch.as_tensor(values).detach().as_subclass(torch.Tensor)
        return plain.to("cpu", torch.float64).reshape(len(values), self.classes)

    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        logits, labels = rows.chunk(2, dim=1)
        return torch.where(labels < 0, torch.nan, logsigmoid(torch.where(labels > 0, logits, -logits)))


def _average_precision(logits: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Of logits (N,) and whether the class is present (N,); NaN without both kinds."""
    if present.all() or not present.any():
        return logits.new_tensor(torch.nan)
    logits, order = logits.sort(descending=True)
    last = torch.cat([logits[1:] != logits[:-1], torch.ones(1, dtype=torch.bool)])  # of each run of equal logits
    seen = 1 + last.nonzero()[:, 0]
    hits = present[order].cumsum(0)[last].to(logits.dtype)
    return (hits.diff(prepend=hits.new_zeros(1)) * hits / seen).sum() / hits[-1]


def _balanced_accuracy(logits: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Of logits (N,) and whether the class is present (N,); NaN without both kinds."""
    right = (logits > 0).to(logits.dtype)
    return (right[present].mean() + (1 - right[~present]).mean()) / 2  # the mean of nothing is NaN
