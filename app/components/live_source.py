"""What a live page shows, to take along: its table and figure, the command and the lines of a notebook that make it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import live
from app.components.asking import Asked
from app.components.exports import exports
from app.components.provenance import provenance
from interp import runs


def source(
    chosen: Asked, table: pd.DataFrame, figure: Callable[[], go.Figure], *, name: str, command: list[str], lines: str
) -> None:
    """Exports, and where it comes from. `command` follows `interp`; `lines` follow `model`, `text` and `edits` in a
    notebook."""
    loaded = live.model(chosen.model)
    flags = [] if loaded.name == "bundled" else ["--model", loaded.name]
    flags += ["--edit", chosen.edit] if chosen.edit else []
    run: dict[str, Any] = {
        "name": name, "command": ["interp", *command, *flags], "config": {"text": chosen.text, "edit": chosen.edit},
        "model": loaded.provenance(), "versions": runs.versions(), "device": str(loaded.device),
    }  # fmt: skip
    exports(run, table, figure)
    setup = ["import interp", f'model = interp.load_model("{loaded.name}")', f"text = {chosen.text!r}"]
    if chosen.edit:
        setup[:1] = ["import interp", "import sae", "from interp.causal.edits import parse"]
        setup.append(f"edits = parse(model, {chosen.edit!r}{_named(chosen.edit)})")
    else:
        setup.append("edits = None")
    st.subheader("Where this comes from", anchor=False)
    provenance(run, snippet="\n".join([*setup, lines]))


def _named(edit: str) -> str:
    """The dictionaries and directions that edits need, as arguments."""
    from interp.causal.edits import owners

    latents, directions = owners(edit)
    said = ""
    if latents:
        said += ", dictionaries={" + ", ".join(f'"{n}": sae.load("workspace/saes/{n}")' for n in latents) + "}"
    if directions:
        found = (f'"{n}": interp.Direction.load("workspace/runs/{n}").vector' for n in directions)
        said += ", directions={" + ", ".join(found) + "}"
    return said
