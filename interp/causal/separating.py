"""How well does a line of the residual stream tell two sets of examples apart? Three ways to find one, and its judge.

    mean-difference   mean of the positive ones - mean of the negative ones    Marks & Tegmark 2023, arXiv:2310.06824;
                                                                               Rimsky et al. 2023, arXiv:2312.06681
    pca               first principal component: of the differences of pairs, or of all activations about their mean
                      where they are no pairs; turned towards the positive     Zou et al. 2023, arXiv:2310.01405
    probe             weights of a logistic regression, in the stream's units  Alain & Bengio 2016, arXiv:1610.01644

Accuracy is balanced: the mean of both sets' shares on the right side of the threshold; 1 is perfect, .5 chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.causal.examples import Examples
from interp.causal.probing import logistic, split
from interp.decoder.sites import layer_of, short
from interp.errors import InputError

N_FOLDS = 4
N_SHUFFLED = 5
N_RANDOM = 50


@dataclass(frozen=True, eq=False)
class Fit:
    """`vector` of length 1; what stands above `threshold` along it is taken for positive."""

    vector: Float[Tensor, " d_model"]
    threshold: float


def mean_difference(x: Float[Tensor, "example d_model"], is_positive: Bool[Tensor, " example"], paired: bool) -> Fit:
    return _midway(x[is_positive].mean(0) - x[~is_positive].mean(0), x, is_positive)


def pca(x: Float[Tensor, "example d_model"], is_positive: Bool[Tensor, " example"], paired: bool) -> Fit:
    spread = x[is_positive] - x[~is_positive] if paired else x - x.mean(0)
    return _midway(torch.linalg.svd(spread, full_matrices=False).Vh[0], x, is_positive)


def probe(x: Float[Tensor, "example d_model"], is_positive: Bool[Tensor, " example"], paired: bool) -> Fit:
    mean, deviation = x.mean(0), x.std(0)
    deviation = torch.where(deviation > 0, deviation, 1)
    w = logistic((x - mean) / deviation, is_positive)
    vector = w[:-1] / deviation
    return Fit(vector / vector.norm(), float((mean @ vector - w[-1]) / vector.norm()))


def _midway(vector: Tensor, x: Tensor, is_positive: Tensor) -> Fit:
    """`vector` at length 1, turned towards the positive ones; the threshold is halfway between the means."""
    positive, negative = x[is_positive].mean(0), x[~is_positive].mean(0)
    length = vector.norm()
    if not length > 0:
        raise InputError("the two sets have the same mean here: there is no direction between them.")
    unit = vector / length * (-1 if (positive - negative) @ vector < 0 else 1)
    return Fit(unit, float((positive + negative) @ unit / 2))


METHODS: dict[str, Callable[[Tensor, Tensor, bool], Fit]] = {
    "mean-difference": mean_difference, "pca": pca, "probe": probe,
}  # fmt: skip


def hold_out(examples: Examples, share: float, seed: int) -> Bool[Tensor, " example"]:
    """True at the examples held out: whole groups, as many of those with positive examples alone, negative alone, and
    both. InputError where too few are left on a side."""
    groups, index = np.unique(examples.group, return_inverse=True)
    yes, no = (np.bincount(index, side, len(groups)) > 0 for side in (examples.is_positive, ~examples.is_positive))
    test = split(yes + 2 * no, share, seed)[index]
    for side in (torch.from_numpy(examples.is_positive), torch.from_numpy(~examples.is_positive)):
        if (side & test).sum() < 2 or (side & ~test).sum() < N_FOLDS:
            raise InputError(
                f"{int((side & ~test).sum())} examples of a set to find the direction on and "
                f"{int((side & test).sum())} to judge it by: {N_FOLDS} and 2 are needed; give more, or rows of more "
                "windows."
            )
    return test


@dataclass(frozen=True, eq=False)
class Judged:
    """A site's direction, where the examples stand along it, directions found on shuffled labels, its row of the table
    (`Direction.table`)."""

    fit: Fit
    projections: Float[np.ndarray, " example"]
    shuffled: Float[Tensor, "draw d_model"]
    row: dict[str, Any]


def judge(
    site: str, x: Float[Tensor, "example d_model"], examples: Examples, test: Bool[Tensor, " example"], method: str,
    seed: int,
) -> Judged:  # fmt: skip
    """Find a direction on the examples that are not of `test`, and judge it by those that are."""
    train, label, draw = ~test, torch.from_numpy(examples.is_positive), np.random.default_rng(seed)

    def fit(some: Tensor, labels: Tensor) -> Fit:
        return METHODS[method](some, labels, examples.paired)

    seen, known = x[train], label[train]
    found = fit(seen, known)
    cv = np.mean([
        _score(fit(seen[~fold], known[~fold]), seen[fold], known[fold])
        for fold in _folds(examples.group[train.numpy()], known.numpy(), draw)
    ], axis=0)  # fmt: skip
    null = [fit(seen, _shuffled(known, draw)) for _ in range(N_SHUFFLED)]
    random = [_midway(torch.from_numpy(draw.normal(size=x.shape[1])), seen, known) for _ in range(N_RANDOM)]
    along = x @ found.vector
    accuracy, low, high = balanced_accuracy(along[test] > found.threshold, label[test], examples.group[test.numpy()])
    positive, negative = along[train & label], along[train & ~label]
    row = {
        "site": short(site), "layer": layer_of(site), "accuracy": accuracy, "ci_low": low, "ci_high": high,
        "auroc": auroc(along[test], label[test]),
        "shuffled": float(np.mean([_score(one, x[test], label[test])[0] for one in null])),
        "random": float(np.mean([_score(one, x[test], label[test])[0] for one in random])),
        "gap": float(positive.mean() - negative.mean()), "mean_positive": float(positive.mean()),
        "mean_negative": float(negative.mean()), "std_positive": float(positive.std()),
        "std_negative": float(negative.std()), "norm": float(seen.norm(dim=1).mean()), "cv_accuracy": float(cv[0]),
        "cv_distance": float(cv[1]), "n_train": int(train.sum()), "n_held_out": int(test.sum()),
    }  # fmt: skip
    return Judged(found, along.numpy(), torch.stack([one.vector for one in null]), row)


def _folds(group: np.ndarray, is_positive: np.ndarray, draw: np.random.Generator) -> list[Bool[Tensor, " example"]]:
    """The examples in N_FOLDS parts, groups whole, each part with as many groups of each kind; those that leave both
    sets something to learn from and something to be judged by."""
    order = draw.permutation(np.unique(group))
    kinds = [np.isin(order, group[is_positive]), np.isin(order, group[~is_positive])]
    order = order[np.lexsort(kinds)]  # one kind after the other, dealt out in turn
    found = []
    for k in range(N_FOLDS):
        fold = np.isin(group, order[k::N_FOLDS])
        if all((fold & side).any() and (~fold & side).any() for side in (is_positive, ~is_positive)):
            found.append(torch.from_numpy(fold))
    if not found:
        raise InputError("too few windows of the store have rows of the two sets: label rows in more of them.")
    return found


def _shuffled(is_positive: Bool[Tensor, " example"], draw: np.random.Generator) -> Bool[Tensor, " example"]:
    """Labels that have nothing to do with the sets: a random half of each set is called positive. Of odd numbers one
    set gives one more and the other one less, so that pairs stay pairs; which one is drawn: always the same would lean
    against the sets, and where they are far apart that is all a method sees."""
    order, more = draw.permutation(len(is_positive)), int(draw.integers(2))
    yes, no = order[is_positive.numpy()[order]], order[~is_positive.numpy()[order]]
    labels = torch.zeros(len(is_positive), dtype=torch.bool)
    labels[np.concatenate([yes[: (len(yes) + more) // 2], no[: (len(no) + 1 - more) // 2]])] = True
    return labels


def _score(fit: Fit, x: Tensor, is_positive: Tensor) -> tuple[float, float]:
    """Balanced accuracy, and the distance of the two means in standard deviations."""
    along = x @ fit.vector
    positive, negative = along[is_positive], along[~is_positive]
    right = ((positive > fit.threshold).double().mean() + (negative <= fit.threshold).double().mean()) / 2
    spread = ((positive.var(correction=0) + negative.var(correction=0)) / 2).sqrt()
    return float(right), float((positive.mean() - negative.mean()) / spread.clamp(min=1e-12))


def balanced_accuracy(
    says: Bool[Tensor, " example"], is_positive: Bool[Tensor, " example"], group: np.ndarray
) -> tuple[float, float, float]:
    """Mean of both sets' shares on the right side, and its 95% interval: Wilson's of each share (1927), put together as
    Zou & Donner 2008 do. Of examples in groups the groups are counted, which widens it. All right is no interval of
    one point: 20 of 20 in both sets leave [.89, 1]."""
    shares = []
    for which in (True, False):
        mine = is_positive == which
        p = float((says[mine] == which).double().mean())
        n = len(np.unique(group[mine.numpy()]))
        z2 = 1.96**2
        centre, half = p + z2 / (2 * n), 1.96 * np.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        shares.append((p, (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)))
    (a, a_low, a_high), (b, b_low, b_high) = shares
    down, up = np.hypot(a - a_low, b - b_low), np.hypot(a_high - a, b_high - b)
    return (a + b) / 2, float((a + b - down) / 2), float((a + b + up) / 2)


def auroc(along: Float[Tensor, " example"], is_positive: Bool[Tensor, " example"]) -> float:
    """The chance that a positive example stands further along than a negative one, equal ones counting half."""
    ranks = pd.Series(along.numpy()).rank().to_numpy()
    yes, n = is_positive.numpy(), len(along)
    n_yes = int(yes.sum())
    return float((ranks[yes].sum() - n_yes * (n_yes + 1) / 2) / (n_yes * (n - n_yes)))
