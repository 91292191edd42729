"""train(): dictionaries on activations, out of a store or straight from a model; `train_grid` many on one pass.

A run continues exactly where it was killed: a checkpoint holds the weights, Adam's moments and the counters, the order
of the rows follows from seed, epoch and step, and a step draws nothing at random. On a CPU, with the same number of
threads, a continued run ends in bitwise the same files as one never stopped; so does a dictionary of a grid, whatever
was trained beside it. The settings and their sources are in config.py, the losses in losses.py.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp import runs
from interp.decoder.model import Model
from interp.errors import InputError
from interp.progress import Progress
from interp.store.reading import Store
from sae import files, parallel
from sae.batches import BadActivations, Batch, ModelSource, Source, StoreSource, batches
from sae.config import DATA, TrainConfig
from sae.dictionary import Dictionary, names
from sae.logs import Log, check_logger
from sae.trainer import Trainer

_SAMPLE = 32_768  # rows behind b_dec's start and the scales
_MEASURED = 65_536  # rows behind metrics.json, at most


def train(
    source: Store | Model | str | Path,
    *,
    site: str | Sequence[str],
    out_site: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    text: Any = None,
    context: int = 128,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    log_every: int = 10,
    log_to: str | None = None,
    checkpoint_every: int = 200,
    **settings: Any,
) -> Dictionary:
    """Train on `site` of a store, or of a model running on `text`, and return the dictionary; with `out`, write a
    SAELens folder, run.json, metrics.json and train_log.csv there.

        sae.train(store, site="2.resid_post", architecture="topk", d_sae=4096, k=32, out="workspace/saes/demo")
        sae.train(store, site="2.resid_mid", out_site="2.mlp_out", skip=True)          # a skip transcoder
        sae.train(model, text="text/*.txt", site=["1.resid_post", "2.resid_post"])     # a crosscoder, nothing on disk

    `settings` are TrainConfig's. `n_tokens` is 4 epochs of the rows and `lr` 1e-3 / sqrt(d_sae / 2^14) where not given:
    dictionary_learning's rule with five times its factor, which over 400,000 tokens brought FVU from .145 to .087. The
    log has a line every `log_every` steps: loss and AuxK in scaled units, FVU and L0 of the batch, dead latents; with
    `log_to` "tensorboard" (into `out`) or "wandb" they go there too. The same call on an unfinished `out` continues
    it. InputError, before anything is written, for settings that cannot be;
    AlreadyExists where `out` is finished and not `overwrite`; BadActivations where a batch is not finite.
    """
    settings |= {"site": site, "out_site": out_site}
    grid = _prepare({"": settings}, source, text=text, context=context, out=None)
    grid.runs[0].out = None if out is None else Path(out)
    return grid.run(
        device=device, overwrite=overwrite, progress=progress, log_every=log_every, log_to=log_to,
        checkpoint_every=checkpoint_every,
    )[""]  # fmt: skip


def train_grid(
    source: Store | Model | str | Path,
    dictionaries: Mapping[str, Mapping[str, Any]],
    *,
    out: str | Path | None = None,
    text: Any = None,
    context: int = 128,
    **how: Any,
) -> dict[str, Dictionary]:
    """Train many dictionaries on one pass over the activations: name -> settings as for `train`, name -> dictionary.

    Each goes into the folder `out`/name and is bitwise the one that `train` makes of the same settings. What steers
    the pass (n_tokens, batch_size, shuffle_seed, held_out) must be the same in all. Finished ones are loaded, not
    trained again. `how`: device, overwrite, progress, log_every, log_to, checkpoint_every as in `train`.
    """
    return _prepare(dictionaries, source, text=text, context=context, out=None if out is None else Path(out)).run(**how)


@dataclass
class _Run:
    """One dictionary of a grid."""

    name: str
    config: TrainConfig
    out: Path | None
    trainer: Trainer | None = None
    log: Log | None = None

    def rows(self, batch: Batch) -> tuple[Tensor, ...]:
        """(x,), or (x, y) of a transcoder: the activations of its sites side by side."""
        config = self.config
        sides = [config.sites, config.out_sites] if config.is_transcoder else [config.sites]
        return tuple(torch.cat([batch[site] for site in side], dim=1) for side in sides)


def _prepare(
    dictionaries: Mapping[str, Mapping[str, Any]], source: Any, *, text: Any, context: int, out: Path | None
) -> _Grid:
    """Settings checked against each other and against the source; nothing is written."""
    if not dictionaries:
        raise InputError("a grid of no dictionaries: give at least one.")
    if isinstance(source, Model) != (text is not None):
        raise InputError("text goes with a model, and a model needs text; a store has its own.")
    drafts = {name: _draft(dict(settings)) for name, settings in dictionaries.items()}
    first = next(iter(drafts.values()))
    for name, draft in drafts.items():
        if differ := [key for key in DATA if getattr(draft, key) != getattr(first, key)]:
            raise InputError(f'"{name}" has another {differ[0]} than the rest: one pass has one {", one ".join(DATA)}.')
    if isinstance(source, Model):
        source = ModelSource(source, text, context=context, held_out=first.held_out)
    else:
        source = StoreSource(source, held_out=first.held_out)
    wanted = {key for settings in dictionaries.values() for key in settings if settings[key] is not None}
    n_tokens = first.n_tokens if "n_tokens" in wanted else 4 * source.n_rows // first.batch_size * first.batch_size
    prepared = []
    for name, draft in drafts.items():
        config = replace(draft, n_tokens=max(n_tokens, 1)).with_sites(source.site)
        prepared.append(_Run(name, config, None if out is None else out / name))
        if (part := config.batch_size // parallel.world()) % config.accumulate:
            raise InputError(f"a rank's part of a batch ({part}) is no multiple of accumulate ({config.accumulate}).")
    batches(source, [], first.batch_size)  # enough rows for one?
    return _Grid(source, prepared)


def _draft(settings: dict[str, Any]) -> TrainConfig:
    """The settings as a TrainConfig, the learning rate by the rule, sites as they were given."""
    given = {key: value for key, value in settings.items() if value is not None}
    given |= {key: "+".join(names(given[key])) for key in ("site", "out_site") if key in given}
    given.setdefault("lr", 1e-3 / math.sqrt(max(given.get("d_sae", TrainConfig.d_sae), 1) / 2**14))
    given.setdefault("n_tokens", max(TrainConfig.n_tokens, given.get("batch_size", 1)))
    return TrainConfig.checked(**given)


@dataclass
class _Grid:
    """Dictionaries that are trained on one pass over a source."""

    source: Source
    runs: list[_Run]

    def run(
        self, *, device: str | None = None, overwrite: bool = False, progress: bool = True, log_every: int = 10,
        log_to: str | None = None, checkpoint_every: int = 200,
    ) -> dict[str, Dictionary]:  # fmt: skip
        """Train what is not finished; all dictionaries, by name."""
        if log_every < 1 or checkpoint_every < 1:
            raise InputError(f"log_every ({log_every}) and checkpoint_every ({checkpoint_every}) must be at least 1.")
        check_logger(log_to)
        where = find_device(device)
        described = {run.name: self._describe(run, log_every) for run in self.runs}
        done = [run for run in self.runs if len(self.runs) > 1 and _is_done(run, described[run.name], overwrite)]
        todo = [run for run in self.runs if run not in done]
        with ExitStack() as stack:
            stack.enter_context(parallel.together(where))
            if todo:
                sample = self._sample(todo[0].config, where)
                for run in todo:
                    run.trainer = Trainer(run.config, *run.rows(sample))
                for run in todo:
                    if run.out and parallel.rank() == 0:
                        stack.enter_context(
                            runs.recording(
                                run.out, kind="sae", config=described[run.name], model=self.source.model,
                                seed=run.config.seed, device=str(where), overwrite=overwrite,
                            )
                        )  # fmt: skip
                parallel.wait()
                finished = self._loop(todo, where, progress, log_every, log_to, checkpoint_every)
        for run in todo:
            if run.out:
                (run.out / files.CHECKPOINT).unlink(missing_ok=True)
        return {run.name: files.load(run.out) if run in done else finished[run.name] for run in self.runs}

    def _describe(self, run: _Run, log_every: int) -> dict[str, Any]:
        settings = self.source.describe() | asdict(run.config) | {"log_every": log_every}
        settings |= {"ranks": parallel.world()} if parallel.world() > 1 else {}
        return json.loads(json.dumps(settings))  # as it will be read again: tuples are lists

    @property
    def sites(self) -> list[str]:
        return sorted({site for run in self.runs for site in run.config.sites + run.config.out_sites})

    def _sample(self, config: TrainConfig, device: torch.device) -> Batch:
        """The first rows of the first epoch."""
        parts = self._batches(config, 0, device)
        try:
            wanted = list(itertools.islice(parts, math.ceil(min(_SAMPLE, self.source.n_rows) / config.batch_size)))
        except BadActivations as error:
            raise InputError(str(error)) from None
        return {site: torch.cat(parallel.gathered(torch.cat([part[site] for part in wanted]))) for site in self.sites}

    def _batches(self, config: TrainConfig, first_step: int, device: torch.device) -> Iterator[Batch]:
        found = batches(self.source, self.sites, config.batch_size, seed=config.shuffle_seed, first_step=first_step)
        return ({site: x.to(device) for site, x in batch.items()} for batch in found)

    def _loop(
        self,
        todo: list[_Run],
        device: torch.device,
        progress: bool,
        log_every: int,
        log_to: str | None,
        checkpoint_every: int,
    ) -> dict[str, Dictionary]:
        """All steps that are left. Runs that a kill left at different steps wait for one another. Rank 0 writes."""
        for run in todo:
            if run.out and (checkpoint := files.load_checkpoint(run.out)):
                run.trainer.restore(*checkpoint)
            run.out = None if parallel.rank() else run.out
            run.log = Log(run.out, run.trainer.step, log_to)
        config, start = todo[0].config, min(run.trainer.step for run in todo)
        title = "training" if len(todo) == 1 else f"training {len(todo)}"
        with Progress(title, config.n_steps, progress and parallel.rank() == 0, done=start) as bar:
            steps = range(start, config.n_steps)
            for step, batch in zip(steps, self._batches(config, start, device), strict=False):
                logged = (step + 1) % log_every == 0 or step + 1 == config.n_steps
                for run in todo:
                    if run.trainer.step > step:
                        continue
                    report = run.trainer.update(*run.rows(batch))
                    if logged:
                        said = run.log.add(run.trainer, report)
                        bar.note(f"steps  {said}  {bar.rate * config.batch_size:,.0f} tokens/s")
                    if run.out and (step + 1) % checkpoint_every == 0:
                        check_loss(run.trainer, report)
                        run.log.flush()
                        files.save_checkpoint(run.out, run.trainer.state(), step=step + 1)
                bar.advance()
        return {run.name: self._finish(run, device) for run in todo}

    def _finish(self, run: _Run, device: torch.device) -> Dictionary:
        dct = run.trainer.finished()
        dct.model, dct.path, dct.context = dict(self.source.model), run.out, self.source.context
        if run.out:
            config = run.config
            n_batches = max(1, min(self.source.n_rows, _MEASURED) // config.batch_size)
            trained_on = itertools.islice(self._batches(config, 0, device), n_batches)
            held_out = self.source.held_out_batches(self.sites, config.batch_size)
            metrics = _measure(dct, map(run.rows, trained_on), "train")
            metrics |= _measure(dct, map(run.rows, held_out), "held_out")
            dead = run.trainer.silent > config.dead_tokens
            metrics |= {"train_dead": int(dead.sum()), "train_dead_after": config.dead_tokens}
            metrics |= {"train_tokens": run.trainer.step * config.batch_size}
            run.log.close()
            files.save(dct, run.out)
            runs.write_json(run.out / "metrics.json", metrics)
        return dct


@torch.no_grad()
def _measure(dct: Dictionary, rows: Iterator[tuple[Tensor, ...]], name: str) -> dict[str, float]:
    """L0 and FVU over all `rows` together, in float64; {} where there are none."""
    n, fires, error, square, total = 0, 0, 0.0, 0.0, 0.0
    for x, *y in rows:
        x, *y = (part.to(dct.b_dec.device) for part in (x, *y))
        active, wanted = dct.active(x), (y[0] if y else x).double()
        n, fires, total = n + len(x), fires + len(active.token), total + wanted.sum(0)
        error += float((dct.reconstruct(active, x).double() - wanted).square().sum())
        square += float(wanted.square().sum())
    if n == 0:
        return {}
    variance = square - float((total / n).square().sum()) * n
    return {f"{name}_l0": fires / n, f"{name}_fvu": error / variance if variance else math.nan}


def check_loss(trainer: Trainer, report: Mapping[str, Tensor]) -> None:
    """FloatingPointError where training has diverged: the last checkpoint, which is good, stays."""
    if not torch.isfinite(report["loss"]):
        raise FloatingPointError(
            f"the loss is {float(report['loss'])} at step {trainer.step}: try a lower lr than {trainer.config.lr:.2g}."
        )


def find_device(name: str | None) -> torch.device:
    """A device by name, the GPU where there is one and none is named (the rank's own); InputError where it is not
    there."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and parallel.world() > 1 else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f'no device "{name}" here: {str(error).splitlines()[0]} Try --device cpu.') from None
    return device


def _is_done(run: _Run, described: dict[str, Any], overwrite: bool) -> bool:
    """Whether a dictionary of a grid is finished already, with these settings."""
    if run.out is None or overwrite or not runs.is_done(run.out):
        return False
    if runs.read(run.out).get("config") != described:
        raise InputError(f"{run.out} holds a finished dictionary of other settings: choose another --out.")
    return True
