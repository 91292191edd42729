"""What each latent of a dictionary does on a text: how often it fires, where, and what its weights say.

One pass over the text keeps the sparse codes (sae/firings.py); all that follows is exact, over all firings, a block of
latents at a time. Written into `features/` beside the dictionary:

    latents.parquet   one row a latent: latent, density, n_fires, max_activation, mean_activation, encoder_cosine,
                      top_token_text, dead
    latents.h5        what is shown of one latent, so that reading it touches kilobytes (`Features.of` and the like):
        /examples/{start}                   examples of latent i are rows start[i] to start[i + 1] of
        /examples/{kind, quantile, activation, row, sequence, position, token_index, tokens, values}
        /histogram/{low, high [d_sae], counts [d_sae, bin]}
        /neighbours/{cosine, correlation}/{latent, value}   [d_sae, n]
        /logits/{raised, lowered}/{token, effect}           [d_sae, n]; not there where the site has no such reading
        /text/{bytes, start}                UTF-8 of every token, one after the other

Three kinds of example. *top*: the strongest firings, at most one a sequence. *random*: firings drawn evenly.
*quantile*: drawn evenly inside each fifth of the latent's firings by strength, fifth 0 the strongest. AbsTopK's latents
have a sign: strength is the magnitude. Rows whose token is BOS count nowhere and show 0. Reading imports no torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from interp.errors import AlreadyExists, InputError, MissingFile, UnknownName, WrongModel, nearest
from interp.progress import Progress
from interp.store.reading import Store, open_finished

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from interp.decoder.model import Model
    from sae.dictionary import Dictionary
    from sae.firings import Firings
    from sae.rows import Rows

KINDS = ("top", "random", "quantile")
TABLE, DETAILS = "latents.parquet", "latents.h5"


@dataclass(frozen=True)
class Features:
    """The features of the dictionary in `folder`. `latents` is the table, in the order of the latents."""

    folder: Path
    latents: pd.DataFrame

    @classmethod
    def load(cls, folder: str | Path) -> Features:
        """Those of the dictionary in `folder`. MissingFile where there are none."""
        target = Path(folder) / "features"
        if not (target / TABLE).exists() or not (target / DETAILS).exists():
            raise MissingFile(f"no features in {folder}: make them with interp sae features {Path(folder).name}.")
        return cls(Path(folder), pd.read_parquet(target / TABLE))

    def _open(self) -> h5py.File:
        return h5py.File(self.folder / "features" / DETAILS, "r")

    @cached_property
    def _text(self) -> list[str]:
        with self._open() as file:
            blob, start = file["text/bytes"][:].tobytes(), file["text/start"][:].tolist()
        return [blob[a:b].decode() for a, b in zip(start[:-1], start[1:], strict=True)]

    @cached_property
    def _tops(self) -> tuple[np.ndarray, np.ndarray]:
        """Latent and token of every top example."""
        with self._open() as file:
            group = file["examples"]
            top, at = group["kind"][:] == KINDS.index("top"), group["token_index"][:]
            token = group["tokens"][:][np.arange(len(at)), at][top]
            return np.repeat(np.arange(len(self.latents)), np.diff(group["start"][:]))[top], token

    @cached_property
    def _raised(self) -> tuple[np.ndarray, np.ndarray]:
        """Latent and token of all that decoder rows raise most."""
        with self._open() as file:
            there = "logits/raised" in file
            token = file["logits/raised/token"][:] if there else np.zeros((len(self.latents), 0), int)
        return np.repeat(np.arange(len(token)), token.shape[1]), token.ravel()

    def _known(self, latent: int) -> None:
        if not 0 <= latent < len(self.latents):
            raise UnknownName(f"no latent {latent}: they are numbered 0 to {len(self.latents) - 1}.")

    def of(self, latent: int, kind: str = "top") -> pd.DataFrame:
        """Examples of one kind, the strongest first: kind, quantile (-1 but in "quantile"), rank, activation, row,
        sequence, position, tokens, token_index, values; `values[i]` is the latent on `tokens[i]`, `token_index` the
        place of the example. UnknownName for a latent or a kind that there is not."""
        self._known(latent)
        if kind not in KINDS:
            raise UnknownName(f'no examples of kind "{kind}". Nearest: {nearest(kind, KINDS)}.')
        with self._open() as file:
            group = file["examples"]
            first, stop = group["start"][latent : latent + 2]
            columns = {name: group[name][first:stop] for name in group if name != "start"}
        mine = columns.pop("kind") == KINDS.index(kind)
        columns = {name: values[mine] for name, values in columns.items()}
        tokens, values = columns.pop("tokens"), columns.pop("values")
        table = pd.DataFrame(columns)
        table.insert(0, "kind", kind)
        table.insert(1, "rank", np.arange(len(table)))
        table["tokens"] = [[self._text[t] for t in row if t >= 0] for row in tokens.tolist()]
        table["values"] = [v[t >= 0].tolist() for v, t in zip(values, tokens, strict=True)]
        return table

    def search(self, text: str, by: str = "examples") -> pd.DataFrame:
        """Latents whose top examples are at tokens that contain `text` (a space counts, the case does not), or, `by`
        "raised", whose decoder row raises such tokens: latent, share of the examples or of the tokens raised,
        max_activation, density; the largest share first, of equal ones the rarest latent."""
        if by not in ("examples", "raised"):
            raise UnknownName(f'no search by "{by}". Nearest: {nearest(by, ["examples", "raised"])}.')
        wanted = np.array([text.lower() in token.lower() for token in self._text])
        latent, token = self._raised if by == "raised" else self._tops
        hits, all_of_it = (np.bincount(latent, weights, len(self.latents)) for weights in (wanted[token], None))
        share = hits / np.maximum(all_of_it, 1)
        table = self.latents[["latent", "max_activation", "density"]].assign(share=share)
        table = table[table["share"] > 0].sort_values(["share", "density"], ascending=[False, True], ignore_index=True)
        return table[["latent", "share", "max_activation", "density"]]

    def histogram(self, latent: int) -> pd.DataFrame:
        """Of its activations where it fires: low, high, count of each bin."""
        self._known(latent)
        with self._open() as file:
            low, high = (float(file[f"histogram/{end}"][latent]) for end in ("low", "high"))
            counts = file["histogram/counts"][latent]
        edges = np.linspace(low, high, len(counts) + 1)
        return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "count": counts})

    def neighbours(self, latent: int, by: str = "cosine") -> pd.DataFrame:
        """The nearest latents: latent, value. `by` "cosine" of the decoder rows, or "correlation" of firing: the phi
        coefficient over tokens, 1 where they always fire together, 0 where independently."""
        self._known(latent)
        with self._open() as file:
            table = pd.DataFrame({name: file[f"neighbours/{by}/{name}"][latent] for name in ("latent", "value")})
        return table[table["latent"] >= 0].reset_index(drop=True)

    def logits(self, latent: int) -> pd.DataFrame:
        """Tokens that its decoder row raises most, then those it lowers most: token, text, effect (see sae.weights).
        Empty where its site has no direct way to the logits."""
        self._known(latent)
        with self._open() as file:
            names = [name for name in ("raised", "lowered") if f"logits/{name}" in file]
            parts = [[file[f"logits/{name}/{key}"][latent] for key in ("token", "effect")] for name in names]
        tokens, effects = (np.concatenate(part) for part in zip(*parts, strict=True)) if parts else ([], [])
        text = [self._text[token] for token in tokens]
        return pd.DataFrame({"token": np.asarray(tokens, int), "text": text, "effect": np.asarray(effects, float)})

    def figure(self, latent: int) -> Figure:
        """The histogram of its activations as bars."""
        from plotly import graph_objects as go

        table = self.histogram(latent)
        bars = go.Bar(x=(table["low"] + table["high"]) / 2, y=table["count"], width=table["high"] - table["low"])
        return go.Figure(bars).update_layout(
            xaxis_title=f"activation of latent {latent}", yaxis_title="tokens", bargap=0, height=320,
            margin={"t": 10, "b": 50, "l": 60, "r": 10},
        )  # fmt: skip


def check_free(folder: Path, overwrite: bool) -> None:
    """AlreadyExists where `folder` has features that are not to be overwritten."""
    if (folder / "features" / TABLE).exists() and not overwrite:
        raise AlreadyExists(f"{folder / 'features'} is there: pass --overwrite (overwrite=True) to make it again.")


def compute(
    dct: Dictionary,
    store: Store | str | Path | None = None,
    *,
    text: str | Path | Sequence[str | Path] | None = None,
    model: Model | None = None,
    n_examples: int = 20,
    context_tokens: int = 16,
    n_rows: int | None = 1_000_000,
    batch_size: int = 4096,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Features:
    """Run `dct` over the first `n_rows` rows of `store`, or of `text` in `model`; written into `out`/features, by
    default `dct.path`/features, whole or not at all.

    `n_examples` of each kind of a latent, with up to `context_tokens` tokens on each side; `seed` draws them. `model`
    gives the tokens' text and the logits; where None, the one that the store names is loaded. While it works, memory
    holds one block of latents' firings (about 400 MB) and the disk 8 bytes a firing. WrongModel for a store of another
    model, AlreadyExists for features that are there and not to be overwritten.
    """
    if n_examples < 1 or context_tokens < 0 or (n_rows or 1) < 1 or batch_size < 1:
        raise InputError("n_examples, n_rows and batch_size must be at least 1, context_tokens at least 0.")
    if (out := Path(out) if out is not None else dct.path) is None:
        raise InputError("this dictionary was not loaded from a folder: say out=.")
    check_free(out, overwrite)
    source, model = _source(dct, store, text, model, n_rows)
    target, making = out / "features", out / ".features.tmp"
    shutil.rmtree(making, ignore_errors=True)
    (making / "codes").mkdir(parents=True)
    try:
        firings = _record(dct, source, making / "codes", batch_size, progress)
        table = _write(making, dct, firings, source, model, progress=progress,
                       n_examples=n_examples, context_tokens=context_tokens, seed=seed)  # fmt: skip
        table.to_parquet(making / TABLE, index=False)
        shutil.rmtree(making / "codes")
        shutil.rmtree(target, ignore_errors=True)
        making.rename(target)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return Features.load(out)


def _source(
    dct: Dictionary, store: Store | str | Path | None, text: Any, model: Model | None, n_rows: int | None
) -> tuple[Rows, Model]:
    """The rows to read, and their model."""
    from sae import rows

    if (store is None) == (text is None):
        raise InputError("give a store or a text: one of the two.")
    if store is not None:
        store = store if isinstance(store, Store) else open_finished(store)
        return rows.of_store(store, dct.sites, n_rows=n_rows), _model_of(dct, store, model)
    if model is None:
        raise InputError("a text is read by a model: pass the model too.")
    from sae.splicing import check_model

    check_model(dct, model)
    return rows.of_text(model, text, dct.sites, n_rows=n_rows, context=dct.context or 128), model


def _model_of(dct: Dictionary, store: Store, model: Model | None) -> Model:
    """`model`, or the store's. WrongModel unless dictionary, store and model are of one, as far as they say."""
    wanted = store.model["fingerprint"]
    if dct.model.get("fingerprint") not in (None, wanted):
        raise WrongModel(
            f'store {store.name} is of "{store.model["name"]}", the dictionary of "{dct.model.get("name")}".'
        )
    if model is None:
        from interp.decoder.loading import load_model

        model = load_model(store.model["name"], device="cpu", revision=store.model.get("revision"))
    if model.fingerprint != wanted:
        raise WrongModel(f'store {store.name} is of another model than "{model.name}" as it is now: pass the model.')
    return model


def _record(dct: Dictionary, source: Rows, folder: Path, batch_size: int, progress: bool) -> Firings:
    """The pass: every row encoded once, its active latents kept."""
    import torch

    from sae.firings import Firings
    from sae.rows import joined

    def codes():
        for rows, activations in source.chunks(batch_size):
            x = joined(activations, dct.sites).to(dct.W_enc)
            if x.shape[1] != dct.d_in:
                raise WrongModel(f"{source.name} has {x.shape[1]} numbers a row; the dictionary reads {dct.d_in}.")
            if not (finite := torch.isfinite(x).all(1)).all():
                raise InputError(f"{source.name}: row {rows[~finite.cpu().numpy()][0]} holds NaN or infinity.")
            with torch.no_grad():
                active = dct.active(x)
            token, latent, value = (part.cpu().numpy() for part in (active.token, active.latent, active.value.float()))
            yield rows[token], latent, value
            bar.advance(len(rows))

    with Progress("encoding", int(source.content.sum()), progress) as bar:
        return Firings.record(folder, codes(), n_rows=len(source), d_sae=dct.d_sae)


def _write(
    folder: Path, dct: Dictionary, firings: Firings, source: Rows, model: Model, **settings: Any
) -> pd.DataFrame:  # fmt: skip
    """latents.h5 into `folder`; returns the table of latents."""
    from sae import examples, weights

    encoded = [text.encode() for text in model.token_text(range(model.d_vocab))]
    with h5py.File(folder / DETAILS, "w", libver="latest") as file:
        file["text/bytes"] = np.frombuffer(b"".join(encoded), np.uint8)
        file["text/start"] = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        table = examples.write(file, firings, source, signed=dct.architecture == "abstopk", **settings)
        weights.write(file, dct, model)
    table["encoder_cosine"] = weights.encoder_cosine(dct)
    fires, token = table["n_fires"] > 0, table.pop("top_token")
    table["top_token_text"] = np.where(fires, model.token_text(token.tolist()), "")
    return table
