"""The sparse step: exact top-k, decode and gradients over active latents only; CPU and GPU."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def topk(pre: Float[Tensor, "token d_sae"], k: int) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """The `k` largest pre-activations of each token, negative ones as 0, and the latents they belong to; unsorted."""
    values, indices = pre.topk(k, dim=-1, sorted=False)
    return values.relu(), indices


def decode_active(
    values: Float[Tensor, "token k"], indices: Int[Tensor, "token k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "token d_in"]:
    """Sum of `values` times the decoder rows `indices`: the sparse `latents @ W_dec`, without a bias."""
    return F.embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum")
