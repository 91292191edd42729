"""patch(): where does the answer travel? An activation is carried from one run into another.

Denoising carries the clean activation into the corrupted run (what suffices?), noising the corrupted one into the clean
run (what is needed?). `normalized` is 0 as corrupted and 1 as clean. Heimersheim & Nanda 2024, arXiv:2404.15255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.causal import sweeps
from interp.causal.ablation import as_list
from interp.causal.effects import Effects, about, build
from interp.causal.finished import Finished
from interp.causal.interventions import Intervention, Whole, Write
from interp.data import metrics as scores
from interp.data.tasks import Task
from interp.decoder.loading import Model
from interp.decoder.sites import LAYER_SITES, Component, expand
from interp.errors import InputError, UnknownName, UnknownSite, nearest
from interp.progress import Progress

METHODS = ("denoise", "noise")
AXES = (("layer", "position"), ("layer", "head"))


@dataclass(frozen=True)
class _Place:
    """A cell of the map: a hook point, one head of it or all, one position of each prompt or all."""

    row: dict
    site: str
    head: int | None
    where: Tensor | None


def patch(
    model: Model,
    task: Task,
    *,
    site: str = "resid_pre",
    by: Sequence[str] = ("layer", "position"),
    method: str = "denoise",
    metric: str | Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = False,
    finished: Finished | None = None,
) -> Effects:
    """Patch `site` at each layer and position (or head), one at a time.

    Positions are every index where all prompts have one length, else the labels that the task gives. `effect` is
    patched minus unpatched; `normalized` is (patched - corrupted) / (clean - corrupted), of the means over prompts.
    InputError where a prompt has no corrupted twin of its length.
    """
    if site not in LAYER_SITES or site == "pattern":
        options = [name for name in LAYER_SITES if name != "pattern"]
        raise UnknownSite(f'no site "{site}" to patch. Nearest: {nearest(site, options)}.')
    if tuple(by) not in AXES:
        raise InputError(f"by {tuple(by)} given: it is one of {AXES[0]} and {AXES[1]}.")
    if by[1] == "head" and site not in ("q", "k", "v", "z"):
        raise InputError(f'site "{site}" has no heads: patch z, q, k or v by layer and head.')
    metrics = as_list(metric or task.default_metric)
    if method not in METHODS:
        raise UnknownName(f'no method "{method}". Nearest: {nearest(method, METHODS)}.')
    scores.check(metrics, has_wrong=task.has_wrong, task=task.name)
    names = expand(f"*.{site}", model.sites, model=f'"{model.name}"')
    task.tokens("corrupted")
    places = _places(model, task, site, names, by[1])
    source, target = ("clean", "corrupted") if method == "denoise" else ("corrupted", "clean")
    rows = [Intervention((Write(Whole(place.site, place.head), None, place.where),)) for place in places]
    with Progress("patching", len(places) * len(task), progress) as bar:
        found = sweeps.sweep(
            model, task, rows, metrics=metrics, which=target, donors=task.tokens(source), advance=bar.advance,
            finished=finished,
        )  # fmt: skip
    other = sweeps.sweep(model, task, [], metrics=metrics, which=source)
    ends = (other, found) if method == "noise" else (found, other)
    return build(
        [place.row for place in places],
        {(method, name): array for name, array in found.values.items()},
        found.baseline,
        seed=seed,
        about=about(model, task, seed, slow_because=found.slow_because),
        ends={name: tuple(end.baseline[name] for end in ends) for name in metrics},
    )


def _places(model: Model, task: Task, site: str, names: list[str], axis: str) -> list[_Place]:
    if axis == "head":
        n_heads = model.n_kv_heads if site in ("k", "v") else model.n_heads
        return [
            _Place({"component": Component("head", layer, head).name, "kind": "head", "layer": layer, "index": head,
                    "position": "all"}, name, head, None)
            for layer, name in enumerate(names)
            for head in range(n_heads)
        ]  # fmt: skip
    positions = [str(index) for index in range(task.length)] if task.same_length else task.labels
    if not positions:
        raise InputError(
            f'prompts of "{task.name}" differ in length and have no "positions": label them to patch by position.'
        )
    kind = {"attn_out": "attn", "mlp_out": "mlp"}.get(site, site)
    return [
        _Place({"component": f"L{layer}.{kind}", "kind": kind, "layer": layer, "index": -1, "position": position},
               name, None, torch.arange(task.length) == task.at(position)[:, None])
        for layer, name in enumerate(names)
        for position in positions
    ]  # fmt: skip
