# SPDX-License-Identifier: Apache-2.0
"""Equal networks in all processes, for trainers whose forward passes DistributedDataParallel cannot follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of processes; 1 where ``torch.distributed`` is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def broadcast_networks(networks: Iterable[torch.nn.Module]) -> None:
    """Give all processes the parameters and buffers of rank 0."""
    if world_size() == 1:
        return
    for network in networks:
        for tensor in (*network.parameters(), *network.buffers()):
            sent = tensor.detach().contiguous()  # a copy only where backends could not send it
            dist.broadcast(sent.view(torch.uint8) if sent.dtype == torch.bool else sent, src=0)
            tensor.copy_(sent)


@torch.no_grad()
def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace gradients by their means over all processes, as of one process with all batches of equal size.

    A parameter without gradient counts as one with gradient 0, unless it has none in any process: then it stays
    without, so that optimisers pass it over everywhere.
    """
    ranks = world_size()
    if ranks == 1 or not parameters:
        return
    found = torch.tensor([float(one.grad is not None) for one in parameters], device=parameters[0].device)
    dist.all_reduce(found)
    sharing = [one for one, count in zip(parameters, found.tolist(), strict=True) if count]
    for dtype in dict.fromkeys(one.dtype for one in sharing):
        own = [one for one in sharing if one.dtype == dtype]
        parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in own]
        flat = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(flat)
        flat /= ranks
        for one, part, mean in zip(own, parts, flat.split([part.numel() for part in parts]), strict=True):
            one.grad = part.copy_(mean.view_as(part))


def true_everywhere(flag: torch.Tensor) -> bool:
    """Whether a flag is true in all processes."""
    if world_size() == 1:
        return bool(flag)
    count = flag.float()
    dist.all_reduce(count, op=dist.ReduceOp.MIN)
    return bool(count)
