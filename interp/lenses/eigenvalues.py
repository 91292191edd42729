"""What do a head's weights do to tokens? OV: which logits a token raises that it attends to. QK: who attends to whom.

    OV = W_E W_V W_O W_U        [d_vocab, d_vocab]: row a token attended to, column a logit
    QK = W_E W_Q W_K^T W_E^T    [d_vocab, d_vocab]: row a token of the query, column one of the key

with the linear part of layer norms in them (`interp.lenses.weights`). Logits are the same with a number added to all of
them, and so are a query's scores: W_U and the keys' W_E are taken less their mean over the vocabulary, without which
one eigenvalue, of the mean token, hides all others where embeddings have a large mean. Neither is ever built: AB and BA
have the same eigenvalues but for zeros, so those of OV are those of W_O (W_U W_E) W_V, which is d_head x d_head.
Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", "Summarizing OV/QK Matrices".

It is the direct path: of tokens as they are embedded to logits, past all other layers. `embedding="mlp0"` takes what
the first MLP makes of a token added to its embedding, which is what later layers find of it in many models.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Complex, Float
from torch import Tensor

from interp import runs
from interp.decoder import parts
from interp.decoder.hooks import captured
from interp.decoder.model import Model
from interp.decoder.sites import Component
from interp.errors import InputError, MissingFile, UnknownName, nearest
from interp.lenses import weights
from interp.progress import Progress

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

EMBEDDINGS = ("tokens", "mlp0")
N_TOKENS = 1000
TOP_K = 5
ROWS_AT_ONCE = 2**24
"""Numbers of a piece of a [token, d_vocab] or [token, d_mlp] matrix in memory at once."""


@dataclass(frozen=True)
class HeadCircuits:
    """`rows` is the table; `ov` and `qk` the eigenvalues of every head, complex128, in the table's order; NaN where the
    circuit does not apply, for the reason `about["unlike"]`."""

    rows: pd.DataFrame
    ov: Complex[np.ndarray, "head d_head"]
    qk: Complex[np.ndarray, "head d_head"]
    about: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """A row a head. `ov_copying`, `qk_matching`: sum of the eigenvalues over the sum of their sizes, -1 to 1; 1: a
        token raises its own logit, or attends to itself, and so does every mixture; 0: neither, the mean of random
        weights; -1: the opposite (Elhage et al. 2021). `copies`: share of tokens whose own logit is among the `top_k`
        largest that OV gives it (Wang et al. 2022, arXiv:2211.00593, section 3.1 "copy score"); chance is top_k /
        d_vocab."""
        return self.rows.copy()

    def figure(self, circuit: str = "ov", *, head: str | None = None) -> Figure:
        """Layer x head map of `ov_copying` or (circuit "qk") `qk_matching`; of one `head`, its eigenvalues."""
        from interp.plots.heads import eigenvalues, signed_map

        if circuit not in ("ov", "qk"):
            raise UnknownName(f'no circuit "{circuit}". Nearest: {nearest(circuit, ("ov", "qk"))}.')
        if head is None:
            return signed_map(self.rows, {"ov": "ov_copying", "qk": "qk_matching"}[circuit])
        names = self.rows.component.tolist()
        if head not in names:
            raise UnknownName(f'no head "{head}". Nearest: {nearest(head, names)}.')
        values = getattr(self, circuit)[names.index(head)]
        return eigenvalues(pd.DataFrame({"real": values.real, "imaginary": values.imag}), head, circuit)

    def save(self, path: str | Path) -> None:
        """circuits.parquet and circuits.h5 into the folder `path`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self.rows.to_parquet(path / "circuits.parquet", index=False)
        with h5py.File(path / "circuits.h5", "w") as file:
            file["ov"], file["qk"], file.attrs["about"] = self.ov, self.qk, json.dumps(self.about)

    @classmethod
    def load(cls, path: str | Path) -> HeadCircuits:
        """What `save` wrote. MissingFile where there is none."""
        path = Path(path)
        if not (path / "circuits.parquet").exists():
            raise MissingFile(f"no circuits.parquet in {path}: make one with interp heads --circuits --out.")
        with h5py.File(path / "circuits.h5", "r") as file:
            about = json.loads(file.attrs["about"])
            return cls(pd.read_parquet(path / "circuits.parquet"), file["ov"][()], file["qk"][()], about)


def head_circuits(
    model: Model,
    *,
    offset: int = 0,
    embedding: str = "tokens",
    top_k: int = TOP_K,
    n_tokens: int = N_TOKENS,
    seed: int = 0,
    progress: bool = False,
) -> HeadCircuits:
    """Eigenvalues of the OV and QK circuit of every head, and how far it copies.

    `offset`: tokens that the query stands after the key, which QK depends on under RoPE; what absolute positions or
    ALiBi add to scores is not in it. `n_tokens`: drawn by `seed` for `copies`. InputError where what heads write is not
    linear in what they read; where only scores are not, qk is NaN and `about["unlike"]` says why.
    """
    if not (1 <= top_k <= model.d_vocab and n_tokens >= 1):
        raise InputError(f'top_k {top_k} of {n_tokens} tokens given: "{model.name}" has {model.d_vocab}.')
    with torch.no_grad():
        embed = _embedding(model, embedding)
        weight, centred = weights.linear(model, model.bridge.ln_final.original_component, "before the logits")
        W_U = weights.folded(model.bridge.unembed.W_U.detach(), weight, centred)
        W_U = W_U - W_U.mean(-1, keepdim=True)
        mean = _summed(model, lambda rows: embed(rows).sum(0)) / model.d_vocab
        to_logits = _summed(model, lambda rows: W_U[:, rows] @ embed(rows))  # W_U W_E
        alike = _summed(model, lambda rows: (embed(rows) - mean).T @ embed(rows))  # W_E^T W_E
        draw = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(model.d_vocab, generator=draw)[:n_tokens].to(model.device)
        ov, qk, copies, unlike = [], [], [], ""
        with Progress("circuits of heads", model.n_layers, progress) as bar:
            for layer in weights.read(model, offset=offset, seed=seed):
                ov.append(torch.linalg.eigvals(layer.W_O @ to_logits @ layer.W_V))
                qk.append(torch.linalg.eigvals(layer.W_K.mT @ alike @ layer.W_Q_at))
                if layer.unlike:
                    qk[-1], unlike = torch.full_like(qk[-1], torch.nan), layer.unlike
                read = einsum(embed(drawn), layer.W_V, "token d_model, head d_model d_head -> head token d_head")
                copies += [_copied(one, W_O @ W_U, drawn, top_k) for one, W_O in zip(read, layer.W_O, strict=True)]
                bar.advance()
    found = {name: torch.cat(one).cpu().numpy() for name, one in (("ov", ov), ("qk", qk))}
    heads = [Component("head", layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    rows = pd.DataFrame([{"component": c.name, "layer": c.layer, "index": c.index} for c in heads]).assign(
        ov_copying=positive(found["ov"]), copies=copies, qk_matching=positive(found["qk"])
    )
    about = {
        "model": model.provenance(), "offset": offset, "embedding": embedding, "top_k": top_k, "n_tokens": len(drawn),
        "unlike": unlike, "seed": seed, "versions": runs.versions(),
    }  # fmt: skip
    return HeadCircuits(rows, found["ov"], found["qk"], about)


def positive(eigenvalues: Complex[np.ndarray, "head d_head"]) -> Float[np.ndarray, " head"]:
    """Sum of the eigenvalues over the sum of their sizes: -1 to 1, and real, as they come in conjugate pairs."""
    sizes = np.abs(eigenvalues).sum(-1)
    return eigenvalues.sum(-1).real / np.where(sizes > 0, sizes, np.nan)


def _copied(
    read: Float[Tensor, "token d_head"], written: Float[Tensor, "d_head d_vocab"], tokens: Tensor, top_k: int
) -> float:
    """Share of the tokens whose own logit is among the `top_k` largest of `read @ written`."""
    hits = 0
    for rows in torch.arange(len(tokens), device=tokens.device).split(max(1, ROWS_AT_ONCE // written.shape[1])):
        logits = read[rows] @ written
        own = logits.gather(1, tokens[rows, None])
        hits += int(((logits > own).sum(1) < top_k).sum())
    return hits / len(tokens)


def _summed(model: Model, piece: Callable[[Tensor], Tensor]) -> Tensor:
    """`piece` summed over rows of the vocabulary, some at a time."""
    rows = torch.arange(model.d_vocab, device=model.device)
    return sum(piece(some) for some in rows.split(max(1, ROWS_AT_ONCE // max(model.d_model, model.d_mlp or 1))))


def check_embedding(which: str) -> None:
    """UnknownName for what is no embedding."""
    if which not in EMBEDDINGS:
        raise UnknownName(f'no embedding "{which}". Nearest: {nearest(which, EMBEDDINGS)}.')


def _embedding(model: Model, which: str) -> Callable[[Tensor], Float[Tensor, "token d_model"]]:
    """What stands in the stream for some tokens, float64, but for their positions. InputError where embeddings are not
    put in the stream as they are, up to a factor (a norm after them, another width)."""
    check_embedding(which)
    if which == "mlp0" and not model.has_mlp:
        raise UnknownName(f'no embedding "mlp0" of "{model.name}", which has no MLP. Nearest: tokens.')
    W_E = model.bridge.embed.W_E.detach()
    tokens = torch.randint(0, model.d_vocab, (8, 1), generator=torch.Generator().manual_seed(0)).to(model.device)
    with captured(model, "0.resid_pre") as cache:
        model(tokens)
    (stream,) = (value[1:, 0].double() - value[:1, 0].double() for value in cache.values())
    factor = torch.zeros(())
    if W_E.shape[1] == model.d_model:
        wanted = (W_E[tokens[1:, 0]] - W_E[tokens[0]]).double()
        factor = einsum(stream, wanted, "token d_model, token d_model ->") / wanted.square().sum()
    if not factor > 0 or not weights.alike(stream, factor * wanted, model):
        raise InputError(f'embeddings of "{model.name}" are not put in its stream as they are: no circuit of tokens.')

    def embed(tokens: Tensor) -> Float[Tensor, "token d_model"]:
        x = W_E[tokens] * factor.to(W_E.dtype)
        return (x + parts.mlp_out(model, 0, x) if which == "mlp0" else x).double()

    return embed
