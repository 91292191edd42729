"""What parts are replaced with: means over reference prompts, and the prompts that donate to others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.causal.interventions import Part, Routed
from interp.data.tasks import Task
from interp.decoder.hooks import captured, watch
from interp.decoder.model import Model
from interp.errors import InputError

EXPERTS_WRITE = 2**25
"""Numbers at most that a layer's experts write in a pass, of which means are taken."""


class Means:
    """Means of parts over the prompts of a task, summed in float64; one pass, however many parts are asked for."""

    def __init__(self, model: Model, task: Task, parts: Iterable[Part], *, batch: int = 64):
        self.sums: dict[object, Tensor] = {}
        self.counts = torch.zeros(task.length, dtype=torch.double)
        self.name, self.dtype = task.name, model.dtype
        parts = list(parts)
        self.routed = _routed(model, task, {part.site for part in parts if isinstance(part, Routed)})
        one_each = list({part.shared: part for part in parts if not isinstance(part, Routed)}.values())
        sites = sorted({part.site for part in one_each})
        tokens = task.tokens("clean")
        for start in range(0, len(task) if one_each else 0, batch):
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

        Of an expert, either way, the mean over all tokens that are sent to it. InputError where no reference prompt is
        that long, or none of its tokens is sent to the expert.
        """
        if isinstance(part, Routed):
            total, count = (found[part.index] for found in self.routed[part.site])
            return (total / count).to(self.dtype).expand(length, -1)
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


def _routed(
    model: Model, task: Task, sites: Iterable[str]
) -> dict[str, tuple[Float[Tensor, "expert d_model"], Float[Tensor, " expert"]]]:
    """For each site `expert_out`: sums over the tokens that are sent to an expert, and how many they are."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    at_once = max(1, EXPERTS_WRITE // (task.length * model.d_model * max(model.mixtures.counts.values(), default=1)))
    for start in range(0, len(task) if sites else 0, at_once):
        rows = slice(start, start + at_once)
        reach = torch.arange(task.length) < task.lengths[rows, None]

        def add(site: str, reach: Tensor = reach) -> Callable[[Tensor], None]:
            def hook(value: Float[Tensor, "prompt pos expert d_model"]) -> None:
                value = value[reach.to(value.device)]
                new = value.double().sum(0), (value != 0).any(-1).double().sum(0)
                found[site] = tuple(map(torch.add, found[site], new)) if site in found else new

            return hook

        with torch.no_grad():
            watch(model, task.tokens("clean")[rows], {site: add(site) for site in sites})
    return found


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
