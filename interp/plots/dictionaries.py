"""Dictionaries as plotly figures. DataFrame in, Figure out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.colours import BLUE, CLEAR, GREY, RED
from interp.plots.labels import escaped


def frontier(table: pd.DataFrame) -> go.Figure:
    """What sparsity costs: FVU (lower is better) by L0 of each dictionary in `sae.frontier`'s table; a line for each
    architecture, width and site."""
    figure = go.Figure()
    for (site, architecture, d_sae), group in table.sort_values("l0").groupby(["site", "architecture", "d_sae"]):
        label = f"{architecture}, {d_sae} latents, {site}"
        figure.add_scatter(
            x=group["l0"], y=group["fvu"], mode="lines+markers", name=escaped(label), text=group["name"].map(escaped),
            customdata=group["name"], marker={"size": 9},
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


def training(log: pd.DataFrame, *, beside: pd.DataFrame | None = None, names: tuple[str, str] = ("", "")) -> go.Figure:
    """The lines of a train_log.csv over tokens: loss, FVU (variance left unexplained), L0 (latents active on a token)
    and dead latents, each on its own scale. `beside`: the log of another, in red; `names` are those of the two."""
    panels = {"loss": "loss", "fvu": "FVU", "l0": "L0", "dead": "dead latents"}
    figure = go.Figure()
    layout, titles = {}, []
    for k, (column, title) in enumerate(panels.items()):
        axis, (row, side) = "" if k == 0 else str(k + 1), divmod(k, 2)
        logs = [(log, names[0], BLUE)] if beside is None else [(log, names[0], BLUE), (beside, names[1], RED)]
        for one, name, colour in logs:
            figure.add_scatter(
                x=one["tokens"], y=one[column], mode="lines", name=escaped(name) or title, xaxis=f"x{axis}",
                line={"color": colour, "width": 2}, showlegend=k == 0, yaxis=f"y{axis}",
                hovertemplate="%{x:,} tokens: %{y:.4g}<extra></extra>",
            )  # fmt: skip
        left, bottom = 0.54 * side, 0.58 * (1 - row)
        layout[f"xaxis{axis}"] = {"domain": [left, left + 0.46], "anchor": f"y{axis}", "title": "tokens" if row else ""}
        layout[f"yaxis{axis}"] = {"domain": [bottom, bottom + 0.38], "anchor": f"x{axis}"}
        if column in ("dead", "l0", "fvu"):
            layout[f"yaxis{axis}"]["rangemode"] = "tozero"
        titles.append({"text": title, "x": left, "y": bottom + 0.39, "xref": "paper", "yref": "paper",
                       "showarrow": False, "xanchor": "left", "yanchor": "bottom"})  # fmt: skip
    return figure.update_layout(
        **layout, annotations=titles, showlegend=beside is not None, height=440, template="plotly_white",
        margin={"t": 30, "l": 50, "r": 20, "b": 50}, legend={"orientation": "h", "y": -0.12},
    )  # fmt: skip


def densities(latents: pd.DataFrame, dense: float) -> go.Figure:
    """How many latents fire how often: the log10 of the share of tokens; those above `dense` in red, dead ones (never)
    are counted in the title."""
    alive = latents.loc[latents["density"] > 0, "density"]
    edges = np.linspace(np.floor(np.log10(alive.min())), 0, 51) if len(alive) else np.linspace(-6, 0, 51)
    counts, _ = np.histogram(np.log10(alive), edges)
    middle = (edges[:-1] + edges[1:]) / 2
    figure = go.Figure(go.Bar(
        x=middle, y=counts, width=edges[1] - edges[0], marker={"color": np.where(middle > np.log10(dense), RED, GREY)},
        customdata=10.0**middle, hovertemplate="%{y} latents fire on %{customdata:.2%} of tokens<extra></extra>",
    ))  # fmt: skip
    ticks = np.arange(edges[0], 1)
    figure.update_xaxes(title="share of tokens on which a latent fires", tickvals=ticks,
                        ticktext=[f"{10.0**tick:.{max(0, int(-tick) - 2)}%}" for tick in ticks])  # fmt: skip
    return figure.update_layout(
        title={"text": f"{len(alive):,} latents alive, {len(latents) - len(alive):,} dead; red: dense",
               "font": {"size": 13}},
        yaxis_title="latents", height=240, bargap=0, plot_bgcolor=CLEAR, margin={"t": 40, "l": 50, "r": 10, "b": 45},
    )  # fmt: skip
