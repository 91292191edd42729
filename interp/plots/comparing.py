"""Two models beside each other as plotly figures. DataFrame in, Figure out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.colours import BLUE, CLEAR, GREY, RED
from interp.plots.effects import LOWER_IS_BETTER, clickable, component_grid, footnote, one_view, scale
from interp.plots.labels import escaped

_POINTS = "points: blue where q < .05, with the 95% interval of the difference; dotted: the same in both"
NAMED = 6
"""Components named in the scatter: those of the largest differences."""


def comparison(table: pd.DataFrame, a: str, b: str) -> go.Figure:
    """Left, the map of `difference` = effect in B - effect in A; right, each component's effect in B against that in A,
    blue where q < .05. One method and metric, the first of the table; only the right panel where no head, attention
    layer or MLP is in it."""
    table = one_view(table)
    metric, method, n = (table[key].iloc[0] for key in ("metric", "method", "n"))
    grid = component_grid(table.assign(effect=table["difference"]))
    if grid is None:
        figure = go.Figure(_scatter(table))
    else:
        signs = scale(table["difference"], metric, method=method)
        signs = replace(signs, formula="difference = effect in B - effect in A; red = needed more in B, blue = less")
        chart = clickable(grid.values, grid.columns, grid.rows, grid.names, _hover(grid.names, table), signs)
        wide = min(max(0.62, len(grid.columns) * 0.03), 0.7)
        figure = make_subplots(1, 2, column_widths=[wide, 1 - wide], horizontal_spacing=0.16)
        figure.add_traces(chart.data, rows=1, cols=1)
        figure.data[0].colorbar.update(x=wide - 0.07, thickness=10)
        figure.update_xaxes(chart.layout.xaxis.to_plotly_json() | {"title": "head"}, row=1, col=1)
        figure.update_yaxes(
            chart.layout.yaxis.to_plotly_json() | {"title": "layer", "ticklabelstandoff": 5}, row=1, col=1
        )
        figure.add_traces(_scatter(table), rows=1, cols=2)
        figure.update_layout(hovermode="closest", hoverdistance=-1, clickmode="event+select")
        figure.add_annotation(footnote(f"{signs.formula}<br>{_POINTS}") | {"align": "left", "yshift": -88})
    last = {"row": 1, "col": 2} if grid is not None else {}
    line = {"zeroline": True, "zerolinecolor": "rgb(220,220,220)", "gridcolor": "rgb(240,240,240)"}
    figure.update_xaxes(line | {"title": "effect in A"}, **last)
    figure.update_yaxes(line | {"title": "effect in B"}, **last)
    figure.update_layout(
        title=escaped(f"{method} ablation: {metric}, n = {n}") + f"<br><sub>A {escaped(a)}; B {escaped(b)}</sub>",
        plot_bgcolor=CLEAR, showlegend=False, margin={"l": 60, "r": 20, "t": 70, "b": 112},
        height=max(400, 28 * (len(grid.rows) if grid else 0) + 150),
    )  # fmt: skip
    return figure


def _hover(names: list[list[str | None]], table: pd.DataFrame) -> list[list[str]]:
    told = dict(zip(table["component"], map(describe, table.itertuples()), strict=True))
    return [[told.get(name, "not measured") for name in line] for line in names]


def describe(row: object) -> str:
    """One row of a comparison as a line."""
    return (
        f"{row.component}: {row.effect_a:+.3g} in A, {row.effect_b:+.3g} in B, difference {row.difference:+.3g} "
        f"[{row.ci_low:+.3g}, {row.ci_high:+.3g}], q = {row.q:.2g}"
    )


def _scatter(table: pd.DataFrame) -> list[go.Scatter]:
    both = table[["effect_a", "effect_b"]].to_numpy(float)
    ends = [float(np.nanmin(both)), float(np.nanmax(both))]
    sure = (table["q"] < 0.05).to_numpy()
    far = table["difference"].abs().rank(ascending=False, method="first").to_numpy() <= NAMED
    x, y = table["effect_a"].to_numpy(float), table["effect_b"].to_numpy(float)
    wide, high = (max(np.nanmax(each) - np.nanmin(each), 1e-9) for each in (x, y))
    right, level = (x - x[:, None]) / wide, np.abs(y - y[:, None]) / high
    crowded = ((right > 0) & (right < 0.25) & (level < 0.06)).any(1)  # a name to the right would stand on another point
    margin = {"array": (table["ci_high"] - table["difference"]), "arrayminus": table["difference"] - table["ci_low"]}
    return [
        go.Scatter(x=ends, y=ends, mode="lines", line={"color": GREY, "width": 1, "dash": "dot"}, hoverinfo="skip"),
        go.Scatter(
            x=table["effect_a"], y=table["effect_b"], mode="markers+text", customdata=table["component"],
            text=np.where(far & sure, table["component"].map(escaped), ""),
            textposition=np.where(crowded, "middle left", "middle right"),
            textfont={"size": 10}, marker={"size": 7, "color": np.where(sure, BLUE, "rgb(190,195,203)")},
            error_y={"type": "data", "symmetric": False, "thickness": 1, "width": 0, "color": GREY} | margin,
            hovertext=[escaped(describe(row)) for row in table.itertuples()], hoverinfo="text",
        ),
    ]  # fmt: skip


def along(table: pd.DataFrame, a: str, b: str) -> go.Figure:
    """Each task's metric at models between A (t = 0) and B (t = 1), with its 95% band; dotted, the straight line
    between the ends. In loss, the largest height above it is written beside its place where its interval is above 0:
    the barrier."""
    panels = list(table.groupby(["task", "metric"], sort=False))
    titles = [escaped(f"{task}: {metric}") for (task, metric), _ in panels]
    figure = make_subplots(1, len(panels), subplot_titles=titles, horizontal_spacing=0.12)
    for column, ((_, metric), rows) in enumerate(panels, 1):
        where = {"row": 1, "col": column}
        fill = GREY.replace("rgb", "rgba").replace(")", ",.22)")
        figure.add_scatter(
            x=[*rows["t"], *rows["t"][::-1]], y=[*rows["ci_high"], *rows["ci_low"][::-1]], fill="toself",
            fillcolor=fill, mode="lines", line={"width": 0}, hoverinfo="skip", **where,
        )  # fmt: skip
        figure.add_scatter(
            x=[0, 1], y=rows["value"].iloc[[0, -1]], mode="lines", line={"color": GREY, "dash": "dot", "width": 1},
            hoverinfo="skip", **where,
        )  # fmt: skip
        hover = [
            f"t = {row.t:.3g}: {row.value:.4g} [{row.ci_low:.4g}, {row.ci_high:.4g}], {row.above:+.3g} above the line "
            f"[{row.above_low:+.3g}, {row.above_high:+.3g}], n = {row.n}"
            for row in rows.itertuples()
        ]
        figure.add_scatter(
            x=rows["t"], y=rows["value"], mode="lines+markers", line={"color": BLUE}, hovertext=hover,
            hoverinfo="text", **where,
        )  # fmt: skip
        peak = rows.loc[rows["above"].idxmax()]
        if metric.partition("-")[0] in LOWER_IS_BETTER and peak["above_low"] > 0:
            figure.add_annotation(
                x=peak["t"], y=peak["value"], text=f"barrier {peak['above']:.3g}", font={"color": RED}, ay=-30, ax=0,
                arrowcolor=RED, **where,
            )  # fmt: skip
        figure.update_xaxes(title="t", gridcolor="rgb(240,240,240)", **where)
        figure.update_yaxes(title=escaped(metric), gridcolor="rgb(240,240,240)", **where)
    figure.update_layout(
        plot_bgcolor=CLEAR, height=360, showlegend=False, margin={"l": 60, "r": 20, "t": 60, "b": 85},
    )  # fmt: skip
    figure.add_annotation(footnote(escaped(f"A (t = 0): {a}; B (t = 1): {b}. Band: 95% interval; dotted: the line.")))
    return figure
