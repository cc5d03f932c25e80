# SPDX-License-Identifier: Apache-2.0
"""MONAI bundles, one folder each, found by name."""

from __future__ import annotations

__all__: list[str] = []
