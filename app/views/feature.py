"""One latent of a dictionary: where it fires, how strongly, what it writes, and which latents are like it."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import readers, state
from app.components.exports import exports
from app.components.links import latent_links
from app.components.notes import label_box
from app.components.provenance import provenance
from app.components.token_strip import Strip, token_strips
from interp.plots.labels import visible
from sae.features import Features

EXAMPLES = {
    "top": "The tokens where it fires most, at most one of a text", "quantile": "Tokens from each fifth of its firings",
    "random": "Any tokens where it fires, drawn evenly",
}  # fmt: skip
FIFTHS = ("strongest fifth", "second fifth", "third fifth", "fourth fifth", "weakest fifth")
NEIGHBOURS = {"cosine": "Write alike (cosine of decoder rows)",
              "correlation": "Fire together (correlation over tokens)"}  # fmt: skip


def page() -> None:
    focus = state.read_focus()
    dictionaries = [run for run in state.results("saes") if (run["path"] / "features" / "latents.parquet").exists()]
    if not dictionaries:
        st.title("Feature", anchor=False)
        state.empty("No dictionary with features in this workspace yet. This computes those of a dictionary called "
                    "demo, on the store demo:", "interp sae features demo --store demo")  # fmt: skip
        return
    try:
        run = state.result(focus.sae, dictionaries) if focus.sae else dictionaries[0]
        features = readers.features(run["path"])
        latents = readers.readable(features)
    except state.UNREADABLE as error:
        st.title("Feature", anchor=False)
        state.problem("The features of this dictionary cannot be read.", error)
        state.link(state.FEATURES, "All features", sae=None, feature=None)
        return
    try:
        one_latent(run, dictionaries, features, latents, in_focus(focus, latents))
    except state.UNREADABLE as error:
        state.problem("This latent cannot be shown.", error)


def one_latent(
    run: dict[str, Any], dictionaries: list[dict[str, Any]], features: Features, latents: pd.DataFrame, number: int
) -> None:
    """The latent's dashboard, its export and its source."""
    latent = latents.iloc[number]
    heading(run, dictionaries, latent, len(latents))
    if latent["dead"]:
        st.info("Dead: it fired on no token of the store.")
        table = readers.of_latent(features, "of", number)
    else:
        table = dashboard(run, features, number)
    exports(run, table, lambda: features.figure(number))
    st.subheader("Where this comes from", anchor=False)
    path = str(run["path"])
    provenance(run, snippet=f"import sae\n\ntable = sae.features.Features.load({path!r})\ntable.of({number})")


def in_focus(focus: state.Focus, latents: pd.DataFrame) -> int:
    """The latent in the address, or the one with the largest activation."""
    if focus.feature is not None and focus.feature < len(latents):
        return focus.feature
    if focus.feature is not None:
        st.text(f"No latent {focus.feature} here: they are numbered 0 to {len(latents) - 1}.")
    return int(latents["max_activation"].to_numpy().argmax())


def heading(run: dict[str, Any], dictionaries: list[dict[str, Any]], latent: pd.Series, n: int) -> None:
    """Which latent; how often and how strongly it fires; the next one and the one before."""
    number, config = int(latent["latent"]), run["config"]
    st.title(state.escape(f"{run['name']}/{number}"), anchor=False)
    box, which, density, fires, largest = st.columns([3, 2, 2, 2, 2], vertical_alignment="bottom")
    with box:
        state.choose("Dictionary", [d["name"] for d in dictionaries], "sae", run["name"], resets=("feature",))
    st.session_state["latent-number"] = number
    which.number_input("Latent", 0, n - 1, key="latent-number",
                       on_change=lambda: state.write_focus(sae=run["name"],
                                                           feature=st.session_state["latent-number"]))  # fmt: skip
    density.metric("density", f"{latent['density']:.3%}", help="share of tokens on which it fires")
    fires.metric("fires", f"{latent['n_fires']:,}", help="tokens of the store on which it fires")
    largest.metric("max activation", f"{latent['max_activation']:.2f}")
    told = [str(config[key]) for key in ("site", "architecture") if config.get(key)]
    st.text(
        " · ".join([str(run["model"].get("name", "model not recorded")), *told, f"top token {latent['top_token']}"])
    )
    latent_links(run, number, float(latent["max_activation"]))


def dashboard(run: dict[str, Any], features: Features, number: int) -> pd.DataFrame:
    """What the latent does; the examples shown."""
    left, right = st.columns([3, 2], gap="large")
    with left:
        table = examples(features, number)
    with right:
        st.text("How strongly it fires")
        figure = readers.drawn(
            lambda: features.figure(number).update_layout(height=220), run["path"], "features/latents.h5", of=number
        )
        st.plotly_chart(figure, key="latent-histogram", config={"displayModeBar": False})
        logits(features, number)
        label_box(run, str(number))
        for side, (by, meaning) in zip(st.columns(2), NEIGHBOURS.items(), strict=True):
            with side:
                st.text(f"{meaning}; choose a row")
                neighbours(run["name"], features, number, by)
    return table


def examples(features: Features, number: int) -> pd.DataFrame:
    """Texts in which it fires, on one scale; as a table."""
    kind = st.radio("Examples", list(EXAMPLES), horizontal=True, key="example-kind")
    st.text(f"{EXAMPLES[kind]}; blue from 0, one scale for all")
    table = readers.of_latent(features, "of", number, kind)
    if not len(table):
        st.text("None of this kind were kept.")
        return table
    strips = [
        Strip(tokens=row["tokens"], values=row["values"], marked=int(row["token_index"]),
              head=f"{row['activation']:.2f}  "
                   + (FIFTHS[int(row["quantile"])] if 0 <= row["quantile"] < 5 else
                      f"seq {row['sequence']}:{row['position']}"))
        for row in table.to_dict("records")
    ]  # fmt: skip
    token_strips(strips, key="examples", label=f"{kind} examples of latent {number}")
    return table


def logits(features: Features, number: int) -> None:
    effects = readers.of_latent(features, "logits", number)
    if not len(effects):
        st.text("Its site has no direct way to the logits.")
        return
    st.text("Tokens that its decoder row raises and lowers, in logits")
    effects = effects.assign(token=effects["text"].map(visible))
    format_ = {"effect": st.column_config.NumberColumn(format="%+.3f")}
    for side, name, rows in zip(
        st.columns(2), ("raised", "lowered"), (effects[effects["effect"] >= 0], effects[effects["effect"] < 0]),
        strict=True,
    ):  # fmt: skip
        side.dataframe(rows[["token", "effect"]], key=f"logits-{name}", hide_index=True, height=290,
                       column_config=format_ | {"token": name})  # fmt: skip


def neighbours(name: str, features: Features, number: int, by: str) -> None:
    """The nearest latents; choosing one puts it into the address."""
    near = readers.of_latent(features, "neighbours", number, by)
    tops = readers.readable(features)["top_token"]
    key = f"neighbours-{by}-{number}"

    def pick() -> None:
        row = state.picked(key)
        if row is not None and row < len(near):
            state.write_focus(sae=name, feature=int(near["latent"].iloc[row]))

    table = near.assign(top_token=tops.reindex(near["latent"]).fillna("").to_numpy())
    st.dataframe(
        table[["latent", "top_token", "value"]], key=key, on_select=pick, selection_mode="single-row", hide_index=True,
        column_config={"top_token": "top token", "value": st.column_config.NumberColumn(by, format="%.3f")},
    )  # fmt: skip


page()
