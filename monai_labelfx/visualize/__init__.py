# SPDX-License-Identifier: Apache-2.0
"""Pictures: overlays, curves and overview pages."""

from __future__ import annotations

from monai_labelfx.visualize.draw_detections import draw_detections
from monai_labelfx.visualize.overview_page import overview_page, save_overview
from monai_labelfx.visualize.svg_curves import svg_curves

__all__ = ["draw_detections", "overview_page", "save_overview", "svg_curves"]
