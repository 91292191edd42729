"""Heads as plotly figures: maps of scores, one pattern, eigenvalues, composition, scores beside effects."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.colours import BLUE, CLEAR, GREY, RED, WHITE
from interp.plots.effects import Amount, Scale, clickable, footnote
from interp.plots.labels import escaped, tick, visible

N_TICKS = 64
"""Tokens written on an axis of a pattern, at most."""

N_NAMED = 6
"""Heads named for the harm that their ablation does, at most."""

FLOOR = 1e-3
"""Nats below which an effect is drawn as none."""


def amount(highest: float, formula: str) -> Amount:
    return Amount(limit=highest / 2, formula=formula, centre=highest / 2)


def score_map(rows: pd.DataFrame, score: str, *, chance: float, n: int) -> go.Figure:
    """Layer x head map of one score of `interp.lenses.heads`; a click selects the head's name."""
    if score == "entropy":
        colours = amount(max(float(rows[score].max()), chance), f"nats; a head that attends to all alike: {chance:.2f}")
    else:
        colours = amount(1.0, f"share of attention, 0 to 1; a head that attends to all tokens alike: {chance:.3f}")

    def said(row: pd.Series) -> str:
        known = np.isfinite(row[f"{score}_low"])
        interval = f", 95% interval {row[f'{score}_low']:.3f} to {row[f'{score}_high']:.3f}" if known else ""
        return f"{row['component']}: {score} {row[score]:.3f}{interval}, n = {n}"

    return _map(rows, score, colours, said, f"{score.replace('_', ' ')}, n = {n} sequences")


def signed_map(rows: pd.DataFrame, score: str) -> go.Figure:
    """Layer x head map of `ov_copying` or `qk_matching`."""
    does = {"ov_copying": "a token attended to raises its own logit", "qk_matching": "tokens attend to their like"}[
        score
    ]
    title = {"ov_copying": "OV copying score", "qk_matching": "QK matching score"}[score]
    colours = Scale(1.0, f"sum of eigenvalues / sum of their sizes; blue = {does}")
    return _map(rows, score, colours, lambda row: f"{row['component']}: {row[score]:+.3f}", title)


def _map(rows: pd.DataFrame, score: str, colours: Scale, said, title: str) -> go.Figure:
    layers, heads = sorted(rows["layer"].unique()), sorted(rows["index"].unique())
    at = {(row["layer"], row["index"]): row for _, row in rows.iterrows()}
    cells = [[at[layer, head] for head in heads] for layer in layers]
    values = [[float(cell[score]) if np.isfinite(cell[score]) else None for cell in line] for line in cells]
    names = [[cell["component"] for cell in line] for line in cells]
    hover = [[said(cell) if np.isfinite(cell[score]) else f"{cell['component']}: does not apply" for cell in line]
             for line in cells]  # fmt: skip
    figure = clickable(values, [f"H{head}" for head in heads], [f"L{layer}" for layer in layers], names, hover, colours)
    figure.update_layout(title=title, xaxis_title="head", yaxis_title="layer")
    return figure


def pattern(frame: pd.DataFrame, head: str, *, weighted: bool = False, less: str = "") -> go.Figure:
    """One head's pattern: rows are queries, columns keys, both labelled with their token. What comes after the query
    is 0 by the causal mask. `less`: what was taken from it; then it has a sign."""
    unit = "attention x |v W_O|, in the stream's unit" if weighted else "attention: every row sums to 1"
    unit = f"{escaped(less)}: blue, looks there more; red, less" if less else unit
    tokens = [f"{at} {visible(token)}" for at, token in enumerate(frame.index)]
    every = -(-len(tokens) // N_TICKS)
    ticks = {
        "tickmode": "array", "tickvals": list(range(0, len(tokens), every)), "showgrid": False, "zeroline": False,
        "ticktext": [tick(token) for token in frame.index[::every]], "tickfont": {"size": 11},
    }  # fmt: skip
    values = frame.to_numpy(dtype=float)
    safe = [escaped(token) for token in tokens]
    heat = go.Heatmap(
        z=values, **_range(values, weighted, bool(less)),
        text=[[f"{q} looks at {k}: {value:.3f}" for k, value in zip(safe, line, strict=True)]
              for q, line in zip(safe, values, strict=True)],
        hovertemplate="%{text}<extra></extra>", xgap=0.5, ygap=0.5, colorbar={"thickness": 12, "outlinewidth": 0},
    )  # fmt: skip
    figure = go.Figure(heat)
    side = int(np.clip(22 * len(tokens), 320, 900))
    title = (
        f"{escaped(head)}: {'difference in ' if less else ''}{'value-weighted attention' if weighted else 'attention'}"
    )
    figure.update_layout(
        title=title, xaxis=ticks | {"title": f"key<br><sub>{unit}</sub>", "tickangle": -60, "constrain": "domain"},
        yaxis=ticks | {"title": "query", "autorange": "reversed", "scaleanchor": "x", "constrain": "domain"},
        plot_bgcolor=CLEAR, width=side + 220, height=side + 190, margin={"l": 90, "r": 20, "t": 50, "b": 110},
    )  # fmt: skip
    return figure


def _range(values: np.ndarray, weighted: bool, signed: bool) -> dict[str, object]:
    """The colours of a pattern: from 0 up, or to both sides of it."""
    most = float(np.abs(values).max()) or 1.0
    if signed:
        return {"zmin": -most, "zmax": most, "colorscale": [[0, RED], [0.5, WHITE], [1, BLUE]]}
    return {"zmin": 0, "zmax": most if weighted else 1.0, "colorscale": [[0, WHITE], [1, BLUE]]}


def eigenvalues(frame: pd.DataFrame, head: str, circuit: str) -> go.Figure:
    """Eigenvalues of one circuit of a head in the complex plane: to the right of 0 what is copied, or attends to its
    like, to the left the opposite."""
    sizes = np.hypot(frame["real"], frame["imaginary"])
    most = 1.1 * float(sizes.max()) if len(sizes) and sizes.max() > 0 else 1.0
    score = float(frame["real"].sum() / sizes.sum()) if sizes.sum() > 0 else np.nan
    points = go.Scatter(
        x=frame["real"], y=frame["imaginary"], mode="markers",
        marker={"size": 8, "color": [BLUE if real > 0 else RED for real in frame["real"]], "opacity": 0.7},
        hovertemplate="%{x:.3g} %{y:+.3g} i<extra></extra>",
    )  # fmt: skip
    figure = go.Figure(points)
    lines = {"zeroline": True, "zerolinecolor": GREY, "gridcolor": "rgb(235,235,235)", "range": [-most, most]}
    figure.update_layout(
        title=f"{escaped(head)}: eigenvalues of {circuit.upper()}, sum / sum of sizes {score:+.3f}",
        xaxis=lines | {"title": "real part"}, yaxis=lines | {"title": "imaginary part", "scaleanchor": "x"},
        plot_bgcolor=CLEAR, width=560, height=560, margin={"l": 70, "r": 20, "t": 50, "b": 60},
    )  # fmt: skip
    return figure


def composition(rows: pd.DataFrame, kind: str) -> go.Figure:
    """Map of `excess`, earlier head x later head; a click selects "L0H2->L2H6". Grey: not a later layer."""
    earlier, later = (sorted(rows[side].unique(), key=_order) for side in ("earlier", "later"))
    at = {(row["earlier"], row["later"]): row for _, row in rows.iterrows()}
    cells = [[at.get((one, other)) for other in later] for one in earlier]
    values = [[None if cell is None else float(cell["excess"]) for cell in line] for line in cells]
    names = [[None if cell is None else f"{cell['earlier']}->{cell['later']}" for cell in line] for line in cells]
    hover = [[_pair(cell) for cell in line] for line in cells]
    most = float(rows["excess"].abs().max()) or 1.0
    colours = Scale(
        most, f"score - {float(rows['random'].iloc[0]):.3f}, the score of random directions; blue: reads more of it"
    )
    figure = clickable(values, later, earlier, names, hover, colours)
    figure.update_layout(
        title=f"{kind.upper()} composition", xaxis_title="later head reads", yaxis_title="earlier writes"
    )
    if len(earlier) > 16:
        figure.update_layout(height=14 * len(earlier) + 170, yaxis_tickfont={"size": 9}, xaxis_tickfont={"size": 9})
    return figure


def _pair(cell: pd.Series | None) -> str:
    if cell is None:
        return "not in a later layer"
    return (
        f"{cell['earlier']} -> {cell['later']}: {cell['score']:.3f}, random {cell['random']:.3f} "
        f"(97.5% below {cell['random_high']:.3f})"
    )


def _order(head: str) -> tuple[int, int]:
    layer, _, index = head.removeprefix("L").partition("H")
    return int(layer), int(index)


def score_and_effect(rows: pd.DataFrame, score: str, metric: str) -> go.Figure:
    """Each head's score against the harm that its ablation does, both with their 95% intervals, and their rank
    correlation. Harm is on a log axis: heads that do less than `FLOOR` of it, or good, are hollow and stand on the
    floor."""
    spearman = rows[[score, "effect"]].rank().corr().iloc[0, 1]
    harm, some = rows["effect"].clip(lower=FLOOR), rows["effect"] > FLOOR
    most = rows["effect"].rank(ascending=False, method="first") <= N_NAMED
    told = (rows[score] > 0.3) | ((rows["effect"] > FLOOR) & most)
    order, sides = rows[score].rank().astype(int), ("top center", "bottom center")
    hover = [f"{r.component}: {score} {getattr(r, score):.3f}, effect {r.effect:+.3g}" for r in rows.itertuples()]
    dots = go.Scatter(
        x=rows[score], y=harm, mode="markers+text", text=rows["component"].where(told, ""),
        textposition=[sides[at % 2] if x > 0.3 else "top right" for at, x in zip(order, rows[score], strict=True)],
        textfont={"size": 11},
        marker={"color": [BLUE if one else WHITE for one in some], "size": 8, "line": {"color": BLUE, "width": 1}},
        error_x=_bars(rows[score], rows[f"{score}_low"], rows[f"{score}_high"]),
        error_y=_bars(harm, rows["ci_low"].clip(lower=FLOOR), rows["ci_high"].clip(lower=FLOOR)),
        hovertext=hover, hoverinfo="text",
    )  # fmt: skip
    figure = go.Figure(dots)
    figure.update_layout(
        title=f"{score.replace('_', ' ')} and {metric} without the head, Spearman {spearman:+.2f}",
        xaxis_title=f"{score.replace('_', ' ')} score", yaxis_title=f"effect on {metric}, nats", plot_bgcolor=CLEAR,
        height=460, margin={"l": 80, "r": 20, "t": 50, "b": 85}, showlegend=False,
        annotations=[footnote(f"effect = ablated - clean; positive = the head helped; hollow: {FLOOR:g} or less")],
    )  # fmt: skip
    grid = {"gridcolor": "rgb(235,235,235)", "zerolinecolor": GREY}
    right = float(rows[[score, f"{score}_high"]].max(axis=None))
    right = 1.02 if 0.3 < right < 1 else 1.15 * right  # a share of attention, or an entropy; of no head any, close up
    figure.update_xaxes(**grid, range=[-0.05 * right, right])
    figure.update_yaxes(**grid, type="log", dtick=1)
    return figure


def _bars(value: pd.Series, low: pd.Series, high: pd.Series) -> dict[str, object]:
    return {"type": "data", "symmetric": False, "array": high - value, "arrayminus": value - low, "thickness": 1,
            "color": GREY}  # fmt: skip
