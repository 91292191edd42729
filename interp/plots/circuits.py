"""Circuits as plotly figures: the edges, faithfulness by size, estimates against exact values. DataFrame in, Figure
out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.causal.graph import component, edge_title
from interp.plots.colours import BLUE, CLEAR, GREY, ORANGE, RED
from interp.plots.labels import escaped

MOST_EDGES = 150
"""Edges drawn at most, the strongest ones: more cannot be told apart."""

WIDTHS = (0.6, 1.5, 3.0, 5.0)
"""Lines are as wide as their edge is strong, in steps: edges of one step and colour are one trace, which is quick."""


def place(node: str, n_layers: int, n_heads: int, group: int = 1) -> tuple[float, float]:
    """Where a node is drawn: heads of a layer side by side, its MLP to the left and above; the input below all, the
    logits on top. A key and value that a `group` of heads shares stand amid them."""
    match = re.fullmatch(r"a(\d+)\.(h|kv)(\d+)", node)
    if match:
        x = int(match[3]) if match[2] == "h" else (int(match[3]) + 0.5) * group - 0.5
        return float(x), 2.0 * int(match[1]) - 0.5 * (match[2] == "kv" and group > 1)
    if re.fullmatch(r"m\d+", node):
        return -1.2, 2.0 * int(node[1:]) + 1
    return (n_heads - 1) / 2, 2.0 * n_layers + 0.4 if node == "logits" else -1.4


def circuit(
    table: pd.DataFrame,
    nodes: Sequence[str],
    *,
    selected: str | None = None,
    labels: Mapping[str, str] | None = None,
    pinned: Sequence[str] = (),
) -> go.Figure:
    """The edges in the graph between their nodes, wide where strong: red helps the task, blue hurts it; q, k and v are
    told apart by the dash.

    Nodes are called as an ablation calls them. A click on a node selects a point whose `customdata` is its name in the
    file, on the middle of an edge the edge's. `selected`: a node or an edge; the others stand back. `labels`: what
    nodes are called beside their names. `pinned` nodes are drawn even where no edge is left to them, in orange.
    """
    kept, labels = table[table["in_graph"]][:MOST_EDGES], labels or {}
    shared = set(table["receiver"].str.extract(r"\.kv(\d+)<", expand=False).dropna())
    layers, heads = (_numbers(form, nodes) for form in (r"[am](\d+)", r"a\d+\.h(\d+)"))
    shape = max(layers) + 1, max(heads) + 1, (max(heads) + 1) // max(1, len(shared))
    ends = kept["receiver"].str.replace(r"<[qkv]>", "", regex=True)
    figure = go.Figure(
        _edges([
            Line(row.edge, place(row.sender, *shape), place(end, *shape), row.score,
                 {"q": "solid", "k": "dash", "v": "dot"}.get(row.receiver[-2:-1], "solid"),
                 selected in (None, row.edge, row.sender, end), edge_title(row.edge))
            for row, end in zip(kept.itertuples(), ends, strict=True)
        ])
    )  # fmt: skip
    used = [node for node in dict.fromkeys([*nodes, *ends]) if node in {*kept["sender"], *ends, *pinned}]
    at = [place(node, *shape) for node in used]
    figure.add_scatter(
        x=[x for x, _ in at], y=[y for _, y in at], mode="markers+text", showlegend=False,
        textposition=[_beside(node) for node in used],
        text=[escaped(f" {component(node)} {labels.get(node, '')}".rstrip()) for node in used], hoverinfo="text",
        hovertext=[escaped(f"{component(node)}, in the file {node}") for node in used],
        marker={"size": [22 if node == selected else 14 for node in used], "opacity": 1,
                "color": [ORANGE if node in pinned else GREY for node in used]},
        customdata=used,
        selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 1}},
    )  # fmt: skip
    figure.update_xaxes(range=[-1.9, max(2.0, shape[1] + 0.2)])  # room for the last head's name
    return _laid_out(figure, _counted(int(table["in_graph"].sum()), len(kept)), max(340, 56 * (2 * shape[0] + 2)),
                     "red helps, blue hurts; q solid, k dashed, v dotted")  # fmt: skip


def _beside(node: str) -> str:
    """Where a node's name stands: heads side by side have theirs above and below by turns."""
    head = re.fullmatch(r"a\d+\.h(\d+)", node)
    return "middle right" if head is None else "bottom center" if int(head[1]) % 2 else "top center"


def _numbers(form: str, nodes: Sequence[str]) -> list[int]:
    return [0, *(int(match[1]) for node in nodes if (match := re.match(form, node)))]


@dataclass(frozen=True)
class Line:
    """An edge as it is drawn; `clear` unless another one is selected."""

    name: str
    start: tuple[float, float]
    end: tuple[float, float]
    score: float
    dash: str = "solid"
    clear: bool = True
    title: str = ""
    """What stands on hover, where it is not the name."""


def _edges(lines: Sequence[Line]) -> list[go.Scatter]:
    """The edges, a trace for each look, and their middles, which can be hovered and clicked."""
    limit = max((abs(line.score) for line in lines), default=0.0) or 1.0
    looks: dict[tuple[str, str, float, bool], list[np.ndarray]] = {}
    middles = []
    for line in lines:
        width = WIDTHS[min(len(WIDTHS) - 1, int(len(WIDTHS) * abs(line.score) / limit))]
        points = _bent(line.start, line.end)
        look = (RED if line.score >= 0 else BLUE, line.dash, width, line.clear)
        looks.setdefault(look, []).append(np.concatenate([points, [[np.nan, np.nan]]]))
        middles.append(points[len(points) // 2])
    traces = []
    for (colour, dash, width, clear), parts in sorted(looks.items(), key=lambda item: (item[0][3], -item[0][2])):
        points = np.concatenate(parts)
        traces.append(go.Scatter(
            x=points[:, 0], y=points[:, 1], mode="lines", line={"color": colour, "width": width, "dash": dash},
            opacity=0.8 if clear else 0.12, hoverinfo="skip", showlegend=False,
        ))  # fmt: skip
    hidden = {"marker": {"opacity": 0}}
    return [*traces, go.Scatter(
        x=[x for x, _ in middles], y=[y for _, y in middles], mode="markers", marker={"size": 9, "opacity": 0},
        selected=hidden, unselected=hidden, customdata=[line.name for line in lines], showlegend=False,
        text=[escaped(f"{line.title or line.name}: {line.score:+.3g}") for line in lines],
        hovertemplate="%{text}<extra></extra>",
    )]  # fmt: skip


def _bent(start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    """Points of a line that leaves upwards and comes in from below, [point, 2]; one that goes straight up past a node
    swings out to the left."""
    (x0, y0), (x1, y1) = start, end
    t, rise = np.linspace(0, 1, 13), (y1 - y0) / 2
    swing = -0.45 * max(0.0, rise - 1) if abs(x1 - x0) < 0.3 else 0.0
    weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    return weights @ np.array([(x0, y0), (x0 + swing, y0 + rise), (x1 + swing, y1 - rise), (x1, y1)])


def _counted(total: int, drawn: int) -> str:
    left = f"; the strongest {drawn} are drawn" if total > drawn else ""
    return f"{total:,} edges{left}"


def _laid_out(figure: go.Figure, title: str, height: int, key: str) -> go.Figure:
    return figure.update_layout(
        title=title, height=height, plot_bgcolor=CLEAR, hovermode="closest", clickmode="event+select", dragmode=False,
        xaxis={"visible": False, "fixedrange": True}, yaxis={"visible": False, "fixedrange": True},
        margin={"l": 20, "r": 20, "t": 50, "b": 50},
        annotations=[{"text": key, "xref": "paper", "yref": "paper", "x": 0, "y": 0, "yshift": -35, "xanchor": "left",
                      "showarrow": False}],
    )  # fmt: skip


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
    figure.update_layout(plot_bgcolor=CLEAR, height=360, margin={"l": 60, "r": 20, "t": 30, "b": 50})
    figure.update_xaxes(title="share of the edges", type="log", tickvals=[0.001, 0.01, 0.1, 1], tickformat="~%")
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
        title=f"{len(table)} {what}s: Spearman {spearman:.2f}, Pearson {pearson:.2f}", plot_bgcolor=CLEAR, height=380,
        xaxis_title=f"exact: how much worse without the {what}", yaxis_title="estimate",
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
    )  # fmt: skip
    return figure


def comparison(table: pd.DataFrame, names: tuple[str, str]) -> go.Figure:
    """Every edge of `Circuit.compare` at its score in the second circuit (x) and in the first (y): those in both
    circuits, in one, in neither; on the line the scores agree."""
    one, two = table["in_graph"], table["in_graph_other"]
    kinds = [("in neither", ~one & ~two, "rgba(128,128,128,.35)"), (f"only in {names[0]}", one & ~two, RED),
             (f"only in {names[1]}", ~one & two, BLUE), ("in both", one & two, ORANGE)]  # fmt: skip
    figure = go.Figure()
    for name, which, colour in kinds:
        rows, size = table[which], 5 if name == "in neither" else 8
        figure.add_scatter(
            x=rows["score_other"], y=rows["score"], mode="markers", name=escaped(f"{name}: {len(rows):,}"),
            text=rows["edge"].map(edge_title).map(escaped), marker={"color": colour, "size": size},
            hovertemplate="%{text}<br>%{y:+.3g}, other %{x:+.3g}<extra></extra>",
        )  # fmt: skip
    both = table[["score", "score_other"]]
    ends = [float(both.min().min()), float(both.max().max())]
    line = {"color": GREY, "dash": "dot"}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    axis = {"gridcolor": "rgba(128,128,128,.2)", "zerolinecolor": "rgba(128,128,128,.4)"}
    first, second = (f"score in {escaped(name)}" for name in names)
    return figure.update_layout(
        xaxis=axis | {"title": second}, yaxis=axis | {"title": first},
        height=480, margin={"t": 20, "l": 60, "r": 20, "b": 90}, plot_bgcolor=CLEAR, showlegend=True,
        legend={"orientation": "h", "y": -0.16},
    )  # fmt: skip


def features(
    nodes: pd.DataFrame, edges: pd.DataFrame, *, selected: str | None = None, labels: Mapping[str, str] | None = None
) -> go.Figure:
    """A sparse feature circuit: a row a dictionary, from the first layer up, its nodes from the one that helps most to
    the one that hurts most; the logits above. Red helps, blue hurts; a marker's area and an edge's width are sizes.
    Clicks, `selected` and `labels` as of `circuit`."""
    rows = list(dict.fromkeys(nodes.sort_values("layer", kind="stable")["dictionary"]))
    nodes, labels = nodes.sort_values("score", ascending=False, kind="stable"), labels or {}
    at = {"logits": (0.5, float(len(rows)))}
    for y, name in enumerate(rows):
        mine = nodes.loc[nodes["dictionary"] == name, "node"]
        at |= {node: ((k + 0.5) / len(mine), float(y)) for k, node in enumerate(mine)}
    drawn = edges.sort_values("score", key=abs, ascending=False, kind="stable")[:MOST_EDGES]
    figure = go.Figure(
        _edges([
            Line(f"{edge.sender}->{edge.receiver}", at[edge.sender], at[edge.receiver], edge.score,
                 clear=selected in (None, edge.sender, edge.receiver, f"{edge.sender}->{edge.receiver}"))
            for edge in drawn.itertuples()
        ])
    )  # fmt: skip
    names, size = nodes["node"].tolist(), nodes["score"].abs() / (nodes["score"].abs().max() or 1.0)
    figure.add_scatter(
        x=[at[node][0] for node in names], y=[at[node][1] for node in names], mode="markers+text", showlegend=False,
        marker={"size": 8 + 20 * size**0.5, "color": np.where(nodes["score"] >= 0, RED, BLUE),
                "symbol": np.where(nodes["kind"] == "error", "triangle-up", "circle"),
                "opacity": 1, "line": {"width": [4 if node == selected else 0 for node in names], "color": ORANGE}},
        text=[escaped(labels.get(node, "")) for node in names], textposition="bottom center", customdata=names,
        hovertext=[escaped(f"{row.node}: {row.score:+.3g}") for row in nodes.itertuples()], hoverinfo="text",
        selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 1}},
    )  # fmt: skip
    title = f"{len(nodes)} nodes, {_counted(len(edges), len(drawn))}"
    _laid_out(figure, title, 260 + 120 * len(rows), "red helps, blue hurts; triangle: error")
    return figure.update_layout(
        yaxis={"visible": True, "tickvals": list(range(len(rows) + 1)), "showgrid": False, "zeroline": False,
               "ticktext": [*map(escaped, rows), "logits"]}, margin={"l": 90},
    )  # fmt: skip
