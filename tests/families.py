"""Tiny random models of the families that people use: 2 layers, 4 heads, d_model 32, with a tokenizer.

Sizes are chosen so that a wrong shape or a forgotten setting shows: fewer key-value heads than heads, a head's width
that is not d_model / n_heads, a sliding window of 4 where the check reads 12 tokens, soft caps that bend.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

IDS = {"vocab_size": 120, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "max_position_embeddings": 32}
WIDE = SIZES | {"intermediate_size": 48, "initializer_range": 0.2} | IDS
GROUPED = WIDE | {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ALTERNATING = ["sliding_attention", "full_attention"]
LATENT = {
    "q_lora_rank": 12, "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 6,
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
FACTORS = {
    "residual_multiplier": 0.3, "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "logits_scaling": 4.0,
}  # fmt: skip
FALCON = {key: value for key, value in WIDE.items() if key not in ("intermediate_size", "max_position_embeddings")}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": (
        "GPT2Config", {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 32, "initializer_range": 0.2} | IDS,
    ),
    "Pythia (GPT-NeoX)": ("GPTNeoXConfig", WIDE | {"rotary_pct": 0.25}),
    "GPT-NeoX, one after the other": ("GPTNeoXConfig", WIDE | {"use_parallel_residual": False}),
    "OPT": ("OPTConfig", SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2} | IDS),
    "BLOOM": ("BloomConfig", {"n_layer": 2, "n_head": 4, "hidden_size": 32, "initializer_range": 0.2} | IDS),
    "Llama": ("LlamaConfig", GROUPED),
    "Mistral": ("MistralConfig", GROUPED | {"sliding_window": 4}),
    "Qwen 2": ("Qwen2Config", GROUPED),
    "Qwen 3": ("Qwen3Config", GROUPED | {"head_dim": 12}),
    "Gemma 2": (
        "Gemma2Config",
        GROUPED | {"head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 12, "attn_logit_softcapping": 2.0,
                   "final_logit_softcapping": 3.0},
    ),
    "Gemma 3": (
        "Gemma3TextConfig",
        GROUPED | {"head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 12, "layer_types": ALTERNATING},
    ),
    "Phi 3": ("Phi3Config", GROUPED),
    "Mixtral": ("MixtralConfig", GROUPED | {"num_local_experts": 4}),
    "Qwen 2 MoE": ("Qwen2MoeConfig", GROUPED | EXPERTS | {"shared_expert_intermediate_size": 40}),
    "Qwen 3 MoE": ("Qwen3MoeConfig", GROUPED | EXPERTS | {"head_dim": 12}),
    "DeepSeek V2": ("DeepseekV2Config", WIDE | LATENT | {"num_key_value_heads": 4}),
    "DeepSeek V3": ("DeepseekV3Config", WIDE | LATENT | {"num_key_value_heads": 4}),
    "OLMo": ("OlmoConfig", GROUPED),
    "OLMo 2": ("Olmo2Config", GROUPED),
    "OLMoE": ("OlmoeConfig", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "Granite": ("GraniteConfig", GROUPED | FACTORS),
    "Granite MoE": ("GraniteMoeConfig", GROUPED | FACTORS | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Falcon (7B)": ("FalconConfig", FALCON),
    "GPT-J": (
        "GPTJConfig",
        {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 32, "rotary_dim": 4, "initializer_range": 0.2} | IDS,
    ),
    "Phi (1, 2)": ("PhiConfig", WIDE | {"partial_rotary_factor": 0.5}),
    "StableLM": ("StableLmConfig", GROUPED | {"use_qkv_bias": True}),
    "Cohere": ("CohereConfig", GROUPED | {"logit_scale": 0.3}),
    "Cohere 2": (
        "Cohere2Config", GROUPED | {"logit_scale": 0.3, "sliding_window": 4, "layer_types": ALTERNATING},
    ),
    "StarCoder 2": ("Starcoder2Config", GROUPED | {"sliding_window": 4}),
    "SmolLM 3": ("SmolLM3Config", GROUPED | {"no_rope_layers": [1, 0]}),
    "GLM 4": ("Glm4Config", GROUPED | {"head_dim": 8, "attention_bias": True}),
    "GPT-OSS": (
        "GptOssConfig",
        GROUPED | {"head_dim": 12, "sliding_window": 4, "layer_types": ALTERNATING, "num_local_experts": 4,
                   "num_experts_per_tok": 2},
    ),
    "Llama 4 (text)": (
        "Llama4TextConfig",
        GROUPED | {"head_dim": 12, "intermediate_size_mlp": 40, "num_local_experts": 4, "moe_layers": [1],
                   "no_rope_layers": [1, 0], "attention_chunk_size": 4},
    ),
    "BERT": ("BertConfig", WIDE),
    "T5": ("T5Config", {"num_layers": 2, "num_heads": 4, "d_model": 32, "d_kv": 8, "d_ff": 48} | IDS),
    "Mamba": ("MambaConfig", {"num_hidden_layers": 2, "hidden_size": 32} | IDS),
    "RWKV": ("RwkvConfig", {"num_hidden_layers": 2, "hidden_size": 32, "attention_hidden_size": 32} | IDS),
    "Qwen3-Next": (
        "Qwen3NextConfig", GROUPED | EXPERTS | {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
        "shared_expert_intermediate_size": 40},
    ),
    "Falcon (40B)": ("FalconConfig", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "JetMoE": ("JetMoeConfig", GROUPED | {"kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Gemma 3n": (
        "Gemma3nTextConfig",
        GROUPED | {"head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 120, "laurel_rank": 4,
                   "num_kv_shared_layers": 0, "layer_types": ALTERNATING, "activation_sparsity_pattern": [0.0, 0.0]},
    ),
}  # fmt: skip
"""Name -> transformers' config class, and its settings."""

NO_DECODERS = {
    "BERT": "an encoder, whose positions see those after", "T5": "an encoder and a decoder",
    "Mamba": "no attention in its layers", "RWKV": "no attention in its layers",
    "Qwen3-Next": "no attention in layer 0", "JetMoE": "heads do not go through one matrix",
    "Gemma 3n": "cannot be opened by TransformerLens", "Falcon (40B)": "cannot be opened by TransformerLens",
}  # fmt: skip
"""Families that are refused as they are loaded, and the words for it."""
DECODERS = [name for name in FAMILIES if name not in NO_DECODERS]

COLUMNS = {
    "logits": ("logits are those", "passes without hooks", "no position sees", "logits follow"),
    "heads": ("a head zeroed", "hook point z"),
    "patterns": ("pattern:",),
    "neurons": ("hook point post",),
    "sweeps": ("a pass resumed", "an ablation sweep", "a patching sweep", "what is recorded"),
    "generation": ("with and without a cache",),
    "slopes": ("slopes by autograd",),
    "heads add up": ("heads' outputs",),
    "circuits": ("a graph of edges", "EAP"),
}
"""Columns of the README's table, and how the checks begin that they stand on."""


def row(name: str, report: Any) -> str:
    """A family's line of the README's table: yes where the checks pass, no where the workbench refuses; and why."""
    found = []
    for begins in COLUMNS.values():
        lines = [line for line in report.lines if line.what.startswith(begins)]
        verdicts = {line.verdict for line in lines}
        found.append("WRONG" if "WRONG" in verdicts else "no" if "refused" in verdicts else "yes")
    shown = tuple(begin for begins in COLUMNS.values() for begin in begins) + ("hook point q",)
    reasons = [line.why.partition("has no graph of edges: ")[2].rstrip(".") or line.why
               for line in report.lines if line.verdict == "refused" and line.what.startswith(shown)]  # fmt: skip
    slow = [line.why for line in report.lines if line.verdict == "ok" and line.what.startswith("a pass resumed")]
    return f"| {name} | {' | '.join(found)} | {'; '.join(dict.fromkeys(filter(None, reasons + slow)))} |"


def header() -> list[str]:
    return [f"| family | {' | '.join(COLUMNS)} | because |", "| --- " * (len(COLUMNS) + 2) + "|"]


def build(name: str, folder: Path, **settings: Any) -> Path:
    """A random model of a family as a Hugging Face directory; `settings` go over those of `FAMILIES`."""
    import torch
    import transformers

    kind, own = FAMILIES[name]
    config = getattr(transformers, kind)(**own | settings)
    makers: dict[str, Callable] = {
        "BERT": transformers.BertForMaskedLM, "T5": transformers.T5ForConditionalGeneration,
    }  # fmt: skip
    torch.manual_seed(0)
    model = makers.get(name, transformers.AutoModelForCausalLM.from_config)(config)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1:  # biases are made 0 and norms 1: what is left out of either would not show
                value += 0.2 * torch.randn_like(value)
    model.save_pretrained(folder)
    tokenizer(folder)
    return folder


def tokenizer(folder: Path) -> None:
    """A tokenizer of 120 words, one a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<end>": 0} | {f"w{number}": number for number in range(1, 120)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<end>")
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
