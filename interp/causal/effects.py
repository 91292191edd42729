"""Effects: what an intervention did, per component and per prompt, with its uncertainty. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from interp.errors import InputError, MissingFile

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

N_BOOTSTRAP = 2000


@dataclass(frozen=True)
class Effects:
    """The rows of the contract's effects.parquet and every prompt's value behind them.

    `values[method, metric]` is float32 [row, prompt], in the order of the table's rows of that method and metric;
    `baseline[metric]` is [prompt], before the intervention. `about` is what run.json says of model, task and seed.
    """

    rows: pd.DataFrame
    values: Mapping[tuple[str, str], np.ndarray]
    baseline: Mapping[str, np.ndarray]
    about: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """One row per component x position x method x metric: `effect` is after minus before, in the metric's unit,
        with its 95% bootstrap interval over prompts."""
        return self.rows.copy()

    def top(self, n: int = 3) -> pd.DataFrame:
        """The `n` rows whose mean effect is farthest from 0."""
        return self.rows.loc[self.rows.effect.abs().sort_values(ascending=False).index[:n]].copy()

    def figure(self) -> Figure:
        """A map of the effects: layer x head, layer x position, or bars."""
        from interp.plots import effects

        return effects(self.rows)

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

    @classmethod
    def load(cls, path: str | Path) -> Effects:
        """What `save` wrote. MissingFile where there is none."""
        path = Path(path)
        if not (path / "effects.parquet").exists():
            raise MissingFile(f"no effects.parquet in {path}: make one with interp ablate or interp patch.")
        values, baseline = {}, {}
        with h5py.File(path / "effects.h5", "r") as file:
            for method, metrics in file["values"].items():
                values |= {(method, metric): data[()] for metric, data in metrics.items()}
            baseline |= {metric: data[()] for metric, data in file["baseline"].items()}
        return cls(pd.read_parquet(path / "effects.parquet"), values, baseline)


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """95% percentile interval of the mean over prompts, for each row of `values` [row, prompt].

    Prompts are drawn with replacement, the same draws for every row (Efron 1979). One prompt has no interval: NaN.
    """
    rows, n = values.shape
    if n < 2:
        return np.full(rows, np.nan), np.full(rows, np.nan)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=N_BOOTSTRAP) / n
    low, high = np.quantile(values.astype(np.float64) @ weights.T, [0.025, 0.975], axis=1)
    return low, high


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
    for (method, metric), after in values.items():
        before = baseline[metric].astype(np.float64)
        effect = after.astype(np.float64) - before
        low, high = bootstrap(effect, seed)
        table = pd.DataFrame(places).assign(
            method=method, metric=metric, baseline=before.mean(), value=after.astype(np.float64).mean(1),
            effect=effect.mean(1), effect_std=effect.std(1, ddof=1) if len(before) > 1 else np.nan,
            ci_low=low, ci_high=high, n=len(before),
        )  # fmt: skip
        if ends is not None:
            corrupted, clean = (end.astype(np.float64).mean() for end in ends[metric])
            table["normalized"] = (table["value"] - corrupted) / (clean - corrupted)
        tables.append(table)
    if not tables:
        raise InputError("nothing to do: no method or no metric is given.")
    return Effects(pd.concat(tables, ignore_index=True), values, baseline, about)
