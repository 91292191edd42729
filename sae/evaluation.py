"""How good a dictionary is: how well it reconstructs, how sparsely, and what the model loses when it is spliced in.

Special tokens (BOS, padding) carry no text, and the activation of BOS is an outlier. They are left alone in every
condition (clean, dictionary, zero, mean), count in no number here, and neither their own next-token loss nor the loss
of one that follows is scored. Of a transcoder y, what it predicts, stands everywhere in place of x.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import runs
from interp.data.text import read_text, windows
from interp.decoder.hooks import captured, edited
from interp.decoder.model import Model
from interp.errors import InputError, MissingFile, WrongModel
from interp.progress import Progress
from sae.dictionary import Dictionary
from sae.rows import text_mask
from sae.splicing import check_model, spliced
from sae.weights import encoder_cosine


@dataclass(frozen=True)
class Report:
    """A dictionary measured in its model. Losses and KL are means over tokens, in nats."""

    l0: float
    """Mean number of non-zero latents at a token."""
    density: float
    """Median over latents of the share of tokens at which one fires; each latent's own is in `sae.features`."""
    encoder_cosine: float
    """Mean cosine of the encoder column and decoder row of a latent; NaN in a transcoder."""
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
    def add(self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"] | None = None) -> None:
        """Count some tokens. `y` is what a transcoder is to predict."""
        active = self.dct.active(x)
        y_hat, y = self.dct.reconstruct(active, x).double(), (x if y is None else y).double()
        norm, norm_hat, dot = y.norm(dim=1), y_hat.norm(dim=1), (y * y_hat).sum(1)
        parts = {
            "error": (y - y_hat).square(), "y": y, "square": norm.square(), "square_hat": norm_hat.square(), "dot": dot,
            "cosine": dot / (norm * norm_hat).clamp_min(1e-300), "ratio": norm_hat / norm.clamp_min(1e-300),
        }  # fmt: skip
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0) + value.sum(0)
        self.fires += torch.bincount(active.latent, minlength=self.dct.d_sae)
        self.n += len(x)

    def _mean(self, name: str) -> float:
        return float(self.sums[name].sum()) / self.n

    @property
    def mean(self) -> Float[Tensor, " d_out"]:
        """E y, float64."""
        return self.sums["y"] / self.n

    @property
    def l0(self) -> float:
        return int(self.fires.sum()) / self.n

    @property
    def fvu(self) -> float:
        return _ratio(self._mean("error"), self._mean("square") - float(self.mean.square().sum()))

    def numbers(self) -> dict[str, Any]:
        """The part of a Report that needs no model."""
        density = self.fires.double() / self.n
        return {
            "l0": self.l0, "density": float(density.median()), "mse": self._mean("error"), "fvu": self.fvu,
            "encoder_cosine": float(encoder_cosine(self.dct).mean()), "cosine": self._mean("cosine"),
            "l2_ratio": self._mean("ratio"), "relative_bias": _ratio(self._mean("square_hat"), self._mean("dot")),
            "dead": int((self.fires == 0).sum()), "dense_1pct": float((density > 0.01).double().mean()),
            "dense_10pct": float((density > 0.1).double().mean()), "d_sae": self.dct.d_sae, "n_tokens": self.n,
        }  # fmt: skip


def _ratio(above: float, below: float) -> float:
    return above / below if below != 0 else math.nan


def _side_by_side(cache: dict[str, Tensor], sites: Sequence[str], dct: Dictionary) -> Float[Tensor, "window pos d"]:
    return torch.cat([cache[site].flatten(2) for site in sites], dim=-1).to(dct.W_enc.dtype)


def _constant(
    model: Model, dct: Dictionary, value: Float[Tensor, " d_out"], mask: Bool[Tensor, "window pos"]
) -> AbstractContextManager[None]:
    """`value` at every output site of `dct`, where `mask` is True."""

    def replace(part: Tensor, y: Tensor) -> Tensor:
        where = mask.reshape(*mask.shape, *[1] * (y.ndim - 2))
        return torch.where(where, part.to(y.dtype).reshape(y.shape[2:]), y)

    parts = value.chunk(len(dct.out_sites))
    return edited(model, {site: partial(replace, part) for site, part in zip(dct.out_sites, parts, strict=True)})


class Damage:
    """Next-token loss and KL, in nats, summed in float64 over scored tokens, for each way of changing the model."""

    def __init__(self) -> None:
        self.ce: dict[str, float] = {}
        self.kl: dict[str, float] = {}
        self.n = 0

    def add(
        self,
        model: Model,
        tokens: Int[Tensor, "window pos"],
        scored: Bool[Tensor, "window next"],
        clean: Float[Tensor, "window pos d_vocab"],
        changes: Mapping[str, AbstractContextManager[None]],
    ) -> None:
        """Count one batch: the clean logits, and those under each of `changes`. `scored`: whether the token after each
        position counts."""
        answers = tokens[:, 1:][scored]
        log_p = clean[:, :-1][scored].float().log_softmax(-1)
        self._count(self.ce, "clean", F.nll_loss(log_p, answers, reduction="none"))
        for name, change in changes.items():
            with change:
                log_q = model(tokens)[:, :-1][scored].float().log_softmax(-1)
            self._count(self.ce, name, F.nll_loss(log_q, answers, reduction="none"))
            self._count(self.kl, name, F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1))
        self.n += len(answers)

    @staticmethod
    def _count(sums: dict[str, float], name: str, values: Float[Tensor, " token"]) -> None:
        sums[name] = sums.get(name, 0.0) + float(values.double().sum())

    def numbers(self) -> dict[str, Any]:
        """The part of a Report that needs the model."""
        ce, kl = ({name: value / self.n for name, value in sums.items()} for sums in (self.ce, self.kl))
        return {
            **{f"ce_{name}": value for name, value in ce.items()}, "kl": kl["sae"],
            **{f"ce_recovered_{to}": _ratio(ce[to] - ce["sae"], ce[to] - ce["clean"]) for to in ("zero", "mean")},
            **{f"kl_recovered_{to}": 1 - _ratio(kl["sae"], kl[to]) for to in ("zero", "mean")},
        }  # fmt: skip


@torch.no_grad()
def evaluate(
    dct: Dictionary,
    model: Model,
    text: Any = "bundled",
    *,
    context: int = 128,
    n_tokens: int | None = 20_000,
    batch_size: int = 8,
    progress: bool = False,
) -> Report:
    """Measure `dct` in `model` on `text` (a path, a glob, a list, or "bundled"), in windows of `context` tokens.

    Two passes over the text: the first finds the mean activation. A crosscoder is spliced into all its sites at once,
    its reconstruction that of a clean pass. WrongModel where the dictionary was trained on another model, UnknownSite
    where the model has no such site.
    """
    check_model(dct, model)
    dct = dct.to(model.device)
    tokens = windows(model, read_text(text), context=min(context, model.n_ctx), n_tokens=n_tokens).to(model.device)
    is_text = text_mask(model, tokens)
    if not (is_text[:, :-1] & is_text[:, 1:]).any():
        raise InputError("the text has no two tokens in a row to score: give more of it, or a longer context.")
    sites = list(dict.fromkeys(dct.sites + dct.out_sites))
    batches = list(zip(tokens.split(batch_size), is_text.split(batch_size), strict=True))
    fit, damage = Fit(dct), Damage()
    with Progress("evaluating", 5 * len(batches), progress) as bar:
        for batch, mask in batches:
            with captured(model, sites) as cache:
                model(batch)
            x, y = (_side_by_side(cache, which, dct)[mask] for which in (dct.sites, dct.out_sites))
            if (x.shape[1], y.shape[1]) != (dct.d_in, dct.d_out):
                widths = f"{x.shape[1]} and {y.shape[1]}; the dictionary reads {dct.d_in} and writes {dct.d_out}"
                raise WrongModel(f'{", ".join(sites)} of "{model.name}" have width {widths}.')
            fit.add(x, y)
            bar.advance()
        for batch, mask in batches:
            with captured(model, sites) as cache:
                clean = model(batch)
            given = cache if len(dct.out_sites) > 1 else None
            changes = {
                "sae": spliced(model, dct, mask=mask, given=given),
                "zero": _constant(model, dct, torch.zeros_like(fit.mean), mask),
                "mean": _constant(model, dct, fit.mean, mask),
            }
            damage.add(model, batch, mask[:, :-1] & mask[:, 1:], clean, changes)
            bar.advance(4)
    return Report(**fit.numbers(), **damage.numbers())
