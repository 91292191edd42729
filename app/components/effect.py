"""One row of effects: how large it is, how sure, and how the prompts differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app import readers, state
from app.components.notes import labels
from app.components.token_strip import visible
from interp import plots
from interp.causal.effects import Effects


def title(row: pd.Series) -> str:
    """What a row is of: "L3H5", "L2.resid_pre at S2"."""
    place = "" if str(row["position"]) == "all" else f" at {row['position']}"
    return f"{row['component']}{place}"


def prompts_of(folder: Path, effects: Effects, row: pd.Series, names: tuple[str, str]) -> pd.DataFrame:
    """The metric of each prompt before and after (called `names`), the effect, and the prompt. KeyError where the run
    kept no values of single prompts."""
    table, method, metric = effects.rows, row["method"], row["metric"]
    same = table.index[(table["method"] == method) & (table["metric"] == metric)]
    by_prompt = plots.per_prompt(effects.baseline[metric], effects.values[(method, metric)][same.get_loc(row.name)])
    by_prompt.columns = [*names, "effect"]
    texts = [visible(str(pair.get("clean", ""))) for pair in readers.prompts(folder)]
    if len(texts) == len(by_prompt):
        by_prompt["prompt text"] = texts
    return by_prompt


def numbers(row: pd.Series, names: tuple[str, str]) -> None:
    """The effect, its interval, and the metric before and after; where a patching has it, `normalized` first."""
    shown = {"effect": f"{row['effect']:+.3f}"}
    if pd.notna(row.get("normalized")):
        shown = {"normalized": f"{row['normalized']:.3f}"} | shown
    known = pd.notna(row["ci_low"])
    shown["95% interval of the mean"] = f"{row['ci_low']:+.3f} … {row['ci_high']:+.3f}" if known else "none: one prompt"
    shown[f"{names[0]} → {names[1]}"] = f"{row['baseline']:.3f} → {row['value']:.3f}"
    with st.container(horizontal=True):  # on a narrow page in two lines
        for label, value in shown.items():
            st.metric(label, value, width="content", help=state.MEANS.get(label))
    st.text(f"in {row['metric']}, mean over {row['n']} prompts")


def by_prompt(folder: Path, effects: Effects, row: pd.Series, names: tuple[str, str]) -> None:
    """How the prompts differ: a histogram of the effect, and the prompts, largest effect first; choosing one puts it
    into the address."""
    try:
        table = prompts_of(folder, effects, row, names)
    except KeyError:
        st.text("This run kept no values of single prompts.")
        return
    figure = readers.drawn(
        lambda: plots.histogram(table, row), folder, "effects.h5",
        of=(row["method"], row["metric"], row["component"], str(row["position"])),
    )  # fmt: skip
    st.plotly_chart(figure, key="histogram", config={"displayModeBar": False})
    st.text("Prompts, largest effect first; choose a row")
    table = table.sort_values("effect", key=abs, ascending=False)
    key, order = f"prompts-{folder.name}", table.index.tolist()

    def pick() -> None:
        chosen = st.session_state[key].selection.rows
        if chosen and chosen[0] < len(order):
            state.write_focus(prompt=order[chosen[0]])

    st.dataframe(table, key=key, on_select=pick, selection_mode="single-row", height=215)


def all_rows(run: dict[str, Any], table: pd.DataFrame, columns: list[str], what: str) -> None:
    """The table beside the map, with the labels that components have."""
    st.text(f"All {what}, largest effect first")
    order = table["effect"].abs().sort_values(ascending=False, kind="stable").index
    shown, known = table.loc[order, [column for column in columns if column in table]], labels(run)
    if known:
        shown.insert(1, "label", [known.get(name, "") for name in shown["component"]])
    st.dataframe(shown, hide_index=True, height=300, column_config=state.number_columns(shown))


def snippet(folder: Path) -> str:
    lines = ["from interp.causal.effects import Effects", "", f"effects = Effects.load({str(folder)!r})"]
    return "\n".join([*lines, "effects.table()", "effects.figure()"])
