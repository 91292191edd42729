"""Is it the circuit? Run it alone, and see what is left of the behaviour.

m(C) is the metric with every edge outside C removed, m(M) of the model, m(nothing) with all edges removed.

    faithfulness   f(C) = (m(C) - m(nothing)) / (m(M) - m(nothing)), of means over prompts: 1 all, 0 nothing
    CPR, CMD       integrals of f and of |1 - f| over the share of edges, trapezoids on a linear axis   2504.13151
    completeness   |f(C - K) - f(M - K)|: without K, does the circuit do what the model does?           2211.00593
    minimality     f(C) - f(C - e), of each edge

Intervals are 95% bootstraps over prompts. Random circuits have as many edges, drawn and pruned in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from interp.causal.circuits import Circuit
from interp.causal.edges import Patcher, single
from interp.causal.finished import Finished
from interp.causal.statistics import N_BOOTSTRAP
from interp.data.tasks import Task
from interp.decoder.model import Model
from interp.errors import InputError
from interp.plots import LOWER_IS_BETTER
from interp.progress import Progress

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all edges at which MIB takes circuits."""


@dataclass(frozen=True)
class Faithfulness:
    """`value` with its 95% interval, and those of random circuits of as many edges; means of the metric over the
    prompts for the model, the circuit and no edge at all. `float(f)` is the value."""

    value: float
    ci_low: float
    ci_high: float
    n_edges: int
    random: tuple[float, ...]
    metric: str
    model: float
    circuit: float
    nothing: float
    n: int

    def __float__(self) -> float:
        return self.value


def faithfulness(
    circuit: Circuit, model: Model, task: Task, *, n_edges: int | None = None, metric: str | None = None,
    baseline: str | None = None, n_random: int = 5, seed: int = 0, progress: bool = False,
    finished: Finished | None = None,
) -> Faithfulness:  # fmt: skip
    """f of the circuit, or of its `n_edges` strongest edges. Metric and baseline are those it was found with."""
    circuit = circuit.on(model) if n_edges is None else circuit.on(model).top(n_edges)
    patcher = _patcher(circuit, model, task, metric, baseline, finished)
    others = [circuit.random(circuit.n_edges, seed + k).kept for k in range(n_random)]
    values = _values(patcher, [circuit.kept, *others], "judging the circuit", progress)
    f, (low, high) = relative(values), interval(values, seed, lambda shares: shares[:, 0])
    whole, nothing, alone = values[:3].mean(1)
    return Faithfulness(
        float(f[0]), float(low), float(high), circuit.n_edges, tuple(map(float, f[1:])), patcher.metrics[0],
        float(whole), float(alone), float(nothing), len(task),
    )  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """Faithfulness by size. Rows of `rows`: share, n_edges (after pruning), faithfulness, ci_low, ci_high, and the
    random circuits' mean, least and largest. `areas`: CPR and CMD with intervals, and the random circuits'."""

    rows: pd.DataFrame
    areas: pd.DataFrame
    about: dict = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        return self.rows.copy()

    @property
    def cpr(self) -> float:
        return float(self.areas.loc["CPR", "value"])

    @property
    def cmd(self) -> float:
        return float(self.areas.loc["CMD", "value"])

    def figure(self) -> Figure:
        from interp.plots.circuits import curve

        return curve(self.rows)


def curve(
    circuit: Circuit, model: Model, task: Task, *, sizes: Sequence[float] = SIZES, absolute: bool | None = None,
    metric: str | None = None, baseline: str | None = None, n_random: int = 3, seed: int = 0,
    progress: bool = False, finished: Finished | None = None,
) -> Curve:  # fmt: skip
    """The circuits of the strongest edges at each size, one after the other."""
    circuit = circuit.on(model)
    patcher = _patcher(circuit, model, task, metric, baseline, finished)
    numbers = [max(1, round(size * len(circuit.graph.edges))) for size in sizes]
    ours = [circuit.top(n, absolute=absolute).kept for n in numbers]
    drawn = [circuit.random(int(kept.sum()), seed + k).kept for k in range(n_random) for kept in ours]
    values = _values(patcher, [*ours, *drawn], "judging circuits of all sizes", progress)
    f, n = relative(values), len(sizes)
    others = f[n:].reshape(n_random, n)
    own = np.concatenate([values[:2], values[2 : 2 + n]])
    low, high = interval(own, seed, lambda shares: shares)
    rows = pd.DataFrame({
        "share": sizes, "n_edges": [int(kept.sum()) for kept in ours], "faithfulness": f[:n], "ci_low": low,
        "ci_high": high, "random": others.mean(0), "random_low": others.min(0), "random_high": others.max(0),
    })  # fmt: skip
    areas = {}
    for name, height in (("CPR", lambda f: f), ("CMD", lambda f: np.abs(1 - f))):
        low, high = interval(own, seed, lambda shares, height=height: np.trapezoid(height(shares), sizes, axis=1))
        each = np.trapezoid(height(others), sizes, axis=1)
        areas[name] = {"value": float(np.trapezoid(height(f[:n]), sizes)), "ci_low": float(low), "ci_high": float(high),
                       "random": float(each.mean())}  # fmt: skip
    return Curve(rows, pd.DataFrame(areas).T, {"metric": patcher.metrics[0], "n": len(task)})


def completeness(
    circuit: Circuit, model: Model, task: Task, *, n_sets: int = 10, metric: str | None = None,
    baseline: str | None = None, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """For random sets K, each node of the circuit in it with probability 1/2: f without K of the circuit and of the
    model, and the gap between them (0: complete). A node leaves with all edges from it. Wang et al. 2022, section 4."""
    circuit = circuit.on(model)
    patcher, rng = _patcher(circuit, model, task, metric, baseline), np.random.default_rng(seed)
    able = [circuit.graph.senders.index(node) for node in circuit.nodes if node not in ("input", "logits")]
    sets = [[node for node in able if rng.random() < 0.5] for _ in range(n_sets)]
    kept = [np.where(np.isin(np.arange(len(circuit.kept)), gone)[:, None], False, whole)
            for whole in (circuit.kept, circuit.graph.allowed) for gone in sets]  # fmt: skip
    f = relative(_values(patcher, kept)).reshape(2, n_sets)
    names = [", ".join(circuit.graph.senders[node] for node in gone) for gone in sets]
    return pd.DataFrame({"without": names, "circuit": f[0], "model": f[1], "gap": np.abs(f[0] - f[1])})


def minimality(
    circuit: Circuit, model: Model, task: Task, *, metric: str | None = None, baseline: str | None = None
) -> pd.DataFrame:
    """For each edge of the circuit how much f falls when it alone is taken out of it; near 0 it is not needed there."""
    circuit = circuit.on(model)
    edges = circuit.edges
    kept = [circuit.kept & ~circuit.graph.mask([edge]) for edge in edges]
    f = relative(_values(_patcher(circuit, model, task, metric, baseline), [circuit.kept, *kept]))
    table = pd.DataFrame({"edge": edges, "loss_of_faithfulness": f[0] - f[1:]})
    return table.sort_values("loss_of_faithfulness", ascending=False, kind="stable", ignore_index=True)


def auroc(circuit: Circuit, truth: Iterable[str], *, absolute: bool = True) -> float:
    """The chance that an edge of the `truth` scores above another edge, equal scores counting half: .5 is chance, 1 all
    of them first. InputError where the truth is nothing or everything."""
    true = circuit.graph.mask(truth)[circuit.graph.allowed]
    n_true, n_other = int(true.sum()), int((~true).sum())
    if not n_true or not n_other:
        raise InputError(f"{n_true} of {len(true)} edges are true: AUROC needs some that are and some that are not.")
    scores = circuit.scores[circuit.graph.allowed]
    ranks = pd.Series(np.abs(scores) if absolute else scores).rank().to_numpy()
    return float((ranks[true].sum() - n_true * (n_true + 1) / 2) / (n_true * n_other))


def _patcher(
    circuit: Circuit, model: Model, task: Task, metric: str | None, baseline: str | None,
    finished: Finished | None = None,
) -> Patcher:  # fmt: skip
    metric = metric or circuit.about.get("metric") or task.default_metric
    baseline = baseline or circuit.about.get("baseline") or "counterfactual"
    return Patcher(model, task, metrics=[metric], baseline=baseline, finished=finished)


def _values(
    patcher: Patcher, kept: Sequence[Bool[np.ndarray, "sender receiver"]], name: str = "", progress: bool = False
) -> Float[np.ndarray, "set prompt"]:
    """The metric of the model, of nothing, and of each circuit alone; of pieces called `name`."""
    everything = patcher.graph.allowed
    removed = np.stack([everything & ~one for one in (everything, np.zeros_like(everything), *kept)])
    with Progress(name, len(removed) * len(patcher.task), progress) as bar:
        found = patcher.score(removed, name=name, advance=bar.advance)
    return found[patcher.metrics[0]].astype(np.float64)


def relative(values: Float[np.ndarray, "set prompt"], what: str = "edges") -> Float[np.ndarray, " circuit"]:
    """f of each circuit, of the metric of the model, of nothing and of each circuit. InputError where removing
    everything changes nothing."""
    whole, nothing, *rest = values.mean(1)
    if abs(whole - nothing) < 1e-6 * max(1, abs(whole)):
        raise InputError(f"the metric is {whole:.4g} with all {what} and with none: nothing to be faithful to.")
    return (np.array(rest) - nothing) / (whole - nothing)


def interval(values: Float[np.ndarray, "set prompt"], seed: int, of) -> tuple[np.ndarray, np.ndarray]:
    """95% percentile interval of `of(f [draw circuit])`, of values as `relative` has them; prompts drawn with
    replacement, the same for every set."""
    n = values.shape[1]
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=N_BOOTSTRAP) / n
    whole, nothing, *rest = values @ weights.T
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = ((np.array(rest) - nothing) / (whole - nothing)).T
    low, high = np.nanquantile(of(shares), [0.025, 0.975], axis=0)
    return np.asarray(low), np.asarray(high)


@dataclass(frozen=True)
class Agreement:
    """Scores of some edges or nodes beside what removing each alone does. `rows`: edge (or node), estimate, exact."""

    rows: pd.DataFrame
    spearman: float
    pearson: float

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Agreement:
        numbers = rows[["estimate", "exact"]]
        return cls(rows, float(numbers.rank().corr().iloc[0, 1]), float(numbers.corr().iloc[0, 1]))

    def table(self) -> pd.DataFrame:
        return self.rows.copy()

    def figure(self) -> Figure:
        from interp.plots.circuits import agreement

        return agreement(self.rows, self.spearman, self.pearson)


def verify(
    circuit: Circuit, model: Model, task: Task, *, n_edges: int = 200, metric: str | None = None,
    baseline: str | None = None, seed: int = 0, progress: bool = False, finished: Finished | None = None,
) -> Agreement:  # fmt: skip
    """The scores of `n_edges` edges drawn at random (all, if there are fewer) against exact patching of each."""
    circuit = circuit.on(model)
    graph, patcher = circuit.graph, _patcher(circuit, model, task, metric, baseline, finished)
    draw = np.random.default_rng(seed).permutation(len(graph.edges))[:n_edges]
    edges = [graph.edges[k] for k in sorted(draw)]
    removed = np.stack([np.zeros_like(graph.allowed), *single(graph, edges)])
    with Progress("patching edges", len(removed) * len(task), progress) as bar:
        values = patcher.score(removed, name="verify", advance=bar.advance)[patcher.metrics[0]]
    mean = values.astype(np.float64).mean(1)
    exact = (mean[1:] - mean[0]) * (1 if patcher.metrics[0] in LOWER_IS_BETTER else -1)
    rows = pd.DataFrame({"edge": edges, "estimate": [circuit.scores[graph.at[e]] for e in edges], "exact": exact})
    return Agreement.of(rows)
