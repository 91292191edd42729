"""Many interventions on the same prompts, at a fraction of a pass each.

One clean pass (`resuming.CleanPass`); then the interventions, ordered by the first layer and position they touch,
several at a time: each copy of the prompts in the stack has one of them. Only the logits that a metric asks for are
computed.

    for prompts of one length:                       # no padding, and one position read
        clean pass, donors' activations, clean values to be held
        for a stack of interventions that start alike:
            resume -> hidden states at the positions read -> metrics
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.causal.finished import Finished
from interp.causal.interventions import Intervention
from interp.causal.resuming import CleanPass, ShortCuts, entered_before, short_cuts, touches_norm
from interp.causal.scoring import Scorer
from interp.data.tasks import Task
from interp.decoder.hooks import Edit, captured, watch
from interp.decoder.model import Model
from interp.decoder.sites import layer_of, layer_site

DONATED = 2**27
"""Numbers of donors' activations kept at a time, at most."""

TOKENS_CPU, TOKENS_GPU = 2048, 2**17
"""Tokens in a stack, at most: on a CPU more gain nothing and leave the processor's cache."""


@dataclass(frozen=True)
class Found:
    """Values of each metric [intervention, prompt], and of the unchanged prompts [prompt]. `slow_because` says which
    short cut the model does not allow; it is empty where it allows all."""

    values: Mapping[str, np.ndarray]
    baseline: Mapping[str, np.ndarray]
    slow_because: str = ""


def activations(
    model: Model, task: Task, sites: Sequence[str], which: str = "clean", batch: int = 64
) -> dict[str, Float[Tensor, "prompt pos ..."]]:
    """Activations of all the prompts at `sites`, by full name."""
    tokens, parts = task.tokens(which), {}
    for part in tokens.split(batch):
        with torch.no_grad(), captured(model, sites) as cache:
            model(part)
        for name, value in cache.items():
            parts.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in parts.items()}


def tokens_at_once(model: Model, length: int) -> int:
    """How many tokens a stack may have: 40% of the free memory over what a block holds of one, within bounds."""
    floats = 12 * model.d_model + 8 * (model.d_mlp or 4 * model.d_model) + 4 * model.n_heads * length
    floats += 3 * max(model.mixtures.counts.values(), default=0) * model.d_model
    if model.device.type == "cuda":
        free, most = torch.cuda.mem_get_info(model.device)[0], TOKENS_GPU
    else:
        free, most = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), TOKENS_CPU
    return int(min(most, max(length, 0.4 * free / (floats * model.dtype.itemsize))))


def batches(task: Task, tokens: int) -> list[Int[Tensor, " prompt"]]:
    """The prompts by length, in batches of one length and at most `tokens` tokens."""
    found = []
    for length in task.lengths.unique():
        found += (task.lengths == length).nonzero()[:, 0].split(max(1, tokens // int(length)))
    return found


def stacks(
    interventions: Sequence[Intervention], starts: Sequence[int], firsts: Sequence[int], length: int, most: int
) -> list[list[int]]:
    """Which interventions share a pass: those that start at the same layer (`starts`) and hold the same things, by the
    first position they touch.

    A pass computes every copy from the first position of any, at most `most` positions in all. Once it has an eighth of
    that, no copy is added with which more than a sixteenth of it would be computed for nothing.
    """
    held = [tuple(sorted(intervention.frozen)) for intervention in interventions]
    order = sorted(range(len(interventions)), key=lambda row: (starts[row], held[row], firsts[row]))
    found: list[list[int]] = []
    for row in order:
        last = found[-1] if found else [row]
        positions = (len(last) + 1) * (length - firsts[last[0]])
        idle = sum(firsts[other] - firsts[last[0]] for other in (*last, row))
        full = positions > most or (8 * positions > most and 16 * idle > positions)
        if not found or full or (starts[last[0]], held[last[0]]) != (starts[row], held[row]):
            found.append([])
        found[-1].append(row)
    return found


def sweep(
    model: Model,
    task: Task,
    interventions: Sequence[Intervention],
    *,
    metrics: Sequence[str],
    which: str = "clean",
    donors: Int[Tensor, "prompt pos"] | None = None,
    classes: Mapping[str, Tensor] | None = None,
    advance: Callable[[int], None] = lambda n: None,
    finished: Finished | None = None,
    name: str = "sweep",
) -> Found:
    """The metrics under each intervention alone, on the `which` ("clean" or "corrupted") prompts.

    A part whose `new` is None gets what the prompt's row of `donors` has there. `classes`: name -> Bool[read], for the
    metrics of those reads alone. `advance` is called with the number of interventions times prompts done. Pieces called
    `name` that `finished` has are not computed again.
    """
    finished = Finished() if finished is None else finished
    tokens = task.tokens(which)
    limit = finished.setting("tokens", tokens_at_once(model, task.length))
    scorer = Scorer(model, task, metrics, classes or {})
    starts = [min(map(layer_of, intervention.sites)) for intervention in interventions]
    longest = int(task.lengths.max())
    cuts = short_cuts(model, tokens[task.lengths == longest][:, :longest])
    values = {metric: np.full((len(interventions), len(task)), np.nan, np.float32) for metric in scorer.names}
    baseline = {metric: np.full(len(task), np.nan, np.float32) for metric in scorer.names}
    for number, prompts in enumerate(batches(task, limit)):
        batch = _Batch(model, task, prompts, tokens, donors, cuts)
        batch.donor_sites = sorted(
            {w.part.site for i in interventions for w in i.writes if w.new is None}, key=layer_of
        )
        other = which != "clean" and "kl" in metrics
        reference = CleanPass(model, batch.cut(task.tokens("clean")), cuts) if other else batch.clean
        scorer.prepare(prompts, reference.final)
        for metric, scores in scorer.score(batch.clean.final[None], 0).items():
            baseline[metric][prompts.numpy()] = scores[0]
        most = max(batch.length, limit // len(prompts))
        firsts = [batch.first(intervention, scorer) for intervention in interventions]
        batch.relays = cuts.resumes and batch.can_relay(interventions)
        together = [0] * len(starts) if batch.relays else starts
        for k, rows in enumerate(stacks(interventions, together, firsts, batch.length, most)):
            piece = f"{name}/{number}/{k}"
            if piece in finished:
                found = finished.get(piece)
            else:
                first = min(firsts[row] for row in rows)
                found = np.stack(list(batch.run([interventions[row] for row in rows], first, scorer).values()))
                finished.put(piece, found)
            for metric, scores in zip(scorer.names, found, strict=True):
                values[metric][np.ix_(rows, prompts.numpy())] = scores
            advance(len(rows) * len(prompts))
    finished.flush()
    return Found(values, baseline, cuts.why)


def seconds_a_pass(model: Model, task: Task) -> float:
    """How long a whole pass of the task's prompts takes here, from one batch of them."""
    tokens, limit = task.tokens("clean"), tokens_at_once(model, task.length)
    prompts = batches(task, limit)[0]
    length = int(task.lengths[prompts[0]])
    clean = CleanPass(model, tokens[prompts, :length])
    started = time.perf_counter()
    clean.resume({layer_site(0, "resid_pre"): torch.clone}, 1)
    return (time.perf_counter() - started) * int(task.lengths.sum()) / (len(prompts) * length)


class _Batch:
    """Prompts of one length: their clean pass, what their donors have, and what can be held."""

    def __init__(
        self, model: Model, task: Task, prompts: Tensor, tokens: Tensor, donors: Tensor | None, cuts: ShortCuts
    ):
        self.model, self.prompts, self.length = model, prompts, int(task.lengths[prompts[0]])
        self.clean = CleanPass(model, self.cut(tokens), cuts)
        self.donors = None if donors is None else self.cut(donors)
        self.donor_sites: list[str] = []
        self.given: dict[str, Tensor] = {}
        self.held: dict[str, Tensor] = {}
        self.relays = False

    def cut(self, tokens: Tensor) -> Tensor:
        return tokens[self.prompts, : self.length]

    def first(self, intervention: Intervention, scorer: Scorer) -> int:
        """The first position to be computed: that which an intervention changes in any of these prompts, or is read."""
        firsts = [0 if w.where is None else int(_any(w.where[self.prompts], self.length)) for w in intervention.writes]
        return self.clean.start(intervention.sites, min(*firsts, scorer.first_read))

    def run(self, stack: Sequence[Intervention], first: int, scorer: Scorer) -> dict[str, np.ndarray]:
        """Each metric [stack, prompt] under each intervention of the stack alone."""
        edits: dict[str, Edit] = {}
        if self.relays:
            hidden = self._relay(stack, first, scorer.only_read)
        else:
            edits = self._edits(stack, first) | self._holds(stack[0], first)
            hidden = self.clean.resume(edits, len(stack), first=first, read=scorer.only_read)
        offset = scorer.only_read if hidden.shape[2] == 1 and scorer.only_read is not None else first
        return scorer.score(hidden, offset, normalized=touches_norm(edits))

    def can_relay(self, interventions: Sequence[Intervention]) -> bool:
        """Whether each changes one place between blocks, and what the donors have at all of them can be kept."""
        one = all(
            len(i.sites) == 1 and not i.frozen and entered_before(next(iter(i.sites))) is not None
            for i in interventions
        )
        return one and len(self.donor_sites) * self.model.d_model * len(self.prompts) * self.length <= DONATED

    def _relay(self, stack: Sequence[Intervention], first: int, read: int | None) -> Tensor:
        """The last hidden states of a stack whose copies are changed between blocks, of whatever layers."""
        sites = [next(iter(intervention.sites)) for intervention in stack]
        order = sorted(range(len(stack)), key=lambda copy: (entered_before(sites[copy]), sites[copy]))
        entering = []
        for site, copies in itertools.groupby(order, key=lambda copy: sites[copy]):
            group = [stack[copy] for copy in copies]
            entering.append((entered_before(site), self._edits(group, first)[site], len(group)))
        return self.clean.relay(entering, first=first, read=read)[torch.tensor(order).argsort()]

    def _edits(self, stack: Sequence[Intervention], first: int) -> dict[str, Edit]:
        """For each site an edit that changes every copy of the stack as its own intervention says."""
        by_site: dict[str, list] = {}
        for copy, intervention in enumerate(stack):
            for write in intervention.writes:
                by_site.setdefault(write.part.site, []).append((copy, write))
        wanted = [site for site, writes in by_site.items() if any(w.new is None for _, w in writes)]
        if any(site not in self.given for site in wanted):
            self.given = self._donated(wanted)

        def edit_of(site: str) -> Edit:
            given = _positions_second(site, self.given[site])[:, first:] if site in wanted else None

            def edit(value: Tensor) -> Tensor:
                value = value.clone()
                copies = value.unflatten(0, (len(stack), len(self.prompts)))
                for copy, write in by_site[site]:
                    write.apply(_positions_second(site, copies[copy]), self.prompts, first, given)
                return value

            return edit

        return {site: edit_of(site) for site in by_site}

    def _donated(self, wanted: Sequence[str]) -> dict[str, Tensor]:
        """What the donors have at the sites wanted now, and at as many of those wanted later as fit: a pass for them
        all."""
        later = [site for site in self.donor_sites if layer_of(site) >= min(map(layer_of, wanted))]
        experts = max(self.model.mixtures.counts.values(), default=0)
        widest = max(self.model.d_model * max(experts, 1), self.model.d_mlp or 0) * len(self.prompts) * self.length
        sites = dict.fromkeys([*wanted, *later[: DONATED // widest]])
        cache: dict[str, Tensor] = {}

        def keep(site: str) -> Callable[[Tensor], None]:
            return lambda value: cache.update({site: value.clone()})

        with torch.no_grad():
            watch(self.model, self.donors, {site: keep(site) for site in sites})
        return cache

    def _holds(self, intervention: Intervention, first: int) -> dict[str, Edit]:
        """Edits that put the clean scales and patterns back, from the layer of the intervention on."""
        start = min(map(layer_of, intervention.sites))
        sites = [s for s in self.model.scales if "ln" in intervention.frozen]
        sites += [s for s in self.model.sites if "pattern" in intervention.frozen and s.endswith("hook_pattern")]
        sites = [site for site in sites if layer_of(site) >= start]
        if missing := [site for site in sites if site not in self.held]:
            with torch.no_grad(), captured(self.model, missing) as cache:
                self.model(self.clean.tokens)
            self.held |= cache

        def hold(site: str) -> Edit:
            clean = self.held[site]
            clean = clean[:, :, first:] if site.endswith("hook_pattern") else clean[:, first:]
            return lambda value: clean.repeat(len(value) // len(clean), *[1] * (clean.ndim - 1))

        return {site: hold(site) for site in sites}


def _any(where: Tensor, length: int) -> int:
    """The first position that is True in any row; the last one where none is."""
    columns = where[:, :length].any(0).nonzero()
    return int(columns[0]) if len(columns) else length - 1


def _positions_second(site: str, value: Tensor) -> Tensor:
    """A pattern [prompt head query key] as [prompt query head key], a view; any other activation as it is."""
    return value.transpose(1, 2) if site.endswith("hook_pattern") else value
