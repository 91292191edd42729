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
    "BERT": ("BertConfig", WIDE),
    "T5": ("T5Config", {"num_layers": 2, "num_heads": 4, "d_model": 32, "d_kv": 8, "d_ff": 48} | IDS),
}  # fmt: skip
"""Name -> transformers' config class, and its settings."""

NO_DECODERS = ("BERT", "T5")
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
    "circuits": ("a graph of edges", "EAP scores"),
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
