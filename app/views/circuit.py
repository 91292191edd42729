"""With which edges, or which latents, a model does a task: the graph, how faithful it is, the node that was clicked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app import readers, state
from app.components.exports import exports
from app.components.links import links
from app.components.notes import label_box, labels, pin_box, pinned
from app.components.provenance import provenance
from interp.causal.circuits import Circuit
from interp.causal.graph import component, edge_title
from interp.plots import circuits as plots
from sae.circuits import FeatureCircuit

KINDS = ("circuit", "circuit-score", "circuit-features")
COMMAND = "interp circuit find --model bundled --task ioi --n 100 --out ioi-circuit"
SIZES = (5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000, 2000, 5000)
"""Numbers of edges that can be shown, beside that of the circuit as it was found."""
SCORE = "score: how much worse the metric is without it, in its unit; red (positive) helps, blue hurts"


def page() -> None:
    focus = state.read_focus()
    circuits = state.results("runs", kinds=KINDS)
    st.title("Circuit", anchor=False)
    if not circuits:
        state.empty("No circuit in this workspace yet. This finds one:", COMMAND)
        return
    try:
        run = state.result(focus.run, circuits) if focus.run else circuits[0]
        heading(run, circuits)
        if run.get("kind") == "circuit-features":
            of_latents(focus, run, readers.feature_circuit(run["path"]))
        else:
            of_edges(focus, run, readers.circuit(run["path"]))
    except state.UNREADABLE as error:
        state.problem("This circuit cannot be shown.", error)
        state.unfinished(focus.run, circuits)


def heading(run: dict[str, Any], circuits: list[dict[str, Any]]) -> None:
    config, left = run["config"], st.columns([6, 6])[0]
    told = {other["name"]: f"{other['name']} · {described(other)}" for other in circuits}
    with left:
        state.choose("Run", list(told), "run", run["name"], resets=("head", "edge", "n"),
                     format_func=lambda name: told[name])  # fmt: skip
    status = "" if run.get("status") == "done" else f" · {run.get('status')}: not everything may be there"
    st.text(f"{run['model'].get('name', 'model not recorded')} · task {config.get('task', 'not recorded')}{status}")


def described(run: dict[str, Any]) -> str:
    """A circuit in a few words: "ioi, eap-ig", "ioi, latents of demo"."""
    config = run["config"]
    how = {
        "circuit": config.get("method", "method not recorded"),
        "circuit-score": f"{config.get('circuit')} scored again",
        "circuit-features": f"latents of {', '.join(map(str, config.get('sae') or ['?']))}",
    }[run["kind"]]
    return f"{config.get('task', 'task not recorded')}, {how}"


def of_edges(focus: state.Focus, run: dict[str, Any], found: Circuit) -> None:
    nodes = {component(node): node for node in found.graph.nodes}
    known = {nodes[name]: label for name, label in labels(run).items() if name in nodes}
    pins = [nodes[name] for name in pinned(run) if name in nodes]
    left, right = st.columns([11, 9], gap="large")
    with left:
        verdict(run["path"])
        shown = sized(focus, found)
        table = shown.table()
    state.part(selection, run, shown, table, known, pins, left, right.container())
    with right:
        faithfulness(run["path"])
    exports(run, table, lambda: plots.circuit(table, found.graph.nodes, labels=known, pinned=pins))
    st.subheader("Where this comes from", anchor=False)
    lines = ["import interp", "", f"circuit = interp.Circuit.load({str(run['path'])!r})"]
    provenance(run, snippet="\n".join([*lines, f"circuit.top({shown.n_edges}).figure()"]))


def selection(
    focus: state.Focus, run: dict[str, Any], shown: Circuit, table: pd.DataFrame, known: dict[str, str],
    pins: list[str], left: Any, right: Any,
) -> None:  # fmt: skip
    """The graph, and the node or the edge that was clicked."""
    nodes = {component(node): node for node in shown.graph.nodes}
    kept = table[table["in_graph"]]
    inside = {name: node for name, node in nodes.items() if node in {*shown.nodes, *pins}}
    edge = focus.edge if focus.edge in set(kept["edge"]) else None
    node = None if edge else inside.get(component(focus.head or ""))  # a3.h4, as files have it, is L3H4
    with right:
        if edge:
            one_edge(run, kept[kept["edge"] == edge].iloc[0])
        elif node:
            one_node(run, node, kept)
        else:
            st.empty()  # a part writes into each of its places from the first
    with left:
        if (focus.edge or focus.head) and not (edge or node):
            st.text(f'"{focus.edge or focus.head}" is not among these edges and nodes: show more of them.')
        figure = readers.drawn(
            lambda: plots.circuit(table, shown.graph.nodes, selected=edge or node, labels=known, pinned=pins),
            run["path"], "circuit.json", of=(shown.n_edges, edge or node, tuple(known.items()), tuple(pins)),
        )  # fmt: skip
        graph(figure, {node: name for name, node in nodes.items()})
        st.text("Click a node, or an edge at its middle; or choose a node:")
        state.choose("Node", list(inside), "head", component(node) if node else None, empty="choose a node",
                     resets=("edge",), label_visibility="collapsed")  # fmt: skip
        st.text("The strongest edges; choose a row")
        edge_table(kept, "edges", height=300)


def one_edge(run: dict[str, Any], row: pd.Series) -> None:
    st.subheader(state.escape(edge_title(row["edge"])), anchor=False)
    st.metric("score", f"{row['score']:+.4g}", help=SCORE)
    for end in (row["sender"], row["receiver"]):
        links(run, component(end), here=state.CIRCUIT)


def one_node(run: dict[str, Any], node: str, kept: pd.DataFrame) -> None:
    """A node: where else it can be looked at, its edges, its label."""
    name = component(node)
    st.subheader(state.escape(name), anchor=False)
    links(run, name, here=state.CIRCUIT)
    ends = kept["receiver"].str.replace(r"<[qkv]>", "", regex=True)
    st.text("Its edges, the strongest first; choose a row")
    edge_table(kept[(kept["sender"] == node) | (ends == node)], f"edges-{node}", height=240)
    pin_box(run, name)
    label_box(run, name)


def verdict(folder: Path) -> None:
    """What was found out by running it, in words."""
    path = state.inside(folder / "verdict.txt")
    if path.exists():
        st.text(path.read_text(encoding="utf-8").strip())
    else:
        st.text("Not judged: no verdict.txt in this run. `interp circuit score` judges it.")


def sized(focus: state.Focus, found: Circuit) -> Circuit:
    """The circuit as it was found, or of the number of edges chosen."""
    total = len(found.graph.edges)
    sizes = sorted({found.n_edges, total, *(size for size in SIZES if size < total)} - {0})
    key = "circuit-size"
    wanted = focus.n or found.n_edges
    st.session_state[key] = min(sizes, key=lambda size: abs(size - wanted))
    n = st.select_slider(
        "Strongest edges", sizes, key=key, on_change=lambda: state.write_focus(n=st.session_state[key]),
        format_func=lambda size: f"{size} (as found)" if size == found.n_edges else str(size),
        help="Fewer may be drawn: an edge on no path from the input to the logits is left out.",
    )  # fmt: skip
    return found if n == found.n_edges else found.top(n)


def graph(figure: Any, names: dict[str, str]) -> None:
    """The figure; a click on a node puts its component into the address, one on an edge the edge."""

    def pick() -> None:
        name = state.clicked("graph")
        if isinstance(name, str):
            state.write_focus(**({"edge": name, "head": None} if "->" in name else
                                 {"head": names.get(name, name), "edge": None}))  # fmt: skip

    st.plotly_chart(figure, key="graph", on_select=pick, config={"displayModeBar": False})
    st.text(SCORE)


def edge_table(table: pd.DataFrame, key: str, *, height: int) -> None:
    names = table["edge"].tolist()

    def pick() -> None:
        row = state.picked(key)
        if row is not None and row < len(names):
            state.write_focus(edge=names[row], head=None)

    shown = pd.DataFrame({"edge": [edge_title(name) for name in names], "score": table["score"].tolist(),
                          "in circuit.json": names})  # fmt: skip
    st.dataframe(
        shown, key=key, on_select=pick, selection_mode="single-row", hide_index=True, height=height,
        column_config={"score": st.column_config.NumberColumn(format="%+.4f", help=SCORE)},
    )  # fmt: skip


def faithfulness(folder: Path) -> None:
    """The curve of faithfulness by size beside random circuits, and its areas."""
    st.subheader("Faithfulness by size", anchor=False)
    if not (folder / "curve.parquet").exists():
        st.text("Not measured yet: it appears when the run has judged its circuit.")
        return
    rows = readers.table(folder, "curve.parquet")
    figure = readers.drawn(lambda: plots.curve(rows), folder, "curve.parquet", of="curve")
    st.plotly_chart(figure, key="curve", config={"displayModeBar": False})
    if (folder / "areas.parquet").exists():
        for row in readers.table(folder, "areas.parquet").itertuples():
            better = {"CPR": "higher is better", "CMD": "lower is better"}.get(row.area, "")
            st.text(f"{row.area} {row.value:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]; random circuits "
                    f"{row.random:.3f}; {better}")  # fmt: skip
    with st.expander("The curve as a table"):
        st.dataframe(rows, hide_index=True, column_config=state.number_columns(rows))


def of_latents(focus: state.Focus, run: dict[str, Any], found: FeatureCircuit) -> None:
    known = labels(run)
    left, right = st.columns([11, 9], gap="large")
    with left:
        shown = of_size(focus, found, key=f"nodes-{run['name']}")
        nodes, edges = shown.nodes[shown.nodes["in_circuit"]], shown.edges
    state.part(selected_latent, run, nodes, edges, known, left, right.container())
    with right:
        st.subheader("How much of the behaviour it holds", anchor=False)
        st.text("faithfulness: 1 all, 0 nothing; completeness: 0, nothing is left without it")
        if (run["path"] / "verdict.parquet").exists():
            rows = readers.table(run["path"], "verdict.parquet")
            order = ["measure", "errors", *(name for name in rows if name not in ("measure", "errors"))]
            st.dataframe(rows, hide_index=True, column_order=order, column_config=state.number_columns(rows))
        else:
            st.text("Not measured yet: it appears when the run has judged its circuit.")
    exports(run, found.nodes, lambda: plots.features(nodes, edges, labels=known))
    st.subheader("Where this comes from", anchor=False)
    lines = ["import sae", "", f"circuit = sae.FeatureCircuit.load({str(run['path'])!r})"]
    provenance(run, snippet="\n".join([*lines, f"circuit.top({len(nodes)}).figure()"]))


def selected_latent(
    focus: state.Focus, run: dict[str, Any], nodes: pd.DataFrame, edges: pd.DataFrame, known: dict[str, str],
    left: Any, right: Any,
) -> None:  # fmt: skip
    """The graph of latents, and the one that was clicked."""
    node = focus.head if focus.head in set(nodes["node"]) else None
    with right:
        if node:
            one_latent(run, nodes[nodes["node"] == node].iloc[0], edges)
        else:
            st.empty()
    with left:
        if focus.head and not node:
            st.text(f'"{focus.head}" is not among these nodes: show more of them.')
        figure = readers.drawn(
            lambda: plots.features(nodes, edges, selected=node, labels=known), run["path"], "nodes.parquet",
            of=(len(nodes), node, tuple(known.items())),
        )  # fmt: skip
        graph(figure, {})
        st.text("Click a node; or choose one:")
        state.choose("Node", nodes["node"].tolist(), "head", node, empty="choose a node", resets=("edge",),
                     label_visibility="collapsed")  # fmt: skip
        st.text("The strongest nodes; choose a row")
        node_table(nodes)


def of_size(focus: state.Focus, found: FeatureCircuit, *, key: str) -> FeatureCircuit:
    """The circuit, or its strongest nodes, as many as were chosen."""
    if found.n_nodes < 2:
        return found
    st.session_state[key] = min(max(1, focus.n or found.n_nodes), found.n_nodes)
    n = st.slider("Strongest nodes", 1, found.n_nodes, key=key,
                  on_change=lambda: state.write_focus(n=st.session_state[key]))  # fmt: skip
    return found if n == found.n_nodes else found.top(n)


def one_latent(run: dict[str, Any], row: pd.Series, edges: pd.DataFrame) -> None:
    """A latent, or the error of a dictionary."""
    node = row["node"]
    st.subheader(state.escape(node), anchor=False)
    what = "what the dictionary misses" if row["kind"] == "error" else f"latent {row['latent']}"
    st.metric("score", f"{row['score']:+.4g}", help=SCORE)
    st.text(f"{what}, at {row['site']}")
    links(run, node, here=state.CIRCUIT)
    touching = edges[(edges["sender"] == node) | (edges["receiver"] == node)]
    if len(touching):
        st.dataframe(touching, hide_index=True, height=min(200, 38 + 35 * len(touching)),
                     column_config=state.number_columns(touching))  # fmt: skip
    else:
        st.text("None of its edges was scored.")
    label_box(run, node)


def node_table(nodes: pd.DataFrame) -> None:
    names = nodes["node"].tolist()

    def pick() -> None:
        row = state.picked("nodes")
        if row is not None and row < len(names):
            state.write_focus(head=names[row], edge=None)

    st.dataframe(
        nodes[["node", "kind", "site", "score"]], key="nodes", on_select=pick, selection_mode="single-row",
        hide_index=True, height=300, column_config={"score": st.column_config.NumberColumn(format="%+.4f")},
    )  # fmt: skip


page()
