"""The sparse step: which latents are active, and products and gradients over those alone; the same on CPU and GPU.

Training a dictionary densely takes six matrix products a step. Where 32 of 4096 latents are active five of them are
sums over few rows: decoding is an `embedding_bag` over the active rows of the decoder, and each weight gradient one
over the tokens at which a latent was active, after sorting by latent. The encoder's product alone stays dense. Where
many latents are active (early in an L1 training) `Pairs` does the dense products instead: the same numbers, up to the
order of summation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from sae import parallel

DENSE_SHARE = 1 / 8
"""Share of all (token, latent) above which dense products are taken. At d_in 512, d_sae 4096, on a CPU, both cost the
same at about a fifth."""


@dataclass(frozen=True)
class Pairs:
    """(token, latent) pairs at which something happens, ordered by token; of `n_tokens` and `d_sae`."""

    token: Int[Tensor, " pair"]
    latent: Int[Tensor, " pair"]
    n_tokens: int
    d_sae: int

    @classmethod
    def of(cls, latent: Int[Tensor, "token k"], d_sae: int) -> Pairs:
        """`k` latents at each token."""
        token = torch.arange(len(latent), device=latent.device).repeat_interleave(latent.shape[1])
        return cls(token, latent.flatten(), len(latent), d_sae)

    @classmethod
    def where(cls, mask: Tensor) -> Pairs:
        """The pairs at which `mask` [token, d_sae] is True."""
        token, latent = mask.nonzero(as_tuple=True)
        return cls(token, latent, *mask.shape)

    @cached_property
    def is_dense(self) -> bool:
        return len(self.token) > DENSE_SHARE * self.n_tokens * self.d_sae

    @cached_property
    def _starts(self) -> Int[Tensor, " token"]:
        return torch.searchsorted(self.token, torch.arange(self.n_tokens, device=self.token.device))

    @cached_property
    def _by_latent(self) -> tuple[Int[Tensor, " pair"], Int[Tensor, " d_sae"]]:
        """Order of the pairs by latent, and where each latent's begin in it."""
        ordered, order = self.latent.int().sort(stable=True)
        every = torch.arange(self.d_sae, dtype=torch.int32, device=ordered.device)
        return order, torch.searchsorted(ordered, every)

    def spread(self, values: Float[Tensor, " pair"]) -> Float[Tensor, "token d_sae"]:
        """The dense matrix with `values` at the pairs."""
        return values.new_zeros(self.n_tokens, self.d_sae).index_put_((self.token, self.latent), values)

    def rows(self, values: Float[Tensor, " pair"], W: Float[Tensor, "d_sae d"]) -> Float[Tensor, "token d"]:
        """For each token the sum of `values` times the rows of `W` at its latents."""
        if self.is_dense:
            return self.spread(values) @ W
        return F.embedding_bag(self.latent, W, self._starts, per_sample_weights=values, mode="sum")

    def outer(self, values: Float[Tensor, " pair"], x: Float[Tensor, "token d"]) -> Float[Tensor, "d_sae d"]:
        """For each latent the sum of `values` times the rows of `x` at its tokens: a weight's gradient."""
        if self.is_dense:
            return self.spread(values).T @ x
        order, starts = self._by_latent
        return F.embedding_bag(self.token[order], x, starts, per_sample_weights=values[order], mode="sum")

    def dots(self, x: Float[Tensor, "token d"], W: Float[Tensor, "d_sae d"]) -> Float[Tensor, " pair"]:
        """x[token] . W[latent] at each pair, without building [pair, d]."""
        if self.is_dense:
            return (x @ W.T)[self.token, self.latent]
        with torch.enable_grad():  # the gradient of a bag's sum in its weights is these dot products
            weights = x.new_zeros(len(self.token)).requires_grad_()
            bags = F.embedding_bag(self.latent, W.detach(), self._starts, per_sample_weights=weights, mode="sum")
        return torch.autograd.grad(bags, weights, x)[0]

    def per_latent(self, values: Float[Tensor, " pair"]) -> Float[Tensor, " d_sae"]:
        """Sum of `values` by latent."""
        return values.new_zeros(self.d_sae).index_add_(0, self.latent, values)

    def split(self, borders: list[int]) -> Pairs:
        """The same pairs with each token cut in parts: latents below the first border, below the second, ... d_sae.

        Part p of token t is token t * len(borders) + p. Latents must rise within a token.
        """
        edges = torch.tensor(borders, device=self.latent.device)
        part = torch.searchsorted(edges, self.latent, right=True)
        return Pairs(self.token * len(borders) + part, self.latent, self.n_tokens * len(borders), self.d_sae)


def topk(pre: Float[Tensor, "token d_sae"], k: int, *, parts: int = 16) -> Int[Tensor, "token k"]:
    """Latents of the `k` largest pre-activations of each token, in no order. Exact.

    In two stages where that is quicker: the k largest lie in the k groups of largest maximum, so only k * `parts` of
    the d_sae are compared.
    """
    n, d_sae = pre.shape
    n_groups = d_sae // parts
    if d_sae % parts or n_groups < 2 * k:
        return pre.topk(k, dim=1, sorted=False).indices
    grouped = pre.view(n, parts, n_groups)
    group = grouped.amax(1).topk(k, dim=1, sorted=False).indices
    candidates = grouped.gather(2, group.unsqueeze(1).expand(n, parts, k)).view(n, parts * k)
    chosen = candidates.topk(k, dim=1, sorted=False).indices
    return chosen.div(k, rounding_mode="floor") * n_groups + group.gather(1, chosen % k)


def batch_topk(pre: Float[Tensor, "token d_sae"], n: int, *, hint: float = 0.0) -> Pairs:
    """The `n` largest of all pre-activations of a batch, of its parts on other ranks too, those above 0 only; of equal
    ones the first.

    `hint` is a guess of the smallest of them (the last batch's): a good one saves work, none changes the result.
    """
    flat = pre.reshape(-1)
    place = (flat > hint).nonzero().squeeze(1)
    parts = parallel.gathered(flat[place])
    if sum(map(len, parts)) < n and hint > 0:
        place = (flat > 0).nonzero().squeeze(1)
        parts = parallel.gathered(flat[place])
    if sum(map(len, parts)) > n:
        values, of_all = flat[place], torch.cat(parts)
        smallest = of_all.kthvalue(len(of_all) - n + 1).values
        above, equal = values > smallest, values == smallest
        before = torch.cat([values.new_zeros(0), *parts[: parallel.rank()]])
        wanted = n - (of_all > smallest).sum() - (before == smallest).sum()
        place = place[above | (equal & (equal.cumsum(0) <= wanted))]
    token = place.div(pre.shape[1], rounding_mode="floor")
    return Pairs(token, place - token * pre.shape[1], *pre.shape)


class _Encoded(Function):
    """Pre-activations at pairs (None: at all), known already; backward is the encoder's gradient from those alone."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, x: Tensor, centre: Tensor | None, W_enc: Tensor, b_enc: Tensor, pairs: Pairs | None
    ) -> Tensor:
        ctx.save_for_backward(x, W_enc)
        ctx.pairs, ctx.has_centre = pairs, centre is not None
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        x, W_enc = ctx.saved_tensors
        bias = gradient.sum(0) if ctx.pairs is None else ctx.pairs.per_latent(gradient)
        weights = gradient.T @ x if ctx.pairs is None else ctx.pairs.outer(gradient, x)
        return None, None, -(bias @ W_enc) if ctx.has_centre else None, weights, bias, None


class _Decoded(Function):
    """`pairs.rows(values, W_dec)` with sparse gradients in both."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, pairs: Pairs) -> Tensor:
        ctx.pairs = pairs
        with torch.enable_grad():  # a graph of its own, for the gradient of the values
            ctx.values, ctx.W_dec = values.detach().requires_grad_(), W_dec.detach()
            ctx.out = pairs.rows(ctx.values, ctx.W_dec)
        return ctx.out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        gradient, to_values, to_weights = gradient.contiguous(), None, None
        if ctx.needs_input_grad[0]:
            to_values = torch.autograd.grad(ctx.out, ctx.values, gradient, retain_graph=True)[0]
        if ctx.needs_input_grad[1]:
            to_weights = ctx.pairs.outer(ctx.values.detach(), gradient)
        return to_values, to_weights, None


def encoded(
    pre: Float[Tensor, "token d_sae"],
    x: Float[Tensor, "token d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    pairs: Pairs | None,
    *,
    centre: Float[Tensor, " d_in"] | None = None,
) -> Tensor:
    """`pre` at `pairs` [pair], or all of it [token, d_sae] where `pairs` is None, with gradients to W_enc and b_enc.

    pre = x W_enc^T + b_enc was computed without them. x is a constant, but for the `centre` that was subtracted from
    it: that has its gradient too. Where `pre` is in bfloat16 the numbers are computed anew in x's precision: bfloat16
    then only chooses the pairs.
    """
    if pairs is None:
        values = pre if pre.dtype == x.dtype else torch.addmm(b_enc.detach(), x, W_enc.detach().T)
    elif pre.dtype == x.dtype:
        values = pre.view(-1)[pairs.token * pre.shape[1] + pairs.latent]
    else:
        values = pairs.dots(x, W_enc) + b_enc.detach()[pairs.latent]
    return _Encoded.apply(values, x, centre, W_enc, b_enc, pairs)


def decoded(
    values: Float[Tensor, " pair"], W_dec: Float[Tensor, "d_sae d_out"], pairs: Pairs
) -> Float[Tensor, "token d_out"]:
    """The sum of `values` times their latents' rows of `W_dec`, for each token."""
    return _Decoded.apply(values, W_dec, pairs)
