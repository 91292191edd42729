"""Directions as plotly figures: where two sets stand along one, accuracy by layer, what a push does by its strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.decoder.sites import short
from interp.plots.colours import BLUE, CLEAR, GREY, RED
from interp.plots.labels import escaped

_BESIDE = {"random": "rgb(150,155,165)", "shuffled": "rgb(190,150,90)"}
_MEASURES = {"log_odds": "log P({toward})/P({away})", "kl": "the next token, KL(unchanged ‖ changed)",
                "words": "tokens of {toward} minus tokens of {away}"}  # fmt: skip


def projections(examples: pd.DataFrame, threshold: float, row: Mapping[str, Any], names: Sequence[str]) -> go.Figure:
    """Where the examples of the two sets stand along the direction: those it was found on above, those held out below.
    The line is the threshold; positive ones belong right of it."""
    low, high = float(examples["projection"].min()), float(examples["projection"].max())
    bins = {"start": low, "end": high + 1e-9, "size": max((high - low) / 40, 1e-9)}
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for part, held_out in ((1, False), (2, True)):
        for name, colour in zip(names, (RED, BLUE), strict=True):
            mine = examples[(examples["set"] == name) & (examples["held_out"] == held_out)]
            figure.add_histogram(
                x=mine["projection"], xbins=bins, marker={"color": colour}, opacity=0.6, name=escaped(name),
                showlegend=held_out, row=part, col=1,
            )  # fmt: skip
        n = int((examples["held_out"] == held_out).sum())
        figure.update_yaxes(title=f"{'held out' if held_out else 'found on'}, n = {n}", row=part, col=1)
    figure.add_vline(x=threshold, line={"color": GREY, "width": 1, "dash": "dash"})
    interval = f"[{row['ci_low']:.1%}, {row['ci_high']:.1%}]"
    figure.update_layout(
        title=escaped(f"{row['site']}: {row['accuracy']:.1%} of the held-out examples on the right side {interval}"),
        barmode="overlay", plot_bgcolor=CLEAR, height=420, margin={"l": 70, "r": 20, "t": 50, "b": 80},
        legend={"orientation": "h", "y": -0.18, "x": 1, "xanchor": "right"},
        xaxis2_title="projection on the direction, in the stream's unit",
    )  # fmt: skip
    return figure


def by_site(sites: pd.DataFrame) -> go.Figure:
    """Balanced accuracy on the examples held out, by layer, with its 95% interval; shuffled labels and random
    directions beside it. The ring is the site chosen."""
    figure = go.Figure()
    kinds = sites["site"].str.partition(".")[2]
    for kind, dash in zip(kinds.unique(), ("solid", "dash", "dot", "dashdot") * 2, strict=False):
        rows = sites[kinds == kind]
        figure.add_scatter(
            x=rows["layer"], y=rows["accuracy"], mode="lines+markers", name=escaped(kind or rows["site"].iloc[0]),
            line={"color": RED, "dash": dash}, text=rows["site"].map(escaped),
            error_y={"type": "data", "symmetric": False, "array": rows["ci_high"] - rows["accuracy"],
                     "arrayminus": rows["accuracy"] - rows["ci_low"]},
            hovertemplate="%{text}: %{y:.1%}<extra></extra>",
        )  # fmt: skip
    for name, said in (("random", "random directions"), ("shuffled", "shuffled labels")):
        mean = sites.groupby("layer", sort=True)[name].mean()
        line = {"color": _BESIDE[name], "width": 1.5}
        figure.add_scatter(x=mean.index, y=mean, mode="lines+markers", name=said, line=line)
    best = sites[sites["chosen"]]
    figure.add_scatter(
        x=best["layer"], y=best["accuracy"], mode="markers", showlegend=False, hoverinfo="skip",
        marker={"size": 16, "symbol": "circle-open", "color": "black", "line": {"width": 1.5}},
    )  # fmt: skip
    figure.add_hline(y=0.5, line={"color": "rgb(120,120,120)", "width": 1, "dash": "dot"})
    figure.update_layout(plot_bgcolor=CLEAR, height=360, margin={"l": 60, "r": 20, "t": 30, "b": 50})
    figure.update_xaxes(title="layer", dtick=1 if sites["layer"].nunique() < 20 else None)
    figure.update_yaxes(title="balanced accuracy, held out; .5 is chance", tickformat=".0%")
    return figure


def dose_response(rows: pd.DataFrame, about: Mapping[str, Any]) -> go.Figure:
    """The effect of one measure by strength of the push, with its 95% band; controls between their least and largest.
    The upper axis counts in gaps between the two sets' means."""
    measure = rows["measure"].iloc[0]
    figure = go.Figure()
    shown = [("random", "random directions, least to largest"), ("shuffled", "of shuffled labels, least to largest"),
             ("direction", "the direction, 95% interval")]  # fmt: skip
    for kind, said in shown:
        mine = rows[rows["kind"] == kind].sort_values("strength")
        if len(mine):
            low, high = ("ci_low", "ci_high") if kind == "direction" else ("least", "largest")
            _band(figure, mine, low, high, _BESIDE.get(kind, RED), said)
    strengths, gap = np.sort(rows["strength"].unique()), about["gap"]
    thin = {"color": "rgb(120,120,120)", "width": 1, "dash": "dot"}
    figure.add_hline(y=0, line=thin)
    figure.add_vline(x=0, line=thin)
    sites = ", ".join(map(short, about["sites"]))
    what = _MEASURES[measure].format(toward=about["toward"], away=about["away"])
    figure.update_layout(
        title={"text": escaped(f"{about['direction']}, pushed at {sites}; {rows['n'].iloc[0]} prompts"), "y": 0.97},
        plot_bgcolor=CLEAR, height=420, margin={"l": 70, "r": 20, "t": 90, "b": 100},
        legend={"orientation": "h", "y": -0.22}, xaxis_title="strength of the push, in the stream's unit",
        yaxis_title=escaped(f"change of {what}"),
        xaxis2={"overlaying": "x", "side": "top", "matches": "x", "tickvals": strengths.tolist(), "title": "gaps",
                "ticktext": [f"{strength / gap:+.2g}" for strength in strengths], "showgrid": False},
    )  # fmt: skip
    figure.add_scatter(x=strengths, y=0 * strengths, xaxis="x2", mode="none", showlegend=False, hoverinfo="skip")
    return figure


def _band(figure: go.Figure, rows: pd.DataFrame, low: str, high: str, colour: str, name: str) -> None:
    """A line through the effects and 0, in a band."""
    zero = pd.DataFrame([{"strength": 0.0, "effect": 0.0, low: 0.0, high: 0.0}])
    rows = pd.concat([rows[["strength", "effect", low, high]], zero]).sort_values("strength")
    x = rows["strength"]
    figure.add_scatter(
        x=[*x, *x[::-1]], y=[*rows[high], *rows[low][::-1]], fill="toself", mode="lines", line={"width": 0},
        hoverinfo="skip", fillcolor=colour.replace("rgb", "rgba").replace(")", ",.2)"), showlegend=False,
    )  # fmt: skip
    figure.add_scatter(
        x=x, y=rows["effect"], mode="lines+markers", name=name, line={"color": colour},
        hovertemplate="strength %{x:.3g}: %{y:+.3g}<extra></extra>",
    )  # fmt: skip
