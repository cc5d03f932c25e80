# SPDX-License-Identifier: Apache-2.0
"""Allow-list MONAI's own enumerations for safe loading, so that a persistent cache can be read back."""

from __future__ import annotations

import torch
from monai.utils import LazyAttr, MetaKeys, SpaceKeys, TraceKeys, TraceStatusKeys

__all__ = ["allow_safe_globals"]


def allow_safe_globals() -> None:
    """Let ``torch.load(weights_only=True)`` read the enumerations that MONAI writes into the meta of images.

    MONAI 1.6.1 writes a cached item of ``PersistentDataset(track_meta=True)`` with ``TraceKeys`` members inside and
    refuses them when it loads the item, so that every access recomputes. Call this once per process (the command line
    and our bundles do), and put :py:class:`monai_labelfx.transforms.SanitizeMetad` last before the first random
    transform. Five enumerations of plain strings are added: nothing that can run code.

    Notes:
        The list belongs to a process. Worker processes that are forked inherit it; spawned workers need their own call,
        and without it recompute the item (slower, never wrong).

    Example:
        >>> import torch
        >>> from monai.utils import TraceKeys
        >>> allow_safe_globals()
        >>> TraceKeys in torch.serialization.get_safe_globals()
        True
    """
    torch.serialization.add_safe_globals([TraceKeys, TraceStatusKeys, LazyAttr, SpaceKeys, MetaKeys])
