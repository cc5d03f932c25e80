# SPDX-License-Identifier: Apache-2.0
"""What the patch labels of a training say, told before it starts."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch

from monai_labelfx.engines._json import write_json
from monai_labelfx.ops.patch_label_statistics import patch_label_statistics
from monai_labelfx.transforms.patch_table import class_names

__all__ = ["PatchLabelReport"]


class PatchLabelReport:
    """Go once over the items of a classifier and report what their patch labels can teach, or why they cannot.

    Calling it returns the report, writes it as ``patch_labels.json`` and logs one line; put the call among the steps of
    a configuration that come before ``trainer.run()``. The report is that of
    :py:func:`~monai_labelfx.ops.patch_label_statistics`, and

    - ``classes``: their names, in the order of its lists; ``images``: how many there are;
    - ``pixels``: voxels of all images, the labels that a mask would have;
    - ``pixels_per_label``: voxels for each label that somebody ticked, the annotation that patches save. Labels made
      from masks have saved nothing yet: the number says what ticking would.

    Where the labels say next to nothing, a warning tells so: a class whose entropy is below ``low_entropy`` looks the
    same in nearly all patches, usually because these are so large that they hold everything.

    Args:
        data: items, or a dataset of them, with images and patch labels, or with what ``transform`` makes these from.
        transform: applied to each item. Default ``None``: the items are ready, as those of a ``CacheDataset``.
        output_dir: folder of the file. Default ``None``: write none.
        classes: names of the classes with the background, or their number. Default 2.
        low_entropy: bits, 0 to 1, below which a class earns a warning. Default 0.3, the entropy of a class that is
            present in 19 of 20 patches, or in 1 of 20.
        include_background: whether class 0 has to be found too. Default ``True``; ``False`` for foreground scores,
            where it is a dummy: it may lack every label, and earns no warning.
        labels_key: the labels (N, K) of an item. Default "patch_labels".
        image_key: the image (C, \\*spatial), whose voxels are counted. Default "image".
        filename: name of the file.

    Raises:
        KeyError: in the call, when an item has no labels or no image.
        ValueError: for an option out of its range; in the call, without items, for labels of another number of classes,
            when no label is known, and when a class is never present: no training can find it.

    Example:
        >>> items = [{"image": torch.zeros(3, 8, 8), "patch_labels": torch.tensor([[1, 0], [1, 1]])}]
        >>> report = PatchLabelReport(items, classes=["stroma", "gland"], low_entropy=0)()
        >>> report["entropy"], report["pixels_per_label"]
        ([0.0, 1.0], 16.0)
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any] | None = None,
        output_dir: str | Path | None = None,
        *,
        classes: int | Sequence[str] = 2,
        low_entropy: float = 0.3,
        include_background: bool = True,
        labels_key: str = "patch_labels",
        image_key: str = "image",
        filename: str = "patch_labels.json",
    ) -> None:
        if not 0 <= low_entropy <= 1:
            raise ValueError(f"low_entropy must be from 0 to 1 bit, got {low_entropy}.")
        self.data = data
        self.transform = transform
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.names = class_names(classes)
        self.low_entropy = low_entropy
        self.first = 0 if include_background else 1  # class that has to be found
        self.labels_key, self.image_key = labels_key, image_key
        self.filename = filename

    def __call__(self) -> dict[str, Any]:
        """Read all items, check, write, log; every process reads, and rank 0 writes and logs."""
        labels, pixels = [], 0
        for number in range(len(self.data)):
            item = self.data[number] if self.transform is None else self.transform(self.data[number])
            for key in (self.labels_key, self.image_key):
                if key not in item:
                    raise KeyError(f"PatchLabelReport: item {number} has no {key!r}; keys {sorted(map(str, item))}")
            labels.append(self._labels(item[self.labels_key], number))
            pixels += math.prod(item[self.image_key].shape[1:])
        if not labels:
            raise ValueError("there is no image to train a classifier on: the datalist is empty.")
        report = {"classes": self.names, "images": len(labels), **patch_label_statistics(torch.cat(labels))}
        self._check(report)
        report |= {"pixels": pixels, "pixels_per_label": pixels / report["label_bits"]}
        if idist.get_rank() == 0:
            self._tell(report)
            if self.output_dir is not None:
                write_json(self.output_dir / self.filename, report)
        return report

    def _labels(self, found: Any, number: int) -> torch.Tensor:
        labels = torch.as_tensor(found).as_subclass(torch.Tensor).cpu()
        if labels.ndim != 2 or labels.shape[1] != len(self.names):
            raise ValueError(
                f"patch labels of item {number} must be (N, {len(self.names)}), one column per class, got shape "
                f"{tuple(labels.shape)}."
            )
        return labels

    def _check(self, report: Mapping[str, Any]) -> None:
        if not report["label_bits"]:
            raise ValueError(
                f"none of {report['patches']} patches of {report['images']} images has a known label: tick some, or "
                "take thresholds that leave less unknown."
            )
        counts = list(zip(self.names, report["present"], strict=True))[self.first :]
        never = [name for name, count in counts if not count]
        if never:
            raise ValueError(
                f"{', '.join(map(repr, never))} is never present in {report['patches']} patches of {report['images']} "
                "images, so no training can find it: check the order of the classes, or take it out of them."
            )

    def _tell(self, report: Mapping[str, Any]) -> None:
        logger = logging.getLogger(__name__)
        told = [
            f"{name} {100 * present / max(present + absent, 1):.0f} % present, {bits:.2f} bit"
            for name, present, absent, bits in zip(
                self.names, report["present"], report["absent"], report["entropy"], strict=True
            )
        ]
        logger.info(
            "Patch labels: %d patches of %d images, %d labels for %d voxels; %s; %.0f %% hold several classes",
            report["patches"],
            report["images"],
            report["label_bits"],
            report["pixels"],
            "; ".join(told),
            100 * report["several_classes"],
        )
        low = [
            f"{name} ({bits:.2f} bit)"
            for name, bits in list(zip(self.names, report["entropy"], strict=True))[self.first :]
            if bits < self.low_entropy
        ]
        if low:
            logger.warning(
                "Patch labels say next to nothing about %s: nearly all patches have the same label. Take smaller "
                "patches, other thresholds, or more images.",
                ", ".join(low),
            )
