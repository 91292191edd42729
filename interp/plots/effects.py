"""Tables of effects as plotly figures, the same in a notebook, a report and the app.

Colours: signed numbers are RdBu, symmetric about "nothing changed" (white). Red says that the component, or the place,
helped: without it the metric is worse. So red is negative for `logit_diff`, `prob` and `accuracy`, and positive for
`loss` and `kl`. Missing is hatched grey (left blank in a plotly figure), never 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.colours import BLUE, CLEAR, RED, WHITE
from interp.plots.labels import escaped, short

LOWER_IS_BETTER = frozenset({"loss", "kl"})
"""Metrics that rise when a model gets worse."""

PATCHING = {
    "denoise": "normalized: 0 = as corrupted, 1 = as clean; blue = restores the clean answer",
    "noise": "normalized: 1 = as clean, 0 = as corrupted; red = what was noised here was needed",
    "trace": "normalized: 0 = as noised, 1 = as clean; blue = restores the clean answer",
}
"""Methods that carry activations between runs, and how to read their `normalized`."""

_COMPONENT = re.compile(r"L(\d+)(?:H(\d+)(?:\.\w+)?|\.(\w+))")


@dataclass(frozen=True)
class Scale:
    """How a number becomes a colour: white at `centre`, full colour at `centre - limit` and `centre + limit`."""

    limit: float
    formula: str
    """One line that says what was subtracted from what, and what red means."""
    centre: float = 0.0
    red_is_positive: bool = False

    @property
    def colorscale(self) -> list[list[float | str]]:
        low, high = (BLUE, RED) if self.red_is_positive else (RED, BLUE)
        return [[0.0, low], [0.5, WHITE], [1.0, high]]


@dataclass(frozen=True)
class Amount(Scale):
    """Blues from 0 (white) to twice the centre: of numbers that have no sign."""

    @property
    def colorscale(self) -> list[list[float | str]]:
        return [[0.0, WHITE], [1.0, BLUE]]


@dataclass(frozen=True)
class Grid:
    """A map of components, layer by layer: what a cell is called, its number and its tooltip; None where nothing is.

    A column's label may have two lines."""

    rows: list[str]
    columns: list[str]
    names: list[list[str | None]]
    values: list[list[float | None]]
    hover: list[list[str]]
    scale: Scale
    texts: list[list[str]] | None = None
    """What is written in a cell in place of its number."""


def scale(values: Sequence[float] | pd.Series, metric: str, *, method: str = "mean", normalized: bool = False) -> Scale:
    """The colours of some effects (or of some `normalized` values, of patching) on one metric."""
    method = method.removesuffix("-atp")
    if normalized:
        centre = 1.0 if method == "noise" else 0.0  # what an unpatched run has
        return Scale(_limit(np.asarray(values, float) - centre), PATCHING[method], centre=centre)
    lower = metric.partition("-")[0] in LOWER_IS_BETTER  # "loss-digit" is a loss
    if method in PATCHING:
        start = {"denoise": "corrupted", "noise": "clean", "trace": "noised"}[method]
        worse = "red = moves away from the answer"
        return Scale(_limit(values), f"effect = patched - {start}; {worse}", red_is_positive=lower)
    if method == "path":
        formula = "effect = patched - clean; red = what the sender says to the receiver helps"
        return Scale(_limit(values), formula, red_is_positive=lower)
    formula = "effect = ablated - clean; red = the component helped"
    return Scale(_limit(values), formula, red_is_positive=lower)


def _limit(values: Sequence[float] | pd.Series | np.ndarray) -> float:
    values = np.asarray(values, float)
    values = np.abs(values[np.isfinite(values)])
    return float(values.max()) if values.size and values.max() > 0 else 1.0


def one_view(table: pd.DataFrame, *, method: str | None = None, metric: str | None = None) -> pd.DataFrame:
    """The rows of one method and one metric: those named, or the first of the table."""
    method = table["method"].iloc[0] if method is None else method
    metric = table["metric"].iloc[0] if metric is None else metric
    return table[(table["method"] == method) & (table["metric"] == metric)]


def component_grid(table: pd.DataFrame) -> Grid | None:
    """Heads, attention layers and MLPs of one method and metric, as layer x column; None if there are none.

    Cells are `normalized` where patching gives it, else the effect. A component that stands at several positions shows
    the row with the largest effect.
    """
    number = "normalized" if "normalized" in table else "effect"
    cells: dict[tuple[int, str], dict[str, Any]] = {}
    for row in table.to_dict("records"):
        match = _COMPONENT.fullmatch(row["component"])
        if match is None:
            continue
        key = (int(match[1]), f"H{match[2]}" if match[2] else match[3].replace("mlp", "MLP"))
        if key not in cells or abs(row["effect"]) > abs(cells[key]["effect"]):
            cells[key] = row
    if not cells:
        return None
    layers = sorted({layer for layer, _ in cells})
    columns = sorted({column for _, column in cells}, key=_column_order)
    at = [[cells.get((layer, column)) for column in columns] for layer in layers]
    metric, method = table["metric"].iloc[0], table["method"].iloc[0]
    return Grid(
        rows=[f"L{layer}" for layer in layers],
        columns=columns,
        names=[[None if row is None else row["component"] for row in line] for line in at],
        values=[[_finite(row, number) for row in line] for line in at],
        hover=[["not measured" if row is None else describe(row) for row in line] for line in at],
        scale=scale([row[number] for row in cells.values()], metric, method=method, normalized=number == "normalized"),
    )


def _column_order(column: str) -> tuple[int, int, str]:
    return (0, int(column[1:]), "") if re.fullmatch(r"H\d+", column) else (1, 0, column)


def _finite(row: Mapping[str, Any] | None, number: str) -> float | None:
    return None if row is None or not np.isfinite(row[number]) else float(row[number])


def describe(row: Mapping[str, Any] | pd.Series) -> str:
    """One row of effects as a line: "L3H5: -1.23 logit_diff, 95% interval -1.40 to -1.05, n = 200"."""
    place = "" if str(row["position"]) == "all" else f" at {row['position']}"
    known = np.isfinite(row["ci_low"])  # one prompt has no interval
    interval = f"95% interval {row['ci_low']:+.3g} to {row['ci_high']:+.3g}, " if known else ""
    normalized = f"normalized {row['normalized']:.3f}, " if "normalized" in row else ""
    return f"{row['component']}{place}: {normalized}{row['effect']:+.3g} {row['metric']}, {interval}n = {row['n']}"


def head_map(table: pd.DataFrame) -> go.Figure:
    """Layer x head heat map of one method and metric, with a column for the MLPs; every cell can be clicked.

    A click selects a point whose `customdata` is the component's name.
    """
    table = one_view(table)
    grid = component_grid(table)
    assert grid is not None, "head_map needs heads, attention layers or MLPs"
    figure = clickable(grid.values, grid.columns, grid.rows, grid.names, grid.hover, grid.scale)
    figure.update_layout(title=_title(table), xaxis_title=_near("head"), yaxis_title="layer")
    return figure


def position_grid(table: pd.DataFrame, ticks: Mapping[str, str] | None = None) -> Grid:
    """Components x positions of one method and metric; a cell is called `component@position`.

    Cells are `normalized` where patching gives it, else the effect. `ticks`: position -> the token or label above it.
    """
    number = "normalized" if "normalized" in table else "effect"
    rows = list(dict.fromkeys(table.sort_values(["layer", "index"])["component"]))
    columns = list(dict.fromkeys(table["position"].astype(str)))
    at = {(row["component"], str(row["position"])): row for row in table.to_dict("records")}
    cells = [[at.get((row, column)) for column in columns] for row in rows]
    first = table.iloc[0]
    return Grid(
        rows=rows,
        columns=[f"{short(ticks.get(column, ''))}\n{column}" for column in columns] if ticks else columns,
        names=[[f"{row}@{column}" for column in columns] for row in rows],
        values=[[_finite(cell, number) for cell in line] for line in cells],
        hover=[["not measured" if cell is None else describe(cell) for cell in line] for line in cells],
        scale=scale(table[number], first["metric"], method=first["method"], normalized=number == "normalized"),
    )


def position_map(table: pd.DataFrame, ticks: Mapping[str, str] | None = None) -> go.Figure:
    """Layer x position heat map of one method and metric (`position_grid`), the first layer on top.

    A click selects a point whose `customdata` is `component@position`.
    """
    table = one_view(table)
    grid = position_grid(table, ticks)
    figure = clickable(grid.values, grid.columns, grid.rows, grid.names, grid.hover, grid.scale)
    if ticks:
        figure.update_xaxes(tickangle=0 if len(grid.columns) <= 16 else -60)
    figure.update_layout(title=_title(table), xaxis_title=_near("position"), yaxis_title="")
    return figure


def clickable(
    values: list[list[float | None]],
    columns: list[str],
    rows: list[str],
    names: list[list[str | None]],
    hover: list[list[str]],
    colours: Scale,
) -> go.Figure:
    """A heat map under an invisible scatter: a `Heatmap` alone sends no selection event to streamlit."""
    y, x = np.indices((len(rows), len(columns)))
    safe = [[escaped(text) for text in line] for line in hover]
    heat = go.Heatmap(
        z=[[np.nan if value is None else value for value in line] for line in values],
        zmin=colours.centre - colours.limit, zmax=colours.centre + colours.limit, colorscale=colours.colorscale,
        hoverinfo="skip", xgap=1, ygap=1, colorbar={"thickness": 12, "outlinewidth": 0},
    )  # fmt: skip
    hidden = {"marker": {"opacity": 0}}
    clicks = go.Scatter(
        x=x.ravel(), y=y.ravel(), mode="markers", marker={"size": 2, "opacity": 0}, selected=hidden, unselected=hidden,
        customdata=sum(names, []), text=sum(safe, []), hovertemplate="%{text}<extra></extra>", showlegend=False,
    )  # fmt: skip
    labels = [escaped(column).replace("\n", "<br>") for column in columns]
    axis = {"tickmode": "array", "showgrid": False, "zeroline": False, "fixedrange": True}
    figure = go.Figure([heat, clicks])
    figure.update_layout(
        xaxis=axis | {"tickvals": list(range(len(columns))), "ticktext": labels,
                      "range": [-0.5, len(columns) - 0.5]},
        yaxis=axis | {"tickvals": list(range(len(rows))), "ticktext": [escaped(r) for r in rows],
                      "range": [len(rows) - 0.5, -0.5]},
        hovermode="closest", hoverdistance=-1, dragmode=False, clickmode="event+select",
        plot_bgcolor="rgb(200,200,200)",
        height=max(260, (28 if len(rows) <= 40 else 14) * len(rows) + 150),
        margin={"l": max(60, 10 + 7 * max(map(len, rows), default=0)), "r": 20, "t": 50, "b": 85, "pad": 0},
        annotations=[footnote(colours.formula)],
    )  # fmt: skip
    return figure


def _near(text: str) -> dict[str, object]:
    """The title of an axis, close to its ticks: the footnote stands below it."""
    return {"text": text, "standoff": 4}


def footnote(text: str) -> dict[str, object]:
    return {"text": text, "xref": "paper", "yref": "paper", "x": 0, "y": 0, "yshift": -68, "xanchor": "left",
            "showarrow": False, "font": {"size": 12}}  # fmt: skip


def _title(table: pd.DataFrame) -> str:
    row = table.iloc[0]
    what = "patching" if row["method"].removesuffix("-atp") in (*PATCHING, "path") else "ablation"
    return escaped(f"{row['method']} {what}: {row['metric']}, n = {row['n']}")


def ranked(table: pd.DataFrame, *, top: int = 30) -> go.Figure:
    """Bars of the `top` components of one method and metric by size of effect, with their 95% intervals."""
    table = one_view(table)
    shown = table.iloc[np.argsort(-table["effect"].abs().to_numpy(), kind="stable")[:top]]
    colours = scale(shown["effect"], table["metric"].iloc[0], method=table["method"].iloc[0])
    positions = shown["position"].astype(str)
    label = shown["component"].where(positions == "all", shown["component"] + " @ " + positions)
    bars = go.Bar(
        x=shown["effect"], y=label.map(escaped), orientation="h", text=None,
        error_x={"type": "data", "symmetric": False, "array": shown["ci_high"] - shown["effect"],
                 "arrayminus": shown["effect"] - shown["ci_low"]},
        marker={"color": shown["effect"], "cmin": -colours.limit, "cmax": colours.limit,
                "colorscale": colours.colorscale, "line": {"color": "rgb(150,150,150)", "width": 1}},
        hovertext=[escaped(describe(row)) for _, row in shown.iterrows()], hoverinfo="text",
    )  # fmt: skip
    figure = go.Figure(bars)
    figure.update_layout(
        title=_title(table), xaxis_title=_near(f"effect on {escaped(str(table['metric'].iloc[0]))}"),
        yaxis={"autorange": "reversed"}, plot_bgcolor=CLEAR, height=max(260, 20 * len(shown) + 150),
        margin={"l": 90, "r": 20, "t": 50, "b": 90}, annotations=[footnote(colours.formula)],
    )  # fmt: skip
    return figure


def effects(
    table: pd.DataFrame,
    *,
    method: str | None = None,
    metric: str | None = None,
    ticks: Mapping[str, str] | None = None,
) -> go.Figure:
    """The figure that suits a table of effects: layer x position, else layer x head, else ranked bars.

    One method and one metric are drawn: those named, or the first of the table. `ticks` as of `position_map`.
    """
    table = one_view(table, method=method, metric=metric)
    if table["position"].astype(str).nunique() > 1 and table["component"].nunique() > 1:
        return position_map(table, ticks)
    return ranked(table) if component_grid(table) is None else head_map(table)


def per_prompt(before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
    """The metric `before` and `after` on each prompt, and the `effect`, after minus before; arrays are `[prompt]`."""
    before, after = np.asarray(before, float), np.asarray(after, float)
    return pd.DataFrame({"before": before, "after": after, "effect": after - before}).rename_axis("prompt")


def histogram(prompts: pd.DataFrame, row: pd.Series) -> go.Figure:
    """How many prompts have which `effect` (of `per_prompt`), for one row of a table of effects.

    The solid line is the mean over prompts, the band its 95% interval, the dotted line 0.
    """
    figure = go.Figure(go.Histogram(x=prompts["effect"], nbinsx=30, marker={"color": "rgb(110,120,135)"}))
    if np.isfinite(row["ci_low"]):
        figure.add_vrect(x0=row["ci_low"], x1=row["ci_high"], fillcolor="rgb(230,150,20)", opacity=0.35, line_width=0)
    line = {"color": "rgb(200,110,0)", "width": 2}
    figure.add_vline(x=row["effect"], line=line, annotation_text=f"mean {row['effect']:+.3g}", annotation_yshift=18)
    figure.add_vline(x=0, line={"color": "rgb(120,120,120)", "width": 1, "dash": "dot"})
    figure.update_layout(
        xaxis_title=f"effect on {escaped(row['metric'])} of one prompt", yaxis_title="prompts", bargap=0.05,
        height=260, margin={"l": 50, "r": 10, "t": 35, "b": 45}, showlegend=False,
    )  # fmt: skip
    return figure
