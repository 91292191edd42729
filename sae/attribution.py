"""Gradient estimates of what the nodes of dictionaries do, and of what they do to each other.

    atp   (there - here) . dM/dnode, the slope on the clean run        Marks et al. 2024, arXiv:2403.19647, eq. 2
    ig    the slope averaged while the node's site goes from elsewhere to clean, what comes after following   eq. 3

A latent's slope is the site's along its decoder row, the error's is the site's own: whatever comes after the site is
the model itself. Scores are the opposite of the paper's indirect effect, so that they say how much worse the metric
gets when the node alone has its value elsewhere, in its unit: positive helps, for a loss too, as edges' do in
`interp.causal.attribution`. Prompts are averaged, positions summed. The average over the way is the trapezoid rule on
`steps` points, both ends among them with half the weight (the reference code leaves out the clean end).

An edge (section 3.2) is dM/dreceiver . d receiver/d sender . (there - here of the sender), with the receiver's slope
held; the slope between them does not pass through other dictionaries, whose outputs are held. So the "atp" score of a
node is the sum of its edges to all later nodes and of the one to the logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from interp.causal import sweeps
from interp.causal.attribution import Value, check_metric, metric_value, recorded
from interp.causal.finished import Finished, Sum
from interp.data.tasks import Task
from interp.decoder.hooks import Edit, captured
from interp.decoder.model import Model
from interp.decoder.placing import needs_gradients
from interp.decoder.sites import layer_site
from interp.errors import InputError, UnknownName, nearest
from interp.plots import LOWER_IS_BETTER
from interp.progress import Progress
from sae.nodes import Elsewhere, Place, State, check_baseline, limit_of, sites_of

METHODS = ("atp", "ig")


@dataclass(frozen=True)
class Settings:
    """How nodes and edges are estimated."""

    method: str = "ig"
    metric: str = "logit_diff"
    baseline: str = "counterfactual"
    steps: int = 10
    """Points between elsewhere and clean, both among them; the paper has 10."""

    def check(self, task: Task) -> None:
        """InputError for a method or baseline there is not, a metric without a slope, too few steps."""
        if self.method not in METHODS:
            raise UnknownName(f'no method "{self.method}". Nearest: {nearest(self.method, METHODS)}.')
        if self.steps < 2:
            raise InputError(f"{self.steps} steps given: both ends are among them, so 2 or more.")
        check_baseline(task, self.baseline)
        check_metric(self.metric, task, at_clean=False)
        if self.metric == "kl" and self.method == "atp":
            raise InputError('the metric "kl" has no slope on the clean run: use the method ig, or logit_diff.')


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Prompts of one length: of each place its state elsewhere minus here, and the slope of what it writes."""

    tokens: Int[Tensor, "prompt pos"]
    value: Value
    changes: list[State]
    slopes: list[Float[Tensor, "prompt pos d_out"]]


@torch.no_grad()
def node_scores(
    model: Model, task: Task, places: Sequence[Place], settings: Settings, *, progress: bool = False,
    finished: Finished | None = None,
) -> Float[np.ndarray, " node"]:  # fmt: skip
    """The estimated worsening of the metric when each node alone is as it is elsewhere, mean over prompts.

    Two forward passes and a backward one for "atp"; for "ig" `steps` forward and backward ones for each dictionary.
    """
    needs_gradients(model, settings.method)
    total = Sum(finished, "nodes", (places[-1].error + 1,))
    with Progress("attributing nodes", len(task), progress, done=total.done) as bar:
        for chunk in _chunks(model, task, places, settings, total):
            for place, change, slope in zip(places, chunk.changes, chunk.slopes, strict=True):
                total.value[place.nodes] += _along(change, place.dictionary.W_dec, slope).double().cpu().numpy()
            bar.advance(len(chunk.tokens))
    return _sign(settings) * total.value / len(task)


@torch.no_grad()
def edge_scores(
    model: Model, task: Task, places: Sequence[Place], nodes: Sequence[int], settings: Settings,
    *, progress: bool = False, finished: Finished | None = None,
) -> Float[np.ndarray, "sender receiver"]:  # fmt: skip
    """Edges between these nodes, by number and rising; the last receiver is the logits. 0 where no edge is.

    A backward pass for each node of all but the first dictionary, and one for the logits, whose slope is the clean
    run's (for kl it is 0 there).
    """
    mine = [[node for node in nodes if place.start <= node <= place.error] for place in places]
    latents = [
        [node - place.start for node in part if node < place.error] for part, place in zip(mine, places, strict=True)
    ]
    rows = [place.dictionary.W_dec[chosen] for place, chosen in zip(places, latents, strict=True)]
    column = {node: k for k, node in enumerate(nodes)} | {None: len(nodes)}
    total = Sum(finished, "edges", (len(nodes), len(nodes) + 1))
    with Progress("attributing edges", len(task), progress, done=total.done) as bar:
        for chunk in _chunks(model, task, places, settings, total):
            changes = [
                State(every[..., chosen], error) for (every, error), chosen in zip(chunk.changes, latents, strict=True)
            ]
            for receiver, slopes in _direct(model, places, mine, chunk):
                for senders, change, decoder, slope in zip(mine, changes, rows, slopes, strict=False):
                    found = _along(change, decoder, slope).double().cpu().numpy()[: len(senders)]  # the error last
                    total.value[[column[node] for node in senders], column[receiver]] += found
            bar.advance(len(chunk.tokens))
    return _sign(settings) * total.value / len(task)


def _sign(settings: Settings) -> int:
    """What makes of a change of the metric how much worse it gets."""
    return 1 if settings.metric in LOWER_IS_BETTER else -1


def _along(
    change: State, rows: Float[Tensor, "latent d_out"], slope: Float[Tensor, "prompt pos d_out"]
) -> Float[Tensor, " node"]:
    """change . slope of latents with these decoder rows, and then of the error, summed over prompts and positions."""
    latents = einsum(change.latents, slope @ rows.T, "prompt pos latent, prompt pos latent -> latent")
    return torch.cat([latents, (change.error * slope).sum()[None]])


def _chunks(model: Model, task: Task, places: Sequence[Place], settings: Settings, total: Sum) -> Iterator[_Chunk]:
    """The prompts that are not in `total` yet."""
    elsewhere, all_tokens = Elsewhere(model, task, places, settings.baseline), task.tokens().to(model.device)
    last = layer_site(model.n_layers - 1, "resid_post")
    limit = total.finished.setting("node tokens", limit_of(model, task, places))
    for prompts in total.left(sweeps.batches(task, limit)):
        length = int(task.lengths[prompts[0]])
        tokens, there = all_tokens[prompts, :length], elsewhere.of(prompts, length)
        with captured(model, [*sites_of(places), last]) as cache:
            model(tokens)
        value = metric_value(model, task, prompts, settings.metric, cache[last])
        here = [place.state(cache[place.reads], cache[place.writes]) for place in places]
        if settings.method == "atp":
            found = _slopes(model, tokens, value, [place.writes for place in places])
        else:
            found = [
                _averaged(model, tokens, value, place, cache[place.writes], place.moved(a, b), settings.steps)
                for place, a, b in zip(places, here, there, strict=True)
            ]
        slopes = [slope.flatten(2).to(place.dictionary.W_dec) for place, slope in zip(places, found, strict=True)]
        changes = [State(b.latents - a.latents, b.error - a.error) for a, b in zip(here, there, strict=True)]
        yield _Chunk(tokens, value, changes, slopes)


def _slopes(
    model: Model, tokens: Tensor, value: Value, sites: Sequence[str], edits: Mapping[str, Edit] | None = None
) -> list[Tensor]:
    """dM/dy at each of these sites, in a run with `edits`."""
    seen = recorded(model, tokens, list(sites), edits or {})
    with torch.enable_grad():
        total = value(seen[layer_site(model.n_layers - 1, "resid_post")]).sum()
    return list(torch.autograd.grad(total, [seen[site] for site in sites], materialize_grads=True))


def _averaged(
    model: Model, tokens: Tensor, value: Value, place: Place, written: Tensor, moved: Tensor, steps: int
) -> Tensor:
    """The slope on the way from elsewhere to clean: what the place writes goes there, all of its nodes at once."""
    moved, total = moved.reshape(written.shape).to(written), torch.zeros_like(written)
    for k in range(steps):
        weight = (0.5 if k in (0, steps - 1) else 1.0) / (steps - 1)
        between = written + (1 - k / (steps - 1)) * moved
        edit = {place.writes: lambda old, y=between: y.requires_grad_()}
        (slope,) = _slopes(model, tokens, value, [place.writes], edit)
        total += weight * slope
    return total


def _direct(
    model: Model, places: Sequence[Place], mine: Sequence[Sequence[int]], chunk: _Chunk
) -> Iterator[tuple[int | None, list[Tensor]]]:
    """Each receiving node, None for the logits, and the slope that its contribution to the metric has of what each
    earlier place writes. What a place writes is cut off from what comes before it, so that no slope passes through."""
    before: dict[str, Tensor] = {}

    def cut(site: str):
        def edit(written: Tensor) -> Tensor:
            before[site] = written
            return written.detach().requires_grad_()

        return edit

    seen = recorded(model, chunk.tokens, sites_of(places), {place.writes: cut(place.writes) for place in places})
    outputs = [seen[place.writes] for place in places]

    def slopes(total: Tensor, n: int) -> list[Tensor]:
        found = torch.autograd.grad(total, outputs[:n], retain_graph=True, materialize_grads=True)
        return [slope.flatten(2).to(place.dictionary.W_dec) for place, slope in zip(places, found, strict=False)]

    for n, (place, nodes) in enumerate(zip(places, mine, strict=True)):
        with torch.enable_grad():
            read = before[place.reads] if place.reads == place.writes else seen[place.reads]
            state = place.state(read, before[place.writes])
            totals = [_contribution(place, node, state, chunk.slopes[n]) for node in nodes] if n else []
        for node, total in zip(nodes, totals, strict=False):
            yield node, slopes(total, n)
    with torch.enable_grad():
        total = chunk.value(seen[layer_site(model.n_layers - 1, "resid_post")]).sum()
    yield None, slopes(total, len(places))


def _contribution(place: Place, node: int, state: State, held: Float[Tensor, "prompt pos d_out"]) -> Tensor:
    """A node's value times its slope, which is held."""
    if node == place.error:
        return (state.error * held).sum()
    latent = node - place.start
    return (state.latents[..., latent] * (held @ place.dictionary.W_dec[latent])).sum()
