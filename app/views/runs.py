"""Home: what is in the workspace. With `?run=` or `?store=` in the address, that result's own page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from app import state
from app.components.provenance import provenance
from interp import plots

SECTIONS = {"runs": "Runs", "saes": "Dictionaries", "stores": "Activation stores"}
SHOWN = 20


def page() -> None:
    focus = state.read_focus()
    if focus.run or focus.store:
        one_result(focus)
        return
    st.title("Runs", anchor=False)
    st.text(f"Workspace: {state.workspace()}")
    everything = state.results()
    if not everything:
        state.empty("This workspace is empty. The demo fills it, in under five minutes:", demo_command())
        return
    wanted, status = filters(everything)
    for folder, heading in SECTIONS.items():
        in_folder = [run for run in everything if run["folder"] == folder]
        matching = [run for run in in_folder if matches(run, wanted, status)]
        st.subheader(f"{heading} ({len(matching)} of {len(in_folder)})", anchor=False)
        rows(matching[:SHOWN])
        if len(matching) > SHOWN:
            st.text(f"{len(matching) - SHOWN} older ones are not listed: type into the filter.")


def demo_command() -> str:
    is_default = state.workspace() == Path("workspace").resolve()
    return "interp demo" if is_default else f"interp demo --workspace {state.workspace()}"


def filters(everything: list[dict[str, Any]]) -> tuple[str, str]:
    left, right = st.columns([3, 1])
    wanted = left.text_input("Filter", key="runs-filter", placeholder="part of a name, kind, model or task")
    statuses = ["any status", *sorted({str(run.get("status")) for run in everything})]
    return wanted.strip().lower(), right.selectbox("Status", statuses, key="runs-status")


def matches(run: dict[str, Any], wanted: str, status: str) -> bool:
    config, model = run.get("config") or {}, run.get("model") or {}
    words = (run["name"], run.get("kind"), model.get("name"), config.get("task"), config.get("site"))
    return status in ("any status", run.get("status")) and wanted in " ".join(str(word) for word in words).lower()


def rows(results: list[dict[str, Any]]) -> None:
    widths = [3, 3, 2, 2, 1]
    if results:
        for column, heading in zip(st.columns(widths), ("name", "what", "model", "started", "size"), strict=True):
            column.caption(heading)
    for run in results:
        name, what, model, started, size = st.columns(widths, vertical_alignment="center")
        target, query = state.place(run)
        name.page_link(target, label=state.escape(run["name"]), query_params=query)
        mark = "" if run.get("status") == "done" else f" ({run.get('status')})"
        what.text(f"{summary(run)}{mark}")
        model.text(str((run.get("model") or {}).get("name", "")))
        started.text(str(run.get("started") or "").replace("T", " ").removesuffix("Z"))
        size.text(state.size_text(run["path"]))


def summary(run: dict[str, Any]) -> str:
    """One line on what a result is: its kind and the settings that tell it from others."""
    config = run.get("config") or {}
    told = [config.get(key) for key in ("task", "components", "method", "architecture", "site", "sites")]
    flat = [", ".join(map(str, item)) if isinstance(item, list) else str(item) for item in told if item]
    return " · ".join([str(run.get("kind")), *flat])


def one_result(focus: state.Focus) -> None:
    folder, name = ("runs", focus.run) if focus.run else ("stores", focus.store)
    st.page_link(state.RUNS, label="← all runs", query_params={})
    st.title(state.escape(name), anchor=False)
    try:
        run = state.result(name, state.results(folder))
    except state.InputError as error:
        state.problem("There is no such result.", error)
        return
    st.text(f"{summary(run)} · {state.size_text(run['path'])}")
    if run.get("kind") == "ablate":
        st.page_link(state.ABLATION, label="Open the map of components", query_params={"run": name})
    if (run["path"] / "effects.parquet").exists():
        figures(run["path"])
    provenance(run)


def figures(folder: Path) -> None:
    try:
        effects = state.effects(folder)
    except state.UNREADABLE as error:
        state.problem("The effects of this run cannot be read.", error)
        return
    table, ticks = effects.table(), effects.about.get("ticks")
    for (method, metric), _ in table.groupby(["method", "metric"], sort=False):
        st.plotly_chart(
            plots.effects(table, method=method, metric=metric, ticks=ticks), key=f"figure-{method}-{metric}"
        )
    st.dataframe(table, hide_index=True, column_config=state.number_columns(table))


page()
