"""The dictionary's arithmetic against slow loops, an architecture at a time."""

from __future__ import annotations

import math

import pytest
import torch

EXTRA = {"jumprelu": ("threshold",), "gated": ("r_mag", "b_mag")}
ARCHITECTURES = ("standard", "gated", "jumprelu", "topk", "abstopk")


def make(architecture="topk", d_in=6, d_sae=10, k=3, *, seed=0, dtype=torch.float64, **settings):
    from sae.dictionary import Dictionary

    g = torch.Generator().manual_seed(seed)
    d_out = settings.pop("d_out", d_in)
    W_enc, W_dec = (torch.randn(d, d_sae, generator=g, dtype=dtype) for d in (d_in, d_out))
    W_dec = (W_dec / W_dec.norm(dim=0)).T.contiguous()
    b_enc, b_dec = torch.randn(d_sae, generator=g, dtype=dtype) * 0.1, torch.randn(d_out, generator=g, dtype=dtype)
    extra = {name: torch.rand(d_sae, generator=g, dtype=dtype) for name in EXTRA.get(architecture, ())}
    k = k if architecture.endswith("topk") else None
    settings = {"site": "blocks.1.hook_resid_post"} | settings
    return Dictionary(W_enc, b_enc, W_dec, b_dec, architecture=architecture, k=k, **extra, **settings)


@pytest.fixture
def x():
    return torch.randn(7, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 2


def latent_by_hand(dct, pre, j):
    """Latent j of one token out of its pre-activations [d_sae], as the papers write it."""
    value = float(pre[j])
    if dct.architecture == "standard":
        return max(value, 0.0)
    if dct.architecture == "jumprelu":
        return value if value > float(dct.threshold[j]) else 0.0
    if dct.architecture == "gated":
        magnitude = (value - float(dct.b_enc[j])) * math.exp(float(dct.r_mag[j])) + float(dct.b_mag[j])
        return max(magnitude, 0.0) if value > 0 else 0.0
    size = [abs(float(p)) if dct.architecture == "abstopk" else float(p) for p in pre]
    chosen = sorted(size, reverse=True).index(size[j]) < dct.k
    return value if chosen and (value > 0 or dct.architecture == "abstopk") else 0.0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_encode_is_what_the_paper_says_latent_by_latent(architecture, x):
    dct = make(architecture).requires_grad_(False)
    latents = dct.encode(x)
    for token in range(len(x)):
        centred = x[token] - dct.b_dec
        pre = [sum(centred[i] * dct.W_enc[i, j] for i in range(6)) + dct.b_enc[j] for j in range(10)]
        for j in range(10):
            assert float(latents[token, j]) == pytest.approx(latent_by_hand(dct, pre, j), abs=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forward_is_decode_of_encode_on_any_batch_shape(architecture, x):
    dct = make(architecture)
    x = x[:6].reshape(2, 3, 6)
    assert dct.encode(x).shape == (2, 3, 10)
    torch.testing.assert_close(dct(x), dct.decode(dct.encode(x)))
    gradients = (
        torch.autograd.grad(f(x).square().sum(), dct.W_enc)[0] for f in (dct, lambda x: dct.decode(dct.encode(x)))
    )
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_active_names_the_latents_that_are_not_zero_in_order_of_token(architecture, x):
    dct = make(architecture)
    active = dct.active(x)
    latents = torch.zeros(7, 10, dtype=torch.float64)
    for token, latent, value in zip(active.token, active.latent, active.value, strict=True):
        latents[token, latent] = value
    assert torch.equal(latents.detach(), dct.encode(x).detach()) and (active.value != 0).all()
    assert (active.token.diff() >= 0).all()
    torch.testing.assert_close(active.decode(dct.W_dec), latents @ dct.W_dec)


def test_tokens_without_an_active_latent_are_reconstructed_by_the_bias(x):
    dct = make("jumprelu")
    dct.threshold.data.fill_(1e9)
    torch.testing.assert_close(dct(x), dct.b_dec.expand(7, 6))


def test_a_skip_transcoder_reads_no_b_dec_and_adds_its_linear_path(x):
    W_skip = torch.randn(4, 6, dtype=torch.float64)
    dct = make(d_out=4, site="blocks.0.hook_resid_mid", out_site="blocks.0.hook_mlp_out", W_skip=W_skip)
    assert dct.is_transcoder and (dct.d_in, dct.d_out) == (6, 4)
    torch.testing.assert_close(dct.pre_activations(x), x @ dct.W_enc + dct.b_enc)
    torch.testing.assert_close(dct(x), dct.encode(x) @ dct.W_dec + dct.b_dec + x @ W_skip.T)
    torch.testing.assert_close(dct.decode(dct.encode(x), x), dct(x))


def test_a_crosscoder_reads_several_sites_and_has_no_single_one():
    from interp.errors import InputError

    dct = make("jumprelu", site=["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"])
    assert dct.sites == dct.out_sites and not dct.is_transcoder
    with pytest.raises(InputError, match="reads 2 sites"):
        _ = dct.site


@pytest.mark.parametrize("k", [0, 11, None])
def test_k_outside_the_dictionary_is_an_input_error(k):
    from interp.errors import InputError

    with pytest.raises(InputError, match="between 1 and d_sae"):
        make(k=k)


def test_weights_that_contradict_the_architecture_are_input_errors():
    from interp.errors import InputError, UnknownName
    from sae.dictionary import Dictionary

    weights = (torch.zeros(2, 3), torch.zeros(3), torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(InputError, match="needs threshold"):
        Dictionary(*weights, architecture="jumprelu")
    with pytest.raises(InputError, match="has no threshold"):
        Dictionary(*weights, architecture="standard", threshold=torch.zeros(3))
    with pytest.raises(InputError, match='is a "jumprelu" once it is trained'):
        Dictionary(*weights, architecture="batchtopk", threshold=torch.zeros(3))
    with pytest.raises(UnknownName, match="Nearest: topk"):
        Dictionary(*weights, architecture="topkk")
