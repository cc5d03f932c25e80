# SPDX-License-Identifier: Apache-2.0
"""Adapters from public data set layouts to MONAI datalists; one file each, found by name."""

from __future__ import annotations

__all__: list[str] = []
