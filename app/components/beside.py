"""Two results beside each other: effects on the same prompts, circuits of graphs alike, trainings of dictionaries."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import readers, state
from app.components.exports import exports
from interp import plots
from interp.causal.graph import edge_title
from interp.errors import InputError
from interp.plots import circuits

Run = dict[str, Any]
FAMILIES = {"ablate": "effects", "patch": "effects", "heads": "effects", "circuit": "circuits",
            "circuit-score": "circuits", "sae": "dictionaries"}  # fmt: skip
"""Kinds whose runs can be held beside each other, if they are of one family."""


def family(run: Run) -> str | None:
    """What two results must both be; None of a kind that is not compared."""
    found = FAMILIES.get(str(run.get("kind")))
    return None if run.get("kind") == "heads" and not (run["path"] / "effects.parquet").exists() else found


def beside(run: Run, other: Run) -> None:
    """Show two results of one family. InputError, with what can be compared, for others."""
    which = family(run)
    if which is None or which != family(other):
        raise InputError(
            f"{run['name']} is {run.get('kind')}, {other['name']} is {other.get('kind')}: two runs of effects (ablate, "
            "patch) on the same prompts can be compared, two circuits, or two dictionaries."
        )
    {"effects": _effects, "circuits": _circuits, "dictionaries": _dictionaries}[which](run, other)


def _effects(run: Run, other: Run) -> None:
    """Effects on the same prompts, paired."""
    table, names = readers.comparison(run["path"], other["path"]), (run["name"], other["name"])
    st.text("difference = effect in the first minus effect in the second, each prompt with itself; 95% interval; "
            "q: paired t-test, adjusted over components")  # fmt: skip
    metrics = list(table["metric"].unique())
    metric = st.selectbox("Metric", metrics, key="compare-metric", width=240)
    table = table[table["metric"] == metric]
    left, right = st.columns(2, gap="large")
    with left:
        st.plotly_chart(plots.comparison(table, names), key="comparison", config={"displayModeBar": False})
    order = table["difference"].abs().sort_values(ascending=False, kind="stable").index
    columns = ["component", "position", "effect", "effect_other", "difference", "ci_low", "ci_high", "q", "n"]
    with right:
        st.text("Largest difference first")
        st.dataframe(table.loc[order, columns], hide_index=True, height=480, column_config=state.number_columns(table))
    exports(_named(run, other), table, lambda: plots.comparison(table, names))
    _notebook("from interp import Effects", "Effects.load", run, other)


def _circuits(run: Run, other: Run) -> None:
    """Edges of two circuits: what each scores, what is in both."""
    table, names = readers.circuits_compared(run["path"], other["path"]), (run["name"], other["name"])
    first, second = table["in_graph"], table["in_graph_other"]
    st.text(f"{int((first & second).sum()):,} edges in both, {int((first & ~second).sum()):,} only in {names[0]}, "
            f"{int((~first & second).sum()):,} only in {names[1]}; rank correlation of all {len(table):,} scores "
            f"{table[['score', 'score_other']].rank().corr().iloc[0, 1]:+.2f}\n"
            "score: how much worse the metric is without the edge; of two methods or metrics only the order can be "
            "compared")  # fmt: skip
    left, right = st.columns(2, gap="large")
    with left:
        st.plotly_chart(circuits.comparison(table, names), key="comparison", config={"displayModeBar": False})
    with right:
        st.text("Edges of either, the largest difference first")
        shown = table[first | second].drop(columns=["sender", "receiver"])
        shown = shown.assign(edge=shown["edge"].map(edge_title))
        st.dataframe(shown, hide_index=True, height=480, column_config=state.number_columns(shown))
    exports(_named(run, other), table, lambda: circuits.comparison(table, names))
    _notebook("from interp import Circuit", "Circuit.load", run, other)


def _dictionaries(run: Run, other: Run) -> None:
    """Two trainings: what differs in their settings and measures, and both logs."""
    rows = [_settings(one) for one in (run, other)]
    keys = sorted({key for row in rows for key in row})
    table = pd.DataFrame({"what": keys} | {one["name"]: [row.get(key, "") for key in keys]
                                           for one, row in zip((run, other), rows, strict=True)})  # fmt: skip
    logs = [readers.table(one["path"], "train_log.csv") if (one["path"] / "train_log.csv").exists() else None
            for one in (run, other)]  # fmt: skip
    draw, names = None, (run["name"], other["name"])
    left, right = st.columns([3, 2], gap="large")
    with left:
        if all(log is not None and len(log) for log in logs):
            draw = lambda: plots.training(logs[0], beside=logs[1], names=names)  # noqa: E731
            st.plotly_chart(draw(), key="comparison", config={"displayModeBar": False})
        else:
            st.text("No log of both: a dictionary that was imported, or is only begun, has none.")
    with right:
        differ = table[table[run["name"]] != table[other["name"]]]
        st.text(f"What differs; {len(table) - len(differ)} settings and measures are the same")
        st.dataframe(differ, hide_index=True, height=440)
    exports(_named(run, other), table, draw)


def _settings(run: Run) -> dict[str, str]:
    """Settings and measures of a dictionary, as text."""
    found = run["config"] | readers.json_file(run["path"], "metrics.json")
    return {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in found.items()
            if not isinstance(value, dict | list) and value is not None}  # fmt: skip


def _named(run: Run, other: Run) -> Run:
    return run | {"name": f"{run['name']}-against-{other['name']}"}


def _notebook(imported: str, load: str, run: Run, other: Run) -> None:
    st.text("In a notebook")
    lines = [imported, "", f"first = {load}({str(run['path'])!r})", f"first.compare({load}({str(other['path'])!r}))"]
    st.code("\n".join(lines), language="python")
