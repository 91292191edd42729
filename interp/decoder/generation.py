"""What the model writes, token by token, with any edits; and the same without them, beside it.

    generation = interp.generate(model, "Once upon a time", n=5, edits={"3.resid_post": push}, where="new")
    generation.table()      # a row a continuation, edited and baseline
    generation.tokens()     # a row a token: its log-probability in both runs, and KL(edited || baseline) there

With a cache of keys and values each position is computed once; an edit must act on each position by itself, as those of
`interp.causal.edits` do, and then the cache changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import runs
from interp.decoder.continuations import Generation, collected, in_order, likeliest, texts_of
from interp.decoder.hooks import Edit, captured, edited
from interp.decoder.model import Model
from interp.decoder.sites import axes
from interp.errors import InputError
from interp.progress import Progress

Where = str | Sequence[int]
"""Positions edited: "all", "prompt", "new" (of tokens that were generated), or numbers; -1 is the prompt's last."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The same seed gives the same text, whatever else is in the batch."""

    max_new_tokens: int = 40
    temperature: int | float = 1.0
    """0 takes the likeliest token (greedy)."""
    top_k: int | None = None
    """Only the k likeliest tokens. Fan et al. 2018, arXiv:1805.04833."""
    top_p: int | float | None = None
    """Only the fewest likeliest tokens that hold this much probability. Holtzman et al. 2020, arXiv:1904.09751."""
    seed: int = 0
    stop: bool = True
    """End a text at the tokenizer's end-of-text token."""

    def __post_init__(self) -> None:
        for name, right, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "in (0, 1]"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            if not right:
                raise InputError(f"{name} {getattr(self, name)} given: it is {wanted}.")

    def choose(
        self, logits: Float[Tensor, "sequence d_vocab"], noise: Float[Tensor, "sequence d_vocab"] | None
    ) -> Int[Tensor, " sequence"]:
        """The next tokens: the largest of logits / temperature + `noise` (Gumbel) among those left, which draws from
        their probabilities (Gumbel 1954); greedy needs none. Runs that share it choose alike where their logits are
        alike."""
        if self.temperature == 0:
            return logits.argmax(-1)
        scaled = logits.double() / self.temperature
        if self.top_k is not None or self.top_p is not None:
            scaled = scaled.masked_fill(~self._left(scaled), -torch.inf)
        return (scaled + noise.to(scaled)).argmax(-1)

    def _left(self, scaled: Float[Tensor, "sequence d_vocab"]) -> Bool[Tensor, "sequence d_vocab"]:
        """The tokens that top-k and top-p leave."""
        ordered, tokens = scaled.sort(stable=True, dim=-1, descending=True)
        probability = ordered.softmax(-1)
        if self.top_k is not None:
            probability[:, self.top_k :] = 0
        kept = probability > 0
        if self.top_p is not None:
            before = probability.cumsum(-1) - probability
            kept &= before < self.top_p * probability.sum(-1, keepdim=True)
        return torch.zeros_like(kept).scatter(-1, tokens, kept)


@dataclass(frozen=True)
class Step:
    """One more token of each sequence. -1 and NaN where a sequence had ended."""

    tokens: Int[Tensor, " sequence"]
    logprob: Float[Tensor, " sequence"]
    """Of the token, in the run that wrote it, in nats, before temperature and cuts."""
    baseline_logprob: Float[Tensor, " sequence"]
    """Of the same token after the same text without edits."""
    kl: Float[Tensor, " sequence"]
    """KL(edited || baseline) of the next token, after the same text, in nats; 0 is no difference."""


class _Run:
    """The model on texts that grow, under edits. `patterns` are hook points whose activations are kept of each pass."""

    def __init__(
        self, model: Model, length: int, edits: Mapping[str, Edit], where: Where, cache: bool, patterns: Sequence[str]
    ):
        self.model, self.cached, self.cache, self.seen = model, cache, None, 0
        self.edited, self.patterns = _placed(model, edits, where, length, lambda: self.seen), patterns
        self.kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def next(
        self, tokens: Int[Tensor, "sequence pos"], held: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "sequence d_vocab"]:
        """Logits after the whole of `tokens`; `held`: patterns to be used in this pass."""
        holding = {site: lambda _, value=value: value for site, value in (held or {}).items()}
        with ExitStack() as stack:
            self.kept = stack.enter_context(captured(self.model, self.patterns)) if self.patterns else {}
            if self.edited or holding:
                stack.enter_context(edited(self.model, {**self.edited, **holding}))
            plain = not (self.edited or holding or self.patterns)
            logits, cache = self.model.extend(tokens[:, self.seen :], self.cache, plain=plain, keep=self.cached)
        if self.cached:
            self.cache, self.seen = cache, tokens.shape[1]
        return logits.float()


def _placed(
    model: Model, edits: Mapping[str, Edit], where: Where, length: int, first: Callable[[], int]
) -> dict[str, Edit]:
    """The edits, each at the positions `where` alone; a pass begins at the position `first()` of the text."""

    def chosen(n: int) -> Bool[Tensor, " pos"]:
        position = torch.arange(first(), first() + n)
        if isinstance(where, str):
            return position < length if where == "prompt" else position >= length
        return torch.isin(position, torch.tensor([at + length if at < 0 else at for at in where]))

    def at(site: str, edit: Edit) -> Edit:
        axis = axes(site).split().index("query" if "query" in axes(site) else "pos")

        def placed(value: Tensor) -> Tensor:
            mask = chosen(value.shape[axis]).to(value.device)
            if not mask.any():
                return value
            return torch.where(mask.reshape(-1, *[1] * (value.ndim - 1 - axis)), edit(value), value)

        return placed

    names = {name: edit for site, edit in edits.items() for name in model.expand(site)}
    return names if where == "all" else {name: at(name, edit) for name, edit in names.items()}


def _check(model: Model, tokens: Tensor, sampling: Sampling, where: Where, patterns: str, edits: Mapping) -> None:
    length = tokens.shape[1]
    if tokens.ndim != 2 or length < 1:
        raise InputError(f"tokens of shape {tuple(tokens.shape)} given: [sequence, pos], with one position or more.")
    if length + sampling.max_new_tokens > model.n_ctx:
        raise InputError(
            f'{length} tokens and {sampling.max_new_tokens} new ones: "{model.name}" reads at most {model.n_ctx}; '
            f"{max(model.n_ctx - length, 0)} new ones fit."
        )
    if isinstance(where, str) and where not in ("all", "prompt", "new"):
        raise InputError(f'where "{where}" given: all, prompt, new, or positions such as 3 or -1.')
    if not isinstance(where, str):
        outside = [at for at in where if not -length <= at < length + sampling.max_new_tokens]
        if outside or not where:
            raise InputError(
                f"positions {list(where)} given: from {-length} to {length + sampling.max_new_tokens - 1}."
            )
    if patterns not in ("live", "frozen"):
        raise InputError(f'patterns "{patterns}" given: live, or frozen (those of the run without edits).')
    if patterns == "frozen" and not any(site.endswith("hook_pattern") for site in model.sites):
        raise InputError(f'attention patterns of "{model.name}" cannot be held: use patterns live.')
    if patterns == "frozen" and any(site.endswith("pattern") for site in edits):
        raise InputError("patterns frozen given, and an edit of a pattern: one of the two.")


def stream(
    model: Model,
    tokens: Int[Tensor, "sequence pos"] | Sequence[Sequence[int]],
    sampling: Sampling = Sampling(),
    *,
    edits: Mapping[str, Edit] | None = None,
    where: Where = "all",
    patterns: str = "live",
    beside: bool = True,
    cache: bool = True,
    draws: Sequence[np.random.Generator] | None = None,
) -> Iterator[Step]:
    """Continue each sequence, a token a step, until all have ended or `max_new_tokens` are there.

    With `edits` and `beside` the model without edits reads along: `Step.kl` and `baseline_logprob` are of it.
    `patterns` "frozen": attention is where it is without edits, so that only what is carried along it differs. Edits at
    "new" positions first change the second token: the first is said at the prompt's last position. `cache` False
    computes the whole text for each token. `draws`: random numbers for each sequence; those of the first sample of
    each prompt in `generate` if not given.
    The lock is held within a step, not between.
    """
    edits, tokens = edits or {}, torch.as_tensor(tokens)
    _check(model, tokens, sampling, where, patterns, edits)
    frozen, length = bool(edits) and patterns == "frozen", tokens.shape[1]
    sites = [site for site in model.sites if frozen and site.endswith("hook_pattern")]
    run = _Run(model, length, edits, where, cache, ())
    other = _Run(model, length, {}, "all", cache, sites) if edits and (beside or frozen) else None
    draws = draws or [np.random.default_rng([sampling.seed, number, 0]) for number in range(len(tokens))]
    end = model.tokenizer.eos_token_id if sampling.stop and model.tokenizer is not None else None
    text, live = tokens.to(model.device), torch.ones(len(tokens), dtype=torch.bool, device=model.device)
    for _ in range(sampling.max_new_tokens):
        plain = None if other is None else other.next(text).log_softmax(-1)
        logits = run.next(text, other.kept if frozen else None)
        drawn = [draw.gumbel(size=model.d_vocab) for draw in draws] if sampling.temperature else None
        noise = None if drawn is None else torch.from_numpy(np.stack(drawn))
        chosen = sampling.choose(logits, noise)
        own = logits.log_softmax(-1)
        base = own if plain is None else plain
        kl = (own.exp() * (own - base)).nan_to_num(0.0).sum(-1).clamp(min=0)  # rounding apart, it is
        found = (probability.gather(-1, chosen[:, None])[:, 0] for probability in (own, base))
        gone = ~live
        yield Step(chosen.masked_fill(gone, -1).cpu(), *(v.masked_fill(gone, torch.nan).cpu() for v in (*found, kl)))
        live = live & (chosen != end) if end is not None else live
        if not live.any():
            return
        text = torch.cat([text, chosen[:, None]], 1)


def generate(
    model: Model,
    prompts: str | Sequence[str] | Int[Tensor, "prompt pos"],
    *,
    n: int = 1,
    best_of: int | None = None,
    max_new_tokens: int = 40,
    temperature: int | float = 1.0,
    top_k: int | None = None,
    top_p: int | float | None = None,
    seed: int = 0,
    stop: bool = True,
    edits: Mapping[str, Edit] | None = None,
    where: Where = "all",
    patterns: str = "live",
    cache: bool = True,
    progress: bool = False,
) -> Generation:
    """`n` continuations of each prompt; with `edits`, edited and baseline ones: those of one number are drawn by the
    same random numbers.

    `best_of`: as many are drawn, and the `n` of the largest mean log-probability under the run that wrote them kept,
    the likeliest first: those of one number are then no pair.
    Sampling as `Sampling`, edits as `stream`. InputError for what does not fit the model.
    """
    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, seed, stop)
    drawn = n if best_of is None else best_of
    if n < 1 or drawn < n:
        raise InputError(f"n {n} of best_of {drawn} given: one or more, of as many or more drawn.")
    texts = [prompts] if isinstance(prompts, str) else prompts
    given = [list(map(int, text)) if isinstance(text, Tensor) else model.to_tokens(text) for text in texts]
    if not given:
        raise InputError("no prompt given.")
    for tokens in given:
        _check(model, torch.tensor([tokens]), sampling, where, patterns, edits or {})
    kinds = ["edited", "baseline"] if edits else ["baseline"]
    cache = cache and model.plain is not None
    pieces: list[pd.DataFrame] = []
    with Progress("generating", len(kinds) * len(given) * drawn * max_new_tokens, progress) as bar:
        for kind in kinds:
            for batch in _batches(given, drawn):
                draws = [np.random.default_rng([seed, number, sample]) for number, sample in batch]
                steps = stream(
                    model, torch.tensor([given[number] for number, _ in batch]), sampling, draws=draws, cache=cache,
                    **({"edits": edits, "where": where, "patterns": patterns} if kind == "edited" else {}),
                )  # fmt: skip
                pieces.append(collected(steps, batch, kind, bar))
                bar.advance(len(batch) * max_new_tokens - len(pieces[-1]))
    rows = pd.concat(pieces, ignore_index=True)
    rows = in_order(rows if best_of is None else likeliest(rows, n))
    rows.insert(5, "text", model.token_text(rows.token))
    spelled = [model.tokenizer.decode(t[t[0] == model.bos :]) if model.tokenizer else str(t) for t in given]
    said = {
        "model": model.provenance(), "versions": runs.versions(), "sampling": asdict(sampling), "n": n,
        "best_of": best_of, "edits": sorted(edits or {}), "where": where if isinstance(where, str) else list(where),
        "patterns": patterns, "texts": texts_of(model, rows),
    }  # fmt: skip
    return Generation(tuple(spelled), rows, said)


AT_ONCE = 64
"""Sequences a batch."""


def _batches(given: Sequence[Sequence[int]], n: int) -> Iterator[list[tuple[int, int]]]:
    """(prompt, sample) of sequences that go together: prompts of one length."""
    for length in dict.fromkeys(map(len, given)):
        mine = [(number, sample) for number, t in enumerate(given) if len(t) == length for sample in range(n)]
        yield from (mine[start : start + AT_ONCE] for start in range(0, len(mine), AT_ONCE))
