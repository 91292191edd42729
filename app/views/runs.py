"""Home: what is in the workspace. With `?run=` or `?store=` in the address, that result's own page; with `?run=` (of a
dictionary `?sae=`) and `?other=`, the two beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from app import readers, state
from app.components.beside import beside, family
from app.components.exports import exports
from app.components.findings import findings
from app.components.provenance import provenance
from interp import plots

SECTIONS = {"runs": "Runs", "saes": "Dictionaries", "stores": "Activation stores"}
SHOWN = 20
WIDTHS = [3, 5, 2, 1]
PAGES = {state.ABLATION: "Open it on the page Ablation →", state.PATCHING: "Open it on the page Patching →",
         state.CIRCUIT: "Open it on the page Circuit →"}  # fmt: skip


def page() -> None:
    focus = state.read_focus()
    if focus.other and (focus.run or focus.sae):
        two_results(focus)
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
    ask_for_two(everything)


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


def ask_for_two(everything: list[dict[str, Any]]) -> None:
    """Two results to hold beside each other; nothing where there are not two of a family."""
    families: dict[str, list[dict[str, Any]]] = {}
    for run in everything:
        if name := family(run):
            families.setdefault(name, []).append(run)
    families = {name: runs for name, runs in families.items() if len(runs) > 1}
    if not families:
        return
    with st.expander("Compare two runs of effects, two circuits or two dictionaries"):
        which, first, second, go = st.columns([2, 3, 3, 2], vertical_alignment="bottom")
        name = which.selectbox("Two", list(families), key="compare-family")
        names = [run["name"] for run in families[name]]
        a = first.selectbox("This one", names, key="compare-a")
        b = second.selectbox("against", [name for name in names if name != a], key="compare-b")
        with go:
            field = "sae" if name == "dictionaries" else "run"
            state.link(state.RUNS, "Compare →", **{field: a, "other": b})


def two_results(focus: state.Focus) -> None:
    """Two results beside each other; why, where they cannot be."""
    folder, name = ("runs", focus.run) if focus.run else ("saes", focus.sae)
    state.link(state.RUNS, "← all runs", run=None, sae=None, other=None)
    st.title(state.escape(f"{name} against {focus.other}"), anchor=False)
    among = state.results(folder)
    try:
        run, other = (state.result(which, among) for which in (name, focus.other))
        for which in (run, other):
            target, query = state.place(which)
            state.go(target, f"{which['name']}: {summary(which)}", query)
        beside(run, other)
    except state.UNREADABLE as error:
        state.problem("These two cannot be compared.", error)


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
    shown = findings(run)
    if (run["path"] / "effects.parquet").exists() and "heads.parquet" not in shown:
        figures(run)
        shown.append("effects.parquet")
    if not shown and run.get("status") == "running":
        st.text("It is still running: its results appear when they are written. Reload the page then.")
    elif not shown and folder == "runs":
        st.text(f"Nothing to show: its status is {run.get('status')}, and it holds no result that this page knows. The "
                "command below makes it again; if it was stopped, the same command continues.")  # fmt: skip
    other_tables(run["path"], shown)
    provenance(run)


def figures(run: dict[str, Any]) -> None:
    try:
        effects = readers.effects(run["path"])
    except state.UNREADABLE as error:
        state.problem("The effects of this run cannot be read.", error)
        return
    table, ticks = effects.rows, effects.about.get("ticks")
    for (method, metric), _ in table.groupby(["method", "metric"], sort=False):
        figure = readers.drawn(
            lambda method=method, metric=metric: plots.effects(table, method=method, metric=metric, ticks=ticks),
            run["path"], "effects.parquet", of=("all", method, metric),
        )  # fmt: skip
        st.plotly_chart(figure, key=f"figure-{method}-{metric}")
    st.dataframe(table, hide_index=True, column_config=state.number_columns(table))
    exports(run, table, lambda: plots.effects(table, ticks=ticks))


def other_tables(folder: Path, shown: list[str]) -> None:
    """What else the run wrote: its tables, and the names of its files."""
    report = folder / "report.html"
    if report.exists():
        st.download_button("The report, a page of its own", lambda: state.inside(report).read_bytes(), "report.html",
                           "text/html", on_click="ignore")  # fmt: skip
    for path in sorted(folder.glob("*.parquet")):
        if path.name in shown:
            continue
        with st.expander(f"Table {state.escape(path.name)}", expanded=not shown):
            try:
                st.dataframe(readers.table(folder, path.name).head(1000), hide_index=True)
            except state.UNREADABLE as error:
                state.problem("This table cannot be read.", error)
    names = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".")][:100]
    st.text("Files: " + "  ".join(names))


page()
