"""What a run found, by the files that it wrote: a sentence that says how to read it, its figures, the table they are
of. One function a file; a run of several (`interp heads --ablate --circuits`) has several findings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from plotly.graph_objects import Figure

from app import readers, state
from app.components.exports import exports
from app.components.token_strip import Strip, token_strips
from interp.plots import checks, classes, comparing, directions, generation, heads, lenses
from interp.plots.labels import visible

ROWS = 1000
"""Rows of a table that are shown, at most; all are exported."""
PROMPTS = 20
"""Prompts whose continuations are shown token by token, at most."""
SCORE = "score: how much worse the metric is without the {}, in its unit; red (positive) helps, blue hurts."
Figures = dict[str, Callable[[], Figure]]


@dataclass(frozen=True)
class Finding:
    """What stands in one file of a run."""

    title: str
    said: str
    """How it is read: unit, sign, zero."""
    file: str
    table: pd.DataFrame
    figures: Figures
    """Name -> what draws it; of several one is chosen."""
    shown: Callable[[], None] | None = None
    """What is shown before the figure."""


def findings(run: dict[str, Any]) -> list[str]:
    """Show all that the run found; the names of the files that were shown."""
    shown: list[str] = []
    for name, make in MAKERS.items():
        if not (run["path"] / name).exists():
            continue
        try:
            finding = make(run["path"], run)
            if finding is not None:
                show(run, finding, first=not shown)
                shown += [name, finding.file]
        except state.UNREADABLE as error:
            state.problem(f"{name} of this run cannot be shown.", error)
            shown.append(name)
    return shown


def show(run: dict[str, Any], finding: Finding, *, first: bool) -> None:
    st.subheader(finding.title, anchor=False)
    st.text(finding.said)
    if finding.shown:
        finding.shown()
    draw = None
    if finding.figures:
        names, key = list(finding.figures), f"shown-{finding.file}"
        name = st.selectbox("Shown", names, key=key, width=320) if len(names) > 1 else names[0]
        draw = finding.figures[name]
        figure = readers.drawn(draw, run["path"], finding.file, of=("finding", name))
        st.plotly_chart(figure, key=f"finding-{finding.file}")
    with st.expander(f"The table, {len(finding.table):,} rows", expanded=first):
        shown = finding.table.head(ROWS)
        st.dataframe(shown, hide_index=True, column_config=state.number_columns(shown, "%.4g"))
    exports(run | {"name": f"{run['name']}-{Path(finding.file).stem}"}, finding.table, draw, key=finding.file)


def _lens(folder: Path, run: dict[str, Any]) -> Finding:
    rows = readers.table(folder, "lens.parquet")
    figures = {said: lambda colour=colour: lenses.grid(rows, colour) for colour, said in lenses.COLOURS.items()}
    return Finding(
        "What each layer would say next",
        "Each layer read through the last norm and the unembedding; the upper row is the output.",
        "lens.parquet", rows.drop(columns=["top", "top_id", "top_prob"]).assign(top=rows["top"].str[0]), figures,
    )  # fmt: skip


def _curve(folder: Path, run: dict[str, Any]) -> Finding | None:
    rows = readers.table(folder, "curve.parquet")
    if "lens" not in rows:
        return None  # of a circuit: its own page shows it
    figures = {metric: lambda metric=metric: lenses.curve(rows, metric) for metric in rows["metric"].unique()}
    said = (
        "Means over prompts or texts by layer, with 95% bootstrap intervals. KL(output || lens), nats: 0 where the "
        "layer says what the output says."
    )
    return Finding("When the answer emerges", said, "curve.parquet", rows, figures)


def _attribution(folder: Path, run: dict[str, Any]) -> Finding:
    rows = readers.table(folder, "attribution.parquet")
    metric = str(readers.json_file(folder, "attribution.json").get("metric") or "logit_diff")
    total = float(rows["contribution"].sum())
    order = rows["contribution"].abs().sort_values(ascending=False, kind="stable").index
    return Finding(
        "Which parts write the answer",
        "What each part adds to the logit difference, in nats; red (positive) towards the answer. The rows sum to the "
        "whole. The direct way only.", "attribution.parquet", rows.loc[order],
        {"contribution": lambda: lenses.attribution(rows, metric, total)},
    )  # fmt: skip


def _heads(folder: Path, run: dict[str, Any]) -> Finding:
    rows = readers.table(folder, "heads.parquet")
    about, chance = readers.head_scores(folder)
    scores = sorted(chance, key=lambda score: score != "induction")
    figures: Figures = {
        score.replace("_", " "): lambda score=score: heads.score_map(rows, score, chance=chance[score], n=about["n"])
        for score in scores
    }
    if (folder / "effects.parquet").exists():
        effects = readers.effects(folder).rows[["component", "baseline", "effect", "ci_low", "ci_high", "q"]]
        both = rows.merge(effects, on="component")
        metric = "loss of the second copy"
        figures = {"induction and ablation": lambda: heads.score_and_effect(both, "induction", metric)} | figures
    said = (
        f"Share of attention to the token before, the first, ...: 0 to 1, mean over {about['n']} sequences with 95% "
        "intervals; entropy in nats."
    )
    return Finding("What kind of head each is", said, "heads.parquet", rows, figures)


def _circuits(folder: Path, run: dict[str, Any]) -> Finding:
    rows = readers.table(folder, "circuits.parquet")
    known = [score for score in ("ov_copying", "qk_matching") if rows[score].notna().any()]
    figures = {score.replace("_", " "): lambda score=score: heads.signed_map(rows, score) for score in known}
    said = (
        "Sum of eigenvalues over the sum of their sizes, -1 to 1: 1 copies (OV) or attends to its like (QK), -1 the "
        "opposite."
    )
    return Finding("What the weights of a head do", said, "circuits.parquet", rows, figures)


def _composition(folder: Path, run: dict[str, Any]) -> Finding:
    rows = readers.table(folder, "composition.parquet")
    figures = {
        f"{kind.upper()} composition": lambda kind=kind: heads.composition(rows[rows["kind"] == kind], kind)
        for kind in rows["kind"].unique()
    }
    said = "How much of what the earlier head writes the later one reads (0 to 1), less that of random directions."
    return Finding("Which heads read which", said, "composition.parquet", rows, figures)


def _direction(folder: Path, run: dict[str, Any]) -> Finding:
    said = readers.json_file(folder, "direction.json")
    examples, sites = (readers.table(folder, name) for name in ("examples.parquet", "sites.parquet"))
    row, names = sites[sites["chosen"]].iloc[0].to_dict(), said["about"]["names"]
    figures: Figures = {
        "examples along it": lambda: directions.projections(examples, said["threshold"], row, names),
        "accuracy by site": lambda: directions.by_site(sites),
    }
    told = (
        f"{said['method']}: red {names[0]}, blue {names[1]}; accuracy on the examples held out, .5 is chance, beside "
        "shuffled labels and random directions."
    )
    return Finding("How well the direction parts the two", told, "sites.parquet", sites, figures)


def _dose(folder: Path, run: dict[str, Any]) -> Finding:
    rows, about = readers.table(folder, "dose.parquet"), readers.json_file(folder, "dose.json")
    figures = {
        {"log_odds": "log odds", "kl": "KL", "words": "words written"}.get(measure, measure): lambda measure=measure: (
            directions.dose_response(rows[rows["measure"] == measure], about)
        )
        for measure in rows["measure"].unique()
    }
    said = (
        "Changed minus unchanged by strength of the push, with 95% intervals over prompts; grey: random directions and "
        "those of shuffled labels."
    )
    return Finding("What a push along it does", said, "dose.parquet", rows, figures)


def _written(folder: Path, run: dict[str, Any]) -> Finding:
    rows = readers.table(folder, "tokens.parquet")
    edited = "run" in rows and "edited" in set(rows["run"])
    what = "KL(edited || baseline)" if edited else "surprise, -log P,"
    texts = [visible(text) for text in readers.json_file(folder, "generation.json").get("prompts", [])]

    def shown() -> None:
        for prompt, mine in list(rows.groupby("prompt"))[:PROMPTS]:
            st.text(texts[prompt] if prompt < len(texts) else f"prompt {prompt}")
            strips = [
                Strip(list(part["text"]), list(part["kl"] if edited else -part["logprob"]), head=f"{name} {sample + 1}")
                for (sample, name), part in mine.groupby(["sample", "run"])
            ]
            token_strips(strips, key=f"written-{prompt}", label=f"what was written after prompt {prompt}")

    known = {"prompt", "sample", "run", "step"} <= set(rows)
    return Finding(
        "What was written", f"Blue: {what} of the token, in nats, from 0.", "tokens.parquet", rows,
        {"KL by token": lambda: generation.kl_by_token(rows)} if edited and known else {}, shown if known else None,
    )  # fmt: skip


def _compared(folder: Path, run: dict[str, Any]) -> Finding:
    rows = readers.table(folder, "comparison.parquet")
    a, b = _models(run)
    order = rows["difference"].abs().sort_values(ascending=False, kind="stable").index
    figures = {
        f"{method}: {metric}": lambda part=part: comparing.comparison(part, a, b)
        for (method, metric), part in rows.groupby(["method", "metric"], sort=False)
    }
    said = (
        f"A is {a}, B is {b}. difference = effect in B - effect in A, each prompt with itself, 95% interval; q: paired "
        "t-test, adjusted over components."
    )
    return Finding("The same ablations in two models", said, "comparison.parquet", rows.loc[order], figures)


def _models(run: dict[str, Any]) -> tuple[str, str]:
    """What `interp compare` was given as A and B."""
    return str(run["config"].get("a")), str(run["config"].get("b") or run["config"].get("adapter"))


def _along(folder: Path, run: dict[str, Any]) -> Finding:
    rows = readers.table(folder, "along.parquet")
    a, b = _models(run)
    said = (
        "The metrics of models between the two (t = 0 is A, 1 is B), beside the straight line; in loss, the height "
        "above it is the barrier."
    )
    return Finding(
        "On the way from A to B", said, "along.parquet", rows, {"along": lambda: comparing.along(rows, a, b)}
    )


def _routing(folder: Path, run: dict[str, Any]) -> Finding:
    rows, at = readers.table(folder, "routing.parquet"), readers.json_file(folder, "about.json").get("at", "token")
    said = "Share of a class's tokens that is sent to an expert, with 95% intervals over prompts."
    figures: Figures = {"load": lambda: classes.load(rows, at=at)}
    return Finding("Which expert gets which tokens", said, "routing.parquet", rows, figures)


def _checks(folder: Path, run: dict[str, Any]) -> Finding:
    rows = readers.table(folder, "checks.parquet")
    counts = rows["verdict"].value_counts()
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("ok", "refused", "WRONG") if verdict in counts)
    said = f"{told}. refused: not offered, for the reason in the table; WRONG: what rests on it cannot be trusted."
    figures: Figures = {"checks": lambda: checks.margins(rows)}
    return Finding("Does the workbench hold on this model?", said, "checks.parquet", rows, figures)


def _graph(folder: Path, run: dict[str, Any]) -> Finding:
    found = readers.circuit(folder)
    table = found.table()
    said = SCORE.format("edge")
    return Finding("The circuit", said, "circuit.json", table[table["in_graph"]], {"graph": found.figure})


def _latents(folder: Path, run: dict[str, Any]) -> Finding:
    found = readers.feature_circuit(folder)
    said = SCORE.format("node")
    return Finding("The circuit of latents", said, "nodes.parquet", found.nodes, {"graph": found.figure})


MAKERS: dict[str, Callable[[Path, dict[str, Any]], Finding | None]] = {
    "tokens.parquet": _written,
    "lens.parquet": _lens,
    "curve.parquet": _curve,
    "attribution.parquet": _attribution,
    "heads.parquet": _heads,
    "circuits.parquet": _circuits,
    "composition.parquet": _composition,
    "direction.json": _direction,
    "dose.parquet": _dose,
    "comparison.parquet": _compared,
    "along.parquet": _along,
    "routing.parquet": _routing,
    "checks.parquet": _checks,
    "circuit.json": _graph,
    "feature_circuit.json": _latents,
}
"""File -> what it says; a run's findings stand in this order."""
