"""The checks of a model as a plotly figure. DataFrame in, Figure out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.colours import BLUE, CLEAR, GREY, RED
from interp.plots.effects import footnote
from interp.plots.labels import escaped

SMALLEST = 1e-6
"""A margin below this is drawn as this, one above 1 / this as that: nothing was measured, or nothing allowed."""


def margins(rows: pd.DataFrame) -> go.Figure:
    """How near each check came to its bound: what was measured over its limit, or the limit over it where at least so
    much is wanted. Left of 1 it holds. Red: WRONG. Rows as of `Conformance.table`; what is refused has no number."""
    shown = rows[rows["measured"].notna()].iloc[::-1]
    most = shown["bound"] == "at most"
    over, under = (np.where(most, shown[a], shown[b]) for a, b in (("measured", "limit"), ("limit", "measured")))
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = np.where(over == 0, 0.0, over / under).clip(SMALLEST, 1 / SMALLEST)
    hover = [
        f"{escaped(row.what)}: {row.verdict}, {row.measured:.2g}, {row.bound} {row.limit:.2g}"
        for row in shown.itertuples()
    ]
    figure = go.Figure(go.Scatter(
        x=margin, y=shown["what"].map(escaped), mode="markers", hovertext=hover, hoverinfo="text",
        marker={"size": 8, "color": [RED if verdict == "WRONG" else BLUE for verdict in shown["verdict"]]},
    ))  # fmt: skip
    figure.add_vline(x=1, line={"color": GREY, "width": 1, "dash": "dash"})
    said = f"left of the dashed line a check holds; at {SMALLEST:g} or less: no difference at all; red: WRONG"
    figure.update_layout(
        plot_bgcolor=CLEAR, height=120 + 19 * len(shown), margin={"l": 20, "r": 20, "t": 20, "b": 85},
        annotations=[footnote(said)],
    )  # fmt: skip
    figure.update_xaxes(type="log", title="measured / limit", gridcolor="rgba(128,128,128,.2)", dtick=1,
                        exponentformat="power")  # fmt: skip
    figure.update_yaxes(automargin=True, gridcolor="rgba(128,128,128,.15)", tickfont={"size": 11})
    return figure
