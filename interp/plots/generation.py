"""Generated text as plotly figures. DataFrame in, Figure out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.causal.statistics import bootstrap
from interp.plots.colours import BLUE, CLEAR, GREY
from interp.plots.labels import escaped, tick, visible

LONGEST = 60
"""Tokens at most whose text stands on the axis."""


def kl_by_token(rows: pd.DataFrame) -> go.Figure:
    """KL(edited || baseline) of each next token, after the same text: bars over the tokens of one continuation; of
    several their mean with its 95% bootstrap interval, over prompts where there are several, whose continuations count
    once, with their mean; no interval where one has gone on so far. `rows` as of `Generation.tokens`."""
    edited = rows[rows["run"] == "edited"]
    shown = edited if len(edited) else rows
    figure = go.Figure()
    if shown.groupby(["prompt", "sample"]).ngroups == 1:
        hover = [
            f"{escaped(visible(text))}: KL {kl:.3f}, log-probability {own:.2f}, baseline {other:.2f}"
            for text, kl, own, other in shown[["text", "kl", "logprob", "baseline_logprob"]].itertuples(index=False)
        ]
        figure.add_bar(x=shown["step"], y=shown["kl"], marker={"color": BLUE}, text=None, hovertext=hover,
                       hoverinfo="text")  # fmt: skip
        if len(shown) <= LONGEST:
            figure.update_xaxes(tickvals=shown["step"], ticktext=[tick(text) for text in shown["text"]], tickangle=-60)
        figure.update_xaxes(title="token written by the edited run")
    else:
        unit = "prompt" if shown["prompt"].nunique() > 1 else "sample"
        each = shown.groupby([unit, "step"]).kl.mean()
        by_step = each.groupby("step").agg(["mean", "count"])
        low, high = bootstrap(each.unstack(unit).loc[by_step.index].to_numpy())
        low, high = (np.where(np.isfinite(end), end, by_step["mean"]) for end in (low, high))
        fill = GREY.replace("rgb", "rgba").replace(")", ",.25)")
        figure.add_scatter(
            x=[*by_step.index, *by_step.index[::-1]], y=[*high, *low[::-1]], fill="toself", fillcolor=fill,
            mode="lines", line={"width": 0}, hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            x=by_step.index, y=by_step["mean"], mode="lines+markers", line={"color": BLUE}, showlegend=False,
            text=by_step["count"], hovertemplate="token %{x}: KL %{y:.3f}, n = %{text}<extra></extra>",
        )  # fmt: skip
        n = int(by_step["count"].iloc[0])
        what = "prompts" if unit == "prompt" else "continuations"
        figure.update_layout(title=f"mean over {n} {what}, with its 95% interval")
        figure.update_xaxes(title="number of the new token")
    figure.update_yaxes(title="KL(edited || baseline), nats", rangemode="tozero")
    figure.update_layout(plot_bgcolor=CLEAR, height=340, margin={"l": 60, "r": 20, "t": 40, "b": 80}, bargap=0.1)
    return figure
