"""What parts are replaced with: means over reference prompts, and the prompts that donate to others."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.causal.interventions import Part
from interp.data.tasks import Task
from interp.decoder.hooks import captured
from interp.decoder.loading import Model
from interp.errors import InputError


class Means:
    """Means of parts over the prompts of a task, summed in float64; one pass, however many parts are asked for."""

    def __init__(self, model: Model, task: Task, parts: Iterable[Part], *, batch: int = 64):
        self.sums: dict[object, Tensor] = {}
        self.counts = torch.zeros(task.length, dtype=torch.double)
        self.name, self.dtype = task.name, model.dtype
        one_each = list({part.shared: part for part in parts}.values())
        sites = sorted({part.site for part in one_each})
        tokens = task.tokens("clean")
        for start in range(0, len(task), batch):
            rows = slice(start, start + batch)
            reach = torch.arange(task.length) < task.lengths[rows, None]
            self.counts += reach.sum(0)
            with torch.no_grad(), captured(model, sites) as cache:
                model(tokens[rows])
            for part in one_each:
                value = part.source(cache[part.site]).double()
                weight = reach.to(value.device).reshape(*reach.shape, *[1] * (value.ndim - 2))
                total = (value * weight).sum(0)
                self.sums[part.shared] = self.sums.get(part.shared, 0) + total

    def of(self, part: Part, length: int, *, by_position: bool) -> Float[Tensor, "pos ..."]:
        """The mean of a part at each of `length` positions; without `by_position` over all positions, the same at each.

        InputError where no reference prompt is that long.
        """
        total = self.sums[part.shared]
        if by_position and len(self.counts) < length:
            raise InputError(
                f'the reference prompts "{self.name}" have at most {len(self.counts)} tokens, the task\'s {length}: '
                "give longer ones, or use the method mean-all."
            )
        if by_position:
            count = self.counts.clamp(min=1).to(total.device)[:length]
            mean = total[:length] / count.reshape(-1, *[1] * (total.ndim - 1))
        else:
            mean = (total.sum(0) / self.counts.sum().to(total.device)).expand(length, *total.shape[1:])
        return part.pick(mean.to(self.dtype))


def shuffled(task: Task, seed: int) -> Int[Tensor, "prompt pos"]:
    """The clean prompts, each in the place of another of its length. InputError where a prompt is the only one of its
    length."""
    generator = torch.Generator().manual_seed(seed)
    donors = torch.arange(len(task))
    for length in task.lengths.unique():
        mine = (task.lengths == length).nonzero()[:, 0]
        if len(mine) < 2:
            raise InputError(
                f'one prompt of "{task.name}" is the only one of {int(length)} tokens: shuffle needs two of each '
                "length; use mean or resample."
            )
        order = mine[torch.randperm(len(mine), generator=generator)]
        donors[order] = order.roll(1)  # a cycle: nobody donates to itself
    return task.tokens("clean")[donors]
