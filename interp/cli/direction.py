"""`interp direction`: find a direction, see what pushing along it does, take it out of the weights."""

from __future__ import annotations

from dataclasses import replace
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
    from interp.causal.steering import DoseResponse
    from interp.decoder.model import Model

app = typer.Typer(help="Directions of the residual stream: find, test, remove.", no_args_is_help=True)

DRAWN = 10
"""Prompts drawn for each one asked for: those that the direction was found on are left out."""

Name = Annotated[str, typer.Argument(help="A direction: a run of interp direction find, or its folder.")]


@app.command()
@options.opens
def find(
    positive: Annotated[Path | None, typer.Option(help="A text file, a prompt a line.")] = None,
    negative: Annotated[Path | None, typer.Option(help="A text file, a prompt a line.")] = None,
    task: Annotated[str | None, typer.Option(help="In place of files: ioi, agreement, ..., or prompt pairs.")] = None,
    answer: Annotated[str | None, typer.Option(help="Of a task of two answers: the positive one, e.g. ' are'.")] = None,
    model: options.ModelName = "bundled",
    site: Annotated[str, typer.Option(help="Hook points that are tried; several with commas.")] = "*.resid_post",
    method: Annotated[str, typer.Option(help="mean-difference, pca or probe.")] = "mean-difference",
    position: Annotated[str, typer.Option(help="Where prompts are read: an index, a task's label, all (mean).")] = "-1",
    paired: Annotated[bool, typer.Option("--paired", help="Line n of both files is a pair.")] = False,
    held_out: Annotated[float, typer.Option(help="Share of the examples that judge the direction.")] = 0.25,
    n: options.N = None,
    edit: options.Edits = None,
    seed: options.Seed = 0,
    out: options.Keep = None,
    workspace: options.Workspace = options.WORKSPACE,
    overwrite: options.Overwrite = False,
    *,
    opening: options.Opening,
) -> None:
    """Along which line of the residual stream do two sets of prompts differ? Found at the site that tells them apart
    best, judged on prompts held out, beside random directions and shuffled labels.

    Example: interp direction find --task simple_agreement --answer ' are' --site 1.resid_post --out plural

    Example: interp direction find --positive glad.txt --negative sad.txt --position all --out joy
    """
    given = kept(locals())
    path = place(out, workspace, "direction", overwrite)
    if (task is None) == (positive is None) or (positive is None) != (negative is None):
        raise InputError("two sets of prompts are needed: --positive FILE and --negative FILE, or --task NAME.")
    if answer is not None and task is None:
        raise InputError("--answer given: it goes with --task.")
    import interp
    from interp.cli import editing

    loaded = opening.load(model)
    prompts = None if task is None else interp.load_task(task, loaded, n=n, seed=seed)
    found = interp.find_direction(
        loaded, positive if prompts is None else prompts, negative, site=site.split(","), method=method,
        position=_position(position, prompts is not None), answer=answer, paired=paired, held_out=held_out,
        name=out or "direction", edits=editing.read(edit, loaded, workspace), seed=seed,
    )  # fmt: skip
    if path is not None:
        with recorded(path, "direction", given, loaded, seed, overwrite):
            found.save(path)
            if prompts is not None:
                prompts.save(path / "prompts.jsonl", loaded)
            _report(path, found)
    _say(found)
    if path is not None:
        print(f"-> {path / 'direction.safetensors'}, {path / 'report.html'}")


def _position(text: str, has_labels: bool) -> int | str:
    """An index, or a word: "all", or a label where the prompts are a task's."""
    if text.lstrip("-").isdigit():
        return int(text)
    if text != "all" and not has_labels:
        raise InputError(f'position "{text}" given: an index such as -1, or all; labels are a task\'s.')
    return text


def _say(found: Direction) -> None:
    about, table = found.about, found.table()
    counts = found.examples["set"].value_counts()
    positive, negative = about["names"]
    print(f"positive: {positive} ({counts[positive]}); negative: {negative} ({counts[negative]})")
    if about["dropped"]:
        print(f"{about['dropped']} prompts or pairs left out: the same as others up to the position read")
    for row in table.itertuples():
        chosen, interval = "->" if row.chosen else "  ", f"[{row.ci_low:.3f}, {row.ci_high:.3f}]"
        print(
            f"{chosen} {row.site:>16}  accuracy {row.accuracy:.3f} {interval}  AUROC {row.auroc:.3f}  gap "
            f"{row.gap:.3g} of norm {row.norm:.3g}  (shuffled {row.shuffled:.3f}, random {row.random:.3f})"
        )


def _report(path: Path, found: Direction) -> None:
    from interp import reports

    positive, negative = found.about["names"]
    text = (
        f'Direction "{found.name}" by {found.method}, from {negative} to {positive}. Accuracy: the mean of both sets\' '
        "shares of held-out examples on the right side of the threshold, with its 95% interval; 1 is perfect, .5 "
        "chance. The gap is the distance between the two sets' means along the direction."
    )
    parts = [f"<p>{reports.escape.escape(text)}</p>", reports.drawn(found.figure(), path.name)]
    if len(found.sites) > 1:
        parts.append(reports.drawn(found.sites_figure(), path.name))
    parts.append(reports.table_html(found.table()))
    runs.write_text(path / "report.html", reports.page(path.name, parts, runs.read(path), found.about.get("task")))


@app.command()
@options.opens
def test(
    name: Name,
    model: options.ModelName = "bundled",
    task: Annotated[str | None, typer.Option(help="Prompts; those of the direction's own task, others drawn.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="In place of a task: a text file, a prompt a line.")] = None,
    toward: Annotated[str | None, typer.Option(help="Tokens to go toward, with commas, e.g. 'she, her'.")] = None,
    away: Annotated[str | None, typer.Option(help="Tokens to go away from, e.g. 'he, his'.")] = None,
    strengths: Annotated[str | None, typer.Option(help="In the stream's unit, with commas; -2 to 2 gaps.")] = None,
    site: Annotated[str | None, typer.Option(help="Where it is pushed; where it was found if not given.")] = None,
    new_tokens: Annotated[int, typer.Option(help="Count the words in continuations of so many tokens too.")] = 0,
    text: Annotated[str, typer.Option(help="Text whose perplexity should not change: a path or bundled.")] = "bundled",
    windows: Annotated[int, typer.Option(help="Windows of that text; 0 for none.", min=0)] = 32,
    n_random: Annotated[int, typer.Option(help="Random directions beside it.", min=1)] = 5,
    n: Annotated[int, typer.Option(help="Number of prompts.", min=2)] = 100,
    seed: Annotated[int, typer.Option(help="Of the prompts drawn, random directions and the bootstrap.")] = 1,
    out: options.Keep = None,
    workspace: options.Workspace = options.WORKSPACE,
    overwrite: options.Overwrite = False,
    *,
    opening: options.Opening,
) -> None:
    """What does pushing along a direction do? The next token by strength of the push, beside random directions, on
    prompts it was not found on; the task with the direction projected out; perplexity on other text.

    Example: interp direction test plural --task agreement --n 100 --out plural-test
    """
    given = kept(locals())
    path = place(out, workspace, "direction-test", overwrite)
    folder, doses = _folder(workspace, name), _numbers(strengths)
    import interp
    from interp.causal import steering
    from interp.causal.directions import Direction

    loaded = opening.load(model)
    direction = Direction.load(folder, loaded)
    asked = _asked(direction, loaded, task, prompts, n, seed)
    sites = None if site is None else site.split(",")
    dose = interp.dose_response(
        loaded, direction, asked, strengths=doses, toward=_words(loaded, toward), away=_words(loaded, away),
        sites=sites, new_tokens=new_tokens, n_random=n_random, seed=seed, progress=True,
    )  # fmt: skip
    of_a_task = prompts is None and asked.has_wrong
    removal = steering.removal(loaded, direction, asked, sites=sites, seed=seed) if of_a_task else None
    gap = direction.gap
    changes = {
        "pushed by +1 gap": direction.steer(gap, sites=sites), "pushed by -1 gap": direction.steer(-gap, sites=sites),
        "projected out where found": direction.project_out(sites=sites),
        "projected out of every write": direction.ablate(loaded),
    }  # fmt: skip
    spoiled = interp.perplexity(loaded, text, changes, n=windows, seed=seed, progress=True) if windows else None
    tables = {"removal": removal, "perplexity": None if spoiled is None else spoiled.table()}
    tables = {key: value for key, value in tables.items() if value is not None}
    if path is not None:
        with recorded(path, "direction-test", given, loaded, seed, overwrite):
            dose.save(path)
            for key, table in tables.items():
                table.to_parquet(path / f"{key}.parquet", index=False)
            if prompts is None:
                asked.save(path / "prompts.jsonl", loaded)
            _test_report(path, dose, tables)
    _say_test(dose, tables)
    if path is not None:
        print(f"-> {path / 'dose.parquet'}, {path / 'report.html'}")


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


def _folder(workspace: Path, name: str) -> Path:
    """The folder of a direction: a run, or where it was saved."""
    run = workspace / "runs" / name
    folder = run if (run / "direction.json").is_file() else Path(name)
    if not (folder / "direction.json").is_file():
        there = [path.parent.name for path in (workspace / "runs").glob("*/direction.json")]
        near = f"Nearest: {nearest(name, there)}." if there else "Make one with interp direction find."
        raise MissingFile(f'no direction "{name}" in {workspace / "runs"}. {near}')
    return folder


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


def _say_test(dose: DoseResponse, tables: dict[str, pd.DataFrame]) -> None:
    table, about = dose.table(), dose.about
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
    for key, table in tables.items():
        print(f"{key}:")
        for row in table.itertuples():
            number = f"logit_diff {row.logit_diff:+.3f}, accuracy {row.accuracy:.3f}" if key == "removal" else (
                f"{row.perplexity:.3f}, ratio {row.ratio:.4f} [{row.ci_low:.4f}, {row.ci_high:.4f}]"
            )  # fmt: skip
            print(f"  {row.change:<42} {number}")


def _test_report(path: Path, dose: DoseResponse, tables: dict[str, pd.DataFrame]) -> None:
    from interp import reports

    parts = []
    for measure in dose.table()["measure"].unique():
        parts.append(reports.drawn(dose.figure(measure), path.name))
    titles = {"removal": "The task without the direction", "perplexity": "Perplexity of other text"}
    for key, table in tables.items():
        parts += [f"<h2>{titles[key]}</h2>", reports.table_html(table)]
    parts += ["<h2>Every strength</h2>", reports.table_html(dose.table())]
    runs.write_text(path / "report.html", reports.page(path.name, parts, runs.read(path), dose.about["task"]))


@app.command()
@options.opens
def remove(
    name: Name,
    to: Annotated[Path, typer.Option(help="The Hugging Face directory to write; it must not exist.")],
    model: options.ModelName = "bundled",
    text: Annotated[str, typer.Option(help="Text for the perplexity before and after: a path or bundled.")] = "bundled",
    windows: Annotated[int, typer.Option(help="Windows of that text; 0 for none.", min=0)] = 32,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    workspace: options.Workspace = options.WORKSPACE,
    *,
    opening: options.Opening,
) -> None:
    """Take a direction out of the weights: every matrix that writes to the residual stream is made orthogonal to it.
    The result is a model folder like any other, and does what projecting it out at every write does.

    Example: interp direction remove plural --to models/no-plural
    """
    folder = _folder(workspace, name)
    import interp
    from interp.causal.directions import Direction

    loaded = opening.load(model)
    changed = interp.orthogonalise(loaded, Direction.load(folder, loaded), to)
    if windows:
        row = interp.perplexity(loaded, text, {"changed": changed}, n=windows, seed=seed, progress=True).table().loc[1]
        before = row.perplexity / row.ratio
        interval = f"[{row.ci_low:.4f}, {row.ci_high:.4f}]"
        print(f"perplexity {before:.3f} -> {row.perplexity:.3f}, ratio {row.ratio:.4f} {interval}, n = {row.n} windows")
    print(f"-> {to}")
