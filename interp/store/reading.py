"""Store: look up rows of a finished store, memory-mapped; no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from interp import runs
from interp.decoder.sites import expand
from interp.errors import InputError, MissingFile, nearest
from interp.store import format


@dataclass(frozen=True)
class Rows:
    """One dataset over all shards. Index it with an int, a slice or an integer array; activations come as float32."""

    parts: list[np.ndarray]
    starts: np.ndarray
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        if isinstance(rows, (int, np.integer)):
            return self[np.array([rows])][0]
        idx = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        idx = np.where(idx < 0, idx + len(self), idx)
        if len(idx) and (idx.min() < 0 or idx.max() >= len(self)):
            raise IndexError(f"row {idx.max()} of {len(self)}")
        kind = self.parts[0].dtype
        out = np.empty((len(idx), *self.shape[1:]), np.float32 if kind.kind == "f" else kind)
        shard_of = np.searchsorted(self.starts, idx, side="right") - 1
        for shard in np.unique(shard_of):
            mine = shard_of == shard
            out[mine] = self.parts[shard][idx[mine] - self.starts[shard]]
        return out


class Store:
    """A finished activation store. `store["2.resid_post"][:100]`, `store.tokens[...]`, `store.batches(...)`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / "store.json").exists():
            beside = [str(p.parent) for p in self.path.parent.glob("*/store.json")]
            hint = f"Nearest: {nearest(str(path), beside)}." if beside else "Make one with: interp record."
            raise MissingFile(f"no store at {path}. {hint}")
        if not runs.is_done(self.path):
            raise InputError(f"{path} is not finished: the command that made it continues it.")
        self.description: dict[str, Any] = json.loads((self.path / "store.json").read_text(encoding="utf-8"))
        self.shards = format.read_manifest(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def model(self) -> dict[str, Any]:
        return self.description["model"]

    @property
    def context(self) -> int:
        return self.description["context"]

    @property
    def sites(self) -> list[str]:
        return self.description["sites"]

    @property
    def n_rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def site(self, name: str) -> str:
        """The full name of the one hook point that `name` selects; UnknownSite where the store has none."""
        found = expand(name, self.sites, model=f"the store {self.name}")
        if len(found) != 1:
            raise InputError(f'"{name}" selects {len(found)} hook points of {self.name}: name one, e.g. {found[0]}.')
        return found[0]

    def d(self, site: str) -> int:
        """Width of an activation: heads x d_head for `z`."""
        return int(np.prod(self[site].shape[1:]))

    def _rows(self, name: str) -> Rows:
        parts = [
            np.memmap(self.path / s.file, p["dtype"], "r", p["offset"], tuple(p["shape"]))
            for s in self.shards
            for p in [s.datasets[name]]
        ]
        starts = np.array([shard.first_row for shard in self.shards])
        return Rows(parts, starts, (self.n_rows, *parts[0].shape[1:]))

    def __getitem__(self, site: str) -> Rows:
        return self._rows(f"activations/{self.site(site)}")

    @cached_property
    def tokens(self) -> Rows:
        return self._rows("tokens")

    @cached_property
    def sequence(self) -> Rows:
        return self._rows("sequence")

    @cached_property
    def position(self) -> Rows:
        return self._rows("position")

    def statistics(self, site: str) -> dict[str, Any]:
        """Over all rows but BOS, in float64: n, mean [...], variance [...], norm_mean (mean L2 norm), max_abs."""
        sums = format.read_statistics(self.path, self.shards, self.site(site))
        n = sums["n"]
        mean = sums["sum"] / n
        return {
            "n": int(n), "mean": mean, "variance": sums["sumsq"] / n - mean**2,
            "norm_mean": float(sums["norm_sum"] / n), "max_abs": float(sums["max_abs"]),
        }  # fmt: skip

    @cached_property
    def content_rows(self) -> np.ndarray:
        """Rows whose token is not BOS, int64."""
        bos = self.description["bos"]
        return np.arange(self.n_rows) if bos is None else np.flatnonzero(self.tokens[:] != bos)

    def batches(self, site: str, batch_size: int, *, seed: int = 0, epoch: int = 0) -> Iterator[np.ndarray]:
        """float32 [batch_size, d], every row but BOS once in an order that `seed` and `epoch` fix; the last, partial
        batch is left out."""
        rows = self[site]
        order = np.random.default_rng([seed, epoch]).permutation(self.content_rows)
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield rows[order[start : start + batch_size]].reshape(batch_size, -1)

    def info(self) -> dict[str, Any]:
        """What `interp store info` prints."""
        size = sum(shard.size for shard in self.shards)
        return self.description | {"rows": self.n_rows, "shards": len(self.shards), "bytes": size}
