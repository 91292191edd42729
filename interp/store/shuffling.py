"""Shuffled batches out of a store: every row once an epoch, in an order that seed and epoch fix.

A small store (up to 4 GiB a hook point) is shuffled as a whole, by its row numbers. A larger one is read in blocks of
1024 rows in random order into a buffer of 256 batches, out of which each batch is drawn and into which the next rows
are swapped: random reads of single rows would be slow on a disk, and blocks alone hardly mix (tests/bench/README.md
has the measurements). Either can begin at any batch: a trainer that was killed goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from interp.errors import InputError
from interp.store.reading import Rows, Store

WHOLE = 4 * 2**30
"""Bytes of a hook point up to which all rows are shuffled at once."""
_ROWS = 1024  # rows of a block
_BUFFER = 256  # batches in the buffer


def shuffled_batches(
    store: Store, sites: str | Sequence[str], batch_size: int, *, seed: int = 0, epoch: int = 0, first: int = 0,
    rows: np.ndarray | None = None, device: str = "cpu",
) -> Iterator[Any]:  # fmt: skip
    """float32 tensors [batch_size, d] on `device`, one a batch; a list of them, in the order of `sites`, for several.

    The next batch is read while the last is used. InputError where the rows make no whole batch.
    """
    datasets = [store[site] for site in ([sites] if isinstance(sites, str) else sites)]
    whole = max(len(d) * d.places[0].row_bytes for d in datasets) <= WHOLE
    if whole or rows is not None:
        chosen = store.content_rows if rows is None else np.asarray(rows)
        if len(chosen) < batch_size:
            raise InputError(f"batch_size {batch_size} given: {store.path} has {len(chosen)} rows for it.")
    order = np.random.default_rng([seed, epoch])
    if whole:
        batches = _from_whole(datasets, order.permutation(chosen), batch_size, first)
    else:
        batches = _from_buffer(store, datasets, order, batch_size, first, rows, device)
    tensors = ([tensor.to(device).float() for tensor in batch] for batch in batches)
    return _ahead(tensor[0] for tensor in tensors) if isinstance(sites, str) else _ahead(tensors)


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same, each made in a thread while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def _from_whole(datasets: list[Rows], order: np.ndarray, batch_size: int, first: int) -> Iterator[list[Tensor]]:
    """Rows of a batch come in the order of the file, which reads faster; which rows they are is random."""
    for start in range(first * batch_size, len(order) - batch_size + 1, batch_size):
        idx = np.sort(order[start : start + batch_size])
        yield [gather(rows, idx) for rows in datasets]


def gather(rows: Rows, idx: np.ndarray) -> Tensor:
    """Rows `idx` (in ascending order) as a tensor [row, d] of the stored dtype."""
    out = np.empty((len(idx), *rows.shape[1:]), rows.places[0].stored)
    borders = [*np.searchsorted(idx, rows.starts), len(idx)]
    for shard in np.unique(np.searchsorted(rows.starts, idx, side="right") - 1):
        mine = slice(borders[shard], borders[shard + 1])
        np.take(rows._part(int(shard)), idx[mine] - rows.starts[shard], axis=0, out=out[mine], mode="clip")
    return as_tensor(out, rows.dtype).flatten(1)


def as_tensor(values: np.ndarray, dtype: str) -> Tensor:
    """Stored values as a tensor of their dtype, without copying."""
    tensor = torch.from_numpy(values.view(np.int16) if dtype == "bfloat16" else values)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def _from_buffer(
    store: Store, datasets: list[Rows], order: np.random.Generator, batch_size: int, first: int,
    rows: np.ndarray | None, device: str,
) -> Iterator[list[Tensor]]:  # fmt: skip
    """The same order of rows whatever `first`: the draws up to it are made on row numbers alone."""
    take = _taker(_row_stream(store, order.permutation(-(-store.n_rows // _ROWS)), rows))
    held = take(_BUFFER * batch_size)
    data: list[Tensor] | None = None
    number = 0
    while len(held) >= batch_size:
        slots = order.choice(len(held), batch_size, replace=False, shuffle=False)
        incoming = take(batch_size)
        if number >= first:
            data = data or [_load(dataset, held, device) for dataset in datasets]
            at = torch.from_numpy(slots).to(device)
            yield [tensor[at] for tensor in data]
        held[slots[: len(incoming)]] = incoming
        if data is not None and len(incoming):
            for tensor, dataset in zip(data, datasets, strict=True):
                tensor[torch.from_numpy(slots[: len(incoming)]).to(device)] = _load(dataset, incoming, device)
        if len(incoming) < batch_size:  # the source is at its end: the buffer shrinks
            keep = np.ones(len(held), bool)
            keep[slots[len(incoming) :]] = False
            held = held[keep]
            data = data and [tensor[torch.from_numpy(keep).to(device)] for tensor in data]
        number += 1


def _row_stream(store: Store, blocks: np.ndarray, rows: np.ndarray | None) -> Iterator[np.ndarray]:
    """Row numbers, block by block in the given order; those of BOS left out, or all but `rows`."""
    bos = store.description["bos"]
    for block in blocks:
        start, stop = int(block) * _ROWS, min((int(block) + 1) * _ROWS, store.n_rows)
        if rows is not None:
            low, high = np.searchsorted(rows, [start, stop])
            yield rows[low:high]
        elif bos is None:
            yield np.arange(start, stop)
        else:
            yield start + np.flatnonzero(store.tokens.read(start, stop) != bos)


def _taker(stream: Iterator[np.ndarray]) -> Callable[[int], np.ndarray]:
    """A function that gives the next `n` row numbers of the stream, fewer at its end."""
    rest = np.array([], np.int64)

    def take(n: int) -> np.ndarray:
        nonlocal rest
        pieces = [rest]
        while sum(map(len, pieces)) < n and (piece := next(stream, None)) is not None:
            pieces.append(piece)
        joined = np.concatenate(pieces)
        rest = joined[n:]
        return joined[:n]

    return take


def _load(rows: Rows, idx: np.ndarray, device: str) -> Tensor:
    """Rows in the order of `idx`, on the device; runs of rows are read as one."""
    out = np.empty((len(idx), *rows.shape[1:]), rows.places[0].stored)
    ascending = np.argsort(idx, kind="stable")
    ordered = idx[ascending]
    for run in np.split(np.arange(len(idx)), np.flatnonzero(np.diff(ordered) > 8) + 1):
        low, high = int(ordered[run[0]]), int(ordered[run[-1]])
        out[ascending[run]] = rows.read(low, high + 1)[ordered[run] - low]
    return as_tensor(out, rows.dtype).flatten(1).to(device)


class Batches(IterableDataset[Tensor]):
    """`Store.dataset`: the batches of an epoch; worker i of n takes every n-th."""

    def __init__(self, store: Store, site: str, batch_size: int, seed: int, epoch: int):
        self.store, self.site, self.batch_size, self.seed, self.epoch = store, site, batch_size, seed, epoch

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        i, n = (worker.id, worker.num_workers) if worker else (0, 1)
        batches = shuffled_batches(self.store, self.site, self.batch_size, seed=self.seed, epoch=self.epoch)
        return (batch for number, batch in enumerate(batches) if number % n == i)
