# SPDX-License-Identifier: Apache-2.0
"""The threshold of a segmentation that was chosen with boxes, as an object that checkpoints can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class BoxThreshold:
    """Probability above which a voxel belongs to the object; :py:class:`BoxThresholdSearch` sets it.

    ``float(threshold)`` is the threshold at that moment, so one object given to the search, to whatever makes masks of
    probabilities and to the checkpoint handlers keeps them in step. Networks that learn from boxes need it: the loss
    fixes no level, and 0.5 can leave a small object without a voxel.

    Args:
        value: threshold, 0 to 1. Default 0.5.

    Attributes:
        value: the threshold.
        images: number of images that it was chosen on; 0 means that it is the given one.
        score: agreement with the boxes of these images, 0 to 1.
        score_at_half: their agreement at a threshold of 0.5.

    Raises:
        ValueError: if the threshold lies outside 0 to 1.

    Example:
        >>> threshold = BoxThreshold()
        >>> threshold.load_state_dict({"value": 0.35, "images": 4})
        >>> float(threshold), threshold.images
        (0.35, 4)
    """

    def __init__(self, value: float = 0.5) -> None:
        self.value = _share(value)
        self.images = 0
        self.score = 0.0
        self.score_at_half = 0.0

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        return f"BoxThreshold({self.value:g})"

    def state_dict(self) -> dict[str, float | int]:
        """The attributes as plain numbers, so that ``torch.load(weights_only=True)`` reads them."""
        return {name: getattr(self, name) for name in ("value", "images", "score", "score_at_half")}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the numbers over; those about the search may be missing."""
        if "value" not in state_dict:
            raise ValueError(f"the checkpoint's threshold must hold 'value', it holds {sorted(map(str, state_dict))}.")
        self.value = _share(state_dict["value"])
        self.images = int(state_dict.get("images", 0))
        self.score = float(state_dict.get("score", 0.0))
        self.score_at_half = float(state_dict.get("score_at_half", 0.0))


def _share(value: float) -> float:
    if not 0 <= float(value) <= 1:
        raise ValueError(f"value must lie between 0 and 1, got {value!r}.")
    return float(value)
