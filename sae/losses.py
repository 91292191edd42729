"""What training minimises, an architecture a function: which latents are active, their values, and what is penalised.

All errors are squared errors summed over d_out and averaged over tokens, of inputs scaled to E|x - centre|^2 = 1. Each
function reads like its paper and is differentiable in every weight; gradients touch the active (token, latent) pairs
only (sparse.py). tests/test_sae_losses.py holds each against a dense one in float64, AuxK's encoder gradient included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from sae import parallel, sparse
from sae.config import TrainConfig
from sae.sparse import DENSE_SHARE, Pairs


@dataclass(frozen=True)
class Forward:
    """A batch on its way through a dictionary in training.

    `weights`: W_enc [d_sae, d_in] and W_dec [d_sae, d_out], both with a row a latent, b_enc, b_dec, and those of the
    architecture: log_threshold, r_mag, b_mag [d_sae], W_skip [d_out, d_in].
    """

    x: Float[Tensor, "token d_in"]
    """Input less its centre, a constant."""
    y: Float[Tensor, "token d_out"]
    """What is to be predicted."""
    pre: Float[Tensor, "token d_sae"]
    """x W_enc^T + b_enc, a constant: `encoded` gives it its gradient."""
    weights: Mapping[str, Tensor]
    centred: bool
    """Whether the centre was b_dec, which then has a gradient through the encoder too."""
    sparsity: float = 0.0
    """Weight of the sparsity penalty at this step."""
    hint: float = 0.0
    """The smallest latent of the last batch: where BatchTopK starts looking."""

    @classmethod
    def of(
        cls, x: Tensor, y: Tensor, weights: Mapping[str, Tensor], *, centred: bool, bf16: bool = False, **rest: float
    ) -> Forward:
        """The encoder's product, the one that is dense."""
        with torch.no_grad():
            x = x - weights["b_dec"] if centred else x
            parts = (weights["b_enc"], x, weights["W_enc"].T)
            pre = torch.addmm(*(part.bfloat16() for part in parts)) if bf16 else torch.addmm(*parts)
        return cls(x, y, pre, weights, centred, **rest)

    def encoded(self, pairs: Pairs | None) -> Tensor:
        """The pre-activations at `pairs`, or all of them, with their gradient."""
        w = self.weights
        centre = w["b_dec"] if self.centred else None
        return sparse.encoded(self.pre, self.x, w["W_enc"], w["b_enc"], pairs, centre=centre)

    def decoded(self, values: Float[Tensor, " pair"], pairs: Pairs) -> Float[Tensor, "token d_out"]:
        """The prediction of `values` at `pairs`."""
        return sparse.decoded(values, self.weights["W_dec"], pairs) + self.offset()

    def offset(self) -> Float[Tensor, "#token d_out"]:
        """What is predicted without latents: the bias, and what a skip transcoder's linear path adds."""
        bias = self.weights["b_dec"].unsqueeze(0)
        return bias + self.x @ self.weights["W_skip"].T if "W_skip" in self.weights else bias

    def of_latents(self, rows: Tensor) -> Forward:
        """The dictionary of some latents only."""
        some = {name: self.weights[name].index_select(0, rows) for name in ("W_enc", "b_enc", "W_dec")}
        return replace(self, pre=self.pre.index_select(1, rows), weights={**self.weights, **some})


@dataclass(frozen=True)
class Terms:
    """What was found: `loss` to minimise (AuxK apart), `y_hat`, and the latents' values at `pairs`, some of them 0."""

    loss: Float[Tensor, ""]
    y_hat: Float[Tensor, "token d_out"]
    values: Float[Tensor, " pair"]
    pairs: Pairs


def reconstruction(x: Float[Tensor, "token d_in"], x_hat: Float[Tensor, "token d_in"]) -> Float[Tensor, ""]:
    """Squared error, summed over d_in and averaged over tokens; 0 is perfect."""
    return (x_hat - x).square().sum(-1).mean()


def spread(x: Float[Tensor, "token d"]) -> Float[Tensor, ""]:
    """Squared distance from the mean of the whole batch, summed over d and averaged over its tokens."""
    return parallel.mean(reconstruction(x, parallel.mean(x.mean(0)).expand_as(x)))


def topk(f: Forward, config: TrainConfig) -> Terms:
    """Error of the k largest pre-activations of each token, those below 0 as 0. Gao et al. 2024, arXiv:2406.04093."""
    pairs = Pairs.of(sparse.topk(f.pre, config.k), config.d_sae)
    return _plain(f, f.encoded(pairs).relu(), pairs)


def abstopk(f: Forward, config: TrainConfig) -> Terms:
    """The k largest by magnitude, with their signs. Zhu et al. 2025, arXiv:2510.00404."""
    pairs = Pairs.of(sparse.topk(f.pre.abs(), config.k), config.d_sae)
    return _plain(f, f.encoded(pairs), pairs)


def batchtopk(f: Forward, config: TrainConfig) -> Terms:
    """The k * tokens largest of the whole batch, those above 0. Bussmann et al. 2024, arXiv:2412.06410, section 3."""
    pairs = sparse.batch_topk(f.pre, config.k * len(f.x) * parallel.world(), hint=f.hint)
    return _plain(f, f.encoded(pairs), pairs)


def matryoshka_batchtopk(f: Forward, config: TrainConfig) -> Terms:
    """BatchTopK's choice; the mean of the errors that the first m latents make, over the nested sizes m.

    Bussmann et al. 2025, arXiv:2503.17547, section 3 (there the sum; dictionary_learning's mean keeps the size of the
    loss, and with it what clipping and AuxK mean).
    """
    pairs = sparse.batch_topk(f.pre, config.k * len(f.x) * parallel.world(), hint=f.hint)
    values = f.encoded(pairs)
    borders = config.borders
    parts = sparse.decoded(values, f.weights["W_dec"], pairs.split(borders)).unflatten(0, (-1, len(borders)))
    nested = parts.cumsum(1) + f.offset().unsqueeze(1)
    error = (nested - f.y.unsqueeze(1)).square().sum(-1).mean()
    return Terms(error, nested[:, -1], values, pairs)


def standard(f: Forward, config: TrainConfig) -> Terms:
    """Error of all positive pre-activations, plus weight / sqrt(d_in) * the sum of latent * its decoder row's norm.

    Bricken et al. 2023; decoder norms in the penalty: Anthropic, April 2024 update, whose inputs have norm sqrt(d_in),
    hence the factor (its weight is 5). A crosscoder's norm is the sum over its sites (Lindsey et al., October 2024).
    """
    pairs = Pairs.where(f.pre > 0)
    values = f.encoded(pairs)
    norms = f.weights["W_dec"].unflatten(1, (len(config.out_sites), -1)).norm(dim=2).sum(1)
    penalty = (pairs.per_latent(values) * norms).sum() / len(f.x)
    return _plain(f, values, pairs, f.sparsity / math.sqrt(f.x.shape[1]) * penalty)


def gated(f: Forward, config: TrainConfig) -> Terms:
    """Error of gated magnitudes + weight * sum relu(gate) + error of relu(gate) through a decoder held constant.

    Rajamanoharan et al. 2024, arXiv:2404.16014, section 3.2: gate = raw + b_enc, latent = relu(raw exp(r_mag) + b_mag)
    where gate > 0. Weight: 0.1, dictionary_learning's, at this scale of inputs.
    """
    w = f.weights
    pairs = Pairs.where(f.pre > 0)
    gate = f.encoded(pairs)
    r_mag, b_mag, b_gate = (w[name].index_select(0, pairs.latent) for name in ("r_mag", "b_mag", "b_enc"))
    values = ((gate - b_gate) * r_mag.exp() + b_mag).relu()
    y_gate = replace(f, weights={name: value.detach() for name, value in w.items()}).decoded(gate, pairs)
    return _plain(f, values, pairs, f.sparsity * gate.sum() / len(f.x) + reconstruction(f.y, y_gate))


def jumprelu(f: Forward, config: TrainConfig) -> Terms:
    """Error of the pre-activations above their thresholds, plus a penalty on how many there are.

    Rajamanoharan et al. 2024, arXiv:2407.14435: straight-through gradients of the thresholds (equations 11 and 12),
    which are exp(log_threshold); a pre-activation below 0 is in no band. With L0 the batch's mean number of active
    latents, the penalty is

        target  weight * (L0 / k - 1)^2    (weight 1, dictionary_learning's)
        step    weight * L0                (equation 9)
        tanh    weight / d_in * mean over tokens of sum tanh(4 sqrt(d_in) latent)
                                           (Anthropic, January 2025 update: c = 4, inputs of norm sqrt(d_in))
    """
    threshold = f.weights["log_threshold"].exp()
    pairs = Pairs.where(f.pre > (threshold - config.bandwidth / 2).detach().clamp_min(0))
    at, theta = f.encoded(pairs), threshold.index_select(0, pairs.latent)
    values = _JumpReLU.apply(at, theta, config.bandwidth)
    if config.penalty == "tanh":
        d_in = f.x.shape[1]
        return _plain(f, values, pairs, f.sparsity / d_in * (4 * math.sqrt(d_in) * values).tanh().sum() / len(f.x))
    l0 = _Step.apply(at, theta, config.bandwidth).sum() / len(f.x)
    l0 = l0 + (parallel.mean(l0) - l0.detach())  # of the whole batch; this rank's share of its gradient
    return _plain(f, values, pairs, f.sparsity * (l0 if config.penalty == "step" else (l0 / config.k - 1).square()))


LOSSES: dict[str, Callable[[Forward, TrainConfig], Terms]] = {
    "standard": standard, "gated": gated, "jumprelu": jumprelu, "topk": topk, "batchtopk": batchtopk,
    "matryoshka_batchtopk": matryoshka_batchtopk, "abstopk": abstopk,
}  # fmt: skip
"""Architecture -> its loss."""


def auxk(
    f: Forward,
    residual: Float[Tensor, "token d_out"],
    dead: Bool[Tensor, " d_sae"],
    *,
    k_aux: int,
    signed: bool = False,
) -> Float[Tensor, ""]:
    """Squared error of the `k_aux` strongest dead latents at predicting `residual` = y - y_hat, over its variance.

    1 where they say nothing (and the residual has mean 0), 0 where they explain all; 0 without dead latents. `residual`
    is a target: no gradient flows into it; decoder, encoder and b_enc of the dead latents have theirs, b_dec through
    the encoder alone. Gao et al. 2024, arXiv:2406.04093, section 2.4 and appendix A.2. `signed`: AbsTopK's magnitudes.
    """
    rows = dead.nonzero().squeeze(1)
    if len(rows) == 0:
        return residual.new_zeros(())
    residual, some, k = residual.detach(), f.of_latents(rows), min(k_aux, len(rows))
    chosen = sparse.topk(some.pre.abs() if signed else some.pre, k)
    if k > DENSE_SHARE * len(rows):
        values = some.encoded(None)
        values = (values if signed else values.relu()) * torch.zeros_like(values).scatter_(1, chosen, 1.0)
        predicted = values @ some.weights["W_dec"]
    else:
        pairs = Pairs.of(chosen, len(rows))
        values = some.encoded(pairs)
        predicted = sparse.decoded(values if signed else values.relu(), some.weights["W_dec"], pairs)
    variance = spread(residual)
    return reconstruction(residual, predicted) / variance.clamp_min(torch.finfo(residual.dtype).tiny)


@torch.no_grad()
def remove_radial(gradient: Float[Tensor, "d_sae d_in"], W_dec: Float[Tensor, "d_sae d_in"]) -> None:
    """Take out of `gradient`, in place, its part along each unit-norm row of `W_dec`: what would only change a norm."""
    gradient.addcmul_(torch.linalg.vecdot(gradient, W_dec).unsqueeze(1), W_dec, value=-1)


def _plain(f: Forward, values: Tensor, pairs: Pairs, penalty: Tensor | float = 0.0) -> Terms:
    """The error of `values` at `pairs`, plus a penalty."""
    y_hat = f.decoded(values, pairs)
    return Terms(reconstruction(f.y, y_hat) + penalty, y_hat, values, pairs)


class _JumpReLU(Function):
    """pre where pre > theta; d/dtheta = -(theta / width) where |pre - theta| < width / 2. arXiv:2407.14435, eq. 11."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.width = width
        return pre * (pre > theta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        pre, theta = ctx.saved_tensors
        band = (pre - theta).abs() < ctx.width / 2
        return gradient * (pre > theta), -gradient * band * theta / ctx.width, None


class _Step(Function):
    """1 where pre > theta; d/dtheta = -1 / width where |pre - theta| < width / 2. arXiv:2407.14435, eq. 12."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.width = width
        return (pre > theta).to(pre.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        pre, theta = ctx.saved_tensors
        return None, -gradient * ((pre - theta).abs() < ctx.width / 2) / ctx.width, None
