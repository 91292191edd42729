"""trace(): causal tracing. Where does the model keep what it knows of the subject?

The subject's embeddings get noise, so that the answer is lost; then one state of the clean run is put back, in a window
of layers at one position, and the probability of the answer measured again. Meng et al. 2022, arXiv:2202.05262,
section 2.1: P(restored) - P(noised), the indirect effect. It needs no corrupted prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.causal import sweeps
from interp.causal.ablation import as_list
from interp.causal.effects import Effects, about, build
from interp.causal.finished import Finished
from interp.causal.interventions import Intervention, Whole, Write
from interp.causal.places import Row, positions_of, ticks, whole_sites
from interp.data import metrics as scores
from interp.data.tasks import Task
from interp.decoder.model import Model
from interp.decoder.sites import MODEL_SITES
from interp.errors import InputError, UnknownSite, nearest
from interp.progress import Progress

SITES = ("resid_post", "attn_out", "mlp_out", "resid_pre", "resid_mid")


@dataclass(frozen=True, eq=False)
class Noise(Write):
    """Noise added to the embeddings: that of each prompt its own, 0 where there is none."""

    noise: Float[Tensor, "prompt pos d_model"] | None = None

    def apply(self, x: Tensor, prompts: Tensor, first: int, donor: Tensor | None) -> None:
        x += self.noise[prompts, first : first + x.shape[1]].to(x)


@dataclass(frozen=True)
class Plan:
    """What `trace` will do: in each of `draws`, a pass of the noised prompts for every place."""

    places: list[Row]
    restored: list[tuple[Write, ...]]
    """Of each place, the layers put back."""
    where: Bool[Tensor, "prompt pos"]
    """What gets noise."""
    metrics: list[str]
    draws: int
    window: int
    methods: tuple[str, ...] = ("trace",)

    def shard(self, i: int, n: int) -> Plan:
        raise InputError("a trace is not split into shards: give it fewer prompts, or each site a run.")

    def cost(self, n_layers: int) -> tuple[int, float]:
        """Passes, whole ones: the noise is in the embeddings, so that every layer is computed again."""
        return self.draws * len(self.places), float(self.draws * len(self.places))


def plan(
    model: Model,
    task: Task,
    *,
    site: str = "resid_post",
    subject: str | None = None,
    window: int | None = None,
    noise: float = 3.0,
    draws: int = 10,
    metric: str | Sequence[str] | None = None,
) -> Plan:
    """Everything that `trace` will measure, checked; nothing is run. InputError for what cannot be."""
    metrics = as_list(metric or "prob")
    scores.check(metrics, has_wrong=task.has_wrong, task=task.name)
    if site not in SITES:
        raise UnknownSite(f'site "{site}" cannot be restored. Nearest: {nearest(site, SITES)}.')
    if draws < 1 or noise <= 0 or (window or 1) < 1:
        raise InputError(f"draws {draws}, noise {noise}, window {window} given: each is above 0.")
    if window is None:
        window = 1 if site.startswith("resid") else min(10, max(1, model.n_layers // 4))
    layers = whole_sites(model, site)
    masks = {position: torch.arange(task.length) == task.at(position)[:, None] for position in positions_of(task)}
    places, restored = [], []
    for layer, (row, _) in enumerate(layers):
        near = layers[max(0, layer - window // 2) : layer - window // 2 + window]
        for position, mask in masks.items():
            places.append(row | {"position": position})
            restored.append(tuple(Write(part, None, mask) for _, part in near))
    return Plan(places, restored, _subject(task, subject), metrics, draws, window)


def trace(
    model: Model,
    task: Task,
    *,
    site: str = "resid_post",
    subject: str | None = None,
    window: int | None = None,
    noise: float = 3.0,
    draws: int = 10,
    metric: str | Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = False,
    finished: Finished | None = None,
) -> Effects:
    """Restore `site` in a window of layers at each position, one at a time, after noise on the subject's embeddings.

    `subject`: a label of the task; without it, every position at which clean and corrupted prompts differ. `noise`: the
    standard deviation of the noise over that of the subject's embeddings, 3 in the paper. `window`: layers put back
    together, about the row's; 1 for residual streams, for `attn_out` and `mlp_out` a quarter of the layers, at most the
    paper's 10. Values are means over `draws` of noise, fixed by `seed`.

    `effect` is restored minus noised, in the metric's unit (`prob`, if none is given: positive brings the answer back);
    `normalized` is 0 as noised and 1 as clean. InputError where there is no subject.
    """
    todo = plan(model, task, site=site, subject=subject, window=window, noise=noise, draws=draws, metric=metric)
    sigma = noise * _spread(model, task, todo.where)
    generator = torch.Generator().manual_seed(seed)
    restored: dict[str, np.ndarray] = {}
    noised: dict[str, np.ndarray] = {}
    with Progress("tracing", draws * (len(todo.places) + 1) * len(task), progress) as bar:
        for draw in range(draws):
            drawn = torch.randn(*todo.where.shape, model.d_model, generator=generator) * sigma * todo.where[..., None]
            broken = Noise(Whole(MODEL_SITES["embed"]), torch.zeros(()), noise=drawn)
            found = sweeps.sweep(
                model, task, [Intervention((broken, *writes)) for writes in ((), *todo.restored)],
                metrics=todo.metrics, donors=task.tokens("clean"), advance=bar.advance, finished=finished,
                name=f"draw {draw}",
            )  # fmt: skip
            for name, values in found.values.items():
                noised[name] = noised.get(name, 0) + values[0] / draws
                restored[name] = restored.get(name, 0) + values[1:] / draws
    said = about(
        model, task, seed, site=site, subject=subject or "what is corrupted", noise=noise, window=todo.window,
        draws=draws, ticks=ticks(model, task), slow_because=found.slow_because,
    )  # fmt: skip
    return build(
        todo.places,
        {("trace", name): values for name, values in restored.items()},
        noised,
        seed=seed,
        about=said,
        ends={name: (noised[name], found.baseline[name]) for name in todo.metrics},
    )


def _subject(task: Task, subject: str | None) -> Bool[Tensor, "prompt pos"]:
    """Where the noise is added."""
    if subject is not None:
        return torch.arange(task.length) == task.at(subject)[:, None]
    if not task.has_corrupted:
        raise InputError(f'no subject given, and "{task.name}" has no corrupted prompts to tell it: name a position.')
    where = task.tokens("clean") != task.tokens("corrupted")
    if not where.any(1).all():
        which = int((~where.any(1)).nonzero()[0]) + 1
        raise InputError(f'prompt {which} of "{task.name}" has a twin like itself: name the subject\'s position.')
    return where


def _spread(model: Model, task: Task, where: Bool[Tensor, "prompt pos"]) -> float:
    """Standard deviation of the subject's embeddings, over tokens and dimensions."""
    embed = MODEL_SITES["embed"]
    return float(sweeps.activations(model, task, [embed])[embed][where].float().std())
