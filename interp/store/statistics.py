"""Sums over the rows of a store, kept in float64 while it is written: what a trainer needs to centre and scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.store.format import BINS


class Sums:
    """Of one hook point. Rows of BOS are left out of all but the norms by position: they are outliers that would swamp
    a mean. `bad` is the first row, among those added, that holds a NaN or an infinity."""

    def __init__(self, shape: Sequence[int], context: int, device: torch.device):
        zeros = {"dtype": torch.float64, "device": device}
        self.n, self.norm_sum, self.max_abs = (torch.zeros((), **zeros) for _ in range(3))
        self.sum, self.sumsq = torch.zeros(shape, **zeros), torch.zeros(shape, **zeros)
        self.norm_histogram = torch.zeros(BINS, **zeros)
        self.position_n, self.position_norm_sum = torch.zeros(context, **zeros), torch.zeros(context, **zeros)
        self.bad = torch.tensor(2**62, device=device)

    def add(
        self,
        rows: Float[Tensor, "window pos *d"],
        valid: Bool[Tensor, "window pos"],
        content: Bool[Tensor, "window pos"],
        first: Tensor,
    ) -> None:
        """`valid`: not padding; `content`: nor BOS; `first` [window]: the row number of each window's first token."""
        x = rows.flatten(2)
        x = x.double() if x.dtype == torch.float32 else x.float()  # the squares of 16-bit floats are exact in 32
        square = x.square()
        norms = square.sum(-1, dtype=torch.float64).sqrt()
        pos = torch.arange(rows.shape[1], device=rows.device)
        fine = torch.isfinite(norms) | ~valid
        self.bad = torch.minimum(self.bad, torch.where(fine, 2**62, first[:, None] + pos).min())
        keep = content[:, :, None]
        self.n += content.sum()
        self.sum += torch.where(keep, x, 0).sum((0, 1), dtype=torch.float64).view_as(self.sum)
        self.sumsq += torch.where(keep, square, 0).sum((0, 1), dtype=torch.float64).view_as(self.sumsq)
        self.max_abs = torch.maximum(self.max_abs, torch.where(keep, x, 0).abs().max().double())
        norms = torch.where(valid, norms, 0)
        kept = torch.where(content, norms, 0)
        self.norm_sum += kept.sum()
        bins = ((torch.log2(kept) + 32) * 32).nan_to_num(0).clamp(0, BINS - 1).long()
        self.norm_histogram.scatter_add_(0, bins.flatten(), content.flatten().double())
        self.position_n[: len(pos)] += valid.sum(0)
        self.position_norm_sum[: len(pos)] += norms.sum(0)

    def result(self) -> dict[str, np.ndarray]:
        names = ("n", "sum", "sumsq", "norm_sum", "max_abs", "norm_histogram", "position_n", "position_norm_sum")
        return {name: getattr(self, name).cpu().numpy() for name in names}
