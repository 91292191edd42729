"""Exact choices of latents, and the sparse products against dense ones."""

from __future__ import annotations

import pytest
import torch


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("d_sae", "k", "parts"), [(64, 2, 16), (64, 4, 8), (60, 4, 16), (512, 16, 16), (32, 32, 16)])
def test_topk_in_two_stages_is_topk(d_sae, k, parts):
    from sae.sparse import topk

    pre = random(20, d_sae, dtype=torch.float32)
    assert torch.equal(topk(pre, k, parts=parts).sort(1).values, pre.topk(k).indices.sort(1).values)


def test_topk_finds_latents_that_share_a_group():
    from sae.sparse import topk

    pre = torch.zeros(1, 64)
    pre[0, [3, 7, 11, 15]] = torch.tensor([4.0, 3.0, 2.0, 1.0])  # one group of the first stage: latents 3 modulo 4
    assert set(topk(pre, 2, parts=16)[0].tolist()) == {3, 7}
    assert set(topk(pre.roll(1, 1), 2, parts=16)[0].tolist()) == {4, 8}


def slow_batch_topk(pre, n):
    flat = sorted(((-float(v), i) for i, v in enumerate(pre.flatten()) if v > 0))[:n]
    return sorted(divmod(i, pre.shape[1]) for _, i in flat)


@pytest.mark.parametrize("hint", [0.0, 0.5, 1.0, 9.0])
@pytest.mark.parametrize("n", [1, 15, 60, 1000])
def test_batch_topk_is_exact_whatever_the_hint(hint, n):
    from sae.sparse import batch_topk

    pre = random(12, 20).mul(4).round() / 4  # with many ties
    pairs = batch_topk(pre, n, hint=hint)
    assert list(zip(pairs.token.tolist(), pairs.latent.tolist(), strict=True)) == slow_batch_topk(pre, n)


@pytest.mark.parametrize("share", [0.05, 0.9])
def test_products_over_pairs_are_the_dense_ones(share):
    from sae.sparse import Pairs

    mask = torch.rand(9, 40, generator=torch.Generator().manual_seed(1)) < share
    mask[3], mask[:, 5] = False, False  # a token and a latent without pairs
    pairs, W, x = Pairs.where(mask), random(40, 7), random(9, 7, seed=2)
    assert pairs.is_dense == (share > 0.5)
    values = random(len(pairs.token), seed=3)
    dense = torch.zeros(9, 40, dtype=torch.float64)
    dense[mask] = values
    torch.testing.assert_close(pairs.rows(values, W), dense @ W)
    torch.testing.assert_close(pairs.outer(values, x), dense.T @ x)
    torch.testing.assert_close(pairs.dots(x, W), (x @ W.T)[mask])
    torch.testing.assert_close(pairs.per_latent(values), dense.sum(0))
    parts = pairs.split([4, 10, 40]).rows(values, W).unflatten(0, (9, 3))
    borders = ((0, 4), (4, 10), (10, 40))
    torch.testing.assert_close(parts, torch.stack([dense[:, a:b] @ W[a:b] for a, b in borders], dim=1))


@pytest.mark.parametrize("share", [0.05, 0.9])
def test_gradients_of_encoding_and_decoding_match_finite_differences(share):
    from sae.sparse import Pairs, decoded, encoded

    mask = torch.rand(5, 30, generator=torch.Generator().manual_seed(1)) < share
    pairs, x = Pairs.where(mask), random(5, 4)
    leaves = [random(*shape, seed=i).requires_grad_() for i, shape in enumerate(((30, 4), (30,), (30, 4), (4,)))]

    def run(W_enc, b_enc, W_dec, centre):
        shifted = (x - centre).detach()
        pre = (shifted @ W_enc.T + b_enc).detach()
        values = encoded(pre, shifted, W_enc, b_enc, pairs, centre=centre)
        return decoded(values.sin(), W_dec, pairs)

    assert torch.autograd.gradcheck(run, leaves)


def test_bfloat16_chooses_and_float32_computes_the_values():
    from sae.sparse import Pairs, encoded, topk

    x, W, b = (random(*shape, seed=i, dtype=torch.float32) for i, shape in enumerate(((8, 6), (50, 6), (50,))))
    pre = torch.addmm(b.bfloat16(), x.bfloat16(), W.T.bfloat16())
    pairs = Pairs.of(topk(pre, 3), 50)
    exact = (x @ W.T + b)[pairs.token, pairs.latent]
    torch.testing.assert_close(encoded(pre, x, W, b, pairs), exact)
