"""What a change of the model does to text that it should not change: perplexity before and after, paired by window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import runs
from interp.causal.statistics import bootstrap
from interp.data.text import read_text, windows
from interp.decoder.hooks import Edit, edited
from interp.decoder.model import Model
from interp.errors import InputError, WrongModel
from interp.progress import Progress

Change = Mapping[str, Edit] | Model
"""Edits of the model, or another model with the same tokens: one whose weights were changed."""


@dataclass(frozen=True)
class Perplexity:
    """`losses`: mean next-token loss of each window, in nats, for "unchanged" and each change, [window] each."""

    losses: Mapping[str, Float[np.ndarray, " window"]]
    about: dict[str, Any]

    def table(self) -> pd.DataFrame:
        """One row a change: `perplexity` = exp(mean loss); `ratio` to the unchanged model's, with its 95% bootstrap
        interval over windows, paired: 1 is no change, above 1 worse. `loss` and `added_loss` in nats a token."""
        names, losses = list(self.losses), np.stack(list(self.losses.values())).astype(np.float64)
        added = losses - losses[names.index("unchanged")]
        low, high = bootstrap(added, self.about["seed"])
        return pd.DataFrame({
            "change": names, "perplexity": np.exp(losses.mean(1)), "ratio": np.exp(added.mean(1)),
            "ci_low": np.exp(low), "ci_high": np.exp(high), "loss": losses.mean(1), "added_loss": added.mean(1),
            "n": losses.shape[1],
        })  # fmt: skip

    def save(self, path: str | Path) -> None:
        """perplexity.parquet (the table) and perplexity_windows.parquet (every window's losses) into the folder."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self.table().to_parquet(path / "perplexity.parquet", index=False)
        pd.DataFrame(self.losses).to_parquet(path / "perplexity_windows.parquet", index=False)
        runs.write_json(path / "perplexity.json", self.about)

    @classmethod
    def load(cls, path: str | Path) -> Perplexity:
        """What `save` wrote. MissingFile where there is none."""
        said = runs.read_json(Path(path) / "perplexity.json", "make one with interp direction test --out")
        losses = pd.read_parquet(Path(path) / "perplexity_windows.parquet")
        return cls({name: losses[name].to_numpy() for name in losses}, said)


def perplexity(
    model: Model,
    text: str | Path | Sequence[str | Path] = "bundled",
    changes: Mapping[str, Change] | None = None,
    *,
    n: int = 64,
    context: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> Perplexity:
    """Of `model` on the first `n` windows of `context` tokens of `text` (a path, a glob, a list, or "bundled"), as it
    is and under each of `changes`. Every token but the first of a window is scored.

    WrongModel for a changed model with other tokens; InputError for a change called "unchanged".
    """
    changes = changes or {}
    if "unchanged" in changes:
        raise InputError('a change is called "unchanged": that is the model as it is.')
    for name, change in changes.items():
        if isinstance(change, Model) and change.tokenizer_hash != model.tokenizer_hash:
            raise WrongModel(f'"{change.name}" ({name}) makes other tokens of text than "{model.name}".')
    context = min(context, model.n_ctx)
    rows = windows(model, read_text(text), context=context, n_tokens=n * context)[:n]
    found = {}
    with Progress("perplexity", (1 + len(changes)) * len(rows), progress) as bar:
        for name, change in {"unchanged": {}, **changes}.items():
            other, edits = (change, {}) if isinstance(change, Model) else (model, change)
            parts = []
            for batch in rows.split(8):
                parts.append(_losses(other, edits, batch))
                bar.advance(len(batch))
            found[name] = np.concatenate(parts)
    said = {"text": str(text), "context": context, "seed": seed, "model": model.provenance()}
    return Perplexity(found, said | {"versions": runs.versions()})


@torch.no_grad()
def _losses(model: Model, edits: Mapping[str, Edit], tokens: Int[Tensor, "window pos"]) -> Float[np.ndarray, " window"]:
    with edited(model, edits):
        logits = model(tokens)[:, :-1].float()
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:].to(logits.device), reduction="none")
    return each.mean(1).cpu().numpy()
