"""record(): text -> captured activations -> a store. Killed at any moment, the same call continues it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp import runs
from interp.data.documents import TextSettings
from interp.data.packing import Windows
from interp.data.text import Stream, stream
from interp.decoder.hooks import watch
from interp.decoder.model import Model
from interp.decoder.sites import axes
from interp.errors import InputError, NotFinite, nearest
from interp.progress import Progress
from interp.store import format
from interp.store.manifest import close, read_description, read_manifest, write_description
from interp.store.reading import Store
from interp.store.statistics import Sums
from interp.store.writing import Ring, Slot

SHARD_BYTES = 128 * 2**20
"""A shard's size per hook point, at most..."""
SLOT_BYTES = 512 * 2**20
"""...and of all its hook points together: three such buffers are in memory."""


@dataclass(frozen=True)
class Wanted:
    """What is recorded of every token, and in which form."""

    sites: list[str]
    patterns: list[str]
    logits: int
    dtype: str

    def shapes(self, model: Model, context: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Dataset -> the shape of one row (of one window, for a pattern) and its dtype."""
        sizes = {
            "head": model.n_heads, "kv_head": model.n_kv_heads, "d_head": model.d_head, "d_model": model.d_model,
            "d_mlp": model.d_mlp, "query": context, "key": context,
        }  # fmt: skip
        dtype = getattr(torch, self.dtype)
        found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for name in self.sites:
            found[f"activations/{name}"] = tuple(sizes[axis] for axis in axes(name).split()[2:]), dtype
        for name in self.patterns:
            found[f"patterns/{name}"] = tuple(sizes[axis] for axis in axes(name).split()[1:]), dtype
        if self.logits:
            found["logits/tokens"] = (self.logits,), torch.int32
            found["logits/values"] = (self.logits,), torch.float32
        return found

    def rows_per_shard(self, model: Model, context: int) -> int:
        """A multiple of `context`: shards of SHARD_BYTES a hook point, SLOT_BYTES in all."""
        sizes = [
            int(np.prod(shape)) * dtype.itemsize / (context if name.startswith("patterns/") else 1)
            for name, (shape, dtype) in self.shapes(model, context).items()
        ]
        rows = min(SHARD_BYTES / max(sizes), SLOT_BYTES / sum(sizes))
        return max(1, int(rows) // context) * context


def record(
    model: Model,
    text: str | Path | Sequence[str | Path] | TextSettings,
    *,
    sites: str | Sequence[str] = "*.resid_post",
    n_tokens: int | None = None,
    context: int = 128,
    logits: int = 0,
    dtype: str = "float16",
    compression: str | None = None,
    out: str | Path,
    batch_size: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Store:
    """Run `text` through `model` and write the activations at `sites` to a store at `out`.

    One row a token, in the order of the text: windows of `context` tokens, BOS first (a `TextSettings` in place of
    `text` says more: packing, filters, a held-out share, one shard of several; `n_tokens` and `context` are then its).
    A pattern has [head, pos, pos] a window. `logits` > 0 keeps that many of the largest logits of each token.
    `dtype` is the one on disk; `compression` ("zstd", "lz4", "gzip") is for archives: a third smaller at best, and far
    slower. `batch_size`, windows a forward pass, is found from free memory and kept in the store.

    InputError, before anything is written, for an unknown site, missing text, a dtype that is none; NotFinite (what was
    finished stays) where an activation is NaN, infinite, or beyond `dtype`.
    """
    settings = text if isinstance(text, TextSettings) else TextSettings(text, context=context, n_tokens=n_tokens)
    names = model.expand(sites)
    if dtype not in format.DTYPES:
        raise InputError(f'unknown store dtype "{dtype}". Nearest: {nearest(dtype, format.DTYPES)}.')
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size {batch_size} given: one window or more.")
    if not 0 <= logits <= model.d_vocab:
        raise InputError(f'logits {logits} given: "{model.name}" has {model.d_vocab}.')
    format.check_compression(compression)
    patterns = [name for name in names if axes(name).startswith("prompt head")]
    wanted = Wanted([name for name in names if name not in patterns], patterns, logits, dtype)
    corpus, out = stream(model, settings), Path(out)
    config = {
        "sites": names, "logits": logits, "text": asdict(settings), "files": corpus.files, "dtype": dtype,
        "compression": compression, "batch_size": batch_size,
        "rows_per_shard": wanted.rows_per_shard(model, settings.context),
    }  # fmt: skip
    config = json.loads(json.dumps(config))  # as run.json gives it back
    with runs.recording(
        out, kind="record", config=config, model=model.provenance(), seed=0, device=model.where,
        overwrite=overwrite,
    ):  # fmt: skip
        manifest = read_manifest(out)
        if not manifest.closing:
            windows = _windows_left(model, settings, corpus, manifest.shards)
            _record(model, wanted, settings, config, out, windows, progress)
    return Store(out)


def _windows_left(
    model: Model, settings: TextSettings, corpus: Stream, done: list[format.Shard]
) -> Iterator[Windows]:  # fmt: skip
    """What no shard holds yet. The first batch is made here: wrong text is told before a file is written."""
    if done and done[-1].next["last"]:
        return iter(())
    windows = iter(stream(model, settings, start=done[-1].next["place"]) if done else corpus)
    return itertools.chain([next(windows)], windows)


def _record(
    model: Model, wanted: Wanted, settings: TextSettings, config: dict[str, Any], out: Path,
    windows: Iterator[Windows], progress: bool,
) -> None:  # fmt: skip
    if (out / "store.json").exists():
        description = read_description(out)
    else:
        size = config["batch_size"] or _fitting_batch(model, wanted, settings.context)
        description = _description(model, wanted, settings, config) | {"batch_size": size}
        write_description(out, description)
    start = sum(shard.rows for shard in read_manifest(out).shards)
    with (
        Progress("recording", settings.n_tokens, progress, done=start) as bar,
        Ring(out, lambda: _slot(wanted, model, config, settings), compression=config["compression"]) as ring,
    ):
        recorder = _Recorder(model, wanted, settings, description)
        for part, last in _parts(windows, config["rows_per_shard"], settings.context if wanted.patterns else 1):
            slot = ring.slot()
            ring.send(slot, recorder.fill(slot, part, last, bar))
    manifest = read_manifest(out)
    corpus = manifest.shards[-1].next["report"] | {"files": config["files"]}
    write_description(out, description | {"corpus": corpus})
    format.write_index(out, manifest.shards)
    close(out, manifest)


def _description(model: Model, wanted: Wanted, settings: TextSettings, config: dict[str, Any]) -> dict[str, Any]:
    """store.json: what a reader has to know."""
    packing = {
        "packed": "BOS, then context - 1 tokens; BOS between documents",
        "document": "BOS, then the document; several windows where it is longer",
    }
    return {
        "format_version": format.VERSION, "model": model.provenance(), "tokenizer": model.tokenizer_hash,
        "sites": wanted.sites, "patterns": wanted.patterns, "logits": wanted.logits, "dtype": wanted.dtype,
        "compression": config["compression"], "context": settings.context, "bos": model.bos,
        "packing": f"{settings.packing}: {packing[settings.packing]}", "text": config["text"],
        "versions": runs.versions(),
    }  # fmt: skip


def _slot(wanted: Wanted, model: Model, config: dict[str, Any], settings: TextSettings) -> Slot:
    """Room for a shard, columns excepted."""
    rows = config["rows_per_shard"]
    rooms = {
        name: ((rows // settings.context if name.startswith("patterns/") else rows, *shape), kind)
        for name, (shape, kind) in wanted.shapes(model, settings.context).items()
    }
    return Slot(rooms, pin=model.device.type == "cuda")


def _parts(windows: Iterator[Windows], rows: int, least: int) -> Iterator[tuple[Windows, bool]]:
    """The windows of each shard, and whether it is the last: up to `rows` rows, a window counting `least` or more."""
    held: Windows | None = None
    for batch in itertools.chain(windows, [None]):
        if batch is not None:
            held = batch if held is None else held + batch
        while held is not None and len(held):
            fits = int(np.searchsorted(np.cumsum(np.maximum(held.lengths, least)), rows, side="right"))
            if fits == len(held) and batch is not None:
                break
            yield held[:fits], batch is None and fits == len(held)
            held = held[fits:] if fits < len(held) else None


class _Recorder:
    """Fills a slot with the activations of its windows."""

    def __init__(self, model: Model, wanted: Wanted, settings: TextSettings, description: dict[str, Any]):
        self.model, self.wanted, self.settings, self.description = model, wanted, settings, description
        shapes = wanted.shapes(model, settings.context).values()
        self.row_bytes = sum(int(np.prod(shape)) * kind.itemsize for shape, kind in shapes)
        self.side = torch.cuda.Stream() if model.device.type == "cuda" else None

    def fill(self, slot: Slot, part: Windows, last: bool, bar: Progress) -> Callable[[], dict[str, Any]]:
        """What `Ring.send` writes. The forward passes are done when this returns, the copies perhaps not yet."""
        model, context = self.model, self.settings.context
        starts = np.concatenate([[0], np.cumsum(part.lengths)])
        sums = {
            name: Sums(shape, context, model.device)
            for name, (shape, _) in self.wanted.shapes(model, context).items()
            if name.startswith("activations/")
        }
        order = np.argsort(-part.lengths, kind="stable")  # equal lengths, little padding
        share = part.report["bytes"] / max(1, part.report["bytes_total"])  # of the text, read when this part ends
        total = self.settings.n_tokens or int((bar.done + part.lengths.sum()) / max(share, 1e-9))
        size = self.description["batch_size"]
        for chosen in [order[i : i + size] for i in range(0, len(order), size)]:
            self._pass(slot, part, chosen, starts, sums)
            n = int(part.lengths[chosen].sum())
            bar.note(f"tokens  {bar.rate:,.0f}/s  {(bar.done + n) * self.row_bytes / 2**20:,.0f} MiB")
            bar.advance(n, total=total)
        copied = torch.cuda.Event() if self.side else None
        if copied is not None:
            copied.record(self.side)

        def write() -> dict[str, Any]:
            if copied is not None:
                copied.synchronize()
            for name, one in sums.items():
                if int(one.bad) < 2**62:
                    self._not_finite(name, slot, int(one.bad), int(starts[-1]))
            return self._shard(slot, part, last, starts, sums)

        return write

    def _pass(
        self, slot: Slot, part: Windows, chosen: np.ndarray, starts: np.ndarray, sums: dict[str, Sums]
    ) -> None:  # fmt: skip
        """One batch of windows through the model, into their places in the slot."""
        device, context = self.model.device, self.settings.context
        longest = int(part.lengths[chosen].max())
        tokens = torch.from_numpy(part.tokens[chosen][:, :longest].astype(np.int64)).to(device)
        lengths = torch.from_numpy(part.lengths[chosen]).to(device)
        valid = torch.arange(longest, device=device) < lengths[:, None]
        content = valid if self.model.bos is None else valid & (tokens != self.model.bos)
        first = torch.from_numpy(starts[chosen]).to(device)

        def rows(name: str, value: Tensor) -> None:
            stored = value.to(slot.data[name].dtype)
            if name in sums:
                sums[name].add(stored, valid, content, first)
            self._copy(slot.data[name], stored, chosen, part.lengths[chosen], starts)

        def pattern(name: str, value: Tensor) -> None:
            for window, one in zip(chosen.tolist(), value.to(slot.data[name].dtype), strict=True):
                n = int(part.lengths[window])
                room = slot.data[name][window].zero_() if n < context else slot.data[name][window]
                self._put(room[:, :n, :n], one[:, :n, :n])

        functions = {n: partial(rows, f"activations/{n}") for n in self.wanted.sites}
        functions |= {n: partial(pattern, f"patterns/{n}") for n in self.wanted.patterns}
        with torch.no_grad():
            logits = watch(self.model, tokens, functions, logits=self.wanted.logits > 0)
            if logits is not None:
                values, best = logits.topk(self.wanted.logits)
                rows("logits/values", values.float())
                rows("logits/tokens", best)

    def _copy(
        self, room: Tensor, value: Tensor, chosen: np.ndarray, lengths: np.ndarray, starts: np.ndarray
    ) -> None:  # fmt: skip
        """`value` [window, pos, ...] to the rows of its windows; neighbouring whole windows go as one."""
        run = 0
        for i in range(1, len(chosen) + 1):
            whole = i < len(chosen) and lengths[i] == lengths[i - 1] == value.shape[1]
            if not (whole and chosen[i] == chosen[i - 1] + 1):
                begin, end = int(starts[chosen[run]]), int(starts[chosen[i - 1]] + lengths[i - 1])
                piece = value[run:i].flatten(0, 1) if i - run > 1 else value[run, : lengths[run]]
                self._put(room[begin:end], piece)
                run = i

    def _put(self, room: Tensor, value: Tensor) -> None:
        if self.side is None:
            room.copy_(value)
            return
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            room.copy_(value, non_blocking=True)
        value.record_stream(self.side)

    def _not_finite(self, name: str, slot: Slot, row: int, n_rows: int) -> None:
        values = slot.data[name][row].float()
        kind = "NaN" if values.isnan().any() else "infinite"
        hint = "" if self.wanted.dtype != "float16" else " Beyond 65,504 float16 has no number: --store-dtype bfloat16."
        raise NotFinite(f"{name}, row {row:,} of the {n_rows:,} of this shard, is {kind}.{hint}")

    def _shard(
        self, slot: Slot, part: Windows, last: bool, starts: np.ndarray, sums: dict[str, Sums]
    ) -> dict[str, Any]:  # fmt: skip
        """The arguments of `format.write_shard`."""
        i, n = self.settings.shard
        before = part.place(0)["windows"] - 1
        valid = np.arange(self.settings.context) < part.lengths[:, None]
        sequence = (before + np.arange(len(part), dtype=np.int64)) * n + i
        columns = {
            "tokens": part.tokens[valid], "sequence": np.repeat(sequence, part.lengths),
            "document": part.document[valid],
            "position": np.broadcast_to(np.arange(self.settings.context, dtype=np.int32), valid.shape)[valid],
        }  # fmt: skip
        counts = {name: len(part) if name.startswith("patterns/") else int(starts[-1]) for name in slot.data}
        about = {key: self.description[key] for key in ("model", "tokenizer", "dtype", "context", "bos", "packing")}
        return {
            "arrays": columns | slot.arrays(counts), "about": about, "first_window": int(sequence[0]),
            "statistics": {name.removeprefix("activations/"): one.result() for name, one in sums.items()},
            "windows": len(part), "next": {"place": part.place(), "report": part.report, "last": last},
        }  # fmt: skip


def _fitting_batch(model: Model, wanted: Wanted, context: int) -> int:
    """Windows a forward pass: 4,096 tokens on a CPU, which is enough to keep it busy; on a GPU up to 65,536, halved
    until a pass fits into its memory."""
    if model.device.type != "cuda":
        return max(1, 4096 // context)
    size = max(1, 65536 // context)
    functions = {name: lambda value: None for name in [*wanted.sites, *wanted.patterns]}
    while True:
        try:
            tokens = torch.zeros(size, context, dtype=torch.long)
            with torch.no_grad():
                watch(model, tokens, functions, logits=wanted.logits > 0)
            return max(1, size // 2) if size > 1 else 1
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if size == 1:
                raise
            size //= 2
