"""A run of effects, or a circuit, as one HTML file that needs nothing else: no network, no server. Everything from
outside is escaped."""

from __future__ import annotations

import html as escape
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.causal.effects import Effects
from interp.plots import effects as figure_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from interp.causal.circuits import Circuit
    from interp.causal.verdicts import Curve

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px}td,th{padding:2px 8px;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}pre{background:#f5f5f5;padding:1em;overflow:auto;font-size:12px}
"""
_SHOWN = ["component", "position", "normalized", "effect", "ci_low", "ci_high", "q", "baseline", "value", "n"]
N_ROWS = 30


def html(effects: Effects, name: str, run: dict[str, Any]) -> str:
    """The page: for each method and metric the figure and the strongest rows; groups beside random ones; what made
    it."""
    table = effects.table()
    parts = [_sentence(effects, run)]
    for (method, metric), rows in table.groupby(["method", "metric"], sort=False):
        parts.append(f"<h2>{escape.escape(f'{method}: {metric}')}</h2>")
        shown = rows[(rows.kind != "random") & rows.effect.notna()]
        if len(shown):
            figure = figure_of(shown, ticks=effects.about.get("ticks"))
            parts.append(drawn(figure, name))
        parts.append(_rows(shown))
        parts += _groups(rows)
    return page(name, parts, run, effects.about.get("prompts"))


def circuit_html(
    circuit: Circuit, name: str, run: dict[str, Any], curve: Curve | None = None, verdict: str = ""
) -> str:
    """The page of a circuit: figure, verdict, the curve of its sizes beside random circuits, strongest edges."""
    said = circuit.about
    model = (said.get("model") or {}).get("name", "a model")
    text = (
        f'{circuit.n_edges} of {len(circuit.graph.edges):,} edges of "{model}", task '
        f"{said.get('task', 'not recorded')}, found by {said.get('method', 'a method not recorded')}: a score says "
        f"how much worse {said.get('metric', 'the metric')} gets without the edge (positive: it helps)."
    )
    parts = [f"<p>{escape.escape(text)}</p>", f"<p>{escape.escape(verdict)}</p>" if verdict else ""]
    parts.append(drawn(circuit.figure(), name))
    if curve is not None:
        parts += ["<h2>Faithfulness by size</h2>", drawn(curve.figure(), f"{name}-curve")]
        parts += [table_html(curve.areas.reset_index(names="area")), table_html(curve.rows)]
    table = circuit.table()
    kept = table[table.in_graph]
    parts += ["<h2>Strongest edges</h2>", table_html(kept[:N_ROWS])]
    parts.append(f"<p>{len(kept) - N_ROWS:,} more edges in circuit.json.</p>" if len(kept) > N_ROWS else "")
    return page(name, parts, run, said.get("prompts"))


def page(name: str, parts: list[str], run: dict[str, Any], prompts: str | None = None) -> str:
    """A page that needs nothing else: `parts` are its HTML, escaped; what made the run stands at its end."""
    from plotly.offline import get_plotlyjs

    made = {key: run.get(key) for key in ("command", "config", "model", "seed", "versions", "started", "device")}
    said = escape.escape(json.dumps(made | {"prompts": prompts}, indent=1, ensure_ascii=False))
    title = escape.escape(name)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head><body><h1>{title}</h1>{''.join(parts)}"
        f"<h2>What made this</h2><pre>{said}</pre></body></html>\n"
    )


def drawn(figure: Figure, name: str) -> str:
    """A figure as a part of a page."""
    return figure.to_html(full_html=False, include_plotlyjs=False, config=camera(name))


def camera(name: str) -> dict[str, Any]:
    """Settings of a plotly figure whose one button, the camera, saves NAME.png; of plotly's other buttons one sends the
    figure to another machine."""
    picture = {"format": "png", "filename": name, "scale": 3}
    return {
        "displayModeBar": True,
        "displaylogo": False,
        "modeBarButtons": [["toImage"]],
        "toImageButtonOptions": picture,
    }


def _sentence(effects: Effects, run: dict[str, Any]) -> str:
    model = (run.get("model") or {}).get("name", "a model")
    text = (
        f'"{model}", task {effects.about.get("task", "not recorded")}: effect is after minus before, in the metric\'s '
        "unit, with its 95% bootstrap interval over prompts; q is a paired t-test's p, adjusted (Benjamini-Hochberg)."
    )
    return f"<p>{escape.escape(text)}</p>"


def _rows(rows: pd.DataFrame) -> str:
    order = rows.effect.abs().sort_values(ascending=False, kind="stable").index[:N_ROWS]
    left = len(rows) - len(order)
    more = f"<p>{left:,} more rows in effects.parquet.</p>" if left else ""
    columns = [column for column in _SHOWN if column in rows]
    return table_html(rows.loc[order, columns]) + more


def table_html(rows: pd.DataFrame) -> str:
    """A table of a page, escaped."""
    return rows.to_html(index=False, escape=True, float_format="{:.4g}".format, border=0)


def strip(head: str, tokens: Iterable[str], values: Iterable[float], limit: float) -> str:
    """A line of tokens, each on a blue as deep as its value is large, up to `limit`; escaped."""
    spans = "".join(
        f'<span style="background:rgba(33,102,172,{0.8 * min(max(value / limit, 0), 1):.3f})" title="{value:.3g}">'
        f"{escape.escape(token)}</span>"
        for token, value in zip(tokens, values, strict=True)
    )
    return f'<p style="white-space:pre-wrap"><b>{escape.escape(head)}</b> {spans}</p>'


def _groups(rows: pd.DataFrame) -> list[str]:
    """A line for each group: how its effect stands among those of random groups of its size."""
    found = []
    for group in rows[rows.kind == "group"].itertuples():
        like = rows[(rows.kind == "random") & rows.component.str.endswith(f" for {group.component}")]
        like = like[like.position == group.position]
        if len(like):
            stronger = int((like.effect.abs() < abs(group.effect)).sum())
            text = (
                f"{group.component}: effect {group.effect:+.3g}; {len(like)} random groups of its size and kinds: "
                f"{like.effect.min():+.3g} to {like.effect.max():+.3g}, mean {like.effect.mean():+.3g}; it is stronger "
                f"than {stronger} of them."
            )
            found.append(f"<p>{escape.escape(text)}</p>")
    return found
