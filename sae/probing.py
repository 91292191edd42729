"""k-sparse probing: how well do one, two or five latents tell a label of the text they are active on?

Gurnee et al. 2023, arXiv:2305.01610; latents chosen as in SAEBench, Karvonen et al. 2025, arXiv:2503.09532. Each text
is the mean of its tokens' latents. For each label against the rest: the k latents whose means differ most on the
training part, a logistic regression on them, and its balanced accuracy on the rest: 1 is perfect, 0.5 is chance. The
same on the activations themselves (`k` 0) says what could be reached.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.causal.probing import logistic, split
from interp.decoder.hooks import captured
from interp.decoder.model import Model
from interp.errors import InputError, MissingFile
from sae.dictionary import Dictionary
from sae.rows import joined
from sae.splicing import check_model

Labelled = Sequence[tuple[str, str]]
"""(text, label) pairs."""

KS = (1, 2, 5)
LEAST = 8
"""Texts that every label needs."""


def read_labelled(path: str | Path) -> list[tuple[str, str]]:
    """The pairs of a JSONL file, `{"text": "...", "label": "..."}` a line. MissingFile, or InputError with the line."""
    path, pairs = Path(path), []
    if not path.is_file():
        raise MissingFile(f"no labelled text at {path}: a .jsonl with text and label on each line.")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
                pairs.append((str(row["text"]), str(row["label"])))
            except (json.JSONDecodeError, KeyError, TypeError):
                raise InputError(f'{path}, line {number}: should be {{"text": "...", "label": "..."}}.') from None
    return pairs


def probe(
    dct: Dictionary,
    model: Model,
    labelled: Labelled | str | Path,
    *,
    ks: Sequence[int] = KS,
    context: int = 128,
    test_share: float = 0.25,
    batch_size: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    """Balanced accuracy of k-sparse probes: label, k, accuracy, latents, n_train, n_test; k 0 is the activations' own.

    `labelled` are (text, label) pairs or a JSONL file of them; a text counts with its first `context` tokens. `seed`
    draws the `test_share` of each label. InputError for fewer than two labels, or fewer than LEAST texts of one.
    """
    pairs = read_labelled(labelled) if isinstance(labelled, (str, Path)) else list(labelled)
    labels = np.array([label for _, label in pairs])
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 2 or counts.min() < LEAST:
        found = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True)) or "none"
        raise InputError(f"probing needs two labels or more with {LEAST} texts each; found: {found}.")
    if not all(1 <= k <= dct.d_sae for k in ks):
        raise InputError(f"ks must be between 1 and d_sae ({dct.d_sae}); {list(ks)} was given.")
    check_model(dct, model)
    dct = dct.to(model.device)
    latents, activations = text_means(dct, model, [text for text, _ in pairs], context=context, batch_size=batch_size)
    test = split(labels, test_share, seed)
    rows: list[dict[str, Any]] = []
    for name in names:
        is_label = torch.from_numpy(labels == name)
        difference = (latents[~test & is_label].mean(0) - latents[~test & ~is_label].mean(0)).abs()
        order = difference.argsort(descending=True, stable=True)
        for k in (*ks, 0):
            x = latents[:, order[:k]] if k else activations
            accuracy = fit_and_score(x.double(), is_label, test)
            rows.append({"label": str(name), "k": k, "accuracy": accuracy, "latents": order[:k].tolist(),
                         "n_train": int((~test).sum()), "n_test": int(test.sum())})  # fmt: skip
    return pd.DataFrame(rows)


@torch.no_grad()
def text_means(
    dct: Dictionary, model: Model, texts: Sequence[str], *, context: int, batch_size: int
) -> tuple[Float[Tensor, "text d_sae"], Float[Tensor, "text d_in"]]:
    """Mean over the tokens of each text, BOS left out, of the latents and of the activations; on the CPU."""
    context = min(context, model.n_ctx)
    latents, activations = torch.zeros(len(texts), dct.d_sae), torch.zeros(len(texts), dct.d_in)
    for first in range(0, len(texts), batch_size):
        ids = [model.to_tokens(text)[:context] for text in texts[first : first + batch_size]]
        lengths = torch.tensor([len(row) for row in ids])
        n_bos = 0 if model.bos is None else 1
        if (lengths <= n_bos).any():
            raise InputError(f"text {first + int((lengths <= n_bos).nonzero()[0])} holds no token.")
        tokens = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
        for row, text in zip(tokens, ids, strict=True):
            row[: len(text)] = torch.tensor(text)
        place = torch.arange(tokens.shape[1])
        mask = (place >= n_bos) & (place < lengths[:, None])
        with captured(model, list(dct.sites)) as cache:
            model(tokens.to(model.device))
        x = joined({site: value[mask.to(value.device)] for site, value in cache.items()}, dct.sites)
        active = dct.active(x.to(dct.W_enc.dtype))
        text = mask.nonzero()[:, 0] + first
        sums = (text[active.token.cpu()], active.latent.cpu())
        latents.index_put_(sums, active.value.float().cpu(), accumulate=True)
        activations.index_add_(0, text, x.float().cpu())
        latents[first : first + len(ids)] /= mask.sum(1, keepdim=True)
        activations[first : first + len(ids)] /= mask.sum(1, keepdim=True)
    return latents, activations


def fit_and_score(x: Float[Tensor, "text d"], is_label: Bool[Tensor, " text"], test: Bool[Tensor, " text"]) -> float:
    """Balanced accuracy on the texts of `test` of a regression on the others; columns scaled to deviation 1."""
    mean, deviation = x[~test].mean(0), x[~test].std(0)
    x = (x - mean) / torch.where(deviation > 0, deviation, 1)
    w = logistic(x[~test], is_label[~test])
    says = x[test] @ w[:-1] + w[-1] > 0
    right = [(says == is_label[test])[is_label[test] == which].double().mean() for which in (True, False)]
    return float(sum(right) / 2)


def summary(table: pd.DataFrame) -> dict[str, float]:
    """Mean accuracy over the labels for metrics.json: probe_k1, probe_k2, probe_k5, probe_activations."""
    means = table.groupby("k")["accuracy"].mean()
    return {"probe_activations" if k == 0 else f"probe_k{k}": float(value) for k, value in means.items()}
