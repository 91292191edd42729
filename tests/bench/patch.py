"""Activation patching at GPT-2 small's size: the loop of `run_with_hooks` against `interp.patch`, in one run.

    python tests/bench/patch.py [--prompts 16] [--length 16] [--device cpu] [--threads 2] [--repeats 3] [--passes 192]

The residual stream by layer and position (192 places), then every head by position (`z`, 2,304 places), denoising. The
loop is what people write: clean activations in a cache, then for each place one pass of all corrupted prompts with a
hook that puts one position in, and the difference of two logits at the last position. It makes `--passes` passes, on
places spread over layers, heads and positions, and its time is scaled up to all of them: each pass is a whole one.
Weights and tokens are random: clean and corrupted prompts differ everywhere, nothing is shared. Prints ratios, the
largest difference between the two, and the peaks of memory.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
from ablation import peak, random_model, timed


def random_pairs(n_prompts: int, length: int):
    from interp.data.tasks import Prompt, Task

    rows = torch.randint(1, 50_000, (n_prompts, 2 * length + 2), generator=torch.Generator().manual_seed(1)).tolist()
    return Task(
        "random", [Prompt(r[:length], [(length - 1, r[-1])], r[length : 2 * length], r[-2]) for r in rows]
    )  # fmt: skip


def loop(model, task, places) -> np.ndarray:
    """The logit difference [place, prompt] with the clean activation at each (hook point, position, head or None)."""
    clean, corrupted = (task.tokens(which).to(model.device) for which in ("clean", "corrupted"))
    prompt, pos, answer, wrong = (t.to(model.device) for t in task.reads())
    found = []
    with torch.no_grad():
        _, cache = model.bridge.run_with_cache(clean, names_filter=lambda name: name in {site for site, *_ in places})
        for site, at, head in places:

            def put(value, hook, site=site, at=at, head=head):
                if head is None:
                    value[:, at] = cache[site][:, at]
                else:
                    value[:, at, head] = cache[site][:, at, head]
                return value

            logits = model.bridge.run_with_hooks(corrupted, fwd_hooks=[(site, put)])[prompt, pos]
            found.append((logits[prompt, answer] - logits[prompt, wrong]).cpu().numpy())
    return np.array(found)


def compare(model, task, places, settings, passes, repeats) -> None:
    from interp import patch

    spread = np.linspace(0, len(places) - 1, min(passes, len(places))).astype(int)
    shown = [places[number] for number in spread]
    loop(model, task, shown[:2])
    memory, ratios = [peak(model)], []
    for _ in range(repeats):  # turn about, so that a busy minute hits both
        (wall, work), effects = timed(lambda: patch(model, task, method="denoise", **settings), model)
        memory.append(peak(model))
        (wall_of_loop, work_of_loop), expected = timed(lambda: loop(model, task, shown), model)
        scale = len(places) / len(shown)
        ratios.append(scale * wall_of_loop / wall)
        print(f"loop {scale * wall_of_loop:.1f} s, sweep {wall:.1f} s, ratio {ratios[-1]:.2f} "
              f"(of processor seconds {scale * work_of_loop / work:.2f})", flush=True)  # fmt: skip
    found = effects.values["denoise", "logit_diff"][spread]
    print(f"median ratio {statistics.median(ratios):.2f}; largest difference {np.abs(found - expected).max():.2e} "
          f"(logit differences up to {np.abs(expected).max():.2f})")  # fmt: skip
    print(f"peak memory {memory[0]:.0f} MB after two passes of the loop, {max(memory[1:]):.0f} MB after", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--passes", type=int, default=192, help="Of the loop; its time is scaled up to all places.")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    from interp import patch

    model, task = random_model(settings.device), random_pairs(settings.prompts, settings.length)
    patch(model, task, site="11.resid_pre")
    layers, positions = range(12), range(settings.length)
    print(f"resid_pre by layer and position, {12 * settings.length} places")
    places = [(f"blocks.{layer}.hook_resid_pre", at, None) for layer in layers for at in positions]
    compare(model, task, places, {"site": "resid_pre"}, settings.passes, settings.repeats)
    print(f"z by head and position, {144 * settings.length} places")
    places = [(f"blocks.{layer}.attn.hook_z", at, head) for layer in layers for head in range(12) for at in positions]
    compare(model, task, places, {"site": "z", "by": ("layer", "head", "position")}, settings.passes, settings.repeats)


if __name__ == "__main__":
    main()
