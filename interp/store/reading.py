"""Store: look up rows of a store, memory-mapped, larger than RAM or not. torch is loaded by batches alone.

A store can be read while another process writes it: what its manifest names is whole, and nothing else is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp import runs
from interp.decoder.sites import expand
from interp.errors import DamagedStore, InputError, MissingFile, nearest
from interp.store import format
from interp.store.manifest import file_hash, read_description, read_manifest

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import IterableDataset

_OPEN = 4096  # shards of a dataset mapped at a time


class Rows:
    """One dataset over all shards: `rows[7]`, `rows[10:20]`, `rows[np.array([5, 3])]`, `rows[:, 0]`. Activations come
    as float32, whatever they are stored as; `stored` gives them as they are on disk."""

    def __init__(self, folder: Path, shards: Sequence[format.Shard], name: str):
        self.folder, self.name = folder, name
        self.files = [shard.file for shard in shards]
        self.places = [shard.datasets[name] for shard in shards]
        counts = [place.shape[0] for place in self.places]
        self.starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        self.shape = (sum(counts), *self.places[0].shape[1:])
        self.dtype = self.places[0].dtype
        self._part = lru_cache(maxsize=_OPEN)(self._open)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | np.integer | slice | tuple | Sequence[int] | np.ndarray) -> Any:
        if isinstance(rows, tuple):
            one = isinstance(rows[0], (int, np.integer))
            return self[rows[0]][rows[1:] if one else (slice(None), *rows[1:])]
        if isinstance(rows, (int, np.integer)):
            return self[np.array([rows])][0]
        return as_float32(self.stored(rows), self.dtype)

    def _open(self, shard: int) -> np.ndarray:
        """All of a shard's rows: mapped, or, where they are compressed, read and unpacked."""
        place, path = self.places[shard], self.folder / self.files[shard]
        if place.offset is None:
            import h5py

            if not path.exists():
                raise DamagedStore(f"{path} is missing.")
            _filters()
            with h5py.File(path, "r", locking=False) as file:
                data = file[self.name]
                out = np.empty(place.shape, place.stored)
                data.id.read(h5py.h5s.ALL, h5py.h5s.ALL, out, mtype=data.id.get_type())
            return out
        if place.n_bytes == 0:
            return np.empty(place.shape, place.stored)
        try:
            return np.memmap(path, place.stored, "r", place.offset, place.shape)
        except (FileNotFoundError, ValueError):
            raise DamagedStore(f"{path} is missing or too short for {self.name}.") from None

    def stored(self, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows in the dtype of the file (bfloat16 as uint16). IndexError beyond the last."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self.read(start, max(stop, start))
            rows = np.arange(start, stop, step)
        idx = np.asarray(rows, np.int64)
        idx = np.where(idx < 0, idx + len(self), idx)
        if len(idx) and (idx.min() < 0 or idx.max() >= len(self)):
            raise IndexError(f"row {idx.max()} of {len(self)}")
        out = np.empty((len(idx), *self.shape[1:]), self.places[0].stored)
        shard_of = np.searchsorted(self.starts, idx, side="right") - 1
        for shard in np.unique(shard_of):
            mine = shard_of == shard
            out[mine] = self._part(int(shard))[idx[mine] - self.starts[shard]]
        return out

    def read(self, start: int, stop: int, *, out: np.ndarray | None = None, verify: bool = False) -> np.ndarray:
        """Rows `start` to `stop` in the dtype of the file, read into `out` where it is given.

        `verify` checks the blocks of 8192 rows that they lie in; DamagedStore names the first that is not as written.
        """
        out = np.empty((stop - start, *self.shape[1:]), self.places[0].stored) if out is None else out[: stop - start]
        at = start
        while at < stop:
            shard = int(np.searchsorted(self.starts, at, side="right")) - 1
            first = at - int(self.starts[shard])
            n = min(stop - at, self.places[shard].shape[0] - first)
            self._read_shard(shard, first, out[at - start : at - start + n], verify)
            at += n
        return out

    def _read_shard(self, shard: int, first: int, out: np.ndarray, verify: bool) -> None:
        place = self.places[shard]
        if place.offset is None:
            out[...] = self._part(shard)[first : first + len(out)]
            return
        path = self.folder / self.files[shard]
        with open(path, "rb", buffering=0) as file:
            if verify:
                self._read_checked(file.fileno(), shard, first, out)
                return
            raw = out.reshape(-1).view(np.uint8)
            if format.read_into(file.fileno(), raw, place.offset + first * place.row_bytes) != len(raw):
                raise DamagedStore(f"{path} is too short for {self.name}.")

    def _read_checked(self, fd: int, shard: int, first: int, out: np.ndarray) -> None:
        """The blocks in which the rows lie, each checked."""
        place, last = self.places[shard], first + len(out)
        for i in range(first // format.BLOCK, -(-last // format.BLOCK)):
            low, high = i * format.BLOCK, min((i + 1) * format.BLOCK, place.shape[0])
            whole = first <= low and high <= last
            block = out[low - first : high - first] if whole else np.empty((high - low, *place.shape[1:]), place.stored)
            if not format.read_block(fd, block.reshape(-1).view(np.uint8), place, i):
                begin, end = int(self.starts[shard]) + low, int(self.starts[shard]) + high - 1
                raise DamagedStore(
                    f"{self.folder / self.files[shard]}: {self.name} rows {begin:,} to {end:,} are not as written."
                )
            if not whole:
                start, stop = max(first, low), min(last, high)
                out[start - first : stop - first] = block[start - low : stop - low]

    def blocks(self, n: int = format.BLOCK, *, verify: bool = False) -> Iterator[np.ndarray]:
        """All rows in their order, up to `n` at a time and never over the end of a shard, in the dtype of the file;
        each is valid until the next."""
        buffer = np.empty((n, *self.shape[1:]), self.places[0].stored)
        for begin, place in zip(self.starts.tolist(), self.places, strict=True):
            for start in range(begin, begin + place.shape[0], n):
                yield self.read(start, min(start + n, begin + place.shape[0]), out=buffer, verify=verify)


def as_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Floats of any stored dtype as float32; integers as they are."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False) if values.dtype.kind == "f" else values


def _filters() -> None:
    try:
        import hdf5plugin  # noqa: F401
    except ImportError:  # gzip needs none; HDF5 names a missing one
        pass


class Store:
    """An activation store. `store["2.resid_post"][:100]`, `store.tokens[...]`, `store.shuffled_batches(...)`.

    Opening checks the header of every shard. MissingFile where there is none, DamagedStore, naming the file, where a
    finished store is not as it was written. `finished` is False while it is still being written: then it holds what
    was finished when it was opened.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / "store.json").exists():
            beside = [str(p.parent) for p in self.path.parent.glob("*/store.json")]
            hint = f"Nearest: {nearest(str(path), beside)}." if beside else "Make one with: interp record."
            raise MissingFile(f"no store at {path}. {hint}")
        self.description: dict[str, Any] = read_description(self.path)
        done = runs.is_done(self.path)  # before the manifest, which is closed first
        manifest = read_manifest(self.path)
        if done and manifest.closing is None:
            raise DamagedStore(
                f"{self.path / 'manifest.jsonl'}: the line that closes the store is not as it was written."
            )
        self.shards, self.finished = manifest.shards, manifest.closing is not None
        if manifest.closing and file_hash(self.path / "store.json") != manifest.closing["files"]["store.json"]:
            raise DamagedStore(f"{self.path / 'store.json'} is not as it was written.")
        if not self.shards:
            raise InputError(f"{path} has no finished shard yet: the command that made it continues it.")
        for shard in self.shards:
            format.check_shard(self.path, shard)

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
        """Hook points with one row a token."""
        return self.description["sites"]

    @property
    def patterns(self) -> list[str]:
        """Hook points with one [head, pos, pos] a window."""
        return self.description["patterns"]

    @cached_property
    def n_rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @cached_property
    def n_windows(self) -> int:
        return sum(shard.windows for shard in self.shards)

    def site(self, name: str) -> str:
        """The full name of the one hook point that `name` selects; UnknownSite where the store has none."""
        found = expand(name, self.sites + self.patterns, model=f"the store {self.name}")
        if len(found) != 1:
            raise InputError(f'"{name}" selects {len(found)} hook points of {self.name}: name one, e.g. {found[0]}.')
        return found[0]

    def d(self, site: str) -> int:
        """Width of an activation: heads x d_head for `z`."""
        return int(np.prod(self[site].shape[1:]))

    def rows(self, name: str) -> Rows:
        """A dataset by its name in the file: "activations/blocks.0.hook_resid_post", "logits/tokens"."""
        if name not in self.shards[0].datasets:
            raise InputError(f'no dataset "{name}" in {self.path}. Nearest: {nearest(name, self.shards[0].datasets)}.')
        return self._rows(name)

    @cached_property
    def _rows(self) -> Any:
        return lru_cache(maxsize=None)(lambda name: Rows(self.path, self.shards, name))

    def __getitem__(self, site: str) -> Rows:
        """Activations [row, ...] of a hook point; a pattern's are [window, head, pos, pos]."""
        name = self.site(site)
        return self._rows(f"patterns/{name}" if name in self.patterns else f"activations/{name}")

    @property
    def tokens(self) -> Rows:
        return self._rows("tokens")

    @property
    def sequence(self) -> Rows:
        """Number of each row's window."""
        return self._rows("sequence")

    @property
    def documents(self) -> Rows:
        """Number of each row's document in the corpus."""
        return self._rows("document")

    @property
    def position(self) -> Rows:
        """Position of each row in its window."""
        return self._rows("position")

    def document(self, number: int) -> np.ndarray:
        """The rows of a document, int64, in order; InputError where the store has none of that number."""
        found = []
        for shard, start in zip(self.shards, self.tokens.starts, strict=True):
            if shard.documents[0] <= number <= shard.documents[1]:
                found.append(start + np.flatnonzero(self.documents[int(start) : int(start) + shard.rows] == number))
        rows = np.concatenate(found) if found else np.array([], np.int64)
        if not len(rows):
            high = max(shard.documents[1] for shard in self.shards)
            raise InputError(f"document {number} has no row in {self.path}: its documents go from 0 to {high}.")
        return rows

    def at_position(self, position: int) -> np.ndarray:
        """The rows at `position` in their window, int64."""
        if not 0 <= position < self.context:
            raise InputError(f"position {position} given: the windows have positions 0 to {self.context - 1}.")
        return np.flatnonzero(self.position[:] == position)

    def statistics(self, site: str) -> dict[str, Any]:
        """Over all rows but BOS, in float64: n, mean [...], second_moment [...], variance [...], norm_mean (mean L2
        norm), norm_quantiles (of the L2 norm, to 1%), max_abs; position_norm [pos], the mean norm at each position,
        BOS included (nan where no row is)."""
        sums = format.read_statistics(self.path, self.shards, self.site(site))
        n = sums["n"]
        mean, second = sums["sum"] / n, sums["sumsq"] / n
        with np.errstate(invalid="ignore"):
            position_norm = sums["position_norm_sum"] / sums["position_n"]
        return {
            "n": int(n), "mean": mean, "second_moment": second, "variance": second - mean**2,
            "norm_mean": float(sums["norm_sum"] / n), "norm_quantiles": format.norm_quantiles(sums["norm_histogram"]),
            "max_abs": float(sums["max_abs"]), "position_norm": position_norm,
        }  # fmt: skip

    @cached_property
    def content_rows(self) -> np.ndarray:
        """Rows whose token is not BOS, int64."""
        bos = self.description["bos"]
        return np.arange(self.n_rows) if bos is None else np.flatnonzero(self.tokens[:] != bos)

    def shuffled_batches(
        self, sites: str | Sequence[str], batch_size: int, *, seed: int = 0, epoch: int = 0, first: int = 0,
        rows: np.ndarray | None = None, device: str = "cpu",
    ) -> Iterator[Any]:  # fmt: skip
        """float32 tensors [batch_size, d], one a batch, or a list of them for several sites: every row but BOS (or
        those of `rows`) once, in an order that `seed` and `epoch` fix, from batch `first` on. The last, partial batch
        is left out. See `interp.store.shuffling`."""
        from interp.store.shuffling import shuffled_batches

        return shuffled_batches(self, sites, batch_size, seed=seed, epoch=epoch, first=first, rows=rows, device=device)

    def dataset(self, site: str, batch_size: int, *, seed: int = 0, epoch: int = 0) -> IterableDataset[Tensor]:
        """`shuffled_batches` for a torch DataLoader (`batch_size=None` there); its workers share the batches."""
        from interp.store.shuffling import Batches

        return Batches(self, site, batch_size, seed, epoch)

    def info(self) -> dict[str, Any]:
        """What `interp store info` prints."""
        size = sum(shard.size for shard in self.shards)
        return self.description | {
            "rows": self.n_rows, "windows": self.n_windows, "shards": len(self.shards), "bytes": size,
            "finished": self.finished,
        }  # fmt: skip


def open_finished(store: Store | str | Path) -> Store:
    """A store that is whole; InputError for one that is still being written."""
    store = store if isinstance(store, Store) else Store(store)
    if not store.finished:
        raise InputError(f"{store.path} is not finished: the command that made it continues it.")
    return store
