"""lens_curve(): at which layer does the answer emerge? The lens's scores by layer, over the prompts of a task.

Running text is a task too (`interp.data.classes.text_task`): its curve of kl says how far each layer is from the
output, and is what a tuned lens is held against the logit lens by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.causal.effects import about
from interp.causal.statistics import bootstrap
from interp.data.metrics import prob_diff
from interp.data.tasks import Task
from interp.decoder.hooks import Edit
from interp.decoder.model import Model
from interp.decoder.sites import short
from interp.lenses.kept import Kept
from interp.lenses.reading import (
    LOGITS_AT_ONCE,
    Seen,
    Translator,
    entropy_of,
    kl_divergence,
    look,
    rank_of,
    readings,
    sites,
)
from interp.progress import Progress

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from interp.lenses.tuned import TunedLens

METRICS = {
    "logit_diff": "logit of the answer - of the wrong answer, in nats; positive: right",
    "prob_diff": "probability of all right answers - of all wrong ones",
    "prob": "probability of the answer",
    "rank": "rank of the answer; 1: the top token",
    "loss": "cross-entropy of the answer, in nats",
    "kl": "KL(output || lens), in nats; 0: as the output",
    "entropy": "entropy, in nats",
}
"""What a curve is made of, and how to read it."""


@dataclass(frozen=True)
class LensCurve(Kept):
    """Scores of each layer, read by one lens or two, mean over prompts."""

    FILE = "curve"
    MADE_BY = "interp lens show --task or interp lens train"

    def table(self) -> pd.DataFrame:
        """A row a lens ("logit", "tuned"), layer (-1: the embeddings; the last is the model's output) and metric
        (METRICS): `value`, the mean over prompts, and its 95% bootstrap interval. A prompt read at several positions
        counts once, with its mean."""
        return self.rows.copy()

    def figure(self, metric: str | None = None) -> Figure:
        """One metric by layer with its interval; the first of the table where none is named."""
        from interp.plots.lenses import curve

        return curve(self.rows, metric or self.rows["metric"].iloc[0])


@dataclass(frozen=True)
class Asked:
    """What is read of some prompts: their streams, the prompt of each read by its number, the answers expected."""

    seen: Seen
    prompt: Int[Tensor, " read"]
    answer: Int[Tensor, " read"]
    wrong: Int[Tensor, " read"]
    """-1 where there is none."""
    sets: tuple[Int[Tensor, "read right"], Int[Tensor, "read other"]]


def lens_curve(
    model: Model, task: Task, *, edits: Mapping[str, Edit] | None = None, tuned: TunedLens | None = None, seed: int = 0,
    progress: bool = False,
) -> LensCurve:  # fmt: skip
    """How each layer scores the answers, at the positions that a task reads, by the logit lens and by `tuned` too.

    Metrics: logit_diff and prob_diff where the task has wrong answers, prob, rank, kl, entropy, and loss where it has
    none. `edits`: of the run that is looked at. `seed`: of the bootstrap over prompts. WrongModel for a tuned lens of
    another model.
    """
    lenses = {"logit": None} | ({} if tuned is None else {"tuned": tuned})
    if tuned is not None:
        tuned.check(model)
    pairs = ["logit_diff"] if task.has_wrong else ["loss"]
    metrics = [*pairs, *["prob_diff"] * task.has_sets, "prob", "rank", "kl", "entropy"]
    with Progress("reading layers", len(task), progress) as bar:
        values = measure(model, asked(model, task, edits), lenses, metrics, len(task), bar.advance)
    said = about(model, task, seed, edits=list(edits or {}), tuned=None if tuned is None else tuned.name)
    return LensCurve(table_of(model, values, seed), said)


def asked(model: Model, task: Task, edits: Mapping[str, Edit] | None = None) -> Iterator[Asked]:
    """The task's reads, some prompts of one length at a time."""
    prompt, pos, answer, wrong = task.reads()
    right, other = task.answer_sets()
    tokens, size = task.tokens(), max(1, LOGITS_AT_ONCE // (task.length * model.d_vocab))
    for length in task.lengths.unique():
        for prompts in (task.lengths == length).nonzero()[:, 0].split(size):
            mine = torch.isin(prompt, prompts).nonzero()[:, 0]
            seen = look(
                model, tokens[prompts, : int(length)], torch.searchsorted(prompts, prompt[mine]), pos[mine], edits
            )
            yield Asked(seen, prompt[mine], answer[mine], wrong[mine], (right[mine], other[mine]))


@torch.no_grad()
def measure(
    model: Model,
    batches: Iterable[Asked],
    lenses: Mapping[str, Translator | None],
    metrics: list[str],
    n_prompts: int,
    advance: Callable[[int], None],
) -> dict[tuple[str, int, str], Float[np.ndarray, " prompt"]]:
    """Each metric by lens and layer, the mean over a prompt's reads; NaN where a prompt has none."""
    total: dict[tuple[str, int, str], Tensor] = {}
    count = torch.zeros(n_prompts, dtype=torch.double)
    for batch in batches:
        count.index_add_(0, batch.prompt, torch.ones(len(batch.prompt), dtype=torch.double))
        for name, lens in lenses.items():
            for layer, some, logits, output in readings(model, batch.seen, lens):
                for metric, each in _scores(logits, output, batch, some, metrics).items():
                    found = total.setdefault((name, layer, metric), torch.zeros(n_prompts, dtype=torch.double))
                    found.index_add_(0, batch.prompt[some], each.double().cpu())
        advance(len(batch.prompt.unique()))
    return {key: (value / count).numpy() for key, value in total.items()}  # 0 / 0 is NaN


def _scores(logits: Tensor, output: Tensor, batch: Asked, some: slice, metrics: list[str]) -> dict[str, Tensor]:
    log_p = logits.log_softmax(-1)
    answer, wrong = (token[some].to(logits.device)[:, None] for token in (batch.answer, batch.wrong))
    mine = log_p.gather(1, answer)[:, 0]
    sets = [tokens[some].to(logits.device) for tokens in batch.sets]
    compute = {
        "logit_diff": lambda: mine - log_p.gather(1, wrong)[:, 0], "prob_diff": lambda: prob_diff(logits, *sets),
        "prob": mine.exp, "rank": lambda: rank_of(logits, answer[:, 0]), "loss": lambda: -mine,
        "kl": lambda: kl_divergence(output.log_softmax(-1), log_p), "entropy": lambda: entropy_of(log_p),
    }  # fmt: skip
    return {metric: compute[metric]() for metric in metrics}


def table_of(
    model: Model, values: Mapping[tuple[str, int, str], Float[np.ndarray, " prompt"]], seed: int
) -> pd.DataFrame:
    """Means over prompts with their 95% bootstrap intervals."""
    low, high = bootstrap(np.stack(list(values.values())), seed)
    keys = list(values)
    each = np.stack([values[key] for key in keys])
    rows = pd.DataFrame(keys, columns=["lens", "layer", "metric"])
    rows.insert(2, "site", [short(sites(model)[layer]) for layer in rows["layer"]])
    return rows.assign(
        value=np.nanmean(each, axis=1), ci_low=low, ci_high=high, n=np.isfinite(each).sum(1)
    ).sort_values(["metric", "lens", "layer"], key=_order, kind="stable", ignore_index=True)  # fmt: skip


def _order(column: pd.Series) -> pd.Series:
    return column.map({metric: i for i, metric in enumerate(METRICS)}) if column.name == "metric" else column
