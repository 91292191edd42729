"""What a head reads and writes, as matrices on the residual stream: the form in which its weights can be multiplied.

    query  = LN(x) W_Q        score = query @ rotation @ key * scale
    key    = LN(x) W_K        (keys and values of a head: those of its group)
    value  = LN(x) W_V        the head writes  sum of pattern * value W_O

A layer norm divides by a scale that depends on the text; the rest of it is linear and folded into the matrix behind it:
its weight, and where it takes the mean out (LayerNorm, not RMSNorm) the projection that does so; then the mean of what
heads write, which no part of the model reads, is left out too. Left out are the scale and all biases. Elhage et al.
2021, "A Mathematical Framework for Transformer Circuits", transformer-circuits.pub/2021/framework.

Nothing of that is taken on trust: on a few random tokens each layer's values, outputs and attention scores are computed
from these matrices and held against the model's own. What does not agree is refused, by name: a norm after attention
(Gemma 2), normalised queries and keys (Qwen 3, Gemma 3), capped scores, a rotation of another form (GPT-J).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from interp.causal.resuming import TOLERANCE
from interp.decoder import parts
from interp.decoder.hooks import watch
from interp.decoder.model import Model
from interp.decoder.placing import needs_weights
from interp.decoder.sites import layer_site
from interp.errors import InputError

N_CHECKED = 3
"""Random sequences on which the matrices are held against the model."""


@dataclass(frozen=True)
class Layer:
    """The heads of one layer, float64 on the model's device. `rotation` turns a query
    against a key `offset` tokens before it (the identity without RoPE); `scale` is what scores are multiplied by."""

    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "head d_model d_head"]
    W_V: Float[Tensor, "head d_model d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    rotation: Float[Tensor, "d_head d_head"]
    scale: float
    unlike: str
    """Why scores are not query @ rotation @ key; "" where they are."""

    @property
    def W_Q_at(self) -> Float[Tensor, "head d_model d_head"]:
        """W_Q at the offset, in the units of attention scores: QK = W_Q_at @ W_K.T."""
        return self.W_Q @ self.rotation * self.scale


def read(model: Model, *, offset: int = 0, seed: int = 0) -> Iterator[Layer]:
    """The heads of layer after layer, checked on random tokens drawn by `seed`; queries `offset` tokens after keys.

    InputError where what heads write is not W_O of values that are linear in what they read, up to the norm's scale;
    where only scores are of another form, `Layer.unlike` says so.
    """
    needs_weights(model, "a circuit of weights")
    length = max(8, offset + 1)
    if not 0 <= offset or length > model.n_ctx:
        raise InputError(f'offset {offset} given: a query of "{model.name}" stands 0 to {model.n_ctx - 1} after a key.')
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, model.d_vocab, (N_CHECKED, length), generator=draw)
    for layer in range(model.n_layers):
        with torch.no_grad():
            yield _layer(model, layer, tokens, offset)


def linear(model: Model, norm: Module, where: str) -> tuple[Float[Tensor, " d_model"], bool]:
    """The weight of a norm, and whether it takes the mean out: norm(x) = (x [- mean]) / its root mean square * weight
    + bias. InputError where it is neither LayerNorm, RMSNorm nor nothing at all."""
    x = 100 * torch.randn(4, model.d_model, generator=torch.Generator().manual_seed(0))  # far above the norm's eps
    x = x.to(model.device, model.dtype)
    bias, given = getattr(norm, "bias", None), getattr(norm, "weight", None)
    found, x = (norm(x) if bias is None else norm(x) - bias).double(), x.double()
    one = torch.ones_like(x[0])
    if given is None and alike(found, x, model):
        return one, False
    weights = [one] if given is None else [one * given, one * (1 + given.double())]  # Gemma's RMSNorm: 1 + weight
    for weight, centred in product(weights, (False, True)):
        read = x - x.mean(-1, keepdim=True) * centred
        if alike(found, read * read.square().mean(-1, keepdim=True).rsqrt() * weight, model):
            return weight, centred
    raise InputError(f'"{model.name}" has a norm {where} that is neither LayerNorm nor RMSNorm: no circuit of weights.')


def folded(
    W: Float[Tensor, "*head d_model out"], weight: Float[Tensor, " d_model"], centred: bool
) -> Float[Tensor, "*head d_model out"]:
    """A matrix that reads through a norm, with the norm's linear part in it."""
    W = W.double() * weight[:, None]
    return W - W.mean(-2, keepdim=True) if centred else W


def alike(found: Tensor, wanted: Tensor, model: Model) -> bool:
    """Equal but for the rounding of the model's dtype."""
    if found.shape != wanted.shape:
        return False
    limit = 10 * TOLERANCE[model.dtype] * wanted.abs().max()
    return bool((found - wanted).abs().max() <= limit)


def _layer(model: Model, layer: int, tokens: Int[Tensor, "sequence pos"], offset: int) -> Layer:
    seen = _seen(model, layer, tokens)
    _check_writes(model, layer, seen)
    weight, centred = linear(model, parts.norm(model, layer, "attn"), f"before the heads of layer {layer}")
    group = model.n_heads // model.n_kv_heads
    W_Q, W_K, W_V = (folded(parts.weights(model, layer, which).detach(), weight, centred) for which in "qkv")
    W_K, W_V = (repeat(W, "kv d_model d_head -> (kv group) d_model d_head", group=group) for W in (W_K, W_V))
    W_O = parts.W_O(model, layer).detach().double()
    W_O = W_O - W_O.mean(-1, keepdim=True) if centred else W_O
    turns = _rotations(seen, model.d_head)
    scale, unlike = _scores(model, seen, turns)
    rotation = torch.eye(model.d_head, dtype=W_O.dtype, device=W_O.device)
    if turns is not None:
        rotation = turns[offset] @ turns[0].T
    return Layer(W_Q, W_K, W_V, W_O, rotation, scale, unlike)


def _seen(model: Model, layer: int, tokens: Int[Tensor, "sequence pos"]) -> dict[str, Tensor]:
    """What the model itself has in this layer, by short name, with RoPE's "cos" and "sin" where it has them."""
    names = {kind: layer_site(layer, kind) for kind in (
        "resid_pre", "q", "k", "v", "z", "pattern", "attn_out", "resid_mid", "mlp_out", "resid_post")}  # fmt: skip
    names |= {kind: f"blocks.{layer}.attn.hook_{kind}" for kind in ("cos", "sin")}
    known, seen = model.bridge.hook_dict, {}
    functions = {
        name: (lambda value, kind=kind: seen.__setitem__(kind, value.clone()))
        for kind, name in names.items()
        if name in known and (kind != "mlp_out" or model.has_mlp)
    }
    watch(model, tokens, functions)
    return seen


def _check_writes(model: Model, layer: int, seen: dict[str, Tensor]) -> None:
    """InputError unless values are read through the norm, and heads' outputs added to the stream as they are."""
    group = model.n_heads // model.n_kv_heads
    read = repeat(seen["resid_pre"], "seq pos d_model -> seq pos kv d_model", kv=model.n_kv_heads)
    v = parts.projected(model, layer, "v", read)
    if not alike(v, seen["v"], model):
        raise InputError(f'values of "{model.name}" are not W_V of the stream after its norm: no circuit of weights.')
    of_heads = repeat(seen["v"], "seq pos kv d_head -> seq pos (kv group) d_head", group=group)
    z = einsum(seen["pattern"], of_heads, "seq head query key, seq key head d_head -> seq query head d_head")
    written = parts.head_outputs(model, layer, z).sum(-2) + parts.head_bias(model, layer)
    after = "resid_mid" if "resid_mid" in seen else "resid_post"
    mlp = seen["mlp_out"] if after == "resid_post" and model.has_mlp else 0
    if not alike(seen["resid_pre"] + written + mlp, seen[after], model):
        raise InputError(
            f'what heads of "{model.name}" write is not added to the stream as it is (a norm after attention, or a '
            "factor): no circuit of weights."
        )


def _rotations(seen: dict[str, Tensor], d_head: int) -> Float[Tensor, "pos d_head d_head"] | None:
    """RoPE at each position as a matrix, x @ rotation: the first half of the turned numbers against the second, the
    rest as they are; None where the model has no cos and sin."""
    if "cos" not in seen:
        return None
    cos, sin = seen["cos"][0].double(), seen["sin"][0].double()
    width = cos.shape[-1]
    x = torch.eye(d_head, dtype=cos.dtype, device=cos.device)[:, None]  # d_head, pos, d_head
    head, rest = x[..., :width], x[..., width:].expand(-1, len(cos), -1)
    half = torch.cat([-head[..., width // 2 :], head[..., : width // 2]], -1)
    return rearrange(torch.cat([head * cos + half * sin, rest], -1), "row pos column -> pos row column")


def _scores(
    model: Model, seen: dict[str, Tensor], turns: Float[Tensor, "pos d_head d_head"] | None
) -> tuple[float, str]:
    """The scale of scores, and why they are not query @ rotation @ key, if they are not.

    A pattern gives scores up to a number a query; what position alone adds (ALiBi) is the same in every sequence. So
    differences between keys and between sequences are compared, and the scale is their slope.
    """
    cap = float(getattr(model.bridge.cfg, "attn_scores_soft_cap", 0) or 0)
    if any(name.endswith("attn.hook_q_normed") for name in model.bridge.hook_dict):
        return 1.0, "its queries and keys are normalised"
    if cap > 0:
        return 1.0, f"its scores are capped at {cap:g}"
    q, k = seen["q"].double(), seen["k"].double()
    if turns is not None:
        q, k = (einsum(x, turns, "seq pos head i, pos i j -> seq pos head j") for x in (q, k))
    k = repeat(k, "seq pos kv d_head -> seq pos (kv group) d_head", group=model.n_heads // model.n_kv_heads)
    ours = einsum(q, k, "seq query head d_head, seq key head d_head -> seq head query key")
    theirs = seen["pattern"].double().clamp(min=1e-30).log()

    def differences(scores: Tensor) -> Tensor:
        relative = scores - scores[..., :1]
        return relative[1:] - relative[:1]

    clear = (seen["pattern"] > 1e-12).tril()
    clear = (clear & clear[..., :1])[1:] & (clear & clear[..., :1])[:1]
    x, y = differences(ours)[clear], differences(theirs)[clear]
    scale = float(x @ y / (x @ x).clamp(min=1e-30))
    limit = 50 * TOLERANCE[model.dtype] * max(1.0, float(y.abs().max()))
    if len(y) and float((scale * x - y).abs().max()) <= limit:
        return scale, ""
    return 1.0, "its scores are not query times key, as they are or turned by RoPE half against half"
