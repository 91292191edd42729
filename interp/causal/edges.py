"""Exact edge patching: any set of edges taken out of a model at once, everything else as it follows.

A place that reads sees the residual stream x. With the edge from a node s removed it sees

    x - (what s writes in this run - what s writes elsewhere)

where "elsewhere" is the corrupted prompt (baseline "counterfactual") or the mean over the task's clean prompts,
position by position ("mean"). Each head's query, key and value read their own x, so a layer's projections are done
here (`interp.decoder.parts`); attention itself is the model's. No edge removed: the clean run, to rounding. All
removed: every place reads what it reads elsewhere; with counterfactuals, the corrupted run.

Several sets share a pass, stacked along the batch, and it begins at the first layer that one of them touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.causal.finished import Finished
from interp.causal.graph import Graph
from interp.causal.interventions import Whole
from interp.causal.references import Means
from interp.causal.resuming import TOLERANCE, CleanPass, ShortCuts, short_cuts, tried
from interp.causal.scoring import Scorer
from interp.causal.sweeps import batches, tokens_at_once
from interp.data.tasks import Task
from interp.decoder import parts
from interp.decoder.hooks import captured, edited
from interp.decoder.model import Model
from interp.decoder.sites import layer_site
from interp.errors import InputError, UnknownName, nearest

BASELINES = ("counterfactual", "mean")

WRITTEN = 2**25
"""Numbers that the nodes' outputs on a stack of prompts may have."""


def written_sites(model: Model) -> list[str]:
    """Hook points from which all that the nodes write follows."""
    layers = range(model.n_layers)
    sites = [layer_site(0, "resid_pre")] + [layer_site(layer, "z") for layer in layers]
    return sites + [layer_site(layer, "mlp_out") for layer in layers if model.has_mlp]


def outputs(
    model: Model, given: Mapping[str, Tensor], layers: int | None = None
) -> Float[Tensor, "sender prompt pos d_model"]:
    """What each node up to layer `layers` (all) writes, of activations `given` by hook point."""
    found = [given[layer_site(0, "resid_pre")][None]]
    for layer in range(model.n_layers if layers is None else layers):
        heads = parts.head_outputs(model, layer, given[layer_site(layer, "z")])
        found.append(rearrange(heads, "prompt pos head d_model -> head prompt pos d_model"))
        found += [given[layer_site(layer, "mlp_out")][None]] if model.has_mlp else []
    return torch.cat(found)


class Elsewhere:
    """What the nodes write elsewhere: `of(prompts, length)` is by hook point, [prompt pos ...]."""

    def __init__(self, model: Model, task: Task, baseline: str):
        if baseline not in BASELINES:
            raise UnknownName(f'no baseline "{baseline}". Nearest: {nearest(baseline, BASELINES)}.')
        if baseline == "counterfactual" and not task.has_corrupted:
            raise InputError(f'task "{task.name}" has prompts without "corrupted": use the baseline mean.')
        self.model, self.tokens = model, task.tokens("corrupted") if baseline == "counterfactual" else None
        self.wholes = [Whole(site) for site in written_sites(model)]
        self.means = Means(model, task, self.wholes) if baseline == "mean" else None

    def of(self, prompts: Int[Tensor, " prompt"], length: int) -> dict[str, Tensor]:
        if self.means is not None:
            means = {whole.site: self.means.of(whole, length, by_position=True) for whole in self.wholes}
            return {site: mean.expand(len(prompts), *mean.shape) for site, mean in means.items()}
        with torch.no_grad(), captured(self.model, written_sites(self.model)) as cache:
            self.model(self.tokens[prompts, :length])
        return cache


class _Written(Exception):
    """Raised out of a block with what attention writes, so that its MLP does not run."""


class Split:
    """Prompts of one length through a model taken apart into nodes."""

    def __init__(
        self, model: Model, graph: Graph, tokens: Int[Tensor, "prompt pos"], elsewhere: Mapping[str, Tensor] | None
    ):
        self.model, self.graph = model, graph
        self.clean = CleanPass(model, tokens, ShortCuts(True, False))
        with torch.no_grad(), captured(model, written_sites(model)) as self.own:
            model(tokens)
        self.elsewhere = self.own if elsewhere is None else elsewhere
        self._early: tuple[int, Tensor] | None = None

    @torch.no_grad()
    def run(self, removed: Bool[np.ndarray, "stack sender receiver"]) -> Float[Tensor, "stack prompt pos d_model"]:
        """What comes out of the last block, with each of these sets of edges removed."""
        model, graph, stack = self.model, self.graph, len(removed)
        cut = torch.from_numpy(removed).to(model.device, model.dtype)
        start = _first_layer(graph, removed)
        hidden = self.clean._hidden(start).repeat(stack, 1, 1)
        moved = [self._moved(start)]  # of each node so far: what it writes here - what it writes elsewhere

        def less(x: Tensor, place: slice) -> Tensor:
            """x of each of these places that read, without the removed edges: [stack * prompt, pos, place, d_model]."""
            taken = _taken(moved, cut[:, :, place])
            return x[..., None, :] - taken.flatten(0, 1)

        for layer in range(start, model.n_layers):
            places = places_of(graph, layer)
            if not removed[:, :, places["q"].start :].any():
                hidden = self.clean._block(layer, hidden, stack)
                continue
            edits = {}
            for which in "qkv":
                if removed[:, :, places[which]].any():
                    edits[which] = parts.projected(model, layer, which, less(hidden, places[which]))
            z = self._attend(layer, hidden, stack, edits)
            heads = parts.head_outputs(model, layer, z)
            after = hidden + heads.sum(2) + parts.head_bias(model, layer)
            moved.append(self._late(heads, self._elsewhere_heads(layer)))
            if model.has_mlp:
                x = hidden if graph.parallel else after
                seen = moved[:-1] if graph.parallel else moved
                if removed[:, :, places["mlp"]].any():
                    x = x - _taken(seen, cut[:, :, places["mlp"]]).flatten(0, 1)[:, :, 0]
                out = parts.mlp_out(model, layer, x)
                after = after + out
                moved.append(self._late(out[:, :, None], self.elsewhere[layer_site(layer, "mlp_out")][:, :, None]))
            hidden = after
        if removed[:, :, -1].any():
            hidden = less(hidden, slice(-1, None))[:, :, 0]
        return hidden.unflatten(0, (stack, self.clean.n_prompts))

    def _moved(self, layers: int) -> Float[Tensor, "one sender prompt pos d_model"]:
        """Of the nodes below a layer, the same in every copy: what they write here minus elsewhere."""
        if self._early is None or self._early[0] != layers:
            here, there = (outputs(self.model, given, layers) for given in (self.own, self.elsewhere))
            self._early = layers, (here - there)[None]
        return self._early[1]

    def _elsewhere_heads(self, layer: int) -> Float[Tensor, "prompt pos head d_model"]:
        return parts.head_outputs(self.model, layer, self.elsewhere[layer_site(layer, "z")])

    def _late(self, here: Tensor, there: Tensor) -> Float[Tensor, "stack sender prompt pos d_model"]:
        here = here.unflatten(0, (-1, len(there)))
        return rearrange(here - there, "stack prompt pos sender d_model -> stack sender prompt pos d_model")

    def _attend(self, layer: int, hidden: Tensor, stack: int, new: Mapping[str, Tensor]) -> Tensor:
        """z [stack * prompt, pos, head, d_head] of a layer whose heads have these queries, keys and values."""

        def stop(value: Tensor) -> Tensor:
            raise _Written(value)

        edits = {layer_site(layer, which): lambda old, value=value: value for which, value in new.items()}
        try:
            with edited(self.model, edits | {layer_site(layer, "z"): stop}):
                self.clean._block(layer, hidden, stack, blocks=self.model.bridge.blocks)
        except _Written as found:
            return found.args[0]
        raise AssertionError("attention wrote nothing")


def _taken(moved: Sequence[Tensor], cut: Float[Tensor, "stack sender place"]) -> Tensor:
    """What the removed edges carried: [stack prompt pos place d_model]; `cut` is of all senders, `moved` of the first
    ones. What is the same in every copy has one for all."""
    total, start = None, 0
    for part in moved:
        mine = cut[:, start : start + part.shape[1]]
        start += part.shape[1]
        if len(part) == 1 and len(cut) > 1:
            pattern = "sender prompt pos d_model, stack sender place -> stack prompt pos place d_model"
            found = einsum(part[0], mine, pattern)
        else:
            pattern = "stack sender prompt pos d_model, stack sender place -> stack prompt pos place d_model"
            found = einsum(part, mine, pattern)
        total = found if total is None else total + found
    return total


def places_of(graph: Graph, layer: int) -> dict[str, slice]:
    """Numbers of the receivers of a layer."""
    per_layer = graph.n_heads + 2 * graph.n_kv_heads + graph.has_mlp
    ends = np.cumsum([layer * per_layer, graph.n_heads, graph.n_kv_heads, graph.n_kv_heads, int(graph.has_mlp)])
    return {name: slice(int(a), int(b)) for name, a, b in zip(("q", "k", "v", "mlp"), ends, ends[1:], strict=False)}


def _first_layer(graph: Graph, removed: Bool[np.ndarray, "*sets sender receiver"]) -> int:
    """The first layer that reads through a removed edge; after the last where only the logits do."""
    touched = removed.reshape(-1, removed.shape[-1]).any(0)
    per_layer = (len(graph.receivers) - 1) // graph.n_layers
    return min(int(np.argmax(touched)) // per_layer, graph.n_layers) if touched.any() else graph.n_layers


def check_split(model: Model, graph: Graph, task: Task) -> None:
    """InputError unless the model's parts add up: with every place reading through its own copy the logits are the
    model's, tried on two prompts."""
    tokens = task.tokens("clean")[:1, : int(task.lengths[0])].repeat(2, 1)

    def adds_up() -> bool:
        split = Split(model, graph, tokens, None)  # elsewhere is here: removing edges changes nothing
        with torch.no_grad():
            found, wanted = model.head(split.run(graph.allowed[None])[0]), model(tokens)
        return bool((found - wanted).abs().max() <= 10 * TOLERANCE[model.dtype] * wanted.abs().max().clamp(min=1))

    why = parts.between_heads_and_stream(model)
    if not why and any(which in model.refused for which in "qkv"):
        why = model.refused["q"]
    if not why and not (short_cuts(model, tokens).resumes and tried(adds_up)):
        why = "what its heads and MLPs write does not add up to the residual stream as it is read"
    if why:
        raise InputError(f'"{model.name}" has no graph of edges: {why}.')


class Patcher:
    """A task's prompts, ready to be run with any set of edges removed."""

    def __init__(
        self, model: Model, task: Task, *, metrics: Sequence[str], baseline: str = "counterfactual",
        finished: Finished | None = None,
    ):  # fmt: skip
        self.model, self.task, self.graph = model, task, Graph.of(model)
        self.finished = Finished() if finished is None else finished
        check_split(model, self.graph, task)
        elsewhere = Elsewhere(model, task, baseline)
        most = WRITTEN // (len(self.graph.senders) * model.d_model)
        self.limit = self.finished.setting(
            "edge tokens", max(task.length, min(tokens_at_once(model, task.length), most))
        )
        self.scorer = Scorer(model, task, metrics, {})
        self.metrics, tokens, self.parts = list(metrics), task.tokens("clean"), []
        for prompts in batches(task, self.limit):
            length = int(task.lengths[prompts[0]])
            split = Split(model, self.graph, tokens[prompts, :length], elsewhere.of(prompts, length))
            self.parts.append((prompts, split))

    def score(
        self, removed: Bool[np.ndarray, "set sender receiver"], *, name: str = "",
        advance: Callable[[int], None] = lambda n: None,
    ) -> dict[str, Float[np.ndarray, "set prompt"]]:  # fmt: skip
        """Each metric with each set of edges removed. Pieces called `name` that were finished are not computed again;
        no name, and none is kept. `advance` is called with the number of sets x prompts done."""
        removed = removed & self.graph.allowed
        starts = np.array([_first_layer(self.graph, one) for one in removed])
        values = {metric: np.full((len(removed), len(self.task)), np.nan, np.float32) for metric in self.metrics}
        for number, (prompts, split) in enumerate(self.parts):
            self.scorer.prepare(prompts, split.clean.final)
            size = max(1, self.limit // (len(prompts) * split.clean.length))
            for k, rows in enumerate(_stacks(starts, size)):
                piece = f"{name}/{number}/{k}"
                if name and piece in self.finished:
                    found = self.finished.get(piece)
                else:
                    scores = self.scorer.score(split.run(removed[rows]), 0)
                    found = np.stack([scores[metric] for metric in self.metrics])
                    if name:
                        self.finished.put(piece, found)
                for metric, array in zip(self.metrics, found, strict=True):
                    values[metric][np.ix_(rows, prompts.numpy())] = array
                advance(len(rows) * len(prompts))
        return values

    def ends(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Each metric [prompt] with no edge removed, and with all."""
        found = self.score(np.stack([np.zeros_like(self.graph.allowed), self.graph.allowed]))
        return {m: v[0] for m, v in found.items()}, {m: v[1] for m, v in found.items()}


def _stacks(starts: np.ndarray, size: int) -> list[np.ndarray]:
    """Which sets share a pass: those that start at the same layer, `size` at most."""
    return [
        part
        for start in np.unique(starts)
        for rows in [np.flatnonzero(starts == start)]
        for part in np.split(rows, range(size, len(rows), size))
    ]


def single(graph: Graph, edges: Sequence[str]) -> Bool[np.ndarray, "set sender receiver"]:
    """A set of each edge alone."""
    return np.stack([graph.mask([edge]) for edge in edges])
