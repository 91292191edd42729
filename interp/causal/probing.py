"""Telling two classes of activations apart: a split that keeps part of each for judging, and a logistic regression."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor


def split(labels: np.ndarray, test_share: float, seed: int) -> Bool[Tensor, " example"]:
    """True at the examples held out: `test_share` of each label, at least one, and not all."""
    test, draw = torch.zeros(len(labels), dtype=torch.bool), np.random.default_rng(seed)
    for name in np.unique(labels):
        mine = draw.permutation(np.flatnonzero(labels == name))
        test[mine[: min(max(1, round(test_share * len(mine))), len(mine) - 1)]] = True
    return test


def logistic(
    x: Float[Tensor, "example d"], is_label: Bool[Tensor, " example"], *, n_steps: int = 100
) -> Float[Tensor, " d+1"]:
    """Weights, then bias, of least balanced log loss: the mean of both classes' mean losses + |w|^2 / (2 n). Newton.

    Of fewer examples than dimensions, in the space that the examples span: the weights lie in it.
    """
    n, d = x.shape
    if n < d:
        basis = torch.linalg.svd(x, full_matrices=False).Vh
        w = logistic(x @ basis.T, is_label, n_steps=n_steps)
        return torch.cat([w[:-1] @ basis, w[-1:]])
    design = torch.cat([x, x.new_ones(n, 1)], 1)
    sign = torch.where(is_label, 1.0, -1.0).to(x)
    weight = torch.where(is_label, 0.5 / is_label.sum(), 0.5 / (~is_label).sum()).to(x)
    ridge = torch.cat([x.new_full((d,), 1 / n), x.new_full((1,), 1e-9)])

    def loss(w: Tensor) -> float:
        return float(weight @ torch.nn.functional.softplus(-sign * (design @ w)) + 0.5 * ridge @ w.square())

    w = x.new_zeros(d + 1)
    for _ in range(n_steps):
        wrong = torch.sigmoid(-sign * (design @ w))
        gradient = -(design.T @ (weight * sign * wrong)) + ridge * w
        curvature = (design.T * (weight * wrong * (1 - wrong))) @ design + torch.diag(ridge)
        step = torch.linalg.solve(curvature, gradient)
        size, now = 1.0, loss(w)
        while size > 1e-6 and loss(w - size * step) > now - 1e-4 * size * float(gradient @ step):
            size /= 2
        w = w - size * step
        if gradient.abs().max() < 1e-9:
            break
    return w
