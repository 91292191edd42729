"""Logits to one number per read: the scores by which an intervention is judged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError, UnknownName, nearest


def logit_diff(
    logits: Float[Tensor, "read d_vocab"], answer: Int[Tensor, " read"], wrong: Int[Tensor, " read"], clean=None
) -> Float[Tensor, " read"]:
    """Logit of the answer minus logit of the wrong answer, in nats; positive means the model is right.

    `logits` are those at the position that predicts the answer. Wang et al. 2022, arXiv:2211.00593.
    """
    read = torch.arange(len(answer), device=logits.device)
    return logits[read, answer] - logits[read, wrong]


def loss(
    logits: Float[Tensor, "read d_vocab"], answer: Int[Tensor, " read"], wrong: Int[Tensor, " read"], clean=None
) -> Float[Tensor, " read"]:
    """Cross-entropy of the answer, in nats; lower is better, so a positive effect means harm."""
    return torch.nn.functional.cross_entropy(logits, answer, reduction="none")


def prob(
    logits: Float[Tensor, "read d_vocab"], answer: Int[Tensor, " read"], wrong: Int[Tensor, " read"], clean=None
) -> Float[Tensor, " read"]:
    """Probability of the answer, 0 to 1."""
    return logits.log_softmax(-1).gather(1, answer[:, None])[:, 0].exp()


def accuracy(
    logits: Float[Tensor, "read d_vocab"], answer: Int[Tensor, " read"], wrong: Int[Tensor, " read"], clean=None
) -> Float[Tensor, " read"]:
    """1 where the answer has the highest logit, else 0; where there is a wrong answer, 1 where it beats that one."""
    read = torch.arange(len(answer), device=logits.device)
    best = logits.argmax(-1) == answer
    beats = logits[read, answer] > logits[read, wrong.clamp(min=0)]
    return torch.where(wrong >= 0, beats, best).to(logits.dtype)


def kl(
    logits: Float[Tensor, "read d_vocab"],
    answer: Int[Tensor, " read"],
    wrong: Int[Tensor, " read"],
    clean: Float[Tensor, "read d_vocab"],
) -> Float[Tensor, " read"]:
    """KL(clean || changed) over the vocabulary, in nats: 0 where nothing changed. Summed over the vocabulary."""
    p = clean.log_softmax(-1)
    return (p.exp() * (p - logits.log_softmax(-1))).sum(-1)


def prob_diff(
    logits: Float[Tensor, "read d_vocab"], answer: Int[Tensor, "read ..."], wrong: Int[Tensor, "read ..."], clean=None
) -> Float[Tensor, " read"]:
    """Probability of all right answers minus that of all wrong ones, -1 to 1; positive means the model is right.

    The answers of a read are a row, filled up with -1 (`Task.answer_sets`); one answer and one wrong answer will do.
    For greater_than: of the later years minus the earlier ones. Hanna et al. 2023, arXiv:2305.00586, section 2.
    """
    p = logits.softmax(-1)

    def total(tokens: Tensor) -> Tensor:
        tokens = tokens.reshape(len(p), -1)
        return torch.where(tokens >= 0, p.gather(1, tokens.clamp(min=0)), 0).sum(1)

    return total(answer) - total(wrong)


METRICS: dict[str, Callable[..., Tensor]] = {
    "logit_diff": logit_diff,
    "loss": loss,
    "kl": kl,
    "prob": prob,
    "accuracy": accuracy,
    "prob_diff": prob_diff,
}

OF_SETS = frozenset({"prob_diff"})
"""Metrics of all the right and wrong answers of a read, not of one each."""


def check(metrics: list[str], *, has_wrong: bool, task: str) -> None:
    """UnknownName for a metric there is not; InputError for a difference where the task has no wrong answers."""
    for metric in metrics:
        if metric not in METRICS:
            raise UnknownName(f'no metric "{metric}". Nearest: {nearest(metric, METRICS)}.')
        if metric.endswith("_diff") and not has_wrong:
            raise InputError(
                f'task "{task}" has no wrong answers: {metric} needs them; use loss, kl, prob or accuracy.'
            )
