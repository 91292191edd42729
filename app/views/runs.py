"""Home: what is in the workspace. With `?run=` or `?store=` in the address, that result's own page; with `?run=` and
`?other=`, the two runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from app import readers, state
from app.components.exports import exports
from app.components.provenance import provenance
from interp import plots

SECTIONS = {"runs": "Runs", "saes": "Dictionaries", "stores": "Activation stores"}
SHOWN = 20
WIDTHS = [3, 5, 2, 1]
COMPARED = ("ablate", "patch")
OPEN = 2  # tables of a run that are shown at once
PAGES = {state.ABLATION: "Open it on the page Ablation →", state.PATCHING: "Open it on the page Patching →",
         state.CIRCUIT: "Open it on the page Circuit →"}  # fmt: skip


def page() -> None:
    focus = state.read_focus()
    if focus.run and focus.other:
        two_runs(focus.run, focus.other)
        return
    if focus.run or focus.store:
        one_result(focus)
        return
    st.title("Runs", anchor=False)
    st.text(f"Workspace: {state.workspace()}")
    everything = state.results()
    if not everything:
        state.empty("This workspace is empty. The demo fills it, in under five minutes:", demo_command())
        return
    wanted, kind, status = filters(everything)
    for folder, heading in SECTIONS.items():
        in_folder = [run for run in everything if run["folder"] == folder]
        matching = [run for run in in_folder if matches(run, wanted, kind, status)]
        st.subheader(f"{heading} ({len(matching)} of {len(in_folder)})", anchor=False)
        rows(matching[:SHOWN])
        if len(matching) > SHOWN:
            st.text(f"{len(matching) - SHOWN} older ones are not listed: type into the filter.")
        if folder == "runs":
            ask_for_two(in_folder)


def demo_command() -> str:
    is_default = state.workspace() == Path("workspace").resolve()
    return "interp demo" if is_default else f"interp demo --workspace {state.workspace()}"


def filters(everything: list[dict[str, Any]]) -> tuple[str, str, str]:
    left, middle, right = st.columns([3, 1, 1])
    wanted = left.text_input("Filter", key="runs-filter", placeholder="part of a name, kind, model or task")
    kinds = ["any kind", *sorted({str(run.get("kind")) for run in everything})]
    statuses = ["any status", *sorted({str(run.get("status")) for run in everything})]
    kind = middle.selectbox("Kind", kinds, key="runs-kind")
    return wanted.strip().lower(), kind, right.selectbox("Status", statuses, key="runs-status")


def matches(run: dict[str, Any], wanted: str, kind: str, status: str) -> bool:
    config = run["config"]
    words = (run["name"], run.get("kind"), run["model"].get("name"), config.get("task"), config.get("site"))
    return (
        kind in ("any kind", str(run.get("kind")))
        and status in ("any status", str(run.get("status")))
        and wanted in " ".join(str(word) for word in words).lower()
    )


def rows(results: list[dict[str, Any]]) -> None:
    if not results:
        return
    for column, heading in zip(st.columns(WIDTHS), ("name", "what", "started", "size"), strict=True):
        column.caption(heading)
    for run in results:
        name, what, started, size = st.columns(WIDTHS, vertical_alignment="center")
        target, query = state.place(run)
        with name:
            state.go(target, run["name"], query)
        mark = "" if run.get("status") == "done" else f" ({run.get('status')})"
        what.text(f"{summary(run)}{mark}")
        started.text(when(run))
        size.text(state.size_text(run))


def when(run: dict[str, Any]) -> str:
    return str(run.get("started") or "").replace("T", " ").removesuffix("Z")


def summary(run: dict[str, Any]) -> str:
    """One line on what a result is: its kind and the settings that tell it from others."""
    config = run["config"]
    told = [config.get(key) for key in ("task", "components", "method", "architecture", "site", "sites", "sae")]
    told = [*told, run["model"].get("name")]
    flat = [", ".join(map(str, item)) if isinstance(item, list) else str(item) for item in told if item]
    return " · ".join([str(run.get("kind")), *flat])


def ask_for_two(among: list[dict[str, Any]]) -> None:
    """Two runs of effects to hold beside each other; nothing where there are not two."""
    names = [run["name"] for run in among if run.get("kind") in COMPARED]
    if len(names) < 2:
        return
    with st.expander("Compare two runs of effects"):
        first, second, go = st.columns([3, 3, 2], vertical_alignment="bottom")
        a = first.selectbox("This run", names, key="compare-a")
        b = second.selectbox("against", [name for name in names if name != a], key="compare-b")
        with go:
            state.link(state.RUNS, "Compare →", run=a, other=b)


def two_runs(name: str, other: str) -> None:
    """Effects of two runs on the same prompts, paired; why, where they cannot be."""
    state.link(state.RUNS, "← all runs", run=None, other=None)
    st.title(state.escape(f"{name} against {other}"), anchor=False)
    among = state.results("runs")
    try:
        run, against = (state.result(which, among) for which in (name, other))
        table = readers.comparison(run["path"], against["path"])
    except state.UNREADABLE as error:
        state.problem("These two cannot be compared.", error)
        return
    for which in (run, against):
        target, query = state.place(which)
        st.page_link(target, label=state.escape(f"{which['name']}: {summary(which)}"), query_params=query)
    st.text("difference = effect in the first minus effect in the second, each prompt with itself; 95% interval; "
            "q: paired t-test, adjusted over components")  # fmt: skip
    metrics = list(table["metric"].unique())
    metric = st.selectbox("Metric", metrics, key="compare-metric", width=240)
    table = table[table["metric"] == metric]
    left, right = st.columns(2, gap="large")
    with left:
        figure = plots.comparison(table, (name, other))
        st.plotly_chart(figure, key="comparison", config={"displayModeBar": False})
    order = table["difference"].abs().sort_values(ascending=False, kind="stable").index
    columns = ["component", "position", "effect", "effect_other", "difference", "ci_low", "ci_high", "q", "n"]
    with right:
        st.text("Largest difference first")
        st.dataframe(table.loc[order, columns], hide_index=True, height=480, column_config=state.number_columns(table))
    exports(run | {"name": f"{name}-against-{other}"}, table, lambda: plots.comparison(table, (name, other)))
    lines = ["from interp import Effects", "", f"first = Effects.load({str(run['path'])!r})"]
    st.text("In a notebook")
    st.code("\n".join([*lines, f"first.compare(Effects.load({str(against['path'])!r}))"]), language="python")


def one_result(focus: state.Focus) -> None:
    folder, name = ("runs", focus.run) if focus.run else ("stores", focus.store)
    state.link(state.RUNS, "← all runs", run=None, store=None)
    st.title(state.escape(name), anchor=False)
    try:
        run = state.result(name, state.results(folder))
    except state.InputError as error:
        state.problem("There is no such result.", error)
        return
    st.text(f"{summary(run)} · {run.get('status')} · {state.size_text(run)}")
    target, query = state.place(run)
    if target in PAGES:
        st.page_link(target, label=PAGES[target], query_params=query)
    if (run["path"] / "effects.parquet").exists():
        figures(run)
    elif figure := readers.looked_at(run["path"]):
        st.plotly_chart(figure, key="looked-at")
    elif run.get("status") == "running":
        st.text("It is still running: its results appear when they are written. Reload the page then.")
    other_tables(run["path"])
    provenance(run)


def figures(run: dict[str, Any]) -> None:
    try:
        effects = readers.effects(run["path"])
    except state.UNREADABLE as error:
        state.problem("The effects of this run cannot be read.", error)
        return
    table, ticks = effects.rows, effects.about.get("ticks")
    for (method, metric), _ in table.groupby(["method", "metric"], sort=False):
        figure = plots.effects(table, method=method, metric=metric, ticks=ticks)
        st.plotly_chart(figure, key=f"figure-{method}-{metric}")
    st.dataframe(table, hide_index=True, column_config=state.number_columns(table))
    exports(run, table, lambda: plots.effects(table, ticks=ticks))


def other_tables(folder: Path) -> None:
    """What else the run wrote: its tables, and the names of its files."""
    shown: list[str] = ["effects.parquet"] if (folder / "effects.parquet").exists() else []
    report = folder / "report.html"
    if report.exists():
        st.download_button("The report, a page of its own", lambda: state.inside(report).read_bytes(), "report.html",
                           "text/html", on_click="ignore")  # fmt: skip
    for path in sorted(folder.glob("*.parquet")):
        if path.name == "effects.parquet":
            continue
        with st.expander(f"Table {state.escape(path.name)}", expanded=len(shown) < OPEN):
            shown.append(path.name)
            try:
                st.dataframe(readers.table(folder, path.name).head(1000), hide_index=True)
            except state.UNREADABLE as error:
                state.problem("This table cannot be read.", error)
    names = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".")][:100]
    st.text("Files: " + "  ".join(names))


page()
