"""A batch of sweeps, a run each: what `interp ablate` and `interp patch` share.

A file and flags become sweeps; every sweep is checked before the first is run; each goes into its run, which the same
command continues after a kill.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp import runs
from interp.cli.config import Asked, Batch, read_config, read_shard
from interp.cli.keeping import recorded
from interp.errors import AlreadyExists, InputError, MissingFile, nearest

if TYPE_CHECKING:
    from interp.causal.effects import Effects
    from interp.data.tasks import Task
    from interp.decoder.model import Model

Settings = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """A command that measures effects: its name, the form of its file, and what it does with a sweep."""

    name: str
    form: type[Batch]
    settings: Callable[[Asked, Batch, Model, Task], Settings]
    """What the library is called with; InputError for what cannot be."""
    plan: Callable[[Model, Task, Settings], Any]
    measure: Callable[..., Effects]
    """Called with model, task, the settings, and progress, shard and finished."""


def batch(
    command: Command, config: Path | None, flags: dict[str, Any], *, shard: str | None = None, dry_run: bool = False
) -> None:
    """Every sweep of the file into its run; with `dry_run` only what it would do."""
    c, sweeps = read_config(config, flags, command.form)
    part = read_shard(shard, dict(os.environ))
    if part and c.out is None:
        raise InputError("a sharded run needs a name, the same for every part: --out NAME.")
    if part and shard is None and c.device is None and "LOCAL_RANK" in os.environ:
        c.device = _device_of_rank(int(os.environ["LOCAL_RANK"]))
    paths = _places(command.name, c, sweeps, part)
    todo = [] if dry_run else _unfinished(c, paths)

    model = c.load(c.model)
    tasks = [task_of(sweep.task, model, sweep) for sweep in sweeps]
    settings = [command.settings(sweep, c, model, task) for sweep, task in zip(sweeps, tasks, strict=True)]
    plans = [command.plan(model, task, given) for task, given in zip(tasks, settings, strict=True)]  # all is checked
    plans = plans if part is None else [plan.shard(*part) for plan in plans]
    for sweep, path, task, given, plan in zip(sweeps, paths, tasks, settings, plans, strict=True):
        if task.note:
            print(task.note, file=sys.stderr)
        if dry_run:
            _say(plan, sweep, path, model, task)
        elif path not in todo:
            print(f"{path} is finished: nothing to do")
        else:
            _run(command, sweep, c, path, model, task, given, part)


def _places(kind: str, c: Batch, sweeps: list[Asked], part: tuple[int, int] | None) -> list[Path]:
    """The runs' folders: OUT, or OUT-NAME of each of several sweeps, with the shard."""
    out = c.out or f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [out if len(sweeps) == 1 else f"{out}-{sweep.name}" for sweep in sweeps]
    suffix = "" if part is None else f".shard-{part[0]}-of-{part[1]}"
    return [runs.place(Path(c.workspace), "runs", name + suffix, kind) for name in names]


def _unfinished(c: Batch, paths: list[Path]) -> list[Path]:
    """Those still to be made. AlreadyExists where all are finished."""
    todo = [path for path in paths if c.overwrite or not runs.is_done(path)]
    if not todo:
        raise AlreadyExists(f"{paths[0]} holds a finished result: choose another --out, or pass --overwrite.")
    for path in todo:
        runs.check_free(path, c.overwrite)
    return todo


def _device_of_rank(rank: int) -> str | None:
    import torch

    return f"cuda:{rank}" if torch.cuda.is_available() else None


def task_of(spec: str, model: Model, sweep: Asked) -> Task:
    """The prompts that `spec` names: a task, a file of pairs, or "text:PATH"."""
    import interp
    from interp.data.classes import text_task

    if spec == "text" or spec.startswith("text:"):
        return text_task(model, spec.partition(":")[2] or "bundled", n=sweep.n or 64)
    return interp.load_task(spec, model, n=sweep.n, seed=sweep.seed, corruption=sweep.corruption)


def dictionary(name: str, workspace: str, model: Model) -> Any:
    """The workspace's dictionary of that name. MissingFile, with the nearest names; WrongModel for another model's."""
    import sae
    from sae.splicing import check_model

    folder = Path(workspace) / "saes" / name
    if not folder.exists():
        there = sorted(path.name for path in folder.parent.glob("*")) if folder.parent.exists() else []
        near = f" Nearest: {nearest(name, there)}." if there else ""
        raise MissingFile(f'no dictionary "{name}" in {folder.parent}.{near}')
    found = sae.load(folder)
    check_model(found, model)
    return found


def _say(plan: Any, sweep: Asked, path: Path, model: Model, task: Task) -> None:
    """What a run would do: rows, passes and the time they take, from one batch measured here."""
    from interp.causal.sweeps import seconds_a_pass

    passes, work = plan.cost(model.n_layers)
    seconds = work * seconds_a_pass(model, task)
    print(f"{path}: {len(plan.places)} rows x {len(plan.methods)} methods on {len(task)} prompts of {sweep.task}")
    print(f"  {passes:,} forward passes in a loop, the work of {work:,.0f} here: about {_duration(seconds)}")


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _run(
    command: Command,
    sweep: Asked,
    c: Batch,
    path: Path,
    model: Model,
    task: Task,
    settings: Settings,
    part: tuple[int, int] | None,
) -> None:
    """One sweep into its run. Killed, the same command goes on where it was."""
    from interp.causal.finished import Finished

    config = sweep.model_dump() | {"model": c.model} | c.kept() | ({"shard": list(part)} if part else {})
    with recorded(path, command.name, config, model, sweep.seed, c.overwrite):
        finished = Finished(path / "unfinished")
        try:
            effects = command.measure(model, task, **settings, progress=True, shard=part, finished=finished)
        finally:
            finished.flush()
        if slow := effects.about["slow_because"]:
            print(f"Slower than it could be: {slow}.", file=sys.stderr)
        keep(effects, task, model, path)
        finished.clear()
    report(effects, path)


def keep(effects: Effects, task: Task, model: Model, path: Path) -> None:
    """The files of a run of effects."""
    from interp import reports

    task.save(path / "prompts.jsonl", model)
    effects.save(path)
    runs.write_text(path / "report.html", reports.html(effects, path.name, runs.read(path)))


def report(effects: Effects, path: Path, n: int = 5) -> None:
    """The rows that matter most, and where the rest is."""
    for row in effects.top(n).itertuples():
        at = "" if row.position == "all" else f" at {row.position}"
        part = f"  normalized {row.normalized:.2f}" if "normalized" in effects.rows else ""
        print(
            f"{row.component:>12}{at:<8} {row.method:>7} {row.metric} {row.baseline:+.3f} -> {row.value:+.3f}  "
            f"effect {row.effect:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]{part}  n={row.n}"
        )
    print(f"{len(effects.rows)} rows -> {path / 'effects.parquet'}, {path / 'report.html'}")
