"""record(): text -> captured activations -> a store. Killed at any moment, the same call continues it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int
from rich.progress import Progress
from torch import Tensor

from interp import runs
from interp.data.text import read_text, windows
from interp.decoder.hooks import captured
from interp.decoder.loading import Model
from interp.decoder.sites import axes, expand
from interp.errors import InputError, nearest
from interp.store import format
from interp.store.reading import Store

SHARD_BYTES = 128 * 2**20
"""A shard's size per hook point, at most."""


def record(
    model: Model,
    text: str | Path | Sequence[str | Path],
    *,
    sites: str | Sequence[str] = "*.resid_post",
    n_tokens: int | None = None,
    context: int = 128,
    dtype: str = "float16",
    out: str | Path,
    batch_size: int = 32,
    overwrite: bool = False,
    progress: bool = True,
) -> Store:
    """Run `text` through `model` and write the activations at `sites` to a store at `out`.

    One row a token, in the order of the text: windows of `context` tokens, BOS first. `dtype` is the one on disk.
    InputError, before anything is written, for an unknown site, missing text, or a pattern (which has no row a token).
    """
    names = expand(sites, model.sites, model=f'"{model.name}"')
    if patterns := [name for name in names if not axes(name).startswith("prompt pos")]:
        raise InputError(f"{patterns[0]} has no row a token: record z, q, k or v instead.")
    if dtype not in format.DTYPES:
        raise InputError(f'unknown store dtype "{dtype}". Nearest: {nearest(dtype, format.DTYPES)}.')
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} given: one window or more.")
    corpus = read_text(text)
    tokens = windows(model, corpus, context=context, n_tokens=n_tokens)
    out = Path(out)
    config = {
        "sites": names, "n_tokens": n_tokens, "context": context, "dtype": dtype, "corpus": corpus.hashes,
        "windows_per_shard": _windows_per_shard(model, context, dtype),
    }  # fmt: skip
    description = {
        "format_version": format.VERSION, "model": model.provenance(), "sites": names, "dtype": dtype,
        "context": context, "bos": model.bos, "packing": "BOS, then context - 1 tokens of the text",
        "corpus": corpus.hashes, "n_windows": len(tokens),
    }  # fmt: skip
    with runs.recording(
        out,
        kind="record",
        config=config,
        model=model.provenance(),
        seed=0,
        device=str(model.device),
        overwrite=overwrite,
    ):
        runs.write_json(out / "store.json", description)
        done = format.read_manifest(out)
        first = done[-1].first_window + done[-1].rows // context if done else 0
        with Progress(disable=not progress, transient=True) as bar:
            task = bar.add_task("recording", total=len(tokens), completed=first)
            step = config["windows_per_shard"]
            for start in range(first, len(tokens), step):
                part = tokens[start : start + step]
                arrays, statistics = _capture(model, part, names, dtype, batch_size, lambda n: bar.advance(task, n))
                n = len(format.read_manifest(out))
                rows = {
                    "tokens": part.numpy().astype(np.int32).reshape(-1),
                    "sequence": np.repeat(np.arange(start, start + len(part), dtype=np.int64), context),
                    "position": np.tile(np.arange(context, dtype=np.int32), len(part)),
                }
                shard = format.write_shard(
                    out, n, rows | arrays, statistics, first_row=start * context, first_window=start
                )
                format.append_manifest(out, shard)
        format.write_index(out, format.read_manifest(out))
    return Store(out)


def _windows_per_shard(model: Model, context: int, dtype: str) -> int:
    widest = max(model.d_model, model.n_heads * model.d_head, model.d_mlp or 0)
    return max(1, SHARD_BYTES // (context * widest * format.DTYPES[dtype].itemsize))


def _capture(
    model: Model,
    tokens: Int[Tensor, "window pos"],
    names: list[str],
    dtype: str,
    batch_size: int,
    advance: Callable[[int], None],
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Activations [row, ...] of `tokens` at each site, and their statistics over rows that are not BOS."""
    target = getattr(torch, dtype)
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in names}
    totals: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    for batch in tokens.split(batch_size):
        with torch.no_grad(), captured(model, names) as cache:
            model(batch)
        keep = torch.ones_like(batch, dtype=torch.bool) if model.bos is None else batch != model.bos
        for name in names:
            value = rearrange(cache[name], "window pos ... -> (window pos) ...")
            stored = value.to(target)
            if not torch.isfinite(stored).all():
                raise InputError(f"{name} reaches {value.abs().max():.3g}, beyond {dtype}: pass --store-dtype float32.")
            pieces[name].append(stored.cpu().numpy())
            for key, one in _statistics(stored[keep.flatten().to(stored.device)]).items():
                before = totals[name].get(key)
                joined = np.maximum if key == "max_abs" else np.add
                totals[name][key] = one if before is None else np.asarray(joined(before, one))
        advance(len(batch))
    return {f"activations/{name}": np.concatenate(parts) for name, parts in pieces.items()}, totals


def _statistics(rows: Tensor) -> dict[str, np.ndarray]:
    """Sums in float64 over `rows` [row, ...]: what a trainer needs to centre and scale."""
    rows = rows.double()
    norms = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    sums = {
        "n": torch.tensor(len(rows)), "sum": rows.sum(0), "sumsq": rows.square().sum(0), "norm_sum": norms.sum(),
        "max_abs": rows.abs().amax() if len(rows) else torch.tensor(0.0),
    }  # fmt: skip
    return {key: np.asarray(value.double().cpu().numpy()) for key, value in sums.items()}
