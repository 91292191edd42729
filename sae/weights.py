"""What the weights of a dictionary say by themselves: neighbours by decoder cosine, and the tokens a latent speaks for.

The logit effect of a latent is what its decoder row adds to the logits by the direct path, per unit of activation: the
row, carried to the residual stream where it is not there already (by W_O from `z`, by W_out from the MLP's `post`),
through the weights of the last norm with its scale left out, times W_U, less the mean over the vocabulary, which no
probability sees. So effects compare inside one latent; their size has the unit of logits times the norm's scale.
nostalgebraist 2020; Bricken et al. 2023, "Feature Dashboards".
"""

from __future__ import annotations

import h5py
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from interp.decoder import parts
from interp.decoder.model import Model
from interp.decoder.placing import as_numbers
from interp.decoder.sites import layer_of, short
from sae.dictionary import Dictionary

N_TOKENS, N_NEIGHBOURS, BLOCK = 10, 10, 1024
DIRECT = ("embed", "pos_embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""Sites that are the residual stream, or are added to it as they are."""


def encoder_cosine(dct: Dictionary) -> Float[np.ndarray, " d_sae"]:
    """Cosine of each latent's encoder column and decoder row; 1 where it writes what it reads, NaN in a transcoder."""
    if dct.is_transcoder:
        return np.full(dct.d_sae, np.nan, np.float32)
    with torch.no_grad():
        return torch.cosine_similarity(dct.W_enc.T.float(), dct.W_dec.float(), dim=1).cpu().numpy()


def to_residual(dct: Dictionary, model: Model, latents: slice = slice(None)) -> Float[Tensor, "latent d_model"] | None:
    """Decoder rows as they arrive in the residual stream; of several sites the last. None where the site has no direct
    way there (queries, keys, values, patterns; heads and neurons with a norm after them, as Gemma 2's)."""
    site = dct.out_sites[-1]
    kind, layer = short(site).partition(".")[2] or site.removeprefix("hook_"), layer_of(site)
    rows = dct.W_dec[latents].detach().float()
    rows = rearrange(rows, "latent (site d) -> site latent d", site=len(dct.out_sites))[-1]
    if kind in DIRECT:
        return rows
    after = {"z": "ln1_post", "post": "ln2_post"}.get(kind)  # a norm's scale is of all that was written
    if after is None or after in model.bridge.blocks[layer]._modules:
        return None
    if kind == "z":
        return rows @ rearrange(parts.W_O(model, layer).float(), "head d_head d_model -> (head d_head) d_model")
    return rows @ parts.W_out(model, layer).float()


def last_norm(model: Model, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """`x` through the weights of the model's last norm, without its bias and without dividing by the scale."""
    norm, kind = model.bridge.ln_final, model.bridge.cfg.normalization_type
    with as_numbers(model, norm):
        weight = getattr(norm, "weight", None) if kind else None
    if weight is not None and getattr(model.bridge.cfg, "rmsnorm_uses_offset", False):
        weight = 1 + weight  # Gemma
    if kind and kind.startswith("LN"):
        x = x - x.mean(1, keepdim=True)
    return x if weight is None else x * weight


@torch.no_grad()
def logit_effects(
    dct: Dictionary, model: Model, latents: slice = slice(None)
) -> Float[Tensor, "latent d_vocab"] | None:
    """What each latent's decoder row adds to the logits of every token by the direct path; see the module's head."""
    if short(dct.out_sites[-1]) == "ln_final.hook_normalized":
        rows = dct.W_dec[latents].float()
    else:
        rows = to_residual(dct, model, latents)
        rows = None if rows is None else last_norm(model, rows)
    if rows is None:
        return None
    logits = rows @ model.bridge.W_U.float()
    logits = logits if model.logit_cap else model.after_unembedding(logits)
    return logits - logits.mean(1, keepdim=True)


@torch.no_grad()
def write(file: h5py.File, dct: Dictionary, model: Model) -> None:
    """Fill `file` with /neighbours/cosine and, where the site has a direct way to the logits, /logits."""
    dct = dct.to(model.device)
    d_sae, n = dct.d_sae, min(N_NEIGHBOURS, dct.d_sae - 1)
    unit = torch.nn.functional.normalize(dct.W_dec.float(), dim=1)
    parts: dict[str, list[Tensor]] = {}

    def keep(name: str, found: tuple[Tensor, Tensor], sign: int = 1) -> None:
        for key, value in zip(("value", "index"), (found[0] * sign, found[1]), strict=True):
            parts.setdefault(f"{name}/{key}", []).append(value.cpu())

    for first in range(0, d_sae, BLOCK):
        block = slice(first, min(first + BLOCK, d_sae))
        cosine = unit[block] @ unit.T
        mine = torch.arange(block.start, block.stop, device=cosine.device)
        cosine[mine - block.start, mine] = -torch.inf
        keep("neighbours/cosine", cosine.topk(n, dim=1))
        effects = logit_effects(dct, model, block)
        if effects is not None:
            n_tokens = min(N_TOKENS, effects.shape[1])
            keep("logits/raised", effects.topk(n_tokens, dim=1))
            keep("logits/lowered", (-effects).topk(n_tokens, dim=1), sign=-1)
    named = {"neighbours": ("value", "latent"), "logits": ("effect", "token")}
    for name, pieces in parts.items():
        path, key = name.rsplit("/", 1)
        value, index = named[path.split("/")[0]]
        dtype = np.float32 if key == "value" else np.int32
        file[f"{path}/{value if key == 'value' else index}"] = torch.cat(pieces).numpy().astype(dtype)
