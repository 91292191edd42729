"""Train a dictionary on one site of a store, continuing exactly where a killed run stopped.

The recipe is that of arXiv:2406.04093 and dictionary_learning: inputs scaled so that E|x - b_dec|^2 = 1 (folded into
the biases at the end), b_dec starting at the geometric median, encoder starting as the decoder's transpose, unit-norm
decoder rows with the radial gradient taken out, Adam, AuxK for dead latents. Rows whose token is BOS are left out.

A checkpoint holds the weights, Adam's moments and the dead counters; the order of the rows follows from seed and epoch.
On a CPU, with the same number of threads, a continued run ends in bitwise the same weights as one never stopped.
"""

from __future__ import annotations

import csv
import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from interp import runs
from interp.errors import InputError
from interp.store.reading import Store
from sae import files
from sae.dictionary import Dictionary, check_architecture
from sae.evaluation import Fit, read_metrics
from sae.losses import auxk, reconstruction, remove_radial
from sae.sparse import decode_active

LOG_COLUMNS = ("step", "tokens", "loss", "fvu", "aux", "l0", "dead", "lr")
_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")
_SAMPLE = 32_768  # rows behind b_dec's start and the input's scale


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training."""

    site: str
    """Full hook point name."""
    architecture: str = "topk"
    d_sae: int = 4096
    """Number of latents."""
    k: int = 32
    """Latents active at each token, at most."""
    n_tokens: int = 1_000_000
    """Rows seen, counting each epoch's; rounded down to whole batches."""
    batch_size: int = 1024
    lr: float = 4e-4
    """Adam's step after warm-up, at inputs of mean square norm 1."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises from 0, at most 1000 steps."""
    decay: float = 0.2
    """Share of the steps, the last ones, over which it falls to 0."""
    aux_weight: float = 1 / 32
    """Weight of the AuxK loss."""
    k_aux: int = 0
    """Dead latents that AuxK uses at a token; 0 means half of d_in, as in the paper."""
    dead_after: int = 0
    """Tokens without firing after which a latent is dead; 0 means a tenth of n_tokens, at most 10 million."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_architecture(self.architecture)
        for name in ("d_sae", "k", "n_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1; {getattr(self, name)} was given.")
        if self.k > self.d_sae:
            raise InputError(f"k ({self.k}) is more than d_sae ({self.d_sae}): use at most {self.d_sae}.")
        if not 0 < self.lr < math.inf:
            raise InputError(f"lr must be above 0; {self.lr} was given.")
        if self.n_tokens < self.batch_size:
            raise InputError(f"n_tokens ({self.n_tokens}) is less than one batch ({self.batch_size}).")

    @property
    def n_steps(self) -> int:
        return self.n_tokens // self.batch_size

    @property
    def dead_tokens(self) -> int:
        return self.dead_after or min(10_000_000, self.n_tokens // 10)

    def rate(self, step: int) -> float:
        """The learning rate of a step, the first being 0."""
        rise = min(1000, self.warmup * self.n_steps)
        left = (self.n_steps - step) / max(1.0, self.decay * self.n_steps)
        return self.lr * min(1.0, (step + 1) / max(1.0, rise), left)


class Trainer:
    """The state of a training, in scaled units, and one step of it."""

    def __init__(self, config: TrainConfig, sample: Float[Tensor, "row d_in"]) -> None:
        """Weights from `config.seed` and a sample of the rows."""
        d_in, device = sample.shape[1], sample.device
        centre = geometric_median(sample)
        mean_square = (sample - centre).square().sum(1).mean()
        if not torch.isfinite(mean_square) or mean_square == 0:
            raise InputError(f"{config.site}: activations that do not vary, or are not finite, cannot be trained on.")
        self.config, self.step = config, 0
        self.scale = mean_square.rsqrt()
        directions = torch.randn(config.d_sae, d_in, generator=torch.Generator().manual_seed(config.seed))
        W_dec = (directions / directions.norm(dim=1, keepdim=True)).to(device)
        zeros = torch.zeros(config.d_sae, device=device)
        self.dct = Dictionary(W_dec.T.contiguous(), zeros, W_dec, centre * self.scale, k=config.k, site=config.site)
        self.adam = torch.optim.Adam(self.dct.parameters(), lr=config.lr, fused=True)
        self.silent = torch.zeros(config.d_sae, dtype=torch.long, device=device)

    def update(self, x: Float[Tensor, "token d_in"]) -> dict[str, Tensor]:
        """One step on activations in the model's units. Returns the loss and its parts as scalar tensors."""
        dct, config = self.dct, self.config
        x = x * self.scale
        pre = dct.pre_activations(x)
        values, indices = pre.topk(config.k, dim=-1, sorted=False)
        values = values.relu()
        x_hat = decode_active(values, indices, dct.W_dec) + dct.b_dec
        error = reconstruction(x, x_hat)
        dead = self.silent > config.dead_tokens
        aux = auxk(x - x_hat, pre, dead, dct.W_dec, k_aux=config.k_aux or max(1, dct.d_in // 2))
        loss = error + config.aux_weight * aux
        self.adam.zero_grad()
        loss.backward()
        remove_radial(dct.W_dec.grad, dct.W_dec)
        torch.nn.utils.clip_grad_norm_(dct.parameters(), 1.0)
        for group in self.adam.param_groups:
            group["lr"] = config.rate(self.step)
        self.adam.step()
        with torch.no_grad():
            dct.W_dec /= dct.W_dec.norm(dim=1, keepdim=True)
            fires = torch.bincount(indices[values > 0], minlength=dct.d_sae)
            self.silent = torch.where(fires > 0, 0, self.silent + len(x))
            variance = reconstruction(x, x.mean(0).expand_as(x))
        self.step += 1
        report = {"loss": loss, "fvu": error / variance, "aux": aux, "l0": fires.sum() / len(x), "dead": dead.sum()}
        return {name: value.detach() for name, value in report.items()}

    def finished(self) -> Dictionary:
        """The dictionary in the model's units: a latent keeps its unit-norm decoder row, the biases take the scale."""
        weights = {name: getattr(self.dct, name).detach().clone() for name in _WEIGHTS}
        weights["b_enc"] /= self.scale
        weights["b_dec"] /= self.scale
        return Dictionary(**weights, k=self.dct.k, site=self.dct.site).requires_grad_(False)

    def state(self) -> dict[str, Tensor]:
        """All that a step changes, by name."""
        tensors = {"silent": self.silent, "scale": self.scale}
        for name in _WEIGHTS:
            parameter = getattr(self.dct, name)
            tensors |= {name: parameter} | {f"{name}.{key}": v for key, v in self.adam.state[parameter].items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Undo of `state`."""
        device = self.scale.device
        self.silent, self.scale, self.step = tensors["silent"].to(device), tensors["scale"].to(device), step
        for name in _WEIGHTS:
            parameter = getattr(self.dct, name)
            parameter.data.copy_(tensors[name])
            moments = {key: tensors[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            self.adam.state[parameter] = {key: value.to(device) for key, value in moments.items()}


def geometric_median(
    points: Float[Tensor, "row d_in"], *, n_steps: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, " d_in"]:
    """The point with the least summed distance to all, by Weiszfeld's iteration; an outlier hardly moves it."""
    guess = points.mean(0)
    for _ in range(n_steps):
        distance = (points - guess).norm(dim=1).clamp_min(1e-12)
        previous, guess = guess, (points / distance.unsqueeze(1)).sum(0) / (1 / distance).sum()
        if (guess - previous).norm() <= tolerance * guess.norm():
            break
    return guess


def _batches(store: Store, config: TrainConfig, *, first_step: int = 0) -> Iterator[Float[np.ndarray, "batch d_in"]]:
    """The batches of step `first_step` and on, epoch after epoch."""
    per_epoch = len(store.content_rows) // config.batch_size
    epoch, skipped = divmod(first_step, per_epoch)
    while True:
        rows = store.batches(config.site, config.batch_size, seed=config.seed, epoch=epoch)
        yield from itertools.islice(rows, skipped, None)
        epoch, skipped = epoch + 1, 0


def train(
    store: Store | str | Path,
    *,
    site: str,
    architecture: str = "topk",
    d_sae: int = 4096,
    k: int = 32,
    out: str | Path | None = None,
    n_tokens: int | None = None,
    batch_size: int = 1024,
    lr: float | None = None,
    seed: int = 0,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    log_every: int = 10,
    checkpoint_every: int = 200,
) -> Dictionary:
    """Train on `site` of `store` and return the dictionary; with `out`, write a SAELens folder, run.json, metrics.json
    and train_log.csv there.

    `n_tokens` is 4 epochs of the store and `lr` 1e-3 / sqrt(d_sae / 2^14) where not given: dictionary_learning's rule
    with five times its factor, which over 400,000 tokens brought FVU from .145 to .087. The log has a line every
    `log_every` steps: loss and AuxK in scaled units, FVU and L0 of the batch, dead latents. The same call on an
    unfinished `out` continues it. InputError, before anything is written, for settings that cannot be; AlreadyExists
    where `out` is finished and not `overwrite`.
    """
    store = store if isinstance(store, Store) else Store(store)
    n_rows = len(store.content_rows)
    if log_every < 1 or checkpoint_every < 1:
        raise InputError(f"log_every ({log_every}) and checkpoint_every ({checkpoint_every}) must be at least 1.")
    config = TrainConfig(
        site=store.site(site), architecture=architecture, d_sae=d_sae, k=k, batch_size=batch_size, seed=seed,
        n_tokens=4 * n_rows if n_tokens is None else n_tokens,
        lr=1e-3 / math.sqrt(max(d_sae, 1) / 2**14) if lr is None else lr,
    )  # fmt: skip
    if n_rows < batch_size:
        raise InputError(
            f"{store.path} has {n_rows} rows, fewer than one batch ({batch_size}): use a smaller batch_size."
        )
    where = _device(device)
    if out is None:
        return _run(store, config, None, where, progress, log_every, checkpoint_every)
    out = Path(out)
    settings = {"store": store.name, "store_rows": store.n_rows, **asdict(config), "log_every": log_every}
    with runs.recording(
        out, kind="sae", config=settings, model=store.model, seed=seed, device=str(where), overwrite=overwrite
    ):
        dct = _run(store, config, out, where, progress, log_every, checkpoint_every)
    (out / files.CHECKPOINT).unlink(missing_ok=True)
    return dct


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f'no device "{name}" here: {str(error).splitlines()[0]} Try --device cpu.') from None
    return device


def _run(
    store: Store, config: TrainConfig, out: Path | None, device: torch.device, progress: bool, log_every: int,
    checkpoint_every: int,
) -> Dictionary:  # fmt: skip
    first_batches = itertools.islice(
        store.batches(config.site, config.batch_size, seed=config.seed), math.ceil(_SAMPLE / config.batch_size)
    )
    trainer = Trainer(config, torch.from_numpy(np.concatenate(list(first_batches))).to(device))
    if out and (checkpoint := files.load_checkpoint(out)):
        trainer.restore(*checkpoint)
    log = _Log(out, trainer.step)
    batches = _batches(store, config, first_step=trainer.step)
    with _bar(progress) as bar:
        task = bar.add_task("training", total=config.n_steps, completed=trainer.step, note="")
        for batch in itertools.islice(batches, config.n_steps - trainer.step):
            report = trainer.update(torch.from_numpy(batch).to(device))
            if trainer.step % log_every == 0 or trainer.step == config.n_steps:
                note = log.add(trainer, report)
                if progress and not bar.console.is_terminal and trainer.step % (10 * log_every) == 0:
                    print(f"step {trainer.step}/{config.n_steps}  {note}", file=sys.stderr)
                bar.update(task, note=note)
            bar.advance(task)
            if out and trainer.step % checkpoint_every == 0:
                log.flush()
                files.save_checkpoint(out, trainer.state(), step=trainer.step)
    dct = trainer.finished()
    dct.model, dct.path, dct.context = dict(store.model), out, store.context
    if out:
        log.flush()
        files.save(dct, out)
        runs.write_json(out / "metrics.json", read_metrics(out / "metrics.json") | _metrics(dct, store, trainer))
    return dct


def _metrics(dct: Dictionary, store: Store, trainer: Trainer) -> dict[str, Any]:
    """What the finished dictionary does on (about 65,536 of) the rows that it was trained on."""
    config, fit = trainer.config, Fit(dct)
    n_batches = max(1, min(65_536, len(store.content_rows)) // config.batch_size)
    for batch in itertools.islice(_batches(store, config), n_batches):
        fit.add(torch.from_numpy(batch).to(dct.b_dec.device))
    dead = trainer.silent > config.dead_tokens
    return {
        "train_l0": fit.l0, "train_fvu": fit.fvu, "train_dead": int(dead.sum()), "train_dead_after": config.dead_tokens,
        "train_tokens": trainer.step * config.batch_size,
    }  # fmt: skip


def _bar(progress: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    shown = progress and console.is_terminal
    return Progress(*columns, TextColumn("{task.fields[note]}"), console=console, disable=not shown, transient=True)


class _Log:
    """train_log.csv: what a killed run wrote after its last checkpoint is cut off before going on."""

    def __init__(self, out: Path | None, step: int) -> None:
        self.path = out / "train_log.csv" if out else None
        self.rows: list[list[Any]] = []
        if self.path and self.path.exists() and step:
            with open(self.path, newline="", encoding="utf-8") as file:
                self.rows = [row for row in list(csv.reader(file))[1:] if int(row[0]) <= step]

    def add(self, trainer: Trainer, report: dict[str, Tensor]) -> str:
        """Keep a line; returns it in short."""
        numbers = {name: float(value) for name, value in report.items()}
        numbers |= {"step": trainer.step, "tokens": trainer.step * trainer.config.batch_size}
        numbers |= {"lr": trainer.config.rate(trainer.step - 1), "dead": int(numbers["dead"])}
        self.rows.append([f"{v:.7g}" if isinstance(v, float) else v for v in (numbers[c] for c in LOG_COLUMNS)])
        return f"FVU {numbers['fvu']:.3f}  L0 {numbers['l0']:.1f}  dead {numbers['dead']}"

    def flush(self) -> None:
        if self.path:
            runs.write_text(self.path, "\n".join(",".join(map(str, r)) for r in [LOG_COLUMNS, *self.rows]) + "\n")
