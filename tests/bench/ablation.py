"""All heads of a model of GPT-2 small's size ablated: the loop of `run_with_hooks` against `interp.ablate`, in one run.

    python tests/bench/ablation.py [--prompts 16] [--length 16] [--device cpu] [--threads 2] [--neurons]

The loop is what people write: for each head one pass of all prompts with a hook on `hook_z`, then the difference of two
logits at the last position. Weights are random, and so are the tokens: nothing is shared between prompts. Prints the
ratio, the largest difference between the two, and the peaks of memory. `--neurons` estimates the time of all neurons.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import numpy as np
import torch


def random_model(device: str):
    """A GPT-2 of 12 layers, 12 heads, d_model 768, 50,257 tokens, as `load_model` would give it."""
    import tempfile

    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from interp.decoder.loading import load_model

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
        end = "<|endoftext|>"
        words = Tokenizer(models.WordLevel({end: 0, "a": 1}, unk_token=end))
        PreTrainedTokenizerFast(tokenizer_object=words, bos_token=end, eos_token=end, unk_token=end).save_pretrained(
            folder
        )
        return load_model(folder, device=device)


def random_task(n_prompts: int, length: int):
    from interp.data.tasks import Prompt, Task

    rows = torch.randint(1, 50_000, (n_prompts, length + 2), generator=torch.Generator().manual_seed(1)).tolist()
    return Task("random", [Prompt(row[:length], [(length - 1, row[-1])], None, row[-2]) for row in rows])


def loop(model, task, heads) -> np.ndarray:
    """Effects on the logit difference [head, prompt] of zeroing each head: one pass each."""
    tokens = task.tokens().to(model.device)
    prompt, pos, answer, wrong = (t.to(model.device) for t in task.reads())
    effects = []
    with torch.no_grad():
        clean = model.bridge(tokens)[prompt, pos]
        clean = clean[prompt, answer] - clean[prompt, wrong]
        for layer, head in heads:

            def zero(value, hook, head=head):
                value[:, :, head] = 0
                return value

            logits = model.bridge.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", zero)])[prompt, pos]
            effects.append((logits[prompt, answer] - logits[prompt, wrong] - clean).cpu().numpy())
    return np.array(effects)


def timed(function, model):
    """Seconds, seconds of the processor and the result; on a GPU until it has finished."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started, worked = time.perf_counter(), time.process_time()
    result = function()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return np.array([time.perf_counter() - started, time.process_time() - worked]), result


def peak(model) -> float:
    """Megabytes: of the process so far, or of the GPU since the last reset."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--neurons", action="store_true")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    from interp import ablate

    model, task = random_model(settings.device), random_task(settings.prompts, settings.length)
    heads = [(layer, head) for layer in range(12) for head in range(12)]
    loop(model, task, heads[:2])
    memory = [peak(model)]
    ablate(model, task, components="L11.heads", method="zero")
    ours, theirs = [], []
    for _ in range(settings.repeats):  # turn about, so that a busy minute hits both
        seconds, found = timed(lambda: ablate(model, task, components="heads", method="zero"), model)
        ours.append(seconds)
        memory.append(peak(model))
        seconds, expected = timed(lambda: loop(model, task, heads), model)
        theirs.append(seconds)
        (wall, work), (wall_of_loop, work_of_loop) = ours[-1], theirs[-1]
        print(f"loop {wall_of_loop:.1f} s, sweep {wall:.1f} s, ratio {wall_of_loop / wall:.2f} "
              f"(of processor seconds {work_of_loop / work:.2f})", flush=True)  # fmt: skip
    effects = found.values["zero", "logit_diff"] - found.baseline["logit_diff"]
    print(f"median ratio {statistics.median(a[0] / b[0] for a, b in zip(theirs, ours, strict=True)):.2f}")
    largest, most = np.abs(effects - expected).max(), np.abs(expected).max()
    print(f"largest difference of an effect {largest:.2e} (effects up to {most:.2f})")
    print(f"peak memory {memory[0]:.0f} MB after two passes of the loop, {memory[1]:.0f} MB after the sweep")
    if settings.neurons:
        plan_neurons(model, task)


def plan_neurons(model, task) -> None:
    """How long all neurons take: of each layer 64 are measured, spread over it."""
    from interp import ablate

    total = 0.0
    for layer in range(12):
        some = [f"L{layer}N{n}" for n in range(0, 3072, 48)]
        seconds, _ = timed(lambda some=some: ablate(model, task, components=some, method="zero"), model)
        total += seconds[0] * 48
    print(f"12 x 3072 neurons: about {total / 60:.0f} min")


if __name__ == "__main__":
    main()
