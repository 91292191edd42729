"""The residual stream after each layer, read as the last one is: through the final layer norm and the unembedding.

Layer -1 is the stream before the first block (the embeddings), layer l the stream after block l. The last layer is the
run's own output. Edits change the run and never the reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.data.prompts import Prompt, Task
from interp.decoder.hooks import Edit, captured, edited
from interp.decoder.model import Model
from interp.decoder.sites import layer_site
from interp.errors import InputError

LOGITS_AT_ONCE = 2**24
"""Logits of one layer held at a time, and of a run's output."""


@runtime_checkable
class Translator(Protocol):
    """What is done to the stream of a layer before it is read (`interp.lenses.tuned`)."""

    layers: tuple[int, ...]

    def __call__(self, layer: int, hidden: Float[Tensor, "read d_model"]) -> Float[Tensor, "read d_model"]: ...


@dataclass(frozen=True)
class Seen:
    """What a run has at the positions read: by layer the residual stream, and the logits that come out."""

    hidden: Mapping[int, Float[Tensor, "read d_model"]]
    logits: Float[Tensor, "read d_vocab"]


def sites(model: Model) -> dict[int, str]:
    """Layer -> the hook point at which its stream is read."""
    return {-1: layer_site(0, "resid_pre")} | {
        layer: layer_site(layer, "resid_post") for layer in range(model.n_layers)
    }


def label(layer: int) -> str:
    """`embed`, `L0`, `L1`, ..."""
    return "embed" if layer < 0 else f"L{layer}"


@torch.no_grad()
def look(
    model: Model,
    tokens: Int[Tensor, "prompt pos"],
    prompt: Int[Tensor, " read"],
    pos: Int[Tensor, " read"],
    edits: Mapping[str, Edit] | None = None,
) -> Seen:
    """One pass with `edits`; the streams and logits at position `pos[i]` of prompt `prompt[i]`."""
    places = sites(model)
    with edited(model, edits or {}), captured(model, list(places.values())) as cache:
        logits = model(tokens)
    prompt, pos = prompt.to(logits.device), pos.to(logits.device)
    hidden = {layer: cache[site][prompt, pos] for layer, site in places.items()}
    return Seen(hidden, at_least_float(logits[prompt, pos]))


def at_least_float(x: Tensor) -> Tensor:
    """Half precision as float32."""
    return x if x.dtype == torch.float64 else x.float()


def readings(
    model: Model, seen: Seen, tuned: Translator | None = None
) -> Iterator[tuple[int, slice, Float[Tensor, "some d_vocab"], Float[Tensor, "some d_vocab"]]]:
    """Layer by layer, and some reads at a time: the layer, which reads, the logits of the lens and those of the output.

    Of a tuned lens only the layers that it was trained on, and the output.
    """
    last = model.n_layers - 1
    for layer, hidden in seen.hidden.items():
        if tuned is not None and layer not in (*tuned.layers, last):
            continue
        size = max(1, LOGITS_AT_ONCE // model.d_vocab)
        for start in range(0, len(hidden), size):
            some = slice(start, start + size)
            output = seen.logits[some]
            if layer == last:
                yield layer, some, output, output
                continue
            x = hidden[some] if tuned is None else tuned(layer, hidden[some])
            yield layer, some, at_least_float(model.head(x)), output


def rank_of(logits: Float[Tensor, "read d_vocab"], token: Int[Tensor, " read"]) -> Int[Tensor, " read"]:
    """1 where the token has the highest logit, 2 where one is above it, ..."""
    return 1 + (logits > logits.gather(1, token[:, None])).sum(1)


def kl_divergence(p: Float[Tensor, "read d_vocab"], q: Float[Tensor, "read d_vocab"]) -> Float[Tensor, " read"]:
    """KL(p || q) of log-probabilities, in nats: 0 where they agree."""
    return (p.exp() * (p - q)).sum(-1)


def entropy_of(p: Float[Tensor, "read d_vocab"]) -> Float[Tensor, " read"]:
    """Entropy of log-probabilities, in nats: 0 where one token is certain, log d_vocab where all are alike."""
    return -(p.exp() * p).sum(-1)


def token_id(model: Model, token: str | int) -> int:
    """A token by its text or its number. InputError for a text that is not one token."""
    if isinstance(token, int):
        if not 0 <= token < model.d_vocab:
            raise InputError(f'token {token} given: "{model.name}" has tokens 0 to {model.d_vocab - 1}.')
        return token
    ids = model.to_tokens(token, prepend_bos=False)
    if len(ids) != 1:
        parts = ", ".join(map(repr, model.token_text(ids)))
        raise InputError(
            f'{token!r} is {len(ids)} tokens of "{model.name}" ({parts}): give one, with its space (" Mary").'
        )
    return ids[0]


def token_ids(model: Model, prompt: str | Sequence[int] | Int[Tensor, " pos"]) -> list[int]:
    """The tokens of a text, after BOS where the model has one; token ids as they are. InputError for none, or for more
    than the model reads."""
    ids = model.to_tokens(prompt) if isinstance(prompt, str) else [int(i) for i in prompt]
    if not 1 <= len(ids) <= model.n_ctx:
        raise InputError(f'{len(ids)} tokens given: "{model.name}" reads 1 to {model.n_ctx}.')
    return [token_id(model, i) for i in ids]


def one_prompt(
    model: Model, prompt: str | Sequence[int], answer: str | int, wrong: str | int | None, position: int
) -> Task:
    """A task of one prompt, read at `position` (-1 the last)."""
    ids = token_ids(model, prompt)
    if not -len(ids) <= position < len(ids):
        raise InputError(f"position {position} given: the prompt has {len(ids)} tokens.")
    target = (position % len(ids), token_id(model, answer))
    other = None if wrong is None else token_id(model, wrong)
    return Task("prompt", [Prompt(ids, [target], wrong_token=other)])
