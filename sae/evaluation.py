"""How good a dictionary is: how well it reconstructs, how sparsely, and what the model loses when it is spliced in.

The activation of BOS is an outlier that carries no text. It is left alone in every condition (clean, dictionary, zero,
mean), counts in no number here, and neither its own next-token loss nor the loss of a BOS that follows is scored.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from interp import runs
from interp.data.text import read_text, windows
from interp.decoder.hooks import captured, edited
from interp.decoder.loading import Model
from interp.decoder.sites import full
from interp.errors import InputError, MissingFile, WrongModel
from sae.dictionary import Dictionary
from sae.splicing import check_model, spliced


@dataclass(frozen=True)
class Report:
    """A dictionary measured in its model. Losses and KL are means over tokens, in nats."""

    l0: float
    """Mean number of non-zero latents at a token."""
    mse: float
    """Mean over tokens of the squared error summed over d_in."""
    fvu: float
    """E|e|^2 / (E|x|^2 - |E x|^2) over all tokens; 0 is perfect, 1 what the mean alone reaches."""
    cosine: float
    """Mean cosine between x and its reconstruction."""
    l2_ratio: float
    """Mean |x_hat| / |x|; below 1 is shrinkage."""
    relative_bias: float
    """E|x_hat|^2 / E[x . x_hat]; 1 is unbiased."""
    ce_clean: float
    """Next-token loss of the untouched model."""
    ce_sae: float
    """The same with reconstructions in place of the site's activations."""
    ce_zero: float
    """The same with zeros there."""
    ce_mean: float
    """The same with the mean activation of this text there."""
    ce_recovered_zero: float
    """(ce_zero - ce_sae) / (ce_zero - ce_clean); 1 is as good as untouched, 0 as bad as zeros."""
    ce_recovered_mean: float
    """The same against the mean activation: the harder test."""
    kl: float
    """KL(clean || spliced) of the next-token distributions."""
    kl_recovered_zero: float
    """1 - kl / KL(clean || zeros)."""
    kl_recovered_mean: float
    """1 - kl / KL(clean || mean)."""
    dead: int
    """Latents that fired at no token of this text."""
    dense_1pct: float
    """Share of the latents that fire at more than 1% of the tokens."""
    dense_10pct: float
    """Share that fire at more than 10%."""
    d_sae: int
    n_tokens: int
    """Tokens reconstructed; at window ends and before BOS one is reconstructed but not scored."""

    def table(self) -> pd.DataFrame:
        """One row a number: metric, value."""
        return pd.DataFrame({"metric": list(asdict(self)), "value": list(asdict(self).values())})

    def save(self, path: str | Path) -> None:
        """Write into a metrics.json, keeping what training wrote there. A ratio that is undefined is null."""
        path = Path(path)
        numbers = {name: None if math.isnan(value) else value for name, value in asdict(self).items()}
        runs.write_json(path, read_metrics(path) | numbers)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Undo of `save`. MissingFile where `path` holds no evaluation."""
        numbers = read_metrics(Path(path))
        if missing := [f.name for f in fields(cls) if f.name not in numbers]:
            raise MissingFile(f"no evaluation in {path} (no {missing[0]}): make it with interp sae eval.")
        return cls(**{f.name: math.nan if numbers[f.name] is None else numbers[f.name] for f in fields(cls)})


def read_metrics(path: Path) -> dict[str, Any]:
    """A metrics.json; {} where there is none, InputError where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}.") from None


class Fit:
    """Reconstruction and sparsity over a stream of tokens, summed in float64."""

    def __init__(self, dct: Dictionary) -> None:
        self.dct, self.n = dct, 0
        device = dct.b_dec.device
        self.sums: dict[str, Tensor] = {}
        self.fires = torch.zeros(dct.d_sae, dtype=torch.long, device=device)

    @torch.no_grad()
    def add(self, x: Float[Tensor, "token d_in"]) -> None:
        active = self.dct.active(x)
        x, x_hat = x.double(), self.dct.reconstruct(active, x).double()
        norm, norm_hat, dot = x.norm(dim=1), x_hat.norm(dim=1), (x * x_hat).sum(1)
        parts = {
            "error": (x - x_hat).square(), "x": x, "square": norm.square(), "square_hat": norm_hat.square(), "dot": dot,
            "cosine": dot / (norm * norm_hat).clamp_min(1e-300), "ratio": norm_hat / norm.clamp_min(1e-300),
        }  # fmt: skip
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0) + value.sum(0)
        self.fires += torch.bincount(active.latent, minlength=self.dct.d_sae)
        self.n += len(x)

    def _mean(self, name: str) -> float:
        return float(self.sums[name].sum()) / self.n

    @property
    def mean(self) -> Float[Tensor, " d_in"]:
        """E x, float64."""
        return self.sums["x"] / self.n

    @property
    def l0(self) -> float:
        return int(self.fires.sum()) / self.n

    @property
    def fvu(self) -> float:
        return _ratio(self._mean("error"), self._mean("square") - float(self.mean.square().sum()))

    def numbers(self) -> dict[str, Any]:
        """The part of a Report that needs no model."""
        density = self.fires / self.n
        return {
            "l0": self.l0, "mse": self._mean("error"), "fvu": self.fvu, "cosine": self._mean("cosine"),
            "l2_ratio": self._mean("ratio"), "relative_bias": _ratio(self._mean("square_hat"), self._mean("dot")),
            "dead": int((self.fires == 0).sum()), "dense_1pct": float((density > 0.01).double().mean()),
            "dense_10pct": float((density > 0.1).double().mean()), "d_sae": self.dct.d_sae, "n_tokens": self.n,
        }  # fmt: skip


def _ratio(above: float, below: float) -> float:
    return above / below if below != 0 else math.nan


def _log_probs(
    logits: Float[Tensor, "window pos d_vocab"], scored: Bool[Tensor, "window next"]
) -> Float[Tensor, "token d_vocab"]:
    """What is predicted at the positions `scored`, in nats."""
    return logits[:, :-1][scored].float().log_softmax(-1)


@torch.no_grad()
def evaluate(
    dct: Dictionary,
    model: Model,
    text: Any = "bundled",
    *,
    context: int = 128,
    n_tokens: int | None = 20_000,
    batch_size: int = 8,
) -> Report:
    """Measure `dct` in `model` on `text` (a path, a glob, a list, or "bundled"), in windows of `context` tokens.

    Two passes over the text: the first finds the mean activation. WrongModel where the dictionary was trained on
    another model, UnknownSite where the model has no such site.
    """
    check_model(dct, model)
    dct = dct.to(model.device)
    tokens = windows(model, read_text(text), context=min(context, model.n_ctx), n_tokens=n_tokens).to(model.device)
    is_text = torch.ones_like(tokens, dtype=torch.bool) if model.bos is None else tokens != model.bos
    if not (is_text[:, :-1] & is_text[:, 1:]).any():
        raise InputError("the text has no two tokens in a row to score: give more of it, or a longer context.")
    site, fit = full(dct.site), Fit(dct)
    batches = list(zip(tokens.split(batch_size), is_text.split(batch_size), strict=True))
    for batch, mask in batches:
        with captured(model, [site]) as cache:
            model(batch)
        x = cache[site].flatten(2)
        if x.shape[-1] != dct.d_in:
            raise WrongModel(f'{site} of "{model.name}" has width {x.shape[-1]}; the dictionary reads {dct.d_in}.')
        fit.add(x[mask].to(dct.W_enc.dtype))

    def constant(value: Tensor, mask: Tensor):
        def replace(x: Tensor) -> Tensor:
            wide = mask.reshape(*mask.shape, *[1] * (x.ndim - 2))
            return torch.where(wide, value.to(x.dtype).reshape(x.shape[2:]), x)

        return edited(model, {site: replace})

    ce = dict.fromkeys(("clean", "sae", "zero", "mean"), 0.0)
    kl, n_scored = dict(ce), 0
    for batch, mask in batches:
        scored = mask[:, :-1] & mask[:, 1:]
        n_scored += int(scored.sum())
        answers = batch[:, 1:][scored]
        clean = _log_probs(model(batch), scored)
        ce["clean"] += float(F.nll_loss(clean, answers, reduction="none").double().sum())
        changed = {
            "sae": spliced(model, dct, mask=mask),
            "zero": constant(torch.zeros_like(fit.mean), mask),
            "mean": constant(fit.mean, mask),
        }
        for name, change in changed.items():
            with change:
                changed_to = _log_probs(model(batch), scored)
            ce[name] += float(F.nll_loss(changed_to, answers, reduction="none").double().sum())
            kl[name] += float(F.kl_div(changed_to, clean, log_target=True, reduction="none").sum(-1).double().sum())
    ce, kl = ({name: value / n_scored for name, value in sums.items()} for sums in (ce, kl))
    return Report(
        **fit.numbers(), **{f"ce_{name}": value for name, value in ce.items()}, kl=kl["sae"],
        **{f"ce_recovered_{to}": _ratio(ce[to] - ce["sae"], ce[to] - ce["clean"]) for to in ("zero", "mean")},
        **{f"kl_recovered_{to}": 1 - _ratio(kl["sae"], kl[to]) for to in ("zero", "mean")},
    )  # fmt: skip
