"""Shards on their way to disk: a ring of buffers, filled by the model's thread, written by another.

A buffer is used again when its shard is on the disk and in the manifest: a slow disk holds the model up, and loses
nothing. On a GPU the buffers are pinned, and filled by copies beside the computation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.store import format
from interp.store.manifest import append_manifest, read_manifest

SLOTS = 3


class Slot:
    """Room for one shard: `data[name]` [row or window, ...] of the dtype that goes to disk."""

    def __init__(self, shapes: dict[str, tuple[tuple[int, ...], torch.dtype]], pin: bool):
        self.data = {name: torch.empty(shape, dtype=dtype, pin_memory=pin) for name, (shape, dtype) in shapes.items()}

    def arrays(self, counts: dict[str, int]) -> dict[str, np.ndarray]:
        """The first `counts[name]` rows of each, bfloat16 as uint16."""
        return {name: as_stored(tensor[: counts[name]]) for name, tensor in self.data.items()}


def as_stored(tensor: Tensor) -> np.ndarray:
    """A tensor's memory as numpy has it, bfloat16 as uint16."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


class Ring:
    """`with Ring(...) as ring`: take a `slot()`, fill it, `send()` it. An error of the writing thread is raised by the
    next call, or at the end of the block; shards sent before an error elsewhere are still written."""

    def __init__(self, folder: Path, make: Callable[[], Slot], *, compression: str | None = None, sync: bool = True):
        self.folder, self.make, self.compression, self.sync = folder, make, compression, sync
        manifest = read_manifest(folder)
        self.end, self.number = manifest.n_bytes, len(manifest.shards)
        self.first_row = sum(shard.rows for shard in manifest.shards)
        self.busy: deque[tuple[Slot, Future[None]]] = deque()
        self.pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.pool.shutdown(wait=True)
        if kind is None:
            for _, written in self.busy:
                written.result()

    def slot(self) -> Slot:
        """An empty buffer; waits for the oldest shard where all are in use."""
        if len(self.busy) < SLOTS:
            return self.make()
        slot, written = self.busy.popleft()
        written.result()
        return slot

    def send(self, slot: Slot, write: Callable[[], dict[str, Any]]) -> None:
        """Write the shard whose arguments for `format.write_shard` are what `write()` gives in the writing thread."""
        for _, written in self.busy:
            if written.done():
                written.result()
        self.busy.append((slot, self.pool.submit(self._write, write)))

    def _write(self, make: Callable[[], dict[str, Any]]) -> None:
        shard = format.write_shard(
            self.folder, self.number, **make(), first_row=self.first_row, compression=self.compression, sync=self.sync
        )
        self.end = append_manifest(self.folder, shard, after=self.end, sync=self.sync)
        self.number, self.first_row = self.number + 1, self.first_row + shard.rows
