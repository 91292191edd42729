"""What the parts of a layer read from the residual stream and write to it, part by part.

    query, key, value of a head = its columns of W_Q, W_K, W_V on ln1(what it reads)
    a head writes                 z @ its rows of W_O
    the MLP writes                mlp(ln2(what it reads))

and the residual stream is the sum of the embeddings, of all that was written, and of the biases. Where that does not
hold (a norm after attention or after the MLP), `interp.causal.edges` finds it out and refuses the model.
"""

from __future__ import annotations

from inspect import signature

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from interp.decoder.model import Model
from interp.decoder.placing import as_numbers


def _plain(model: Model, layer: int) -> Module:
    """A block without hooks, on the same weights; of a model without a plain twin, the block itself."""
    blocks = model.plain_blocks
    return model.bridge.blocks[layer].original_component if blocks is None else blocks[layer]


def norm(model: Model, layer: int, part: str) -> Module:
    """The layer norm that "attn" or "mlp" reads through; of blocks with one norm, that one; the identity where norms
    stand only after what is written (OLMo 2)."""
    block = model.bridge.blocks[layer]
    name = "ln2" if part == "mlp" and "ln2" in block._modules else "ln1"
    if name not in block._modules:
        return torch.nn.Identity()
    return _plain(model, layer).get_submodule(getattr(block, name).name)


def mlp_out(model: Model, layer: int, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """What the MLP writes that reads `x`."""
    block, mlp, x = _plain(model, layer), model.bridge.blocks[layer].mlp, norm(model, layer, "mlp")(x)
    if mlp.name is None:  # OPT's, whose matrices stand in the block itself
        inner, out = (block.get_submodule(getattr(mlp, name).name) for name in ("in", "out"))
        return out(block.activation_fn(inner(x)))
    plain = block.get_submodule(mlp.name)
    # BLOOM's adds the residual stream itself
    found = plain(x, torch.zeros_like(x)) if "residual" in signature(plain.forward).parameters else plain(x)
    return _scaled(model, found[0] if isinstance(found, tuple) else found)


def weights(model: Model, layer: int, which: str) -> Float[Tensor, "head d_model d_head"]:
    """W_Q, W_K or W_V for `which` "q", "k" or "v"."""
    return _read(model, layer, "attn", f"W_{which.upper()}", which)


def W_O(model: Model, layer: int) -> Float[Tensor, "head d_head d_model"]:
    """What turns z into what a head writes to the residual stream."""
    return _scaled(model, _read(model, layer, "attn", "W_O", "o"))


def W_out(model: Model, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """What turns a neuron's activation into what it writes to the residual stream."""
    return _scaled(model, _read(model, layer, "mlp", "W_out", "out"))


def mlp_bias(model: Model, layer: int) -> Float[Tensor, " d_model"] | None:
    """What the MLP writes whatever it reads; None of an MLP without, or of experts."""
    bias = _read(model, layer, "mlp", "b_out", "out")
    return None if bias is None else _scaled(model, bias)


def _read(model: Model, layer: int, part: str, name: str, inner: str) -> Tensor | None:
    """A matrix or a bias as numbers, wherever and however it is kept."""
    owner = getattr(model.bridge.blocks[layer], part)
    if not model.unread or inner not in owner._modules:
        return getattr(owner, name, None)
    with as_numbers(model, owner._modules[inner]):
        found = owner._modules[inner].bias if name == "b_out" else getattr(owner, name)  # b_out is kept from the start
        return None if found is None else found.detach().clone().to(model.device)


def projected(
    model: Model, layer: int, which: str, x: Float[Tensor, "*batch pos head d_model"]
) -> Float[Tensor, "*batch pos head d_head"]:
    """The q, k or v of heads that each read their own `x`; it stands where `hook_q`, ... stand."""
    read = norm(model, layer, "attn")(x)
    found = einsum(read, weights(model, layer, which), "... head d_model, head d_model d_head -> ... head d_head")
    bias = _read(model, layer, "attn", f"b_{which.upper()}", which)
    return found if bias is None else found + bias


def _scaled(model: Model, written: Tensor) -> Tensor:
    """Times the factor on the way to the residual stream: Granite's residual_multiplier, 1 in most models."""
    factor = float(getattr(model.bridge.blocks[0], "residual_contribution_scale", 1.0))
    return written if factor == 1 else written * factor


def head_outputs(
    model: Model, layer: int, z: Float[Tensor, "*batch pos head d_head"]
) -> Float[Tensor, "*batch pos head d_model"]:
    """What each head writes, without the layer's bias."""
    return einsum(z, W_O(model, layer), "... head d_head, head d_head d_model -> ... head d_model")


def head_bias(model: Model, layer: int) -> Float[Tensor, " d_model"] | float:
    """What attention writes whatever it reads."""
    bias = _read(model, layer, "attn", "b_O", "o")
    return 0.0 if bias is None else _scaled(model, bias)


def plain_output(model: Model, layer: int) -> Module:
    """The output matrix of attention without hooks: it reads the heads' z, side by side."""
    attention = model.bridge.blocks[layer].attn
    return _plain(model, layer).get_submodule(f"{attention.name}.{attention.o.name}")


def between_heads_and_stream(model: Model) -> str:
    """What stands between the sum of the heads' outputs and the residual stream; empty where nothing does, and a head's
    output can be read as what it writes."""
    if "ln1_post" in model.bridge.blocks[0]._modules:
        return "a norm stands after attention: what one head writes depends on the others"
    return ""
