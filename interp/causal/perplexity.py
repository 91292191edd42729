"""What a change of the model does to text that it should not change: perplexity before and after, paired by window.

perplexity = exp(sum of losses / number of tokens scored)        1: each token was certain; d_vocab: a blind guess
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import runs
from interp.causal.statistics import bootstrap_ratio
from interp.data.text import read_text, windows
from interp.decoder.hooks import Edit, edited
from interp.decoder.model import Model
from interp.errors import InputError, WrongModel
from interp.progress import Progress

Change = Mapping[str, Edit] | Model
"""Edits of the model, or another model with the same tokens: one whose weights were changed."""

SCORED = "tokens scored"
"""The column of perplexity_windows.parquet that is no change."""
_TAKEN = {"unchanged": "the model as it is", SCORED: "how many tokens are scored"}


@dataclass(frozen=True)
class Perplexity:
    """`losses`: mean next-token loss of each window, in nats, for "unchanged" and each change, [window] each; `scored`:
    how many tokens of the window it is the mean of."""

    losses: Mapping[str, Float[np.ndarray, " window"]]
    scored: Int[np.ndarray, " window"]
    about: dict[str, Any]

    def table(self) -> pd.DataFrame:
        """One row a change: `perplexity` = exp(mean loss over all tokens scored), and its 95% bootstrap interval over
        windows, `perplexity_low` to `perplexity_high`; `ratio` to the unchanged model's, with its interval `ci_low` to
        `ci_high`, paired by window: 1 is no change, above 1 worse. `loss` and `added_loss` in nats a token; `n` windows
        with `n_tokens` scored."""
        names, losses = list(self.losses), np.stack(list(self.losses.values())).astype(np.float64)
        added = losses - losses[names.index("unchanged")]
        counts = np.broadcast_to(self.scored.astype(np.float64), losses.shape)
        seed, n_tokens = self.about["seed"], int(self.scored.sum())
        (low, high), (added_low, added_high) = (bootstrap_ratio(x * counts, counts, seed) for x in (losses, added))
        loss, added = ((x * counts).sum(1) / n_tokens for x in (losses, added))
        return pd.DataFrame({
            "change": names, "perplexity": np.exp(loss), "perplexity_low": np.exp(low), "perplexity_high": np.exp(high),
            "ratio": np.exp(added), "ci_low": np.exp(added_low), "ci_high": np.exp(added_high), "loss": loss,
            "added_loss": added, "n": losses.shape[1], "n_tokens": n_tokens,
        })  # fmt: skip

    def save(self, path: str | Path) -> None:
        """perplexity.parquet (the table) and perplexity_windows.parquet (every window's losses, and how many tokens are
        scored in it) into the folder."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self.table().to_parquet(path / "perplexity.parquet", index=False)
        pd.DataFrame({SCORED: self.scored, **self.losses}).to_parquet(path / "perplexity_windows.parquet", index=False)
        runs.write_json(path / "perplexity.json", self.about)

    @classmethod
    def load(cls, path: str | Path) -> Perplexity:
        """What `save` wrote. MissingFile where there is none."""
        said = runs.read_json(Path(path) / "perplexity.json", "make one with interp.perplexity(...).save")
        losses = pd.read_parquet(Path(path) / "perplexity_windows.parquet")
        return cls(
            {name: losses[name].to_numpy() for name in losses if name != SCORED}, losses[SCORED].to_numpy(), said
        )


def perplexity(
    model: Model,
    text: str | Path | Sequence[str | Path] = "bundled",
    changes: Mapping[str, Change] | None = None,
    *,
    n: int | None = 64,
    context: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> Perplexity:
    """Of `model` on `text` (a path, a glob, a list, or "bundled"), as it is and under each of `changes`.

    `n`: its first so many windows of `context` tokens, where every token but the first of a window is scored. None: the
    whole text, in windows that move on by half a window, so that each token is scored once, with half a window or more
    before it but at the beginning of the text. BOS between documents is not scored.

    WrongModel for a changed model with other tokens; InputError for a change called "unchanged".
    """
    changes = changes or {}
    if taken := {"unchanged", SCORED} & set(changes):
        raise InputError(f'a change is called "{min(taken)}": that is {_TAKEN[min(taken)]}.')
    for name, change in changes.items():
        if isinstance(change, Model) and change.tokenizer_hash != model.tokenizer_hash:
            raise WrongModel(f'"{change.name}" ({name}) makes other tokens of text than "{model.name}".')
    context = min(context, model.n_ctx)
    rows = windows(model, read_text(text), context=context, n_tokens=None if n is None else n * context)[:n]
    rows, scored = _overlapping(rows, model.bos) if n is None else (rows, torch.ones_like(rows, dtype=torch.bool))
    scored[:, 0] = False
    scored &= rows != (-1 if model.bos is None else model.bos)
    found = {}
    with Progress("perplexity", (1 + len(changes)) * len(rows), progress) as bar:
        for name, change in {"unchanged": {}, **changes}.items():
            other, edits = (change, {}) if isinstance(change, Model) else (model, change)
            parts = []
            for batch, which in zip(rows.split(8), scored.split(8), strict=True):
                parts.append(_losses(other, edits, batch, which))
                bar.advance(len(batch))
            found[name] = np.concatenate(parts)
    said = {"text": str(text), "whole": n is None, "context": context, "seed": seed, "model": model.provenance()}
    return Perplexity(found, scored.sum(1).numpy(), said | {"versions": runs.versions()})


def _overlapping(
    rows: Int[Tensor, "window pos"], bos: int | None
) -> tuple[Int[Tensor, "more pos"], Bool[Tensor, "more pos"]]:
    """Windows of one length that move on by half of it over the text that `rows` cut up, and the tokens of each that no
    window before it has."""
    text = (rows if bos is None else rows[:, 1:]).flatten()
    body = rows.shape[1] - (bos is not None)
    half = max(1, body // 2)
    starts = [*range(0, len(text) - body, half), len(text) - body]
    found = torch.stack([text[start : start + body] for start in starts])
    new = [body, *(later - before for before, later in zip(starts, starts[1:], strict=False))]
    if bos is not None:
        found = torch.nn.functional.pad(found, (1, 0), value=bos)
    return found, torch.arange(found.shape[1]) >= found.shape[1] - torch.tensor(new)[:, None]


@torch.no_grad()
def _losses(
    model: Model, edits: Mapping[str, Edit], tokens: Int[Tensor, "window pos"], scored: Bool[Tensor, "window pos"]
) -> Float[np.ndarray, " window"]:
    with edited(model, edits):
        logits = model(tokens)[:, :-1].float()
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:].to(logits.device), reduction="none")
    which = scored[:, 1:].to(each.device)
    return ((each * which).sum(1) / which.sum(1).clamp(min=1)).cpu().numpy()
