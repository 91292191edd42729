"""A LoRA of the bundled model, trained on a task's answers, as a peft directory: something to compare with.

    nice python tests/bench/lora.py --task ioi --wrong --steps 100 --to giver
    interp compare bundled giver --task ioi --n 200 --seed 1 --along 7 --text bundled --out giver

100 steps of 32 prompts take a minute or two on one core. It is gradient descent on W + scale B A, in twenty lines,
and needs no peft; what comes out, peft loads.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.func import functional_call

import interp
from interp.decoder.weights import parameters

TARGETS = ("attn.c_attn", "mlp.c_fc", "mlp.c_proj")


def train(task_name: str, to: Path, *, steps: int, wrong: bool, rank: int = 8, alpha: int = 16, rate: float = 1e-3):
    torch.manual_seed(0)
    model = interp.load_model("bundled", device="cpu")
    task = interp.load_task(task_name, model, n=2000, seed=100)
    tokens, (prompt, pos, answer, other) = task.tokens("clean"), task.reads()
    answer = other if wrong else answer
    own = {name: weight.detach() for name, weight in parameters(model).items()}
    names = [name for name in own if name.removesuffix(".weight").endswith(TARGETS)]
    A = {name: (torch.randn(rank, own[name].shape[0]) / own[name].shape[0] ** 0.5).requires_grad_() for name in names}
    B = {name: torch.zeros(own[name].shape[1], rank, requires_grad=True) for name in names}
    optimizer = torch.optim.AdamW([*A.values(), *B.values()], rate, weight_decay=0.0)
    started = time.perf_counter()
    for step in range(steps):
        some = torch.randint(0, len(prompt), (32,))
        adapted = own | {name: own[name] + alpha / rank * (B[name] @ A[name]).T for name in names}
        logits = functional_call(model.plain, adapted, (tokens[prompt[some]],), {"use_cache": False}).logits
        loss = torch.nn.functional.cross_entropy(logits[torch.arange(len(some)), pos[some]], answer[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}, {time.perf_counter() - started:.0f} s", flush=True)
    to.mkdir(parents=True)
    tensors = {}
    for name in names:
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{stem}.lora_A.weight": A[name].detach(), f"{stem}.lora_B.weight": B[name].detach()}
    save_file(tensors, to / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "bundled", "r": rank,
              "lora_alpha": alpha, "target_modules": list(TARGETS), "fan_in_fan_out": True, "bias": "none"}  # fmt: skip
    (to / "adapter_config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--wrong", action="store_true", help="Train on the wrong answers: the giver, not the receiver.")
    given = parser.parse_args()
    train(given.task, given.to, steps=given.steps, wrong=given.wrong)
