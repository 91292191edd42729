"""Circuits as plotly figures: the edges, faithfulness by size, estimates against exact values. DataFrame in, Figure
out."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.colours import BLUE, GREY, RED
from interp.plots.labels import escaped

MOST_EDGES = 150
"""Edges drawn at most, the strongest ones: more cannot be told apart."""


def place(node: str) -> tuple[float, float]:
    """Where a node is drawn: heads of a layer side by side, its MLP to the right and above, the input below all."""
    match = re.fullmatch(r"a(\d+)\.(?:h|kv)(\d+)(?:<[qkv]>)?", node)
    if match:
        return float(match[2]), 2.0 * int(match[1])
    return (-1.5, 2.0 * int(node[1:]) + 1) if re.fullmatch(r"m\d+", node) else (-1.5, -2.0)


def circuit(table: pd.DataFrame, nodes: Sequence[str]) -> go.Figure:
    """The edges in the graph between their nodes, wide where strong: red helps the task, blue hurts it; q, k and v are
    told apart by the dash. Nodes are named on hover and in the figure."""
    kept = table[table["in_graph"]][:MOST_EDGES]
    top = 2.0 + max((place(node)[1] for node in nodes), default=0.0)
    at = {node: (-1.5, top) if node == "logits" else place(node) for node in nodes}
    limit = max(kept["score"].abs().max() if len(kept) else 0.0, 1e-12)
    figure = go.Figure()
    ends = kept["receiver"].str.replace(r"<[qkv]>", "", regex=True)
    for row, end in zip(kept.itertuples(), ends, strict=True):
        (x0, y0), (x1, y1) = at[row.sender], at.get(end) or place(end)
        dash = {"q": "solid", "k": "dash", "v": "dot"}.get(row.receiver[-2:-1], "solid")
        figure.add_scatter(
            x=[x0, (x0 + x1) / 2, x1], y=[y0, (y0 + y1) / 2, y1], mode="lines", showlegend=False,
            line={"color": RED if row.score >= 0 else BLUE, "width": 0.5 + 4 * abs(row.score) / limit, "dash": dash},
            hovertemplate=escaped(f"{row.edge}: {row.score:+.3g}") + "<extra></extra>", opacity=0.6,
        )  # fmt: skip
    used = [node for node in nodes if node in set(kept["sender"]) | set(ends)]
    figure.add_scatter(
        x=[at[node][0] for node in used], y=[at[node][1] for node in used], mode="markers+text", text=used,
        textposition="top center", marker={"size": 10, "color": GREY}, showlegend=False, hoverinfo="text",
    )  # fmt: skip
    left = int(table["in_graph"].sum()) - len(kept)
    more = f", the strongest {len(kept)}; {left:,} more are not drawn" if left else ""
    figure.update_layout(
        title=f"{int(table['in_graph'].sum()):,} edges{more}", height=max(320, int(45 * top)), plot_bgcolor="white",
        xaxis={"visible": False}, yaxis={"visible": False}, hovermode="closest",
        margin={"l": 20, "r": 20, "t": 50, "b": 50},
        annotations=[{"text": "red: helps, blue: hurts; q solid, k dashed, v dotted", "xref": "paper", "yref": "paper",
                      "x": 0, "y": 0, "yshift": -35, "xanchor": "left", "showarrow": False}],
    )  # fmt: skip
    return figure


def curve(rows: pd.DataFrame) -> go.Figure:
    """Faithfulness by share of the edges, with its 95% band; random circuits in grey between their least and
    largest."""
    share = rows["share"]
    figure = go.Figure()
    for name, low, high, mean, colour in (
        ("circuit", "ci_low", "ci_high", "faithfulness", "rgb(178,24,43)"),
        ("random", "random_low", "random_high", "random", GREY),
    ):
        fill = colour.replace("rgb", "rgba").replace(")", ",.2)")
        figure.add_scatter(
            x=[*share, *share[::-1]], y=[*rows[high], *rows[low][::-1]], fill="toself", fillcolor=fill,
            line={"width": 0}, hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            x=share, y=rows[mean], mode="lines+markers", name=name, line={"color": colour}, text=rows["n_edges"],
            hovertemplate="%{x:.1%} of the edges (%{text} in the circuit): %{y:.3f}<extra></extra>",
        )  # fmt: skip
    figure.add_hline(y=1, line={"color": "rgb(120,120,120)", "width": 1, "dash": "dot"})
    figure.update_layout(plot_bgcolor="white", height=360, margin={"l": 60, "r": 20, "t": 30, "b": 50})
    figure.update_xaxes(title="share of the edges", type="log", tickformat=".1%")
    figure.update_yaxes(title="faithfulness: 0 no edge, 1 the model")
    return figure


def agreement(table: pd.DataFrame, spearman: float, pearson: float) -> go.Figure:
    """`estimate` against `exact` of each edge or node, as the first column says; on the line they agree."""
    what = table.columns[0]
    figure = go.Figure(go.Scatter(
        x=table["exact"], y=table["estimate"], mode="markers", text=table[what].map(escaped),
        marker={"color": GREY, "size": 6},
        hovertemplate="%{text}<br>exact %{x:+.3g}, estimate %{y:+.3g}<extra></extra>", showlegend=False,
    ))  # fmt: skip
    ends = [float(np.nanmin(table[["exact", "estimate"]])), float(np.nanmax(table[["exact", "estimate"]]))]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": RED, "width": 1}, hoverinfo="skip", showlegend=False
    )
    figure.update_layout(
        title=f"{len(table)} {what}s: Spearman {spearman:.2f}, Pearson {pearson:.2f}", plot_bgcolor="white", height=380,
        xaxis_title=f"exact: how much worse without the {what}", yaxis_title="estimate",
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
    )  # fmt: skip
    return figure


def features(nodes: pd.DataFrame, edges: pd.DataFrame) -> go.Figure:
    """A sparse feature circuit: a row a dictionary, from the first layer up, its nodes from the one that helps most to
    the one that hurts most; the logits above. Red helps, blue hurts; a marker's area and an edge's width are sizes."""
    rows = list(dict.fromkeys(nodes.sort_values("layer", kind="stable")["dictionary"]))
    nodes = nodes.sort_values("score", ascending=False, kind="stable")
    at = {"logits": (0.5, float(len(rows)))}
    for y, name in enumerate(rows):
        mine = nodes.loc[nodes["dictionary"] == name, "node"]
        at |= {node: ((k + 0.5) / len(mine), float(y)) for k, node in enumerate(mine)}
    figure = go.Figure()
    drawn = edges.sort_values("score", key=abs, ascending=False, kind="stable")[:MOST_EDGES]
    limit = max(drawn["score"].abs().max() if len(drawn) else 0.0, 1e-12)
    for edge in drawn.itertuples():
        (x0, y0), (x1, y1) = at[edge.sender], at[edge.receiver]
        figure.add_scatter(
            x=[x0, (x0 + x1) / 2, x1], y=[y0, (y0 + y1) / 2, y1], mode="lines", showlegend=False, opacity=0.6,
            line={"color": RED if edge.score >= 0 else BLUE, "width": 0.3 + 4 * abs(edge.score) / limit},
            hovertemplate=escaped(f"{edge.sender}->{edge.receiver}: {edge.score:+.3g}") + "<extra></extra>",
        )  # fmt: skip
    size = nodes["score"].abs() / max(nodes["score"].abs().max() if len(nodes) else 0.0, 1e-12)
    figure.add_scatter(
        x=[at[node][0] for node in nodes["node"]], y=[at[node][1] for node in nodes["node"]], mode="markers",
        marker={"size": 6 + 20 * size**0.5, "color": np.where(nodes["score"] >= 0, RED, BLUE),
                "symbol": np.where(nodes["kind"] == "error", "triangle-up", "circle")},
        text=[escaped(f"{row.node}: {row.score:+.3g}") for row in nodes.itertuples()],
        hovertemplate="%{text}<extra></extra>", showlegend=False,
    )  # fmt: skip
    left = len(edges) - len(drawn)
    more = f"; the {len(drawn)} strongest edges, {left:,} more are not drawn" if left else ""
    figure.update_layout(
        title=f"{len(nodes)} nodes{more}", height=260 + 120 * len(rows), plot_bgcolor="white", hovermode="closest",
        margin={"l": 90, "r": 20, "t": 50, "b": 50}, xaxis={"visible": False},
        yaxis={"tickvals": list(range(len(rows) + 1)), "ticktext": [*map(escaped, rows), "logits"]},
        annotations=[{"text": "red: helps, blue: hurts; triangle: error", "xref": "paper", "yref": "paper", "x": 0,
                      "y": 0, "yshift": -35, "xanchor": "left", "showarrow": False}],
    )  # fmt: skip
    return figure
