"""A TopK sparse autoencoder (Gao et al. 2024, arXiv:2406.04093).

    latents = TopK(ReLU((x - b_dec) W_enc + b_enc))          x_hat = latents W_dec + b_dec

A *latent* is a unit of the dictionary. At most `k` are non-zero at a token, so the inner functions pass the active ones
only, as (values, indices); `encode` spreads them out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError, UnknownName, nearest

ARCHITECTURES = ("topk",)


def check_architecture(name: str) -> None:
    """UnknownName unless `name` is an architecture that we have."""
    if name not in ARCHITECTURES:
        raise UnknownName(f'unknown architecture "{name}". Nearest: {nearest(name, ARCHITECTURES)}.')


def topk(pre: Float[Tensor, "token d_sae"], k: int) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """The `k` largest pre-activations of each token, negative ones as 0, and the latents they belong to; unsorted."""
    values, indices = pre.topk(k, dim=-1, sorted=False)
    return values.relu(), indices


def decode_active(
    values: Float[Tensor, "token k"], indices: Int[Tensor, "token k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "token d_in"]:
    """Sum of `values` times the decoder rows `indices`: the sparse `latents @ W_dec`, without a bias."""
    return F.embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum")


class Dictionary(torch.nn.Module):
    """Encode activations of one hook point into sparse latents and back. `dct(x)` reconstructs x.

    `site` is a full hook point name, `model` the "model" of run.json (name, fingerprint, ...) or {} where unknown,
    `path` the folder it was loaded from. Activations are in the model's own units. A site with heads has d_in = heads *
    d_head.
    """

    def __init__(
        self,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"],
        *,
        k: int,
        site: str,
        model: dict[str, Any] | None = None,
        path: Path | None = None,
        context: int | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= k <= b_enc.shape[0]:
            raise InputError(f"k must be between 1 and d_sae ({b_enc.shape[0]}); {k} was given.")
        self.W_enc, self.b_enc = torch.nn.Parameter(W_enc), torch.nn.Parameter(b_enc)
        self.W_dec, self.b_dec = torch.nn.Parameter(W_dec), torch.nn.Parameter(b_dec)
        self.architecture, self.k, self.site, self.model = "topk", k, site, model or {}
        self.path, self.context = path, context

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    def extra_repr(self) -> str:
        return f"site={self.site!r}, d_in={self.d_in}, d_sae={self.d_sae}, k={self.k}"

    def pre_activations(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_sae"]:
        """(x - b_dec) W_enc + b_enc.

        b_dec enters its gradient through a vector of zeros: the same number as by subtracting it from every x, without
        the [token, d_in] product that autograd would make of that.
        """
        shift = self.b_dec - self.b_dec.detach()
        return (x - self.b_dec.detach()) @ self.W_enc + (self.b_enc - shift @ self.W_enc)

    def active(self, x: Float[Tensor, "token d_in"]) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
        """The active latents of each token: (values, indices). Where fewer than k are positive the rest are 0."""
        return topk(self.pre_activations(x), self.k)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents, at least 0, at most k of them above 0."""
        values, indices = self.active(x.reshape(-1, self.d_in))
        latents = values.new_zeros(len(values), self.d_sae).scatter(1, indices, values)
        return latents.reshape(*x.shape[:-1], self.d_sae)

    def decode(self, latents: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Activations that `latents` stand for."""
        return latents @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        values, indices = self.active(x.reshape(-1, self.d_in))
        return (decode_active(values, indices, self.W_dec) + self.b_dec).reshape(x.shape)
