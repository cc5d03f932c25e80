# SPDX-License-Identifier: Apache-2.0
"""MONAI parts, engines and bundles for learning from few, weak or no labels, in 2-D and 3-D."""

from __future__ import annotations

from monai_labelfx._version import __version__

__all__ = ["__version__"]
