"""What each latent of a dictionary does on a store: how often it fires, and where most strongly.

    features/latents.parquet    one row a latent: latent, density, n_fires, max_activation, top_token_text, dead
    features/examples.parquet   one row an example: latent, rank, activation, row, sequence, position, tokens,
                                token_index, values; `values[i]` is the latent on `tokens[i]`, `token_index` the place
                                of the example

Reading them (`Features.load`) imports no torch. Rows whose token is BOS count nowhere and show 0.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from interp.errors import AlreadyExists, InputError, MissingFile, WrongModel
from interp.store.reading import Store

if TYPE_CHECKING:
    from interp.decoder.loading import Model
    from sae.dictionary import Dictionary


@dataclass(frozen=True)
class Features:
    """The two tables. `latents` is in the order of the latents, `examples` by latent, then rank (0 the strongest)."""

    latents: pd.DataFrame
    examples: pd.DataFrame

    def of(self, latent: int) -> pd.DataFrame:
        """The examples of one latent, the strongest first."""
        return self.examples[self.examples["latent"] == latent].reset_index(drop=True)

    def save(self, folder: str | Path) -> None:
        """Write both tables into `folder`/features, `latents.parquet` last, each by atomic rename."""
        target = Path(folder) / "features"
        target.mkdir(parents=True, exist_ok=True)
        for name, table in (("examples", self.examples), ("latents", self.latents)):
            temporary = target / f".{name}.parquet.tmp"
            table.to_parquet(temporary, index=False)
            os.replace(temporary, target / f"{name}.parquet")

    @classmethod
    def load(cls, folder: str | Path) -> Features:
        """The tables of the dictionary in `folder`. MissingFile where there are none."""
        target = Path(folder) / "features"
        if not (target / "latents.parquet").exists():
            raise MissingFile(f"no features in {folder}: make them with interp sae features {Path(folder).name}.")
        return cls(pd.read_parquet(target / "latents.parquet"), pd.read_parquet(target / "examples.parquet"))


@dataclass(frozen=True)
class _Firings:
    """Every activation above 0, as parallel arrays, by row."""

    row: Int[np.ndarray, " firing"]
    latent: Int[np.ndarray, " firing"]
    value: Float[np.ndarray, " firing"]


def compute(
    dct: Dictionary,
    store: Store | str | Path,
    *,
    n_examples: int = 20,
    context_tokens: int = 16,
    n_rows: int = 200_000,
    batch_size: int = 4096,
    model: Model | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Features:
    """Run `dct` over the first `n_rows` rows of `store`; written into `out`/features, by default `dct.path`/features.

    Examples are the `n_examples` strongest of a latent, at most one from each sequence, with up to `context_tokens`
    tokens on each side. `model` gives the tokens' text; where None, the one that the store names is loaded. WrongModel
    for a store of another model, AlreadyExists for features that are there and not to be overwritten.
    """
    store = store if isinstance(store, Store) else Store(store)
    out = Path(out) if out is not None else dct.path
    if n_examples < 1 or context_tokens < 0 or n_rows < 1 or batch_size < 1:
        raise InputError("n_examples, n_rows and batch_size must be at least 1, context_tokens at least 0.")
    if out is not None:
        check_free(out, overwrite)
    site = store.site(dct.site)
    _check_model(dct, store, model)
    if store.d(site) != dct.d_in:
        raise WrongModel(f"{site} of store {store.name} has width {store.d(site)}; the dictionary reads {dct.d_in}.")
    if model is None:
        from interp.decoder.loading import load_model

        model = load_model(store.model["name"], device="cpu", revision=store.model.get("revision"))
        _check_model(dct, store, model)
    rows = store.content_rows[store.content_rows < n_rows]
    firings = _fire(dct, store, rows, batch_size)
    examples = _examples(firings, store, model, n_examples=n_examples, context_tokens=context_tokens)
    features = Features(_latents(firings, examples, d_sae=dct.d_sae, n_rows=len(rows)), examples)
    if out is not None:
        features.save(out)
    return features


def check_free(folder: Path, overwrite: bool) -> None:
    """AlreadyExists if `folder` has finished features that are not to be made again."""
    if (folder / "features" / "latents.parquet").exists() and not overwrite:
        raise AlreadyExists(f"{folder / 'features'} holds finished features: pass --overwrite to make them again.")


def _check_model(dct: Dictionary, store: Store, model: Model | None) -> None:
    """WrongModel unless dictionary, store and model are of one model, as far as they say."""
    wanted = store.model["fingerprint"]
    if dct.model.get("fingerprint") not in (None, wanted):
        raise WrongModel(
            f'store {store.name} is of "{store.model["name"]}", the dictionary of "{dct.model.get("name")}".'
        )
    if model is not None and model.fingerprint != wanted:
        raise WrongModel(f'store {store.name} is of another model than "{model.name}" as it is now: pass the model.')


def _fire(dct: Dictionary, store: Store, rows: Int[np.ndarray, " row"], batch_size: int) -> _Firings:
    import torch

    activations, pieces = store[dct.site], []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        x = torch.from_numpy(activations[batch].reshape(len(batch), -1)).to(dct.b_dec)
        with torch.no_grad():
            active = dct.active(x)
        latent = active.latent.cpu().numpy().astype(np.int32)
        pieces.append((batch[active.token.cpu().numpy()], latent, active.value.float().cpu().numpy()))
    if not pieces:
        raise InputError(f"store {store.name} has no rows of text.")
    return _Firings(*(np.concatenate(column) for column in zip(*pieces, strict=True)))


def _examples(
    firings: _Firings, store: Store, model: Model, *, n_examples: int, context_tokens: int
) -> pd.DataFrame:  # fmt: skip
    """The strongest firing of each (latent, sequence), then the strongest `n_examples` of those a latent."""
    table = pd.DataFrame({"latent": firings.latent, "activation": firings.value, "row": firings.row})
    table["sequence"] = store.sequence[firings.row]
    table = table.sort_values(["latent", "activation", "row"], ascending=[True, False, True], kind="stable")
    table = table.drop_duplicates(["latent", "sequence"])
    table["rank"] = table.groupby("latent").cumcount()
    table = table[table["rank"] < n_examples].reset_index(drop=True)
    table["position"] = store.position[table["row"].to_numpy()]
    windows = _windows(table, firings, store, model, context_tokens)
    table["tokens"], table["token_index"], table["values"] = windows
    columns = ["latent", "rank", "activation", "row", "sequence", "position", "tokens", "token_index", "values"]
    return table[columns].astype({"latent": "int64", "rank": "int64", "activation": "float32"})


def _windows(
    table: pd.DataFrame, firings: _Firings, store: Store, model: Model, context_tokens: int
) -> tuple[list[list[str]], list[int], list[list[float]]]:
    """For each example: its tokens' text, its place among them, and the latent's value on each."""
    d_sae = int(firings.latent.max(initial=0)) + 1
    key = firings.row * d_sae + firings.latent
    order = np.argsort(key, kind="stable")
    key, value = key[order], firings.value[order]
    text: dict[int, str] = {}
    offsets = np.arange(-context_tokens, context_tokens + 1)
    all_tokens, all_sequences = store.tokens[:], store.sequence[:]
    tokens, places, values = [], [], []
    for row, latent, sequence in zip(table["row"], table["latent"], table["sequence"], strict=True):
        near = row + offsets
        near = near[(near >= 0) & (near < store.n_rows)]
        near = near[all_sequences[near] == sequence]
        wanted = near * d_sae + latent
        found = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
        values.append(np.where(key[found] == wanted, value[found], 0).astype(np.float32).tolist())
        places.append(int(np.flatnonzero(near == row)[0]))
        ids = all_tokens[near].tolist()
        for token in set(ids) - text.keys():
            text[token] = model.token_text([token])[0]
        tokens.append([text[token] for token in ids])
    return tokens, places, values


def _latents(firings: _Firings, examples: pd.DataFrame, *, d_sae: int, n_rows: int) -> pd.DataFrame:
    fires = np.bincount(firings.latent, minlength=d_sae)
    strongest = np.zeros(d_sae, np.float32)
    np.maximum.at(strongest, firings.latent, firings.value)
    best: dict[int, Any] = {
        row.latent: row.tokens[row.token_index] for row in examples[examples["rank"] == 0].itertuples()
    }
    return pd.DataFrame(
        {
            "latent": np.arange(d_sae), "density": fires / n_rows, "n_fires": fires, "max_activation": strongest,
            "top_token_text": [best.get(latent, "") for latent in range(d_sae)], "dead": fires == 0,
        }
    )  # fmt: skip
