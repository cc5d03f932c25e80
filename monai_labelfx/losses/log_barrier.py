# SPDX-License-Identifier: Apache-2.0
"""The log-barrier extension: inequality constraints as a penalty that needs no feasible start."""

from __future__ import annotations

import math

import torch


def log_barrier_extension(z: torch.Tensor, t: float) -> torch.Tensor:
    r"""Penalty for the constraint :math:`z \le 0` (Kervadec et al. 2019, extended log-barriers).

    .. math::
        \psi_t(z) = \begin{cases} -\frac{1}{t} \log(-z) & z \le -1 / t^2 \\
                                  t z - \frac{1}{t} \log \frac{1}{t^2} + \frac{1}{t} & \text{otherwise} \end{cases}

    The second line is the tangent of the first where they meet: value and slope t are continuous, and a violated
    constraint costs in proportion. With growing t the penalty tends to the hard constraint.

    Args:
        z: constraints, any shape, floating point.
        t: above 0. The paper starts at 5 and multiplies by 1.1 after each epoch, see
            :py:class:`~monai_labelfx.engines.LogBarrierSchedule`.

    Returns:
        Penalties of the shape of ``z``, below 0 where z is below -1. Half precision is computed in float32. Value and
        gradient are finite for every finite z as long as t times z is.

    Raises:
        ValueError: if ``t`` is not above 0 and finite.
        TypeError: if ``z`` is not a tensor of floating-point numbers.

    Example:
        >>> import torch
        >>> log_barrier_extension(torch.tensor([-1.0, 0.0, 2.0]), t=1.0)
        tensor([-0., 1., 3.])
    """
    if not isinstance(z, torch.Tensor) or not z.is_floating_point():
        found = z.dtype if isinstance(z, torch.Tensor) else type(z).__name__
        raise TypeError(f"z must be a tensor of floating-point numbers, got {found}.")
    t = float(t)
    if not 0 < t < math.inf:
        raise ValueError(f"t must be above 0 and finite, got {t}.")
    z = z if z.dtype == torch.float64 else z.float()
    junction = max(1 / t / t, torch.finfo(z.dtype).tiny)  # so that no logarithm of 0 is taken where t is huge
    barrier = -(-z.clamp(max=-junction)).log() / t
    return torch.where(z <= -junction, barrier, t * (z + junction) - math.log(junction) / t)
