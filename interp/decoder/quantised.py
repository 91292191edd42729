"""8- and 4-bit weights (bitsandbytes), multiplied as the numbers that they stand for.

    8bit   W = code * the row's largest / 127                  Dettmers et al. 2208.07339, section 2.1
    4bit   W = NF4's value of the code * the block's largest   Dettmers et al. 2305.14314, section 3

bitsandbytes' own product rounds activations as well (8bit), all but the columns in which any token of the batch is
large: a position would see later ones, a prompt the others beside it. Here W is made for each product and again on the
way back: positions and prompts stay apart, slopes go through, and a model is the one of its dequantised weights.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from interp.errors import InputError

SETTINGS = {
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}
"""What transformers' BitsAndBytesConfig is given."""

_LAYERS = ("Linear8bitLt", "Linear4bit")
_FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")


def is_quantised(layer: Module) -> bool:
    """Whether a layer's weight is bitsandbytes' codes."""
    return type(layer).__name__ in _LAYERS


def numbers(layer: Module, dtype: torch.dtype) -> Float[Tensor, "d_out d_in"]:
    """The weight of a quantised layer."""
    weight = layer.weight
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).to(dtype)
    return (weight.data.float() * (weight.SCB.float() / 127)[:, None]).to(dtype)


class _Product(torch.autograd.Function):
    """x @ W.T, of which nothing is kept for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Module) -> Tensor:
        ctx.layer = layer
        return x @ numbers(layer, x.dtype).T

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return slope @ numbers(ctx.layer, slope.dtype), None


def _multiplied(layer: Module, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
    out = _Product.apply(x, layer)
    return out if layer.bias is None else out + layer.bias.to(out.dtype)


def multiply_exactly(hf: Module) -> None:
    """Every quantised layer of a transformers model multiplies by `numbers`."""
    for layer in filter(is_quantised, hf.modules()):
        name = "_old_forward" if hasattr(layer, "_old_forward") else "forward"  # where accelerate keeps it
        setattr(layer, name, MethodType(_multiplied, layer))


def check_split(name: str, hf: Module) -> None:
    """InputError for codes of queries, keys and values in one matrix, which hooks would have to take apart."""
    for where, layer in hf.named_modules():
        if is_quantised(layer) and where.endswith(_FUSED):
            raise InputError(
                f'"{name}" has queries, keys and values in one matrix ({where}), which in 8 or 4 bits cannot be taken '
                "apart: load it whole, --dtype bfloat16 or --device auto."
            )


def described(hf: Module) -> str | None:
    """What results say of quantised weights, those of a directory too: "8bit", "4bit nf4", "gptq"; None of others."""
    config = getattr(hf.config, "quantization_config", None)
    if config is None or not getattr(hf, "is_quantized", False):
        return None
    said = config if isinstance(config, dict) else config.to_dict()
    if said.get("load_in_4bit"):
        return f"4bit {said['bnb_4bit_quant_type']}"
    method = said.get("quant_method")
    return "8bit" if said.get("load_in_8bit") else str(getattr(method, "value", method))
