"""`interp ablate`: an ablation from a YAML file, from flags, or from both (flags win)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, ValidationError

from interp import runs
from interp.cli import options
from interp.errors import InputError, MissingFile, UnknownKey, nearest

if TYPE_CHECKING:
    from interp.causal.effects import Effects
    from interp.data.tasks import Task
    from interp.decoder.loading import Model


class Config(BaseModel):
    """The keys of the YAML file; the flags are the same with dashes."""

    model_config = ConfigDict(extra="forbid")
    model: str = "bundled"
    task: str = "ioi"
    components: str | list[str] = "heads"
    method: str | list[str] = "mean"
    metric: str | list[str] | None = None
    position: str | int = "all"
    n: int | None = None
    seed: int = 0
    device: str | None = None
    dtype: str = "float32"
    out: str | None = None
    workspace: str = str(options.WORKSPACE)
    overwrite: bool = False


def read_config(path: Path | None, flags: dict[str, Any]) -> Config:
    """The file's keys with the flags given over them. One line naming the key that is wrong."""
    import yaml

    content: Any = {}
    if path is not None:
        if not path.exists():
            beside = [str(p) for p in path.parent.glob("*.y*ml")]
            raise MissingFile(f'no file "{path}".' + (f" Nearest: {nearest(str(path), beside)}." if beside else ""))
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
        if not isinstance(content, dict):
            raise InputError(f'{path} holds no keys: write "task: ioi", a key a line.')
    try:
        return Config(**(content | {key: value for key, value in flags.items() if value is not None}))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise UnknownKey(
                f'{path} has an unknown key "{key}". Nearest: {nearest(key, Config.model_fields)}.'
            ) from None
        raise InputError(f'key "{key}": {first["msg"]}, {first["input"]!r} given.') from None


def ablate(
    config: Annotated[Path | None, typer.Argument(help="A YAML file of the flags' names.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help='"bundled", a local directory, or a name on the hub.')] = None,
    task: Annotated[str | None, typer.Option(help="ioi, induction, agreement, or a .jsonl of prompt pairs.")] = None,
    components: Annotated[str | None, typer.Option(help="heads, mlps, attn, or names: L3H5,L2.mlp.")] = None,
    method: Annotated[str | None, typer.Option(help="zero, mean, or both: zero,mean.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="logit_diff, loss, kl, prob, accuracy; several with commas.")
    ] = None,
    position: Annotated[str | None, typer.Option(help='"all", an index (-1 the last) or a label of the task.')] = None,
    n: options.N = None,
    seed: Annotated[int | None, typer.Option(help="Of the prompts drawn and of the bootstrap.")] = None,
    out: options.Out = None,
    workspace: Annotated[str | None, typer.Option(help="The folder with runs/, stores/ and saes/.")] = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="Replace what is finished.")] = None,
    device: options.Device = None,
    dtype: Annotated[str | None, typer.Option(help="What the model computes in.")] = None,
) -> None:
    """Which components does the behaviour need? Replace each alone; write the effects, with 95% intervals, to a run.

    Example: interp ablate --task ioi --components heads --method mean --metric logit_diff --n 200 --out ioi-heads
    """
    flags = {key: value for key, value in locals().items() if key != "config"}
    c = read_config(config, flags)
    path = runs.place(Path(c.workspace), "runs", c.out, "ablate")
    runs.check_free(path, c.overwrite)
    import interp

    loaded = interp.load_model(c.model, device=c.device, dtype=c.dtype)
    prompts = interp.load_task(c.task, loaded, n=c.n, seed=c.seed)
    with recorded(
        path, "ablate", c.model_dump(exclude={"out", "workspace", "overwrite", "device"}), loaded, c.seed, c.overwrite
    ):
        effects = interp.ablate(
            loaded, prompts, components=c.components, method=c.method, metric=c.metric, position=c.position,
            seed=c.seed, progress=True,
        )  # fmt: skip
        keep(effects, prompts, loaded, path)
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
    task.save(path / "prompts.jsonl", model)
    effects.save(path)


def report(effects: Effects, path: Path, n: int = 5) -> None:
    """The rows that matter most, and where the rest is."""
    for row in effects.top(n).itertuples():
        at = "" if row.position == "all" else f" at {row.position}"
        print(
            f"{row.component:>12}{at:<8} {row.method:>7} {row.metric} {row.baseline:+.3f} -> {row.value:+.3f}  "
            f"effect {row.effect:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]  n={row.n}"
        )
    print(f"{len(effects.rows)} rows -> {path / 'effects.parquet'}")
