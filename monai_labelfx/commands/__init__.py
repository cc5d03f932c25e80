# SPDX-License-Identifier: Apache-2.0
"""The sub-commands of ``labelfx``, one file each."""

from __future__ import annotations

__all__: list[str] = []
