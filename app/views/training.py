"""How dictionaries were trained, or are being trained now: the log, what was measured at the end, and what sparsity
costs over all of them."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import readers, state
from app.components.provenance import provenance
from interp import plots

COMMAND = "interp sae train --store demo --site 2.resid_post --d-sae 2048 --k 32 --out demo"
EVERY = 2.0
"""Seconds between two looks at a log that is being written."""
MEASURES = {
    "l0": ("L0", "{:.1f}", "latents active on a token, on average"),
    "fvu": ("FVU", "{:.3f}", "fraction of variance unexplained; 0 is perfect"),
    "dead": ("dead", "{:,}", "latents that fired at no token of the evaluation's text"),
    "ce_recovered_mean": ("CE recovered (mean)", "{:.1%}", "loss recovered, against mean ablation of the site"),
    "ce_recovered_zero": ("CE recovered (zero)", "{:.1%}", "loss recovered, against zero ablation of the site"),
    "kl": ("KL", "{:.3f}", "nats between the model's next token and that with the dictionary in it"),
}
"""What metrics.json says of a dictionary, and how it is shown."""
ORDER = ["name", "l0", "fvu", "dead", "architecture", "d_sae", "k", "site", "seed"]
SETTINGS = ("architecture", "site", "d_sae", "k", "sparsity", "lr", "n_tokens")


def page() -> None:
    focus = state.read_focus()
    st.title("Training", anchor=False)
    dictionaries = state.results("saes")
    if not dictionaries:
        state.empty("No dictionary in this workspace yet. This trains one on the store called demo:", COMMAND)
        return
    left, right = st.columns([11, 9], gap="large")
    with left:
        try:
            run = state.result(focus.sae, dictionaries) if focus.sae else dictionaries[0]
            one(run, dictionaries)
        except state.UNREADABLE as error:
            state.problem("This dictionary's training cannot be shown.", error)
            state.link(state.TRAINING, "Another dictionary", sae=None)
            return
    with right:
        st.subheader("What sparsity costs", anchor=False)
        all_of_them(dictionaries)
    st.subheader("Where this comes from", anchor=False)
    provenance(run, snippet=f"import sae\n\ndct = sae.load({str(run['path'])!r})")


def one(run: dict[str, Any], dictionaries: list[dict[str, Any]]) -> None:
    """One dictionary: what it is, its log, what was measured when it was done."""
    told = {d["name"]: d["name"] + ("" if d.get("status") == "done" else f" ({d.get('status')})") for d in dictionaries}
    state.choose("Dictionary", list(told), "sae", run["name"], resets=("feature",), format_func=lambda name: told[name])
    config = run["config"]
    said = [f"{key} {config[key]:,}" if isinstance(config[key], int) else f"{key} {config[key]}"
            for key in SETTINGS if config.get(key) is not None]  # fmt: skip
    st.text(" · ".join([str(run["model"].get("name", "model not recorded")), *said]))
    state.link(state.FEATURES, "Its features →", sae=run["name"], feature=None)
    measured(run)
    if run.get("status") == "running":
        st.fragment(log, run_every=EVERY)(run)
    else:
        log(run)


def measured(run: dict[str, Any]) -> None:
    """The numbers of metrics.json."""
    metrics = readers.json_file(run["path"], "metrics.json")
    known = [key for key in MEASURES if isinstance(metrics.get(key), int | float)]
    if known:
        columns = [column for _ in range(0, len(known), 3) for column in st.columns(3)]
        for column, key in zip(columns, known, strict=False):
            label, form, meaning = MEASURES[key]
            column.metric(label, form.format(metrics[key]), help=meaning)
    elif run.get("status") == "running":
        st.text("Training: its numbers are measured when it is done.")
    else:
        state.empty("Not evaluated yet. This measures loss recovered, L0, FVU and dead latents:",
                    f"interp sae eval {run['name']} --text bundled")  # fmt: skip


def log(run: dict[str, Any]) -> None:
    """The lines of train_log.csv so far; while the training runs this is looked at again every few seconds."""
    if run.get("status") == "running" and now(run) != "running":
        st.rerun()
    if not (run["path"] / "train_log.csv").exists():
        waiting = "Its first lines are not written yet." if run.get("status") == "running" else (
            "No train_log.csv: it was not trained here, or wrote nothing.")  # fmt: skip
        st.text(waiting)
        return
    lines = readers.table(run["path"], "train_log.csv")
    if not len(lines):
        st.text("Its first lines are not written yet.")
        return
    last, total = lines.iloc[-1], run["config"].get("n_tokens")
    share = f" of {total:,} ({last['tokens'] / total:.0%})" if isinstance(total, int) and total else ""
    st.text(f"{int(last['tokens']):,} tokens{share}: loss {last['loss']:.4g}, FVU {last['fvu']:.3f}, "
            f"L0 {last['l0']:.1f}, dead {int(last['dead'])}")  # fmt: skip
    figure = readers.drawn(lambda: plots.training(lines), run["path"], "train_log.csv", of="log")
    st.plotly_chart(figure, key="training", config={"displayModeBar": False})
    with st.expander("The log as a table"):
        st.dataframe(lines, hide_index=True, column_config=state.number_columns(lines))


def now(run: dict[str, Any]) -> Any:
    """The status that run.json has at this moment."""
    return next((other.get("status") for other in state.results("saes") if other["name"] == run["name"]), None)


def all_of_them(dictionaries: list[dict[str, Any]]) -> None:
    """L0 against FVU of every dictionary that is done; a click on one chooses it."""
    table, left_out = finished(dictionaries)
    if left_out:
        st.text(f"Left out, without an L0 and FVU of their own training: {', '.join(left_out)}.")
    if not len(table):
        st.text("No finished dictionary yet.")
        return

    def pick() -> None:
        if (name := state.clicked("frontier")) in set(table["name"]):
            state.write_focus(sae=name, feature=None)

    def pick_row() -> None:
        if (row := state.picked("frontier-table")) is not None:
            state.write_focus(sae=table["name"].iloc[row], feature=None)

    figure = readers.drawn(
        lambda: plots.frontier(table).update_layout(clickmode="event+select", dragmode=False),
        dictionaries[0]["path"], "run.json", of=tuple(table.itertuples(index=False, name=None)),
    )  # fmt: skip
    st.plotly_chart(figure, key="frontier", on_select=pick, config={"displayModeBar": False})
    st.text("Lower and further left is better; click a point or choose a row")
    st.dataframe(table, key="frontier-table", on_select=pick_row, selection_mode="single-row", hide_index=True,
                 column_order=ORDER, column_config=state.number_columns(table))  # fmt: skip


def finished(dictionaries: list[dict[str, Any]]) -> tuple[pd.DataFrame, list[str]]:
    """A row a dictionary that has what `sae.frontier` reads; the names of the others that are done."""
    done = [run for run in dictionaries if run.get("status") == "done"]
    tables, left_out = [], []
    for run in done:
        try:
            tables.append(readers.frontier_row(run["path"]))
        except state.UNREADABLE:
            left_out.append(run["name"])
    if not tables:
        return pd.DataFrame(columns=["name"]), left_out
    return pd.concat(tables).sort_values(["site", "architecture", "d_sae", "l0"], ignore_index=True), left_out


page()
