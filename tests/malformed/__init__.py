# SPDX-License-Identifier: Apache-2.0
"""Inputs that readers meet in the wild: each is written at test time and must end in a sentence or a known result."""

from __future__ import annotations
