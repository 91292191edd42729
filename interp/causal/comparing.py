"""Two relatives on the same prompts: what each component does in one and in the other, and what lies between them.

    compare()   the same ablations of both; `difference` = effect in B - effect in A, paired by prompt
    along()     the task at models interpolated from A to B; above 0 in loss, a barrier (Frankle et al. 1912.05671)

A relative is a model of the same shape and tokens: another checkpoint, a fine-tuned copy, the base with an adapter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.causal import sweeps
from interp.causal.ablation import ablate, as_list
from interp.causal.effects import Effects
from interp.causal.statistics import bootstrap, mean_and_std
from interp.data import metrics as scores
from interp.data.tasks import Task
from interp.decoder.merging import between, check_same_weights
from interp.decoder.mixing import BETWEEN
from interp.decoder.model import Model
from interp.decoder.weights import parameters, replaced
from interp.errors import InputError, MissingFile, WrongModel, nearest
from interp.progress import Progress

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SHAPE = ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_mlp", "d_vocab")


@dataclass(frozen=True)
class Comparison:
    """The effects of the same ablations in two models, on the same prompts."""

    a: Effects
    b: Effects
    rows: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """One row a component, position, method and metric: `effect_a`, `effect_b`, and `difference` = b - a in the
        metric's unit, with the 95% bootstrap interval over prompts, each paired with itself. `q` is the p of a paired
        t-test, adjusted over the components of a method and metric (Benjamini & Hochberg 1995)."""
        return self.rows.copy()

    def baselines(self) -> pd.DataFrame:
        """How well either model does without an ablation: a row a metric, `difference` = b - a, paired by prompt."""
        rows = []
        for metric, before in self.a.baseline.items():
            before, after = before.astype(np.float64), self.b.baseline[metric].astype(np.float64)
            low, high = bootstrap((after - before)[None], self.a.about["seed"])
            rows.append((metric, np.nanmean(before), np.nanmean(after), np.nanmean(after - before), low[0], high[0],
                         int(np.isfinite(after - before).sum())))  # fmt: skip
        return pd.DataFrame(rows, columns=["metric", "a", "b", "difference", "ci_low", "ci_high", "n"])

    def figure(self) -> Figure:
        """A map of the differences beside the effects in B against those in A."""
        from interp.plots import comparing

        return comparing.comparison(self.rows, *(effects.about["model"]["name"] for effects in (self.a, self.b)))

    def save(self, path: str | Path) -> None:
        """comparison.parquet and baselines.parquet, and the effects of either model in the folders a and b."""
        self.a.save(Path(path) / "a")
        self.b.save(Path(path) / "b")
        self.rows.to_parquet(Path(path) / "comparison.parquet", index=False)
        self.baselines().to_parquet(Path(path) / "baselines.parquet", index=False)

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """What `save` wrote. MissingFile where there is none."""
        path = Path(path)
        if not (path / "comparison.parquet").exists():
            raise MissingFile(f"no comparison.parquet in {path}: make one with interp compare A B --out NAME.")
        return cls(Effects.load(path / "a"), Effects.load(path / "b"), pd.read_parquet(path / "comparison.parquet"))


def compare(
    model_a: Model,
    model_b: Model,
    task: Task,
    *,
    components: str | Sequence[str | Sequence[str]] | None = None,
    method: str | Sequence[str] = "mean",
    metric: str | Sequence[str] | None = None,
    position: str | int | Sequence[str | int] = "all",
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """The same ablations of both models on the same prompts: `difference` = effect in `model_b` - effect in `model_a`.

    A negative difference in logit_diff means that the component is needed more in B. Arguments as of `interp.ablate`;
    `components`: heads and MLPs if not given. Each model is filled in with its own means. WrongModel where the two
    differ in shape or in tokens.
    """
    check_relatives(model_a, model_b)
    asked = components or (["heads", "mlps"] if model_a.has_mlp else "heads")
    settings: dict[str, Any] = {"components": asked, "method": method, "metric": metric, "position": position}
    a, b = (ablate(model, task, seed=seed, progress=progress, **settings) for model in (model_a, model_b))
    rows = b.compare(a, seed=seed)
    rows = rows[rows.kind != "random"].rename(columns={"effect": "effect_b", "effect_other": "effect_a"})
    order = [*rows.columns[: rows.columns.get_loc("effect_b")], "effect_a", "effect_b"]
    return Comparison(a, b, rows[[*order, *(column for column in rows if column not in order)]].reset_index(drop=True))


def check_relatives(a: Model, b: Model) -> None:
    """WrongModel where two models have not the same components and tokens."""
    for size in SHAPE:
        if getattr(a, size) != getattr(b, size):
            raise WrongModel(
                f'{size} is {getattr(a, size)} in "{a.name}", {getattr(b, size)} in "{b.name}": only models of one '
                "shape are compared."
            )
    hashes = {a.tokenizer_hash, b.tokenizer_hash} - {None}
    if len(hashes) > 1:
        raise WrongModel(f'"{a.name}" and "{b.name}" have two tokenizers: the same prompts are not the same tokens.')


@dataclass(frozen=True)
class Along:
    """A task's metrics at models between A (t = 0) and B (t = 1)."""

    rows: pd.DataFrame
    values: dict[tuple[str, str], np.ndarray]
    """(task, metric) -> [t, prompt]."""
    about: dict[str, Any]

    def table(self) -> pd.DataFrame:
        """One row a task, metric and t: the mean over prompts with its 95% interval; `above`, the value less what lies
        on the straight line between the ends, with its interval, paired by prompt. In loss, its highest is the
        barrier."""
        return self.rows.copy()

    def figure(self) -> Figure:
        """Each metric along the way, beside the straight line between its ends."""
        from interp.plots import comparing

        return comparing.along(self.rows, *self.about["models"])

    def save(self, path: str | Path) -> None:
        """along.parquet."""
        Path(path).mkdir(parents=True, exist_ok=True)
        self.rows.to_parquet(Path(path) / "along.parquet", index=False)


def along(
    model_a: Model,
    model_b: Model,
    tasks: Sequence[Task],
    *,
    n: int = 5,
    path: str = "linear",
    metric: str | Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Along:
    """Each of `tasks` at `n` models from A to B, both included; `path` "linear" or "slerp" (`interp.decoder.mixing`).

    `metric` is of the tasks with answers of their own; running text is scored by its loss. WrongModel where the two are
    not of one shape and settings.
    """
    if path not in BETWEEN:
        raise InputError(f'path "{path}" given. Nearest: {nearest(path, BETWEEN)}.')
    if n < 2:
        raise InputError(f"{n} models along the way given: 2 (the ends) or more.")
    check_relatives(model_a, model_b)
    check_same_weights(model_a, model_b)
    wanted = {task.name: as_list((None if task.name == "text" else metric) or task.default_metric) for task in tasks}
    for task in tasks:
        scores.check(wanted[task.name], has_wrong=task.has_wrong, task=task.name)
    own = {name: tensor.detach().clone() for name, tensor in parameters(model_a).items()}
    other = parameters(model_b)
    points, found = np.linspace(0, 1, n), {}
    with Progress("along the way", n * len(tasks), progress) as bar:
        for t in points:
            made = f"{model_a.fingerprint} {model_b.fingerprint} {path} {t!r}"
            named = "sha256:" + hashlib.sha256(made.encode()).hexdigest()
            with replaced(model_a, between(own, other, float(t), path), named):
                for task in tasks:
                    values = sweeps.sweep(model_a, task, [], metrics=wanted[task.name]).baseline
                    for name, value in values.items():
                        found.setdefault((task.name, name), []).append(value.astype(np.float64))
                    bar.advance()
    values = {key: np.stack(each) for key, each in found.items()}
    rows = pd.concat([_rows(*key, points, each, seed) for key, each in values.items()], ignore_index=True)
    return Along(rows, values, {"models": [model_a.name, model_b.name], "path": path, "seed": seed})


def _rows(task: str, metric: str, points: np.ndarray, values: np.ndarray, seed: int) -> pd.DataFrame:
    line = (1 - points)[:, None] * values[0] + points[:, None] * values[-1]
    (low, high), (above_low, above_high) = (bootstrap(each, seed) for each in (values, values - line))
    return pd.DataFrame({
        "task": task, "metric": metric, "t": points, "value": mean_and_std(values)[0], "ci_low": low, "ci_high": high,
        "above": mean_and_std(values - line)[0], "above_low": above_low, "above_high": above_high,
        "n": np.isfinite(values).sum(1),
    })  # fmt: skip
