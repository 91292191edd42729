"""LoRA directories in peft's form, written without peft."""

import json
from pathlib import Path


def write_lora(folder, modules, *, base=None, seed=0, change=None, **config):
    """Random A and B for `modules` (name -> (d_in, d_out)), large enough to be seen in the logits. `change`: of the
    tensors, before they are written."""
    import torch
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True)
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": 4, "lora_alpha": 8,
            "target_modules": sorted({".".join(name.split(".")[-2:]) for name in modules}), "bias": "none",
            "fan_in_fan_out": False, "modules_to_save": None, "use_dora": False} | config  # fmt: skip
    draw, tensors, rank = torch.Generator().manual_seed(seed), {}, said["r"]
    for name, (d_in, d_out) in modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, d_in, generator=draw) / d_in**0.5
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(d_out, rank, generator=draw) / rank**0.5
    save_file(change(tensors) if change else tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


_GPT2 = {"attn.c_attn": (32, 96), "mlp.c_proj": (128, 32)}
GPT2 = {f"transformer.h.{layer}.{name}": size for layer in range(2) for name, size in _GPT2.items()}
"""Modules of the tiny model."""
_LLAMA = {"self_attn.q_proj": (32, 32), "self_attn.v_proj": (32, 16), "mlp.up_proj": (32, 48)}
LLAMA = {f"model.layers.{layer}.{name}": size for layer in range(3) for name, size in _LLAMA.items()}
_NEOX = {"attention.query_key_value": (32, 96), "mlp.dense_4h_to_h": (48, 32)}
NEOX = {f"gpt_neox.layers.{layer}.{name}": size for layer in range(3) for name, size in _NEOX.items()}
"""Modules of `conftest.config_of`'s models."""
