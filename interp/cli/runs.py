"""`interp runs`: join the parts of a sweep that several jobs have made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from interp import runs
from interp.cli import options
from interp.errors import InputError, MissingFile, nearest

app = typer.Typer(help="Runs: merge.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """So that `merge` keeps its name while it is the only command."""


@app.command()
def merge(
    name: Annotated[str, typer.Argument(help="The run's name, as given with --out.")],
    workspace: options.Workspace = options.WORKSPACE,
    overwrite: options.Overwrite = False,
) -> None:
    """Join NAME.shard-1-of-4, ... into NAME: intervals and q are of all rows again.

    Example: interp runs merge ioi-neurons
    """
    parts = _parts(workspace / "runs", name)
    made = [runs.read(part) for part in parts]
    config = {key: value for key, value in made[0]["config"].items() if key != "shard"}
    for part, run in zip(parts, made, strict=True):
        same = {key: value for key, value in run["config"].items() if key != "shard"} == config
        if not same or run["model"] != made[0]["model"] or run["seed"] != made[0]["seed"]:
            raise InputError(f"{part} was made with other settings than {parts[0]}: they are not parts of one sweep.")
    path = runs.place(workspace, "runs", name, made[0]["kind"])
    from interp.causal.effects import Effects, join
    from interp.reports import html

    with runs.recording(
        path, kind=made[0]["kind"], config=config, model=made[0]["model"], seed=made[0]["seed"],
        device=made[0]["device"], overwrite=overwrite,
    ):  # fmt: skip
        effects = join([Effects.load(part) for part in parts], seed=made[0]["seed"])
        effects.save(path)
        runs.write_text(path / "prompts.jsonl", (parts[0] / "prompts.jsonl").read_text(encoding="utf-8"))
        runs.write_text(path / "report.html", html(effects, name, runs.read(path)))
    print(f"{len(parts)} parts, {len(effects.rows)} rows -> {path / 'effects.parquet'}")


def _parts(folder: Path, name: str) -> list[Path]:
    """The folders of a sweep's parts, in order. InputError where one is missing or not finished."""
    found = {}
    for path in folder.glob(f"{name}.shard-*-of-*"):
        if match := re.fullmatch(re.escape(name) + r"\.shard-(\d+)-of-(\d+)", path.name):
            found.setdefault(int(match[2]), {})[int(match[1])] = path
    if not found:
        there = sorted({path.name.partition(".shard-")[0] for path in folder.glob("*.shard-*")})
        raise MissingFile(
            f'no parts of "{name}" in {folder}.' + (f" Nearest: {nearest(name, there)}." if there else "")
        )
    if len(found) > 1:
        raise InputError(f'"{name}" was split into {" and into ".join(map(str, sorted(found)))} parts: remove one set.')
    n, parts = found.popitem()
    if missing := [i for i in range(1, n + 1) if i not in parts or not runs.is_done(parts[i])]:
        raise InputError(f'of the {n} parts of "{name}" these are not finished: {", ".join(map(str, missing))}.')
    return [parts[i] for i in range(1, n + 1)]
