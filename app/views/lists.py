"""What people have said of components: all labels of the workspace, and lists that collect components of many
results."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import notes, state
from app.components.exports import exports
from app.components.token_strip import visible

SHOWN = 100


def page() -> None:
    focus = state.read_focus()
    root = state.workspace()
    results = state.results()
    try:
        names = notes.lists(root)
    except state.UNREADABLE as error:
        st.title("Lists", anchor=False)
        state.problem("The lists of this workspace cannot be read.", error)
        return
    if focus.list:
        one_list(focus.list, names, results)
        return
    st.title("Lists", anchor=False)
    if not names:
        st.text("No list yet: open a component on the page of its result, and type a name into its box of lists.")
    for name in names:
        link, count = st.columns([3, 9], vertical_alignment="center")
        with link:
            state.go(state.LISTS, name, {"list": name})
        try:
            count.text(f"{len(notes.entries(root, name))} components")
        except state.UNREADABLE as error:
            count.text(str(error))
    labels = notes.labels_table(results)
    st.subheader(f"All labels ({len(labels)})", anchor=False)
    if len(labels):
        rows(labels, results, None)
        exports({"name": "labels"}, labels)
    else:
        st.text("No label yet: open a component on the page of its result, and say what it does.")


def one_list(name: str, names: list[str], results: list[dict[str, Any]]) -> None:
    state.go(state.LISTS, "← all lists", {})
    st.title(state.escape(name), anchor=False)
    try:
        if name not in names:
            raise state.UnknownName(f'no list "{name}" in this workspace.'
                                    + (f" Nearest: {state.nearest(name, names)}." if names else ""))  # fmt: skip
        table = notes.list_table(state.workspace(), name)
    except state.UNREADABLE as error:
        state.problem("This list cannot be shown.", error)
        return
    if table.empty:
        st.text("Nothing is on it.")
        return
    rows(table, results, name)
    exports({"name": name}, table)


def rows(table: pd.DataFrame, results: list[dict[str, Any]], of: str | None) -> None:
    """A row a component, with a link to where it is looked at; those of a list can be taken from it."""
    named = {f"{run['folder']}/{run['name']}": run for run in results}
    wanted = st.text_input("Filter", key=f"lists-filter-{of}", placeholder="part of a result, component or label")
    text = table.astype(str).agg(" ".join, axis=1).str.lower()
    shown = table[text.str.contains(wanted.strip().lower(), regex=False)]
    widths = [2, 3, 6, 1]
    for column, heading in zip(st.columns(widths), ("component", "result", "label", ""), strict=True):
        column.caption(heading)
    for k, row in enumerate(shown.head(SHOWN).itertuples()):
        link, result, label, button = st.columns(widths, vertical_alignment="center")
        if row.result in named:
            target, query = place(named[row.result], row.component)
            link.page_link(target, label=state.escape(visible(row.component)), query_params=query)
            result.text(row.result)
        else:
            link.text(visible(row.component))
            result.text(f"{row.result} (not in this workspace)")
        label.text(visible(row.label) if row.label else "")
        if of is not None:
            folder, _, name = row.result.partition("/")
            entry = notes.Entry(folder=folder, result=name, component=row.component)
            button.button("✕", key=f"take-{k}", type="tertiary", help="Take it from the list",
                          on_click=notes.take, args=(state.workspace(), of, entry))  # fmt: skip
    if len(shown) > SHOWN:
        st.text(f"{len(shown) - SHOWN} more: type into the filter, or export.")


def place(run: dict[str, Any], component: str) -> tuple[str, dict[str, str]]:
    """The page that shows a component of a result, and its parameters."""
    if run["folder"] == "saes":
        return state.FEATURE, {"sae": run["name"], "feature": component}
    target, query = state.place(run)
    return target, query | {"head": component}


page()
