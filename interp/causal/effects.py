"""Effects: what an intervention did, per component and per prompt, with its uncertainty. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from interp import runs
from interp.causal.statistics import adjusted, bootstrap, mean_and_std, p_values
from interp.errors import InputError, MissingFile

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PLACE = ["component", "kind", "layer", "index", "position"]


@dataclass(frozen=True)
class Effects:
    """The rows of the contract's effects.parquet and every prompt's value behind them.

    `values[method, metric]` is float32 [row, prompt], in the order of the table's rows of that method and metric;
    `baseline[metric]` is [prompt], before the intervention. NaN where a prompt has nothing to score (a class of tokens
    that it does not have). `about` is what run.json says of model, task, seed and versions.
    """

    rows: pd.DataFrame
    values: Mapping[tuple[str, str], np.ndarray]
    baseline: Mapping[str, np.ndarray]
    about: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """One row per component x position x method x metric: `effect` is after minus before, in the metric's unit,
        with its 95% bootstrap interval over prompts. `q` is the p of a paired t-test, adjusted over the components of a
        method and metric (Benjamini & Hochberg 1995): of the rows with q < .05 at most 5% are expected to be chance.
        Rows of kind "random" are groups drawn at random, to hold a group of the same size against."""
        return self.rows.copy()

    def top(self, n: int = 3) -> pd.DataFrame:
        """The `n` rows whose mean effect is farthest from 0."""
        rows = self.rows[self.rows.kind != "random"]
        return rows.loc[rows.effect.abs().sort_values(ascending=False, kind="stable").index[:n]].copy()

    def figure(self) -> Figure:
        """A map of the effects: layer x head, layer x position, or bars."""
        from interp.plots import effects

        return effects(self.rows[self.rows.kind != "random"], ticks=self.about.get("ticks"))

    def by_class(self, method: str | None = None) -> Figure:
        """The effects of a method (the first if not named) on a metric beside those on each class of token, with their
        intervals. InputError where the run was not broken down by class."""
        from interp.plots.classes import by_class

        if not any("-" in metric for metric in self.rows.metric):
            raise InputError(
                'these effects are not broken down by class of token: ablate with classes, e.g. "built-in".'
            )
        return by_class(self.rows[self.rows.kind != "random"], method=method)

    def of(self, method: str, metric: str) -> np.ndarray:
        """Effect of each row on each prompt, float64 [row, prompt]."""
        return self.values[method, metric].astype(np.float64) - self.baseline[metric].astype(np.float64)

    def compare(self, other: Effects, *, seed: int = 0) -> pd.DataFrame:
        """Rows of both runs with `difference` = this effect minus the other's, paired by prompt; its interval and q.

        Rows are matched by component, position, method and metric; the methods may differ where each run has one.
        InputError where the prompts are not the same ones or no row is in both.
        """
        mine, theirs = self.about.get("prompts"), other.about.get("prompts")
        if mine != theirs:
            raise InputError(
                f"effects of two sets of prompts ({mine} and {theirs}): only the same prompts can be paired."
            )
        single = len(set(self.rows.method)) == len(set(other.rows.method)) == 1
        tables = []
        for (method, metric), group in self.rows.groupby(["method", "metric"], sort=False):
            partner = other.rows.method.iloc[0] if single else method
            if (partner, metric) not in other.values:
                continue
            rows = other.rows[(other.rows.method == partner) & (other.rows.metric == metric)].reset_index(drop=True)
            both = group.reset_index(drop=True).reset_index(names="a").merge(
                rows.reset_index(names="b")[["b", "component", "position", "effect"]], on=["component", "position"],
                suffixes=("", "_other"),
            )  # fmt: skip
            difference = self.of(method, metric)[both["a"]] - other.of(partner, metric)[both["b"]]
            low, high = bootstrap(difference, seed)
            tables.append(
                both[[*PLACE, "method", "metric", "effect", "effect_other"]].assign(
                    difference=mean_and_std(difference)[0], ci_low=low, ci_high=high, q=adjusted(p_values(difference)),
                    n=np.isfinite(difference).sum(1),
                )
            )  # fmt: skip
        if not sum(map(len, tables)):
            raise InputError("the two runs have no row in common: compare runs of the same components and metric.")
        return pd.concat(tables, ignore_index=True)

    def save(self, path: str | Path) -> None:
        """effects.parquet and effects.h5 into the folder `path`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self.rows.to_parquet(path / "effects.parquet", index=False)
        with h5py.File(path / "effects.h5", "w") as file:
            for (method, metric), values in self.values.items():
                file[f"values/{method}/{metric}"] = values.astype(np.float32)
            for metric, values in self.baseline.items():
                file[f"baseline/{metric}"] = values.astype(np.float32)
            file.attrs["about"] = json.dumps(self.about)

    @classmethod
    def load(cls, path: str | Path) -> Effects:
        """What `save` wrote. MissingFile where there is none."""
        path = Path(path)
        if not (path / "effects.parquet").exists():
            raise MissingFile(f"no effects.parquet in {path}: make one with interp ablate or interp patch.")
        rows = pd.read_parquet(path / "effects.parquet")
        keys = list(dict.fromkeys(zip(rows.method, rows.metric, strict=True)))
        with h5py.File(path / "effects.h5", "r") as file:
            values = {(method, metric): file[f"values/{method}/{metric}"][()] for method, metric in keys}
            baseline = {metric: file[f"baseline/{metric}"][()] for _, metric in keys}
            about = json.loads(file.attrs.get("about", "{}"))
        return cls(rows, values, baseline, about)


def build(
    places: Sequence[dict[str, Any]],
    values: Mapping[tuple[str, str], np.ndarray],
    baseline: Mapping[str, np.ndarray],
    *,
    seed: int,
    about: dict[str, Any],
    ends: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> Effects:
    """Effects of `values` [place, prompt] against `baseline` [prompt]. `places` give component, kind, layer, index and
    position. `ends`: metric -> values on the corrupted and the clean prompts, for `normalized` (0 and 1)."""
    tables = []
    random = np.array([place["kind"] == "random" for place in places])
    for (method, metric), after in values.items():
        before = baseline[metric].astype(np.float64)
        effect = after.astype(np.float64) - before
        low, high = bootstrap(effect, seed)
        mean, std = mean_and_std(effect)
        q = np.full(len(places), np.nan)
        rounding = 1e-5 * np.abs(before[np.isfinite(before)]).max(initial=1.0)  # to which a sweep is exact in float32
        q[~random] = adjusted(p_values(effect[~random], rounding))
        start = np.nanmean(before) if np.isfinite(before).any() else np.nan
        table = pd.DataFrame(places).assign(
            method=method, metric=metric, baseline=start, value=start + mean, effect=mean, effect_std=std, ci_low=low,
            ci_high=high, n=np.isfinite(effect).sum(1), q=q,
        )  # fmt: skip
        if ends is not None:
            corrupted, clean = (np.nanmean(end.astype(np.float64)) for end in ends[metric])
            table["normalized"] = (table["value"] - corrupted) / (clean - corrupted)
        tables.append(table)
    if not tables:
        raise InputError("nothing to do: no method or no metric is given.")
    return Effects(pd.concat(tables, ignore_index=True), values, baseline, about)


def about(model: Any, task: Any, seed: int, **more: Any) -> dict[str, Any]:
    """What a result says of itself: the model with its processing, the task and a digest of its prompts, seed,
    versions."""
    prompts = [
        [p.clean_tokens, p.corrupted_tokens, [list(t) for t in p.targets], p.wrong_token]
        + ([p.answers, p.wrong_answers] if p.answers else [])
        for p in task.prompts
    ]
    digest = "sha256:" + hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    return {"model": model.provenance(), "task": task.name, "prompts": digest, "seed": seed,
            "versions": runs.versions(), **more}  # fmt: skip


def join(parts: Sequence[Effects], *, seed: int) -> Effects:
    """Effects of the parts of one sweep, their rows one part after the other. InputError where the prompts differ."""
    first = parts[0]
    for part in parts[1:]:
        if part.about.get("prompts") != first.about.get("prompts") or part.values.keys() != first.values.keys():
            raise InputError("the parts are of other prompts, methods or metrics: they are not of one sweep.")
    method, metric = next(iter(first.values))
    one = [part.rows[(part.rows.method == method) & (part.rows.metric == metric)] for part in parts]
    places = pd.concat(one)[PLACE].to_dict("records")
    values = {key: np.concatenate([part.values[key] for part in parts]) for key in first.values}
    whole = build(places, values, first.baseline, seed=seed, about=first.about)
    if "normalized" in first.rows:
        by_method = [part.rows[(part.rows.method == m) & (part.rows.metric == k)] for m, k in values for part in parts]
        whole.rows["normalized"] = pd.concat(by_method)["normalized"].to_numpy()
    return whole
