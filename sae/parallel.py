"""Several processes, one dictionary: data-parallel training under `torchrun`.

    torchrun --nproc-per-node 4 -m interp.cli sae train --store demo --site 2.resid_post --out demo

Each rank reads rows of its own and takes an equal part of every batch; gradients, counts and what a loss needs of the
whole batch are summed over the ranks (gloo on CPUs, nccl on GPUs), so that all hold the same weights after every step
and they are those of one process with the whole batch. Without torchrun there is one rank, and nothing is sent.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many ranks there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """The ranks can send to each other inside the block; a group that is there already is used and left."""
    own = world() > 1 and not dist.is_initialized()
    if own:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        wait()
    finally:
        if own:
            dist.destroy_process_group()


def wait() -> None:
    """Until all ranks are here."""
    if world() > 1:
        dist.barrier()


def total(tensor: Tensor) -> Tensor:
    """The sum over the ranks; no gradient."""
    if world() == 1:
        return tensor.detach()
    tensor = tensor.detach().clone()
    dist.all_reduce(tensor)
    return tensor


def mean(tensor: Tensor) -> Tensor:
    """The mean over the ranks; no gradient."""
    return total(tensor) / world()


def least(tensor: Tensor) -> Tensor:
    """The smallest over the ranks."""
    if world() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return tensor


def gathered(tensor: Tensor) -> list[Tensor]:
    """What each rank has, in their order; the lengths may differ."""
    if world() == 1:
        return [tensor]
    length = torch.tensor([len(tensor)], device=tensor.device)
    lengths = [torch.zeros_like(length) for _ in range(world())]
    dist.all_gather(lengths, length)
    padded = tensor.new_zeros(int(max(lengths)), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    found = [torch.empty_like(padded) for _ in range(world())]
    dist.all_gather(found, padded)
    return [part[: int(n)] for part, n in zip(found, lengths, strict=True)]


def average_gradients(weights: Iterable[Tensor]) -> None:
    """Each weight's gradient, in place, the mean of the ranks'."""
    if world() == 1:
        return
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        dist.all_reduce(weight.grad)
        weight.grad /= world()
