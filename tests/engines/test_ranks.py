# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket

import ignite.distributed as idist
import pytest
import torch

from monai_labelfx.engines._ranks import average_gradients, broadcast_networks, true_everywhere, world_size


class Mixed(torch.nn.Module):
    """Parameters and buffers of several types and layouts."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t() + 100 * rank)  # not contiguous
        self.fine = torch.nn.Parameter(torch.full((2,), 0.1 + rank, dtype=torch.float64))
        self.idle = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("count", torch.tensor(7 + rank))
        self.register_buffer("flag", torch.tensor([rank == 0, True]))
        self.register_buffer("empty", torch.zeros(0))


def test_one_process_changes_nothing():
    network = Mixed(1)
    network.weight.grad = torch.ones(3, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    broadcast_networks([network])
    average_gradients(list(network.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(network.weight.grad, torch.ones(3, 2)) and network.fine.grad is None
    assert world_size() == 1 and true_everywhere(torch.tensor(True)) and not true_everywhere(torch.tensor(False))


def _check_in(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
    torch.set_num_threads(1)
    with idist.Parallel(backend="gloo"):
        network, expected = Mixed(rank), Mixed(0)
        broadcast_networks([network])
        for name, value in network.state_dict().items():
            assert torch.equal(value, expected.state_dict()[name]), name
        network.weight.grad = torch.full((2, 3), float(rank)).t()
        if rank == 1:
            network.fine.grad = torch.tensor([1.0, 3.0], dtype=torch.float64)
        average_gradients(list(network.parameters()))
        assert torch.equal(network.weight.grad, torch.full((3, 2), 0.5))
        assert network.fine.grad.tolist() == [0.5, 1.5], "no gradient counts as 0"
        assert network.idle.grad is None, "without one in all processes there is none"
        average_gradients([])
        assert world_size() == 2 and true_everywhere(torch.tensor(True))
        assert not true_everywhere(torch.tensor(rank == 0)) and not true_everywhere(torch.tensor(False))


@pytest.mark.slow
def test_two_processes():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_check_in, args=(port,), nprocs=2)
