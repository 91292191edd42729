"""From one thing on a page to the same thing on another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import streamlit as st

from app import live, state


def links(run: dict[str, Any], component: str, *, here: str) -> None:
    """Where else a component of a run's model can be looked at: a head, an MLP, a latent; `here` is the page it is on.

    Of the other results of the same model the newest is linked, one of the same task before others.
    """
    found: list[tuple[str, str, dict[str, Any]]] = []
    if latent := re.fullmatch(r"([^/]+)/(\d+)", component):
        if any(dictionary["name"] == latent[1] for dictionary in state.results("saes")):
            found.append((state.FEATURE, f"Latent {component}", {"sae": latent[1], "feature": int(latent[2])}))
    if part := re.match(r"L\d+(?:H\d+|\.mlp|\.attn)(?![a-z])", component):
        for page, label, kinds in (
            (state.ABLATION, f"Ablate {part[0]}", ("ablate",)),
            (state.PATCHING, f"Patch {part[0]}", ("patch",)),
            (state.CIRCUIT, f"{part[0]} in the circuit", ("circuit",)),
        ):
            other = None if page == here else related(run, kinds, part[0])
            if other:
                found.append((page, label, {"run": other["name"], "head": part[0]}))
    with st.container(horizontal=True):
        if head := re.match(r"L\d+H\d+(?![0-9])", component):
            keep = {"run": run["name"], "head": head[0], "model": None, "text": None, "method": None, "metric": None}
            state.link(state.ATTENTION, f"Where {head[0]} looks →", **keep | {"edit": None})
            moved = keep | {"edit": f"{head[0]}=0", "method": "change", "pos": None}
            state.link(state.PROMPT, f"Which tokens {head[0]} moves →", **moved)
        for page, label, changes in found:
            clear = dict.fromkeys(("run", "head", "pos", "method", "metric", "edge", "n", "prompt"))
            state.link(page, f"{label} →", **clear | changes)


def related(run: dict[str, Any], kinds: Sequence[str], component: str) -> dict[str, Any] | None:
    """The newest run of some kinds on the same model that has such a component, of the same task if there is one."""
    model = run["model"].get("fingerprint")
    same = [
        other
        for other in state.results("runs", kinds=kinds)
        if other["model"].get("fingerprint") == model and has(other["config"], component)
    ]
    task = run["config"].get("task")
    return next((other for other in same if other["config"].get("task") == task), same[0] if same else None)


def has(config: dict[str, Any], component: str) -> bool:
    """Whether a run's map can have the component: a patching is of one site."""
    if "site" not in config:
        return True
    if "H" in component:
        return "head" in str(config.get("by"))
    return component.endswith("." + str(config["site"]).removesuffix("_out"))


def latent_links(run: dict[str, Any], latent: int, strongest: float) -> None:
    """Where else a latent can be looked at: in a text of one's own, by steering with it (held at its `strongest`
    activation), among the others, and in the circuits of latents that have it."""
    clear: dict[str, Any] = dict.fromkeys(("run", "prompt", "head", "pos", "metric"))
    clear["model"] = live.label_of(run)
    with st.container(horizontal=True):
        state.link(state.PROMPT, "Test a text →", **clear, sae=run["name"], feature=latent, method="latent")
        push = f"{run['name']}/{latent}={strongest:.3g}"
        state.link(state.STEER, "Steer with it →", **clear, sae=run["name"], feature=latent, edit=push)
        state.link(state.FEATURES, "All features", sae=run["name"], feature=None)
        for other in state.results("runs", kinds=["circuit-features"]):
            if run["name"] in (other["config"].get("sae") or []):
                state.link(state.CIRCUIT, f"In the circuit {other['name']} →", run=other["name"], n=None, edge=None,
                           head=f"{run['name']}/{latent}", sae=None, feature=None)  # fmt: skip
