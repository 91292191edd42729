"""What a long sweep has finished so far, on disk, so that a killed one goes on where it was.

Pieces are named arrays in `part-*.safetensors`, each file written whole and renamed into place; what decides the last
bits of a result (how many copies are stacked) is kept beside them, so that the continued result is the same to the bit.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from interp import runs

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
