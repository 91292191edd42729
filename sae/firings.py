"""Which latents fire where, on disk: the sparse codes of one pass over a text, as sae.features works on them.

A row of activations has d_in numbers, its code only the latents that are not 0: 8 bytes each, so 32 a token over a
million tokens are 256 MB in two files, read through the page cache. Nothing here grows with rows x d_sae.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

Code = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows (ascending, one entry a firing), latents, values."""


@dataclass(frozen=True)
class Block:
    """The firings of the latents `first` to `stop` - 1, sorted by latent, then row. `latent` counts from `first`."""

    first: int
    stop: int
    latent: Int[np.ndarray, " firing"]
    row: Int[np.ndarray, " firing"]
    value: Float[np.ndarray, " firing"]

    @property
    def size(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True)
class Firings:
    """`latent[start[r] : start[r + 1]]` are the latents that fire at row r, `value` what they are there."""

    start: Int[np.ndarray, " border"]
    latent: Int[np.ndarray, " firing"]
    value: Float[np.ndarray, " firing"]
    d_sae: int

    @classmethod
    def record(cls, folder: Path, codes: Iterable[Code], *, n_rows: int, d_sae: int) -> Firings:
        """Write `codes`, in the order of their rows, into two files in `folder` and map them."""
        counts = np.zeros(n_rows + 1, np.int64)
        paths = folder / "latent.i4", folder / "value.f4"
        with open(paths[0], "wb") as latents, open(paths[1], "wb") as values:
            for row, latent, value in codes:
                if len(row):
                    counts[row[0] + 1 : row[-1] + 2] += np.bincount(row - row[0])
                latents.write(latent.astype("<i4").tobytes())
                values.write(value.astype("<f4").tobytes())
        start = np.cumsum(counts)
        mapped = [
            np.memmap(path, kind, "r") if start[-1] else np.zeros(0, kind)
            for path, kind in zip(paths, ("<i4", "<f4"), strict=True)
        ]
        return cls(start, mapped[0], mapped[1], d_sae)

    @property
    def n_rows(self) -> int:
        return len(self.start) - 1

    def fires(self) -> Int[np.ndarray, " d_sae"]:
        """Rows at which each latent fires."""
        total = np.zeros(self.d_sae, np.int64)
        for first in range(0, len(self.latent), 2**24):
            total += np.bincount(self.latent[first : first + 2**24], minlength=self.d_sae)
        return total

    def blocks(self, *, n_firings: int = 2**22, n_counts: int = 2**24) -> Iterator[Block]:
        """All latents, a block of neighbours at a time: at most `n_firings` firings (more only where one latent has
        more), and no more latents than `n_counts` pairs with all the others allow."""
        ends, first, n_latents = np.cumsum(self.fires()), 0, max(1, n_counts // self.d_sae)
        while first < self.d_sae:
            before = ends[first - 1] if first else 0
            stop = int(np.searchsorted(ends, before + n_firings, side="right"))
            stop = min(max(stop, first + 1), first + n_latents, self.d_sae)
            yield self._block(first, stop)
            first = stop

    def _block(self, first: int, stop: int) -> Block:
        places = []
        for begin in range(0, len(self.latent), 2**24):
            part = self.latent[begin : begin + 2**24]
            places.append(np.flatnonzero((part >= first) & (part < stop)) + begin)
        place = np.concatenate(places) if places else np.zeros(0, np.int64)
        latent, row = self.latent[place] - first, np.searchsorted(self.start, place, side="right") - 1
        order = np.argsort(latent.astype(np.int16) if stop - first < 2**15 else latent, kind="stable")
        return Block(first, stop, latent[order].astype(np.int64), row[order], self.value[place[order]])

    def together(self, block: Block, *, n_pairs: int = 2**22) -> Int[np.ndarray, "latent d_sae"]:
        """At how many rows each latent of `block` fires together with each latent; with itself, how often it fires."""
        counts = np.zeros((block.size, self.d_sae), np.int64)
        lengths = self.start[block.row + 1] - self.start[block.row]
        ends = np.cumsum(lengths)
        first = 0
        while first < len(lengths):
            before = ends[first - 1] if first else 0
            stop = max(first + 1, int(np.searchsorted(ends, before + n_pairs, side="right")))
            length = lengths[first:stop]
            shift = np.repeat(self.start[block.row[first:stop]] - (ends[first:stop] - length), length)
            others = self.latent[np.arange(before, ends[stop - 1]) + shift]
            low, high = block.latent[first], block.latent[stop - 1] + 1  # sorted by latent: a few rows of `counts`
            pairs = np.repeat((block.latent[first:stop] - low) * self.d_sae, length) + others
            counts[low:high] += np.bincount(pairs, minlength=(high - low) * self.d_sae).reshape(-1, self.d_sae)
            first = stop
        return counts
