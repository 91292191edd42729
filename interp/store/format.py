"""The layout of a store: the only code that knows it.

    stores/<name>/
      run.json, store.json    what made it, what it holds
      manifest.jsonl          one line a finished shard: file, rows, first row and window, place of every dataset
      shard-00000.h5          /activations/<hook point> [rows, ...], /tokens, /sequence, /position [rows],
                              /statistics/<hook point>/{n, sum, sumsq, norm_sum, max_abs} float64, all contiguous
      index.h5                virtual datasets over all shards: any HDF5 viewer sees one array

A shard is written under a temporary name and renamed when it is whole; the manifest line comes after. Statistics leave
out rows whose token is BOS: its activations are outliers that would swamp a mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

VERSION = 1
DTYPES = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
ROW_DTYPES = {"tokens": np.dtype("<i4"), "sequence": np.dtype("<i8"), "position": np.dtype("<i4")}


@dataclass(frozen=True)
class Shard:
    """A line of the manifest. `datasets`: name -> {"offset", "shape", "dtype"}, so that readers go round HDF5."""

    file: str
    size: int
    rows: int
    first_row: int
    first_window: int
    datasets: dict[str, dict[str, Any]]


def read_manifest(folder: Path) -> list[Shard]:
    """Finished shards in order. A torn last line (a kill in mid-write) is not one."""
    path = folder / "manifest.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    return [Shard(**json.loads(line)) for line in lines[:-1]]


def append_manifest(folder: Path, shard: Shard) -> None:
    """Add a line, after cutting what a kill may have left of one."""
    path = folder / "manifest.jsonl"
    kept = "".join(json.dumps(asdict(s)) + "\n" for s in read_manifest(folder))
    if path.exists() and path.stat().st_size != len(kept.encode()):
        os.truncate(path, len(kept.encode()))
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(shard)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_shard(
    folder: Path, number: int, arrays: Mapping[str, np.ndarray], statistics: Mapping[str, Mapping[str, np.ndarray]],
    *, first_row: int, first_window: int,
) -> Shard:  # fmt: skip
    """One shard of `arrays` ("tokens", "activations/<hook point>", ...), whole on disk or not there at all."""
    path = folder / f"shard-{number:05d}.h5"
    temporary = folder / f".{path.name}.tmp"
    with h5py.File(temporary, "w", libver="latest") as file:
        places = {}
        for name, array in arrays.items():
            data = file.create_dataset(name, data=np.ascontiguousarray(array))
            places[name] = {"offset": data.id.get_offset(), "shape": list(array.shape), "dtype": array.dtype.str}
        for site, values in statistics.items():
            for key, value in values.items():
                file[f"statistics/{site}/{key}"] = np.asarray(value, np.float64)
        file.attrs["format_version"] = VERSION
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return Shard(path.name, path.stat().st_size, len(arrays["tokens"]), first_row, first_window, places)


def read_statistics(folder: Path, shards: Iterable[Shard], site: str) -> dict[str, np.ndarray]:
    """Sums over all shards: n, sum [...], sumsq [...], norm_sum, max_abs."""
    total: dict[str, np.ndarray] = {}
    for shard in shards:
        with h5py.File(folder / shard.file, "r") as file:
            for key, value in file[f"statistics/{site}"].items():
                joined = np.maximum if key == "max_abs" else np.add
                total[key] = np.asarray(joined(total[key], value[()]) if key in total else value[()])
    return total


def write_index(folder: Path, shards: list[Shard]) -> None:
    """index.h5: every dataset as one virtual array over the shards."""
    temporary = folder / ".index.h5.tmp"
    rows = sum(shard.rows for shard in shards)
    with h5py.File(temporary, "w", libver="latest") as file:
        for name, place in shards[0].datasets.items():
            layout = h5py.VirtualLayout(shape=(rows, *place["shape"][1:]), dtype=place["dtype"])
            for shard in shards:
                source = h5py.VirtualSource(shard.file, name, shape=tuple(shard.datasets[name]["shape"]))
                layout[shard.first_row : shard.first_row + shard.rows] = source
            file.create_virtual_dataset(name, layout)
    os.replace(temporary, folder / "index.h5")
