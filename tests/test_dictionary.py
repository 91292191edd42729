"""The dictionary's arithmetic against slow loops, and the gradient of the whole loss against finite differences."""

from __future__ import annotations

import pytest
import torch


def make(d_in=6, d_sae=10, k=3, *, seed=0, dtype=torch.float64):
    from sae.dictionary import Dictionary

    g = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(d_sae, d_in, generator=g, dtype=dtype)
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    b_enc, b_dec = torch.randn(d_sae, generator=g, dtype=dtype) * 0.1, torch.randn(d_in, generator=g, dtype=dtype)
    return Dictionary(W_dec.T.contiguous(), b_enc, W_dec.clone(), b_dec, k=k, site="blocks.1.hook_resid_post")


@pytest.fixture
def x():
    return torch.randn(7, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 2


def test_encode_keeps_the_k_largest_positive_pre_activations(x):
    dct = make().requires_grad_(False)
    latents = dct.encode(x)
    for token in range(len(x)):
        centred = x[token] - dct.b_dec
        pre = [float(sum(centred[i] * dct.W_enc[i, j] for i in range(6)) + dct.b_enc[j]) for j in range(10)]
        for j in range(10):
            wanted = pre[j] if pre[j] > 0 and sorted(pre, reverse=True).index(pre[j]) < 3 else 0.0
            assert float(latents[token, j]) == pytest.approx(wanted, abs=1e-12)


def test_forward_is_decode_of_encode_on_any_batch_shape(x):
    dct = make()
    x = x[:6].reshape(2, 3, 6)
    assert dct.encode(x).shape == (2, 3, 10)
    torch.testing.assert_close(dct(x), dct.decode(dct.encode(x)))


def test_b_dec_that_passes_around_autograd_has_the_plain_gradient(x):
    dct = make()
    weight = torch.randn(7, 10, dtype=torch.float64)
    plain = (x - dct.b_dec) @ dct.W_enc + dct.b_enc
    torch.testing.assert_close(dct.pre_activations(x), plain)
    parameters = (dct.W_enc, dct.b_enc, dct.b_dec)
    ours = torch.autograd.grad((dct.pre_activations(x) * weight).sum(), parameters)
    torch.testing.assert_close(ours, torch.autograd.grad((plain * weight).sum(), parameters))


def loss_of(x, dead, *, residual=None, aux_weight=1 / 32):
    """The training loss as a function of the four weights; `residual` held fixed, as AuxK's detached target is."""
    from sae.dictionary import Dictionary, decode_active, topk
    from sae.losses import auxk, reconstruction

    def loss(W_enc, b_enc, W_dec, b_dec):
        dct = Dictionary(W_enc, b_enc, W_dec, b_dec, k=3, site="s")
        for name, value in (("W_enc", W_enc), ("b_enc", b_enc), ("W_dec", W_dec), ("b_dec", b_dec)):
            del dct._parameters[name]  # the given leaves, not copies of them
            setattr(dct, name, value)
        pre = dct.pre_activations(x)
        values, indices = topk(pre, dct.k)
        x_hat = decode_active(values, indices, dct.W_dec) + dct.b_dec
        target = x - x_hat if residual is None else residual
        return reconstruction(x, x_hat) + aux_weight * auxk(target, pre, dead, dct.W_dec, k_aux=2)

    return loss


def test_gradient_of_the_loss_with_auxk_matches_finite_differences(x):
    dct, dead = make(), torch.zeros(10, dtype=torch.bool)
    dead[[1, 4, 7]] = True
    residual = (x - dct(x)).detach()
    weights = [p.detach().clone().requires_grad_() for p in (dct.W_enc, dct.b_enc, dct.W_dec, dct.b_dec)]
    assert torch.autograd.gradcheck(loss_of(x, dead, residual=residual, aux_weight=0.5), weights, eps=1e-7, atol=1e-5)
    free, fixed = (torch.autograd.grad(loss_of(x, dead, residual=r)(*weights), weights) for r in (None, residual))
    torch.testing.assert_close(free, fixed)  # the target carries no gradient


def test_sparse_loss_and_gradient_equal_the_dense_ones(x):
    dct, dead = make(), torch.zeros(10, dtype=torch.bool)
    dead[[0, 2, 5, 9]] = True
    weights = [p.detach().clone().requires_grad_() for p in (dct.W_enc, dct.b_enc, dct.W_dec, dct.b_dec)]
    W_enc, b_enc, W_dec, b_dec = weights
    pre = (x - b_dec) @ W_enc + b_enc
    keep = torch.zeros_like(pre).scatter(1, pre.topk(3).indices, 1.0)
    x_hat = (pre.relu() * keep) @ W_dec + b_dec
    residual = (x - x_hat).detach()
    masked = torch.where(dead, pre, -torch.inf)
    keep = torch.zeros_like(pre).scatter(1, masked.topk(2).indices, 1.0)
    aux = ((pre.relu() * keep) @ W_dec - residual).square().sum() / (residual - residual.mean(0)).square().sum()
    dense = (x - x_hat).square().sum(1).mean() + aux / 32
    sparse = loss_of(x, dead)(*weights)
    torch.testing.assert_close(sparse, dense)
    torch.testing.assert_close(torch.autograd.grad(sparse, weights), torch.autograd.grad(dense, weights))


def test_auxk_reaches_the_encoder_of_dead_latents_and_is_zero_without_any(x):
    from sae.losses import auxk

    dct, dead = make(), torch.zeros(10, dtype=torch.bool)
    assert float(auxk(x, dct.pre_activations(x), dead, dct.W_dec, k_aux=2).detach()) == 0
    dead[3] = True
    auxk(x, dct.pre_activations(x), dead, dct.W_dec, k_aux=2).backward()
    assert dct.W_enc.grad[:, 3].abs().sum() > 0 and dct.W_enc.grad[:, 4].abs().sum() == 0


def test_remove_radial_leaves_only_what_turns_a_decoder_row():
    from sae.losses import remove_radial

    dct, gradient = make(), torch.randn(10, 6, dtype=torch.float64)
    turned = gradient.clone()
    remove_radial(turned, dct.W_dec)
    torch.testing.assert_close((turned * dct.W_dec).sum(1), torch.zeros(10, dtype=torch.float64))
    along = (gradient - turned) / dct.W_dec  # a multiple of each row
    torch.testing.assert_close(along, along[:, :1].expand_as(along))


@pytest.mark.parametrize("k", [0, 11])
def test_k_outside_the_dictionary_is_an_input_error(k):
    from interp.errors import InputError

    with pytest.raises(InputError, match="between 1 and d_sae"):
        make(k=k)
