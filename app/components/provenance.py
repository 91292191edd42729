"""Where a result comes from, and how to make it again."""

from __future__ import annotations

import shlex
from typing import Any

import streamlit as st


def provenance(run: dict[str, Any], *, snippet: str | None = None) -> None:
    """Model, data, seed, versions and the command of a result, as plain text; `snippet` opens it in a notebook."""
    model, config = run.get("model") or {}, run.get("config") or {}
    versions = run.get("versions") or {}
    lines = {
        "status": run.get("status"),
        "model": model.get("name"),
        "fingerprint": model.get("fingerprint"),
        "data": ", ".join(f"{key} {config[key]}" for key in ("task", "text", "store", "site", "n") if config.get(key)),
        "seed": run.get("seed"),
        "started": run.get("started"),
        "finished": run.get("finished"),
        "device": run.get("device"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "error": run.get("error"),
    }
    width = max(map(len, lines))
    told = [f"{key:{width}}  {value}" for key, value in lines.items() if value not in (None, "")]
    st.code("\n".join(told), language=None)
    if isinstance(run.get("command"), list):
        st.text("The command that made it")
        st.code(shlex.join(map(str, run["command"])), language="bash", wrap_lines=True)
    if snippet:
        st.text("In a notebook")
        st.code(snippet, language="python")
    with st.expander("run.json settings"):
        st.json(config)
