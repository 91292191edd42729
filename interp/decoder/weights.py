"""The weights of a loaded model, by name, and other weights put in their place for a while.

Hooks, the plain model and whatever reads `W_Q` see the change: the tensors are the model's own, changed in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from interp.decoder.placing import needs_weights

if TYPE_CHECKING:
    from interp.decoder.model import Model


def parameters(model: Model) -> dict[str, Parameter]:
    """Every weight by Hugging Face's name (of a TransformerLens model by its own), a shared one under its first."""
    return dict((model.bridge if model.plain is None else model.plain).named_parameters())


@contextmanager
def replaced(model: Model, new: Mapping[str, Tensor], fingerprint: str) -> Iterator[None]:
    """Inside the block the weights named in `new` are those, rounded to the model's dtype, and results carry
    `fingerprint`. Holds the model's lock; afterwards every bit is as before."""
    needs_weights(model, "other weights in their place")
    own = parameters(model)
    with model.lock, torch.no_grad():
        kept, before = {name: own[name].detach().clone() for name in new}, model.fingerprint
    with model.lock:
        try:
            _put(model, own, new)
            model.fingerprint = fingerprint
            yield
        finally:
            _put(model, own, kept)
            model.fingerprint = before


@torch.no_grad()
def _put(model: Model, own: Mapping[str, Parameter], new: Mapping[str, Tensor]) -> None:
    for name, value in new.items():
        own[name].copy_(value)
    for attention in model.bridge.modules():
        if getattr(attention, "split_qkv_matrix", None) is not None and attention.original_component is not None:
            _split_again(attention)


def _split_again(attention: Module) -> None:
    """Queries, keys and values of attention whose three matrices are one: where a head's stand together (GPT-NeoX,
    BLOOM), what the hooks run on is a copy."""
    parts = attention.split_qkv_matrix(attention.original_component)
    for name, part in zip("qkv", parts, strict=True):
        for key, tensor in getattr(attention, name).original_component.named_parameters():
            tensor.copy_(getattr(part, key))
