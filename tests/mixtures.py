"""Tiny random mixtures of experts, and a mixture written by hand: one token and one expert at a time."""

import torch

N_LAYERS, N_CHOSEN = 2, 2
SILU = torch.nn.functional.silu


def config_of(family, n_tokens):
    import transformers

    ids = {"vocab_size": n_tokens, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {"num_hidden_layers": N_LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32,
             "intermediate_size": 48, "max_position_embeddings": 32, "initializer_range": 0.3}  # fmt: skip
    chosen = {"num_experts_per_tok": N_CHOSEN}
    small = chosen | {"moe_intermediate_size": 24}
    latent = {"q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
              "n_shared_experts": 1, "first_k_dense_replace": 0, "num_key_value_heads": 4}  # fmt: skip
    own = {
        "Mixtral": chosen | {"num_local_experts": 4},
        "Qwen2Moe": small | {"num_experts": 4, "shared_expert_intermediate_size": 40},
        "Qwen3Moe": small | {"num_experts": 4, "head_dim": 8, "norm_topk_prob": True},
        "DeepseekV2": small | latent | {"n_routed_experts": 4, "first_k_dense_replace": 1},
        "DeepseekV3": small | latent | {"n_routed_experts": 8, "n_group": 2, "topk_group": 1},
        "GptOss": chosen | {"num_local_experts": 4, "head_dim": 8},
    }[family]
    return getattr(transformers, f"{family}Config")(**(sizes | ids | own))


def write(family, folder, tokenizer):
    """A random model of a family into a folder, with a tokenizer."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family, len(tokenizer)))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "bias" in name:  # which are 0 in a new model
            torch.nn.init.normal_(tensor, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def chosen_by_hand(family, logits, bias, forbidden):
    """Expert -> weight, of one token."""
    k = N_CHOSEN
    if family == "DeepseekV3":  # sigmoid; the better of two groups; the bias is for the choice alone
        scores = logits.sigmoid()
        rank = (scores + bias).tolist()
        if forbidden is not None:
            rank[forbidden] = -1e9
        groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
        group = max(groups, key=lambda group: sum(sorted(rank[e] for e in group)[-2:]))
        best = sorted(group, key=lambda e: -rank[e])[:k]
        total = sum(scores[e] for e in best)
        return {e: scores[e] / total * 2.5 for e in best}
    if forbidden is not None:
        logits = logits.index_fill(0, torch.tensor(forbidden), -torch.inf)
    probs = logits.softmax(0)
    best = sorted(range(len(probs)), key=lambda e: -probs[e])[:k]
    total = 1 if family in ("Qwen2Moe", "DeepseekV2") else sum(probs[e] for e in best)
    return {e: probs[e] / total for e in best}


def by_hand(family, block, change, seen):
    """The forward of a mixture: `change` is (method, expert) or None; what each expert writes to each token into
    `seen`. The mean is given in place of the method."""

    def expert(e, x):
        if family == "GptOss":
            gate_up = x @ block.experts.gate_up_proj[e] + block.experts.gate_up_proj_bias[e]
            gate, up = gate_up[::2].clamp(max=7), gate_up[1::2].clamp(-7, 7)
            inner = (up + 1) * gate * torch.sigmoid(1.702 * gate)
            return inner @ block.experts.down_proj[e] + block.experts.down_proj_bias[e]
        gate, up = (block.experts.gate_up_proj[e] @ x).chunk(2)
        return block.experts.down_proj[e] @ (SILU(gate) * up)

    def mlp(module, x):
        return module.down_proj(SILU(module.gate_proj(x)) * module.up_proj(x))

    def forward(hidden):
        router = block.router if family == "GptOss" else block.gate
        method, target = change or (None, None)
        out = torch.zeros_like(hidden)
        for at in [(row, pos) for row in range(hidden.shape[0]) for pos in range(hidden.shape[1])]:
            x = hidden[at]
            logits = router.weight @ x + (router.bias if family == "GptOss" else 0)
            bias = getattr(router, "e_score_correction_bias", None)
            weights = chosen_by_hand(family, logits, bias, target if method == "forbid" else None)
            if method == "force" and target not in weights:
                weights[target] = weights.pop(min(weights, key=weights.get))
            for e, weight in weights.items():
                written = weight * expert(e, x)
                seen.setdefault((*at, e), written)
                if e == target and method != "forbid" and method != "force":
                    written = method if isinstance(method, torch.Tensor) else torch.zeros_like(x)
                out[at] += written
            if family == "Qwen2Moe":
                out[at] += torch.sigmoid(block.shared_expert_gate(x)) * mlp(block.shared_expert, x)
            if family.startswith("Deepseek"):
                out[at] += mlp(block.shared_experts, x)
        return (out, None) if family == "GptOss" else out

    return forward


@torch.no_grad()
def loss_by_hand(family, hf, task, layer, change):
    """Mean loss of each prompt with one mixture by hand, and what its experts wrote to each token of each prompt."""
    losses, wrote = [], {}
    block = hf.model.layers[layer].mlp
    for number, prompt in enumerate(task.prompts):
        seen = {}
        block.forward = by_hand(family, block, change, seen)
        log_probs = hf(torch.tensor([prompt.clean_tokens])).logits[0].log_softmax(-1)
        del block.forward
        losses.append(-sum(log_probs[pos, token] for pos, token in prompt.targets) / len(prompt.targets))
        wrote |= {(number, pos, e): written for (_, pos, e), written in seen.items()}
    return torch.stack(losses), wrote
