"""`interp compare`: what an ablation does in one model and in a relative of it, and what lies between the two."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp import runs
from interp.cli import options
from interp.cli.keeping import recorded
from interp.errors import InputError

if TYPE_CHECKING:
    from interp.causal.comparing import Along, Comparison

SHOWN = 8
"""Components printed, those of the largest differences."""


@options.opens
def compare(
    a: Annotated[str, typer.Argument(help="A model: the base, or the earlier checkpoint.")],
    b: Annotated[str | None, typer.Argument(help="Another of its shape; left out with --adapter.")] = None,
    task: Annotated[str, typer.Option(help="ioi, agreement, ..., a .jsonl of prompt pairs, or text:PATH.")] = "ioi",
    corruption: options.Corruption = None,
    components: Annotated[str, typer.Option(help="heads, mlps, L3H5, ...; both sets if not given.")] = "",
    method: Annotated[str, typer.Option(help="zero, mean, mean-all, resample, shuffle; with -frozen.")] = "mean",
    metric: options.Metric = None,
    n: options.N = None,
    seed: options.Seed = 0,
    along: Annotated[int | None, typer.Option(help="Also the task at so many models from A to B.")] = None,
    path: Annotated[str, typer.Option(help="Of --along: linear or slerp.")] = "linear",
    text: Annotated[
        str | None, typer.Option(help="Of --along: text whose loss is measured too; a path, bundled.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Keep it as a run of this name; else it is only printed.")] = None,
    workspace: options.Workspace = options.WORKSPACE,
    overwrite: options.Overwrite = False,
    *,
    opening: options.Opening,
) -> None:
    """The same ablations of two models on the same prompts: for each component effect in B - effect in A, paired, with
    95% intervals; with --along the way from A to B.

    Example: interp compare bundled my-finetune --task ioi --n 200 --along 5 --text bundled --out tuned
    """
    adapter = opening.adapter  # of B alone
    if (b is None) == (adapter is None):
        raise InputError("give two models, or one and --adapter DIR: interp compare bundled my-finetune.")
    if text is not None and along is None:
        raise InputError("--text is measured along the way: add --along 5.")
    place = None if out is None else runs.place(workspace, "runs", out, "compare")
    if place is not None:
        runs.check_free(place, overwrite)
    config = {
        "a": a, "b": b, "adapter": adapter, "task": task, "corruption": corruption,
        "components": components or "heads,mlps", "method": method, "metric": metric, "n": n, "along": along,
        "path": path, "text": text,
    } | opening.kept()  # fmt: skip
    from interp.causal import comparing
    from interp.cli.batch import task_of
    from interp.cli.config import Asked

    one, two = opening.load(a, adapter=None), opening.load(b or a)
    asked = Asked(task=task, corruption=corruption, n=n, seed=seed)
    tasks = [task_of(task, one, asked)]
    tasks += [] if text is None else [task_of(f"text:{text}", one, Asked(seed=seed))]

    def measure() -> tuple[Comparison, Along | None]:
        way = None
        if along is not None:  # first: it is refused where compare is not
            way = comparing.along(one, two, tasks, n=along, path=path, metric=metric, seed=seed, progress=True)
        found = comparing.compare(
            one, two, tasks[0], components=components or None, method=method, metric=metric, seed=seed, progress=True
        )
        return found, way

    if place is None:
        _say(*measure())
        return
    with recorded(place, "compare", config, one, seed, overwrite) as run:
        run["model_b"] = two.provenance()
        found, way = measure()
        found.save(place)
        tasks[0].save(place / "prompts.jsonl", one)
        if way is not None:
            way.save(place)
        runs.write_text(place / "report.html", _report(found, way, place.name, run))
    _say(found, way)
    print(f"-> {place / 'comparison.parquet'}, {place / 'report.html'}")


def _say(found: Comparison, way: Along | None) -> None:
    for row in found.baselines().itertuples():
        print(
            f"baseline {row.metric}: A {row.a:+.3f}, B {row.b:+.3f}, difference {row.difference:+.3f} "
            f"[{row.ci_low:+.3f}, {row.ci_high:+.3f}], n={row.n}"
        )
    table = found.table()
    for row in table.loc[table.difference.abs().sort_values(ascending=False).index[:SHOWN]].itertuples():
        print(
            f"{row.component:>12} {row.method:>7} {row.metric}: A {row.effect_a:+.3f}, B {row.effect_b:+.3f}, "
            f"difference {row.difference:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}], q {row.q:.2g}"
        )
    print(f"{(table.q < 0.05).sum()} of {len(table)} differences have q < .05")
    for row in [] if way is None else way.table().itertuples():
        print(
            f"  t {row.t:.2f}  {row.task} {row.metric} {row.value:+.4f} [{row.ci_low:+.4f}, {row.ci_high:+.4f}], above "
            f"the line {row.above:+.4f} [{row.above_low:+.4f}, {row.above_high:+.4f}]"
        )


def _report(found: Comparison, way: Along | None, name: str, run: dict[str, Any]) -> str:
    """The figures, the baselines, all differences."""
    from interp import reports

    models = [effects.about["model"]["name"] for effects in (found.a, found.b)]
    said = (
        f"A is {models[0]}, B is {models[1]}, the task {found.a.about['task']}. An effect is ablated minus clean; the "
        "difference is the effect in B less that in A, with its 95% bootstrap interval over prompts, each paired with "
        "itself; q is a paired t-test's p, adjusted (Benjamini-Hochberg)."
    )
    parts = [f"<p>{html.escape(said)}</p>", reports.table_html(found.baselines()), _html(found)]
    if way is not None:
        parts += ["<h2>From A to B</h2>", _html(way), reports.table_html(way.table())]
    table = found.table()
    order = table.difference.abs().sort_values(ascending=False, kind="stable").index
    shown = ["component", "metric", "effect_a", "effect_b", "difference", "ci_low", "ci_high", "q", "n"]
    parts += ["<h2>Differences</h2>", reports.table_html(table.loc[order, shown])]
    return reports.page(name, parts, run | {"model": [run["model"], run["model_b"]]}, found.a.about.get("prompts"))


def _html(result: Comparison | Along) -> str:
    return result.figure().to_html(full_html=False, include_plotlyjs=False)
