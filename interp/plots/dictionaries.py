"""Dictionaries as plotly figures. DataFrame in, Figure out."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go


def frontier(table: pd.DataFrame) -> go.Figure:
    """What sparsity costs: FVU (lower is better) by L0 of each dictionary in `sae.frontier`'s table; a line for each
    architecture, width and site."""
    figure = go.Figure()
    for (site, architecture, d_sae), group in table.sort_values("l0").groupby(["site", "architecture", "d_sae"]):
        label = f"{architecture}, {d_sae} latents, {site}"
        figure.add_scatter(
            x=group["l0"], y=group["fvu"], mode="lines+markers", name=label, text=group["name"],
            hovertemplate="%{text}<br>L0 %{x:.1f}, FVU %{y:.4f}<extra></extra>",
        )  # fmt: skip
    ticks = sorted(table["l0"].round(1).unique())
    figure.update_layout(
        showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"}, template="plotly_white",
        margin={"t": 50, "l": 70, "r": 20, "b": 60}, height=420,
    )  # fmt: skip
    figure.update_xaxes(title="L0: active latents at a token", type="log")
    if len(ticks) <= 10:
        figure.update_xaxes(tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_yaxes(title="FVU: variance left unexplained", rangemode="tozero")
    return figure
