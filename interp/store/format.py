"""The layout of a store and its checksums: the only code that knows them.

    stores/<name>/
      run.json, store.json    what made it, what it holds
      manifest.jsonl          one line a finished shard, each ending in its own xxh3; the last line closes the store
      shard-00000.h5          /activations/<hook point> [row, ...], /patterns/<hook point> [window, head, pos, pos],
                              /logits/{tokens, values} [row, k], /tokens, /sequence, /document, /position [row],
                              /statistics/<hook point>/... float64
      index.h5                virtual datasets over all shards: any HDF5 viewer sees one array

A shard is plain HDF5: contiguous datasets on 4 KiB borders (chunked ones where the store is compressed). h5py makes the
file and its header; the data go to their offsets beside HDF5, hashed on the way, and are read from there again. Its
line in the manifest holds the xxh3-128 of everything that is not data, and the xxh3-64 of every 8192 rows of data. A
shard is written under a temporary name, synced and renamed; its line comes after. What has a line is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from interp.errors import DamagedStore, InputError

VERSION = 2
BLOCK = 8192
"""Rows under one checksum."""
DTYPES = ("float16", "bfloat16", "float32")
COLUMNS = {"tokens": "<i4", "sequence": "<i8", "document": "<i8", "position": "<i4"}
"""What every row says of itself: token id, number of its window, number of its document, position in the window."""
BINS = 2048
"""Bins of the histogram of norms: 32 to every factor of 2, from 2^-32 to 2^32; one is 2.2% wide."""
_PAGE, _PIECE = 4096, 2**18


@dataclass(frozen=True)
class Place:
    """Where a dataset lies in its shard. `offset` is None where it is compressed; `dtype` is numpy's, or "bfloat16"."""

    offset: int | None
    shape: tuple[int, ...]
    dtype: str
    checksums: str
    """xxh3-64 of every BLOCK rows, 16 hexadecimal digits each."""

    @property
    def stored(self) -> np.dtype:
        """The dtype of the bytes: bfloat16 as uint16."""
        return np.dtype("<u2" if self.dtype == "bfloat16" else self.dtype)

    @property
    def n_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.stored.itemsize

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:])) * self.stored.itemsize


@dataclass(frozen=True)
class Shard:
    """A line of the manifest."""

    file: str
    size: int
    rows: int
    windows: int
    first_row: int
    first_window: int
    documents: tuple[int, int]
    """The lowest and highest document number in it."""
    header: str
    """xxh3-128 of every byte that is not in `datasets`."""
    datasets: dict[str, Place]
    next: dict[str, Any]
    """The place in the corpus at which the next shard begins."""


def write_shard(
    folder: Path,
    number: int,
    arrays: Mapping[str, np.ndarray],
    statistics: Mapping[str, Mapping[str, np.ndarray]],
    *,
    about: dict[str, Any],
    first_row: int,
    first_window: int,
    windows: int,
    next: dict[str, Any],
    compression: str | None = None,
    sync: bool = True,
) -> Shard:
    """One shard of `arrays` ("tokens", "activations/<hook point>", ...; bfloat16 as uint16, named in
    `about["dtype"]`), whole on disk or not there at all. `sync=False` leaves it to the system when it reaches the disk.
    """
    path = folder / f"shard-{number:05d}.h5"
    temporary = folder / f".{path.name}.tmp"
    kinds = {name: _kind(name, array, about["dtype"]) for name, array in arrays.items()}
    offsets = _write_header(temporary, arrays, kinds, statistics, about, compression)
    fd = os.open(temporary, os.O_RDWR)
    try:
        size = os.fstat(fd).st_size
        os.posix_fallocate(fd, 0, size)  # a full disk is known before anything is written
        places = {}
        for name, array in arrays.items():
            checksums = _write_data(fd, array, offsets[name])
            places[name] = Place(offsets[name], array.shape, kinds[name], checksums)
        header = _header_hash(fd, size, places)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)
    if sync:
        _sync_folder(folder)
    documents = arrays["document"]
    return Shard(
        path.name, size, len(arrays["tokens"]), windows, first_row, first_window,
        (int(documents.min()), int(documents.max())), header, places, next,
    )  # fmt: skip


def _kind(name: str, array: np.ndarray, dtype: str) -> str:
    return "bfloat16" if dtype == "bfloat16" and array.dtype == np.uint16 else array.dtype.str


def bfloat16() -> h5py.h5t.TypeID:
    """bfloat16 as HDF5 sees it: a float of 8 exponent and 7 mantissa bits. h5py shows it as float32."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind


def _write_header(
    path: Path, arrays: Mapping[str, np.ndarray], kinds: Mapping[str, str],
    statistics: Mapping[str, Mapping[str, np.ndarray]], about: dict[str, Any], compression: str | None,
) -> dict[str, int | None]:  # fmt: skip
    """The file with room for its data, and where each dataset begins. Compressed data are written here at once."""
    options = {"libver": "latest", "alignment_threshold": _PAGE, "alignment_interval": _PAGE}
    path.unlink(missing_ok=True)
    offsets: dict[str, int | None] = {}
    with h5py.File(path, "w", **options) as file:
        file.attrs["format_version"] = VERSION
        file.attrs["about"] = np.bytes_(json.dumps(about, ensure_ascii=False).encode())  # fixed length
        for site, values in statistics.items():
            for key, value in values.items():
                place = f"statistics/{site}/{key}"
                file.create_dataset(place, data=np.asarray(value, np.float64), track_times=False)
        links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        links.set_create_intermediate_group(True)
        for name, array in arrays.items():
            kind = bfloat16() if kinds[name] == "bfloat16" else h5py.h5t.py_create(array.dtype)
            made = _creation(compression, array)
            space = h5py.h5s.create_simple(array.shape)
            data = h5py.h5d.create(file.id, name.encode(), kind, space, made, links)
            if compression:
                data.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(array), mtype=kind)
            offsets[name] = None if compression else data.get_offset()
    return offsets


def _creation(compression: str | None, array: np.ndarray) -> h5py.h5p.PropDCID:
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_obj_track_times(False)  # the same data, the same bytes
    made.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    if not compression:
        made.set_layout(h5py.h5d.CONTIGUOUS)
        made.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        return made
    made.set_chunk((min(len(array), 1024), *array.shape[1:]))
    if compression == "gzip":
        made.set_shuffle()
        made.set_deflate(4)
        return made
    import hdf5plugin

    codec = hdf5plugin.Bitshuffle(cname="zstd" if compression == "zstd" else "lz4")
    made.set_filter(codec.filter_id, h5py.h5z.FLAG_MANDATORY, codec.filter_options)
    return made


def check_compression(name: str | None) -> None:
    """InputError where `name` is not one of None, "zstd", "lz4" and "gzip", or its library is not installed."""
    if name not in (None, "zstd", "lz4", "gzip"):
        raise InputError(f'unknown compression "{name}": zstd, lz4 or gzip.')
    if name in ("zstd", "lz4"):
        try:
            import hdf5plugin  # noqa: F401
        except ImportError:
            raise InputError(
                f"{name} needs hdf5plugin: pip install 'interp-workbench[archive]' (gzip needs nothing)."
            ) from None


def _write_data(fd: int, array: np.ndarray, offset: int | None) -> str:
    """Data to `offset`, and the checksums of its blocks, which another thread hashes meanwhile."""
    array = np.ascontiguousarray(array)
    with ThreadPoolExecutor(1) as pool:
        checksums = []
        for start in range(0, len(array), BLOCK):
            block = memoryview(array[start : start + BLOCK].reshape(-1).view(np.uint8))
            checksums.append(pool.submit(xxhash.xxh3_64_hexdigest, block))
            if offset is not None:
                write_all(fd, block, offset)
                offset += len(block)
        return "".join(checksum.result() for checksum in checksums)


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """All of `data` to `offset`."""
    while data:
        n = os.pwrite(fd, data, offset)
        data, offset = data[n:], offset + n


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _header_hash(fd: int, size: int, datasets: Mapping[str, Place]) -> str:
    """xxh3-128 of the `size` bytes of a file without those of its datasets."""
    digest, at = xxhash.xxh3_128(), 0
    held = sorted((p.offset, p.offset + p.n_bytes) for p in datasets.values() if p.offset is not None)
    for begin, end in [*held, (size, size)]:
        while at < begin:
            piece = os.pread(fd, min(begin - at, 1 << 20), at)
            if not piece:
                break
            digest.update(piece)
            at += len(piece)
        at = max(at, end)
    return digest.hexdigest()


def check_shard(folder: Path, shard: Shard) -> None:
    """DamagedStore where a shard is missing, of another size, or has another header: what can be known in .2 ms."""
    path = folder / shard.file
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise DamagedStore(f"{path} is missing ({shard.rows:,} rows from row {shard.first_row:,}).") from None
    try:
        size = os.fstat(fd).st_size
        if size != shard.size:
            raise DamagedStore(
                f"{path} has {size:,} bytes in place of {shard.size:,}: it holds rows from {shard.first_row:,} on."
            )
        if _header_hash(fd, size, shard.datasets) != shard.header:
            raise DamagedStore(f"{path}: its header is not as it was written (rows from {shard.first_row:,} on).")
    finally:
        os.close(fd)


def damaged_blocks(folder: Path, shard: Shard) -> Iterator[tuple[str, int, int]]:
    """Every (dataset, first row, last row) of a shard whose bytes are not as they were written; rows count from the
    shard's first."""
    fd = os.open(folder / shard.file, os.O_RDONLY)
    try:
        for name, place in shard.datasets.items():
            if place.offset is not None:
                room = np.empty(BLOCK * place.row_bytes, np.uint8)
                for i, start in enumerate(range(0, place.shape[0], BLOCK)):
                    n = (min(start + BLOCK, place.shape[0]) - start) * place.row_bytes
                    if not read_block(fd, room[:n], place, i):
                        yield name, start, start + n // place.row_bytes - 1
    finally:
        os.close(fd)


def read_block(fd: int, out: np.ndarray, place: Place, i: int) -> bool:
    """Fill `out` (uint8) with the i-th block of BLOCK rows; whether it is as it was written."""
    digest, offset = xxhash.xxh3_64(), place.offset + i * BLOCK * place.row_bytes
    for at in range(0, len(out), _PIECE):
        piece = out[at : at + _PIECE]
        if read_into(fd, piece, offset + at) != len(piece):
            return False
        digest.update(piece)
    return digest.hexdigest() == place.checksums[16 * i : 16 * i + 16]


def read_into(fd: int, out: np.ndarray, offset: int) -> int:
    """Fill `out` (uint8) from `offset` on; returns how many bytes there were."""
    view, at = memoryview(out), 0
    while at < len(view):
        n = os.preadv(fd, [view[at:]], offset + at)
        if n == 0:
            break
        at += n
    return at


def read_statistics(folder: Path, shards: list[Shard], site: str) -> dict[str, np.ndarray]:
    """Sums over all shards: n, sum [...], sumsq [...], norm_sum, max_abs, norm_histogram, position_n,
    position_norm_sum [pos]."""
    total: dict[str, np.ndarray] = {}
    for shard in shards:
        with h5py.File(folder / shard.file, "r", locking=False) as file:
            for key, value in file[f"statistics/{site}"].items():
                joined = np.maximum if key == "max_abs" else np.add
                total[key] = np.asarray(joined(total[key], value[()]) if key in total else value[()])
    return total


def norm_quantiles(
    histogram: np.ndarray, at: Sequence[float] = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
) -> dict[float, float]:
    """Quantiles of the L2 norm out of the histogram, to 1.1%: the middle of the bin in which each lies."""
    total = np.cumsum(histogram)
    bins = np.searchsorted(total, np.asarray(at) * total[-1], side="left")
    return {q: float(2 ** ((b + 0.5) / 32 - 32)) for q, b in zip(at, bins.tolist(), strict=True)}


def write_index(folder: Path, shards: list[Shard]) -> None:
    """index.h5: every dataset as one virtual array over the shards."""
    temporary = folder / ".index.h5.tmp"
    temporary.unlink(missing_ok=True)
    with h5py.File(temporary, "w", libver="latest") as file:
        for name, place in shards[0].datasets.items():
            n = sum(shard.datasets[name].shape[0] for shard in shards)
            kind = bfloat16() if place.dtype == "bfloat16" else h5py.h5t.py_create(np.dtype(place.dtype))
            made, at = h5py.h5p.create(h5py.h5p.DATASET_CREATE), 0
            made.set_obj_track_times(False)
            space = h5py.h5s.create_simple((n, *place.shape[1:]))
            for shard in shards:
                shape = shard.datasets[name].shape
                space.select_hyperslab((at, *(0 for _ in shape[1:])), shape)
                made.set_virtual(space, shard.file.encode(), name.encode(), h5py.h5s.create_simple(shape))
                at += shape[0]
            space.select_all()
            links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
            links.set_create_intermediate_group(True)
            h5py.h5d.create(file.id, name.encode(), kind, space, made, links)
    os.replace(temporary, folder / "index.h5")
