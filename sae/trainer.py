"""Trainer: the weights of a dictionary in training, and one step of it.

Inside, inputs and outputs are scaled: x -> (x - centre) * scale, one scale a site, so that E|x - centre|^2 = 1. An
autoencoder's centre is its b_dec, which is learned; a transcoder's is fixed. `finished` folds all into the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from sae import parallel
from sae.config import TrainConfig
from sae.dictionary import Dictionary
from sae.losses import LOSSES, Forward, auxk, reconstruction, remove_radial, spread

AVERAGED = 100
"""Steps over which each batch's smallest latent is averaged to serve BatchTopK as threshold (arXiv:2412.06410); at most
a tenth of the training. SAELens' rate of 0.01 is the same."""


class Trainer:
    """The state of a training, and one step of it."""

    def __init__(
        self, config: TrainConfig, sample: Float[Tensor, "row d_in"], target: Float[Tensor, "row d_out"] | None = None
    ) -> None:
        """Weights from `config.seed` and a sample of the rows; `target` are a transcoder's outputs at them."""
        device, dtype = sample.device, sample.dtype
        self.config, self.step, self.is_batch = config, 0, config.architecture.endswith("batchtopk")
        centre, self.x_scale = normaliser(sample, config.sites, config)
        start, self.y_scale = centre, self.x_scale.clone()
        if target is not None:
            start, self.y_scale = normaliser(target, config.out_sites, config)
        self.x_centre = centre if config.is_transcoder else torch.zeros_like(centre)
        tensors = _first_weights(config, len(centre), len(start))
        self.weights = {name: t.to(device, dtype) for name, t in tensors.items()} | {"b_dec": start * self.y_scale}
        for value in self.weights.values():
            value.requires_grad_()
        optimiser = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
        self.adam = optimiser(
            self.weights.values(), lr=config.lr, weight_decay=config.weight_decay, fused=device.type in ("cpu", "cuda")
        )
        self.silent = torch.zeros(config.d_sae, dtype=torch.long, device=device)
        self.smallest, self.threshold = torch.zeros(2, dtype=dtype, device=device).unbind()

    def update(
        self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"] | None = None
    ) -> dict[str, Tensor]:
        """One step on activations in the model's units, under torchrun this rank's part of the batch; `y` for a
        transcoder. Returns the loss and its parts."""
        config, n_tokens = self.config, len(x) * parallel.world()
        x = (x - self.x_centre) * self.x_scale if config.is_transcoder else x * self.x_scale
        y = x if y is None else y * self.y_scale
        dead = self.silent > config.dead_tokens
        self.adam.zero_grad()
        parts = zip(x.chunk(config.accumulate), y.chunk(config.accumulate), strict=True)
        reports, fires = zip(*(self._backward(*part, dead) for part in parts), strict=True)
        self._step()
        fires = parallel.total(torch.stack(fires).sum(0))
        self.silent = torch.where(fires > 0, 0, self.silent + n_tokens)
        report = {name: parallel.mean(torch.stack([r[name] for r in reports]).mean()) for name in reports[0]}
        report |= {"fvu": report.pop("error") / spread(y), "l0": fires.sum() / n_tokens, "dead": dead.sum()}
        return report

    def _backward(self, x: Tensor, y: Tensor, dead: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Add the gradient of one part of the batch; returns its losses, and how often each latent fired."""
        config = self.config
        forward = Forward.of(
            x, y, self.weights, centred=not config.is_transcoder, bf16=config.bf16,
            sparsity=config.sparsity_at(self.step),
            hint=0.8 * float(self.smallest) if self.is_batch else 0.0,
        )  # fmt: skip
        terms = LOSSES[config.architecture](forward, config)
        aux = terms.loss.new_zeros(())
        if config.auxk_weight:
            k_aux, signed = config.k_aux or max(1, x.shape[1] // 2), config.architecture == "abstopk"
            aux = auxk(forward, y - terms.y_hat, dead, k_aux=k_aux, signed=signed)
        loss = terms.loss + config.auxk_weight * aux
        (loss / config.accumulate).backward()
        values = terms.values.detach()
        if self.is_batch:
            self._follow(values)
        fires = torch.bincount(terms.pairs.latent[values != 0], minlength=config.d_sae)
        report = {"loss": loss, "aux": aux, "error": reconstruction(y, terms.y_hat)}
        return {name: value.detach() for name, value in report.items()}, fires

    def _follow(self, values: Float[Tensor, " pair"]) -> None:
        """The threshold that stands for BatchTopK's choice, moved towards the smallest value of this batch."""
        smallest = parallel.least(values.min() if len(values) else values.new_tensor(math.inf))
        if smallest.isfinite():
            moved = self.threshold.lerp(smallest, 1 / max(1, min(AVERAGED, self.config.n_steps // 10)))
            self.smallest, self.threshold = smallest, torch.where(self.threshold > 0, moved, smallest)

    def _step(self) -> None:
        """Adam, on what `_backward` has gathered."""
        W_dec, config = self.weights["W_dec"], self.config
        parallel.average_gradients(self.weights.values())
        if config.row.unit_norm:
            remove_radial(W_dec.grad, W_dec)
        if config.clip:
            torch.nn.utils.clip_grad_norm_(self.weights.values(), config.clip)
        for group in self.adam.param_groups:
            group["lr"] = config.rate(self.step)
        self.adam.step()
        if config.row.unit_norm:
            with torch.no_grad():
                W_dec /= W_dec.norm(dim=1, keepdim=True)
        self.step += 1

    @torch.no_grad()
    def finished(self) -> Dictionary:
        """The dictionary in the model's units, ready for inference.

        Decoder rows have norm 1 and latents the unit of the output (where outputs have several scales, only in
        architectures whose choice of latents does not depend on it: the top-k ones keep their order).
        """
        w, config = self.weights, self.config
        architecture = config.row.activation
        W_dec = w["W_dec"] / self.y_scale
        norm = W_dec.norm(dim=1)
        unit = norm.mean().expand_as(norm) if architecture in ("topk", "abstopk") else norm
        W_enc, b_enc = w["W_enc"] * self.x_scale, w["b_enc"] - w["W_enc"] @ (self.x_centre * self.x_scale)
        b_dec, extra = w["b_dec"], {}
        if architecture == "jumprelu":
            learned = w["log_threshold"].exp() if "log_threshold" in w else self.threshold.expand_as(norm)
            extra["threshold"] = learned * unit
        if architecture == "gated":
            offset = b_enc - w["b_enc"]  # what centring takes from raw, scaled as raw is
            extra = {"r_mag": w["r_mag"].clone(), "b_mag": (w["b_mag"] + offset * w["r_mag"].exp()) * unit}
        if "W_skip" in w:
            b_dec = b_dec - w["W_skip"] @ (self.x_centre * self.x_scale)
            extra["W_skip"] = w["W_skip"] * self.x_scale / self.y_scale.unsqueeze(1)
        dct = Dictionary(
            (W_enc * unit.unsqueeze(1)).T.contiguous(), b_enc * unit, W_dec / unit.unsqueeze(1), b_dec / self.y_scale,
            architecture=architecture, k=config.k, site=config.sites, out_site=config.out_sites, **extra,
        )  # fmt: skip
        return dct.requires_grad_(False)

    def state(self) -> dict[str, Tensor]:
        """All that a step changes, by name, and what the first sample fixed."""
        own = ("silent", "smallest", "threshold", "x_centre", "x_scale", "y_scale")
        tensors = {name: getattr(self, name).clone() for name in own}
        for name, value in self.weights.items():
            tensors |= {name + "_": value} | {f"{name}.{key}": t for key, t in self.adam.state[value].items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Undo of `state`."""
        self.step, device = step, self.silent.device
        for name, tensor in tensors.items():
            weight, _, moment = name.partition(".")
            if moment:
                self.adam.state[self.weights[weight]][moment] = tensor.to(device)
            elif name.endswith("_"):
                self.weights[name[:-1]].data.copy_(tensor)
            else:
                setattr(self, name, tensor.to(device))


def normaliser(
    sample: Float[Tensor, "row d"], sites: list[str], config: TrainConfig
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """(centre, scale) of each dimension, the scale being one number a site: E|(x - centre) * scale|^2 = 1 at each.

    InputError where a site does not vary, or is not finite.
    """
    centres, scales = [], []
    if sample.shape[1] % len(sites):
        raise InputError(f"{' and '.join(sites)} differ in width: a crosscoder's sites have one.")
    for site, x in zip(sites, sample.chunk(len(sites), dim=1), strict=True):
        centre = CENTRES[config.centre](x)
        mean_square = (x - centre).square().sum(1).mean()
        if not torch.isfinite(mean_square) or mean_square == 0:
            raise InputError(f"{site}: activations that do not vary, or are not finite, cannot be trained on.")
        centres.append(centre)
        scales.append((mean_square.rsqrt() if config.scale else torch.ones_like(mean_square)).expand_as(centre))
    return torch.cat(centres), torch.cat(scales)


def geometric_median(
    points: Float[Tensor, "row d_in"], *, n_steps: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, " d_in"]:
    """The point with the least summed distance to all, by Weiszfeld's iteration; an outlier hardly moves it."""
    guess = points.mean(0)
    for _ in range(n_steps):
        distance = (points - guess).norm(dim=1).clamp_min(1e-12)
        previous, guess = guess, (points / distance.unsqueeze(1)).sum(0) / (1 / distance).sum()
        if (guess - previous).norm() <= tolerance * guess.norm():
            break
    return guess


CENTRES: dict[str, Callable[[Tensor], Tensor]] = {
    "median": geometric_median, "mean": lambda x: x.mean(0), "none": lambda x: torch.zeros_like(x[0])
}  # fmt: skip


def _first_weights(config: TrainConfig, d_in: int, d_out: int) -> dict[str, Tensor]:
    """Random unit directions as decoder rows, and as the encoder's too where input and output are the same (Gao et al.,
    appendix A.1); biases and skip at 0. Rows whose norm is learned start at 0.1 (Anthropic, April 2024 update)."""
    generator = torch.Generator().manual_seed(config.seed)

    def directions(width: int) -> Tensor:
        rows = torch.randn(config.d_sae, width, generator=generator)
        return rows / rows.norm(dim=1, keepdim=True) * (1.0 if config.row.unit_norm else 0.1)

    W_dec, zeros = directions(d_out), torch.zeros(config.d_sae)
    weights = {"W_enc": directions(d_in) if config.is_transcoder else W_dec.clone(), "b_enc": zeros, "W_dec": W_dec}
    if config.architecture == "jumprelu":
        weights["log_threshold"] = torch.full_like(zeros, math.log(config.threshold))
    if config.architecture == "gated":
        weights |= {"r_mag": zeros.clone(), "b_mag": zeros.clone()}
    if config.skip:
        weights["W_skip"] = torch.zeros(d_out, d_in)
    return weights
