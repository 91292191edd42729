"""Two runs of effects beside each other, as a plotly figure. DataFrame in, Figure out."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from interp.plots.colours import CLEAR, GREY, RED
from interp.plots.labels import escaped


def comparison(table: pd.DataFrame, names: tuple[str, str]) -> go.Figure:
    """Each row of `Effects.compare` at its effect in the second run (x) and in the first (y), one metric; on the line
    they agree. Red: the difference is not chance (q < .05, paired by prompt). Names are shown for the ten largest."""
    table = table[table["metric"] == table["metric"].iloc[0]]
    place = table["component"].where(table["position"].astype(str) == "all",
                                     table["component"] + " at " + table["position"].astype(str))  # fmt: skip
    largest = table["difference"].abs().rank(ascending=False, method="first") <= 10
    safe = place.map(escaped)
    figure = go.Figure(go.Scatter(
        x=table["effect_other"], y=table["effect"], mode="markers+text", text=safe.where(largest, ""),
        textposition="top center", hovertext=safe + table["difference"].map(": difference {:+.3g}".format),
        hoverinfo="text", showlegend=False,
        marker={"size": 8, "color": [RED if q < 0.05 else GREY for q in table["q"]]},
    ))  # fmt: skip
    both = table[["effect", "effect_other"]]
    ends = [float(both.min().min()), float(both.max().max())]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": GREY, "dash": "dot"}, hoverinfo="skip", showlegend=False
    )
    unit, n = escaped(str(table["metric"].iloc[0])), int(table["n"].max())
    return figure.update_layout(
        title=f"effects on {unit}, the same {n} prompts; red: they differ (q < .05)", height=480,
        xaxis_title=escaped(names[1]), yaxis_title=escaped(names[0]), plot_bgcolor=CLEAR,
        margin={"t": 50, "l": 60, "r": 20, "b": 50},
    )  # fmt: skip
