"""`interp direction test`: what pushing along directions does, beside directions that mean nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp import runs
from interp.cli import options
from interp.cli.keeping import place, recorded
from interp.cli.keeping import settings as kept
from interp.errors import InputError, MissingFile, UnknownTask, nearest

if TYPE_CHECKING:
    import pandas as pd

    from interp.causal.directions import Direction
    from interp.causal.perplexity import Perplexity
    from interp.causal.steering import DoseResponse
    from interp.data.tasks import Task
    from interp.decoder.model import Model

DRAWN = 10
"""Prompts drawn for each one asked for: those that the direction was found on are left out."""

A_DIRECTION = "A direction: a run of interp direction find, or its folder."


@options.opens
def test(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help=A_DIRECTION)],
    model: options.ModelName = "bundled",
    task: Annotated[str | None, typer.Option(help="Prompts; those of a direction's own task, others drawn.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="In place of a task: a text file, a prompt a line.")] = None,
    toward: Annotated[str | None, typer.Option(help="Tokens to go toward, with commas, e.g. 'she, her'.")] = None,
    away: Annotated[str | None, typer.Option(help="Tokens to go away from, e.g. 'he, his'.")] = None,
    strengths: Annotated[str | None, typer.Option(help="In the stream's unit, with commas; -2 to 2 gaps.")] = None,
    site: Annotated[str | None, typer.Option(help="Where it is pushed; where it was found if not given.")] = None,
    new_tokens: Annotated[int, typer.Option(help="Count the words in continuations of so many tokens too.")] = 0,
    text: Annotated[str, typer.Option(help="Text whose perplexity should not change: a path or bundled.")] = "bundled",
    windows: Annotated[int, typer.Option(help="Windows of that text; 0 for none, -1 for all of it.", min=-1)] = 32,
    n_random: Annotated[int, typer.Option(help="Random directions beside it.", min=1)] = 5,
    n: Annotated[int, typer.Option(help="Number of prompts.", min=2)] = 100,
    seed: Annotated[int, typer.Option(help="Of the prompts drawn, random directions and the bootstrap.")] = 1,
    out: options.Keep = None,
    workspace: options.Workspace = options.WORKSPACE,
    overwrite: options.Overwrite = False,
    *,
    opening: options.Opening,
) -> None:
    """What does pushing along a direction do? The next token by strength of the push, beside random directions and
    those of shuffled labels, on prompts it was not found on; the task with the direction projected out; perplexity on
    other text. Of several directions all are told, by one measure: the whole interval beyond every control.

    Example: interp direction test plural --task agreement --n 100 --out plural-test

    Example: interp direction test plural she agreed --out contrasts
    """
    given = kept(locals())
    path = place(out, workspace, "direction-test", overwrite)
    folders, doses = {name: folder(workspace, name) for name in names}, _numbers(strengths)
    if len({found.name for found in folders.values()}) < len(names):
        raise InputError(f"directions {', '.join(names)} given: each once.")
    from interp.causal.directions import Direction

    loaded = opening.load(model)
    directions = [Direction.load(found, loaded) for found in folders.values()]
    prompted = [_asked(direction, loaded, task, prompts, n, seed) for direction in directions]
    if windows:
        check_text(loaded, text)
    sites = None if site is None else site.split(",")
    settings = {
        "strengths": doses, "toward": _words(loaded, toward), "away": _words(loaded, away), "new_tokens": new_tokens,
        "n_random": n_random, "sites": sites, "seed": seed,
    }  # fmt: skip
    found = []
    for at, direction, asked in zip(folders.values(), directions, prompted, strict=True):
        tested = _tested(loaded, at.name, direction, asked, settings, text, windows)
        _say(tested)
        found.append(tested)
    if len(found) > 1:
        _say_verdict(_verdict(found))
    if path is not None:
        with recorded(path, "direction-test", given, loaded, seed, overwrite):
            for tested in found:
                into = path if len(found) == 1 else path / tested.name
                tested.save(into)
                if prompts is None:
                    tested.prompts.save(into / "prompts.jsonl", loaded)
            _verdict(found).to_parquet(path / "verdict.parquet", index=False)
            _report(path, found)
        print(f"-> {path / 'verdict.parquet'}, {path / 'report.html'}")


@dataclass(frozen=True)
class _Tested:
    """What was measured of one direction."""

    name: str
    prompts: Task | list[str]
    dose: DoseResponse
    removal: pd.DataFrame | None
    perplexity: Perplexity | None

    def tables(self) -> dict[str, pd.DataFrame]:
        found = {"removal": self.removal, "perplexity": self.perplexity and self.perplexity.table()}
        return {key: table for key, table in found.items() if table is not None}

    def save(self, path: Path) -> None:
        self.dose.save(path)
        if self.removal is not None:
            self.removal.to_parquet(path / "removal.parquet", index=False)
        if self.perplexity is not None:
            self.perplexity.save(path)


def _tested(
    model: Model, name: str, direction: Direction, asked: Any, settings: dict[str, Any], text: str, windows: int
) -> _Tested:
    import interp
    from interp.causal.steering import removal
    from interp.data.tasks import Task

    dose = interp.dose_response(model, direction, asked, progress=True, **settings)
    few = {key: settings[key] for key in ("sites", "n_random", "seed")}
    of_a_task = isinstance(asked, Task) and asked.has_wrong
    removed = removal(model, direction, asked, progress=True, **few) if of_a_task else None
    sites, gap = settings["sites"], direction.gap
    changes = {
        "pushed by +1 gap": direction.steer(gap, sites=sites), "pushed by -1 gap": direction.steer(-gap, sites=sites),
        "projected out where found": direction.project_out(sites=sites),
        "projected out of every write": direction.ablate(model),
    }  # fmt: skip
    n = None if windows < 0 else windows
    spoiled = None
    if windows:
        spoiled = interp.perplexity(model, text, changes, n=n, seed=settings["seed"], progress=True)
    return _Tested(name, asked, dose, removed, spoiled)


def _verdict(found: list[_Tested]) -> pd.DataFrame:
    """`DoseResponse.verdict` of every direction."""
    import pandas as pd

    tables = [
        tested.dose.verdict().assign(
            direction=tested.name, task=tested.dose.about["task"], site=tested.dose.about["site"]
        )
        for tested in found
    ]
    table = pd.concat(tables, ignore_index=True)
    return table[["direction", "task", "site", *(c for c in table if c not in ("direction", "task", "site"))]]


def _asked(direction: Direction, model: Model, task: str | None, prompts: Path | None, n: int, seed: int) -> Any:
    """Prompts of a file; or of a task, without those the direction was found on."""
    import interp
    from interp.causal.examples import lines

    if task is not None and prompts is not None:
        raise InputError("--task and --prompts given: one of the two.")
    if prompts is not None:
        return lines(prompts)[:n]
    named = task or direction.about.get("task")
    if named is None:
        raise InputError("the direction was not found on a task: give --task, or --prompts with --toward and --away.")
    try:
        drawn = interp.load_task(named, model, n=DRAWN * n, seed=seed)
    except UnknownTask:
        if task is not None:
            raise
        raise InputError(
            f'the direction was found on prompts of a file ("{named}"): give that file or others with --task.'
        ) from None
    unseen = direction.unseen(drawn)
    return replace(unseen, prompts=unseen.prompts[:n])


def folder(workspace: Path, name: str) -> Path:
    """The folder of a direction: a run, or where it was saved."""
    run = workspace / "runs" / name
    found = run if (run / "direction.json").is_file() else Path(name)
    if not (found / "direction.json").is_file():
        there = [path.parent.name for path in (workspace / "runs").glob("*/direction.json")]
        near = f"Nearest: {nearest(name, there)}." if there else "Make one with interp direction find."
        raise MissingFile(f'no direction "{name}" in {workspace / "runs"}. {near}')
    return found


def check_text(model: Model, text: str) -> None:
    """MissingFile or InputError for a text that has not a window, before anything is written."""
    from interp.data.text import read_text
    from interp.data.text import windows as windows_of

    windows_of(model, read_text(text), context=min(128, model.n_ctx), n_tokens=1)


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f'strengths "{text}" given: numbers with commas, e.g. -8,-4,4,8.') from None


def _words(model: Model, text: str | None) -> list[str]:
    """`"she, her"` as `[" she", " her"]`, with the space before a word; without it where the tokenizer adds its own."""
    from interp.data.wording import Words

    words = [part.strip() for part in text.split(",")] if text else []
    return [f" {word}" if Words(model).is_single(word) else word for word in words]


def _say(tested: _Tested) -> None:
    dose = tested.dose
    table, about, verdict = dose.table(), dose.about, dose.verdict()
    print(f"{tested.name}, pushed at {', '.join(about['sites'])}")
    for measure, rows in table.groupby("measure", sort=False):
        ours = rows[rows["kind"] == "direction"].sort_values("strength")
        of = "" if measure == "kl" else f" ({about['toward']} over {about['away']})"
        print(f"{measure}{of}, n = {ours['n'].iloc[0]}:")
        for row in ours.itertuples():
            beside = rows[(rows["kind"] != "direction") & (rows["strength"] == row.strength)]
            others = ", ".join(
                f"{other.kind} {other.least:+.2f} to {other.largest:+.2f}" for other in beside.itertuples()
            )
            print(
                f"  {row.strength:+8.3g} ({row.gaps:+.2g} gaps)  {row.effect:+.3f} "
                f"[{row.ci_low:+.3f}, {row.ci_high:+.3f}]  ({others})"
            )
        ours = verdict[verdict["measure"] == measure]
        if len(ours):
            clear = ", ".join(f"{row.gaps:+.2g}" for row in ours[ours["clear"]].itertuples()) or "none"
            print(
                f"  the whole interval on the side pushed to, beyond every control pushed either way, at gaps: {clear}"
            )
    for key, table in tested.tables().items():
        print(f"{key}:")
        for row in table.itertuples():
            number = (
                f"logit_diff {row.logit_diff:+.3f}, accuracy {row.accuracy:.3f}, effect {row.effect:+.3f} "
                f"[{row.ci_low:+.3f}, {row.ci_high:+.3f}], of one {row.least:+.2f} to {row.largest:+.2f}"
                if key == "removal"
                else f"{row.perplexity:.3f} [{row.perplexity_low:.3f}, {row.perplexity_high:.3f}], "
                f"ratio {row.ratio:.4f} [{row.ci_low:.4f}, {row.ci_high:.4f}], {row.n_tokens:,} tokens"
            )
            print(f"  {row.change:<50} {number}")


def _say_verdict(table: pd.DataFrame) -> None:
    """All directions at one gap, or at every strength where none is one gap."""
    one = table["gaps"].abs().sub(1).abs() < 1e-6
    print("all directions; controls: the largest |effect| of one, pushed either way")
    for row in (table[one] if one.any() else table).itertuples():
        print(
            f"  {row.direction:>16} {row.measure:<8} {row.gaps:+.2g} gaps  {row.effect:+.3f} [{row.ci_low:+.3f}, "
            f"{row.ci_high:+.3f}]  random {row.random:.2f}, shuffled {row.shuffled:.2f}  "
            f"{'clear' if row.clear else 'NOT clear'} of them"
        )


_TITLES = {"removal": "The task without the direction", "perplexity": "Perplexity of other text"}
_READ = (
    "Every direction that was asked for. random, shuffled: the largest |effect| of one control at that strength, "
    "pushed either way. clear: the whole 95% interval lies on the side pushed to, beyond every control."
)


def _report(path: Path, found: list[_Tested]) -> None:
    from interp import reports

    verdict = _verdict(found)
    if len(found) == 1:
        verdict = verdict.drop(columns=["direction", "task", "site"])
    parts = [f"<p>{reports.escape.escape(_READ)}</p>", reports.table_html(verdict)]
    for tested in found:
        if len(found) > 1:
            parts.append(f"<h2>{reports.escape.escape(tested.name)}</h2>")
        parts += [reports.drawn(tested.dose.figure(m), path.name) for m in tested.dose.table()["measure"].unique()]
        for key, table in tested.tables().items():
            parts += [f"<h3>{_TITLES[key]}</h3>", reports.table_html(table)]
        parts += ["<h3>Every strength</h3>", reports.table_html(tested.dose.table())]
    task = found[0].dose.about["task"] if len(found) == 1 else None
    runs.write_text(path / "report.html", reports.page(path.name, parts, runs.read(path), task))
