"""ablate(): which components does the behaviour need? Each is replaced alone, and the metric measured again."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from interp.causal import interventions, sweeps
from interp.causal.effects import Effects, build
from interp.data import metrics as scores
from interp.data.tasks import Task
from interp.decoder.hooks import Edit
from interp.decoder.loading import Model
from interp.decoder.sites import Component
from interp.decoder.sites import components as select
from interp.errors import InputError, UnknownName, nearest


def as_list(value: str | Sequence[str]) -> list[str]:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)


def ablate(
    model: Model,
    task: Task,
    *,
    components: str | Sequence[str] = "heads",
    method: str | Sequence[str] = "mean",
    metric: str | Sequence[str] | None = None,
    position: str | int = "all",
    seed: int = 0,
    progress: bool = False,
) -> Effects:
    """The effect of replacing each component alone: ablated minus clean, in the metric's unit.

    A negative effect on logit_diff means that the component helped. `components`: "heads", "mlps", "attn" or names such
    as `L3H5`. `method`: "zero", or "mean" over the task's clean prompts position by position. `position`: "all", an
    index or a label of the task. `metric`: logit_diff where the task has wrong answers, loss elsewhere. The interval is
    a 95% bootstrap over prompts, drawn by `seed`. Wang et al. 2022, arXiv:2211.00593, section 3.
    """
    chosen = select(components, n_layers=model.n_layers, n_heads=model.n_heads, has_mlp=model.has_mlp)
    methods, metrics = as_list(method), as_list(metric or task.default_metric)
    for name in methods:
        if name not in interventions.METHODS:
            raise UnknownName(f'no method "{name}". Nearest: {nearest(name, interventions.METHODS)}.')
    scores.check(metrics, has_wrong=task.has_wrong, task=task.name)
    if task.length > model.n_ctx:
        raise InputError(f'prompts of {task.length} tokens: "{model.name}" reads at most {model.n_ctx}.')
    where = torch.ones(len(task), task.length, dtype=torch.bool)
    if position != "all":
        where = torch.arange(task.length) == task.at(position)[:, None]
    sites = sorted({component.site for component in chosen})
    means = {}
    if "mean" in methods:
        cache = sweeps.activations(model, task, sites)
        means = {site: interventions.position_means(value, task.lengths) for site, value in cache.items()}
        del cache

    def edits(component: Component, method: str) -> sweeps.Edits:
        head = component.index if component.kind == "head" else None

        def of(part: slice) -> dict[str, Edit]:
            def edit(value):
                new = torch.zeros_like(value) if method == "zero" else means[component.site].expand_as(value)
                return interventions.replace(value, new, where[part].to(value.device), head)

            return {component.site: edit}

        return of

    clean = sweeps.logits_at_reads(model, task)
    values = {}
    with sweeps.progress("ablating", len(methods) * len(chosen), progress) as advance:
        for name in methods:
            interventions_ = [edits(component, name) for component in chosen]
            found = sweeps.sweep(model, task, interventions_, metrics=metrics, clean=clean, advance=advance)
            values |= {(name, metric_name): array for metric_name, array in found.items()}
    places = [
        {"component": c.name, "kind": c.kind, "layer": c.layer, "index": c.index, "position": str(position)}
        for c in chosen
    ]
    about = {"model": model.provenance(), "task": task.name, "seed": seed}
    return build(places, values, sweeps.score(task, metrics, clean, clean), seed=seed, about=about)
