# SPDX-License-Identifier: Apache-2.0
"""Tensors as numpy arrays, for what is planned on the CPU."""

from __future__ import annotations

import numpy as np
import torch


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """The values on the CPU, without gradient; the same memory where that is possible. Bfloat16 becomes float32.

    Example:
        >>> as_array(torch.tensor([1.0, 2.0], requires_grad=True)).tolist()
        [1.0, 2.0]
    """
    tensor = tensor.as_subclass(torch.Tensor) if type(tensor) is not torch.Tensor else tensor
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    # a plain tensor needs no call of torch at all, and a step of the box loss would make dozens
    return tensor.numpy() if tensor.device.type == "cpu" and not tensor.requires_grad else tensor.numpy(force=True)
