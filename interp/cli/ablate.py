"""`interp ablate`: a batch of ablations from a YAML file, from flags, or from both (flags win)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import options
from interp.cli.batch import Command, Settings, batch, dictionary, task_of
from interp.cli.config import Config, Sweep, file_schema, with_defaults
from interp.cli.editing import vector

if TYPE_CHECKING:
    from interp.causal.effects import Effects
    from interp.data.tasks import Task
    from interp.decoder.model import Model


@with_defaults(Config)
@options.opens
def ablate(
    config: options.ConfigFile = None,
    model: options.ModelFlag = None,
    task: options.TaskFlag = None,
    corruption: options.Corruption = None,
    components: Annotated[str | None, typer.Option(help="heads, mlps, neurons, experts, L3H5, L2.mlp+L4H1")] = None,
    method: Annotated[
        str | None, typer.Option(help="zero, mean, resample, shuffle, ...; of experts forbid, force.")
    ] = None,
    metric: options.Metric = None,
    position: Annotated[str | None, typer.Option(help='"all", an index (-1 the last), a label, or "each".')] = None,
    reference: Annotated[str | None, typer.Option(help="Prompts of the mean; the task's own if not given.")] = None,
    classes: Annotated[str | None, typer.Option(help='Break down by token class: "built-in", or names.')] = None,
    n: options.N = None,
    seed: Annotated[int | None, typer.Option(help="Of prompts, shuffle, random groups and the bootstrap.")] = None,
    out: options.Out = None,
    workspace: options.WorkspaceFlag = None,
    overwrite: options.OverwriteFlag = None,
    shard: options.Shard = None,
    dry_run: options.DryRun = False,
    schema: options.Schema = False,
    *,
    opening: options.Opening,
) -> None:
    """Which components does the behaviour need? Replace each alone; write the effects, with 95% intervals, to a run.

    Example: interp ablate --task ioi --components heads --method mean --metric logit_diff --n 200 --out ioi-heads
    """
    own = ("config", "shard", "dry_run", "schema", "opening")
    flags = {key: value for key, value in locals().items() if key not in ("own", *own)} | opening.given()
    if schema:
        print(json.dumps(file_schema(Config), indent=2))
    else:
        batch(Command("ablate", Config, _settings, _plan, _measure), config, flags, shard=shard, dry_run=dry_run)


def _settings(sweep: Sweep, c: Config, model: Model, task: Task) -> Settings:
    """The settings of `interp.ablate`, with what they name loaded."""
    from interp.data.classes import classes as masks

    wanted = sweep.classes.split(",") if isinstance(sweep.classes, str) else sweep.classes
    return {
        "components": sweep.components, "method": sweep.method, "metric": sweep.metric, "position": sweep.position,
        "seed": sweep.seed, "dictionaries": _dictionaries(sweep, c, model),
        "directions": {name: vector(name, Path(file), model) for name, file in sweep.directions.items()},
        "reference": None if sweep.reference is None else task_of(
            sweep.reference, model, sweep.model_copy(update={"n": None, "corruption": None})
        ),
        "classes": None if wanted is None else masks(model, task, [name.strip() for name in wanted]),
    }  # fmt: skip


def _plan(model: Model, task: Task, settings: Settings) -> Any:
    from interp.causal.ablation import plan

    return plan(model, task, **{key: value for key, value in settings.items() if key not in ("reference", "classes")})


def _measure(model: Model, task: Task, **settings: Any) -> Effects:
    import interp

    return interp.ablate(model, task, **settings)


def _dictionaries(sweep: Sweep, c: Config, model: Model) -> dict[str, Any]:
    """Dictionaries of the workspace that components such as demo/417 speak of."""
    given = sweep.components if isinstance(sweep.components, list) else [sweep.components]
    names = [piece for entry in given for piece in (entry if isinstance(entry, list) else [entry])]
    wanted = {name.strip().rpartition("/")[0] for piece in names for name in piece.replace("+", ",").split(",")} - {""}
    return {name: dictionary(name, c.workspace, model) for name in sorted(wanted)}
