"""Gradient estimates of what removing each edge would do: EAP and its integrated kin. (Of activations: `atp.py`.)

All are a first-order guess: (what is put in - what was there) . (slope of the metric), for every edge at once, at the
cost of a few passes. An estimate is wrong where the slope changes on the way, as in a softmax that is nearly 0 or 1;
`interp.causal.verdicts.verify` holds it against exact patching.

    EAP                 (here - elsewhere of the sender) . dM/dx of the receiver, clean run   Syed et al. 2310.10348
    EAP-IG inputs       the slope averaged while the embeddings go from elsewhere to clean    Hanna et al. 2403.17806
    EAP-IG activations  the slope averaged while what the sender's layer writes goes there    2403.17806; MIB 2504.13151

Scores of edges say how much worse the metric gets when the edge alone is removed, in its unit: positive helps, as in
MIB's files, for a loss too. "Elsewhere" is the corrupted prompt or the mean, as in `interp.causal.edges`. The average
is the trapezoid rule on `steps` points, both ends among them with half the weight: exact for a quadratic metric, and
one scale for both kinds (the reference code leaves out one end, each kind another).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from interp.causal import sweeps
from interp.causal.edges import WRITTEN, Elsewhere, check_split, outputs, places_of, written_sites
from interp.causal.finished import Finished, Sum
from interp.causal.graph import Graph
from interp.data.metrics import METRICS, OF_SETS, check
from interp.data.tasks import Task
from interp.decoder import parts
from interp.decoder.hooks import Edit, Enough, captured, edited
from interp.decoder.model import Model
from interp.decoder.placing import needs_gradients
from interp.decoder.sites import layer_site
from interp.errors import InputError, NotFinite, UnknownName, nearest
from interp.plots import LOWER_IS_BETTER
from interp.progress import Progress

METHODS = ("eap", "eap-ig", "eap-ig-activations")

Value = Callable[[Tensor], Tensor]
"""What comes out of the last block, [prompt pos d_model], to the metric of each prompt."""


def check_metric(metric: str, task: Task, *, at_clean: bool) -> None:
    """InputError for a metric without a slope: accuracy anywhere, kl on the clean run itself, where it is least."""
    check([metric], has_wrong=task.has_wrong, task=task.name)
    if metric == "accuracy" or (metric == "kl" and at_clean):
        where = "" if metric == "accuracy" else " on the clean run (use eap-ig)"
        raise InputError(f'the metric "{metric}" has no slope{where}: attribute logit_diff, loss or prob.')


def check_finite(model: Model, estimate: Float[np.ndarray, "*any"]) -> None:
    """NotFinite where slopes have overflowed, as they do in float16."""
    if not np.isfinite(estimate).all():
        dtype = str(model.dtype).removeprefix("torch.")
        raise NotFinite(f'slopes of "{model.name}" overflow in {dtype}: load it in float32 or bfloat16.')


def metric_value(model: Model, task: Task, prompts: Int[Tensor, " prompt"], metric: str, clean: Tensor) -> Value:
    """The metric as a differentiable function of the last hidden states of these prompts, the mean over a prompt's
    reads. `clean` are those of the clean run."""
    prompt, pos, answer, wrong = task.reads()
    answer, wrong = task.answer_sets() if metric in OF_SETS else (answer, wrong)
    row = torch.full((len(task),), -1)
    row[prompts] = torch.arange(len(prompts))
    mine = row[prompt] >= 0
    row, pos, answer, wrong = (t.to(model.device) for t in (row[prompt[mine]], pos[mine], answer[mine], wrong[mine]))
    count = torch.zeros(len(prompts), device=model.device).index_add_(0, row, torch.ones_like(row, dtype=torch.float))

    def value(hidden: Tensor) -> Tensor:
        with torch.no_grad():
            clean_logits = model.head(clean[row, pos]) if metric == "kl" else None
        each = METRICS[metric](model.head(hidden[row, pos]), answer, wrong, clean_logits)
        return torch.zeros_like(count, dtype=each.dtype).index_add(0, row, each) / count

    return value


def recorded(model: Model, tokens: Tensor, keep: list[str], edits: Mapping[str, Edit]) -> dict[str, Tensor]:
    """A pass with `edits` whose activations at `keep` and after the last block are in autograd's graph."""
    seen: dict[str, Tensor] = {}
    first, last = layer_site(0, "resid_pre"), layer_site(model.n_layers - 1, "resid_post")

    def at(site: str) -> Edit:
        def edit(value: Tensor) -> Tensor:
            value = edits[site](value) if site in edits else value
            # a node of its own: the same tensor may go past the hook point too (one norm for attention and MLP)
            seen[site] = value.detach().requires_grad_() if site == first else value.view_as(value)
            if site == last:
                raise Enough
            return seen[site]

        return edit

    try:
        with torch.enable_grad(), edited(model, {site: at(site) for site in {*keep, *edits, first, last}}):
            model(tokens)
    except Enough:
        pass
    return seen


def slopes(
    model: Model, graph: Graph, tokens: Int[Tensor, "prompt pos"], value: Value, edits: Mapping[str, Edit],
    start: int = 0,
) -> Iterator[tuple[slice, Float[Tensor, "prompt pos place d_model"]]]:  # fmt: skip
    """dM/dx of every place that reads from layer `start` on, and which of the graph's receivers they are.

    One backward pass to q, k, v and the MLP's input; from there each place's own slope follows through its projection
    and its copy of the layer norm.
    """
    layers = range(start, model.n_layers)
    mlps = {layer: f"blocks.{layer}.mlp.hook_in" for layer in layers if graph.has_mlp}
    heads = [(layer, which) for layer in layers for which in "qkv"]
    last = layer_site(model.n_layers - 1, "resid_post")
    middle = "resid_pre" if graph.parallel else "resid_mid"
    streams = [layer_site(layer, kind) for layer in layers for kind in {"resid_pre", middle if mlps else "resid_pre"}]
    asked = [layer_site(layer, which) for layer, which in heads] + list(mlps.values())
    seen = recorded(model, tokens, asked + streams, edits)
    with torch.enable_grad():
        wanted = [seen[site] for site in [*asked, last]]
        found = torch.autograd.grad(value(seen[last]).sum(), wanted, materialize_grads=True)
    slope = dict(zip([*asked, last], found, strict=True))
    for layer in layers:
        places = places_of(graph, layer)
        x, pattern = seen[layer_site(layer, "resid_pre")], "... head d_head, head d_model d_head -> ... head d_model"
        after = [
            einsum(slope[layer_site(layer, which)], parts.weights(model, layer, which), pattern) for which in "qkv"
        ]
        norm = parts.norm(model, layer, "attn")
        yield slice(places["q"].start, places["v"].stop), _through(norm, x, torch.cat(after, 2))
        if graph.has_mlp:
            x, norm = seen[layer_site(layer, middle)], parts.norm(model, layer, "mlp")
            yield places["mlp"], _through(norm, x, slope[mlps[layer]][:, :, None])
    yield slice(len(graph.receivers) - 1, None), slope[last][:, :, None]


def _through(norm: torch.nn.Module, x: Tensor, after: Tensor) -> Tensor:
    """The slope before a layer norm at `x` [prompt pos d_model], of that after it for several places."""
    with torch.enable_grad():
        copies = x.detach()[:, :, None].expand_as(after).clone().requires_grad_()
        normed = norm(copies)
        return after if normed is copies else torch.autograd.grad(normed, copies, after.detach())[0]


@torch.no_grad()
def edge_scores(
    model: Model, task: Task, *, method: str = "eap-ig", metric: str | None = None, baseline: str = "counterfactual",
    steps: int = 5, progress: bool = False, finished: Finished | None = None,
) -> Float[np.ndarray, "sender receiver"]:  # fmt: skip
    """The estimated worsening of the metric when each edge alone is removed, mean over prompts; 0 where no edge is.

    2 forward passes and a backward one for "eap"; `steps` forward and backward ones more for "eap-ig", for each layer's
    heads and MLP for "eap-ig-activations". Prompts go in chunks that fit memory; those that `finished` has are not run
    again. InputError for a model whose parts do not add up.
    """
    if method not in METHODS:
        raise UnknownName(f'no method "{method}". Nearest: {nearest(method, METHODS)}.')
    if steps < 2:
        raise InputError(f"{steps} steps given: both ends are among them, so 2 or more.")
    needs_gradients(model, method)
    metric = metric or task.default_metric
    check_metric(metric, task, at_clean=method == "eap")
    graph = Graph.of(model)
    check_split(model, graph, task)
    elsewhere, tokens = Elsewhere(model, task, baseline), task.tokens("clean").to(model.device)
    limit = max(task.length, WRITTEN // (len(graph.senders) * model.d_model))
    total = Sum(finished, "edges", graph.allowed.shape)
    runs = _runs(model, graph, method, steps)
    with Progress("attributing", len(runs) * len(task), progress, done=len(runs) * total.done) as bar:
        for prompts in total.left(sweeps.batches(task, limit)):
            length = int(task.lengths[prompts[0]])
            mine, there = tokens[prompts, :length], elsewhere.of(prompts, length)
            last = layer_site(model.n_layers - 1, "resid_post")
            with captured(model, [*written_sites(model), last]) as here:
                model(mine)
            value = metric_value(model, task, prompts, metric, here[last])
            moved = outputs(model, here) - outputs(model, there)
            for site, share, weight, senders, start in runs:
                between = {} if site is None else {site: _between(there[site], here[site], share)}
                for places, slope in slopes(model, graph, mine, value, between, start):
                    pattern = "sender prompt pos d_model, prompt pos place d_model -> sender place"
                    found = einsum(moved[senders], slope.detach(), pattern)
                    total.value[senders, places] += weight * found.double().cpu().numpy()
                bar.advance(len(prompts))
    check_finite(model, total.value)
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return np.where(graph.allowed, sign * total.value / len(task), 0)


def _runs(model: Model, graph: Graph, method: str, steps: int) -> list[tuple[str | None, float, float, slice, int]]:
    """The slopes to be taken: the site that is moved, how far (1 is clean), the weight, which senders' scores it is
    for, and the first layer that reads them."""
    everyone = slice(0, len(graph.senders))
    if method == "eap":
        return [(None, 1.0, 1.0, everyone, 0)]
    shares = [k / (steps - 1) for k in range(steps)]
    weights = [(0.5 if share in (0, 1) else 1.0) / (steps - 1) for share in shares]
    groups = [(layer_site(0, "resid_pre"), everyone, 0)]
    if method == "eap-ig-activations":
        groups, n = [(layer_site(0, "resid_pre"), slice(0, 1), 0)], 1
        for layer in range(model.n_layers):
            same = layer if model.has_mlp and not graph.parallel else layer + 1
            groups.append((layer_site(layer, "z"), slice(n, n + model.n_heads), same))
            n += model.n_heads
            if model.has_mlp:
                groups.append((layer_site(layer, "mlp_out"), slice(n, n + 1), layer + 1))
                n += 1
    return [
        (site, a, w, senders, start) for site, senders, start in groups for a, w in zip(shares, weights, strict=True)
    ]


def _between(there: Tensor, here: Tensor, share: float) -> Edit:
    return lambda value: there + share * (here - there)
