"""What experts are for: the load of each and its effect, by class of token. DataFrame in, Figure out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.colours import BLUE, CLEAR, GREY, RED
from interp.plots.effects import LOWER_IS_BETTER, describe, footnote
from interp.plots.labels import escaped

MOST = 48
"""Components in a figure, at most: those farthest from nothing."""


def load(rows: pd.DataFrame, *, at: str = "token") -> go.Figure:
    """A panel a class: the share of its tokens that each expert gets, with its 95% interval; dotted, the share of
    experts all alike. Filled: the interval leaves that out. `rows` as of `Routing.table`."""
    far = (rows["share"] - rows["alike"]).abs().groupby(rows["component"]).max()
    shown = rows[rows["component"].isin(far.nlargest(MOST).index)]
    outside = (shown["ci_low"] > shown["alike"]) | (shown["ci_high"] < shown["alike"])
    hover = [
        f"{row.component}, {escaped(row.kind)}: {row.share:.1%} of {row.n:,} tokens "
        f"[{row.ci_low:.1%}, {row.ci_high:.1%}], mean probability {row.prob:.3f}"
        for row in shown.rename(columns={"class": "kind"}).itertuples()
    ]
    shown = shown.assign(value=shown["share"], colour=np.where(outside, BLUE, GREY), filled=outside, hover=hover)
    where = "tokens of a class" if at == "token" else "places where a token of a class is predicted"
    figure = _panels(shown, list(dict.fromkeys(rows["class"])), by="class")
    for column, (_, mine) in enumerate(shown.groupby("class", sort=False)):
        for alike, some in mine.groupby("alike"):
            figure.add_scatter(
                x=[alike, alike], y=[some.component.iloc[0], some.component.iloc[-1]], mode="lines",
                line={"color": GREY, "width": 1, "dash": "dot"}, hoverinfo="skip", row=1, col=column + 1,
            )  # fmt: skip
    most = shown["ci_high"].fillna(shown["share"]).max()
    figure.update_xaxes(range=[-0.06 * most, 1.06 * most], tickformat=".0%")
    figure.update_layout(
        title=f"share of the {where} that an expert gets",
        annotations=[*figure.layout.annotations,
                     footnote("dotted: experts all alike; blue: the 95% interval leaves that out")],
    )  # fmt: skip
    return figure


def by_class(table: pd.DataFrame, *, method: str | None = None, metric: str | None = None) -> go.Figure:
    """A panel for a metric and for each of its classes: the effect of every component with its 95% interval, on one
    scale. Red: the component helped, so that the metric is worse without it; grey: the interval has 0 in it.

    One method and one metric with its classes (`loss`, `loss-digit`, ...): those named, or the first of the table.
    """
    method = table["method"].iloc[0] if method is None else method
    metric = table["metric"].iloc[0].partition("-")[0] if metric is None else metric
    mine = table[(table["method"] == method) & (table["metric"].str.partition("-")[0] == metric)]
    mine = mine[np.isfinite(mine["effect"])]
    name = mine["component"].where(mine["position"].astype(str) == "all", mine["component"] + "@" + mine["position"])
    far = mine["effect"].abs().groupby(name).max().nlargest(MOST).index
    mine = mine.assign(component=name)[name.isin(far)]
    sure = (mine["ci_low"] > 0) | (mine["ci_high"] < 0)
    helped = (mine["effect"] > 0) == (metric in LOWER_IS_BETTER)
    colour = np.where(sure, np.where(helped, RED, BLUE), GREY)
    hover = [escaped(describe(row)) for _, row in mine.iterrows()]
    panel = mine["metric"].str.partition("-")[2].replace("", "all")
    shown = mine.assign(value=mine["effect"], colour=colour, filled=sure, hover=hover, panel=panel)
    figure = _panels(shown, list(dict.fromkeys(panel)), by="panel")
    figure.add_vline(x=0, line={"color": GREY, "width": 1})
    said = footnote("effect = ablated - clean; red: the component helped, grey: the 95% interval has 0 in it")
    figure.update_layout(
        title=escaped(f"{method} ablation: effect on {metric} by class of the token predicted"),
        annotations=[*figure.layout.annotations, said],
    )
    return figure


def _panels(rows: pd.DataFrame, panels: Sequence[str], *, by: str) -> go.Figure:
    """A panel for each of `panels`, side by side on one scale: `value` with its interval, a line a component."""
    components = list(dict.fromkeys(rows["component"]))
    counts = rows.groupby(by)["n"].max()
    titles = [f"{escaped(panel)}<br><sup>n = {counts[panel]:,}</sup>" for panel in panels]
    figure = make_subplots(
        rows=1, cols=len(panels), shared_yaxes=True, shared_xaxes="all", subplot_titles=titles, horizontal_spacing=0.018
    )
    for column, panel in enumerate(panels):
        mine = rows[rows[by] == panel]
        figure.add_scatter(
            x=mine["value"], y=mine["component"], mode="markers",
            marker={"color": mine["colour"], "size": 7,
                    "symbol": np.where(mine["filled"], "circle", "circle-open")},
            error_x={"type": "data", "symmetric": False, "array": mine["ci_high"] - mine["value"],
                     "arrayminus": mine["value"] - mine["ci_low"], "thickness": 1.2, "width": 0, "color": GREY},
            text=mine["hover"], hovertemplate="%{text}<extra></extra>", row=1, col=column + 1,
        )  # fmt: skip
    layers = rows.drop_duplicates("component")["layer"].to_numpy()
    for above in np.flatnonzero(np.diff(layers)):
        figure.add_hline(y=len(components) - above - 1.5, line={"color": GREY, "width": 0.5})
    figure.update_xaxes(matches="x", showgrid=True, gridcolor="rgb(235,235,235)", zeroline=False, nticks=4)
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=components[::-1],
        range=[-0.7, len(components) - 0.3],
        showgrid=True,
        gridcolor="rgb(245,245,245)",
    )
    figure.update_layout(
        showlegend=False, plot_bgcolor=CLEAR, height=max(300, 20 * len(components) + 190),
        margin={"l": 60, "r": 20, "t": 90, "b": 85},
    )  # fmt: skip
    return figure
