"""Many interventions on the same prompts: one forward pass each, logits kept only where an answer is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from rich.progress import Progress
from torch import Tensor

from interp.data.metrics import METRICS
from interp.data.tasks import Task
from interp.decoder.hooks import Edit, captured, edited
from interp.decoder.loading import Model

Edits = Callable[[slice], Mapping[str, Edit]]
"""The edits of one intervention, for the prompts of a slice."""

BATCH = 64


@contextmanager
def progress(title: str, total: int, show: bool) -> Iterator[Callable[[], None]]:
    """A bar of `total` forward passes; a call advances it."""
    with Progress(disable=not show, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


def slices(task: Task, batch: int = BATCH) -> list[slice]:
    return [slice(start, min(start + batch, len(task))) for start in range(0, len(task), batch)]


def activations(
    model: Model, task: Task, sites: Sequence[str], which: str = "clean"
) -> dict[str, Float[Tensor, "prompt pos ..."]]:
    """Activations of all the prompts at `sites`, by full name."""
    tokens, parts = task.tokens(which), {}
    for part in slices(task):
        with torch.no_grad(), captured(model, sites) as cache:
            model(tokens[part])
        for name, value in cache.items():
            parts.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in parts.items()}


def logits_at_reads(
    model: Model, task: Task, which: str = "clean", edits: Edits | None = None
) -> Float[Tensor, "read d_vocab"]:
    """Logits where the task's answers are read, in the order of `task.reads()`."""
    tokens, out = task.tokens(which), []
    prompt, pos, _, _ = task.reads()
    for part in slices(task):
        mine = (prompt >= part.start) & (prompt < part.stop)
        with torch.no_grad(), edited(model, edits(part) if edits else {}):
            logits = model(tokens[part])
        out.append(logits[prompt[mine] - part.start, pos[mine]].float())
    return torch.cat(out)


def score(
    task: Task, metrics: Sequence[str], logits: Float[Tensor, "read d_vocab"], clean: Float[Tensor, "read d_vocab"]
) -> dict[str, np.ndarray]:
    """Each metric's value for every prompt: the mean over the prompt's reads. `clean` is what kl is measured from."""
    prompt, _, answer, wrong = (t.to(logits.device) for t in task.reads())
    count = torch.zeros(len(task), device=logits.device).index_add_(
        0, prompt, torch.ones_like(prompt, dtype=torch.float)
    )
    scores = {}
    for metric in metrics:
        each = METRICS[metric](logits, answer, wrong, clean)
        total = torch.zeros(len(task), device=logits.device).index_add_(0, prompt, each.float())
        scores[metric] = (total / count).cpu().numpy()
    return scores


def sweep(
    model: Model,
    task: Task,
    interventions: Sequence[Edits],
    *,
    metrics: Sequence[str],
    which: str = "clean",
    clean: Float[Tensor, "read d_vocab"],
    advance: Callable[[], None],
) -> dict[str, np.ndarray]:
    """Values [intervention, prompt] of each metric under each intervention alone, on the `which` prompts."""
    values = {metric: np.empty((len(interventions), len(task)), np.float32) for metric in metrics}
    for row, edits in enumerate(interventions):
        for metric, scores in score(task, metrics, logits_at_reads(model, task, which, edits), clean).items():
            values[metric][row] = scores
        advance()
    return values
