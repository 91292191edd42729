"""patch(): where does the answer travel? An activation is carried from one run into another.

Denoising carries the clean activation into the corrupted run (what suffices?), noising the corrupted one into the clean
run (what is needed?). `normalized` is 0 as corrupted and 1 as clean. Heimersheim & Nanda 2024, arXiv:2404.15255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.causal import sweeps
from interp.causal.ablation import as_list, part_of
from interp.causal.effects import Effects, about, build
from interp.causal.finished import Finished
from interp.causal.interventions import Intervention, Latent, Part, Whole, Write
from interp.data import metrics as scores
from interp.data.tasks import Task
from interp.decoder.loading import Model
from interp.decoder.sites import LAYER_SITES, MODEL_SITES, Component, expand, layer_of, short
from interp.decoder.sites import components as select
from interp.errors import InputError, UnknownName, UnknownSite, nearest
from interp.progress import Progress

METHODS = ("denoise", "noise")

UNITS = {
    "head": ("z", "q", "k", "v", "pattern"),
    "neuron": ("post", "pre"),
}
"""What the units of a site are called; those of a dictionary are its latents. `k` and `v` have the model's key-value
heads, fewer than its heads where keys are grouped."""

BY = ("layer", "head", "neuron", "latent", "position")


@dataclass(frozen=True)
class Place:
    """A cell of the map: a part of a hook point, at one position of each prompt or at all."""

    row: dict[str, Any]
    """component, kind, layer, index, position."""
    part: Part
    where: Bool[Tensor, "prompt pos"] | None


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
            positions = 1.0 if place.where is None else 1 - _first(place.where) / place.where.shape[1]
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
    axes = as_list(by)
    if unknown := [axis for axis in axes if axis not in BY]:
        raise UnknownName(f'by "{unknown[0]}" given. Nearest: {nearest(unknown[0], BY)}.')
    parts = _parts(model, site, axes, components, dictionaries or {})
    positions = positions_of(task) if "position" in axes else ["all"]
    masks = {p: None if p == "all" else torch.arange(task.length) == task.at(p)[:, None] for p in positions}
    places = [Place(row | {"position": p}, part, masks[p]) for row, part in parts for p in positions]
    return Plan(places, [method], metrics)


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


def ticks(model: Model, task: Task) -> dict[str, str]:
    """What stands at each position, to be read beside a map: its token where all prompts have the same one, else the
    label that the task has for it, else the first prompt's token and "…". Empty where prompts differ in length."""
    if not task.same_length:
        return {}
    labels = {str(int(task.at(label)[0])): label for label in task.labels if len(task.at(label).unique()) == 1}
    found = {}
    for at, column in enumerate(zip(*(prompt.clean_tokens for prompt in task.prompts), strict=True)):
        text = model.token_text(column[:1])[0]
        found[str(at)] = text if len(set(column)) == 1 else labels.get(str(at), f"{text}…")
    return found


def positions_of(task: Task) -> list[str]:
    """Every index where all prompts have one length, else the labels that all have. InputError where there are none."""
    positions = [str(index) for index in range(task.length)] if task.same_length else task.labels
    if not positions:
        raise InputError(
            f'prompts of "{task.name}" differ in length and have no "positions": label them to patch by position.'
        )
    return positions


def _parts(
    model: Model,
    site: str,
    axes: Sequence[str],
    components: str | Sequence[str] | None,
    dictionaries: Mapping[str, Any],
) -> list[tuple[dict[str, Any], Part]]:
    """What is patched, layer by layer: the beginning of a row, and the part of the activation."""
    units = [axis for axis in axes if axis in ("head", "neuron", "latent")]
    if site in dictionaries:
        if units not in ([], ["latent"]):
            raise InputError(f'by "{units[0]}" given: a dictionary such as "{site}" is patched by latent.')
        dictionary = dictionaries[site]
        chosen = _chosen(components or f"{site}/*", "latent", model, {site: (dictionary.site, dictionary.d_sae)})
        return [(_row(c.name, "latent", c.layer, c.index), Latent(c.site, dictionary, c.index)) for c in chosen]
    whole = whole_sites(model, site, dictionaries)
    names = [part.site for _, part in whole]
    kind = short(names[0]).partition(".")[2]
    if not units:
        if components is not None:
            raise InputError(f"components {components} given: they are patched by head, neuron or latent.")
        return whole
    if len(units) > 1 or kind not in UNITS.get(units[0], ()):
        what = f"{units[0]}s"
        fitting = ", ".join(UNITS.get(units[0], ())) or "the name of a dictionary"
        raise InputError(f'site "{site}" has no {what}: by {units[0]} goes with {fitting}.')
    n = {"head": model.n_kv_heads if kind in ("k", "v") else model.n_heads, "neuron": model.d_mlp or 0}[units[0]]
    every = [Component(units[0], layer_of(name), index) for name in names for index in range(n)]
    if components is not None:
        wanted = set(_chosen(components, units[0], model, {}, n_heads=n if units[0] == "head" else model.n_heads))
        every = [component for component in every if component in wanted]
    own = kind in ("z", "post")  # where a head and a neuron write: the site that their names stand for
    sites = {layer_of(name): name for name in names}
    return [
        (_row(c.name if own else f"{c.name}.{kind}", units[0] if own else kind, c.layer, c.index),
         Whole(sites[c.layer], c.index))
        for c in every
    ]  # fmt: skip


def _row(component: str, kind: str, layer: int, index: int) -> dict[str, Any]:
    return {"component": component, "kind": kind, "layer": layer, "index": index}


def whole_sites(
    model: Model, site: str, dictionaries: Mapping[str, Any] | None = None
) -> list[tuple[dict[str, Any], Whole]]:
    """The hook points that `site` selects, each with the beginning of its row: `L3.attn` of attn_out, `embed` of what
    stands before the blocks. UnknownSite where it selects none."""
    if "." not in site and site not in LAYER_SITES and site not in model.sites:
        near = nearest(site, [*LAYER_SITES, *(dictionaries or {})])
        raise UnknownSite(f'no site "{site}" to patch in "{model.name}". Nearest: {near}.')
    outside = {name: kind for kind, name in MODEL_SITES.items()}
    found = []
    for name in expand(f"*.{site}" if site in LAYER_SITES else site, model.sites, model=f'"{model.name}"'):
        kind = short(name).partition(".")[2]
        kind = {"attn_out": "attn", "mlp_out": "mlp"}.get(kind, kind)
        row = _row(f"L{layer_of(name)}.{kind}", kind, layer_of(name), -1)
        found.append((_row(outside[name], outside[name], -1, -1) if name in outside else row, Whole(name)))
    return found


def _chosen(
    names: str | Sequence[str], kind: str, model: Model, dictionaries: Mapping[str, tuple[str, int]],
    *, n_heads: int | None = None,
) -> list[Component]:  # fmt: skip
    """The components named, which are all of one kind."""
    found = select(
        names, n_layers=model.n_layers, n_heads=n_heads or model.n_heads, d_mlp=model.d_mlp, has_mlp=model.has_mlp,
        dictionaries=dictionaries,
    )  # fmt: skip
    if others := [c.name for c in found if c.kind != kind]:
        raise InputError(f'component "{others[0]}" is no {kind}: each is patched alone, by {kind}.')
    return found


def _first(where: Bool[Tensor, "prompt pos"]) -> int:
    return int(where.any(0).nonzero()[0])
