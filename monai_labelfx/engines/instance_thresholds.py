# SPDX-License-Identifier: Apache-2.0
"""The two thresholds of instance decoding, as an object that checkpoints can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class InstanceThresholds:
    """Foreground thresholds that :py:class:`~monai_labelfx.engines.ThresholdSearch` sets and decoding reads.

    ``float(thresholds)`` is the AP threshold at that moment and ``float(thresholds.for_seg)`` that of SEG, so one
    object given to ``BorderClassesToInstancesd(threshold=...)``, to the search and to the checkpoint handlers keeps
    the three in step.

    Args:
        ap: threshold that maximises average precision, 0 to 1.
        seg: threshold that maximises the SEG score, 0 to 1.

    Attributes:
        images: number of images that the thresholds were searched on; 0 means that they are the given ones.
        ap_score: average precision reached on these images with ``ap``.
        seg_score: SEG score reached on these images with ``seg``.

    Raises:
        ValueError: if a threshold lies outside 0 to 1.

    Example:
        >>> thresholds = InstanceThresholds(ap=0.4)
        >>> float(thresholds), thresholds.seg, thresholds.state_dict()["images"]
        (0.4, 0.5, 0)
        >>> seg = thresholds.for_seg
        >>> thresholds.load_state_dict({"ap": 0.3, "seg": 0.7})
        >>> float(thresholds), float(seg)
        (0.3, 0.7)
    """

    def __init__(self, ap: float = 0.5, seg: float = 0.5) -> None:
        self.ap, self.seg = _share("ap", ap), _share("seg", seg)
        self.images = 0
        self.ap_score = 0.0
        self.seg_score = 0.0

    def __float__(self) -> float:
        return self.ap

    @property
    def for_seg(self) -> SegThreshold:
        """A number that always equals the SEG threshold, for a second decoding with it."""
        return SegThreshold(self)

    def __repr__(self) -> str:
        return f"InstanceThresholds(ap={self.ap:g}, seg={self.seg:g})"

    def state_dict(self) -> dict[str, float | int]:
        """The attributes as plain numbers, so that ``torch.load(weights_only=True)`` reads them."""
        return {name: getattr(self, name) for name in ("ap", "seg", "images", "ap_score", "seg_score")}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the numbers over; those about the search may be missing."""
        missing = {"ap", "seg"} - set(state_dict)
        if missing:
            raise ValueError(f"the checkpoint's thresholds must hold 'ap' and 'seg', they hold {sorted(state_dict)}.")
        self.ap, self.seg = _share("ap", state_dict["ap"]), _share("seg", state_dict["seg"])
        self.images = int(state_dict.get("images", 0))
        self.ap_score = float(state_dict.get("ap_score", 0.0))
        self.seg_score = float(state_dict.get("seg_score", 0.0))


class SegThreshold:
    """The SEG threshold of an :py:class:`InstanceThresholds` as something with a ``float``, read when it is asked.

    Args:
        thresholds: where to read it.
    """

    def __init__(self, thresholds: InstanceThresholds) -> None:
        self._thresholds = thresholds

    def __float__(self) -> float:
        return self._thresholds.seg


def _share(name: str, value: float) -> float:
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value!r}.")
    return float(value)
