"""How much each head and MLP matters for a task: the map, the component that was clicked, the table, the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app import state
from app.components.exports import exports
from app.components.heat_grid import heat_grid
from app.components.notes import label_box, labels
from app.components.provenance import provenance
from app.components.token_strip import visible
from interp import plots
from interp.causal.effects import Effects

COLUMNS = ["component", "kind", "position", "effect", "ci_low", "ci_high", "baseline", "value", "effect_std", "n"]
COMMAND = "interp ablate --model bundled --task ioi --components heads --method mean --out ioi-heads"


def page() -> None:
    focus = state.read_focus()
    ablations = state.results("runs", kind="ablate")
    if not ablations:
        st.title("Ablation", anchor=False)
        state.empty("No ablation in this workspace yet. This makes one:", COMMAND)
        return
    try:
        run = state.result(focus.run, ablations) if focus.run else ablations[0]
        effects = state.effects(run["path"])
    except state.UNREADABLE as error:
        st.title("Ablation", anchor=False)
        state.problem("This run cannot be shown.", error)
        st.page_link(state.RUNS, label="All runs")
        return
    heading(run)
    rows = effects.table()
    table, method, metric = choices(focus, run, ablations, rows[rows["kind"] != "random"])
    left, right = st.columns([11, 9], gap="large")
    with left:
        row = the_map(focus, table)
        all_rows(table, labels(run))
    with right:
        details(run, effects, row, method, metric)
    exports(run, effects.table(), lambda: plots.effects(table, ticks=effects.about.get("ticks")))
    st.subheader("Where this comes from", anchor=False)
    provenance(run, snippet=snippet(run["path"]))


def heading(run: dict[str, Any]) -> None:
    config, model = run.get("config") or {}, run.get("model") or {}
    st.title("Ablation", anchor=False)
    status = "" if run.get("status") == "done" else f" · {run.get('status')}: not every component may be there"
    st.text(f"{model.get('name', 'model not recorded')} · task {config.get('task', 'not recorded')}{status}")


def choices(
    focus: state.Focus, run: dict[str, Any], ablations: list[dict[str, Any]], table: pd.DataFrame
) -> tuple[pd.DataFrame, str, str]:
    """The select boxes above the map; the rows of the method and metric chosen."""
    boxes = st.columns([3, 2, 2, 5])
    with boxes[0]:
        state.choose("Run", [other["name"] for other in ablations], "run", run["name"], resets=("head", "pos"))
    with boxes[1]:
        method = state.choose("Method", list(table["method"].unique()), "method", focus.method)
    metrics = list(table.loc[table["method"] == method, "metric"].unique())
    with boxes[2]:
        metric = state.choose("Metric", metrics, "metric", focus.metric)
    for asked, got in ((focus.method, method), (focus.metric, metric)):
        if asked not in (None, got):
            st.text(f'This run has no "{asked}"; showing {got}.')
    return plots.one_view(table, method=method, metric=metric), method, metric


def the_map(focus: state.Focus, table: pd.DataFrame) -> pd.Series:
    """The map (or, where components are neither heads nor layers, the bars) and the row in focus."""
    strongest = table.loc[table["effect"].abs().fillna(0).idxmax(), "component"]
    names = list(table["component"].unique())
    chosen = focus.head if focus.head in names else strongest
    if focus.head not in (None, chosen):
        st.text(f'This run has no component "{focus.head}"; showing the strongest, {chosen}.')
    grid = plots.component_grid(table)
    if grid is None:
        st.plotly_chart(plots.ranked(table), key="bars")
    else:
        heat_grid(grid, key="map", selected=chosen, on_pick=lambda name: state.write_focus(head=name, pos=None),
                  label="effect of ablating each component")  # fmt: skip
        st.text(grid.scale.formula)
    shared = table.iloc[0]
    st.text(f"clean {shared['metric']} {shared['baseline']:.4g} · n = {shared['n']} prompts · click a cell, or choose:")
    component = state.choose("Component", names, "head", chosen, label_visibility="collapsed")
    rows = table[table["component"] == component]
    if len(rows) == 1:
        return rows.iloc[0]
    positions = list(rows["position"].astype(str))
    position = state.choose("Position", positions, "pos", focus.pos)
    return rows.iloc[positions.index(position)]


def all_rows(table: pd.DataFrame, known: dict[str, str]) -> None:
    st.text("All components, largest effect first")
    order = table["effect"].abs().sort_values(ascending=False, kind="stable").index
    shown = table.loc[order, COLUMNS]
    shown.insert(1, "label", [known.get(name, "") for name in shown["component"]])
    st.dataframe(shown, hide_index=True, height=300, column_config=state.number_columns(shown))


def details(run: dict[str, Any], effects: Effects, row: pd.Series, method: str, metric: str) -> None:
    """One component: its effect and interval, and how the prompts differ."""
    place = "" if str(row["position"]) == "all" else f" at position {row['position']}"
    st.subheader(state.escape(f"{row['component']}{place}"), anchor=False)
    effect, interval, change = st.columns([2, 3, 3])
    effect.metric("effect", f"{row['effect']:+.3f}")
    bounds = f"{row['ci_low']:+.3f} … {row['ci_high']:+.3f}" if pd.notna(row["ci_low"]) else "none: one prompt"
    interval.metric("95% interval of the mean", bounds)
    change.metric(f"{metric}: clean → ablated", f"{row['baseline']:.3f} → {row['value']:.3f}")
    label_box(run, row["component"])
    try:
        by_prompt = prompt_table(run["path"], effects, row.name, method, metric)
    except KeyError:
        st.text("This run kept no values of single prompts.")
        return
    st.plotly_chart(plots.histogram(by_prompt, row), key="histogram", config={"displayModeBar": False})
    st.text("Prompts, largest effect first")
    st.dataframe(by_prompt.sort_values("effect", key=abs, ascending=False), height=215)


def prompt_table(folder: Path, effects: Effects, row: int, method: str, metric: str) -> pd.DataFrame:
    table = effects.table()
    same = table.index[(table["method"] == method) & (table["metric"] == metric)]
    by_prompt = plots.per_prompt(effects.baseline[metric], effects.values[(method, metric)][same.get_loc(row)])
    by_prompt.columns = ["clean", "ablated", "effect"]
    texts = [visible(str(pair.get("clean", ""))) for pair in state.prompts(folder)]
    if len(texts) == len(by_prompt):
        by_prompt["prompt text"] = texts
    return by_prompt


def snippet(folder: Path) -> str:
    lines = ["from interp.causal.effects import Effects", "", f"effects = Effects.load({str(folder)!r})"]
    return "\n".join([*lines, "effects.table()", "effects.figure()"])


page()
