"""export(): a slice of a store as .npy, .parquet or .safetensors."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from interp.errors import AlreadyExists, InputError
from interp.store.reading import Store

_PIECE = 65_536  # rows in memory at a time

KINDS = (".npy", ".parquet", ".safetensors")


def parse_rows(text: str, n: int) -> slice:
    """ "100:200", ":50", "7" as a slice of `n` rows; InputError for anything else, and for no row at all."""
    try:
        parts = [int(part) if part.strip() else None for part in text.split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or parts == [None]:
        raise InputError(f'rows "{text}" given: as in Python, e.g. 0:1000, :50, ::10.')
    chosen = slice(*parts) if len(parts) > 1 else slice(parts[0], parts[0] + 1 or None)
    if not len(range(*chosen.indices(n))):
        raise InputError(f'rows "{text}" given: none of the {n:,} rows.')
    return chosen


def export(store: Store, site: str, out: str | Path, *, rows: slice = slice(None), overwrite: bool = False) -> int:
    """Write `rows` of a hook point to `out`; its ending says how. Returns how many.

    .npy: float32 [row, ...]. .parquet: columns row, token, sequence, document, position, activation (float32s).
    .safetensors: `activations` in the store's own dtype, and `rows`, `tokens`, `sequence`, `document`, `position`.
    """
    out = Path(out)
    if out.suffix not in KINDS:
        raise InputError(f'"{out}" given: the ending says how to write it, one of {", ".join(KINDS)}.')
    if out.exists() and not overwrite:
        raise AlreadyExists(f"{out} exists: choose another --to, or pass --overwrite.")
    if store.site(site) in store.patterns:
        raise InputError(f"{site} is a pattern, one a window: name a hook point with one row a token.")
    chosen = np.arange(*rows.indices(store.n_rows))
    temporary = out.with_name(f".{out.name}.tmp")
    out.parent.mkdir(parents=True, exist_ok=True)
    write = {".npy": _npy, ".parquet": _parquet, ".safetensors": _safetensors}[out.suffix]
    try:
        write(store, site, temporary, chosen)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return len(chosen)


def _columns(store: Store, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "tokens": store.tokens[rows], "sequence": store.sequence[rows], "document": store.documents[rows],
        "position": store.position[rows],
    }  # fmt: skip


def _npy(store: Store, site: str, path: Path, rows: np.ndarray) -> None:
    shape = (len(rows), *store[site].shape[1:])
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for start in range(0, len(rows), _PIECE):
            file.write(np.ascontiguousarray(store[site][rows[start : start + _PIECE]], "<f4").data)


def _parquet(store: Store, site: str, path: Path, rows: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for start in range(0, len(rows), _PIECE):
        piece = rows[start : start + _PIECE]
        values = store[site][piece].reshape(len(piece), -1)
        columns = {"row": piece} | _columns(store, piece)
        columns["token"] = columns.pop("tokens")
        arrays = {name: pa.array(column) for name, column in columns.items()}
        arrays["activation"] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        table = pa.table(arrays)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def _safetensors(store: Store, site: str, path: Path, rows: np.ndarray) -> None:
    import torch
    from safetensors.torch import save_file

    from interp.store.shuffling import as_tensor

    dataset = store[site]
    tensors = {name: torch.from_numpy(column) for name, column in _columns(store, rows).items()}
    tensors |= {"activations": as_tensor(dataset.stored(rows), dataset.dtype), "rows": torch.from_numpy(rows)}
    about = {"site": store.site(site), "store": store.name, "model": str(store.model["fingerprint"])}
    save_file(tensors, path, about)
