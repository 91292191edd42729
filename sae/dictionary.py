"""Dictionary: activations to sparse latents and back, for every architecture that we train or load.

    pre     = (x - b_dec) W_enc + b_enc            x W_enc + b_enc in a transcoder
    latents = the architecture's activation of pre
    x_hat   = latents W_dec + b_dec                + x W_skip^T in a skip transcoder

A *latent* is a unit of the dictionary. Few are non-zero at a token, so what reads many tokens asks for `active`, which
names those only; `encode` spreads them out. Input and output are sites of the model, in the model's own units:

    autoencoder   site == out_site, one site
    transcoder    another out_site (Dunefsky et al. 2024, arXiv:2406.11944; skip: Paulo et al. 2025, arXiv:2501.18823)
    crosscoder    several sites, their activations side by side on the last axis (Lindsey et al., Anthropic, Oct 2024)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError, UnknownName, nearest


@dataclass(frozen=True)
class Architecture:
    """A row of the table: how latents come from pre-activations, and how training differs. The losses: losses.py."""

    activation: str
    """The architecture that does the same at inference: a trained BatchTopK is a JumpReLU of one threshold."""
    paper: str
    extra: tuple[str, ...] = ()
    """Weights besides W_enc, b_enc, W_dec, b_dec, each [d_sae]."""
    takes_k: bool = False
    """The activation itself needs k."""
    unit_norm: bool = True
    """Decoder rows stay at norm 1 in training; where False the norm is learned, and folded away at the end."""
    aux_weight: float = 1 / 32
    """Weight of AuxK unless set: 1/32 as in arXiv:2406.04093, 0 where the paper has none."""
    sparsity: float = 0.0
    """Weight of the sparsity penalty unless set, in the units of the loss's docstring; 0 where k does the work."""


_TOPK, _BATCH = "Gao et al. 2024, arXiv:2406.04093", "Bussmann et al. 2024, arXiv:2412.06410"
ARCHITECTURES = {
    "standard": Architecture("standard", "Anthropic, April 2024 update", unit_norm=False, aux_weight=0.0, sparsity=5.0),
    "gated": Architecture(
        "gated", "Rajamanoharan et al. 2024, arXiv:2404.16014", ("r_mag", "b_mag"), aux_weight=0.0, sparsity=0.1
    ),
    "jumprelu": Architecture(
        "jumprelu", "Rajamanoharan et al. 2024, arXiv:2407.14435", ("threshold",), aux_weight=0.0, sparsity=1.0
    ),
    "topk": Architecture("topk", _TOPK, takes_k=True),
    "batchtopk": Architecture("jumprelu", _BATCH, ("threshold",)),
    "matryoshka_batchtopk": Architecture("jumprelu", "Bussmann et al. 2025, arXiv:2503.17547", ("threshold",)),
    "abstopk": Architecture("abstopk", "Zhu et al. 2025, arXiv:2510.00404", takes_k=True),
}


def check_architecture(name: str) -> Architecture:
    """The row of `name`; UnknownName unless it is an architecture that we have."""
    if name not in ARCHITECTURES:
        raise UnknownName(f'unknown architecture "{name}". Nearest: {nearest(name, ARCHITECTURES)}.')
    return ARCHITECTURES[name]


def names(site: str | Sequence[str]) -> tuple[str, ...]:
    """One site or several, as a tuple."""
    return (site,) if isinstance(site, str) else tuple(site)


@dataclass(frozen=True)
class Active:
    """The latents that are not 0 in a batch of `n_tokens`, ordered by token: parallel arrays."""

    token: Int[Tensor, " active"]
    """Which token of the batch, from 0; never falls."""
    latent: Int[Tensor, " active"]
    value: Float[Tensor, " active"]
    """Not 0; below 0 in AbsTopK only."""
    n_tokens: int

    def dense(self, d_sae: int) -> Float[Tensor, "token d_sae"]:
        """The same spread out."""
        return self.value.new_zeros(self.n_tokens, d_sae).index_put((self.token, self.latent), self.value)

    def decode(self, W_dec: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, "token d_out"]:
        """`dense() @ W_dec`, over the active rows only; without a bias."""
        starts = torch.searchsorted(self.token, torch.arange(self.n_tokens, device=self.token.device))
        return F.embedding_bag(self.latent, W_dec, starts, per_sample_weights=self.value, mode="sum")


class Dictionary(torch.nn.Module):
    """Encode activations of a site into sparse latents and back. `dct(x)` reconstructs x (a transcoder: predicts y).

    Weights are the parameters of these names, those that the architecture has not are None:

        W_enc [d_in, d_sae]   b_enc [d_sae]   W_dec [d_sae, d_out]   b_dec [d_out]
        threshold [d_sae]     jumprelu: a latent is pre where pre > threshold, and 0 elsewhere; at least 0
        r_mag, b_mag [d_sae]  gated: with raw = (x - b_dec) W_enc, a latent is relu(raw exp(r_mag) + b_mag) where
                              raw + b_enc > 0, and 0 elsewhere: b_enc is SAELens' b_gate
        W_skip [d_out, d_in]  skip transcoder

    `k` is None unless the architecture is topk or abstopk. `sites` and `out_sites` are full hook point names, of equal
    widths; d_in is the sum of the widths (a site with heads: heads * d_head). `model` is the "model" of run.json (name,
    fingerprint, ...) or {} where unknown, `path` the folder it was loaded from, `context` the window it was trained on.
    InputError for weights or a k that the architecture does not have, or that are missing.
    """

    def __init__(
        self,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_out"],
        b_dec: Float[Tensor, " d_out"],
        *,
        architecture: str = "topk",
        k: int | None = None,
        threshold: Float[Tensor, " d_sae"] | None = None,
        r_mag: Float[Tensor, " d_sae"] | None = None,
        b_mag: Float[Tensor, " d_sae"] | None = None,
        W_skip: Float[Tensor, "d_out d_in"] | None = None,
        site: str | Sequence[str] = "",
        out_site: str | Sequence[str] | None = None,
        model: dict[str, Any] | None = None,
        path: Path | None = None,
        context: int | None = None,
    ) -> None:
        super().__init__()
        row = check_architecture(architecture)
        extra = {"threshold": threshold, "r_mag": r_mag, "b_mag": b_mag}
        if architecture != row.activation:
            raise InputError(f'a "{architecture}" is a "{row.activation}" once it is trained: make one of those.')
        for name, value in extra.items():
            if (value is not None) != (name in row.extra):
                verb = "needs" if value is None else "has no"
                raise InputError(f'a dictionary of architecture "{architecture}" {verb} {name}.')
        if row.takes_k and (k is None or not 1 <= k <= b_enc.shape[0]):
            raise InputError(f"k must be between 1 and d_sae ({b_enc.shape[0]}); {k} was given.")
        weights = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, **extra, "W_skip": W_skip}
        for name, value in weights.items():
            self.register_parameter(name, None if value is None else torch.nn.Parameter(value))
        self.architecture, self.k, self.model = architecture, k if row.takes_k else None, model or {}
        self.sites = names(site)
        self.out_sites = self.sites if out_site is None else names(out_site)
        self.path, self.context = path, context

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    @property
    def site(self) -> str:
        """The one site that is read; InputError in a crosscoder, which reads several."""
        if len(self.sites) > 1:
            raise InputError(f"this dictionary reads {len(self.sites)} sites, {self.sites[0]} and more: one is needed.")
        return self.sites[0]

    @property
    def is_transcoder(self) -> bool:
        """Whether it predicts other sites than it reads; b_dec is then no part of the input."""
        return self.sites != self.out_sites

    def weights(self) -> dict[str, Tensor]:
        """The weights that this dictionary has, by name."""
        return {name: value for name, value in self._parameters.items() if value is not None}

    def extra_repr(self) -> str:
        to = f" -> {', '.join(self.out_sites)}" if self.is_transcoder else ""
        k = "" if self.k is None else f", k={self.k}"
        return f"{self.architecture}, {', '.join(self.sites)}{to}, d_in={self.d_in}, d_sae={self.d_sae}{k}"

    def pre_activations(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_sae"]:
        """(x - b_dec) W_enc + b_enc; x W_enc + b_enc in a transcoder. Of a gated dictionary: the gate's."""
        return torch.addmm(self.b_enc, x if self.is_transcoder else x - self.b_dec, self.W_enc)

    def active(self, x: Float[Tensor, "token d_in"]) -> Active:
        """The latents that are not 0 at each token of `x`."""
        pre = self.pre_activations(x)
        if self.k is None:
            token, latent = (pre > (0 if self.threshold is None else self.threshold)).nonzero(as_tuple=True)
            value = pre[token, latent]
            if self.architecture == "gated":
                value = (value - self.b_enc[latent]) * self.r_mag.exp()[latent] + self.b_mag[latent]
            value = value.relu()
        else:
            latent = (pre.abs() if self.architecture == "abstopk" else pre).topk(self.k, dim=-1).indices
            token = torch.arange(len(x), device=x.device).repeat_interleave(self.k)
            value, latent = pre.gather(1, latent).flatten(), latent.flatten()
            value = value if self.architecture == "abstopk" else value.relu()
        fires = value != 0
        return Active(token[fires], latent[fires], value[fires], len(x))

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents; at least 0 but in AbsTopK."""
        return self.active(x.reshape(-1, self.d_in)).dense(self.d_sae).reshape(*x.shape[:-1], self.d_sae)

    def decode(
        self, latents: Float[Tensor, "*batch d_sae"], x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """Activations that `latents` stand for. A skip transcoder adds x W_skip^T, where `x` is given."""
        out = latents @ self.W_dec + self.b_dec
        return out if self.W_skip is None or x is None else out + x @ self.W_skip.T

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        flat = x.reshape(-1, self.d_in)
        return self.reconstruct(self.active(flat), flat).reshape(*x.shape[:-1], self.d_out)

    def reconstruct(self, active: Active, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_out"]:
        """`dct(x)` where `active(x)` is known already."""
        out = active.decode(self.W_dec) + self.b_dec
        return out if self.W_skip is None else out + x @ self.W_skip.T
