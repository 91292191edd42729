"""The latents of a dictionary: how often and how strongly each fires, and those that fire on a token or raise it."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import readers, state
from app.components.exports import exports
from app.components.notes import labels
from app.components.provenance import provenance
from interp import plots
from interp.plots.labels import visible
from sae.features import Features

DENSE = 0.1  # a latent that fires on more than this share of tokens is called dense
KINDS = ["alive", "all", "dead", "dense"]
ORDERS = {"max_activation": "max activation", "density": "density", "latent": "number"}
SEARCHES = {"examples": "fire on a token", "raised": "raise a token", "number": "are numbered"}
MEASURES = {
    "l0": ("L0", "{:.1f}", "latents active on a token, on average"),
    "fvu": ("FVU", "{:.3f}", "fraction of variance unexplained; 0 is perfect"),
    "ce_recovered_mean": ("CE recovered (mean)", "{:.1%}", "loss recovered, against mean ablation of the site"),
}
SHOWN = 1000
COLUMNS = {
    "latent": None,
    "top_token": st.column_config.TextColumn("top token", help="the token of its strongest firing"),
    "label": None,
    "share": st.column_config.NumberColumn(format="%.2f", help="of its top examples, or of the tokens it raises most"),
    "density": st.column_config.NumberColumn(format="%.2e", help="share of tokens on which it fires"),
    "max_activation": st.column_config.NumberColumn("max activation", format="%.2f"),
    "n_fires": st.column_config.NumberColumn("fires", help="tokens of the store on which it fires"),
    "dead": None,
}


def page() -> None:
    focus = state.read_focus()
    st.title("Features", anchor=False)
    dictionaries = state.results("saes")
    if not dictionaries:
        command = "interp sae train --store demo --site 2.resid_post --d-sae 2048 --k 32 --out demo"
        state.empty("No dictionary in this workspace yet. This trains one on the store called demo:", command)
        return
    try:
        run = state.result(focus.sae, dictionaries) if focus.sae else dictionaries[0]
        metrics = readers.json_file(run["path"], "metrics.json")
    except state.UNREADABLE as error:
        state.problem("This dictionary cannot be shown.", error)
        state.link(state.FEATURES, "All dictionaries", sae=None, feature=None)
        return
    heading(run, dictionaries, metrics)
    if not (run["path"] / "features" / "latents.parquet").exists():
        missing(run)
    else:
        try:
            browse(run, readers.features(run["path"]))
        except state.UNREADABLE as error:
            state.problem("The features of this dictionary cannot be read.", error)
    st.subheader("Where this comes from", anchor=False)
    path = str(run["path"])
    provenance(run, snippet=f"import sae\n\ntable = sae.features.Features.load({path!r})\ntable.latents")


def missing(run: dict[str, Any]) -> None:
    """No features yet: what to wait for, or to run."""
    if run.get("status") == "running":
        st.text("It is still being trained; what its latents do is computed afterwards.")
        state.link(state.TRAINING, "Its training →", sae=run["name"], feature=None)
        return
    store = str(run["config"].get("store", "demo")).rstrip("/").rsplit("/", 1)[-1]
    state.empty("What its latents do has not been computed yet. This does it:",
                f"interp sae features {run['name']} --store {store}")  # fmt: skip


def heading(run: dict[str, Any], dictionaries: list[dict[str, Any]], metrics: dict[str, Any]) -> None:
    """Which dictionary, what it is, and how good it is."""
    config = run["config"]
    box, *columns = st.columns([3, *[2] * len(MEASURES), 2], vertical_alignment="bottom")
    with box:
        state.choose("Dictionary", [d["name"] for d in dictionaries], "sae", run["name"], resets=("feature",))
    for column, (key, (label, form, meaning)) in zip(columns, MEASURES.items(), strict=False):
        if isinstance(metrics.get(key), int | float):
            column.metric(label, form.format(metrics[key]), help=meaning)
    with columns[-1]:
        state.link(state.TRAINING, "Its training →", sae=run["name"], feature=None)
    told = [f"{key} {config[key]}" for key in ("architecture", "site", "d_sae", "k") if config.get(key)]
    status = "" if run.get("status") == "done" else f" · {run.get('status')}"
    st.text(" · ".join([str(run["model"].get("name", "model not recorded")), *told]) + status)


def browse(run: dict[str, Any], features: Features) -> None:
    latents = readers.readable(features)
    left, right = st.columns([7, 5], gap="large")
    with left:
        table = chosen(features, latents)
        st.text(f"{len(table):,} of {len(latents):,} latents; choose a row to open its page")
        rows(run, table.head(SHOWN))
        if len(table) > SHOWN:
            st.text(f"The first {SHOWN:,} are listed: order or search for others.")
    with right:
        st.text("How often they fire")
        figure = readers.drawn(
            lambda: plots.densities(latents, DENSE), run["path"], "features/latents.parquet", of="densities"
        )
        st.plotly_chart(figure, key="densities", config={"displayModeBar": False})
        dead, dense = int(latents["dead"].sum()), int((latents["density"] > DENSE).sum())
        st.text(f"{dead:,} dead: they fired on no token of the store.\n"
                f"{dense:,} dense: they fire on more than {DENSE:.0%} of tokens.")  # fmt: skip
    exports(run, features.latents, lambda: plots.densities(latents, DENSE))


def chosen(features: Features, latents: pd.DataFrame) -> pd.DataFrame:
    """The latents under the filters, in the order asked for."""
    by_column, text_column = st.columns([2, 3])
    by = by_column.selectbox("Latents that", list(SEARCHES), key="latents-by", format_func=SEARCHES.get)
    wanted = text_column.text_input("Search", key="latents-search", max_chars=200,
                                    placeholder="part of a token (a space counts), or a number")  # fmt: skip
    kind_column, order_column = st.columns([3, 2])
    kind = kind_column.radio("Show", KINDS, horizontal=True, key="latents-kind",
                             help=f"dead: fired nowhere; dense: fires on more than {DENSE:.0%} of tokens")  # fmt: skip
    order = order_column.selectbox("Order by", list(ORDERS), key="latents-order", format_func=ORDERS.get)
    keep = {"all": latents["latent"] >= 0, "alive": ~latents["dead"], "dead": latents["dead"],
            "dense": latents["density"] > DENSE}[kind]  # fmt: skip
    if not wanted:
        return latents[keep].sort_values(order, ascending=order == "latent", kind="stable")
    if by == "number":
        return latents[keep & (latents["latent"].astype(str) == wanted.strip())]
    found = features.search(wanted, by)[["latent", "share"]]
    return found.merge(latents[keep], on="latent", sort=False)


def rows(run: dict[str, Any], table: pd.DataFrame) -> None:
    """The table; a row that is chosen opens the latent's page."""
    if known := labels(run):
        table = table.assign(label=[known.get(str(latent), "") for latent in table["latent"]])
    order = [column for column in COLUMNS if column in table]
    key = f"latents-{run['name']}"

    def pick() -> None:
        row = state.picked(key)
        if row is not None and row < len(table):
            query = {"sae": run["name"], "feature": str(table["latent"].iloc[row])}
            st.switch_page(state.FEATURE, query_params=query)

    st.dataframe(
        table, key=key, on_select=pick, selection_mode="single-row", hide_index=True,
        height=560, column_config={key: value for key, value in COLUMNS.items() if value}, column_order=order,
    )  # fmt: skip
    if len(table):
        first = int(table["latent"].iloc[0])
        state.link(state.FEATURE, f"Open the first, {first} ({visible(str(table['top_token'].iloc[0]))}) →",
                   sae=run["name"], feature=first)  # fmt: skip


page()
