"""Sparse feature circuits: the latents and errors with which a model does a task (Marks et al. 2024, 2403.19647).

    circuit = sae.find_feature_circuit(model, task, {"demo": dct}, n_nodes=50)
    circuit.faithfulness(model, others, {"demo": dct})

Nodes are `<name>/<latent>` and `<name>/error`, the error of a dictionary one node; scores say how much worse the metric
gets when a node alone has its corrupted (or mean) value, in the metric's unit: positive helps (`sae.attribution`).
Every verdict is of runs in which exactly the nodes kept are left to the model (`sae.nodes`), never of scores. No torch
is imported before a circuit is sought or judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xxhash
from jaxtyping import Bool, Float

from interp import runs
from interp.causal.effects import about
from interp.decoder.sites import layer_of, short
from interp.errors import InputError, MissingFile, UnknownComponent, WrongModel, nearest
from interp.plots import LOWER_IS_BETTER
from interp.progress import Progress

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from interp.causal.finished import Finished
    from interp.causal.verdicts import Agreement
    from interp.data.tasks import Task
    from interp.decoder.model import Model
    from sae.dictionary import Dictionary
    from sae.nodes import Patcher, Place


@dataclass(frozen=True)
class Verdict:
    """Faithfulness and completeness of a node set. `rows`: measure, value, ci_low, ci_high (95% bootstrap over
    prompts), and the mean, least and largest of random node sets. Means of the metric over the prompts for the model,
    the circuit and no node at all. `float(v)` is the faithfulness."""

    rows: pd.DataFrame
    n_nodes: int
    metric: str
    model: float
    circuit: float
    nothing: float
    n: int

    def __float__(self) -> float:
        return float(self.rows["value"].iloc[0])

    def table(self) -> pd.DataFrame:
        return self.rows.copy()


@dataclass(frozen=True, eq=False)
class FeatureCircuit:
    """Scored nodes, some of them in the circuit, and edges between those. `nodes`: node, dictionary, kind (latent,
    error), latent (-1 of an error), site, layer, score, in_circuit, the strongest first; latents that never differ
    between clean and corrupted prompts are left out. `edges`: sender, receiver (a node or "logits"), score. `about`
    says of what model, task and dictionaries, how it was found."""

    nodes: pd.DataFrame
    edges: pd.DataFrame
    about: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"FeatureCircuit({self.n_nodes} of {len(self.nodes):,} active nodes, {len(self.edges):,} edges)"

    @property
    def kept(self) -> list[str]:
        """The nodes in the circuit, the strongest first."""
        return self.nodes.loc[self.nodes["in_circuit"], "node"].tolist()

    @property
    def n_nodes(self) -> int:
        return int(self.nodes["in_circuit"].sum())

    def table(self) -> pd.DataFrame:
        """A row a node, the strongest first."""
        return self.nodes.copy()

    def top(self, n_nodes: int, *, absolute: bool | None = None) -> FeatureCircuit:
        """The circuit of the `n_nodes` strongest nodes; edges stay those that were estimated, between nodes still in.
        `absolute`: a strong node may also be one that hurts; as it was found if not given."""
        absolute = self.about.get("absolute", True) if absolute is None else absolute
        strongest = self.nodes["score"].abs() if absolute else self.nodes["score"]
        inside = strongest.rank(method="first", ascending=False) <= n_nodes
        return self.of(self.nodes.loc[inside, "node"])

    def of(self, names: Iterable[str]) -> FeatureCircuit:
        """The circuit of these nodes. UnknownComponent for one that is not among the active nodes."""
        names = set(names)
        if missing := sorted(names - set(self.nodes["node"])):
            raise UnknownComponent(
                f'no active node "{missing[0]}". Nearest: {nearest(missing[0], self.nodes["node"])}.'
            )
        nodes = self.nodes.assign(in_circuit=self.nodes["node"].isin(names))
        between = self.edges["sender"].isin(names) & self.edges["receiver"].isin({*names, "logits"})
        return replace(self, nodes=nodes, edges=self.edges[between].reset_index(drop=True))

    def figure(self) -> Figure:
        """The nodes by dictionary and the edges between them: red where a node or edge helps, blue where it hurts."""
        from interp.plots.circuits import features

        return features(self.nodes[self.nodes["in_circuit"]], self.edges)

    def faithfulness(
        self, model: Model, task: Task, dictionaries: Mapping[str, Dictionary], *, errors: bool | None = None,
        metric: str | None = None, baseline: str | None = None, n_random: int = 5, seed: int = 0,
        progress: bool = False, finished: Finished | None = None,
    ) -> Verdict:  # fmt: skip
        """How much of what the model does is done with these nodes alone: (m(C) - m(nothing)) / (m(M) - m(nothing)) of
        means over prompts, 1 all, 0 as with no node; and completeness, the same of all other nodes without these (0:
        nothing is done without them), as in section 4 of the paper.

        `errors`: True keeps every error node, False none, None those in the circuit. Random sets have the same error
        nodes and as many latents, drawn from the active ones. Metric and baseline are those it was found with.
        """
        from interp.causal.verdicts import interval, relative

        patcher = self._patcher(model, task, dictionaries, metric, baseline, finished)
        own = self._chosen(self.kept, errors)
        sets = [own, *(self._random(own, seed + k) for k in range(n_random))]
        kept = np.stack([mask_of(patcher.places, names) for names in sets])
        ends = np.stack([np.ones(patcher.n_nodes, bool), np.zeros(patcher.n_nodes, bool)])
        every, name = np.concatenate([ends, kept, ~kept]), f"faithfulness, errors {errors}"
        with Progress("judging the circuit", len(every) * len(task), progress) as bar:
            values = patcher.score(every, name=name, advance=bar.advance).astype(np.float64)
        f = relative(values, "nodes").reshape(2, len(sets))
        low, high = interval(values, seed, lambda shares: shares[:, [0, len(sets)]])
        others = f[:, 1:] if n_random else np.full((2, 1), np.nan)
        rows = pd.DataFrame({
            "measure": ["faithfulness", "completeness"], "value": f[:, 0], "ci_low": low, "ci_high": high,
            "random": others.mean(1), "random_low": others.min(1), "random_high": others.max(1),
        })  # fmt: skip
        whole, nothing, alone = values[:3].mean(1)
        return Verdict(rows, len(own), patcher.metric, float(whole), float(alone), float(nothing), len(task))

    def verify(
        self, model: Model, task: Task, dictionaries: Mapping[str, Dictionary], *, n_nodes: int = 200,
        metric: str | None = None, baseline: str | None = None, seed: int = 0, progress: bool = False,
        finished: Finished | None = None,
    ) -> Agreement:  # fmt: skip
        """The scores of `n_nodes` active nodes drawn at random (all, if there are fewer) against exact patching of
        each: the node alone as it is elsewhere, all others following."""
        from interp.causal.verdicts import Agreement

        patcher = self._patcher(model, task, dictionaries, metric, baseline, finished)
        draw = np.random.default_rng(seed).permutation(len(self.nodes))[:n_nodes]
        rows = self.nodes.iloc[np.sort(draw)][["node", "score"]].rename(columns={"score": "estimate"})
        alone = np.stack([mask_of(patcher.places, [])] + [mask_of(patcher.places, [node]) for node in rows["node"]])
        with Progress("patching nodes", len(alone) * len(task), progress) as bar:
            mean = patcher.score(~alone, name="verify", advance=bar.advance).astype(np.float64).mean(1)
        sign = 1 if patcher.metric in LOWER_IS_BETTER else -1
        return Agreement.of(rows.assign(exact=sign * (mean[1:] - mean[0])).reset_index(drop=True))

    def _patcher(
        self, model: Model, task: Task, dictionaries: Mapping[str, Dictionary], metric: str | None,
        baseline: str | None, finished: Finished | None,
    ) -> Patcher:  # fmt: skip
        """WrongModel for another model than the circuit's, InputError for other dictionaries."""
        from sae.nodes import Patcher, places_of

        made_on = self.about["model"]
        if made_on["fingerprint"] != model.fingerprint:
            raise WrongModel(
                f'the circuit is of "{made_on["name"]}" ({made_on["fingerprint"][:19]}), not of "{model.name}" '
                f"({model.fingerprint[:19]}): load that model."
            )
        places = places_of(model, dictionaries)
        if (given := _described(places)) != self.about["dictionaries"]:
            raise InputError(
                f"the circuit is of the dictionaries {_spelled(self.about['dictionaries'])}; given are "
                f"{_spelled(given)}: load those it was found with."
            )
        return Patcher(
            model, task, places, metric=metric or self.about["metric"], baseline=baseline or self.about["baseline"],
            finished=finished,
        )  # fmt: skip

    def _chosen(self, names: Sequence[str], errors: bool | None) -> list[str]:
        """The nodes that are kept where all error nodes are, or none."""
        if errors is None:
            return list(names)
        latents = [name for name in names if not name.endswith("/error")]
        return latents + [f"{name}/error" for name in self.about["dictionaries"] if errors]

    def _random(self, names: Sequence[str], seed: int) -> list[str]:
        """The same error nodes, and as many active latents drawn at random."""
        errors = [name for name in names if name.endswith("/error")]
        pool = self.nodes.loc[self.nodes["kind"] == "latent", "node"].to_numpy()
        return errors + np.random.default_rng(seed).permutation(pool)[: len(names) - len(errors)].tolist()

    def save(self, path: str | Path) -> None:
        """nodes.parquet, edges.parquet and feature_circuit.json (`about`) into the folder `path`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self.nodes.to_parquet(path / "nodes.parquet", index=False)
        self.edges.to_parquet(path / "edges.parquet", index=False)
        runs.write_json(path / "feature_circuit.json", self.about)

    @classmethod
    def load(cls, path: str | Path) -> FeatureCircuit:
        """What `save` wrote. MissingFile where there is none."""
        path = Path(path)
        said = runs.read_json(path / "feature_circuit.json", "make one with interp circuit features")
        for name in ("nodes.parquet", "edges.parquet"):
            if not (path / name).exists():
                raise MissingFile(f"no {name} in {path}: make it again with interp circuit features.")
        return cls(pd.read_parquet(path / "nodes.parquet"), pd.read_parquet(path / "edges.parquet"), said)


def find_feature_circuit(
    model: Model,
    task: Task,
    dictionaries: Mapping[str, Dictionary],
    *,
    method: str = "ig",
    n_nodes: int = 50,
    absolute: bool = True,
    metric: str | None = None,
    baseline: str = "counterfactual",
    steps: int = 10,
    force: bool = False,
    seed: int = 0,
    progress: bool = False,
    finished: Finished | None = None,
) -> FeatureCircuit:
    """The `n_nodes` latents and errors of `dictionaries` (name -> dictionary) that matter most, and their edges.

    `method`: "atp" (the slope on the clean run) or "ig" (averaged over `steps` points from elsewhere to clean).
    `absolute`: by the size of the score, so that what hurts is in it too. `baseline`: what a node that is not kept
    has, its "counterfactual" value or the "mean". InputError for a task that the model cannot do (mean logit difference
    0 or less), unless `force`. Dictionaries are moved to the model's device. `seed` is only written down.
    """
    from interp.causal.ability import check_ability
    from sae.attribution import Settings, edge_scores, node_scores
    from sae.nodes import places_of

    settings = Settings(method, metric or task.default_metric, baseline, steps)
    settings.check(task)
    if n_nodes < 1:
        raise InputError(f"{n_nodes} nodes given: a circuit has one or more.")
    places = places_of(model, dictionaries)
    if not force:
        check_ability(model, task)
    scores = node_scores(model, task, places, settings, progress=progress, finished=finished)
    nodes = _table(places, scores)
    said = about(
        model, task, seed, method=method, metric=settings.metric, baseline=baseline, absolute=absolute, steps=steps,
        dictionaries=_described(places),
    )  # fmt: skip
    circuit = FeatureCircuit(nodes, _edges([], np.zeros((0, 1))), said).top(n_nodes)
    numbers = [int(n) for n in np.flatnonzero(mask_of(places, circuit.kept))]
    found = edge_scores(model, task, places, numbers, settings, progress=progress, finished=finished)
    every = [name for place in places for name in place.names]
    return replace(circuit, edges=_edges([every[n] for n in numbers], found))


def mask_of(places: Sequence[Place], names: Iterable[str]) -> Bool[np.ndarray, " node"]:
    """Which of all nodes are named."""
    by_name, mask = {place.name: place for place in places}, np.zeros(places[-1].error + 1, bool)
    for name in names:
        of, _, which = name.rpartition("/")
        place = by_name[of]
        mask[place.error if which == "error" else place.start + int(which)] = True
    return mask


def _described(places: Sequence[Place]) -> dict[str, dict[str, Any]]:
    """What tells the dictionaries of a circuit from others."""

    def digest(place: Place) -> str:
        return xxhash.xxh3_64_hexdigest(place.dictionary.W_dec.detach().float().cpu().contiguous().numpy().tobytes())

    return {
        place.name: {"site": short(place.reads), "out_site": short(place.writes), "d_sae": place.dictionary.d_sae,
                     "decoder": digest(place)}
        for place in places
    }  # fmt: skip


def _spelled(described: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f'"{name}" ({d["site"]}, {d["d_sae"]} latents, {d["decoder"]})' for name, d in described.items())


def _table(places: Sequence[Place], scores: Float[np.ndarray, " node"]) -> pd.DataFrame:
    """The nodes whose score is not 0, and the errors; the strongest first."""
    tables = []
    for place in places:
        d_sae = place.dictionary.d_sae
        table = pd.DataFrame({
            "node": place.names, "dictionary": place.name, "kind": ["latent"] * d_sae + ["error"],
            "latent": [*range(d_sae), -1], "site": short(place.writes), "layer": layer_of(place.writes),
            "score": scores[place.nodes], "in_circuit": False,
        })  # fmt: skip
        tables.append(table[(table["score"] != 0) | (table["kind"] == "error")])
    return pd.concat(tables).sort_values("score", key=abs, ascending=False, kind="stable", ignore_index=True)


def _edges(names: Sequence[str], scores: Float[np.ndarray, "sender receiver"]) -> pd.DataFrame:
    """Edges whose score is not 0, the strongest first."""
    ends = [*names, "logits"]
    rows = np.argwhere(scores != 0)
    table = pd.DataFrame({
        "sender": pd.Series([names[s] for s, _ in rows], dtype="str"),
        "receiver": pd.Series([ends[r] for _, r in rows], dtype="str"), "score": scores[scores != 0],
    })  # fmt: skip
    return table.sort_values("score", key=abs, ascending=False, kind="stable", ignore_index=True)
