"""Where the answer travels: activations carried from the clean run into the corrupted one, or back; the map, the cell
that was clicked, the two prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import readers, state
from app.components import effect as effects_of
from app.components.exports import exports
from app.components.heat_grid import heat_grid
from app.components.links import links
from app.components.notes import label_box
from app.components.prompt_pair import prompt_pair
from app.components.provenance import provenance
from app.components.token_strip import visible
from interp import plots
from interp.causal.effects import Effects

COLUMNS = ["component", "position", "normalized", "effect", "ci_low", "ci_high", "q", "baseline", "value", "n"]
COMMAND = "interp patch --model bundled --task ioi --site resid_pre --by layer,position --n 100 --out ioi-patch"
STARTS = {"denoise": "corrupted", "noise": "clean", "trace": "noised", "path": "clean"}
"""What is patched into, by method."""
MEANING = {
    "denoise": "denoise: into the corrupted run goes what the clean run has there. What brings the answer back?",
    "noise": "noise: into the clean run goes what the corrupted run has there. What is needed for the answer?",
    "trace": "trace: the subject's embeddings are noised, one state of the clean run is put back (Meng et al. 2022).",
    "path": "path: only what one sender tells the receiver is corrupted (Wang et al. 2022).",
}
WIDE = 16
"""Positions beyond which a map takes the whole width of the page."""
MOST_ROWS = 64
"""Components on a map at most, the strongest: more cannot be told apart."""


def page() -> None:
    focus = state.read_focus()
    patchings = state.results("runs", kinds=["patch"])
    st.title("Patching", anchor=False)
    if not patchings:
        state.empty("No patching in this workspace yet. This makes one:", COMMAND)
        return
    try:
        run = state.result(focus.run, patchings) if focus.run else patchings[0]
        boxes = st.columns([6, 2, 2])
        with boxes[0]:
            told = {other["name"]: f"{other['name']} · {described(other)}" for other in patchings}
            state.choose("Run", list(told), "run", run["name"], resets=("head", "pos", "method", "metric"),
                         format_func=told.get)  # fmt: skip
        effects = readers.effects(run["path"])
        pairs = readers.prompts(run["path"])
    except state.UNREADABLE as error:
        state.problem("This run cannot be shown.", error)
        state.unfinished(focus.run, patchings)
        return
    table = choices(focus, effects.rows, boxes[1:])
    heading(run, patchings, table["method"].iloc[0])
    above = st.container() if table["position"].nunique() > WIDE else None
    left, right = st.columns([11, 9], gap="large")
    state.part(selection, run, effects, table, pairs, above or left.container(), left.container(), right)
    with left:
        effects_of.all_rows(run, table, COLUMNS, "cells")
    exports(run, effects.rows, lambda: plots.effects(table, ticks=effects.about.get("ticks")))
    st.subheader("Where this comes from", anchor=False)
    provenance(run, snippet=effects_of.snippet(run["path"]))


def selection(
    focus: state.Focus, run: dict[str, Any], effects: Effects, table: pd.DataFrame, pairs: list[dict[str, Any]],
    the_top: Any, below: Any, right: Any,
) -> None:  # fmt: skip
    """The map, the cell that was clicked, and the prompts with its position."""
    with the_top:
        row = the_map(focus, table, effects.about.get("ticks"))
    with right:
        st.subheader(state.escape(effects_of.title(row)), anchor=False)
        names = (STARTS.get(kind_of(row["method"]), "before"), "patched")
        effects_of.numbers(row, names)
    with below:
        the_prompts(focus, pairs, row, table)
    with right:
        links(run, row["component"], here=state.PATCHING)
        effects_of.by_prompt(run["path"], effects, row, names)
        label_box(run, row["component"])


def kind_of(method: str) -> str:
    return method.removesuffix("-atp")


def heading(run: dict[str, Any], patchings: list[dict[str, Any]], method: str) -> None:
    """What was done; and the other maps of the same model and task, a click away."""
    config = run["config"]
    status = "" if run.get("status") == "done" else f" · {run.get('status')}: not every cell may be there"
    st.text(f"{run['model'].get('name', 'model not recorded')} · task {config.get('task', 'not recorded')}{status}\n"
            f"{MEANING.get(kind_of(method), '')}".rstrip())  # fmt: skip
    same = [
        other
        for other in patchings
        if other is not run
        and (other["model"].get("fingerprint"), other["config"].get("task"))
        == (run["model"].get("fingerprint"), config.get("task"))
    ]
    if same:
        with st.container(horizontal=True):
            st.text("Other maps of this task:")
            for other in same[:6]:
                state.link(state.PATCHING, described(other), run=other["name"], head=None, pos=None, method=None)


def described(run: dict[str, Any]) -> str:
    """A patching in a few words: "resid_pre by layer, position, denoise"."""
    config = run["config"]
    by = config.get("by")
    by = ", ".join(map(str, by)) if isinstance(by, list) else str(by or "").replace(",", ", ")
    return f"{config.get('site', 'path')}{f' by {by}' if by else ''}, {config.get('method', 'denoise')}"


def choices(focus: state.Focus, table: pd.DataFrame, boxes: list[Any]) -> pd.DataFrame:
    """Method and metric; the rows of both."""
    with boxes[0]:
        method = state.choose("Method", list(table["method"].unique()), "method", focus.method)
    with boxes[1]:
        metrics = list(table.loc[table["method"] == method, "metric"].unique())
        metric = state.choose("Metric", metrics, "metric", focus.metric)
    for asked, got in ((focus.method, method), (focus.metric, metric)):
        if asked not in (None, got):
            st.text(f'This run has no "{asked}"; showing {got}.')
    return plots.one_view(table, method=method, metric=metric)


def the_map(focus: state.Focus, table: pd.DataFrame, ticks: dict[str, str] | None) -> pd.Series:
    """The map (bars, where there is neither a layer nor a head), and the row in focus."""
    row = in_focus(focus, table)
    shown = strongest(table)
    name = f"{row['component']}@{row['position']}"
    if shown["position"].astype(str).nunique() > 1:
        heat_grid(plots.position_grid(shown, ticks), key="map", selected=name, on_pick=pick,
                  label="effect of patching each component at each position")  # fmt: skip
    elif grid := plots.component_grid(shown):
        heat_grid(grid, key="map", selected=row["component"], on_pick=lambda name: state.write_focus(head=name),
                  label="effect of patching each component")  # fmt: skip
    else:
        st.plotly_chart(plots.ranked(shown), key="bars")
    number = "normalized" if "normalized" in table else "effect"
    formula = plots.scale(table[number], row["metric"], method=row["method"], normalized=number == "normalized").formula
    st.text(f"{formula}\n{ends(table)}n = {row['n']} prompts · click a cell, or choose:")
    component, position = st.columns(2)
    with component:
        names = list(table["component"].unique())
        state.choose("Component", names, "head", row["component"], label_visibility="collapsed")
    with position:
        positions = list(table.loc[table["component"] == row["component"], "position"].astype(str))
        if positions != ["all"]:
            told = {at: f"{visible(ticks[at])} ({at})" if ticks and at in ticks else at for at in positions}
            state.choose("Position", positions, "pos", str(row["position"]), label_visibility="collapsed",
                         format_func=told.get)  # fmt: skip
    return row


def pick(name: str) -> None:
    component, _, position = name.rpartition("@")
    state.write_focus(head=component, pos=position)


def in_focus(focus: state.Focus, table: pd.DataFrame) -> pd.Series:
    """The row of the component and position in the address, or the strongest one that fits."""
    rows = table
    for column, asked in (("component", focus.head), ("position", focus.pos)):
        fitting = rows[rows[column].astype(str) == asked] if asked else rows
        if len(fitting):
            rows = fitting
        else:
            st.text(f'This run has no {column} "{asked}"; showing the strongest there is.')
    return rows.loc[rows["effect"].abs().fillna(-1).idxmax()]


def strongest(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the components that fit on a map; says what is left out."""
    largest = table["effect"].abs().groupby(table["component"]).max().nlargest(MOST_ROWS)
    if (n := table["component"].nunique()) > MOST_ROWS:
        st.text(f"The {MOST_ROWS} components with the largest effects, of {n:,}; all are in the table.")
    return table[table["component"].isin(largest.index)]


def ends(table: pd.DataFrame) -> str:
    """What 0 and 1 of `normalized` are, in the metric's unit."""
    if "normalized" not in table:
        return ""
    start = 1.0 if kind_of(table["method"].iloc[0]) == "noise" else 0.0
    moved = table["normalized"] - start
    if not moved.abs().max() > 1e-3:
        return ""
    far = moved.abs().idxmax()
    unit, baseline = table.loc[far, "effect"] / moved[far], table.loc[far, "baseline"]
    zero = baseline - start * unit
    return f"{table['metric'].iloc[0]}: 0 is {zero:.3g}, 1 is {zero + unit:.3g} · " if np.isfinite(unit) else ""


def the_prompts(focus: state.Focus, pairs: list[dict[str, Any]], row: pd.Series, table: pd.DataFrame) -> None:
    """One pair of prompts, the clean one above the corrupted one."""
    if not pairs:
        st.text("This run kept no prompts.")
        return
    at = focus.prompt if focus.prompt is not None and focus.prompt < len(pairs) else 0
    pair = pairs[at]
    answers = " · ".join(f"{key}: {visible(str(pair[key]))}" for key in ("answer", "wrong") if pair.get(key))
    st.text(f"Prompt {at} of {len(pairs)}; tokens that differ are marked. {answers}")
    positions = [str(position) for position in table["position"].unique()]
    shown = prompt_pair(pair, positions, key="prompts", selected=str(row["position"]),
                        on_pick=lambda name: state.write_focus(pos=name, head=row["component"]))  # fmt: skip
    if not shown:
        lines = [f"{which:9}  {visible(str(pair[which]))}" for which in ("clean", "corrupted") if pair.get(which)]
        st.code("\n".join(lines) or "only token ids were kept", language=None, wrap_lines=True)


page()
