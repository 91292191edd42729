"""Every loss and its gradient against a dense one in float64; the whole training step against a plain one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from dense_sae import DenseTrainer, dense_loss

SITE, OTHER = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
CASES = {
    "topk": {}, "batchtopk": {}, "matryoshka_batchtopk": {"prefixes": (0.2, 0.5, 1.0)}, "abstopk": {}, "standard": {},
    "gated": {}, "jumprelu target": {"penalty": "target"}, "jumprelu step": {"penalty": "step", "sparsity": 0.02},
    "jumprelu tanh": {"penalty": "tanh", "sparsity": 0.5}, "topk transcoder": {"out_site": "blocks.0.hook_mlp_out"},
    "topk skip transcoder": {"out_site": "blocks.0.hook_mlp_out", "skip": True},
    "jumprelu skip transcoder": {"out_site": "blocks.0.hook_mlp_out", "skip": True},
    "standard crosscoder": {"site": f"{SITE}+{OTHER}"}, "batchtopk crosscoder": {"site": f"{SITE}+{OTHER}"},
    "standard with auxk": {"aux_weight": 0.5}, "jumprelu with auxk": {"aux_weight": 0.5},
}  # fmt: skip


def config_of(case, **more):
    from sae.config import TrainConfig

    settings = {
        "site": SITE, "architecture": case.split()[0], "d_sae": 40, "k": 3, "n_tokens": 20 * 64, "batch_size": 64,
        "lr": 3e-3, "dead_after": 128, "bandwidth": 0.4, "threshold": 0.2,
    }  # fmt: skip
    return TrainConfig(**(settings | CASES[case] | more))


def data(n=64, d=8, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(30, d, generator=g, dtype=dtype)
    amounts = torch.rand(n, 30, generator=g, dtype=dtype) * (torch.rand(n, 30, generator=g, dtype=dtype) < 0.1)
    return amounts @ directions * 3 + torch.randn(d, generator=g, dtype=dtype)


def trainer_of(config, x, y):
    from sae.trainer import Trainer

    trainer = Trainer(config, x, y)
    with torch.no_grad():
        for name, w in trainer.weights.items():  # off the tied, unit start, so that no gradient is 0 by symmetry
            noise = torch.randn(w.shape, generator=torch.Generator().manual_seed(len(name)), dtype=w.dtype)
            w += 0.1 * noise * (name != "W_dec")
        trainer.weights["b_enc"][::4] -= 9  # some that no token reaches: they will be dead
    return trainer


@pytest.mark.parametrize("k_aux", [1, 4])  # of ten dead latents: sparse and dense products
@pytest.mark.parametrize("case", CASES)
def test_loss_and_every_gradient_are_the_dense_ones(case, k_aux):
    from sae.losses import LOSSES, Forward, auxk

    config = config_of(case)
    x, y = data(d=8 * len(config.sites)), data(d=6, seed=1) if config.is_transcoder else None
    trainer, dead = trainer_of(config, x, y), torch.arange(40) % 4 == 0
    x = (x - trainer.x_centre) * trainer.x_scale
    y, weights = x if y is None else y * trainer.y_scale, trainer.weights
    forward = Forward.of(x, y, weights, centred=not config.is_transcoder, sparsity=0.7)
    terms = LOSSES[config.architecture](forward, config)
    aux = auxk(forward, y - terms.y_hat, dead, k_aux=k_aux, signed=config.architecture == "abstopk")
    loss = terms.loss + config.auxk_weight * aux
    wanted, latents = dense_loss(weights, x, y, replace(config, k_aux=k_aux), 0.7, dead)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(terms.pairs.spread(terms.values.detach()), latents.detach())
    ours, plain = (torch.autograd.grad(value, list(weights.values())) for value in (loss, wanted))
    for name, a, b in zip(weights, ours, plain, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")
        assert a.abs().sum() > 0, name


SMOOTH = [case for case in CASES if not case.startswith("jumprelu")]


@pytest.mark.parametrize("case", SMOOTH)
def test_gradient_matches_finite_differences(case):
    """Of all losses but JumpReLU's, whose thresholds have the paper's pseudo-gradient; targets held constant."""
    from sae.losses import LOSSES, Forward

    config = config_of(case, aux_weight=0.0, d_sae=12)
    x, y = data(n=6, d=2 * len(config.sites)), data(n=6, d=3, seed=1) if config.is_transcoder else None
    trainer = trainer_of(config, x, y)
    y = x if y is None else y
    names = [name for name in trainer.weights if (config.architecture, name) not in GATE_ONLY]

    def loss(*leaves):
        weights = trainer.weights | dict(zip(names, leaves, strict=True))
        forward = Forward.of(x, y, weights, centred=not config.is_transcoder, sparsity=0.7)
        return LOSSES[config.architecture](forward, config).loss

    assert torch.autograd.gradcheck(loss, [trainer.weights[name] for name in names], eps=1e-7, atol=1e-5)


GATE_ONLY = {("gated", "W_dec"), ("gated", "b_dec")}  # detached in the gate's own error: not the plain derivative


def test_auxk_reaches_the_encoder_of_dead_latents_and_is_zero_without_any():
    from sae.losses import Forward, auxk

    config = config_of("topk")
    x = data()
    trainer = trainer_of(config, x, None)
    forward, dead = Forward.of(x, x, trainer.weights, centred=True), torch.zeros(40, dtype=torch.bool)
    assert float(auxk(forward, x, dead, k_aux=2)) == 0
    dead[3] = True
    auxk(forward, x, dead, k_aux=2).backward()
    gradient = trainer.weights["W_enc"].grad
    assert gradient[3].abs().sum() > 0 and gradient[4].abs().sum() == 0


def test_auxk_by_hand():
    """One dead latent (1, 0) reads the residuals (1, 1) and (-1, 1): it explains half of the first, and is silent."""
    from sae.losses import Forward, auxk

    weights = {
        "W_enc": torch.tensor([[1.0, 0.0]]), "b_enc": torch.zeros(1), "W_dec": torch.tensor([[1.0, 0.0]]),
        "b_dec": torch.zeros(2),
    }  # fmt: skip
    residual = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    forward = Forward.of(residual, residual, weights, centred=True)
    # errors (0, 1) and (-1, 1): squares 1 and 2, mean 1.5; the residual's mean is (0, 1), its variance 1
    assert float(auxk(forward, residual, torch.tensor([True]), k_aux=1)) == 1.5


def test_losses_by_hand():
    """Two latents along the axes; x = (3, 1): reconstructed whole, penalties are countable."""
    from sae.losses import LOSSES, Forward

    weights = {"W_enc": torch.eye(2), "b_enc": torch.zeros(2), "W_dec": 2 * torch.eye(2), "b_dec": torch.zeros(2)}
    weights |= {"log_threshold": torch.zeros(2), "r_mag": torch.zeros(2), "b_mag": torch.zeros(2)}
    x = torch.tensor([[3.0, 0.5]])
    forward = Forward.of(x, torch.tensor([[6.0, 1.0]]), weights, centred=False, sparsity=1.0)

    def loss(case, **settings):
        config = config_of(case, d_sae=2, k=1, **settings)
        return float(LOSSES[config.architecture](forward, config).loss)

    assert loss("topk") == 1.0  # the second latent is left out: its output 1 is missed
    assert loss("standard") == pytest.approx((3 * 2 + 0.5 * 2) / math.sqrt(2))
    assert loss("gated") == 3.5  # both paths reconstruct; relu(gate) sums to 3.5
    assert loss("jumprelu step") == 1.0 + 1  # threshold 1: one fires, and 1 is missed
    assert loss("jumprelu target") == 1.0  # L0 is k
    assert loss("jumprelu tanh") == pytest.approx(1.0 + math.tanh(4 * math.sqrt(2) * 3) / 2)


def test_remove_radial_leaves_only_what_turns_a_decoder_row():
    from sae.losses import remove_radial

    g = torch.Generator().manual_seed(0)
    W_dec, gradient = (torch.randn(10, 6, generator=g, dtype=torch.float64) for _ in range(2))
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    turned = gradient.clone()
    remove_radial(turned, W_dec)
    torch.testing.assert_close((turned * W_dec).sum(1), torch.zeros(10, dtype=torch.float64))
    along = (gradient - turned) / W_dec  # a multiple of each row
    torch.testing.assert_close(along, along[:, :1].expand_as(along))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_those_of_a_plain_dense_trainer(case, dtype):
    """Weights within 1e-5 (Adam divides rounding by small moments; in float64 1e-9), dead counters identical."""
    config = config_of(case)
    n_sites = len(config.sites)
    x = data(20 * 64, 8 * n_sites, dtype=dtype)
    y = data(20 * 64, 6, seed=1, dtype=dtype) if config.is_transcoder else None
    trainer = trainer_of(config, x, y)
    plain, tolerance = DenseTrainer(trainer), 1e-9 if dtype == torch.float64 else 1e-5
    for step in range(20):
        part = slice(64 * step, 64 * step + 64)
        report = trainer.update(x[part], None if y is None else y[part])
        assert float(report["loss"]) == pytest.approx(plain.update(x[part], None if y is None else y[part]), rel=1e-4)
        assert torch.equal(trainer.silent, plain.silent)
    assert config.auxk_weight == 0 or int(report["dead"]) > 0  # AuxK had something to do
    for name, w in plain.weights.items():
        torch.testing.assert_close(trainer.weights[name], w, rtol=tolerance, atol=tolerance)
