# SPDX-License-Identifier: Apache-2.0
"""Metrics, as MONAI's cumulative iteration metrics."""

from __future__ import annotations

__all__: list[str] = []
