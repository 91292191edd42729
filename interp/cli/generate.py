"""`interp generate`: what the model writes, with edits and without them, side by side."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp import runs
from interp.cli import options
from interp.cli.keeping import place, recorded
from interp.errors import InputError, MissingFile

if TYPE_CHECKING:
    from interp.decoder.generation import Generation

SHOWN = 20
"""Prompts printed, and shown token by token in the report."""


@options.opens
def generate(
    prompt: Annotated[list[str] | None, typer.Argument(help="Texts to go on from.", show_default=False)] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file with a prompt a line, in place of the texts.")] = None,
    model: options.ModelName = "bundled",
    edit: options.Edits = None,
    where: Annotated[
        str, typer.Option(help="Positions edited: all, prompt, new, or numbers with commas; -1 is the prompt's last.")
    ] = "all",
    patterns: Annotated[
        str, typer.Option(help="Attention of the edited run: live, or frozen as it is without edits.")
    ] = "live",
    n: Annotated[int, typer.Option("--n", help="Continuations of each prompt.")] = 1,
    best_of: Annotated[int | None, typer.Option(help="Draw so many and keep the n likeliest.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens written at most.")] = 40,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest tokens that hold this much.")] = None,
    seed: Annotated[int, typer.Option(help="Of the tokens drawn.")] = 0,
    out: options.Keep = None,
    workspace: options.Workspace = options.WORKSPACE,
    overwrite: options.Overwrite = False,
    *,
    opening: options.Opening,
) -> None:
    """Continue texts. With --edit the edited continuation stands beside the one of the same seed without edits, with
    KL(edited || baseline) of each next token.

    Example: interp generate "The captain said" --edit L1.mlp=0 --temperature 0.8 --seed 1 --out no-mlp
    """
    texts = _texts(prompt, prompts)
    path = place(out, workspace, "generate", overwrite)
    import interp
    from interp.cli import editing

    loaded = opening.load(model)
    settings: dict[str, Any] = {
        "n": n, "best_of": best_of, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "seed": seed, "where": _where(where), "patterns": patterns,
    }  # fmt: skip
    edits = editing.read(edit, loaded, workspace)
    if path is None:
        _say(interp.generate(loaded, texts, edits=edits, progress=True, **settings))
        return
    config = settings | opening.kept() | {"model": model, "edit": list(edit or []), "prompts": texts}
    with recorded(path, "generate", config, loaded, seed, overwrite) as run:
        made = interp.generate(loaded, texts, edits=edits, progress=True, **settings)
        made.save(path)
        runs.write_text(path / "report.html", _report(made, path.name, run))
    _say(made)
    print(f"-> {path / 'tokens.parquet'}, {path / 'report.html'}")


def _texts(given: list[str] | None, file: Path | None) -> list[str]:
    if (file is None) == (not given):
        raise InputError('give prompts as texts, or a file of them (--prompts): interp generate "Once upon a time".')
    if file is None:
        return list(given or [])
    if not file.exists():
        raise MissingFile(f'no file "{file}".')
    texts = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise InputError(f"{file} holds no prompt: write one a line.")
    return texts


def _where(where: str) -> str | list[int]:
    try:
        return [int(number) for number in where.split(",")]
    except ValueError:
        return where


def _say(made: Generation) -> None:
    table = made.table()
    for number, mine in table[table.prompt < SHOWN].groupby("prompt"):
        print(f"{made.prompts[number]!r}")
        for row in mine.itertuples():
            kl = f", KL {row.kl:.3f}" if row.run == "edited" else ""
            print(f"  {row.run:>8}  {row.text!r}  (log-probability {row.logprob:.2f} a token{kl})")
    if len(made.prompts) > SHOWN:
        print(f"... and {len(made.prompts) - SHOWN} prompts more")
    edited = table[table.run == "edited"]
    if len(edited) > 1:
        unit = "prompt" if edited.prompt.nunique() > 1 else "sample"
        each = edited.groupby(unit).kl.mean()
        low, high = _interval(each.to_numpy())
        what = "prompts" if unit == "prompt" else "continuations"
        print(f"mean KL(edited || baseline) {each.mean():.3f} nats a token [{low:.3f}, {high:.3f}], {len(each)} {what}")


def _interval(values: Any) -> tuple[float, float]:
    from interp.causal.statistics import bootstrap

    low, high = bootstrap(values[None], seed=0)
    return float(low[0]), float(high[0])


def _report(made: Generation, name: str, run: dict[str, Any]) -> str:
    """The figure, each prompt's continuations token by token, the table."""
    from interp import reports

    table, tokens = made.table(), made.tokens()
    said = f"Edits: {', '.join(run['config']['edit']) or 'none'}; at positions: {made.about['where']}."
    parts = [f"<p>{html.escape(said)}</p>"]
    if "edited" in set(table.run):
        parts.append(reports.drawn(made.figure(), name))
        parts.append("<p>Below, blue is KL(edited || baseline) of a token of the edited run.</p>")
    limit = max(float(tokens.kl.max()), 1e-9)
    for number in range(min(len(made.prompts), SHOWN)):
        parts.append(f"<h2>{html.escape(made.prompts[number])}</h2>")
        for (sample, which), mine in tokens[tokens.prompt == number].groupby(["sample", "run"]):
            parts.append(reports.strip(f"{which} {sample + 1}", mine.text, mine.kl, limit))
    return reports.page(name, [*parts, "<h2>All</h2>", reports.table_html(table)], run)
