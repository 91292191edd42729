"""Per-latent statistics of firings, exact, a block of latents at a time: examples, histogram, who fires together."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from interp.progress import Progress
from sae.firings import Block, Firings
from sae.rows import Rows

FIFTHS, BINS, NEIGHBOURS = 5, 40, 10


def rank_within(group: Int[np.ndarray, " item"]) -> Int[np.ndarray, " item"]:
    """0, 1, 2, ... inside each run of equal numbers."""
    place = np.arange(len(group))
    starts = np.concatenate([[True], group[1:] != group[:-1]]) if len(group) else np.zeros(0, bool)
    return place - np.maximum.accumulate(np.where(starts, place, 0))


def lottery(row: Int[np.ndarray, " n"], latent: Int[np.ndarray, " n"], *, d_sae: int, seed: int) -> np.ndarray:
    """32 bits for each (row, latent) that look drawn at random and depend on nothing else: splitmix64's finisher
    (Steele et al. 2014). Equal however the rows were batched."""
    z = (row.astype(np.uint64) * np.uint64(d_sae) + latent.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(seed * 0xD1B54A32D192ED03 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(32)).astype(np.int64)


def by_strength(block: Block) -> Int[np.ndarray, " firing"]:
    """The order of `block` by latent, then falling magnitude, then row."""
    bits = np.abs(block.value).astype(np.float32).view(np.uint32).astype(np.int64)
    return np.argsort((block.latent << 32) | (0xFFFFFFFF - bits), kind="stable")


def top(
    block: Block, order: Int[np.ndarray, " firing"], sequence: Int[np.ndarray, " row"], n: int
) -> Int[np.ndarray, " pick"]:
    """The `n` strongest firings of each latent, at most one of a sequence, as places in `block`."""
    sequences = sequence[block.row[order]]
    pair = block.latent[order] * (int(sequences.max(initial=0)) + 1) + sequences
    best = order[np.sort(np.unique(pair, return_index=True)[1])]
    return best[rank_within(block.latent[best]) < n]


def drawn(group: Int[np.ndarray, " firing"], ticket: np.ndarray, n: int) -> Int[np.ndarray, " pick"]:
    """Places of the `n` lowest tickets in each group."""
    order = np.argsort((group << 32) | ticket, kind="stable")
    return order[rank_within(group[order]) < n]


def choose(block: Block, sequence: Int[np.ndarray, " row"], n: int, *, d_sae: int, seed: int) -> pd.DataFrame:
    """The examples of every latent of `block`: place (in the block), latent, kind, quantile; in the order written."""
    order = by_strength(block)
    rank = rank_within(block.latent[order])
    fires = np.bincount(block.latent, minlength=block.size)
    fifth = np.empty(len(order), np.int64)
    fifth[order] = rank * FIFTHS // fires[block.latent[order]]
    ticket = lottery(block.row, block.latent + block.first, d_sae=d_sae, seed=seed)
    place_of = np.empty(len(order), np.int64)
    place_of[order] = np.arange(len(order))
    picks = (
        top(block, order, sequence, n),
        drawn(block.latent, ticket, n),
        drawn(block.latent * FIFTHS + fifth, ticket, max(1, n // FIFTHS)),
    )
    tables = [
        pd.DataFrame({"place": pick, "kind": kind, "quantile": fifth[pick] if kind == 2 else -1})
        for kind, pick in enumerate(picks)
    ]
    table = pd.concat(tables, ignore_index=True)
    table["latent"] = block.latent[table["place"]]
    order = np.lexsort((place_of[table["place"]], table["kind"], table["latent"]))
    return table.iloc[order].reset_index(drop=True)


def windows(
    block: Block, pick: Int[np.ndarray, " pick"], source: Rows, context_tokens: int
) -> tuple[Int[np.ndarray, "pick place"], Float[np.ndarray, "pick place"]]:
    """Tokens around each pick, -1 outside its sequence, and its latent's value on each."""
    n_rows = len(source)
    near = block.row[pick][:, None] + np.arange(-context_tokens, context_tokens + 1)
    inside = np.clip(near, 0, n_rows - 1)
    same = (near == inside) & (source.sequence[inside] == source.sequence[block.row[pick]][:, None])
    key = block.latent * n_rows + block.row
    wanted = block.latent[pick][:, None] * n_rows + inside
    found = np.minimum(np.searchsorted(key, wanted), max(len(key) - 1, 0))
    values = np.where(same & (key[found] == wanted), block.value[found], 0)
    return np.where(same, source.tokens[inside], -1), values.astype(np.float32)


def histogram(block: Block, strongest: Float[np.ndarray, " latent"], signed: bool) -> Int[np.ndarray, "latent bin"]:
    """Firings of each latent in BINS equal bins from 0, or from -strongest where `signed`, to strongest."""
    top = np.maximum(strongest, np.finfo(np.float32).tiny)[block.latent].astype(np.float64)
    share = (block.value / top + 1) / 2 if signed else block.value / top
    bins = np.minimum((share * BINS).astype(np.int64), BINS - 1)
    return np.bincount(block.latent * BINS + bins, minlength=block.size * BINS).reshape(block.size, BINS)


def correlation(
    together: Int[np.ndarray, "latent d_sae"], first: int, fires: Int[np.ndarray, " d_sae"], n_tokens: int
) -> Float[np.ndarray, "latent d_sae"]:
    """Phi coefficient of firing over `n_tokens`; -2 for a latent with itself, and where one never or always fires."""
    spread = fires * (n_tokens - fires.astype(np.float64))
    inverse = np.where(spread > 0, 1 / np.sqrt(np.maximum(spread, 1)), np.nan)
    mine = slice(first, first + len(together))
    phi = together * float(n_tokens)
    phi -= fires[mine, None].astype(np.float64) * fires
    phi *= inverse[mine, None]
    phi *= inverse
    np.nan_to_num(phi, copy=False, nan=-2)
    phi[np.arange(len(together)), first + np.arange(len(together))] = -2
    return phi


def nearest(values: Float[np.ndarray, "latent d_sae"], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and values of the `n` largest of each row, the largest first."""
    found = torch.from_numpy(values).topk(n, dim=1)
    return found.indices.numpy(), found.values.numpy()


def write(
    file: h5py.File, firings: Firings, source: Rows, *, n_examples: int, context_tokens: int, seed: int,
    signed: bool = False, progress: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Fill `file` with /examples, /histogram and /neighbours/correlation; returns latent, density, n_fires,
    max_activation, mean_activation, top_token (an id, 0 where dead) and dead, a row a latent."""
    fires, n_tokens, d_sae = firings.fires(), int(source.content.sum()), firings.d_sae
    strongest, total = np.zeros(d_sae, np.float32), np.zeros(d_sae)
    top_token, counts = np.zeros(d_sae, np.int64), np.zeros(d_sae, np.int64)
    n_near = min(NEIGHBOURS, d_sae - 1)
    bins, near = np.zeros((d_sae, BINS), np.int32), np.full((d_sae, n_near), -1, np.int32)
    likeness = np.zeros((d_sae, n_near), np.float32)
    group = _datasets(file.create_group("examples"), 2 * context_tokens + 1)
    with Progress("collecting", d_sae, progress) as bar:
        for block in firings.blocks():
            mine = slice(block.first, block.stop)
            np.maximum.at(strongest[mine], block.latent, np.abs(block.value))
            total[mine] = np.bincount(block.latent, block.value.astype(np.float64), minlength=block.size)
            bins[mine] = histogram(block, strongest[mine], signed)
            chosen = choose(block, source.sequence, n_examples, d_sae=d_sae, seed=seed)
            pick = chosen["place"].to_numpy()
            tokens, values = windows(block, pick, source, context_tokens)
            _append(group, chosen, block, source, tokens, values)
            counts[mine] = np.bincount(chosen["latent"], minlength=block.size)
            first = rank_within(chosen["latent"].to_numpy()) == 0
            top_token[chosen["latent"][first] + block.first] = tokens[first, context_tokens]
            together = firings.together(block)
            for start in range(0, block.size if n_near else 0, 64):
                part = together[start : start + 64]
                rows = slice(block.first + start, block.first + start + len(part))
                near[rows], likeness[rows] = nearest(correlation(part, rows.start, fires, n_tokens), n_near)
            bar.advance(block.size)
    near[likeness <= 0] = -1
    group["start"] = np.cumsum([0, *counts])
    file["histogram/counts"], file["histogram/high"] = bins, strongest
    file["histogram/low"] = -strongest if signed else np.zeros_like(strongest)
    file["neighbours/correlation/latent"], file["neighbours/correlation/value"] = near, likeness
    return pd.DataFrame({
        "latent": np.arange(d_sae), "density": fires / n_tokens, "n_fires": fires, "max_activation": strongest,
        "mean_activation": (total / np.maximum(fires, 1)).astype(np.float32), "top_token": top_token,
        "dead": fires == 0,
    })  # fmt: skip


_COLUMNS = {
    "kind": "i1", "quantile": "i1", "activation": "f4", "row": "i8", "sequence": "i8", "position": "i4",
    "token_index": "i2", "tokens": "i4", "values": "f4",
}  # fmt: skip


def _datasets(group: h5py.Group, width: int) -> h5py.Group:
    for name, kind in _COLUMNS.items():
        wide = (width,) if name in ("tokens", "values") else ()
        group.create_dataset(
            name, (0, *wide), kind, maxshape=(None, *wide), chunks=(128 if wide else 1024, *wide),
            compression="gzip" if wide else None, compression_opts=1 if wide else None, shuffle=bool(wide),
        )  # fmt: skip
    return group


def _append(
    group: h5py.Group, chosen: pd.DataFrame, block: Block, source: Rows, tokens: np.ndarray, values: np.ndarray
) -> None:
    pick = chosen["place"].to_numpy()
    row, middle = block.row[pick], tokens.shape[1] // 2
    columns = {
        "kind": chosen["kind"], "quantile": chosen["quantile"], "activation": block.value[pick], "row": row,
        "sequence": source.sequence[row], "position": source.position[row],
        "token_index": (tokens[:, :middle] >= 0).sum(1), "tokens": tokens, "values": values,
    }  # fmt: skip
    for name, column in columns.items():
        data, n = group[name], len(group[name])
        data.resize(n + len(column), axis=0)
        data[n:] = np.asarray(column, data.dtype)
