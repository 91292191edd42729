"""The latents of a dictionary: how often and how strongly each fires, and the text on which one of them fires most."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import state
from app.components.exports import exports
from app.components.notes import label_box, labels
from app.components.provenance import provenance
from app.components.token_strip import Strip, token_strips, visible
from sae.features import Features

DENSE = 0.1  # a latent that fires on more than this share of tokens is called dense
KINDS = ["alive", "all", "dead", "dense"]
MEASURES = {
    "l0": ("L0", "{:.1f}", "latents active on a token, on average"),
    "fvu": ("FVU", "{:.3f}", "fraction of variance unexplained; 0 is perfect"),
    "dead": ("dead", "{:,}", "latents that fired at no token of the evaluation's text"),
    "ce_recovered_mean": ("CE recovered (mean)", "{:.1%}", "loss recovered, against mean ablation of the site"),
    "ce_recovered_zero": ("CE recovered (zero)", "{:.1%}", "loss recovered, against zero ablation of the site"),
}
EXAMPLES = {
    "top": "The tokens where it fires most", "quantile": "Tokens from each fifth of its range",
    "random": "Any tokens where it fires",
}  # fmt: skip
NEIGHBOURS = {"cosine": "Latents that write alike (cosine of decoder rows)",
              "correlation": "Latents that fire together (correlation over tokens)"}  # fmt: skip
SHOWN = 5000


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
        metrics = state.json_file(run["path"], "metrics.json")
    except state.UNREADABLE as error:
        state.problem("This dictionary cannot be shown.", error)
        st.page_link(state.FEATURES, label="All dictionaries", query_params={})
        return
    heading(run, dictionaries, metrics)
    if not (run["path"] / "features" / "latents.parquet").exists():
        store = (run.get("config") or {}).get("store", "demo")
        command = f"interp sae features {run['name']} --store {str(store).rstrip('/').rsplit('/', 1)[-1]}"
        state.empty("What its latents do has not been computed yet. This does it:", command)
    else:
        try:
            browse(focus, run, state.features(run["path"]))
        except state.UNREADABLE as error:
            state.problem("The features of this dictionary cannot be read.", error)
    st.subheader("Where this comes from", anchor=False)
    provenance(run, snippet=f"import sae\n\ndct = sae.load({str(run['path'])!r})\ndct.W_dec[{focus.feature or 0}]")


def heading(run: dict[str, Any], dictionaries: list[dict[str, Any]], metrics: dict[str, Any]) -> None:
    """Which dictionary, what it is, and how good it is."""
    config = run.get("config") or {}
    box, *columns = st.columns([3, *[2] * len(MEASURES)], vertical_alignment="bottom")
    with box:
        state.choose("Dictionary", [d["name"] for d in dictionaries], "sae", run["name"], resets=("feature",))
    for column, (key, (label, form, meaning)) in zip(columns, MEASURES.items(), strict=True):
        if isinstance(metrics.get(key), int | float):
            column.metric(label, form.format(metrics[key]), help=meaning)
    told = [f"{key} {config[key]}" for key in ("architecture", "site", "d_sae", "k") if config.get(key)]
    model = (run.get("model") or {}).get("name", "model not recorded")
    st.text(" · ".join([model, *told]) + ("" if run.get("status") == "done" else f" · {run.get('status')}"))


def browse(focus: state.Focus, run: dict[str, Any], features: Features) -> None:
    latents = features.latents
    known = set(latents["latent"])
    if focus.feature is not None and focus.feature not in known:
        first, last = latents["latent"].min(), latents["latent"].max()
        st.text(f"No latent {focus.feature} here: they are numbered {first} to {last}.")
    left, right = st.columns([5, 6], gap="large")
    with left:
        table = choose_latents(run["name"], latents, labels(run))
    with right:
        if focus.feature in known:
            latent = focus.feature
        elif len(table):
            latent = int(table["latent"].iloc[0])
        else:
            st.text("No latent matches.")
            return
        one_latent(run, features, latents[latents["latent"] == latent].iloc[0])
    exports(run, latents, lambda: features.figure(latent))


def choose_latents(name: str, latents: pd.DataFrame, known: dict[str, str]) -> pd.DataFrame:
    """The table of latents under its filters; choosing a row puts the latent into the address."""
    kind = st.radio("Show", KINDS, horizontal=True, key="latents-kind",
                                help=f"dense: fires on more than {DENSE:.0%} of tokens")  # fmt: skip
    wanted = st.text_input("Search", key="latents-search", placeholder="latent number, or part of its top token")
    table = matching(latents, kind, wanted)
    st.text(f"{len(table)} of {len(latents)} latents, by largest activation; choose a row")
    table = table.head(SHOWN)
    key = f"latents-{name}-{kind}-{wanted}"
    numbers = table["latent"].tolist()

    def pick() -> None:
        chosen = st.session_state[key].selection.rows
        if chosen and chosen[0] < len(numbers):
            state.write_focus(sae=name, feature=numbers[chosen[0]])

    columns = {
        "density": st.column_config.NumberColumn(format="%.2e", help="share of tokens on which it fires"),
        "max_activation": st.column_config.NumberColumn("max activation", format="%.2f"),
        "top_token_text": st.column_config.TextColumn("top token"),
        "n_fires": st.column_config.NumberColumn("fires"),
    }
    readable = table.assign(top_token_text=table["top_token_text"].map(visible),
                            label=[known.get(str(number), "") for number in numbers])  # fmt: skip
    order = ["latent", "label", "top_token_text", "density", "max_activation", "n_fires", "dead"]
    st.dataframe(
        readable, key=key, on_select=pick, selection_mode="single-row", hide_index=True, height=560,
        column_config=columns, column_order=order,
    )  # fmt: skip
    return table


def matching(latents: pd.DataFrame, kind: str, wanted: str) -> pd.DataFrame:
    keep = {
        "all": latents["density"] >= 0,
        "alive": ~latents["dead"],
        "dead": latents["dead"],
        "dense": latents["density"] > DENSE,
    }[kind]
    if wanted.strip():
        text = latents["top_token_text"].fillna("").str.contains(wanted.strip(), case=False, regex=False)
        keep &= text | (latents["latent"].astype(str) == wanted.strip())
    return latents[keep].sort_values("max_activation", ascending=False, kind="stable")


def one_latent(run: dict[str, Any], features: Features, latent: pd.Series) -> None:
    number = int(latent["latent"])
    st.subheader(f"Latent {number}", anchor=False)
    density, fires, largest = st.columns(3)
    density.metric("density", f"{latent['density']:.3%}", help="share of tokens on which it fires")
    fires.metric("fires", f"{latent['n_fires']:,}", help="tokens of the store on which it fires")
    largest.metric("max activation", f"{latent['max_activation']:.2f}")
    label_box(run, str(number))
    if latent["dead"]:
        st.text("Dead: it fired on no token of the store.")
        return
    kind = st.radio("Examples", list(EXAMPLES), horizontal=True, key="example-kind")
    st.text(f"{EXAMPLES[kind]}, in their context; blue from 0, one scale for all")
    examples = features.of(number, kind)
    strips = [
        Strip(tokens=list(row["tokens"]), values=list(row["values"]), marked=int(row["token_index"]),
              head=f"{row['activation']:.2f}  seq {row['sequence']}:{row['position']}")
        for _, row in examples.iterrows()
    ]  # fmt: skip
    token_strips(strips, key="examples", label=f"{kind} examples of latent {number}")
    left, right = st.columns(2, gap="large")
    with left:
        st.text("How strongly it fires")
        st.plotly_chart(features.figure(number), key="latent-histogram", config={"displayModeBar": False})
    with right:
        st.text("Tokens that its decoder row raises and lowers, in logits")
        effects = features.logits(number)
        if len(effects):
            st.dataframe(
                effects.assign(text=effects["text"].map(visible))[["text", "effect"]], key="latent-logits",
                hide_index=True, height=320, column_config={"text": "token"},
            )  # fmt: skip
        else:
            st.text("Its site has no direct way to the logits.")
    for side, (by, meaning) in zip(st.columns(2, gap="large"), NEIGHBOURS.items(), strict=True):
        with side:
            st.text(meaning)
            neighbours(run["name"], features, number, by)


def neighbours(name: str, features: Features, number: int, by: str) -> None:
    """The nearest latents; choosing one puts it into the address."""
    near, tops = features.neighbours(number, by), features.latents.set_index("latent")["top_token_text"]
    key = f"neighbours-{by}-{number}"

    def pick() -> None:
        chosen = st.session_state[key].selection.rows
        if chosen and chosen[0] < len(near):
            state.write_focus(sae=name, feature=int(near["latent"].iloc[chosen[0]]))

    table = near.assign(top_token=near["latent"].map(tops).fillna("").map(visible))
    st.dataframe(
        table[["latent", "top_token", "value"]], key=key, on_select=pick, selection_mode="single-row", hide_index=True,
        column_config={"top_token": "top token", "value": st.column_config.NumberColumn(by, format="%.3f")},
    )  # fmt: skip


page()
