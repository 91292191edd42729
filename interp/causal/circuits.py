"""Circuit: the edges of a model that do a task, with their scores; found, saved, and judged by running them.

`find_circuit(model, task, method="eap-ig")`; `circuit.faithfulness(model, task, n_edges=50)`
(`interp.causal.verdicts`). Scores say how much worse the metric gets without the edge, in its unit: positive helps.
Files are those of the MIB benchmark (Mueller et al. 2025, arXiv:2504.13151), which has a k and a v edge for every
query head: where heads share them, ours are written once for each head with an equal part of the score, and read as
their sum. No torch is imported before a circuit is sought or judged.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from interp import runs
from interp.causal import search
from interp.causal.effects import about
from interp.causal.graph import Graph
from interp.errors import InputError, UnknownName, WrongModel, nearest
from interp.progress import Progress

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from interp.causal.finished import Finished
    from interp.causal.verdicts import Curve, Faithfulness
    from interp.data.tasks import Task
    from interp.decoder.model import Model

METHODS = ("eap", "eap-ig", "eap-ig-activations", "exact", "acdc", "greedy")

SHARE, LEAST = 0.05, 20
"""Of all edges, how many a circuit has where neither a number nor a threshold is given; in a small graph more."""


@dataclass(frozen=True, eq=False)
class Circuit:
    """Scored edges, some of them `kept`; matrices are [sender, receiver] of `graph`. `about` says of what model and
    task, how it was found."""

    graph: Graph
    scores: Float[np.ndarray, "sender receiver"]
    kept: Bool[np.ndarray, "sender receiver"]
    about: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Circuit({self.n_edges} of {len(self.graph.edges):,} edges, {len(self.nodes)} nodes)"

    @property
    def n_edges(self) -> int:
        return int(self.kept.sum())

    @property
    def edges(self) -> list[str]:
        """The edges kept, by name, in the order of the graph."""
        return [edge for edge in self.graph.edges if self.kept[self.graph.at[edge]]]

    @property
    def nodes(self) -> list[str]:
        """The nodes that an edge kept begins or ends at."""
        read = {node for place in np.flatnonzero(self.kept.any(0)).tolist() for node in self._nodes_at(place)}
        sent = {self.graph.senders[sender] for sender in np.flatnonzero(self.kept.any(1))}
        return [node for node in self.graph.nodes if node in read | sent]

    def _nodes_at(self, receiver: int) -> list[str]:
        """Nodes that read at a place; of a group's heads those that something reads."""
        nodes = self.graph.readers[self.graph.receivers[receiver]]
        alive = [n for n in nodes if n == "logits" or self.kept[self.graph.senders.index(n)].any()]
        return alive if len(nodes) > 1 else list(nodes)

    def table(self) -> pd.DataFrame:
        """A row an edge, the strongest first: sender, receiver, score (positive: the metric is worse without it),
        in_graph."""
        rows = np.argwhere(self.graph.allowed)
        table = pd.DataFrame({
            "edge": self.graph.edges, "sender": [self.graph.senders[s] for s, _ in rows],
            "receiver": [self.graph.receivers[r] for _, r in rows], "score": self.scores[self.graph.allowed],
            "in_graph": self.kept[self.graph.allowed],
        })  # fmt: skip
        return table.sort_values("score", key=abs, ascending=False, kind="stable", ignore_index=True)

    def compare(self, other: Circuit) -> pd.DataFrame:
        """A row an edge that both graphs have: `score` here and `score_other`, `in_graph` and `in_graph_other`; the
        largest difference of scores first. InputError where the graphs share no edge. Scores of two methods, or of two
        metrics, are in two units: then only their order and what is in both can be held beside each other."""
        both = self.table().merge(other.table(), on=["edge", "sender", "receiver"], suffixes=("", "_other"))
        if not len(both):
            raise InputError(f"the circuits share no edge: {self.graph} and {other.graph}.")
        order = (both["score"] - both["score_other"]).abs().sort_values(ascending=False, kind="stable").index
        columns = ["edge", "sender", "receiver", "score", "score_other", "in_graph", "in_graph_other"]
        return both.loc[order, columns].reset_index(drop=True)

    def top(self, n_edges: int, *, absolute: bool | None = None) -> Circuit:
        """The circuit of the `n_edges` strongest edges, pruned of nodes that nothing reaches or that reach nothing
        (so it may have fewer). `absolute`: a strong edge may also be one that hurts; as it was found if not given."""
        absolute = self.about.get("absolute", True) if absolute is None else absolute
        ranked = np.abs(self.scores) if absolute else self.scores
        choose = search.grown if self.about.get("method") == "greedy" else search.strongest
        return replace(self, kept=self.graph.pruned(choose(self.graph, ranked, n_edges)))

    def above(self, threshold: float, *, absolute: bool = True) -> Circuit:
        """The circuit of the edges whose score is `threshold` or more, pruned."""
        ranked = np.abs(self.scores) if absolute else self.scores
        return replace(self, kept=self.graph.pruned((ranked >= threshold) & self.graph.allowed))

    def random(self, n_edges: int, seed: int) -> Circuit:
        """A circuit of as many edges, drawn at random: edges are added in the order drawn until, after pruning, it has
        `n_edges` or, where the last one completes several paths, the next larger number."""
        drawn = np.random.default_rng(seed).random(self.graph.allowed.shape)

        def of(n: int) -> Bool[np.ndarray, "sender receiver"]:
            return self.graph.pruned(search.strongest(self.graph, drawn, n))

        total = len(self.graph.edges)
        enough = bisect.bisect_left(range(total), n_edges, key=lambda n: int(of(n).sum()))
        return replace(self, kept=of(enough))

    def on(self, model: Model) -> Circuit:
        """This circuit on `model`'s graph. WrongModel where it is of another model or another shape."""
        made_on, graph = self.about.get("model") or {}, Graph.of(model)
        if made_on.get("fingerprint", model.fingerprint) != model.fingerprint:
            raise WrongModel(
                f'the circuit is of "{made_on.get("name")}" ({made_on["fingerprint"][:19]}), not of "{model.name}" '
                f"({model.fingerprint[:19]}): load that model."
            )
        if replace(self.graph, n_kv_heads=graph.n_kv_heads) != graph:
            raise WrongModel(f'the circuit is of {self.graph}, "{model.name}" is {graph}: load the model it is of.')
        return _regrouped(self, graph)

    def faithfulness(self, model: Model, task: Task, *, n_edges: int | None = None, **settings: Any) -> Faithfulness:
        """How much of what the model does the circuit does alone: 1 all, 0 as with every edge removed
        (`interp.causal.verdicts.faithfulness`). `n_edges`: of its strongest edges, the whole circuit if not given."""
        from interp.causal.verdicts import faithfulness

        return faithfulness(self, model, task, n_edges=n_edges, **settings)

    def curve(self, model: Model, task: Task, **settings: Any) -> Curve:
        """Faithfulness over sizes, beside random circuits; CPR and CMD (`interp.causal.verdicts.curve`)."""
        from interp.causal.verdicts import curve

        return curve(self, model, task, **settings)

    def figure(self) -> Figure:
        """The nodes by layer, and the edges between them: red where the edge helps, blue where it hurts."""
        from interp.plots.circuits import circuit

        return circuit(self.table(), self.graph.nodes)

    @property
    def html(self) -> str:
        """The circuit as a page that needs nothing else."""
        from interp.reports import circuit_html

        return circuit_html(self, "circuit", {"model": self.about.get("model")})

    def save(self, path: str | Path) -> None:
        """circuit.json into the folder `path`, or the file `path` if it ends in .json."""
        path = _file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        runs.write_json(path, to_mib(self))

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """A circuit.json, ours or MIB's. MissingFile, InputError."""
        return from_mib(runs.read_json(_file(path), "make a circuit with interp circuit find"), str(path))


def _file(path: str | Path) -> Path:
    return Path(path) if str(path).endswith(".json") else Path(path) / "circuit.json"


def to_mib(circuit: Circuit) -> dict[str, Any]:
    """The graph format of MIB, with `about` beside it."""
    graph, nodes, edges = circuit.graph, set(circuit.nodes) | {"input", "logits"}, {}
    for name in graph.edges:
        sender, _, receiver = name.partition("->")
        readers, which = graph.readers[receiver], receiver.partition("<")[2]
        for reader in readers:
            edges[f"{sender}->{reader}" + ("<" + which if which else "")] = {
                "score": float(circuit.scores[graph.at[name]]) / len(readers),
                "in_graph": bool(circuit.kept[graph.at[name]]),
            }
    cfg = {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": graph.parallel,
           "d_model": circuit.about.get("d_model")}  # fmt: skip
    return {"cfg": cfg, "nodes": {node: {"in_graph": node in nodes} for node in graph.nodes}, "edges": edges,
            "about": circuit.about | {"n_key_value_heads": graph.n_kv_heads}}  # fmt: skip


def from_mib(content: dict[str, Any], source: str) -> Circuit:
    """A circuit of what a file holds. InputError, naming the key, where it is not such a file."""
    try:
        cfg, nodes, edges = content["cfg"], content["nodes"], content["edges"]
        parallel = bool(cfg.get("parallel_attn_mlp", cfg.get("parallel_mlp", False)))
        graph = Graph(cfg["n_layers"], cfg["n_heads"], cfg["n_heads"], "m0" in nodes, parallel)
        scores, kept = np.zeros(graph.allowed.shape), np.zeros_like(graph.allowed)
        for name, edge in edges.items():
            place = graph.at[graph.edge(name)]
            scores[place], kept[place] = edge.get("score") or 0.0, bool(edge["in_graph"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{source}: not a circuit in MIB\'s format, which has "cfg", "nodes" and "edges": '
                         f"{type(error).__name__} {error}.") from None  # fmt: skip
    said = dict(content.get("about") or {"d_model": cfg.get("d_model")})
    n_kv_heads = said.pop("n_key_value_heads", graph.n_heads)
    return _regrouped(Circuit(graph, scores, kept, said), replace(graph, n_kv_heads=n_kv_heads))


def _regrouped(circuit: Circuit, graph: Graph) -> Circuit:
    """A circuit with a key and value for each head, on the graph in which heads share them: scores of a group's edges
    are summed, and an edge is kept if one of them is."""
    if circuit.graph == graph:
        return circuit
    scores, kept = np.zeros(graph.allowed.shape), np.zeros_like(graph.allowed)
    for name, place in circuit.graph.at.items():
        there = graph.at[graph.edge(name)]
        scores[there] += circuit.scores[place]
        kept[there] |= circuit.kept[place]
    return replace(circuit, graph=graph, scores=scores, kept=kept)


def find_circuit(
    model: Model,
    task: Task,
    *,
    method: str = "eap-ig",
    n_edges: int | None = None,
    threshold: float | None = None,
    absolute: bool = True,
    metric: str | None = None,
    baseline: str = "counterfactual",
    steps: int = 5,
    force: bool = False,
    seed: int = 0,
    progress: bool = False,
    finished: Finished | None = None,
) -> Circuit:
    """The edges with which the model does the task: the `n_edges` strongest, or those that score `threshold` or more;
    5% of all, and 20 at least, if neither is given. Then pruned of nodes without a parent or a child.

    `method`: "eap", "eap-ig", "eap-ig-activations" (estimates, `interp.causal.attribution`), "exact" (each edge alone
    patched), "acdc" (`interp.causal.search.acdc`; `threshold` is its tau, 1% of the way from the clean metric to that
    of no edge if not given), "greedy" (scores of eap-ig, grown from the logits). `absolute`: by the size of the
    score, so that what hurts is in it too; without it, only by how much it helps. `baseline`: what a removed edge
    carries, "counterfactual" or "mean". InputError for a task that the model cannot do (mean logit difference 0 or
    less), unless `force`. The same settings give the same circuit; `seed` is only written down.
    """
    from interp.causal.ability import check_ability
    from interp.causal.attribution import edge_scores

    if method not in METHODS:
        raise UnknownName(f'no method "{method}". Nearest: {nearest(method, METHODS)}.')
    graph, metric = Graph.of(model), metric or task.default_metric
    if threshold is not None and ((n_edges is not None and method != "acdc") or method == "greedy"):
        raise InputError(f"threshold {threshold:g} given with n_edges, or with greedy: one rule of size.")
    if n_edges is not None and not 1 <= n_edges <= len(graph.edges):
        raise InputError(f'{n_edges} edges given: "{model.name}" has {len(graph.edges):,}.')
    if not force:
        check_ability(model, task)
    settings = {
        "method": method,
        "metric": metric,
        "baseline": baseline,
        "absolute": absolute,
        "d_model": model.d_model,
    }
    kept = None
    if method in ("exact", "acdc"):
        scores, kept, threshold = _searched(model, task, method, metric, baseline, threshold, progress, finished)
    else:
        estimate = "eap-ig" if method == "greedy" else method
        settings |= {"steps": steps} if method != "eap" else {}
        scores = edge_scores(
            model, task, method=estimate, metric=metric, baseline=baseline, steps=steps, progress=progress,
            finished=finished,
        )  # fmt: skip
    said = about(model, task, seed, **settings, threshold=threshold)
    circuit = Circuit(graph, scores, graph.allowed, said)
    if kept is not None and n_edges is None:
        return replace(circuit, kept=graph.pruned(kept))
    if n_edges is None and threshold is not None:
        return circuit.above(threshold, absolute=absolute)
    return circuit.top(n_edges or min(len(graph.edges), max(LEAST, round(SHARE * len(graph.edges)))))


def _searched(
    model: Model, task: Task, method: str, metric: str, baseline: str, threshold: float | None, progress: bool,
    finished: Finished | None,
) -> tuple[np.ndarray, np.ndarray | None, float | None]:  # fmt: skip
    """Scores by running the model with edges removed; ACDC also says which are kept, and its threshold."""
    from interp.causal.edges import Patcher, single
    from interp.plots import LOWER_IS_BETTER

    patcher = Patcher(model, task, metrics=[metric], baseline=baseline, finished=finished)
    graph, sign = patcher.graph, 1 if metric in LOWER_IS_BETTER else -1

    def worse(values: np.ndarray) -> np.ndarray:
        return sign * values.astype(np.float64).mean(1)

    none, every = (worse(end[metric][None])[0] for end in patcher.ends())
    if method == "exact":
        with Progress("patching edges", len(graph.edges) * len(task), progress) as bar:
            values = patcher.score(single(graph, graph.edges), name="exact", advance=bar.advance)[metric]
        scores = np.zeros(graph.allowed.shape)
        scores[graph.allowed] = worse(values) - none
        return scores, None, threshold
    threshold = 0.01 * abs(every - none) if threshold is None else threshold
    with Progress("deciding edges", len(graph.edges), progress) as bar:
        scores, kept = search.acdc(patcher, worse, threshold, bar.advance)
    return scores, kept, threshold


def compare(circuits: Sequence[Circuit], names: Sequence[str]) -> pd.DataFrame:
    """Pairs of circuits of one graph: edges of each and of both, Jaccard overlap of edges and of nodes, Spearman
    correlation of all scores. InputError where the graphs differ."""
    rows = []
    for i, (a, first) in enumerate(zip(circuits, names, strict=True)):
        for b, second in zip(circuits[i + 1 :], names[i + 1 :], strict=True):
            if a.graph != b.graph:
                raise InputError(f"{first} is of {a.graph}, {second} of {b.graph}: only circuits of one model compare.")
            both, nodes = int((a.kept & b.kept).sum()), set(a.nodes) & set(b.nodes)
            scores = pd.DataFrame({"a": a.scores[a.graph.allowed], "b": b.scores[a.graph.allowed]}).rank()
            rows.append({
                "a": first, "b": second, "edges_a": a.n_edges, "edges_b": b.n_edges, "edges_both": both,
                "jaccard_edges": both / max(1, int((a.kept | b.kept).sum())),
                "jaccard_nodes": len(nodes) / max(1, len(set(a.nodes) | set(b.nodes))),
                "spearman": scores.corr().loc["a", "b"],
            })  # fmt: skip
    return pd.DataFrame(rows)
