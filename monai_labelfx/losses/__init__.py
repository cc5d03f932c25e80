# SPDX-License-Identifier: Apache-2.0
"""Losses on logits: a function first, a module as its shell."""

from __future__ import annotations

from monai_labelfx.losses.denoiseg import DenoiSegLoss, denoiseg_loss, denoiseg_loss_terms

__all__ = ["DenoiSegLoss", "denoiseg_loss", "denoiseg_loss_terms"]
