# SPDX-License-Identifier: Apache-2.0
"""The blender of BlendMask: coarse attention of each object decides which of a few fine maps its mask is made of."""

from __future__ import annotations

import torch

from monai_labelfx.ops._resize import resize_linear


def blend(attention: torch.Tensor, bases: torch.Tensor) -> torch.Tensor:
    r"""Mask logits of objects from their attention and their part of the bases (Chen et al. 2020, section 3.2).

    With the attention :math:`a^k` of the K bases, resized from M to R bins by linear interpolation, and the bases
    :math:`r^k` inside the box of the object,

    .. math:: m = \sum_k s^k \circ r^k, \quad s = \mathrm{softmax}_k(a)

    Args:
        attention: (P, K, \*M) logits of P objects, in any number of axes.
        bases: (P, K, \*R), any numbers.

    Returns:
        (P, \*R) logits, float32 or, where one of both is, float64. Gradients reach both.

    Raises:
        TypeError: if one of them is not floating point.
        ValueError: if their shapes do not fit each other.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.blend import blend
        >>> bases = torch.tensor([[[1.0, 1.0, 1.0, 1.0], [-3.0, -3.0, -3.0, -3.0]]])
        >>> blend(torch.tensor([[[90.0, 0.0], [0.0, 90.0]]]), bases).tolist()  # the first on the left, then the second
        [[1.0, 1.0, -3.0, -3.0]]
        >>> blend(torch.zeros(1, 2, 1), bases).tolist()
        [[-1.0, -1.0, -1.0, -1.0]]
    """
    if not (attention.is_floating_point() and bases.is_floating_point()):
        raise TypeError(f"attention and bases must be floating point, got {attention.dtype} and {bases.dtype}.")
    if attention.ndim != bases.ndim or attention.ndim < 3 or attention.shape[:2] != bases.shape[:2]:
        raise ValueError(
            f"attention must have shape (P, K, *M) and bases (P, K, *R) with as many axes, "
            f"got {tuple(attention.shape)} and {tuple(bases.shape)}."
        )
    kind = torch.promote_types(torch.promote_types(attention.dtype, bases.dtype), torch.float32)
    shares = resize_linear(attention.to(kind), bases.shape[2:]).softmax(dim=1)
    return (shares * bases.to(kind)).sum(dim=1)
