"""merge(): a new model out of the weights of others, as a directory; its merge.json says what made it.

Only models of one architecture, with the same names and shapes of weights. A weight that two parts share is mixed once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp import runs
from interp.decoder.directories import check_new, new_directory
from interp.decoder.loading import load_model
from interp.decoder.mixing import BETWEEN, task_vectors
from interp.decoder.model import Model
from interp.decoder.sources import settings
from interp.decoder.weights import parameters, replaced
from interp.errors import InputError, WrongModel, nearest

METHODS = (*BETWEEN, "task")
Number = int | float


def merge(
    sources: Sequence[str],
    to: str | Path,
    *,
    weights: Number | Sequence[Number] | None = None,
    method: str = "linear",
    base: str | None = None,
    drop: Number = 0.0,
    seed: int = 0,
    dtype: str = "float32",
) -> dict[str, Any]:
    """The model made of `sources`, in the new directory `to`; what merge.json says.

    "linear", "slerp": two sources, and `weights` the one number t (0 the first, 1 the second; .5). "task": `base` plus
    each source's difference from it, `weights` times (1 each); `drop` is DARE's p, drawn by `seed`. A source is
    anything that `load_model` takes, adapters included, but a TransformerLens directory.
    """
    to = Path(to)
    check_new(to)
    share = _weights(weights, len(sources), method, base, drop)
    models = [load_model(name, device="cpu", dtype=dtype) for name in ([base] if base else []) + list(sources)]
    for model in models:
        if model.plain is None:
            raise InputError(f'"{model.name}" is no Hugging Face model: such alone are merged.')
        check_same_weights(models[0], model)
    first, own = models[0], [parameters(model) for model in models]
    draw = torch.Generator().manual_seed(random.Random(seed).getrandbits(60))
    with torch.no_grad():
        if method == "task":
            new = {
                name: task_vectors(own[0][name], [o[name] for o in own[1:]], share, p=drop, draw=draw)
                for name in own[0]
            }
        else:
            new = between(*own, share[0], method)
    made = {
        "method": method, "weights": share, "base": models[0].provenance() if base else None, "drop": drop,
        "seed": seed, "sources": [model.provenance() for model in models[bool(base) :]], "versions": runs.versions(),
    }  # fmt: skip
    with replaced(first, new, "merged"), new_directory(to) as folder:
        first.plain.save_pretrained(folder)
        if first.tokenizer is not None:
            first.tokenizer.save_pretrained(folder)
        runs.write_json(folder / "merge.json", made)
    return made


def _weights(
    weights: Number | Sequence[Number] | None, n: int, method: str, base: str | None, drop: Number
) -> list[float]:
    """The weights asked for. InputError where they do not go with the method."""
    if method not in METHODS:
        raise InputError(f'method "{method}" given. Nearest: {nearest(method, METHODS)}.')
    if (method == "task") != (base is not None):
        raise InputError('task vectors are differences from a base: give a base with method "task", and only then.')
    if drop and method != "task" or not 0 <= drop < 1:
        raise InputError(f"drop {drop} given: DARE drops a share from 0 up to 1 of task vectors (method task).")
    if method in BETWEEN and n != 2 or not n:
        raise InputError(f"{n} models given: {method} goes from one to another; with a base, any number of them.")
    wanted = n if method == "task" else 1
    given = [1.0 if method == "task" else 0.5] * wanted if weights is None else weights
    given = [float(given)] if isinstance(given, int | float) else [float(weight) for weight in given]
    if len(given) != wanted:
        raise InputError(f"{len(given)} weights given: {method} of {n} models takes {wanted}.")
    return given


def between(a: Mapping[str, Tensor], b: Mapping[str, Tensor], t: float, method: str) -> dict[str, Tensor]:
    """Every weight at `t` on the way from `a` (0) to `b` (1)."""
    with torch.no_grad():
        return {name: BETWEEN[method](tensor.detach(), b[name].detach(), t) for name, tensor in a.items()}


def check_same_weights(a: Model, b: Model) -> None:
    """WrongModel where the two differ in the names, shapes or kinds of weights, in settings, or in what else they keep:
    nothing lies between them."""
    one, two = parameters(a), parameters(b)
    for name in dict.fromkeys([*one, *two]):
        shapes = [tuple(own[name].shape) if name in own else "absent" for own in (one, two)]
        if shapes[0] != shapes[1]:
            raise WrongModel(f'{name} is {shapes[0]} in "{a.name}", {shapes[1]} in "{b.name}": nothing lies between.')
        if not one[name].is_floating_point():
            raise InputError(f'{name} of "{a.name}" is {one[name].dtype}: quantised weights are not mixed.')
    if a.plain is None or b.plain is None:
        return
    mine, theirs = (settings(model.plain.config.to_dict()) for model in (a, b))
    if other := [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]:
        key = other[0]
        raise WrongModel(
            f'{key} is {mine.get(key)!r} in "{a.name}", {theirs.get(key)!r} in "{b.name}": nothing lies between.'
        )
    kept, others = a.plain.state_dict(), b.plain.state_dict()
    for name, _ in a.plain.named_buffers():
        if name in kept and not torch.equal(kept[name], others[name]):
            raise WrongModel(f'the buffer {name} of "{a.name}" and "{b.name}" differs: nothing lies between.')
