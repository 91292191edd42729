"""Rows of activations in the order of their text, out of a store or straight from a model: what one pass reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.data.text import read_text, windows
from interp.decoder.hooks import captured
from interp.decoder.model import Model
from interp.decoder.sites import full
from interp.errors import InputError
from interp.store.reading import Store


@dataclass(frozen=True)
class Rows:
    """One row a token. `content` is False at BOS, which is left out of everything; `read(first, stop)` gives the
    activations of those rows by site, float32 [row, ...]."""

    name: str
    tokens: Int[np.ndarray, " row"]
    sequence: Int[np.ndarray, " row"]
    position: Int[np.ndarray, " row"]
    content: Bool[np.ndarray, " row"]
    step: int
    read: Any

    def __len__(self) -> int:
        return len(self.tokens)

    def chunks(self, size: int) -> Iterator[tuple[Int[np.ndarray, " row"], dict[str, Tensor]]]:
        """(rows, activations by site) of about `size` rows at a time, those of BOS left out."""
        size = max(1, size // self.step) * self.step
        for first in range(0, len(self), size):
            stop = min(first + size, len(self))
            content = self.content[first:stop]
            if content.any():
                activations = {site: x[content] for site, x in self.read(first, stop).items()}
                yield np.flatnonzero(content) + first, activations


def of_store(store: Store, sites: Sequence[str], *, n_rows: int | None = None) -> Rows:
    """The first `n_rows` rows of a store. UnknownSite where it lacks one of `sites`."""
    names = {site: store.site(site) for site in sites}
    n = store.n_rows if n_rows is None else min(n_rows, store.n_rows)
    content = np.zeros(store.n_rows, bool)
    content[store.content_rows] = True
    if not content[:n].any():
        raise InputError(f"store {store.name} has no rows of text.")

    def read(first: int, stop: int) -> dict[str, Tensor]:
        return {site: torch.from_numpy(np.asarray(store[name][first:stop])) for site, name in names.items()}

    return Rows(store.name, store.tokens[:n], store.sequence[:n], store.position[:n], content[:n], 1, read)


def of_text(
    model: Model, text: str | Path | Sequence[str | Path], sites: Sequence[str], *, context: int = 128,
    n_rows: int | None = None,
) -> Rows:  # fmt: skip
    """The rows of `text` in `model`, windows of `context` tokens; every read is a forward pass."""
    context = min(context, model.n_ctx)
    tokens = windows(model, read_text(text), context=context, n_tokens=n_rows)
    n_windows = len(tokens)

    def read(first: int, stop: int) -> dict[str, Tensor]:
        with torch.no_grad(), captured(model, list(sites)) as cache:
            model(tokens[first // context : -(-stop // context)])
        return {site: cache[full(site)].flatten(0, 1).float() for site in sites}

    return Rows(
        str(text), tokens.flatten().numpy(), np.repeat(np.arange(n_windows), context),
        np.tile(np.arange(context), n_windows), text_mask(model, tokens).flatten().numpy(), context, read,
    )  # fmt: skip


def text_mask(model: Model, tokens: Int[Tensor, "window pos"]) -> Bool[Tensor, "window pos"]:
    """False at special tokens: BOS, padding and the like."""
    special = {model.bos, *(getattr(model.tokenizer, "all_special_ids", None) or [])} - {None}
    return ~torch.isin(tokens, torch.tensor(sorted(special), dtype=tokens.dtype, device=tokens.device))


def joined(activations: dict[str, Tensor], sites: Sequence[str]) -> Tensor:
    """What a dictionary reads at each row: the activations of `sites` side by side, heads flattened: [row, d_in]."""
    return torch.cat([activations[site].flatten(1) for site in sites], dim=1)
