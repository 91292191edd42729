"""What leaves a page: its table as CSV and JSON, its figure as a page that needs nothing else, and as a picture.

The figure is the one that a notebook shows. Nothing is made before it is asked for. A picture is drawn by the browser:
plotly's own camera button, which needs no program beside it and no network.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from interp import reports


def exports(
    run: dict[str, Any], table: pd.DataFrame, figure: Callable[[], go.Figure] | None = None, *, key: str = ""
) -> None:
    """Buttons: CSV, JSON and, where the page has a `figure`, HTML and PNG. `key` tells several on one page apart."""
    name = run["name"]
    with st.container(horizontal=True):
        st.download_button("Export CSV", lambda: table.to_csv(index=False), f"{name}.csv", "text/csv",
                           on_click="ignore", key=f"export-csv{key}")  # fmt: skip
        st.download_button("Export JSON", lambda: as_json(table), f"{name}.json", "application/json", on_click="ignore",
                           key=f"export-json{key}")  # fmt: skip
        if figure is None:
            return
        st.download_button("Export HTML", lambda: as_html(figure(), run), f"{name}.html", "text/html",
                           on_click="ignore", key=f"export-html{key}")  # fmt: skip
    picture = st.expander("Export PNG", on_change="rerun", key=f"export-picture{key}")
    if picture.open:
        with picture:
            st.text("The camera at the upper right of the figure saves it, at three times this size.")
            st.plotly_chart(figure(), theme=None, key=f"exported-figure{key}", config=reports.camera(name), width=900)


def as_json(table: pd.DataFrame) -> str:
    return json.dumps(json.loads(table.to_json(orient="records")), indent=1)


def as_html(figure: go.Figure, run: dict[str, Any]) -> str:
    """The figure and what made it, in one file that asks nothing of the network."""
    return reports.page(run["name"], [reports.drawn(figure, run["name"])], run)
