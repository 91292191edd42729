"""Path patching: what one part says to another, along paths of one's choosing.

Into the clean run goes, at a receiver (a head's q, k or v, an MLP, the logits), what it would read if one sender wrote
what it writes on the corrupted prompt; everything after the receiver follows. What stands between the two is

    frozen="all"    held at its clean values: only the direct edge carries the change
    frozen="heads"  attention held, MLPs not: they are on the path, as in Wang et al. 2022, arXiv:2211.00593,
    section 3 frozen="none"   computed again: all paths from the sender to the receiver
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.causal import sweeps
from interp.causal.ablation import as_list
from interp.causal.edges import WRITTEN, Elsewhere, Split, check_split
from interp.causal.effects import Effects, about, build
from interp.causal.graph import Graph
from interp.causal.scoring import Scorer
from interp.data import metrics as scores
from interp.data.tasks import Task
from interp.decoder import parts
from interp.decoder.hooks import captured, edited
from interp.decoder.model import Model
from interp.decoder.sites import layer_site
from interp.errors import InputError, UnknownName, nearest
from interp.progress import Progress

FROZEN = ("all", "heads", "none")


def path_patch(
    model: Model,
    task: Task,
    *,
    receiver: str | Sequence[str],
    senders: str | Sequence[str] | None = None,
    frozen: str = "heads",
    baseline: str = "counterfactual",
    metric: str | Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Effects:
    """The effect on the metric of each sender through the receiver: patched minus clean, in the metric's unit.

    Negative on logit_diff: what the sender says to the receiver helps. `receiver`: `a3.h5<q>`, `m3`, `logits`, or
    several, patched together. `senders`: nodes (`a0.h1`, `m0`, `input`); all that come before a receiver if not given.
    UnknownName for others. The interval is a 95% bootstrap over prompts.
    """
    graph, metrics = Graph.of(model), as_list(metric or task.default_metric)
    if frozen not in FROZEN:
        raise UnknownName(f'frozen "{frozen}" given. Nearest: {nearest(frozen, FROZEN)}.')
    scores.check(metrics, has_wrong=task.has_wrong, task=task.name)
    into = [_receiver(graph, name) for name in as_list(receiver)]
    if "logits" in into and len(into) > 1:
        raise InputError(f"receivers {', '.join(into)} given: the logits are a receiver alone.")
    allowed = graph.allowed[:, [graph.receivers.index(name) for name in into]]
    found = [s for s, any_edge in zip(graph.senders, allowed.any(1), strict=True) if any_edge]
    wanted = found if senders is None else as_list(senders)
    for name in wanted:
        if name not in found:
            raise UnknownName(f'no sender "{name}" before {", ".join(into)}. Nearest: {nearest(name, found)}.')
    check_split(model, graph, task)
    elsewhere, scorer, tokens = Elsewhere(model, task, baseline), Scorer(model, task, metrics, {}), task.tokens("clean")
    values = {metric: np.full((len(wanted), len(task)), np.nan, np.float32) for metric in metrics}
    clean = {metric: np.full(len(task), np.nan, np.float32) for metric in metrics}
    limit = max(task.length, min(sweeps.tokens_at_once(model, task.length), WRITTEN // model.d_model))
    with Progress("patching paths", len(wanted) * len(task), progress) as bar:
        for prompts in sweeps.batches(task, limit):
            length = int(task.lengths[prompts[0]])
            there = elsewhere.of(prompts, length)
            split = Split(model, graph, tokens[prompts, :length], there)
            scorer.prepare(prompts, split.clean.final)
            for name, score in scorer.score(split.clean.final[None], 0).items():
                clean[name][prompts.numpy()] = score[0]
            for row, sender in enumerate(wanted):
                hidden = _patched(split, sender, into, frozen)
                for name, score in scorer.score(hidden[None], 0).items():
                    values[name][row, prompts.numpy()] = score[0]
                bar.advance(len(prompts))
    places = [_place(name) for name in wanted]
    said = about(model, task, seed, receiver=into, frozen=frozen, baseline=baseline)
    return build(places, {("path", name): array for name, array in values.items()}, clean, seed=seed, about=said)


def _receiver(graph: Graph, name: str) -> str:
    """A receiver by name, `a3.h5<k>` standing for its group's where keys are shared."""
    try:
        return graph.edge(f"input->{name}").partition("->")[2]
    except UnknownName:
        raise UnknownName(f'no receiver "{name}" in {graph}. Nearest: {nearest(name, graph.receivers)}.') from None


def _place(sender: str) -> dict:
    """A sender as a row of effects: a2.h3 is the component L2H3."""
    match = re.fullmatch(r"([am])(\d+)(?:\.h(\d+))?", sender)
    if match is None:
        return {"component": "embed", "kind": "embed", "layer": -1, "index": -1, "position": "all"}
    kind, layer, index = "head" if match[1] == "a" else "mlp", int(match[2]), -1 if match[3] is None else int(match[3])
    name = f"L{layer}H{index}" if kind == "head" else f"L{layer}.mlp"
    return {"component": name, "kind": kind, "layer": layer, "index": index, "position": "all"}


@torch.no_grad()
def _patched(split: Split, sender: str, into: Sequence[str], frozen: str) -> Float[Tensor, "prompt pos d_model"]:
    """What comes out of the last block when these receivers hear the sender's change along the paths left open."""
    model, graph = split.model, split.graph
    into = [name for name in into if f"{sender}->{name}" in graph.at]
    if frozen == "all":
        return split.run(graph.mask([f"{sender}->{name}" for name in into])[None])[0]
    heard = _heard(split, sender, frozen == "heads")
    if into == ["logits"]:
        return heard[layer_site(model.n_layers - 1, "resid_post")]
    mlps, heads = {}, {}
    for name in into:
        kind, layer, head, which = re.fullmatch(r"([am])(\d+)(?:\.(?:h|kv)(\d+)<([qkv])>)?", name).groups()
        layer = int(layer)
        if kind == "m":
            x = heard[layer_site(layer, "resid_pre" if graph.parallel else "resid_mid")]
            mlps[layer_site(layer, "mlp_out")] = parts.mlp_out(model, layer, x)
        else:
            x = heard[layer_site(layer, "resid_pre")][:, :, None]
            n_heads = graph.n_heads if which == "q" else graph.n_kv_heads
            new = parts.projected(model, layer, which, x.expand(-1, -1, n_heads, -1))
            heads.setdefault(layer_site(layer, which), {})[int(head)] = new[:, :, int(head)]
    edits = {site: lambda value, new=new: new for site, new in mlps.items()}
    edits |= {site: lambda value, new=new: _with_heads(value, new) for site, new in heads.items()}
    return split.clean.resume(edits, 1)[0]


def _with_heads(value: Tensor, new: Mapping[int, Tensor]) -> Tensor:
    value = value.clone()
    for head, mine in new.items():
        value[:, :, head] = mine
    return value


def _heard(split: Split, sender: str, hold_heads: bool) -> dict[str, Tensor]:
    """The residual stream everywhere when the sender alone writes what it writes elsewhere; with `hold_heads` all other
    heads write what they write in the clean run."""
    model, graph, place = split.model, split.graph, _place(sender)
    site = layer_site(max(place["layer"], 0), {"head": "z", "mlp": "mlp_out", "embed": "resid_pre"}[place["kind"]])
    there, own = split.elsewhere[site], split.own[site]
    head = place["index"]
    new = {layer_site(layer, "z"): split.own[layer_site(layer, "z")] for layer in range(model.n_layers) if hold_heads}
    new[site] = there if head < 0 else _with_heads(own, {head: there[:, :, head]})
    kinds = ("resid_pre", "resid_mid") if graph.has_mlp and not graph.parallel else ("resid_pre",)
    streams = [layer_site(layer, kind) for layer in range(model.n_layers) for kind in kinds]
    streams.append(layer_site(model.n_layers - 1, "resid_post"))
    edits = {site: lambda value, new=value: new for site, value in new.items()}
    with edited(model, edits), captured(model, streams) as cache:  # in this order: what is captured has been edited
        model(split.clean.tokens)
    return cache
