"""`interp patch`: a batch of activation patchings or causal traces, from a YAML file, from flags, or from both (flags
win)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import options
from interp.cli.batch import Command, Settings, batch, dictionary
from interp.cli.config import PatchConfig, PatchSweep, file_schema, with_defaults
from interp.errors import InputError

if TYPE_CHECKING:
    from interp.causal.effects import Effects
    from interp.data.tasks import Task
    from interp.decoder.model import Model


@with_defaults(PatchConfig)
@options.opens
def patch(
    config: options.ConfigFile = None,
    model: options.ModelFlag = None,
    task: options.TaskFlag = None,
    corruption: options.Corruption = None,
    site: Annotated[
        str | None, typer.Option(help="resid_pre, attn_out, mlp_out, z, q, k, v, pattern, post, 2-5.z, a dictionary.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="layer; with head, neuron, expert or latent; with position: layer,head,position.")
    ] = None,
    components: Annotated[str | None, typer.Option(help="Only these: L3H5, L4.heads, L3N120, demo/417.")] = None,
    method: Annotated[
        str | None, typer.Option(help="denoise (clean into corrupted), noise (the reverse), trace (see --subject).")
    ] = None,
    metric: options.Metric = None,
    subject: Annotated[
        str | None, typer.Option(help="Of trace: the label whose embeddings get noise; else what is corrupted.")
    ] = None,
    noise: Annotated[float | None, typer.Option(help="Of trace: standard deviations of the embeddings.")] = None,
    window: Annotated[int | None, typer.Option(help="Of trace: layers restored together.")] = None,
    draws: Annotated[int | None, typer.Option(help="Of trace: draws of noise to average over.")] = None,
    n: options.N = None,
    seed: Annotated[int | None, typer.Option(help="Of prompts, noise and the bootstrap.")] = None,
    out: options.Out = None,
    workspace: options.WorkspaceFlag = None,
    overwrite: options.OverwriteFlag = None,
    shard: options.Shard = None,
    force: Annotated[bool, typer.Option("--force", help="Go on with a task that the model cannot do.")] = False,
    dry_run: options.DryRun = False,
    schema: options.Schema = False,
    *,
    opening: options.Opening,
) -> None:
    """Where does the answer travel? Carry activations from the clean run into the corrupted one (or back).

    Example: interp patch --task ioi --site resid_pre --by layer,position --n 100 --out ioi-patch
    """
    own = ("config", "shard", "force", "dry_run", "schema", "opening")
    flags = {key: value for key, value in locals().items() if key not in ("own", *own)} | opening.given()
    if schema:
        print(json.dumps(file_schema(PatchConfig), indent=2))
        return

    def settings(sweep: PatchSweep, c: PatchConfig, loaded: Model, prompts: Task) -> Settings:
        given = _settings(sweep, c, loaded)
        _plan(loaded, prompts, given)  # what was asked is checked before the model's ability
        if not (force or dry_run):
            from interp.causal.ability import check_ability

            check_ability(loaded, prompts)
        return given

    batch(Command("patch", PatchConfig, settings, _plan, _measure), config, flags, shard=shard, dry_run=dry_run)


def _settings(sweep: PatchSweep, c: PatchConfig, model: Model) -> Settings:
    """The settings of `interp.patch` or `interp.trace`, with the dictionary that they name."""
    given: Settings = {"method": sweep.method, "site": sweep.site, "metric": sweep.metric, "seed": sweep.seed}
    if sweep.method == "trace":
        by = sweep.by if isinstance(sweep.by, list) else [axis.strip() for axis in sweep.by.split(",")]
        if by != ["layer", "position"] or sweep.components is not None:
            raise InputError("a trace is by layer,position, without components: leave them out.")
        return given | {"subject": sweep.subject, "noise": sweep.noise, "window": sweep.window, "draws": sweep.draws}
    if others := [key for key in ("subject", "window", "noise", "draws") if key in sweep.model_fields_set]:
        raise InputError(f"{others[0]} is a setting of a trace: add --method trace.")
    there = (Path(c.workspace) / "saes" / sweep.site / "cfg.json").exists()
    known = {sweep.site: dictionary(sweep.site, c.workspace, model)} if there else {}
    return given | {"by": sweep.by, "components": sweep.components, "dictionaries": known}


def _plan(model: Model, task: Task, settings: Settings) -> Any:
    from interp.causal import patching, tracing

    given = {key: value for key, value in settings.items() if key != "seed"}
    if settings["method"] == "trace":
        given.pop("method")
        return tracing.plan(model, task, **given)
    return patching.plan(model, task, **given)


def _measure(model: Model, task: Task, *, method: str, shard: tuple[int, int] | None, **settings: Any) -> Effects:
    import interp

    if method == "trace":
        return interp.trace(model, task, **settings)
    return interp.patch(model, task, method=method, shard=shard, **settings)
