"""patch(): where does the answer travel? An activation is carried from one run into another.

Denoising carries the clean activation into the corrupted run (what suffices?), noising the corrupted one into the clean
run (what is needed?). `normalized` is 0 as corrupted and 1 as clean. Heimersheim & Nanda 2024, arXiv:2404.15255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from interp.causal import sweeps
from interp.causal.ablation import as_list, part_of
from interp.causal.effects import Effects, about, build
from interp.causal.finished import Finished
from interp.causal.interventions import Intervention, Write
from interp.causal.places import Place, places_of, ticks
from interp.data import metrics as scores
from interp.data.tasks import Task
from interp.decoder.model import Model
from interp.errors import InputError, UnknownName, nearest
from interp.progress import Progress

METHODS = ("denoise", "noise")


@dataclass(frozen=True)
class Plan:
    """What `patch` will do, a place each."""

    places: list[Place]
    methods: list[str]
    metrics: list[str]

    def shard(self, i: int, n: int) -> Plan:
        """The `i`-th of `n` parts of the places, i from 1."""
        return replace(self, places=part_of(self.places, i, n))

    def cost(self, n_layers: int) -> tuple[int, float]:
        """Passes of a loop over the places, and what the sweep makes of them: a place at layer l and position p costs
        the blocks from l on, at the positions from p on."""
        work = 0.0
        for place in self.places:
            first = 0 if place.where is None else int(place.where.any(0).nonzero()[0])
            positions = 1.0 if place.where is None else 1 - first / place.where.shape[1]
            work += positions * (n_layers - max(place.row["layer"], 0)) / n_layers
        return len(self.places), work


def plan(
    model: Model,
    task: Task,
    *,
    site: str = "resid_pre",
    by: str | Sequence[str] = ("layer", "position"),
    components: str | Sequence[str] | None = None,
    method: str = "denoise",
    metric: str | Sequence[str] | None = None,
    dictionaries: Mapping[str, Any] | None = None,
) -> Plan:
    """Every place that `patch` will measure, checked; nothing is run. InputError for what cannot be."""
    if method not in METHODS:
        raise UnknownName(f'no method "{method}". Nearest: {nearest(method, METHODS)}.')
    metrics = as_list(metric or task.default_metric)
    scores.check(metrics, has_wrong=task.has_wrong, task=task.name)
    if task.length > model.n_ctx:
        raise InputError(f'prompts of {task.length} tokens: "{model.name}" reads at most {model.n_ctx}.')
    task.tokens("corrupted")
    return Plan(places_of(model, task, site, as_list(by), components, dictionaries or {}), [method], metrics)


def patch(
    model: Model,
    task: Task,
    *,
    site: str = "resid_pre",
    by: str | Sequence[str] = ("layer", "position"),
    components: str | Sequence[str] | None = None,
    method: str = "denoise",
    metric: str | Sequence[str] | None = None,
    dictionaries: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: bool = False,
    shard: tuple[int, int] | None = None,
    finished: Finished | None = None,
) -> Effects:
    """Patch `site`, one place at a time: each layer, or each of its heads, neurons or latents, at each position or all.

    `site`: `resid_pre`, `z`, `mlp_out`, ... in every layer, `2-5.z` in some, or the name of one of `dictionaries`.
    `by`: "layer"; with "head" (of z, q, k, v, pattern), "neuron" (of post, pre) or "latent"; with "position", which of
    a pattern is the query's. Positions are every index where all prompts have one length, else the labels that the
    task gives. `components`: only these heads, neurons or latents (`L3H5,L4.heads`, `L3N120`, `demo/417`).

    `effect` is patched minus unpatched, in the metric's unit: denoising, positive logit_diff moves toward clean;
    `normalized` is (patched - corrupted) / (clean - corrupted), of the means over prompts. A latent is patched with the
    dictionary's error kept. InputError where a prompt has no corrupted twin of its length.
    """
    todo = plan(
        model, task, site=site, by=by, components=components, method=method, metric=metric, dictionaries=dictionaries
    )
    todo = todo if shard is None else todo.shard(*shard)
    source, target = ("clean", "corrupted") if method == "denoise" else ("corrupted", "clean")
    rows = [Intervention((Write(place.part, None, place.where),)) for place in todo.places]
    with Progress("patching", len(rows) * len(task), progress) as bar:
        found = sweeps.sweep(
            model, task, rows, metrics=todo.metrics, which=target, donors=task.tokens(source), advance=bar.advance,
            finished=finished,
        )  # fmt: skip
    other = sweeps.sweep(model, task, [], metrics=todo.metrics, which=source)
    ends = (other, found) if method == "noise" else (found, other)
    said = about(
        model, task, seed, site=site, by=as_list(by), ticks=ticks(model, task), slow_because=found.slow_because
    )
    return build(
        [place.row for place in todo.places],
        {(method, name): array for name, array in found.values.items()},
        found.baseline,
        seed=seed,
        about=said,
        ends={name: tuple(end.baseline[name] for end in ends) for name in todo.metrics},
    )
