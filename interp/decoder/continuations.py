"""What was generated: continuations token by token, edited ones beside those of the same seed without edits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp import runs
from interp.decoder.model import Model
from interp.progress import Progress

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from interp.decoder.generation import Step


@dataclass(frozen=True)
class Generation:
    """Continuations, edited ones beside those of the same seed without edits ("baseline", the only ones where there are
    no edits). Of `best_of` each run's likeliest, which need not be of the same seed."""

    prompts: tuple[str, ...]
    rows: pd.DataFrame
    """A row a token: `prompt` and `sample` (numbers), `run`, `step`, `token`, `text`, `logprob`, `baseline_logprob`,
    `kl` (see `Step`; of a baseline's tokens 0, for both runs are one)."""
    about: dict[str, Any] = field(default_factory=dict)

    def tokens(self) -> pd.DataFrame:
        """A row a token."""
        return self.rows.copy()

    def table(self) -> pd.DataFrame:
        """A row a continuation, of `best_of` the likeliest of a prompt first: its text, `logprob` and
        `baseline_logprob` (mean over its tokens, nats) and `kl` (mean)."""
        keys = ["prompt", "sample", "run"]
        numbers = self.rows.groupby(keys, sort=False)[["logprob", "baseline_logprob", "kl"]].mean()
        numbers.insert(0, "n_tokens", self.rows.groupby(keys, sort=False).size())
        table = numbers.reset_index()
        table["text"] = [self.about["texts"][run][f"{prompt}.{sample}"] for prompt, sample, run in
                         table[keys].itertuples(index=False)]  # fmt: skip
        return table

    def figure(self) -> Figure:
        """KL(edited || baseline) by token: the tokens of one continuation, or the mean over several with its 95%
        interval."""
        from interp.plots.generation import kl_by_token

        return kl_by_token(self.rows)

    def save(self, path: str | Path) -> None:
        """tokens.parquet and generation.json into the folder `path`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self.rows.to_parquet(path / "tokens.parquet", index=False)
        runs.write_json(path / "generation.json", {"prompts": list(self.prompts), "about": self.about})

    @classmethod
    def load(cls, path: str | Path) -> Generation:
        """What `save` wrote. MissingFile where there is none."""
        said = runs.read_json(Path(path) / "generation.json", "make one with interp generate --out")
        return cls(tuple(said["prompts"]), pd.read_parquet(Path(path) / "tokens.parquet"), said["about"])


def collected(steps: Iterable[Step], batch: Sequence[tuple[int, int]], run: str, bar: Progress) -> pd.DataFrame:
    """A row a token, sequence by sequence."""
    tables = []
    for number, step in enumerate(steps):
        values = {
            "token": step.tokens,
            "logprob": step.logprob,
            "baseline_logprob": step.baseline_logprob,
            "kl": step.kl,
        }
        table = pd.DataFrame(batch, columns=["prompt", "sample"]).assign(
            run=run, step=number, **{name: value.numpy() for name, value in values.items()}
        )
        tables.append(table[table.token >= 0])
        bar.advance(len(tables[-1]))
    return pd.concat(tables).sort_values(["prompt", "sample", "step"], kind="stable", ignore_index=True)


def likeliest(rows: pd.DataFrame, n: int) -> pd.DataFrame:
    """The `n` continuations of each prompt and run with the largest mean log-probability, numbered from there."""
    score = rows.groupby(["run", "prompt", "sample"], sort=False).logprob.mean()
    rank = score.groupby(level=["run", "prompt"]).rank(ascending=False, method="first").astype(int) - 1
    keys = pd.MultiIndex.from_frame(rows[["run", "prompt", "sample"]])
    rows = rows.assign(sample=rank.reindex(keys).to_numpy())
    return rows[rows["sample"] < n]


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Prompt by prompt, the two runs of a sample beside each other."""
    return rows.sort_values(["prompt", "sample", "run", "step"], kind="stable", ignore_index=True)


def texts_of(model: Model, rows: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Run -> "prompt.sample" -> the continuation."""
    found: dict[str, dict[str, str]] = {}
    for (run, prompt, sample), mine in rows.groupby(["run", "prompt", "sample"], sort=False):
        ids = list(map(int, mine.token))
        found.setdefault(run, {})[f"{prompt}.{sample}"] = model.tokenizer.decode(ids) if model.tokenizer else str(ids)
    return found
