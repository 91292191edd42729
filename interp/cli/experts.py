"""`interp experts`: which tokens does a mixture of experts send where?"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp import runs
from interp.cli import options
from interp.cli.keeping import place, recorded
from interp.cli.keeping import settings as kept

if TYPE_CHECKING:
    from interp.lenses.routing import Routing


@options.opens
def experts(
    model: options.ModelName,
    text: Annotated[str, typer.Option(help='A file, a glob, or "bundled".')] = "bundled",
    task: Annotated[str | None, typer.Option(help="Prompts of a task, or a .jsonl, in place of a text.")] = None,
    classes: Annotated[str, typer.Option(help='Kinds of token: "built-in", or names, with commas.')] = "built-in",
    at: Annotated[
        str, typer.Option(help="Where a token counts: where it stands (token), or is predicted (read).")
    ] = "token",
    n: Annotated[int, typer.Option("--n", help="Windows of the text, or prompts of the task.", min=1)] = 64,
    context: Annotated[int, typer.Option(help="Tokens in a window.", min=2)] = 64,
    edit: options.Edits = None,
    seed: options.Seed = 0,
    out: options.Out = None,
    workspace: options.Workspace = options.WORKSPACE,
    overwrite: options.Overwrite = False,
    *,
    opening: options.Opening,
) -> None:
    """The load of each expert by class of token: the share of the class that is sent to it, with a 95% interval. With
    --out, a run with the table and its figure. What an expert does to the loss: interp ablate --components experts.

    Example: interp experts --model mixtral-small --text novel.txt --out mixtral-load
    """
    settings = kept(locals())
    path = place(out, workspace, "experts", overwrite)
    import interp
    from interp.cli import editing
    from interp.data.classes import classes as masks
    from interp.data.classes import text_task

    loaded = opening.load(model)
    if task is None:
        prompts = text_task(loaded, text, n=n, context=context)
    else:
        prompts = interp.load_task(task, loaded, n=n, seed=seed)
    kinds = masks(loaded, prompts, [name.strip() for name in classes.split(",")])
    found = interp.routing(
        loaded, prompts, classes=kinds, at=at, edits=editing.read(edit, loaded, workspace), seed=seed, progress=True
    )
    if path is not None:
        with recorded(path, "experts", settings, loaded, seed, overwrite) as run:
            found.save(path)
            prompts.save(path / "prompts.jsonl", loaded)
            runs.write_text(path / "report.html", _report(found, path.name, run))
    _say(found)
    if path is not None:
        print(f"-> {path / 'routing.parquet'}, {path / 'report.html'}")


def _wide(found: Routing) -> Any:
    """A row an expert, a column a class: its share."""
    table = found.table()
    order = list(dict.fromkeys(table.component)), list(dict.fromkeys(table["class"]))
    return table.pivot(index="component", columns="class", values="share").loc[order]


def _say(found: Routing) -> None:
    table, layers = found.table(), found.layers
    print(f"share of the tokens of a class that an expert gets; experts all alike: {table.alike.iloc[0]:.3f}")
    print(_wide(found).to_string(float_format="{:.3f}".format))
    for row in layers[layers["class"] == "all"].itertuples():
        print(f"layer {row.layer}: entropy of the router {row.entropy:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}] nats, "
              f"n={row.n}")  # fmt: skip


def _report(found: Routing, name: str, run: dict[str, Any]) -> str:
    from interp import reports

    said = (
        f'"{found.about["model"]["name"]}", {found.about["task"]}: share of the tokens of a class that an expert gets, '
        f"with 95% bootstrap intervals over {found.about['n_prompts']} prompts; prob is the router's mean probability."
    )
    figure = found.figure().to_html(full_html=False, include_plotlyjs=False)
    parts = [
        f"<p>{html.escape(said)}</p>",
        figure,
        reports.table_html(found.table()),
        "<h2>Entropy of the routers</h2>",
    ]
    return reports.page(name, [*parts, reports.table_html(found.layers)], run, found.about["prompts"])
