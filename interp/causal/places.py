"""The cells of a map of patching: a part of a hook point, at one position of each prompt or at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.causal.interventions import Latent, Part, Whole, latents_of
from interp.data.tasks import Task
from interp.decoder.model import Model
from interp.decoder.sites import LAYER_SITES, MODEL_SITES, Component, layer_of, short
from interp.decoder.sites import components as select
from interp.errors import InputError, UnknownName, UnknownSite, nearest

Row = dict[str, Any]
"""component, kind, layer, index and position of a row of effects."""

UNITS = {
    "head": ("z", "q", "k", "v", "pattern"),
    "neuron": ("post", "pre"),
    "expert": ("expert_out", "expert_weights", "router_logits"),
}
"""What the units of a site are called; those of a dictionary are its latents. `k` and `v` have the model's key-value
heads, fewer than its heads where keys are grouped."""

BY = ("layer", "head", "neuron", "expert", "latent", "position")


@dataclass(frozen=True)
class Place:
    """A cell: what its row is called, the part of an activation, where it is patched (None: at all positions)."""

    row: Row
    part: Part
    where: Bool[Tensor, "prompt pos"] | None


def places_of(
    model: Model,
    task: Task,
    site: str,
    by: Sequence[str],
    components: str | Sequence[str] | None,
    dictionaries: Mapping[str, Any],
) -> list[Place]:
    """Every cell that `interp.patch` is asked for. InputError for what cannot be."""
    if unknown := [axis for axis in by if axis not in BY]:
        raise UnknownName(f'by "{unknown[0]}" given. Nearest: {nearest(unknown[0], BY)}.')
    parts = _parts(model, site, by, components, dictionaries)
    positions = positions_of(task) if "position" in by else ["all"]
    masks = {p: None if p == "all" else torch.arange(task.length) == task.at(p)[:, None] for p in positions}
    return [Place(row | {"position": p}, part, masks[p]) for row, part in parts for p in positions]


def positions_of(task: Task) -> list[str]:
    """Every index where all prompts have one length, else the labels that all have. InputError where there are none."""
    positions = [str(index) for index in range(task.length)] if task.same_length else task.labels
    if not positions:
        raise InputError(
            f'prompts of "{task.name}" differ in length and have no "positions": label them to patch by position.'
        )
    return positions


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


def whole_sites(model: Model, site: str, dictionaries: Mapping[str, Any] | None = None) -> list[tuple[Row, Whole]]:
    """The hook points that `site` selects, each with the beginning of its row: `L3.attn` of attn_out, `embed` of what
    stands before the blocks. UnknownSite where it selects none."""
    if "." not in site and site not in LAYER_SITES and site not in model.sites:
        near = nearest(site, [*LAYER_SITES, *(dictionaries or {})])
        raise UnknownSite(f'no site "{site}" to patch in "{model.name}". Nearest: {near}.')
    outside = {name: kind for kind, name in MODEL_SITES.items()}
    found = []
    for name in model.expand(f"*.{site}" if site in LAYER_SITES else site):
        kind = short(name).partition(".")[2]
        kind = {"attn_out": "attn", "mlp_out": "mlp"}.get(kind, kind)
        row = _row(f"L{layer_of(name)}.{kind}", kind, layer_of(name), -1)
        found.append((_row(outside[name], outside[name], -1, -1) if name in outside else row, Whole(name)))
    return found


def _parts(
    model: Model,
    site: str,
    axes: Sequence[str],
    components: str | Sequence[str] | None,
    dictionaries: Mapping[str, Any],
) -> list[tuple[Row, Part]]:
    """What is patched, layer by layer: the beginning of a row, and the part of the activation."""
    units = [axis for axis in axes if axis in (*UNITS, "latent")]
    if site in dictionaries:
        if units not in ([], ["latent"]):
            raise InputError(f'by "{units[0]}" given: a dictionary such as "{site}" is patched by latent.')
        dictionary = dictionaries[site]
        chosen = _chosen(components or f"{site}/*", "latent", model, latents_of({site: dictionary}))
        return [(_row(c.name, "latent", c.layer, c.index), Latent(c.site, dictionary, c.index)) for c in chosen]
    whole = whole_sites(model, site, dictionaries)
    names = [part.site for _, part in whole]
    kind = short(names[0]).partition(".")[2]
    if not units:
        if components is not None:
            raise InputError(f"components {components} given: they are patched by head, neuron, expert or latent.")
        return whole
    if len(units) > 1 or kind not in UNITS.get(units[0], ()):
        what = f"{units[0]}s"
        fitting = ", ".join(UNITS.get(units[0], ())) or "the name of a dictionary"
        raise InputError(f'site "{site}" has no {what}: by {units[0]} goes with {fitting}.')
    n = {"head": model.n_kv_heads if kind in ("k", "v") else model.n_heads, "neuron": model.d_mlp or 0}.get(units[0])
    of_layer = {layer_of(name): model.mixtures.counts.get(layer_of(name)) if n is None else n for name in names}
    every = [Component(units[0], layer, index) for layer, count in of_layer.items() for index in range(count)]
    if components is not None:
        wanted = set(_chosen(components, units[0], model, {}, n_heads=n if units[0] == "head" else model.n_heads))
        every = [component for component in every if component in wanted]
        if not every:
            raise InputError(f'components {components} given: none of them is in the layers of site "{site}".')
    own = kind in ("z", "post", "expert_out")  # where a head, ... writes: the site that their names stand for
    sites = {layer_of(name): name for name in names}
    return [
        (_row(c.name if own else f"{c.name}.{kind}", units[0] if own else kind, c.layer, c.index),
         Whole(sites[c.layer], c.index))
        for c in every
    ]  # fmt: skip


def _row(component: str, kind: str, layer: int, index: int) -> Row:
    return {"component": component, "kind": kind, "layer": layer, "index": index}


def _chosen(
    names: str | Sequence[str], kind: str, model: Model, dictionaries: Mapping[str, tuple[str, int]],
    *, n_heads: int | None = None,
) -> list[Component]:  # fmt: skip
    """The components named, which are all of one kind."""
    found = select(
        names, **(model.counts | {"n_heads": n_heads or model.n_heads}), dictionaries=dictionaries,
    )  # fmt: skip
    if others := [c.name for c in found if c.kind != kind]:
        raise InputError(f'component "{others[0]}" is no {kind}: each is patched alone, by {kind}.')
    return found
