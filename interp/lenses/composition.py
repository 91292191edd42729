"""Which head reads what another wrote? The overlap of an earlier head's output with a later one's Q, K and V.

    Q  | W_OV1 W_QK2   | / (| W_OV1 | | W_QK2 |)      W_OV = W_V W_O, W_QK = W_Q W_K^T, rows multiplied from the left
    K  | W_OV1 W_QK2^T | / (| W_OV1 | | W_QK2 |)
    V  | W_OV1 W_OV2   | / (| W_OV1 | | W_OV2 |)

in Frobenius norms: 0 where the later head reads nothing of it, 1 where each is of rank one and they fit. Two heads that
have nothing to do with each other have about 1 / sqrt(d_model). Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits", "Virtual Attention Heads"/"Observing Composition".

No d_model x d_model matrix is built: a QR of each factor leaves a d_head x d_head matrix of the same norm for a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp import runs
from interp.decoder.model import Model
from interp.decoder.sites import Component
from interp.errors import InputError, MissingFile, UnknownName, nearest
from interp.lenses import weights
from interp.progress import Progress

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

KINDS = ("q", "k", "v")
N_RANDOM = 200


@dataclass(frozen=True)
class Composition:
    """`rows` is the table: each earlier head with each head of a later layer."""

    rows: pd.DataFrame
    about: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """A row for two heads and a kind ("q", "k" or "v"), the strongest first: `score`, 0 to 1; `random`, the mean
        score of pairs whose earlier head writes in random directions, its singular values and the later head as they
        are; `random_high`, what 97.5% of these stay below; `excess` = score - random."""
        return self.rows.copy()

    def into(self, later: str, kind: str = "k", n: int = 3) -> pd.DataFrame:
        """The `n` earlier heads whose output `later` reads most of, through its `kind`."""
        rows = self.rows[(self.rows.later == later) & (self.rows.kind == kind)]
        return rows.sort_values("score", ascending=False, kind="stable").head(n)

    def figure(self, kind: str = "k") -> Figure:
        """Map of `excess`, earlier head x later head, of one kind; a click selects "L0H2->L2H6"."""
        from interp.plots.heads import composition

        rows = self.rows[self.rows.kind == kind]
        if rows.empty:
            given = list(dict.fromkeys(self.rows.kind))
            raise UnknownName(f'no composition "{kind}" here. Nearest: {nearest(kind, given)}.')
        return composition(rows, kind)

    def save(self, path: str | Path) -> None:
        """composition.parquet into the folder `path`, with `about` in the table's attributes."""
        Path(path).mkdir(parents=True, exist_ok=True)
        rows = self.rows.copy()
        rows.attrs = self.about
        rows.to_parquet(Path(path) / "composition.parquet", index=False)

    @classmethod
    def load(cls, path: str | Path) -> Composition:
        """What `save` wrote. MissingFile where there is none."""
        path = Path(path) / "composition.parquet"
        if not path.exists():
            raise MissingFile(f"no composition.parquet in {path.parent}: make one with interp heads --circuits --out.")
        rows = pd.read_parquet(path)
        about, rows.attrs = dict(rows.attrs), {}
        return cls(rows, about)


def composition(
    model: Model, *, kinds: Sequence[str] | None = None, offset: int = 0, n_random: int = N_RANDOM, seed: int = 0,
    progress: bool = False,
) -> Composition:  # fmt: skip
    """Composition of every head with every head of a later layer; of each of `kinds`, or of all that apply.

    `offset`: tokens that the later head's query stands after its key, which Q and K depend on under RoPE. The baseline
    is of `n_random` pairs drawn by `seed`. InputError where kinds "q" or "k" are asked of a model whose scores are not
    query times key, and where what heads write is not linear in what they read (`interp.lenses.weights`).
    """
    for kind in kinds or ():
        if kind not in KINDS:
            raise UnknownName(f'no composition "{kind}". Nearest: {nearest(kind, KINDS)}.')
    if model.n_layers < 2:
        raise InputError(f'"{model.name}" has one layer: no head reads what another wrote.')
    wrote, read, unlike = [], {kind: [] for kind in kinds or KINDS}, ""
    with torch.no_grad(), Progress("composition of heads", model.n_layers, progress) as bar:
        for layer in weights.read(model, offset=offset, seed=seed):  # the whole matrices of one layer at a time
            unlike = unlike or layer.unlike
            if unlike and set(kinds or ()) & {"q", "k"}:
                raise InputError(f'Q and K composition do not apply to "{model.name}": {unlike}; ask for kinds "v".')
            wrote.append(_writes(layer))
            for kind in read:
                read[kind].append(_reads(layer, kind))
            bar.advance()
        written, kinds = torch.cat(wrote), [kind for kind in read if not unlike or kind == "v"]
        tables = [_of_kind(model, kind, written, torch.cat(read[kind]), n_random, seed) for kind in kinds]
    rows = pd.concat(tables).sort_values("excess", ascending=False, kind="stable", ignore_index=True)
    about = {"model": model.provenance(), "offset": offset, "unlike": unlike, "n_random": n_random, "seed": seed,
             "versions": runs.versions()}  # fmt: skip
    return Composition(rows, about)


def _unit(factors: Float[Tensor, "head i j"]) -> Float[Tensor, "head i j"]:
    return factors / factors.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-30)


def _writes(layer: weights.Layer) -> Float[Tensor, "head d_head d_model"]:
    """R W_O where W_V = QR: W_OV but for a rotation from the left, of norm 1, and no larger than W_O."""
    return _unit(torch.linalg.qr(layer.W_V).R @ layer.W_O).float()


def _reads(layer: weights.Layer, kind: str) -> Float[Tensor, "head d_model d_head"]:
    """What the later head reads with, likewise: W_QK, its transpose or W_OV, but for a rotation from the right."""
    left, right = {
        "q": (layer.W_Q_at, layer.W_K), "k": (layer.W_K, layer.W_Q_at), "v": (layer.W_V, layer.W_O.mT)
    }[kind]  # fmt: skip
    return _unit(left @ torch.linalg.qr(right).R.mT).float()


def _of_kind(
    model: Model,
    kind: str,
    written: Float[Tensor, "head d_head d_model"],
    read: Float[Tensor, "head d_model d_head"],
    n_random: int,
    seed: int,
) -> pd.DataFrame:
    """Rows of one kind."""
    of = [Component("head", layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    rows = []
    for i, earlier in enumerate(of[: -model.n_heads]):
        first = (earlier.layer + 1) * model.n_heads
        scores = (written[i] @ read[first:]).flatten(1).norm(dim=1)
        rows += [
            {"earlier": earlier.name, "later": later.name, "kind": kind, "score": score}
            for later, score in zip(of[first:], scores.tolist(), strict=True)
        ]
    random = _random(written, read, n_random, seed)
    table = pd.DataFrame(rows).assign(random=random.mean(), random_high=np.quantile(random, 0.975))
    return table.assign(excess=table["score"] - table["random"])


def _random(
    written: Float[Tensor, "head d_head d_model"], read: Float[Tensor, "head d_model d_head"], n: int, seed: int
) -> Float[np.ndarray, " n"]:
    """Scores of random pairs, what the earlier head writes turned into random directions: its rows in the basis of
    their own span, put on as many orthonormal directions drawn anew."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(n):
        i, j = (int(torch.randint(len(written), (), generator=draw)) for _ in range(2))
        noise = torch.randn(written.shape[2], written.shape[1], generator=draw).to(written)
        kept = torch.linalg.qr(written[i].T).R.T  # [d_head, d_head]: the rows in that basis
        found.append(float((kept @ torch.linalg.qr(noise).Q.T @ read[j]).norm()))
    return np.array(found)
