"""Put an edit together by picking: a head, an MLP, a latent of a dictionary, a direction; and what is done to it."""

from __future__ import annotations

import streamlit as st

from app import live, state

PARTS = ["head", "MLP", "attention layer", "latent", "direction"]
TURNED = {"turn off": "=0", "halve": "*0.5", "double": "*2", "reverse": "*-1"}


def edit_builder(focus: state.Focus, model: str) -> None:
    """A box that adds an edit to those of the Focus."""
    with st.popover("Add an edit"):
        kind = st.selectbox("What", PARTS, key="build-kind")
        loaded = live.model(model)
        if kind == "latent":
            spec = _latent(focus, loaded.fingerprint)
        elif kind == "direction":
            spec = _direction(loaded.fingerprint)
        else:
            spec = _part(kind, loaded.n_layers, loaded.n_heads)
        if spec is None:
            return
        st.code(spec, language=None)
        st.button("Add", on_click=_add, args=(focus.edit, spec), type="primary")


def _add(edit: str | None, spec: str) -> None:
    state.write_focus(edit=f"{edit}, {spec}" if edit else spec)


def _part(kind: str, n_layers: int, n_heads: int) -> str:
    layer = st.number_input("Layer", 0, n_layers - 1, key="build-layer")
    name = f"L{layer}.mlp" if kind == "MLP" else f"L{layer}.attn"
    if kind == "head":
        name = f"L{layer}H{st.number_input('Head', 0, n_heads - 1, key='build-head')}"
    return name + TURNED[st.selectbox("Do", list(TURNED), key="build-do")]


def _latent(focus: state.Focus, fingerprint: str) -> str | None:
    names = live.dictionaries(fingerprint)
    if not names:
        state.empty("No dictionary of this model in the workspace yet. This makes one:",
                    "interp sae train --store demo --site 2.resid_post --out demo")  # fmt: skip
        return None
    name = st.selectbox("Dictionary", names, index=names.index(focus.sae) if focus.sae in names else 0, key="build-sae")
    last = live.dictionary(name).d_sae - 1
    latent = st.number_input("Latent", 0, last, min(focus.feature or 0, last), key="build-latent")
    value = st.number_input("Hold it at", -100.0, 100.0, 8.0, step=1.0, key="build-value", help="0 turns it off")
    return f"{name}/{latent}={value:g}"


def _direction(fingerprint: str) -> str | None:
    found = [
        run for run in state.results("runs", kinds=["direction"]) if run["model"].get("fingerprint") == fingerprint
    ]
    if not found:
        state.empty("No direction of this model in the workspace yet. This finds one:",
                    "interp direction find --task agreement --out number")  # fmt: skip
        return None
    name = st.selectbox("Direction", [run["name"] for run in found], key="build-direction")
    site = live.site_of(name)
    push = st.number_input("Push along it by", -100.0, 100.0, 4.0, step=1.0, key="build-push",
                           help="in the stream's unit; 0 takes it out")  # fmt: skip
    return f"{name}@{site}=0" if push == 0 else f"{name}@{site}{push:+g}"
