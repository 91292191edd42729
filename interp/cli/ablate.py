"""`interp ablate`: a batch of ablations from a YAML file, from flags, or from both (flags win)."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp import runs
from interp.cli import options
from interp.cli.config import Config, Sweep, read_config, read_shard
from interp.errors import AlreadyExists, InputError, MissingFile, nearest

if TYPE_CHECKING:
    from interp.causal.effects import Effects
    from interp.data.tasks import Task
    from interp.decoder.loading import Model


def ablate(
    config: Annotated[Path | None, typer.Argument(help="A YAML file of the flags' names.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help='"bundled", a local directory, or a name on the hub.')] = None,
    task: Annotated[str | None, typer.Option(help="ioi, ..., a .jsonl of prompt pairs, or text:PATH.")] = None,
    components: Annotated[str | None, typer.Option(help="heads, mlps, neurons, L3H5,L2.mlp, L3H5+L4H1, ...")] = None,
    method: Annotated[str | None, typer.Option(help="zero, mean, mean-all, resample, shuffle; with -frozen.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="logit_diff, loss, kl, prob, accuracy; several with commas.")
    ] = None,
    position: Annotated[str | None, typer.Option(help='"all", an index (-1 the last), a label, or "each".')] = None,
    reference: Annotated[str | None, typer.Option(help="Prompts of the mean; the task's own if not given.")] = None,
    classes: Annotated[str | None, typer.Option(help='Break down by token class: "built-in", or names.')] = None,
    n: options.N = None,
    seed: Annotated[int | None, typer.Option(help="Of prompts, shuffle, random groups and the bootstrap.")] = None,
    out: options.Out = None,
    workspace: Annotated[str | None, typer.Option(help="The folder with runs/, stores/ and saes/.")] = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="Replace what is finished.")] = None,
    device: options.Device = None,
    dtype: Annotated[str | None, typer.Option(help="What the model computes in.")] = None,
    shard: Annotated[str | None, typer.Option(help="i/n: the i-th of n parts; join with interp runs merge.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and how long it takes.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the file.")] = False,
) -> None:
    """Which components does the behaviour need? Replace each alone; write the effects, with 95% intervals, to a run.

    Example: interp ablate --task ioi --components heads --method mean --metric logit_diff --n 200 --out ioi-heads
    """
    flags = {key: value for key, value in locals().items() if key not in ("config", "shard", "dry_run", "schema")}
    if schema:
        print(json.dumps(file_schema(), indent=2))
        return
    c, sweeps = read_config(config, flags)
    part = read_shard(shard, dict(os.environ))
    if part and c.out is None:
        raise InputError("a sharded run needs a name, the same for every part: --out NAME.")
    if part and shard is None and c.device is None and "LOCAL_RANK" in os.environ:
        c.device = _device_of_rank(int(os.environ["LOCAL_RANK"]))
    paths = places(c, sweeps, part)
    todo = [] if dry_run else unfinished(c, paths)
    import interp

    loaded = interp.load_model(c.model, device=c.device, dtype=c.dtype)
    prepared = [_prepare(sweep, c, loaded) for sweep in sweeps]
    plans = [_plan(loaded, task, settings) for task, settings in prepared]  # all is checked before the first is run
    for sweep, path, (task, settings), plan in zip(sweeps, paths, prepared, plans, strict=True):
        plan = plan if part is None else plan.shard(*part)
        if dry_run:
            say_plan(sweep, path, loaded, task, plan)
        elif path not in todo:
            print(f"{path} is finished: nothing to do")
        else:
            run(sweep, c, path, loaded, task, settings, part)


def file_schema() -> dict[str, Any]:
    """The JSON schema of the file; a sweep's keys are the file's own."""
    schema = Config.model_json_schema()
    schema["properties"]["sweeps"]["items"] = Sweep.model_json_schema()
    return schema


def places(c: Config, sweeps: list[Sweep], part: tuple[int, int] | None) -> list[Path]:
    """The runs' folders: OUT, or OUT-NAME of each of several sweeps, with the shard."""
    out = c.out or f"ablate-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [out if len(sweeps) == 1 else f"{out}-{sweep.name}" for sweep in sweeps]
    suffix = "" if part is None else f".shard-{part[0]}-of-{part[1]}"
    return [runs.place(Path(c.workspace), "runs", name + suffix, "ablate") for name in names]


def unfinished(c: Config, paths: list[Path]) -> list[Path]:
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


def _task(spec: str, model: Model, n: int | None, seed: int) -> Task:
    import interp
    from interp.data.classes import text_task

    if spec == "text" or spec.startswith("text:"):
        return text_task(model, spec.partition(":")[2] or "bundled", n=n or 64)
    return interp.load_task(spec, model, n=n, seed=seed)


def _prepare(sweep: Sweep, c: Config, model: Model) -> tuple[Task, dict[str, Any]]:
    """The task, and the settings of `interp.ablate`, with what they name loaded."""
    from interp.data.classes import classes as masks

    task = _task(sweep.task, model, sweep.n, sweep.seed)
    wanted = sweep.classes.split(",") if isinstance(sweep.classes, str) else sweep.classes
    return task, {
        "components": sweep.components, "method": sweep.method, "metric": sweep.metric, "position": sweep.position,
        "seed": sweep.seed, "dictionaries": _dictionaries(sweep, c, model),
        "directions": {name: _direction(name, Path(file), model) for name, file in sweep.directions.items()},
        "reference": None if sweep.reference is None else _task(sweep.reference, model, None, sweep.seed),
        "classes": None if wanted is None else masks(model, task, [name.strip() for name in wanted]),
    }  # fmt: skip


def _plan(model: Model, task: Task, settings: dict[str, Any]) -> Any:
    from interp.causal.ablation import plan

    return plan(model, task, **{key: value for key, value in settings.items() if key not in ("reference", "classes")})


def _dictionaries(sweep: Sweep, c: Config, model: Model) -> dict[str, Any]:
    """Dictionaries of the workspace that components such as demo/417 speak of."""
    given = sweep.components if isinstance(sweep.components, list) else [sweep.components]
    names = [piece for entry in given for piece in (entry if isinstance(entry, list) else [entry])]
    wanted = {name.strip().rpartition("/")[0] for piece in names for name in piece.replace("+", ",").split(",")} - {""}
    found = {}
    for name in sorted(wanted):
        import sae
        from sae.splicing import check_model

        folder = Path(c.workspace) / "saes" / name
        if not folder.exists():
            there = sorted(path.name for path in folder.parent.glob("*")) if folder.parent.exists() else []
            near = f" Nearest: {nearest(name, there)}." if there else ""
            raise MissingFile(f'no dictionary "{name}" in {folder.parent}.{near}')
        found[name] = sae.load(folder)
        check_model(found[name], model)
    return found


def _direction(name: str, path: Path, model: Model) -> Any:
    """The vector in a safetensors file: the tensor of that name, or its only one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise MissingFile(f'no file "{path}" for the direction "{name}".')
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}.") from None
    vector = tensors.get(name, next(iter(tensors.values())) if len(tensors) == 1 else None)
    if vector is None:
        raise InputError(f'{path} has the tensors {", ".join(tensors)}, none called "{name}".')
    if tuple(vector.shape) != (model.d_model,) or not vector.float().norm() > 0:
        raise InputError(
            f"{path}: a direction is a vector of {model.d_model} numbers, not all 0; {tuple(vector.shape)}."
        )
    return vector.to(model.device)


def say_plan(sweep: Sweep, path: Path, model: Model, task: Task, plan: Any) -> None:
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


def run(
    sweep: Sweep,
    c: Config,
    path: Path,
    model: Model,
    task: Task,
    settings: dict[str, Any],
    part: tuple[int, int] | None,
) -> None:
    """One sweep into its run. Killed, the same command goes on where it was."""
    import interp
    from interp.causal.finished import Finished

    config = sweep.model_dump() | {"model": c.model, "dtype": c.dtype} | ({"shard": list(part)} if part else {})
    with recorded(path, "ablate", config, model, sweep.seed, c.overwrite):
        finished = Finished(path / "unfinished")
        try:
            effects = interp.ablate(model, task, **settings, progress=True, shard=part, finished=finished)
        finally:
            finished.flush()
        if slow := effects.about["slow_because"]:
            print(f"Slower than it could be: {slow}.", file=sys.stderr)
        keep(effects, task, model, path)
        finished.clear()
    report(effects, path)


def recorded(path: Path, kind: str, config: dict[str, Any], model: Model, seed: int, overwrite: bool):
    return runs.recording(
        path,
        kind=kind,
        config=config,
        model=model.provenance(),
        seed=seed,
        device=str(model.device),
        overwrite=overwrite,
    )


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
        print(
            f"{row.component:>12}{at:<8} {row.method:>7} {row.metric} {row.baseline:+.3f} -> {row.value:+.3f}  "
            f"effect {row.effect:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]  n={row.n}"
        )
    print(f"{len(effects.rows)} rows -> {path / 'effects.parquet'}, {path / 'report.html'}")
