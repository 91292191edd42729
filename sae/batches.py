"""Shuffled activation batches out of a store, by step number: step 7000 is found without reading the 6999 before it.

The first position of each sequence is left out: BOS, or whatever stands there, is where attention parks, with a norm many
times that of any other token. `evaluation` leaves it alone likewise.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.decoder.sites import expand
from interp.errors import InputError
from interp.store.reading import Store


def one_site(store: Store, site: str) -> str:
    """The full name of `site`. UnknownSite where the store has none, InputError where the pattern selects several."""
    names = expand(site, store.sites, model=f'store "{store.path}"')
    if len(names) > 1:
        raise InputError(f'"{site}" selects {len(names)} sites; a dictionary is of one, e.g. {names[0]}.')
    return names[0]


def usable_rows(store: Store) -> Int[np.ndarray, " row"]:
    """Rows that are not the first of their sequence."""
    return np.flatnonzero(np.asarray(store.position[:]) > 0)


class Batches:
    """Batches of a site, each epoch in a new order that depends on `seed` and the epoch alone; the last, partial batch of
    an epoch is dropped."""

    def __init__(self, store: Store, site: str, *, batch_size: int, seed: int, device: torch.device) -> None:
        self.activations, self.rows = store[site], usable_rows(store)
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.per_epoch = len(self.rows) // batch_size
        self._epoch, self._order = -1, self.rows

    def order(self, epoch: int) -> Int[np.ndarray, " row"]:
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return self._order

    def read(self, rows: Int[np.ndarray, " row"]) -> Float[Tensor, "row d_in"]:
        """The activations of `rows` (sorted), heads side by side."""
        values = np.asarray(self.activations[rows], dtype=np.float32)
        return torch.from_numpy(values.reshape(len(rows), -1)).to(self.device)

    def __getitem__(self, step: int) -> Float[Tensor, "batch d_in"]:
        epoch, batch = divmod(step, self.per_epoch)
        return self.read(np.sort(self.order(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]))

    def sample(self, n: int) -> Float[Tensor, "row d_in"]:
        """The first `n` rows of epoch 0."""
        return self.read(np.sort(self.order(0)[:n]))
