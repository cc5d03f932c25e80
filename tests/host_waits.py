# SPDX-License-Identifier: Apache-2.0
"""Counts what makes the host wait for the device, without a device."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class HostWaits(TorchDispatchMode):
    """Names in ``found`` the operators called inside it that read values of tensors on the host."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        lists = [argument for argument in args if isinstance(argument, list | tuple)]
        by_mask = any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for given in lists for i in given)
        if name.startswith(self.NAMES) or (name.startswith("index") and by_mask):
            self.found.append(name)
        return func(*args, **(kwargs or {}))
