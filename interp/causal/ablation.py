"""ablate(): which components does the behaviour need? Each is replaced alone, and the metric measured again."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.causal import references, sweeps
from interp.causal.effects import Effects, about, build
from interp.causal.finished import Finished
from interp.causal.interventions import (
    OF_EXPERTS,
    Intervention,
    Part,
    Write,
    latents_of,
    named,
    of_expert,
    split_method,
)
from interp.data import metrics as scores
from interp.data.tasks import Task
from interp.decoder.model import Model
from interp.decoder.sites import Component, Group
from interp.decoder.sites import components as select
from interp.errors import InputError, UnknownSite, nearest
from interp.progress import Progress

N_RANDOM = 10
"""Random groups drawn for each group, of its size and kinds."""


def as_list(value: str | int | Sequence) -> list:
    """`"a, b"` as `["a", "b"]`; a list as it is."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)


def part_of(rows: list, i: int, n: int) -> list:
    """The `i`-th of `n` parts of the rows, i from 1. InputError where it has none."""
    if not 1 <= i <= n:
        raise InputError(f"shard {i}/{n} given: i goes from 1 to n.")
    mine = rows[len(rows) * (i - 1) // n : len(rows) * i // n]
    if not mine:
        raise InputError(f"shard {i}/{n} has no row: there are {len(rows)}.")
    return mine


@dataclass(frozen=True)
class Plan:
    """What `ablate` will do: `targets` at `positions` ("all", an index or a label), by each of `methods`."""

    targets: list[Component | Group]
    positions: list[str]
    methods: list[str]
    metrics: list[str]
    places: list[tuple[int, str]]
    """(number of the target, position), a row each."""

    def shard(self, i: int, n: int) -> Plan:
        """The `i`-th of `n` parts of the rows, i from 1."""
        return replace(self, places=part_of(self.places, i, n))

    def cost(self, n_layers: int) -> tuple[int, float]:
        """Passes that a loop over the rows makes of all prompts, and what the sweep makes of them: a row that starts at
        layer l costs the blocks from l on."""
        starts = [min(c.layer for c in self.targets[target].members) for target, _ in self.places]
        passes = len(self.methods) * len(starts)
        return passes, len(self.methods) * sum((n_layers - max(start, 0)) / n_layers for start in starts)


def plan(
    model: Model,
    task: Task,
    *,
    components: str | Sequence[str | Sequence[str]] = "heads",
    method: str | Sequence[str] = "mean",
    metric: str | Sequence[str] | None = None,
    position: str | int | Sequence[str | int] = "all",
    dictionaries: Mapping[str, Any] | None = None,
    directions: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Plan:
    """Everything that `ablate` will measure, checked; nothing is run. InputError for what cannot be."""
    targets = select(
        components, **model.counts, dictionaries=latents_of(dictionaries or {}), directions=directions or {},
    )  # fmt: skip
    for target in targets:
        for member in target.members:
            if member.site not in model.sites:
                near = nearest(
                    member.name, [f"L{member.layer}.mlp", f"L{member.layer}.attn", f"L{member.layer}.resid_pre"]
                )
                raise UnknownSite(
                    f'"{model.name}" has no {member.site} for component "{member.name}". Nearest: {near}.'
                )
    methods, metrics = as_list(method), as_list(metric or task.default_metric)
    for name in methods:
        base, held = split_method(name)
        if base == "resample" and not task.has_corrupted:
            raise InputError(f'task "{task.name}" has prompts without "corrupted": use shuffle or mean, not resample.')
        if base == "resample":
            task.tokens("corrupted")  # InputError where the two prompts of a pair differ in length
        if "pattern" in held and not any(site.endswith("hook_pattern") for site in model.sites):
            raise InputError(f'attention patterns of "{model.name}" cannot be held: use {base}-frozen-ln.')
    scores.check(metrics, has_wrong=task.has_wrong, task=task.name)
    if task.length > model.n_ctx:
        raise InputError(f'prompts of {task.length} tokens: "{model.name}" reads at most {model.n_ctx}.')
    asked = [position] if isinstance(position, int) else as_list(position)
    positions = [str(place) for place in (task.labels if asked == ["each"] and not task.same_length else asked)]
    if asked == ["each"]:
        positions = [str(at) for at in range(task.length)] if task.same_length else positions
        if not positions:
            raise InputError(f'prompts of "{task.name}" differ in length and have no labels: name the positions.')
    for place in positions:
        if place != "all":
            task.at(place)
    targets += _random_groups(model, targets, seed)
    for name in methods:
        _check_experts(model, targets, split_method(name)[0])
    places = [(number, place) for place in positions for number in range(len(targets))]
    return Plan(targets, positions, methods, metrics, places)


def _check_experts(model: Model, targets: Sequence[Component | Group], method: str) -> None:
    """InputError where a method of experts is asked of another component, or of a router that cannot be edited."""
    for target, member in ((t, m) for t in targets for m in t.members if method in OF_EXPERTS):
        if member.kind != "expert":
            raise InputError(f'method {method} given for "{member.name}": it is of experts, e.g. components experts.')
        if of_expert(member, method).site not in model.sites:
            raise InputError(f'the router of "{model.name}" cannot be edited: use zero, mean or force, not {method}.')
        together = sum(other.layer == member.layer for other in target.members)
        if method == "forbid" and together == model.mixtures[member.layer].n:
            raise InputError(f'"{target.name}" forbids every expert of layer {member.layer}: leave one.')


def _random_groups(model: Model, targets: Sequence[Component | Group], seed: int) -> list[Group]:
    """For each group N_RANDOM others with as many heads, MLPs, ... drawn from all that the model has."""
    rng, found = random.Random(seed), []
    for group in targets:
        if not isinstance(group, Group):
            continue
        for draw in range(N_RANDOM):
            members = []
            for kind in dict.fromkeys(c.kind for c in group.members):
                n = sum(c.kind == kind for c in group.members)
                pool = _all_of(model, kind) or [c for c in group.members if c.kind == kind]
                members += rng.sample(pool, n)
            found.append(Group(f"random {draw} for {group.name}", tuple(members), kind="random"))
    return found


def _all_of(model: Model, kind: str) -> list[Component]:
    """All components of a kind, of which a random group is drawn; none for those that are not counted by layer."""
    counts = {"head": model.n_heads, "neuron": model.d_mlp or 0}
    if kind in counts:
        return [Component(kind, layer, index) for layer in range(model.n_layers) for index in range(counts[kind])]
    if kind == "expert":
        return [Component(kind, layer, index) for layer, n in model.mixtures.counts.items() for index in range(n)]
    return [Component(kind, layer) for layer in range(model.n_layers)] if kind in ("attn", "mlp") else []


def ablate(
    model: Model,
    task: Task,
    *,
    components: str | Sequence[str | Sequence[str]] = "heads",
    method: str | Sequence[str] = "mean",
    metric: str | Sequence[str] | None = None,
    position: str | int | Sequence[str | int] = "all",
    reference: Task | None = None,
    dictionaries: Mapping[str, Any] | None = None,
    directions: Mapping[str, Tensor] | None = None,
    classes: Mapping[str, Bool[Tensor, " read"]] | None = None,
    seed: int = 0,
    progress: bool = False,
    shard: tuple[int, int] | None = None,
    finished: Finished | None = None,
) -> Effects:
    """The effect of replacing each component alone: ablated minus clean, in the metric's unit.

    A negative effect on logit_diff means that the component helped. `components`: "heads", "mlps", "attn", "neurons",
    "experts", "resid_pre", names such as `L3H5`, groups `L3H5+L4H1`, all but some `heads-L3H5`, latents `demo/417` of
    `dictionaries`, directions `refusal@3.resid_post` of `directions` (see `interp.decoder.sites.components`); for each
    group ten random ones of its size are measured too. `method`: `interp.causal.interventions.METHODS`. `position`:
    "all", indices or labels of the task, or "each". `metric`: logit_diff where the task has wrong answers, loss
    elsewhere; `classes` (`interp.data.classes`) breaks each down by kind of token. `reference`: the prompts of the
    mean, the task's own if not given. The interval is a 95% bootstrap over prompts, drawn by `seed`, as are shuffle and
    the random groups. Wang et al. 2022, arXiv:2211.00593, section 3.
    """
    todo = plan(
        model, task, components=components, method=method, metric=metric, position=position, dictionaries=dictionaries,
        directions=directions, seed=seed,
    )  # fmt: skip
    todo = todo if shard is None else todo.shard(*shard)
    members = {c: None for number, _ in todo.places for c in todo.targets[number].members}
    masks = {p: None if p == "all" else torch.arange(task.length) == task.at(p)[:, None] for p in todo.positions}
    by_method = {
        base: {c: _part(c, base, dictionaries or {}, directions or {}) for c in members}
        for base in (split_method(name)[0] for name in todo.methods)
    }
    of_means = [part for base in ("mean", "mean-all") for part in by_method.get(base, {}).values()]
    means = references.Means(model, reference or task, of_means) if of_means else None
    values, slow = {}, ""
    with Progress("ablating", len(todo.methods) * len(todo.places) * len(task), progress) as bar:
        for name in todo.methods:
            base, held = split_method(name)
            parts = by_method[base]
            new = {part: _replacement(base, part, means, task.length) for part in dict.fromkeys(parts.values())}
            rows = [
                Intervention(tuple(Write(parts[c], new[parts[c]], masks[at]) for c in todo.targets[t].members), held)
                for t, at in todo.places
            ]
            found = sweeps.sweep(
                model, task, rows, metrics=todo.metrics, donors=_donors(task, base, seed), classes=classes,
                advance=bar.advance, finished=finished, name=name,
            )  # fmt: skip
            values |= {(name, metric_name): array for metric_name, array in found.values.items()}
            slow = found.slow_because
    places = [
        {"component": target.name, "kind": target.kind, "layer": target.layer, "index": target.index, "position": at}
        for target, at in ((todo.targets[number], at) for number, at in todo.places)
    ]
    said = about(model, task, seed, reference=(reference or task).name, slow_because=slow)
    return build(places, values, found.baseline, seed=seed, about=said)


def _part(component: Component, method: str, dictionaries: Mapping[str, Any], directions: Mapping[str, Tensor]) -> Part:
    return of_expert(component, method) if component.kind == "expert" else named(component, dictionaries, directions)


_CONSTANT = {"zero": 0.0, "forbid": -torch.inf, "force": 1.0}


def _replacement(method: str, part: Part, means: references.Means | None, length: int) -> Tensor | None:
    if method in _CONSTANT:
        return torch.tensor(_CONSTANT[method])
    if method in ("mean", "mean-all"):
        return means.of(part, length, by_position=method == "mean")
    return None


def _donors(task: Task, method: str, seed: int) -> Int[Tensor, "prompt pos"] | None:
    if method == "resample":
        return task.tokens("corrupted")
    return references.shuffled(task, seed) if method == "shuffle" else None
