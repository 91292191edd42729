"""What training minimises: reconstruction error, plus AuxK, which lets dead latents model what the live ones miss.

Gao et al. 2024, arXiv:2406.04093, section 2.4 and appendix A.2. Gradients are autograd's, through the values of the
active latents to the encoder as well as the decoder; tests/test_dictionary.py checks them by finite differences.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.sparse import decode_active, topk


def reconstruction(x: Float[Tensor, "token d_in"], x_hat: Float[Tensor, "token d_in"]) -> Float[Tensor, ""]:
    """Squared error, summed over d_in and averaged over tokens; 0 is perfect."""
    return (x_hat - x).square().sum(-1).mean()


def auxk(
    residual: Float[Tensor, "token d_in"],
    pre: Float[Tensor, "token d_sae"],
    dead: Bool[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    *,
    k_aux: int,
) -> Float[Tensor, ""]:
    """Squared error of the `k_aux` strongest dead latents at predicting `residual` = x - x_hat, over its variance.

    1 where they say nothing (and the residual has mean 0), 0 where they explain all; 0 without dead latents. `residual`
    is a target: no gradient flows into it.
    """
    candidates = dead.nonzero().squeeze(1)
    if len(candidates) == 0:
        return pre.new_zeros(())
    residual = residual.detach()
    values, chosen = topk(pre[:, candidates], min(k_aux, len(candidates)))
    error = reconstruction(residual, decode_active(values, candidates[chosen], W_dec))
    variance = reconstruction(residual, residual.mean(0).expand_as(residual))
    return error / variance.clamp_min(torch.finfo(residual.dtype).tiny)


@torch.no_grad()
def remove_radial(gradient: Float[Tensor, "d_sae d_in"], W_dec: Float[Tensor, "d_sae d_in"]) -> None:
    """Take out of `gradient`, in place, its part along each unit-norm row of `W_dec`: what would only change a norm."""
    gradient.addcmul_(torch.linalg.vecdot(gradient, W_dec).unsqueeze(1), W_dec, value=-1)
