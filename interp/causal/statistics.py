"""How sure: intervals, p values and their adjustment, of effects [row, prompt]. NaN: the prompt does not count."""

from __future__ import annotations

import math

import numpy as np

N_BOOTSTRAP = 2000
_ROWS_AT_ONCE = 512


def mean_and_std(effect: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over prompts of each row; NaN where there are no two prompts to deviate."""
    known = np.isfinite(effect)
    n = known.sum(1)
    mean = np.where(known, effect, 0).sum(1) / np.where(n, n, np.nan)
    squares = np.where(known, (effect - mean[:, None]) ** 2, 0).sum(1)
    return mean, np.sqrt(squares / np.where(n > 1, n - 1, np.nan))


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """95% percentile interval of the mean over prompts, for each row of `values` [row, prompt].

    Prompts are drawn with replacement, the same draws for every row (Efron 1979). One prompt has no interval: NaN.
    """
    rows, n = values.shape
    low, high = np.full(rows, np.nan), np.full(rows, np.nan)
    if n < 2:
        return low, high
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=N_BOOTSTRAP).T.astype(np.float64)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = values[start : start + _ROWS_AT_ONCE].astype(np.float64)
        known = np.isfinite(part)
        some = known.sum(1) > 1
        count = known[some] @ weights
        drawn = np.where(known[some], part[some], 0) @ weights / np.where(count, count, np.nan)
        if some.any():
            low[start : start + len(part)][some], high[start : start + len(part)][some] = np.nanquantile(
                drawn, [0.025, 0.975], axis=1
            )
    return low, high


def bootstrap_ratio(part: np.ndarray, whole: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """95% percentile interval of sum(part) / sum(whole) over prompts, for each row of [row, prompt]; prompts are drawn
    as in `bootstrap`, and a draw without any of the whole does not count. One prompt has no interval: NaN."""
    n = part.shape[1]
    if n < 2:
        return np.full(len(part), np.nan), np.full(len(part), np.nan)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=N_BOOTSTRAP).T.astype(np.float64)
    below = whole @ weights
    low, high = np.nanquantile((part @ weights) / np.where(below, below, np.nan), [0.025, 0.975], axis=1)
    return low, high


def p_values(effect: np.ndarray, rounding: float = 0.0) -> np.ndarray:
    """Two-sided p of the paired t-test that a row's mean effect is 0; NaN with fewer than two prompts. 1 where no
    prompt's effect is above `rounding`: such a row is 0 but for the order of sums.

    t is turned into a normal deviate by Wallace's formula (1959, Ann. Math. Stat. 30, 1121), good to .02 of a
    deviation.
    """
    mean, std = mean_and_std(effect)
    n = np.isfinite(effect).sum(1)
    p = np.full(len(effect), np.nan)
    for row in range(len(effect)):
        if n[row] > 1:
            df = n[row] - 1
            t2 = mean[row] ** 2 * n[row] / std[row] ** 2 if std[row] > 0 else (math.inf if mean[row] else 0.0)
            z = (8 * df + 1) / (8 * df + 3) * math.sqrt(df * math.log1p(t2 / df))
            p[row] = math.erfc(z / math.sqrt(2)) if np.nanmax(np.abs(effect[row])) > rounding else 1.0
    return p


def adjusted(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p values (1995): reject those up to alpha, and at most a share alpha of the rejected
    are false on average. NaN stays NaN and does not count."""
    q = np.full(len(p), np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    ranked = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1)
    return q
