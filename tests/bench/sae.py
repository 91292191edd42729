"""How fast a dictionary trains: ours against a plain dense step, sae-lens and dictionary_learning, side by side.

    python tests/bench/sae.py [--libraries /path/to/venv/bin/python] [--threads 2] [--rounds 7]

Each contender is a process of its own that trains on the same activations when it is told to, a few steps at a time in
turn, so that a busy machine slows all of them alike; times are of the processor (on one thread: what the wall clock
would show on an idle machine), ratios are of medians. Libraries run in the Python of --libraries,
which need not have our dependencies. AuxK is on, with a tenth of the latents held dead (and once with none); dead
tracking, clipping, Adam and the loss's gradient are part of a step, reading activations is not.
Peak memory is that of the process, less what it used before its first step.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent
OURS, LIBRARIES = ("ours", "ours-bf16", "plain"), ("sae-lens", "dictionary_learning")


def activations(d_in: int, n: int) -> torch.Tensor:
    """Sparse sums of 2 d_in directions, off centre, with noise."""
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(2 * d_in, d_in, generator=g), dim=1)
    amounts = torch.rand(n, 2 * d_in, generator=g) * (torch.rand(n, 2 * d_in, generator=g) < 0.02)
    return amounts @ directions + 0.02 * torch.randn(n, d_in, generator=g) + 0.1


def ours(s, x, kind):
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from dense_sae import DenseTrainer

    from sae.config import TrainConfig
    from sae.trainer import Trainer

    config = TrainConfig(
        site="s", architecture=s.architecture, d_sae=s.d_sae, k=s.k, batch_size=s.batch, n_tokens=1000 * s.batch,
        bf16=kind == "ours-bf16",
    )  # fmt: skip
    trainer = Trainer(config, x[:4096])
    trainer = DenseTrainer(trainer) if kind == "plain" else trainer

    def step(batch):
        trainer.silent[: s.dead] = 10**9
        trainer.update(batch)

    return step


def sae_lens(s, x, kind):
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    model, config = {
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    }[s.architecture]
    sae = model(config(d_in=s.d_in, d_sae=s.d_sae, k=s.k))  # its default: dense activations
    steps = SAETrainerConfig(total_training_samples=1000 * s.batch, train_batch_size_samples=s.batch, lr_end=3e-5)
    trainer = SAETrainer(steps, sae, data_provider=iter([]))

    def step(batch):
        trainer.n_forward_passes_since_fired[: s.dead] = 10**9
        trainer.step(batch)

    return step


def dictionary_learning(s, x, kind):
    sys.modules.setdefault("nnsight", types.SimpleNamespace(LanguageModel=None))  # it reads models, not used here
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    kind = {"topk": TopKTrainer, "batchtopk": BatchTopKTrainer}[s.architecture]
    trainer = kind(
        steps=1000, activation_dim=s.d_in, dict_size=s.d_sae, k=s.k, layer=0, lm_name="none", device="cpu", seed=0,
        warmup_steps=10,
    )  # fmt: skip
    numbers = iter(range(10**9))

    def step(batch):
        trainer.num_tokens_since_fired[: s.dead] = 10**9
        trainer.update(next(numbers), batch)

    return step


MAKERS = {
    "ours": ours,
    "ours-bf16": ours,
    "plain": ours,
    "sae-lens": sae_lens,
    "dictionary_learning": dictionary_learning,
}


def worker(s) -> None:
    """Told a number of steps on stdin, make them and answer with seconds and peak bytes, as JSON."""
    torch.set_num_threads(s.threads)
    x = torch.load(s.data, weights_only=True)
    step = MAKERS[s.worker](s, x, s.worker)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"ready": True}), flush=True)
    at = 0
    for line in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            at = at + s.batch if at + 2 * s.batch <= len(x) else 0
            step(x[at : at + s.batch])
        wall, seconds = time.perf_counter() - started, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps({"seconds": wall if s.threads > 1 else seconds, "peak": peak * 1024}), flush=True)


class Contender:
    def __init__(self, kind: str, s, data: Path, architecture: str, dead: int) -> None:
        python = s.libraries if kind in LIBRARIES else sys.executable
        numbers = {name: getattr(s, name) for name in ("d_in", "d_sae", "k", "batch", "threads")}
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in numbers.items()]
        command = [python, __file__, f"--worker={kind}", f"--data={data}", f"--architecture={architecture}", *flags]
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [*command, f"--dead={dead}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.seconds, self.peak = [], 0.0
        self._answer()

    def _answer(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self.errors.seek(0)
        raise RuntimeError(self.errors.read().strip().splitlines()[-1])

    def train(self, steps: int, *, counts: bool = True) -> None:
        print(steps, file=self.process.stdin, flush=True)
        answer = self._answer()
        self.peak = answer["peak"]
        if counts:
            self.seconds.append(answer["seconds"] / steps)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(s, data: Path, architecture: str, dead: int) -> None:
    contenders = {}
    for kind in s.kinds.split(","):
        if kind in LIBRARIES and not s.libraries:
            continue
        try:
            contenders[kind] = Contender(kind, s, data, architecture, dead)
            contenders[kind].train(2, counts=False)
        except RuntimeError as error:
            contenders.pop(kind, None)
            print(f"  {kind}: left out: {error}")
    for _ in range(s.rounds):
        for contender in contenders.values():
            contender.train(s.steps)
    base = statistics.median(contenders["ours"].seconds)
    print(f"\n{architecture}, {dead} of {s.d_sae} latents dead, batch {s.batch}, {s.threads} threads")
    for kind, contender in contenders.items():
        middle, low, high = (1000 * f(contender.seconds) for f in (statistics.median, min, max))
        print(
            f"  {kind:20} {middle:7.1f} ms a step ({low:.0f} to {high:.0f})  {1000 * s.batch / middle:9,.0f} tokens/s  "
            f"ours is {middle / 1000 / base:5.2f}x  peak {contender.peak / 2**20:5.0f} MiB"
        )
        contender.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", help="a Python that has sae-lens and dictionary_learning")
    parser.add_argument("--kinds", default=",".join(OURS + LIBRARIES))
    parser.add_argument("--architectures", default="topk,batchtopk")
    for name, value in {
        "d-in": 512,
        "d-sae": 4096,
        "k": 32,
        "batch": 2048,
        "threads": 1,
        "rounds": 7,
        "steps": 2,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    parser.add_argument("--architecture", help=argparse.SUPPRESS)
    parser.add_argument("--dead", type=int, help=argparse.SUPPRESS)
    s = parser.parse_args()
    if s.worker:
        return worker(s)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "activations.pt"
        torch.save(activations(s.d_in, 8 * s.batch), data)
        for architecture in s.architectures.split(","):
            for dead in (s.d_sae // 10, 0):
                compare(s, data, architecture, dead)


if __name__ == "__main__":
    main()
