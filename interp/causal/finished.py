"""What a long sweep has finished so far, on disk, so that a killed one goes on where it was.

Pieces are named arrays in `part-*.safetensors`, each file written whole and renamed into place; what decides the last
bits of a result (how many copies are stacked) is kept beside them, so that the continued result is the same to the bit.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int
from safetensors.numpy import load_file, save_file

from interp import runs

if TYPE_CHECKING:
    from torch import Tensor  # pages that read circuits load no torch

EVERY = 10.0
"""Seconds between two files, at least: what a kill can cost."""


class Finished:
    """Finished pieces in `folder`; of no folder, nothing is kept. `clear` when the result itself is written."""

    def __init__(self, folder: Path | None = None):
        self.folder, self.new, self.written = folder, {}, time.monotonic()
        self.pieces: dict[str, np.ndarray] = {}
        for path in sorted(folder.glob("part-*.safetensors")) if folder is not None and folder.exists() else ():
            self.pieces |= load_file(path)

    def __contains__(self, name: str) -> bool:
        return name in self.pieces

    def get(self, name: str) -> np.ndarray:
        return self.pieces[name]

    def put(self, name: str, piece: np.ndarray) -> None:
        self.new[name] = np.ascontiguousarray(piece)
        if time.monotonic() - self.written > EVERY:
            self.flush()

    def flush(self) -> None:
        if self.folder is None or not self.new:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"part-{len(list(self.folder.glob('part-*'))):06d}.safetensors"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        save_file(self.new, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        self.pieces |= self.new
        self.new, self.written = {}, time.monotonic()

    def setting(self, name: str, value: int) -> int:
        """`value`, or what was given as `name` when the sweep began."""
        if self.folder is None:
            return value
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "settings.json"
        settings = json.loads(path.read_text()) if path.exists() else {}
        if name not in settings:
            runs.write_json(path, settings | {name: value})
        return settings.get(name, value)

    def clear(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class Sum:
    """A float64 sum over batches of prompts, called `name` in `finished`: `value` is what `done` prompts gave so far.

    `for prompts in total.left(batches): total.value += ...` adds the batches that a killed run did not, in their order,
    so that the sum is the same to the bit.
    """

    def __init__(self, finished: Finished | None, name: str, shape: tuple[int, ...]):
        self.finished, self.name = Finished() if finished is None else finished, name
        self.value, self.done = np.zeros(shape), 0
        if name in self.finished:
            *value, done = self.finished.get(name)
            self.value, self.done = np.reshape(value, shape), int(done)

    def left(self, batches: Iterable[Int[Tensor, " _"]]) -> Iterator[Int[Tensor, " _"]]:
        """The batches that are not added yet; one is kept as added when the next is asked for."""
        seen = 0
        for prompts in batches:
            seen += len(prompts)
            if seen > self.done:
                yield prompts
                self.done = seen
                self.finished.put(self.name, np.append(self.value, self.done))
