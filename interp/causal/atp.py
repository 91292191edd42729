"""AtP: what activation patching would find, estimated for all places from two forward passes and a backward one.

    sum (a_source - a_target) . dM/da         the slope on the target run; Kramar et al. 2024, arXiv:2403.00745

Denoising carries the clean activation into the corrupted run, so its slope is taken there. AtP* (section 3.1.1) for
queries and keys: a softmax that is nearly 0 or 1 has no slope, so the pattern that the patched query or key gives is
computed, and the slope taken at the pattern: sum (pattern' - pattern) . dM/dpattern.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from interp.causal import sweeps
from interp.causal.attribution import Value, check_finite, check_metric, metric_value, recorded
from interp.causal.effects import Effects, about, build
from interp.causal.patching import plan
from interp.causal.places import positions_of
from interp.data.tasks import Task
from interp.decoder.hooks import captured, edited
from interp.decoder.model import Model
from interp.decoder.placing import needs_gradients
from interp.decoder.sites import LAYER_SITES, layer_site
from interp.errors import InputError, UnknownName, UnknownSite, nearest
from interp.progress import Progress

HEADED = ("z", "q", "k", "v")


def attribute(
    model: Model, task: Task, *, site: str = "z", by: Sequence[str] = ("layer", "head"), method: str = "denoise",
    metric: str | None = None, fix_qk: bool = True, seed: int = 0, progress: bool = False,
) -> Effects:  # fmt: skip
    """An estimate of `interp.patch` with the same settings; the method is called "denoise-atp" or "noise-atp".

    Positive moves the metric up; `normalized` is 0 as corrupted, 1 as clean. `fix_qk`: AtP*'s queries and keys; a pass
    more, for keys by position one for each position. InputError for a metric without a slope.
    """
    needs_gradients(model, "attribution patching")
    metric = metric or task.default_metric
    check_metric(metric, task, at_clean=method == "noise")
    if site not in LAYER_SITES or site == "pattern":
        raise UnknownSite(f'no site "{site}" to attribute. Nearest: {nearest(site, LAYER_SITES)}.')
    if tuple(by) not in (("layer", "position"), ("layer", "head")) or (by[1] == "head" and site not in HEADED):
        raise InputError(f"{site} by {','.join(by)} given: it is layer,position or, of z, q, k and v, layer,head.")
    if method not in ("denoise", "noise"):
        raise UnknownName(f'no method "{method}". Nearest: {nearest(method, ("denoise", "noise"))}.')
    target, source = ("corrupted", "clean") if method == "denoise" else ("clean", "corrupted")
    names = model.expand(f"*.{site}")
    patterns = model.expand("*.pattern") if fix_qk and site in ("q", "k") else None
    rows = [place.row for place in plan(model, task, site=site, by=by, method=method, metric=metric).places]
    estimate = np.zeros((len(rows), len(task)))
    with Progress("attributing", len(task), progress) as bar:
        for prompts in sweeps.batches(task, sweeps.tokens_at_once(model, task.length)):
            cut = slice(0, int(task.lengths[prompts[0]]))
            tokens, donors, clean = (task.tokens(w)[prompts, cut].to(model.device) for w in (target, source, "clean"))
            last = layer_site(model.n_layers - 1, "resid_post")
            value = metric_value(model, task, prompts, metric, _activations(model, clean, [last])[last])
            slope = _slopes_at(model, tokens, value, patterns or names)
            if patterns:
                found = _of_patterns(model, tokens, donors, slope, site, by[1])
            else:
                here, there = (_activations(model, which, names) for which in (tokens, donors))
                found = [_summed((there[name] - here[name]) * slope[name], by[1]) for name in names]
            estimate[:, prompts] = _at_rows(task, prompts, found, by[1])
            bar.advance(len(prompts))
    check_finite(model, estimate)
    start, end = (sweeps.sweep(model, task, [], metrics=[metric], which=which).baseline for which in (target, source))
    ends = (start[metric], end[metric]) if method == "denoise" else (end[metric], start[metric])
    values = {(f"{method}-atp", metric): (start[metric] + estimate).astype(np.float32)}
    said = about(model, task, seed, fix_qk=patterns is not None)
    return build(rows, values, start, seed=seed, about=said, ends={metric: ends})


@torch.no_grad()
def _activations(model: Model, tokens: Int[Tensor, "prompt pos"], names: Sequence[str]) -> dict[str, Tensor]:
    with captured(model, names) as cache:
        model(tokens)
    return cache


def _slopes_at(model: Model, tokens: Tensor, value: Value, names: Sequence[str]) -> dict[str, Tensor]:
    """dM/da at each hook point, of each prompt's own metric."""
    seen = recorded(model, tokens, list(names), {})
    total = value(seen[layer_site(model.n_layers - 1, "resid_post")]).sum()
    found = torch.autograd.grad(total, [seen[name] for name in names], materialize_grads=True)
    return dict(zip(names, found, strict=True))


def _summed(product: Float[Tensor, "prompt pos *rest"], axis: str) -> Float[Tensor, "prompt column"]:
    """The estimate of each head, or of each position."""
    if axis == "head":
        return reduce(product, "prompt pos head d_head -> prompt head", "sum")
    return product.flatten(2).sum(2)


@torch.no_grad()
def _of_patterns(
    model: Model, tokens: Tensor, donors: Tensor, slope: Mapping[str, Tensor], site: str, axis: str
) -> list[Float[Tensor, "prompt column"]]:
    """AtP*: of each layer the estimate for its queries or keys, through the patterns that they give.

    A query makes its own row of the pattern, so that all of them are patched in one pass; a key is in every row of a
    column, so by position each is patched alone.
    """
    layers = range(model.n_layers)
    sites = [layer_site(layer, which) for layer in layers for which in "qk"]
    here, there = (_activations(model, which, sites) for which in (tokens, donors))
    before = _activations(model, tokens, list(slope))

    def moved(where: Tensor | slice) -> list[Float[Tensor, "prompt head query key"]]:
        """(pattern' - pattern) . slope with the donors' queries or keys at these positions, all layers in one pass."""
        new = dict(here)
        for layer in layers:
            name = layer_site(layer, site)
            new[name] = here[name].clone()
            new[name][:, where] = there[name][:, where]
        with edited(model, {name: lambda old, value=value: value for name, value in new.items()}):
            after = _activations(model, tokens, list(slope))
        return [(after[name] - before[name]) * slope[name] for name in slope]

    if axis == "position" and site == "k":
        columns = [[each.sum((1, 2, 3)) for each in moved(slice(t, t + 1))] for t in range(tokens.shape[1])]
        return [torch.stack(layer, 1) for layer in zip(*columns, strict=True)]
    if axis == "position":
        return [each.sum((1, 3)) for each in moved(slice(None))]
    kv = model.n_kv_heads if site == "k" else model.n_heads
    return [reduce(e, "prompt (head group) query key -> prompt head", "sum", head=kv) for e in moved(slice(None))]


def _at_rows(task: Task, prompts: Tensor, found: Sequence[Tensor], axis: str) -> Float[np.ndarray, "row prompt"]:
    """The columns that rows ask for, layer by layer."""
    if axis == "position":
        where = torch.stack([task.at(position)[prompts] for position in positions_of(task)], 1)
        found = [each.cpu().gather(1, where) for each in found]
    return torch.cat([each.T.cpu() for each in found]).double().numpy()
