"""A second implementation of every loss and of the training step: dense, plain autograd, no thought of speed.

The tests hold sae/losses.py and sae/trainer.py against it; the benchmark takes it as the plain reference.
"""

from __future__ import annotations

import math

import torch


def top(values, k):
    """Ones at the k largest of each row."""
    return torch.zeros_like(values).scatter(1, values.topk(k, dim=1).indices, 1.0)


def top_of_batch(values, n):
    """Ones at the n largest of all, of those above 0."""
    flat = values.flatten()
    return torch.zeros_like(flat).scatter(0, flat.topk(n).indices, 1.0).view_as(values) * (values > 0)


def dense_loss(w, x, y, config, sparsity, dead):
    """(loss with AuxK, latents [token, d_sae]) of scaled inputs. Weights as in a Trainer: W_enc, W_dec [d_sae, d]."""
    centre = torch.zeros_like(x[0]) if config.is_transcoder else w["b_dec"]
    pre = (x - centre) @ w["W_enc"].T + w["b_enc"]
    offset = w["b_dec"] + (x @ w["W_skip"].T if "W_skip" in w else 0)
    penalty = 0.0
    match config.architecture:
        case "topk":
            latents = pre.relu() * top(pre, config.k)
        case "abstopk":
            latents = pre * top(pre.abs(), config.k)
        case "batchtopk" | "matryoshka_batchtopk":
            latents = pre * top_of_batch(pre, config.k * len(x))
        case "standard":
            latents = pre.relu()
            norms = sum(part.norm(dim=1) for part in w["W_dec"].chunk(len(config.out_sites), dim=1))
            penalty = sparsity / math.sqrt(x.shape[1]) * (latents * norms).sum(1).mean()
        case "gated":
            raw = pre - w["b_enc"]
            latents = (pre > 0) * (raw * w["r_mag"].exp() + w["b_mag"]).relu()
            y_gate = pre.relu() @ w["W_dec"].detach() + offset.detach()
            penalty = sparsity * pre.relu().sum(1).mean() + (y_gate - y).square().sum(1).mean()
        case "jumprelu":
            theta = w["log_threshold"].exp()
            fires = (pre > theta).to(pre.dtype)
            band = ((pre - theta).abs() < config.bandwidth / 2) * (pre > 0)
            nudge = band * (theta - theta.detach())  # worth 0, with the pseudo-gradient of the paper
            latents = pre * fires - theta.detach() / config.bandwidth * nudge
            l0 = (fires - nudge / config.bandwidth).sum(1).mean()
            tanh = (4 * math.sqrt(x.shape[1]) * latents).tanh().sum(1).mean() / x.shape[1]
            penalty = sparsity * {"target": (l0 / config.k - 1) ** 2, "step": l0, "tanh": tanh}[config.penalty]
    y_hat = latents @ w["W_dec"] + offset
    error = (y_hat - y).square().sum(1).mean()
    if config.architecture == "matryoshka_batchtopk":
        nested = [latents[:, :m] @ w["W_dec"][:m] + offset for m in config.borders]
        error = sum((part - y).square().sum(1).mean() for part in nested) / len(nested)
    return error + penalty + config.auxk_weight * dense_auxk(w, pre, (y - y_hat).detach(), config, dead), latents


def dense_auxk(w, pre, residual, config, dead):
    if not dead.any():
        return 0.0
    signed, k_aux = config.architecture == "abstopk", config.k_aux or pre.shape[1] and max(1, w["W_enc"].shape[1] // 2)
    size = torch.where(dead, pre.abs() if signed else pre, -torch.inf)
    latents = (pre if signed else pre.relu()) * top(size, min(k_aux, int(dead.sum())))
    error = (latents @ w["W_dec"] - residual).square().sum()
    return error / (residual - residual.mean(0)).square().sum()


class DenseTrainer:
    """The same step as sae.trainer.Trainer's, beginning at its weights: torch's default Adam, one tensor at a time."""

    def __init__(self, trainer):
        self.config, self.step, self.scales = trainer.config, 0, (trainer.x_centre, trainer.x_scale, trainer.y_scale)
        self.weights = {name: w.detach().clone().requires_grad_() for name, w in trainer.weights.items()}
        kind = torch.optim.AdamW if self.config.weight_decay else torch.optim.Adam
        self.adam = kind(self.weights.values(), weight_decay=self.config.weight_decay, foreach=False, fused=False)
        self.silent = trainer.silent.clone()

    def update(self, x, y=None):
        config, rows = self.config, self.weights["W_dec"]
        x_centre, x_scale, y_scale = self.scales
        scaled = (x - x_centre) * x_scale
        dead = self.silent > config.dead_tokens
        self.adam.zero_grad()
        loss, latents = dense_loss(
            self.weights, scaled, scaled if y is None else y * y_scale, config, config.sparsity_at(self.step), dead
        )
        loss.backward()
        if config.row.unit_norm:
            rows.grad -= (rows.grad * rows.detach()).sum(1, keepdim=True) * rows.detach()
        if config.clip:
            torch.nn.utils.clip_grad_norm_(list(self.weights.values()), config.clip)
        self.adam.param_groups[0]["lr"] = config.rate(self.step)
        self.adam.step()
        with torch.no_grad():
            if config.row.unit_norm:
                rows /= rows.norm(dim=1, keepdim=True)
            self.silent = torch.where((latents != 0).any(0), 0, self.silent + len(x))
        self.step += 1
        return float(loss.detach())
