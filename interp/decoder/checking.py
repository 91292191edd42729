"""Do the hooks tell the truth? The instrumented forward against the plain one, and every hook point edited."""

from __future__ import annotations

import pandas as pd
import torch

from interp.decoder.hooks import captured, edited
from interp.decoder.loading import Model, plain_logits

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.2, torch.bfloat16: 1.0}
"""Largest difference of logits between two orders of summation of one forward pass."""


def check(model: Model, *, seed: int = 0) -> pd.DataFrame:
    """One row a check: `what`, `largest_change` of a logit, `ok`.

    The plain forward and capturing everything change no logit beyond rounding; noise added at any hook point changes
    some (it is causal); after it the logits are bitwise as before (the hooks are gone).
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, model.d_vocab, (2, min(12, model.n_ctx)), generator=generator)
    tolerance = TOLERANCE[model.dtype]
    with torch.no_grad():
        clean = model(tokens)

        def change(logits: torch.Tensor) -> float:
            return (logits.float() - clean.float()).abs().max().item()

        rows = []
        plain = plain_logits(model, tokens)
        if plain is not None:
            rows.append(("plain forward", change(plain), change(plain) <= tolerance))
        with captured(model, model.sites):
            rows.append(("capturing everything", (d := change(model(tokens))), d == 0))
        for site in model.sites:
            with edited(model, {site: lambda value: value + torch.randn(value.shape, generator=generator).to(value)}):
                rows.append((site, (d := change(model(tokens))), d > 10 * tolerance))
        rows.append(("after the edits", (d := change(model(tokens))), d == 0))
    return pd.DataFrame(rows, columns=["what", "largest_change", "ok"])
