"""Lenses as plotly figures: what each layer says at each position, scores by layer, what a logit is made of. DataFrame
in, Figure out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.colours import BLUE, CLEAR, GREY, RED
from interp.plots.effects import Amount, Grid, Scale, clickable, component_grid, footnote
from interp.plots.labels import escaped, visible

COLOURS = {
    "top_prob": "probability of the layer's top token, 0 to 1",
    "prob": "probability of the target, 0 to 1",
    "rank": "rank of the target, on a log scale; white, 1: it is the top token",
    "kl": "KL(output || lens), in nats; white, 0: the layer says what the output says; darkest: so much or more",
    "entropy": "entropy, in nats; white, 0: the layer is certain",
}
"""What a cell of the grid can be coloured by, and how to read it."""

AXES = {
    "logit_diff": "logit(answer) - logit(wrong), nats",
    "prob_diff": "P(right answers) - P(wrong answers)",
    "prob": "P(answer)",
    "rank": "rank of the answer (1: top token)",
    "loss": "cross-entropy of the answer, nats",
    "kl": "KL(output || lens), nats",
    "entropy": "entropy, nats",
}

N_BARS = 30
"""Bars drawn at most where parts are many, the largest ones."""

_LENSES = {"logit": "rgb(178,24,43)", "tuned": "rgb(33,102,172)"}


def grid(rows: pd.DataFrame, colour: str = "top_prob", *, last: int = 24) -> go.Figure:
    """Layer x position, from the embeddings below to the output above; in each cell the layer's top token. Below stand
    the tokens of the prompt, above the target of each position. The `last` positions are drawn."""
    length = rows["position"].max() + 1
    rows = rows[rows["position"] >= length - last]
    layers, positions = sorted(rows["layer"].unique().tolist()), sorted(rows["position"].unique().tolist())
    cells = rows.sort_values(["layer", "position"], kind="stable")
    shape = (len(layers), len(positions))
    values = cells["top_prob"].str[0] if colour == "top_prob" else cells[colour]
    values = (np.log10(values) if colour == "rank" else values).to_numpy(float).reshape(shape)
    most = _most(cells, colour, values)
    ticks = np.arange(int(most) + 1) if colour == "rank" else None
    figure = go.Figure(go.Heatmap(
        z=values, zmin=0, zmax=most, colorscale="Blues", xgap=1, ygap=1,
        text=cells["top"].str[0].map(_word).to_numpy().reshape(shape), texttemplate="%{text}", textfont={"size": 11},
        hovertext=np.array([_told(cell) for cell in cells.itertuples()]).reshape(shape), hoverinfo="text",
        colorbar={"thickness": 12, "outlinewidth": 0}
        | ({} if ticks is None else {"tickvals": ticks, "ticktext": [f"{10**tick:,}" for tick in ticks]}),
    ))  # fmt: skip
    first = cells[cells["layer"] == layers[0]]
    names = [_label(layer) for layer in layers]
    names[-1] += " (output)"
    axis = {"tickmode": "array", "showgrid": False, "zeroline": False}
    above = [
        {"x": at, "y": 1, "yref": "paper", "text": word, "showarrow": False, "yanchor": "bottom", "textangle": -40,
         "xanchor": "left", "font": {"size": 11, "color": GREY}}
        for at, word in enumerate(first["target"].map(_word))
    ]  # fmt: skip
    figure.update_layout(
        xaxis=axis | {"tickvals": list(range(len(positions))), "ticktext": list(first["token"].map(_word)),
                      "tickangle": -40},
        yaxis=axis | {"tickvals": list(range(len(layers))), "ticktext": names},
        width=max(560, 58 * len(positions) + 200), height=30 * len(layers) + 220, plot_bgcolor=CLEAR,
        margin={"l": 95, "r": 20, "t": 80, "b": 110},
        annotations=[*above, footnote(f"{COLOURS[colour]}. Below: the prompt; above: the target")
                     | {"yshift": -85}],
    )  # fmt: skip
    if length > len(positions):
        figure.update_layout(title={"text": f"the last {len(positions)} of {length} positions", "font": {"size": 13}})
    return figure


def cells(rows: pd.DataFrame, colour: str = "top_prob", *, last: int = 24) -> Grid:
    """The same as a map of cells called `layer@position`: the output above, each cell with the layer's top token."""
    rows = rows[rows["position"] > rows["position"].max() - last].sort_values(["layer", "position"], kind="stable")
    layers, positions = sorted(rows["layer"].unique(), reverse=True), sorted(rows["position"].unique())
    layers, positions = list(map(int, layers)), list(map(int, positions))
    at = {(cell.layer, cell.position): cell for cell in rows.itertuples()}
    lines = [[at[layer, position] for position in positions] for layer in layers]
    numbers = [[cell.top_prob[0] if colour == "top_prob" else getattr(cell, colour) for cell in line] for line in lines]
    if colour == "rank":
        numbers = [[float(np.log10(number)) for number in line] for line in numbers]
    most = _most(rows, colour, np.array(numbers))
    return Grid(
        rows=[_label(layer) for layer in layers],
        columns=[f"{visible(at[layers[0], position].token)}\n{position}" for position in positions],
        names=[[f"{_label(cell.layer)}@{cell.position}" for cell in line] for line in lines],
        values=[[float(number) for number in line] for line in numbers],
        hover=[[_said(cell) for cell in line] for line in lines],
        scale=Amount(most / 2, COLOURS[colour], centre=most / 2),
        texts=[[visible(cell.top[0]) for cell in line] for line in lines],
    )


def _most(rows: pd.DataFrame, colour: str, values: np.ndarray) -> float:
    """What is darkest. The embeddings, and the first token's stream, are so far from what any output says that beside
    them no other KL would be seen."""
    if colour in ("top_prob", "prob"):
        return 1.0
    usual = rows[(rows["layer"] >= 0) & (rows["position"] > 0)]["kl"] if colour == "kl" else []
    return max(float(np.max(usual)) if len(usual) else float(values.max()), 1e-9)


def _label(layer: int) -> str:
    return "embed" if layer < 0 else f"L{layer}"


def _word(token: str) -> str:
    """A token that fits a cell."""
    text = visible(token)
    text = text.strip(" ") or text
    return escaped(text if len(text) <= 9 else f"{text[:8]}…")


def _told(cell: tuple) -> str:
    return escaped(_said(cell))


def _said(cell: tuple) -> str:
    """A cell in words: what the layer says, and how the target stands."""
    top = ", ".join(f"{visible(word)} {p:.3g}" for word, p in zip(cell.top, cell.top_prob, strict=True))
    return (
        f"{_label(cell.layer)} at {cell.position} ({visible(cell.token)}): {top}. Target {visible(cell.target)}: "
        f"probability {cell.prob:.3g}, rank {cell.rank:,}. KL {cell.kl:.3g}, entropy {cell.entropy:.3g}"
    )


def curve(rows: pd.DataFrame, metric: str) -> go.Figure:
    """A metric by layer, a line a lens, with its 95% interval over prompts."""
    rows = rows[rows["metric"] == metric]
    layers = sorted(rows["layer"].unique().tolist())
    at, figure = {layer: number for number, layer in enumerate(layers)}, go.Figure()
    for lens, part in rows.groupby("lens", sort=False):
        x, colour = part["layer"].map(at), _LENSES.get(lens, GREY)
        figure.add_scatter(
            x=[*x, *x[::-1]], y=[*part["ci_low"], *part["ci_high"][::-1]], fill="toself", mode="lines",
            line={"width": 0}, fillcolor=colour.replace("rgb", "rgba").replace(")", ",.2)"), hoverinfo="skip",
            showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            x=x, y=part["value"], mode="lines+markers", name=f"{lens} lens", line={"color": colour},
            text=[f"{lens} lens, {_label(row.layer)}: {row.value:.4g}, 95% interval {row.ci_low:.4g} to "
                  f"{row.ci_high:.4g}, n = {row.n}" for row in part.itertuples()], hoverinfo="text",
        )  # fmt: skip
    names = [_label(layer) for layer in layers]
    names[-1] += "<br>(output)"
    figure.update_layout(
        plot_bgcolor=CLEAR, height=360, margin={"l": 70, "r": 20, "t": 40, "b": 50}, showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"}, hovermode="closest",
    )  # fmt: skip
    figure.update_xaxes(title="stream read after", tickvals=list(range(len(layers))), ticktext=names)
    figure.update_yaxes(title=AXES[metric], gridcolor="rgb(235,235,235)")
    if metric == "rank":
        figure.update_yaxes(type="log", dtick=1)
    if metric.endswith("_diff"):
        figure.add_hline(y=0, line={"color": GREY, "width": 1, "dash": "dot"})
    return figure


def attribution(rows: pd.DataFrame, metric: str, total: float) -> go.Figure:
    """What a logit is made of: layer x head where the rows are heads and MLPs, else bars; all in the order of the
    stream, or the largest where they are many. Red writes towards the answer, blue away from it."""
    what = "logit(answer) - logit(wrong)" if metric == "logit_diff" else "logit(answer)"
    title = f"{what} = {total:+.2f}, the sum of the parts"
    formula = f"contribution to {what}, nats; red: towards the answer"
    if set(rows["kind"]) & {"neuron", "latent"} or "head" not in set(rows["kind"]):
        figure = _bars(rows, formula)
    else:
        figure = _map(rows, metric)
        inside = rows["component"].str.fullmatch(r"L\d+(H\d+|\.\w+)")
        outside = [f"{row.component} {row.contribution:+.2f}" for row in rows[~inside].itertuples()]
        title += f"<br><sup>beside the map: {escaped(', '.join(outside))}</sup>" if outside else ""
    figure.update_layout(title={"text": title, "font": {"size": 15}}, margin={"t": 70})
    return figure


def attribution_cells(rows: pd.DataFrame, metric: str) -> Grid:
    """Layer x head, with columns for the MLPs and the biases, of a table of heads and MLPs."""
    shown = component_grid(rows.assign(effect=rows["contribution"], metric=metric, method="direct", position="all"))
    what = "logit(answer) - logit(wrong)" if metric == "logit_diff" else "logit(answer)"
    formula = f"contribution to {what}, nats; red: towards the answer"
    limit = max(float(rows["contribution"].abs().max()), 1e-9)
    return replace(shown, scale=Scale(limit, formula, red_is_positive=True))


def _map(rows: pd.DataFrame, metric: str) -> go.Figure:
    """The same as a figure; a click selects the component's name."""
    cells = attribution_cells(rows, metric)
    figure = clickable(cells.values, cells.columns, cells.rows, cells.names, cells.hover, cells.scale)
    figure.update_layout(xaxis_title="head", yaxis_title="layer")
    return figure


def _bars(rows: pd.DataFrame, formula: str) -> go.Figure:
    largest = rows["contribution"].abs().sort_values(ascending=False, kind="stable").index[:N_BARS]
    shown = rows if len(rows) <= N_BARS else rows.loc[largest]
    figure = go.Figure(go.Bar(
        x=shown["contribution"], y=shown["component"].map(escaped), orientation="h",
        error_x={"type": "data", "symmetric": False, "array": shown["ci_high"] - shown["contribution"],
                 "arrayminus": shown["contribution"] - shown["ci_low"], "thickness": 1},
        marker={"color": np.where(shown["contribution"] >= 0, RED, BLUE)},
        hovertext=[escaped(f"{row.component}: {row.contribution:+.3g}, 95% interval {row.ci_low:+.3g} to "
                               f"{row.ci_high:+.3g}, n = {row.n}") for row in shown.itertuples()], hoverinfo="text",
    ))  # fmt: skip
    left = f"; the largest {len(shown)} of {len(rows):,}" if len(shown) < len(rows) else ""
    figure.update_layout(
        yaxis={"autorange": "reversed"}, plot_bgcolor=CLEAR, height=max(260, 20 * len(shown) + 160),
        margin={"l": 110, "r": 20, "t": 60, "b": 90}, annotations=[footnote(formula + left)],
    )  # fmt: skip
    figure.add_vline(x=0, line={"color": GREY, "width": 1})
    return figure
