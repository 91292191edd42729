"""EAP over all edges against the passes that it needs: two forward and one backward.

    python tests/bench/circuit.py            # one thread, 16 prompts x 16 tokens, three turns

A random model of GPT-2 small's size (32,491 edges). The passes are plain ones: logits at all positions, the gradient
of the embeddings.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from dataclasses import replace

import torch
from ablation import random_model, random_task


def passes(model, task) -> None:
    """Two forward passes and a backward one, without hooks."""
    tokens, (prompt, pos, answer, wrong) = task.tokens().to(model.device), task.reads()
    plain = model.plain or model.bridge
    with torch.no_grad():
        plain(task.tokens("corrupted").to(model.device))
    embedded = plain.get_input_embeddings()(tokens).detach().requires_grad_()
    logits = plain(inputs_embeds=embedded).logits
    torch.autograd.grad((logits[prompt, pos, answer] - logits[prompt, pos, wrong]).sum(), embedded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    from interp.causal.attribution import edge_scores

    model, task = random_model(settings.device), random_task(settings.prompts, settings.length)
    task = replace(task, prompts=[replace(p, corrupted_tokens=p.clean_tokens[::-1]) for p in task.prompts])
    passes(model, task)
    edge_scores(model, replace(task, prompts=task.prompts[:1]), method="eap")
    ratios = []
    for _ in range(settings.repeats):  # turn about, so that a busy minute hits both
        times = []
        for run in (lambda: passes(model, task), lambda: edge_scores(model, task, method="eap")):
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            started, worked = time.perf_counter(), time.process_time()
            run()
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            times.append((time.perf_counter() - started, time.process_time() - worked))
        ratios.append((times[1][0] / times[0][0], times[1][1] / times[0][1]))
        print(f"passes {times[0][0]:.2f} s, EAP {times[1][0]:.2f} s, ratio {ratios[-1][0]:.2f} (of processor seconds "
              f"{ratios[-1][1]:.2f})", flush=True)  # fmt: skip
    wall, work = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"median ratio {wall:.2f} (of processor seconds {work:.2f})")
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
