"""How much each head and MLP matters for a task: the map, the component that was clicked, the table, the source."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import readers, state
from app.components import effect as effects_of
from app.components.exports import exports
from app.components.heat_grid import heat_grid
from app.components.links import links
from app.components.notes import label_box
from app.components.provenance import provenance
from interp import plots
from interp.causal.effects import Effects

COLUMNS = ["component", "position", "effect", "ci_low", "ci_high", "q", "baseline", "value", "effect_std", "n"]
COMMAND = "interp ablate --model bundled --task ioi --components heads --method mean --out ioi-heads"
NAMES = ("clean", "ablated")
"""What the metric is called before and after."""


def page() -> None:
    focus = state.read_focus()
    ablations = state.results("runs", kinds=["ablate"])
    if not ablations:
        st.title("Ablation", anchor=False)
        state.empty("No ablation in this workspace yet. This makes one:", COMMAND)
        return
    try:
        run = state.result(focus.run, ablations) if focus.run else ablations[0]
        effects = readers.effects(run["path"])
    except state.UNREADABLE as error:
        st.title("Ablation", anchor=False)
        state.problem("This run cannot be shown.", error)
        state.unfinished(focus.run, ablations)
        return
    heading(run)
    rows = effects.rows
    table = choices(focus, run, ablations, rows[rows["kind"] != "random"])
    left, right = st.columns([11, 9], gap="large")
    state.part(selection, run, effects, table, left.container(), right)
    with left:
        effects_of.all_rows(run, table, COLUMNS, "components")
    exports(run, effects.rows, lambda: plots.effects(table, ticks=effects.about.get("ticks")))
    st.subheader("Where this comes from", anchor=False)
    provenance(run, snippet=effects_of.snippet(run["path"]))


def selection(
    focus: state.Focus, run: dict[str, Any], effects: Effects, table: pd.DataFrame, left: Any, right: Any
) -> None:
    """The map, and the component that was clicked."""
    with left:
        row = the_map(focus, table)
    with right:
        st.subheader(state.escape(effects_of.title(row)), anchor=False)
        effects_of.numbers(row, NAMES)
        label_box(run, row["component"])
        links(run, row["component"], here=state.ABLATION)
        effects_of.by_prompt(run["path"], effects, row, NAMES)


def heading(run: dict[str, Any]) -> None:
    config, model = run["config"], run["model"]
    st.title("Ablation", anchor=False)
    status = "" if run.get("status") == "done" else f" · {run.get('status')}: not every component may be there"
    st.text(f"{model.get('name', 'model not recorded')} · task {config.get('task', 'not recorded')}{status}")


def choices(
    focus: state.Focus, run: dict[str, Any], ablations: list[dict[str, Any]], table: pd.DataFrame
) -> pd.DataFrame:
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
    return plots.one_view(table, method=method, metric=metric)


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


page()
