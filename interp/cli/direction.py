"""`interp direction`: find a direction, see what pushing along it does, take it out of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import Field

from interp import runs
from interp.cli import options, pushing
from interp.cli.flags import Look, command
from interp.cli.keeping import place
from interp.errors import InputError

if TYPE_CHECKING:
    from interp.causal.directions import Direction

app = typer.Typer(help="Directions of the residual stream: find, test, remove.", no_args_is_help=True)


class Find(Look):
    """The file of `interp direction find`."""

    positive: Path | None = Field(None, description="A text file, a prompt a line.")
    negative: Path | None = Field(None, description="A text file, a prompt a line.")
    task: str | None = Field(None, description="In place of files: ioi, agreement, ..., or prompt pairs.")
    store: str | None = Field(None, description="In place of prompts: a store, with --labels.")
    labels: Path | None = Field(None, description="Of a store: a .parquet or .csv with the columns row and label.")
    answer: str | None = Field(None, description="Of a task of two answers, or of labels: the positive one, ' are'.")
    site: str = Field("*.resid_post", description="Hook points that are tried; several with commas.")
    method: str = Field("mean-difference", description="mean-difference, pca or probe.")
    position: str = Field("-1", description="Where prompts are read: an index, a task's label, all (mean).")
    paired: bool = Field(False, description="Line n of both files is a pair.")
    held_out: float = Field(0.25, description="Share of the examples that judge the direction.")


@app.command()
@command(Find)
def find(c: Find) -> None:
    """Along which line of the residual stream do two sets of prompts differ, or of labelled rows of a store? Found at
    the site that tells them apart best, judged on examples held out, beside random directions and shuffled labels.

    Example: interp direction find --task simple_agreement --answer ' are' --site 1.resid_post --out plural

    Example: interp direction find --positive glad.txt --negative sad.txt --position all --out joy

    Example: interp direction find --store novel --labels verbs.csv --answer past --out past
    """
    path = place(c.out, c.workspace, "direction", c.overwrite)
    _one_source(c)
    import interp
    from interp.cli import editing

    told = {
        "site": c.site.split(","), "method": c.method, "answer": c.answer, "held_out": c.held_out,
        "name": c.out or "direction", "seed": c.seed, "progress": True,
    }  # fmt: skip
    prompts = None
    if c.store is not None:
        c.check_none("rows of a store are read, no model is opened")
        store = interp.Store(Path(c.store) if Path(c.store).is_dir() else c.workspace / "stores" / c.store)
        found, made_with, device = interp.find_direction(store, c.labels, **told), store.model, "cpu"
    else:
        loaded = c.load(c.model)
        prompts = None if c.task is None else interp.load_task(c.task, loaded, n=c.n, seed=c.seed)
        found = interp.find_direction(
            loaded, prompts or c.positive, c.negative, position=_position(c.position, prompts is not None),
            paired=c.paired, edits=editing.read(c.edit, loaded, c.workspace), **told,
        )  # fmt: skip
        made_with, device = loaded.provenance(), loaded.where
    if path is not None:
        with runs.recording(
            path, kind="direction", config=c.asked(), model=made_with, seed=c.seed, device=device,
            overwrite=c.overwrite,
        ):  # fmt: skip
            found.save(path)
            if prompts is not None:
                prompts.save(path / "prompts.jsonl", loaded)
            _report(path, found)
    _say(found)
    if path is not None:
        print(f"-> {path / 'direction.safetensors'}, {path / 'report.html'}")


def _one_source(c: Find) -> None:
    """InputError unless examples come from one place, and what is said of them applies there."""
    given = [c.positive is not None or c.negative is not None, c.task is not None, c.store is not None]
    if sum(given) != 1 or (c.positive is None) != (c.negative is None):
        raise InputError(
            "two sets of prompts are needed: --positive FILE and --negative FILE, or --task NAME, or --store NAME."
        )
    if (c.store is None) != (c.labels is None):
        raise InputError("--store and --labels go together: a store, and a file that labels its rows.")
    if c.answer is not None and c.positive is not None:
        raise InputError("--answer given: it goes with --task, or with --labels.")
    unread = {"edit": c.edit, "n": c.n, "paired": c.paired, "position": c.position != "-1"}
    if c.store is not None and (names := [f"--{name}" for name, value in unread.items() if value]):
        raise InputError(f"{names[0]} given: it is of prompts; the rows of a store are as they were recorded.")


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


app.command()(pushing.test)


@app.command()
@options.opens
def remove(
    name: Annotated[str, typer.Argument(help=pushing.A_DIRECTION)],
    to: Annotated[Path, typer.Option(help="The Hugging Face directory to write; it must not exist.")],
    model: options.ModelName = "bundled",
    text: Annotated[str, typer.Option(help="Text for the perplexity before and after: a path or bundled.")] = "bundled",
    windows: Annotated[int, typer.Option(help="Windows of that text; 0 for none, -1 for all of it.", min=-1)] = 32,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    workspace: options.Workspace = options.WORKSPACE,
    *,
    opening: options.Opening,
) -> None:
    """Take a direction out of the weights: every matrix that writes to the residual stream is made orthogonal to it.
    The result is a model folder like any other, and does what projecting it out at every write does.

    Example: interp direction remove plural --to models/no-plural
    """
    folder = pushing.folder(workspace, name)
    import interp
    from interp.causal.directions import Direction

    loaded = opening.load(model)
    if windows:
        pushing.check_text(loaded, text)
    changed = interp.orthogonalise(loaded, Direction.load(folder, loaded), to, progress=True)
    if windows:
        n = None if windows < 0 else windows
        table = interp.perplexity(loaded, text, {"changed": changed}, n=n, seed=seed, progress=True).table()
        before, row = table.perplexity[0], table.loc[1]
        interval = f"[{row.ci_low:.4f}, {row.ci_high:.4f}]"
        print(
            f"perplexity {before:.3f} -> {row.perplexity:.3f}, ratio {row.ratio:.4f} {interval}, n = {row.n} windows, "
            f"{row.n_tokens:,} tokens"
        )
    print(f"-> {to}")
