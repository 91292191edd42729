"""Where does a head look, and what kind of head is it? Attention patterns of a text, and scores of every head.

A pattern is [query, key]: what share of its attention the query's head gives to the key; rows sum to 1 and keys after
the query have 0. A score is the attention that a head gives, on the mean over queries, to the keys that a rule names:

    previous_token   the token before the query's (queries from position 2 on, so that it is not the first token)
    current_token    the query's own token (queries from position 1 on, which have a choice)
    first_token      position 0, often BOS: where a head looks that has nothing to do (queries from position 1 on)
    duplicate_token  earlier tokens that are the query's token again
    induction        the tokens that came after earlier copies of the query's token: prefix matching (Olsson et al.
                     2022, arXiv:2209.11895, "Head Activation Evaluators")
    entropy          of the pattern, in nats: 0 looks at one token, ln(i + 1) at all alike (queries from position 1 on)

All but the entropy lie between 0 and 1. Queries to which a rule names no key do not count, and neither does BOS as a
token that came before. `chance` is what a head scores that attends to all tokens alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import torch
from einops import einsum, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import runs
from interp.causal.statistics import bootstrap, mean_and_std
from interp.data.builtin.copying import induction
from interp.data.prompts import Task
from interp.decoder import parts
from interp.decoder.hooks import Edit, edited, watch
from interp.decoder.model import Model
from interp.decoder.sites import Component, components, layer_site
from interp.errors import InputError, MissingFile, UnknownName, nearest
from interp.progress import Progress

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SCORES = ("previous_token", "current_token", "first_token", "duplicate_token", "induction", "entropy")

CONTROLLED = ("duplicate_token", "induction")
"""Scores of tokens that come again, which corrupted prompts show without that."""

MARGIN = 0.1
"""Attention by which an induction head attends to what came next more than to the same distance elsewhere."""

N_SEQUENCES = 50
LENGTH = 24
"""Random tokens in each of the two copies: those of the task `induction`."""

PATTERN_AT_ONCE = 2**23
"""Numbers of a layer's patterns in memory at once."""


@dataclass(frozen=True)
class Patterns:
    """Where every head looks in one text. `layers` numbers the first axis of the arrays, which are float32.

    `value_norm` is the length of what a head would write if it gave a key all its attention, |v W_O| in the stream's
    unit: attention times it is what the query in fact gets from there (Kobayashi et al. 2020, arXiv:2004.10102, eq. 5).
    """

    pattern: Float[np.ndarray, "layer head query key"]
    value_norm: Float[np.ndarray, "layer head key"]
    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    text: tuple[str, ...]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def weighted(self) -> Float[np.ndarray, "layer head query key"]:
        """Attention times |v W_O|, in the stream's unit."""
        return self.pattern * self.value_norm[:, :, None]

    @property
    def entropy(self) -> Float[np.ndarray, "layer head query"]:
        """Of each row of the pattern, in nats: from 0 to ln(position + 1)."""
        return _entropy(torch.from_numpy(self.pattern)).numpy()

    def of(self, head: str, *, weighted: bool = False) -> Float[np.ndarray, "query key"]:
        """The pattern of one head, `of("L1H3")`. UnknownComponent for another name, InputError for a layer not kept."""
        (found,) = components(head, n_layers=max(self.layers) + 1, n_heads=self.pattern.shape[1])
        if found.kind != "head" or found.layer not in self.layers:
            kept = ", ".join(map(str, self.layers))
            raise InputError(f'"{head}" given: heads of the layers {kept} are here, e.g. L{self.layers[0]}H0.')
        at = self.layers.index(found.layer), found.index
        return self.pattern[at] * self.value_norm[at] if weighted else self.pattern[at]

    def table(self) -> pd.DataFrame:
        """A row a head: mean entropy, attention to the token before and to the first one (see the module), and
        `first_token_weighted`, the share of the first token in what is written (`weighted`), on the mean over queries.
        A head that rests on BOS has a large share of attention there and a small one of what it writes."""
        shares = self.weighted / np.maximum(self.weighted.sum(-1, keepdims=True), 1e-30)
        tokens = torch.tensor([self.tokens] * len(self.layers))
        keys = named_keys(tokens, torch.full((len(tokens),), tokens.shape[1]), None)
        keys = {name: keys[name] for name in ("entropy", "previous_token", "first_token")}
        scores = {name: score.ravel().numpy() for name, score in _score(torch.from_numpy(self.pattern), keys).items()}
        rows = _rows(self.layers, self.pattern.shape[1])
        return rows.assign(**scores, first_token_weighted=shares[..., 1:, 0].mean(-1).ravel())

    def figure(
        self, head: str = "L0H0", *, weighted: bool = False, less: Patterns | None = None,
        called: str = "this run - the other",
    ) -> Figure:  # fmt: skip
        """One head's pattern: a row a query, a column a key. `less`: the patterns of another run on as many tokens,
        which are taken from these; the difference is `called` so."""
        from interp.plots.heads import pattern

        values = self.of(head, weighted=weighted)
        if less is not None:
            if len(less.tokens) != len(self.tokens):
                raise InputError(f"{len(self.tokens)} and {len(less.tokens)} tokens given: of as many, a difference.")
            values = values - less.of(head, weighted=weighted)
        frame = pd.DataFrame(values, index=self.text, columns=self.text)
        return pattern(frame, head, weighted=weighted, less="" if less is None else called)

    def save(self, path: str | Path) -> None:
        """patterns.h5 in the folder `path`."""
        Path(path).mkdir(parents=True, exist_ok=True)
        with h5py.File(Path(path) / "patterns.h5", "w") as file:
            for name in ("pattern", "value_norm"):
                file.create_dataset(name, data=getattr(self, name), compression="gzip", shuffle=True)
            file["layers"], file["tokens"] = self.layers, self.tokens
            file.attrs["text"] = json.dumps(self.text)
            file.attrs["about"] = json.dumps(self.about)

    @classmethod
    def load(cls, path: str | Path) -> Patterns:
        """What `save` wrote. MissingFile where there is none."""
        path = Path(path) / "patterns.h5"
        if not path.exists():
            raise MissingFile(f"no patterns.h5 in {path.parent}: make one with interp heads --text.")
        with h5py.File(path, "r") as file:
            numbers = (tuple(file[name][()].tolist()) for name in ("layers", "tokens"))
            text, about = (json.loads(file.attrs[name]) for name in ("text", "about"))
            return cls(file["pattern"][()], file["value_norm"][()], *numbers, tuple(text), about)


def patterns(
    model: Model,
    text: str | Sequence[int] | Int[Tensor, " pos"],
    *,
    layers: Sequence[int] | None = None,
    edits: Mapping[str, Edit] | None = None,
) -> Patterns:
    """Attention patterns of one `text` (BOS is put before it) or of its token ids; of all `layers` if none are given.

    `edits` as `interp.edited` takes them: the patterns are those of the edited run. Right under grouped keys and values
    (a head's value is that of its group) and any position code: patterns are read, not computed again.
    """
    tokens = model.to_tokens(text) if isinstance(text, str) else [int(token) for token in text]
    if len(tokens) < 2:
        raise InputError(f"{len(tokens)} tokens given: attention is between two or more.")
    layers = _checked(model, layers)
    found: dict[str, list[Tensor]] = {"pattern": [], "v": []}
    functions = {
        layer_site(layer, kind): (lambda value, kind=kind: found[kind].append(value[0].float().cpu()))
        for layer in layers
        for kind in found
    }
    with torch.no_grad(), edited(model, edits or {}):
        watch(model, torch.tensor([tokens]), functions)
    norms = [_value_norm(model, layer, v) for layer, v in zip(layers, found["v"], strict=True)]
    about = {"model": model.provenance(), "edits": sorted(edits or {}), "versions": runs.versions()}
    return Patterns(
        torch.stack(found["pattern"]).numpy(), torch.stack(norms).numpy(), tuple(layers), tuple(tokens),
        tuple(model.token_text(tokens)), about,
    )  # fmt: skip


def _value_norm(model: Model, layer: int, v: Float[Tensor, "pos kv_head d_head"]) -> Float[Tensor, "head pos"]:
    """|v W_O| of each head, before any norm that follows attention."""
    v = repeat(v, "pos kv_head d_head -> pos (kv_head group) d_head", group=model.n_heads // model.n_kv_heads)
    written = parts.head_outputs(model, layer, v.to(model.device, model.dtype))
    return written.detach().float().norm(dim=-1).T.cpu()


def _checked(model: Model, layers: Sequence[int] | None) -> list[int]:
    """The layers asked for. InputError for one that there is not, or whose attention shows no pattern."""
    layers = list(range(model.n_layers)) if layers is None else sorted(set(layers))
    if not layers or not 0 <= layers[0] <= layers[-1] < model.n_layers:
        raise InputError(f'layers {layers} given: "{model.name}" has 0 to {model.n_layers - 1}.')
    for layer in layers:
        if layer_site(layer, "pattern") not in model.bridge.hook_dict:
            raise InputError(f'layer {layer} of "{model.name}" shows no attention pattern.')
    return layers


def _rows(layers: Sequence[int], n_heads: int) -> pd.DataFrame:
    heads = [Component("head", layer, head) for layer in layers for head in range(n_heads)]
    return pd.DataFrame([{"component": c.name, "layer": c.layer, "index": c.index} for c in heads])


def _entropy(pattern: Float[Tensor, "... query key"]) -> Float[Tensor, "... query"]:
    return -torch.special.xlogy(pattern, pattern).sum(-1)


@dataclass(frozen=True)
class HeadScores:
    """Scores of every head. `rows` is the table; `values[score]` is float32 [head, sequence], NaN where no query of a
    sequence has a key to look for; `chance[score]` is that of a head that attends to all tokens alike."""

    rows: pd.DataFrame
    values: Mapping[str, np.ndarray]
    chance: Mapping[str, float]
    about: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """A row a head: each score of the module, and the ends of its 95% bootstrap interval over sequences as
        `<score>_low` and `<score>_high`. Where the task has corrupted prompts of the same lengths (for `repeats`: with
        nothing repeated), `induction_control` and `duplicate_token_control` are the attention between the very same
        places there: what a head gives to a distance, whatever stands at it."""
        return self.rows.copy()

    def top(self, score: str = "induction", n: int = 3) -> pd.DataFrame:
        """The `n` heads with the highest `score`, of the entropy the lowest: component, score and interval."""
        columns = ["component", check_score(score), f"{score}_low", f"{score}_high"]
        return self.rows.sort_values(score, ascending=score == "entropy", kind="stable")[columns].head(n)

    def induction_heads(self) -> list[str]:
        """Heads whose induction score is above its control by `MARGIN`, the highest score first."""
        rows = self.rows.sort_values("induction", ascending=False, kind="stable")
        return rows[rows.induction > rows.get("induction_control", 0) + MARGIN].component.tolist()

    def figure(self, score: str = "induction") -> Figure:
        """Layer x head map of one score; a click selects a head's name."""
        from interp.plots.heads import score_map

        return score_map(self.rows, check_score(score), chance=self.chance[score], n=self.about["n"])

    def save(self, path: str | Path) -> None:
        """heads.parquet and heads.h5 into the folder `path`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self.rows.to_parquet(path / "heads.parquet", index=False)
        with h5py.File(path / "heads.h5", "w") as file:
            for score, values in self.values.items():
                file[f"values/{score}"] = values
            file.attrs["about"], file.attrs["chance"] = json.dumps(self.about), json.dumps(self.chance)

    @classmethod
    def load(cls, path: str | Path) -> HeadScores:
        """What `save` wrote. MissingFile where there is none."""
        path = Path(path)
        if not (path / "heads.parquet").exists():
            raise MissingFile(f"no heads.parquet in {path}: make one with interp heads --out.")
        with h5py.File(path / "heads.h5", "r") as file:
            values = {score: file[f"values/{score}"][()] for score in SCORES}
            about, chance = (json.loads(file.attrs[name]) for name in ("about", "chance"))
        return cls(pd.read_parquet(path / "heads.parquet"), values, chance, about)


def check_score(score: str) -> str:
    if score not in SCORES:
        raise UnknownName(f'no score "{score}". Nearest: {nearest(score, SCORES)}.')
    return score


def repeats(model: Model, *, n: int = N_SEQUENCES, length: int = LENGTH, seed: int = 0) -> Task:
    """The task `induction`: BOS, `length` random tokens (each once, no special ones), the same tokens again. InputError
    where the model or its vocabulary is too small for two copies."""
    most = min((model.n_ctx - 1) // 2, (model.d_vocab - 1) // 2)
    if not 2 <= length <= most or n < 1:
        raise InputError(f'{n} sequences of {length} tokens twice given: "{model.name}" has room for 2 to {most}.')
    return induction(model, n, Random(seed), length=length)


def head_scores(
    model: Model,
    on: Task | Int[Tensor, "sequence pos"] | None = None,
    *,
    n: int = N_SEQUENCES,
    length: int = LENGTH,
    seed: int = 0,
    edits: Mapping[str, Edit] | None = None,
    progress: bool = False,
) -> HeadScores:
    """Previous-token, current-token, first-token, duplicate-token and induction score and the entropy of every head.

    `on`: `n` sequences of `length` random tokens twice (`repeats`), if nothing else is given; or the clean prompts of a
    task, or windows of a text (`interp.data.text.windows`), where the rules of the module hold for the tokens that
    happen to come again. The interval is a 95% bootstrap over sequences, drawn by `seed`. `edits`: as `patterns`.
    """
    task = repeats(model, n=n, length=length, seed=seed) if on is None else on
    tokens = task.tokens() if isinstance(task, Task) else task
    lengths = task.lengths if isinstance(task, Task) else torch.full((len(tokens),), tokens.shape[1])
    if tokens.shape[1] > model.n_ctx or int(lengths.min()) < 3:
        raise InputError(
            f"sequences of {int(lengths.min())} to {tokens.shape[1]} tokens given: 3 to {model.n_ctx} can be scored."
        )
    other = task.tokens("corrupted") if isinstance(task, Task) and task.has_corrupted and not task.unaligned else None
    with Progress("scoring heads", len(tokens) * (1 if other is None else 2), progress) as bar:
        values, chance = _attended(model, tokens, tokens, lengths, SCORES, edits or {}, bar)
        control = {} if other is None else _attended(model, other, tokens, lengths, CONTROLLED, edits or {}, bar)[0]
    table = _rows(range(model.n_layers), model.n_heads)
    for name, array in values.items():
        low, high = bootstrap(array, seed)
        table = table.assign(**{name: mean_and_std(array)[0], f"{name}_low": low, f"{name}_high": high})
    table = table.assign(**{f"{name}_control": mean_and_std(array)[0] for name, array in control.items()})
    about = {
        "model": model.provenance(), "on": task.name if isinstance(task, Task) else "windows", "n": len(tokens),
        "length": int(lengths.max()), "seed": seed, "edits": sorted(edits or {}), "versions": runs.versions(),
    }  # fmt: skip
    return HeadScores(table, values, chance, about)


def _attended(
    model: Model,
    tokens: Int[Tensor, "sequence pos"],
    named_by: Int[Tensor, "sequence pos"],
    lengths: Int[Tensor, " sequence"],
    scores: Sequence[str],
    edits: Mapping[str, Edit],
    bar: Progress,
) -> tuple[dict[str, Float[np.ndarray, "head sequence"]], dict[str, float]]:
    """Each of `scores` on `tokens`, and its chance; the rules are those of the tokens `named_by`."""
    layers = _checked(model, None)
    values = {score: np.full((len(layers) * model.n_heads, len(tokens)), np.nan, np.float32) for score in scores}
    chance = {score: [] for score in scores}
    at_once = max(1, PATTERN_AT_ONCE // (model.n_heads * tokens.shape[1] ** 2))
    with torch.no_grad(), edited(model, edits):
        for rows in torch.arange(len(tokens)).split(at_once):
            keys = named_keys(named_by[rows], lengths[rows], model.bos)
            keys = {name: keys[name].to(model.device) for name in scores}

            def score(pattern: Tensor, layer: int, rows: Tensor = rows, keys: Mapping[str, Tensor] = keys) -> None:
                heads = slice(layer * model.n_heads, (layer + 1) * model.n_heads)
                for name, one in _score(pattern.float(), keys).items():
                    values[name][heads, rows.numpy()] = one.T.cpu().numpy()

            watch(model, tokens[rows], {layer_site(at, "pattern"): (lambda p, at=at: score(p, at)) for at in layers})
            alike = torch.ones(tokens.shape[1], tokens.shape[1]).tril()
            alike = (alike / alike.sum(-1, keepdim=True)).expand(len(rows), 1, -1, -1).to(model.device)
            for name, one in _score(alike, keys).items():
                chance[name] += one[:, 0].tolist()
            bar.advance(len(rows))
    return values, {name: float(mean_and_std(np.array([one]))[0][0]) for name, one in chance.items()}


def named_keys(
    tokens: Int[Tensor, "sequence pos"], lengths: Int[Tensor, " sequence"], bos: int | None
) -> dict[str, Bool[Tensor, "sequence query key"]]:
    """The keys that each rule of the module names to a query; "entropy" has the queries that count, with all keys."""
    pos = torch.arange(tokens.shape[1])
    query, key = pos[:, None], pos[None, :]
    inside = (query < lengths[:, None, None]) & (key <= query)
    same = (tokens[:, :, None] == tokens[:, None, :]) & (tokens != (-1 if bos is None else bos))[:, :, None]
    after = torch.nn.functional.pad(same, (1, 0))[:, :, :-1]  # the key before this one is the query's token
    after[:, :, 0] = False
    rules = {
        "previous_token": (key == query - 1) & (query >= 2), "current_token": (key == query) & (query >= 1),
        "first_token": (key == 0) & (query >= 1), "duplicate_token": same & (key < query), "induction": after,
        "entropy": (query >= 1) & (key >= 0),
    }  # fmt: skip
    return {name: rules[name] & inside for name in SCORES}


def _score(
    pattern: Float[Tensor, "sequence head query key"], keys: Mapping[str, Bool[Tensor, "sequence query key"]]
) -> dict[str, Float[Tensor, "sequence head"]]:
    """The mean, over queries with a key to look for, of the attention given to those keys; NaN where there is none."""
    found = {}
    for name, mask in keys.items():
        counts = mask.any(-1).to(pattern.dtype)
        if name == "entropy":
            each = _entropy(pattern)
        else:
            each = einsum(pattern, mask.to(pattern.dtype), "seq head query key, seq query key -> seq head query")
        found[name] = einsum(each, counts, "seq head query, seq query -> seq head") / counts.sum(-1)[:, None]
    return found
