"""Shuffled batches of activations, out of a store or straight from a model; the one place that asks for them.

Both kinds give every row of text once an epoch, in an order that seed and epoch fix and that can be entered at any
batch, so that a killed training goes on with the batch it would have had. Rows whose token is special (BOS, padding)
are left out, and so are held-out sequences: those that a hash of their number chooses, the same in every training.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.data.text import read_text, windows
from interp.decoder.hooks import captured
from interp.decoder.model import Model
from interp.decoder.sites import axes
from interp.errors import InputError
from interp.store.reading import Store, open_finished
from sae import parallel

BUFFER = 1 << 17
"""Rows of a model's activations that are shuffled together: 128 batches of 1024."""

Batch = dict[str, Tensor]
"""Activations by site, float32 [row, d_in]; heads side by side."""


class BadActivations(RuntimeError):
    """Activations that are not finite: the message names the place."""


def is_held_out(sequence: Int[np.ndarray, " row"], share: float) -> Bool[np.ndarray, " row"]:
    """Whether a sequence belongs to the `share` of them that no training sees: by a hash of its number (splitmix64)."""
    with np.errstate(over="ignore"):
        z = sequence.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53 < share


class StoreSource:
    """The rows of a store."""

    def __init__(self, store: Store | str | Path, *, held_out: float = 0.0) -> None:
        store = open_finished(store)
        self.store, self.name, self.model, self.context = store, store.name, store.model, store.context
        rows = store.content_rows
        out = is_held_out(store.sequence[:][rows], held_out)
        parts = np.array_split(rows[~out], parallel.world())
        self.rows, self.held_out_rows = parts[parallel.rank()], rows[out]
        self.n_rows = min(map(len, parts)) * len(parts)
        """Rows to train on, over all ranks: each has a part of the store of its own, and as many as any."""

    def describe(self) -> dict[str, Any]:
        """What run.json says of the source."""
        return {"store": self.store.name, "store_rows": self.store.n_rows}

    def site(self, name: str) -> str:
        """The full name of the one site `name`; UnknownSite where the store has none."""
        return self.store.site(name)

    def epoch(self, sites: Sequence[str], batch_size: int, *, seed: int, epoch: int, first: int) -> Iterator[Batch]:
        for tensors in self.store.shuffled_batches(
            list(sites), batch_size, seed=seed, epoch=epoch, first=first, rows=self.rows
        ):
            yield self._checked(dict(zip(sites, tensors, strict=True)))

    def held_out_batches(self, sites: Sequence[str], batch_size: int) -> Iterator[Batch]:
        """The rows never trained on, in their order; the last batch may be smaller."""
        for start in range(0, len(self.held_out_rows), batch_size):
            rows = self.held_out_rows[start : start + batch_size]
            found = {site: np.asarray(self.store[site][rows]).reshape(len(rows), -1) for site in sites}
            yield self._checked({site: torch.from_numpy(x) for site, x in found.items()})

    def _checked(self, batch: Batch) -> Batch:
        for site, x in batch.items():
            if not _is_finite(x):
                raise BadActivations(f"{site} is not finite at {self._place(site)} of {self.store.path}.")
        return batch

    def _place(self, site: str) -> str:
        """The first row of a site that is not finite, and the file it is in."""
        for shard in self.store.shards:
            x = np.asarray(self.store[site][shard.first_row : shard.first_row + shard.rows]).reshape(shard.rows, -1)
            if len(bad := np.flatnonzero(~np.isfinite(x).all(axis=1))):
                return f"row {shard.first_row + bad[0]} ({shard.file}, row {bad[0]})"
        return "no row as it is now"


class ModelSource:
    """The activations of a model on a text, computed when they are asked for and never on disk.

    Windows in random order fill a buffer of BUFFER rows, which is shuffled and cut in batches. Entering at a later
    batch computes that buffer alone: how many rows each has is known from the tokens.
    """

    def __init__(
        self, model: Model, text: str | Path | Sequence[str | Path], *, context: int = 128, held_out: float = 0.0,
        windows_at_once: int = 32, buffer: int = BUFFER,
    ) -> None:  # fmt: skip
        corpus = read_text(text)
        self._model, self.corpus, self.context = model, corpus, min(context, model.n_ctx)
        self.tokens = windows(model, corpus, context=self.context)
        special = torch.tensor(getattr(model.tokenizer, "all_special_ids", None) or [-1])
        self.is_text = ~torch.isin(self.tokens, special)
        out = torch.from_numpy(is_held_out(np.arange(len(self.tokens)), held_out))
        train_windows, self.held_out_windows = (torch.nonzero(part).squeeze(1) for part in (~out, out))
        parts = train_windows.tensor_split(parallel.world())
        self.train_windows = parts[parallel.rank()]
        self.n_rows = min(int(self.is_text[part].sum()) for part in parts) * len(parts)
        """Rows to train on, over all ranks: each has windows of its own, and as many rows as any."""
        self.name, self.model, self.at_once, self.buffer = model.name, model.provenance(), windows_at_once, buffer

    def describe(self) -> dict[str, Any]:
        """What run.json says of the source."""
        return {"text": self.corpus.hashes, "context": self.context}

    def site(self, name: str) -> str:
        """The full name of the one site `name`; UnknownSite where the model has none."""
        found = self._model.expand(name)
        if len(found) != 1 or not axes(found[0]).startswith("prompt pos"):
            raise InputError(f'"{name}" is not one site with a row a token: name one, e.g. 2.resid_post.')
        return found[0]

    def epoch(self, sites: Sequence[str], batch_size: int, *, seed: int, epoch: int, first: int) -> Iterator[Batch]:
        rng = np.random.default_rng([seed, epoch])
        order = self.train_windows[torch.from_numpy(rng.permutation(len(self.train_windows)))]
        groups = order.split(max(1, self.buffer // self.context))
        seeds = rng.integers(2**63, size=len(groups))
        skip, rest = first * batch_size, None
        for group, seed_of_group in zip(groups, seeds, strict=True):
            n = int(self.is_text[group].sum())
            if skip >= n:
                skip -= n
                continue
            rows = self._group(sites, group, int(seed_of_group))
            rows, skip = {site: x[skip:] for site, x in rows.items()}, 0
            rest = rows if rest is None else {site: torch.cat([rest[site], rows[site]]) for site in sites}
            n_batches = len(rest[sites[0]]) // batch_size
            for start in range(0, n_batches * batch_size, batch_size):
                yield {site: x[start : start + batch_size] for site, x in rest.items()}
            rest = {site: x[n_batches * batch_size :] for site, x in rest.items()}

    def held_out_batches(self, sites: Sequence[str], batch_size: int) -> Iterator[Batch]:
        """The rows never trained on, in their order, about `batch_size` at a time."""
        for group in self.held_out_windows.split(max(1, batch_size // self.context)):
            yield self._run(sites, self.tokens[group], self.is_text[group])

    def _group(self, sites: Sequence[str], group: Tensor, seed: int) -> Batch:
        """The rows of some windows, shuffled."""
        parts = [self._run(sites, self.tokens[some], self.is_text[some]) for some in group.split(self.at_once)]
        mixed = torch.from_numpy(np.random.default_rng(seed).permutation(sum(len(part[sites[0]]) for part in parts)))
        return {site: torch.cat([part[site] for part in parts])[mixed] for site in sites}

    @torch.no_grad()
    def _run(self, sites: Sequence[str], tokens: Tensor, keep: Tensor) -> Batch:
        with captured(self._model, list(sites)) as cache:
            self._model(tokens)
        batch = {site: cache[site].flatten(2)[keep.to(cache[site].device)].float() for site in sites}
        if bad := [site for site, x in batch.items() if not _is_finite(x)]:
            raise BadActivations(f'{bad[0]} of "{self._model.name}" is not finite on {", ".join(self.corpus.files)}.')
        return batch


Source = StoreSource | ModelSource


def batches(
    source: Source, sites: Sequence[str], batch_size: int, *, seed: int = 0, first_step: int = 0
) -> Iterator[Batch]:
    """The batches of step `first_step` and on, epoch after epoch, under torchrun this rank's part; each has the
    same rows at all sites.

    An epoch leaves out what does not fill its last batch. InputError where there are fewer rows than a batch;
    BadActivations, when it is reached, for a batch that is not finite.
    """
    if batch_size % parallel.world():
        raise InputError(f"batch_size ({batch_size}) is no multiple of the {parallel.world()} ranks.")
    per_epoch = source.n_rows // batch_size
    if per_epoch == 0:
        raise InputError(f"{source.name} has {source.n_rows} rows to train on, fewer than one batch ({batch_size}).")

    def epoch(number: int) -> Iterator[Batch]:
        first = max(0, first_step - number * per_epoch)
        found = source.epoch(sites, batch_size // parallel.world(), seed=seed, epoch=number, first=first)
        return itertools.islice(found, per_epoch - first)

    return itertools.chain.from_iterable(map(epoch, itertools.count(first_step // per_epoch)))


def _is_finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x.sum()) or torch.isfinite(x).all())  # a sum is quick, and may overflow
