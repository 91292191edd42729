"""What a family of decoders allows: which models are refused, which hook points are not offered, and why.

Everything here is read from the model itself, not from a list of names, so that a family nobody tried is treated by
what it does. `interp.decoder.checking` then measures whether what is offered is right.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from interp.errors import UnknownModel

DECODERS = "the workbench reads decoders, which predict the next token from those before it"
_BOTH_WAYS = "is an encoder, whose positions see those after them"


CHECKED = frozenset({
    "bloom", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "falcon", "gemma2", "gemma3_text", "glm4", "gpt2",
    "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe", "llama", "llama4_text", "mistral", "mixtral", "olmo",
    "olmo2", "olmoe", "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm",
    "starcoder2",
})  # fmt: skip
"""Model types on which the suite makes every check (`tests/families.py`)."""


def check_config(name: str, config: Any) -> None:
    """UnknownModel, before any weight is read, for what is no causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = (getattr(config, "architectures", None) or [config.model_type])[0]
    if getattr(config, "is_encoder_decoder", False):
        raise UnknownModel(f'"{name}" ({kind}) is an encoder and a decoder: {DECODERS}.')
    if others := sorted(set(getattr(config, "sub_configs", {})) - {"text_config"}):
        raise UnknownModel(f'"{name}" ({kind}) reads more than text ({", ".join(others)}): {DECODERS}.')
    if "MaskedLM" in kind or "PreTraining" in kind:
        raise UnknownModel(f'"{name}" ({kind}) {_BOTH_WAYS}: {DECODERS}.')
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnknownModel(f'"{name}" ({kind}) is no causal language model: {DECODERS}.')


def check_weights(name: str, missing: Iterable[str]) -> None:
    """UnknownModel where weights are not in the file: transformers would draw them at random."""
    if missing := sorted(missing):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UnknownModel(
            f'"{name}" has no weights for {missing[0]}{more}: it was saved without the head of a language model, or '
            "not whole."
        )


def complete(bridge: Any) -> None:
    """Give norms without a weight (OLMo's) one of ones: the bridge multiplies with it when their scale is held."""
    for module in bridge.modules():
        norm = getattr(module, "original_component", None)
        if "hook_scale" in module._modules and norm is not None and not hasattr(norm, "weight"):
            like = next(bridge.parameters())
            norm.register_buffer("weight", torch.ones((), device=like.device, dtype=like.dtype), persistent=False)


def check_bridge(name: str, bridge: Any) -> None:
    """UnknownModel for a model that reads both ways, or whose blocks are not each attention and then an MLP."""
    kind = type(bridge.original_model).__name__
    if getattr(bridge.cfg, "attention_dir", "causal") == "bidirectional":
        raise UnknownModel(f'"{name}" ({kind}) {_BOTH_WAYS}: {DECODERS}.')
    blocks = getattr(bridge, "blocks", None)
    without = [n for n, block in enumerate(blocks or [])
               if getattr(block._modules.get("attn"), "original_component", None) is None]  # fmt: skip
    if not blocks or without:
        where = f"layer {without[0]}" if without and len(without) < len(blocks) else "its layers"
        raise UnknownModel(f'"{name}" ({kind}) has no attention in {where}: {DECODERS} by attention in every layer.')
    if any(not hasattr(getattr(block.attn, "o", None), "original_component") for block in blocks):
        raise UnknownModel(
            f'"{name}" ({kind}) has attention whose heads do not go through one matrix into the residual stream: the '
            "workbench takes heads apart by it."
        )
    last_norm = getattr(bridge._modules.get("ln_final"), "original_component", None)
    if last_norm is None and "ln1" in blocks[0]._modules:
        raise UnknownModel(
            f'"{name}" ({kind}) has the norm after each sum, not before what reads it: {DECODERS} from a residual '
            "stream that is only added to."
        )


def head_width(bridge: Any) -> int:
    """Numbers that a head writes into z, read from the output weights: of latent attention (MLA) they are not those of
    its queries and keys."""
    return _inputs(bridge.blocks[0].attn.o) // int(bridge.cfg.n_heads)


def _inputs(linear: Any) -> int:
    """Numbers that a linear map reads; Conv1D has them first, as [in, out]."""
    plain = linear.original_component
    return plain.in_features if hasattr(plain, "in_features") else plain.weight.shape[0]


def _is_latent(bridge: Any) -> bool:
    return "kv_a_proj_with_mqa" in bridge.blocks[0].attn._modules


def split_heads(bridge: Any) -> None:
    """Make `hook_z` of latent attention [prompt pos head d_head], heads as wide as what they write; the bridge cuts it
    by the width of the rotated keys, into heads that there are not."""
    if _is_latent(bridge):
        for block in bridge.blocks:
            cut = block.attn.o.hook_in.hook_conversion
            cut.n_heads, cut.d_head = int(bridge.cfg.n_heads), head_width(bridge)


def mlp_width(bridge: Any) -> int | None:
    """Neurons of an MLP, read from its output weights; None where layers have no one such matrix of one width (no MLP,
    experts)."""
    found = set()
    for block in bridge.blocks:
        out = getattr(block._modules.get("mlp"), "out", None)
        weight = getattr(getattr(out, "original_component", None), "weight", None)
        packed = hasattr(getattr(out, "original_component", None), "in_features")  # 4-bit weights are two a byte
        found.add(None if weight is None else _inputs(out) if packed else weight.numel() // int(bridge.cfg.d_model))
    return found.pop() if len(found) == 1 else None


def not_offered(bridge: Any) -> dict[str, str]:
    """Kind of hook point -> why this model has none that holds what its name says."""
    found = {}
    if bridge.cfg.attn_only:
        found |= dict.fromkeys(("pre", "post", "mlp_out", "resid_mid"), "it has attention only")
    elif mlp_width(bridge) is None:
        found |= dict.fromkeys(("pre", "post"), "its layers have experts, not one MLP of one width")
    if _is_latent(bridge):
        why = "latent attention: queries and keys are wider than what a head writes, and shared in part"
        found |= dict.fromkeys("qkv", why)
    if clip := getattr(getattr(bridge.original_model, "config", None), "clip_qkv", None):  # OLMo
        found |= dict.fromkeys("qkv", f"they are clipped to {clip:g} after the hook point, before attention reads them")
    if not _pattern_is_causal(bridge):
        found["pattern"] = (
            "attention is left whole to Hugging Face: its pattern is seen afterwards, and editing it is in vain"
        )
    if getattr(bridge.cfg, "parallel_attn_mlp", False):
        found["resid_mid"] = "attention and MLP read the same residual stream"
    if bridge.cfg.positional_embedding_type != "standard":
        found["pos_embed"] = "positions are not added to the embeddings"
    return found


def _pattern_is_causal(bridge: Any) -> bool:
    """Whether `hook_pattern` stands before the values are mixed. Where attention is left whole to Hugging Face (OPT) it
    is shown afterwards, and editing it does nothing."""
    attention = bridge.blocks[0].attn
    inside = getattr(attention.original_component, "accepts_pattern_fn", False)
    return inside or type(attention).__name__ != "AttentionBridge"
