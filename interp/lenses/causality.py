"""Do heads that look as if they did something do it? Scores of every head beside what its ablation does, in one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from interp.causal.ablation import ablate
from interp.causal.effects import Effects
from interp.decoder.model import Model
from interp.errors import InputError
from interp.lenses.heads import LENGTH, MARGIN, N_SEQUENCES, SCORES, HeadScores, check_score, head_scores, repeats

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class HeadsAndEffects:
    """Scores and effects of every head on the same sequences."""

    scores: HeadScores
    effects: Effects

    def table(self) -> pd.DataFrame:
        """A row a head, the largest harm first: its scores with their intervals, and `effect`, the loss of the second
        copy without the head less that with it, in nats (positive: the head helped), with `ci_low`, `ci_high`, `q`."""
        columns = ["component", "baseline", "effect", "ci_low", "ci_high", "q"]
        rows = self.scores.table().merge(self.effects.table()[columns], on="component")
        return rows.sort_values("effect", ascending=False, kind="stable", ignore_index=True)

    def spearman(self, score: str = "induction", *, layers: Sequence[int] | None = None) -> float:
        """Rank correlation of a score with the effect over all heads, or those of `layers`, -1 to 1. Most heads do
        nothing, and rank by chance; heads that others build upon have an effect and no score of their own."""
        rows = self.table()
        rows = rows if layers is None else rows[rows.layer.isin(layers)]
        if len(rows) < 3:
            raise InputError(
                f"{len(rows)} heads in layers {list(layers or [])}: a rank correlation is of three or more."
            )
        return float(rows[[check_score(score), "effect"]].rank().corr().iloc[0, 1])

    def figure(self, score: str = "induction") -> Figure:
        """Each head's score and effect, with their intervals."""
        from interp.plots.heads import score_and_effect

        return score_and_effect(self.table(), check_score(score), "loss of the second copy")

    def sentence(self) -> str:
        """Whether the induction heads are those that do harm when ablated, in a line: their places among all heads of
        their layers and above, where no other head builds what they read."""
        rows, best = self.table(), self.scores.induction_heads()
        told = ", ".join(f"{r.component} {r.effect:+.3g}" for r in rows[:5].itertuples())
        every = ", ".join(f"{score} {self.spearman(score):+.2f}" for score in SCORES)
        end = f"Most harm of all: {told} nats. Spearman of score and harm: {every}."
        if not best:
            return f"No induction head: none attends to what came next by more than its control + {MARGIN}. {end}"
        from_layer = int(rows[rows.component.isin(best)].layer.min())
        beside = rows[rows.layer >= from_layer].component.tolist()
        places = ", ".join(f"{head} {beside.index(head) + 1}" for head in best)
        return (
            f"Induction heads, and their places by harm among the {len(beside)} heads of layers {from_layer} and up: "
            f"{places}. {end}"
        )

    def save(self, path: str | Path) -> None:
        """Scores (heads.parquet, heads.h5) and effects (effects.parquet, effects.h5) into the folder `path`."""
        self.scores.save(path)
        self.effects.save(path)

    @classmethod
    def load(cls, path: str | Path) -> HeadsAndEffects:
        """What `save` wrote. MissingFile where there is none."""
        return cls(HeadScores.load(path), Effects.load(path))


def heads_and_effects(
    model: Model,
    *,
    n: int = N_SEQUENCES,
    length: int = LENGTH,
    method: str = "mean",
    seed: int = 0,
    progress: bool = False,
) -> HeadsAndEffects:
    """Scores of every head on `n` sequences of `length` random tokens twice, and what ablating it does to the loss of
    the second copy of the same sequences, by `method` of `interp.ablate`."""
    if "," in method:
        raise InputError(f'method "{method}" given: one at a time, e.g. mean.')
    task = repeats(model, n=n, length=length, seed=seed)
    scores = head_scores(model, task, seed=seed, progress=progress)
    return HeadsAndEffects(
        scores, ablate(model, task, components="heads", method=method, metric="loss", seed=seed, progress=progress)
    )
