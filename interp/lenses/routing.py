"""Where does a mixture of experts send which tokens? The load of each expert by class of token.

    share    of the tokens of a class, those to which the expert writes (its weight is not 0): over experts it sums to
             the number chosen, and an expert like any other has chosen / experts
    prob     the router's probability of the expert (its softmax over all experts), mean over the tokens
    entropy  of those probabilities, in nats, mean over the tokens: 0 is sure, ln(experts) knows nothing

Intervals are 95% bootstraps over prompts, of which a share is one quotient: tokens of a text are not independent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from interp import runs
from interp.causal.effects import about
from interp.causal.statistics import bootstrap_ratio
from interp.data.classes import text_task
from interp.data.tasks import Task
from interp.decoder.hooks import Edit, captured, edited
from interp.decoder.model import Model
from interp.decoder.sites import Component, layer_site
from interp.errors import InputError, MissingFile
from interp.progress import Progress

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BATCH = 32
"""Prompts a pass."""


@dataclass(frozen=True)
class Routing:
    """`rows`: a row for each expert and class of token; `layers`: for each layer and class the `entropy`. See above."""

    rows: pd.DataFrame
    layers: pd.DataFrame
    about: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """A row for each expert and class: `share` with its interval, `prob`, and the `n` tokens of the class."""
        return self.rows.copy()

    def figure(self) -> Figure:
        """A panel a class: each expert's share with its interval, beside what it would be of experts all alike."""
        from interp.plots.classes import load

        return load(self.rows, at=self.about["at"])

    def save(self, path: str | Path) -> None:
        """routing.parquet, layers.parquet and about.json into the folder `path`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self.rows.to_parquet(path / "routing.parquet", index=False)
        self.layers.to_parquet(path / "layers.parquet", index=False)
        runs.write_json(path / "about.json", self.about)

    @classmethod
    def load(cls, path: str | Path) -> Routing:
        """What `save` wrote. MissingFile where there is none."""
        path = Path(path)
        if not (path / "routing.parquet").exists():
            raise MissingFile(f"no routing.parquet in {path}: make one with interp experts.")
        said = json.loads((path / "about.json").read_text(encoding="utf-8"))
        return cls(pd.read_parquet(path / "routing.parquet"), pd.read_parquet(path / "layers.parquet"), said)


def routing(
    model: Model,
    on: Task | str | Sequence[str],
    *,
    classes: Mapping[str, Bool[Tensor, " read"]] | None = None,
    at: str = "token",
    n: int = 64,
    context: int = 64,
    edits: Mapping[str, Edit] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Routing:
    """Which tokens of a task's prompts, or of `n` windows of a text, are sent to which expert.

    `classes` (`interp.data.classes`) say of what kind the tokens to be predicted are. They count where they stand
    themselves (`at` "token"), or where they are predicted from (`at` "read"), which is where a layer's experts act on
    their loss. The class "all" is of all of these.
    """
    if not model.mixtures:
        why = model.refused.get("expert_out", "a mixture of experts is asked for")
        raise InputError(f'"{model.name}" has no experts that can be taken apart: {why}.')
    if at not in ("token", "read"):
        raise InputError(f'at "{at}" given: token (where a token stands) or read (where it is predicted from).')
    task = on if isinstance(on, Task) else text_task(model, on, n=n, context=context)
    masks = {"all": torch.ones(len(task.reads()[0]), dtype=torch.bool)} | dict(classes or {})
    sums = _sums(model, task, masks, _positions(task, at), edits or {}, progress)
    return _routing(model, sums, list(masks), seed, about(model, task, seed, at=at, n_prompts=len(task)))


def _positions(task: Task, at: str) -> tuple[Tensor, Tensor]:
    """(prompt, position) of each read, or of the token that it expects. InputError where that is not in the prompt."""
    prompt, pos, answer, _ = task.reads()
    if at == "read":
        return prompt, pos
    inside = pos + 1 < task.lengths[prompt]
    tokens = task.tokens("clean")
    if not inside.all() or not torch.equal(tokens[prompt, pos + 1], answer):
        raise InputError(
            f'answers of "{task.name}" do not stand in its prompts: use at read, where they are predicted.'
        )
    return prompt, pos + 1


@torch.no_grad()
def _sums(
    model: Model, task: Task, masks: Mapping[str, Tensor], where: tuple[Tensor, Tensor], edits: Mapping[str, Edit],
    progress: bool,
) -> dict[int, Float[np.ndarray, "quantity kind prompt"]]:  # fmt: skip
    """Layer -> sums over the tokens of a class in a prompt, float64: how many there are, their entropy, then how many
    are sent to each expert, then the probability of each."""
    found = {layer: np.zeros((2 + 2 * mixture.n, len(masks), len(task))) for layer, mixture in model.mixtures.items()}
    inside = torch.stack(list(masks.values())).double()
    sites = [name for name in model.mixtures.points if name.endswith(("hook_expert_weights", "hook_router_probs"))]
    with Progress("routing", len(task), progress) as bar, edited(model, edits):
        for rows in torch.arange(len(task)).split(BATCH):
            mine = torch.isin(where[0], rows)
            prompt, pos = where[0][mine], where[1][mine]
            with captured(model, sites) as cache:
                model(task.tokens("clean")[rows])
            for layer in found:
                each = _each_token(cache, layer, prompt - rows[0], pos)
                of_prompt = torch.nn.functional.one_hot(prompt - rows[0], len(rows)).double()
                sums = einsum(
                    each, inside[:, mine], of_prompt, "token quantity, kind token, token prompt -> quantity kind prompt"
                )
                found[layer][:, :, rows] = sums.numpy()
            bar.advance(len(rows))
    return found


def _each_token(cache: Mapping[str, Tensor], layer: int, row: Tensor, pos: Tensor) -> Float[Tensor, "token quantity"]:
    """Of each token 1, its entropy, whom it is sent to and the router's probabilities, NaN where they are not known."""
    sent = (cache[layer_site(layer, "expert_weights")].cpu()[row, pos] != 0).double()
    probs = cache.get(layer_site(layer, "router_probs"))
    probs = torch.full_like(sent, torch.nan) if probs is None else probs.cpu()[row, pos].double()
    entropy = torch.special.entr(probs).sum(1, keepdim=True)
    return torch.cat([torch.ones(len(row), 1, dtype=torch.double), entropy, sent, probs], 1)


def _routing(
    model: Model, sums: Mapping[int, np.ndarray], names: Sequence[str], seed: int, said: dict[str, Any]
) -> Routing:
    rows, layers = [], []
    for layer, found in sums.items():
        n_tokens, entropy, sent, probs = found[0], found[1], *np.split(found[2:], 2)
        low, high = bootstrap_ratio(entropy, n_tokens, seed)
        total = n_tokens.sum(1)
        layers.append(pd.DataFrame({
            "layer": layer, "class": names, "entropy": entropy.sum(1) / total, "ci_low": low, "ci_high": high,
            "n": total.astype(int),
        }))  # fmt: skip
        for expert in range(len(sent)):
            low, high = bootstrap_ratio(sent[expert], n_tokens, seed)
            rows.append(pd.DataFrame({
                "component": Component("expert", layer, expert).name, "layer": layer, "index": expert, "class": names,
                "share": sent[expert].sum(1) / total, "ci_low": low, "ci_high": high,
                "prob": probs[expert].sum(1) / total, "alike": model.mixtures[layer].n_chosen / len(sent),
                "n": total.astype(int),
            }))  # fmt: skip
    return Routing(pd.concat(rows, ignore_index=True), pd.concat(layers, ignore_index=True), said)
