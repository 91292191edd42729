"""Latents and errors of dictionaries as nodes of a model, and exact patching of any set of them.

At the site that a dictionary writes

    y = sum over latents of latent . W_dec row + b_dec + error

so that a node is a latent (`demo/417`) or the error (`demo/error`, one for a site), at all positions. Nodes that are
not kept have what they have elsewhere: on the corrupted prompt ("counterfactual") or on the mean over the task's clean
prompts, position by position ("mean"). Kept ones are computed from what reaches them in that run, the error too
(Marks et al. 2024, arXiv:2403.19647, section 3.3). All kept: the model. None kept: every site as it is elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.causal.edges import BASELINES
from interp.causal.finished import Finished
from interp.causal.resuming import CleanPass, short_cuts
from interp.causal.scoring import Scorer
from interp.causal.sweeps import batches, tokens_at_once
from interp.data.tasks import Task
from interp.decoder.hooks import Edit, captured
from interp.decoder.model import Model
from interp.decoder.sites import layer_of, short
from interp.errors import InputError, UnknownName, nearest
from sae.dictionary import Dictionary
from sae.splicing import check_model

LATENTS_AT_ONCE = 2**24
"""Numbers that the latents of a stack of prompts may have, spread out."""


class State(NamedTuple):
    """What a dictionary says of some prompts."""

    latents: Float[Tensor, "prompt pos d_sae"]
    error: Float[Tensor, "prompt pos d_out"]
    """What is written beyond the latents and b_dec."""


@dataclass(frozen=True, eq=False)
class Place:
    """A dictionary in a model. Its nodes are numbers `start` to `start + d_sae`, the error the last of them."""

    name: str
    dictionary: Dictionary
    start: int

    @property
    def reads(self) -> str:
        return self.dictionary.site

    @property
    def writes(self) -> str:
        return self.dictionary.out_sites[0]

    @property
    def error(self) -> int:
        """The number of the error node."""
        return self.start + self.dictionary.d_sae

    @property
    def nodes(self) -> slice:
        return slice(self.start, self.error + 1)

    @property
    def names(self) -> list[str]:
        return [*(f"{self.name}/{latent}" for latent in range(self.dictionary.d_sae)), f"{self.name}/error"]

    def state(self, read: Float[Tensor, "prompt pos *rest"], written: Float[Tensor, "prompt pos *rest"]) -> State:
        latents = self.dictionary.encode(read.flatten(2).to(self.dictionary.W_enc))
        return State(latents, written.flatten(2).to(latents) - self.dictionary.decode(latents))

    def moved(self, here: State, there: State) -> Float[Tensor, "prompt pos d_out"]:
        """What is written there minus what is written here."""
        return (there.latents - here.latents) @ self.dictionary.W_dec + there.error - here.error


def places_of(model: Model, dictionaries: Mapping[str, Dictionary]) -> list[Place]:
    """The dictionaries in the order of what they write. WrongModel and UnknownSite as `check_model`; InputError for a
    crosscoder, a site outside the blocks, and two dictionaries that write the same site."""
    if not dictionaries:
        raise InputError("no dictionary given: one or more are needed.")
    for name, dct in dictionaries.items():
        check_model(dct, model)
        if len(dct.sites) > 1 or len(dct.out_sites) > 1:
            raise InputError(f'"{name}" reads {", ".join(map(short, dct.sites))}: nodes are of one site.')
        for site in dct.sites + dct.out_sites:
            if not 0 <= layer_of(site) < model.n_layers:
                raise InputError(f'"{name}" is at {site}: nodes are of a site in a block, such as 2.resid_post.')
        if model.sites.index(dct.sites[0]) > model.sites.index(dct.out_sites[0]):
            raise InputError(f'"{name}" reads {short(dct.sites[0])} and writes {short(dct.out_sites[0])}, before it.')
    order = sorted(dictionaries.items(), key=lambda item: model.sites.index(item[1].out_sites[0]))
    for (a, first), (b, second) in zip(order, order[1:], strict=False):
        if first.out_sites == second.out_sites:
            raise InputError(f'"{a}" and "{b}" are both at {short(first.out_sites[0])}: one of them at a time.')
    found, start = [], 0
    for name, dct in order:
        found.append(Place(name, dct.to(model.device), start))
        start = found[-1].error + 1
    return found


def sites_of(places: Sequence[Place]) -> list[str]:
    """What has to be captured to know the state of every place."""
    return list(dict.fromkeys(site for place in places for site in (place.reads, place.writes)))


def check_baseline(task: Task, baseline: str) -> None:
    """UnknownName for a baseline there is not; InputError for "counterfactual" where the task has none."""
    if baseline not in BASELINES:
        raise UnknownName(f'no baseline "{baseline}". Nearest: {nearest(baseline, BASELINES)}.')
    if baseline == "counterfactual" and not task.has_corrupted:
        raise InputError(f'task "{task.name}" has prompts without "corrupted": use the baseline mean.')


class Elsewhere:
    """The state of every place elsewhere: `of(prompts, length)`."""

    def __init__(self, model: Model, task: Task, places: Sequence[Place], baseline: str):
        check_baseline(task, baseline)
        self.model, self.places = model, places
        self.tokens = task.tokens("corrupted") if baseline == "counterfactual" else None
        self.means = _means(model, task, places) if baseline == "mean" else []

    def of(self, prompts: Int[Tensor, " prompt"], length: int) -> list[State]:
        if self.tokens is not None:
            return states(self.model, self.tokens[prompts, :length], self.places)
        return [State(*(value[:length].expand(len(prompts), -1, -1) for value in mean)) for mean in self.means]


def _means(model: Model, task: Task, places: Sequence[Place]) -> list[tuple[Tensor, Tensor]]:
    """Of every place the mean latents and error over the clean prompts, [pos ...]; summed in float64."""
    count, totals = torch.zeros(task.length, 1, device=model.device), []
    for place in places:
        widths = place.dictionary.d_sae, place.dictionary.d_out
        totals.append([count.new_zeros(task.length, width, dtype=torch.double) for width in widths])
    for prompts in batches(task, limit_of(model, task, places)):
        length = int(task.lengths[prompts[0]])
        count[:length] += len(prompts)
        for total, state in zip(totals, states(model, task.tokens()[prompts, :length], places), strict=True):
            for mine, value in zip(total, state, strict=True):
                mine[:length] += value.double().sum(0)
    found = zip(places, totals, strict=True)
    return [tuple((value / count).to(place.dictionary.W_dec) for value in total) for place, total in found]


@torch.no_grad()
def states(model: Model, tokens: Int[Tensor, "prompt pos"], places: Sequence[Place]) -> list[State]:
    """What every dictionary says of these prompts."""
    with captured(model, sites_of(places)) as cache:
        model(tokens.to(model.device))
    return [place.state(cache[place.reads], cache[place.writes]) for place in places]


def limit_of(model: Model, task: Task, places: Sequence[Place]) -> int:
    """Tokens of a stack of prompts: what fits of the model and of the latents."""
    widest = max(place.dictionary.d_sae for place in places)
    return max(task.length, min(tokens_at_once(model, task.length), LATENTS_AT_ONCE // widest))


class Patcher:
    """A task's prompts, ready to be run with any set of nodes kept and the others as they are elsewhere."""

    def __init__(
        self, model: Model, task: Task, places: Sequence[Place], *, metric: str, baseline: str,
        finished: Finished | None = None,
    ):  # fmt: skip
        self.model, self.task, self.places, self.metric = model, task, places, metric
        self.finished = Finished() if finished is None else finished
        self.elsewhere = Elsewhere(model, task, places, baseline)
        self.scorer = Scorer(model, task, [metric], {})
        self.limit = self.finished.setting("node tokens", limit_of(model, task, places))
        self.cuts = short_cuts(model, task.tokens()[task.lengths == task.lengths[0]][:, : task.lengths[0]])

    @property
    def n_nodes(self) -> int:
        return self.places[-1].error + 1

    @torch.no_grad()
    def score(
        self, kept: Bool[np.ndarray, "set node"], *, name: str = "", advance: Callable[[int], None] = lambda n: None
    ) -> Float[np.ndarray, "set prompt"]:
        """The metric with each set of nodes kept. Pieces called `name` that were finished are not computed again; no
        name, and none is kept. `advance` is called with the number of sets x prompts done."""
        values = np.full((len(kept), len(self.task)), np.nan, np.float32)
        for number, prompts in enumerate(batches(self.task, self.limit)):
            length = int(self.task.lengths[prompts[0]])
            clean = CleanPass(self.model, self.task.tokens()[prompts, :length], self.cuts)
            there = self.elsewhere.of(prompts, length)
            self.scorer.prepare(prompts, clean.final)
            size = max(1, self.limit // (len(prompts) * length))
            for k, rows in enumerate(np.split(np.arange(len(kept)), range(size, len(kept), size))):
                piece = f"{name}/{number}/{k}"
                if name and piece in self.finished:
                    found = self.finished.get(piece)
                else:
                    mask = torch.from_numpy(kept[rows]).to(self.model.device)
                    hidden = clean.resume(self._edits(mask, there), len(rows))
                    found = self.scorer.score(hidden, 0)[self.metric]
                    if name:
                        self.finished.put(piece, found)
                values[np.ix_(rows, prompts.numpy())] = found
                advance(len(rows) * len(prompts))
        return values

    def _edits(self, kept: Bool[Tensor, "stack node"], there: Sequence[State]) -> dict[str, Edit]:
        """For each site that loses a node in one of the sets, the edit of all copies in the stack."""
        touched = [k for k, place in enumerate(self.places) if not kept[:, place.nodes].all()]
        reads = {self.places[k].reads for k in touched} - {self.places[k].writes for k in touched}
        seen: dict[str, Tensor] = {}

        def keep(site: str) -> Edit:
            def edit(value: Tensor) -> Tensor:
                seen[site] = value
                return value

            return edit

        def replace(place: Place, elsewhere: State) -> Edit:
            def edit(written: Tensor) -> Tensor:
                here = place.state(written if place.reads == place.writes else seen[place.reads], written)
                moved = _moved(place, here, elsewhere, kept[:, place.nodes])
                seen[place.writes] = written + moved.reshape(written.shape).to(written)
                return seen[place.writes]

            return edit

        edits = {site: keep(site) for site in reads}
        return edits | {self.places[k].writes: replace(self.places[k], there[k]) for k in touched}


def _moved(
    place: Place, here: State, there: State, kept: Bool[Tensor, "stack node"]
) -> Float[Tensor, "copy pos d_out"]:
    """What nodes that are not kept write elsewhere, minus what they write here, of stacked copies."""
    latents, error = (value.unflatten(0, (len(kept), -1)) for value in here)
    lost = ~kept[:, None, None, :]
    change = ((there.latents - latents) * lost[..., :-1]) @ place.dictionary.W_dec
    return (change + (there.error - error) * lost[..., -1:]).flatten(0, 1)
