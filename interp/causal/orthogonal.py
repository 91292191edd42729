"""orthogonalise(): a direction taken out of the weights, so that nothing the model writes to its stream has any of it.

Every matrix W and bias b that writes to the stream (embeddings of tokens and positions, the output of attention, the
output of MLPs and of experts) becomes W - (W v) v and b - (b . v) v, with v of length 1. That is the same as projecting
v out at every write in a run (`Direction.ablate`), for good. Arditi et al. 2024, arXiv:2406.11717, section 4.1.

Where a norm stands between what is written and the stream (Gemma 2, OPT-350m, BLOOM's embeddings) it puts back what was
taken out; such a model is found out before anything is left on disk, and refused.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module, Parameter

from interp import runs
from interp.causal.directions import Direction
from interp.causal.resuming import TOLERANCE
from interp.decoder.hooks import captured, edited
from interp.decoder.loading import load_model
from interp.decoder.model import Model
from interp.decoder.placing import needs_weights
from interp.errors import AlreadyExists, InputError
from interp.progress import Progress


def orthogonalise(model: Model, direction: Direction, to: str | Path, *, progress: bool = False) -> Model:
    """The model without the direction, as a Hugging Face directory at `to`, loaded from there. A tied unembedding
    becomes a matrix of its own, as it was: it reads the stream, it does not write to it.

    AlreadyExists where there is something at `to`; WrongModel for a direction of another model; InputError for a model
    whose writes are not these matrices alone. The directory appears whole or not at all.
    """
    to = Path(to)
    direction.check(model)
    if to.exists():
        raise AlreadyExists(f"{to} exists: name a directory that does not.")
    needs_weights(model, "a direction taken out of weights")
    if model.plain is None:
        raise InputError(f'"{model.name}" is not a Hugging Face model: its weights cannot be saved as one.')
    made = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    try:
        with Progress("taking it out of the weights", 3, progress) as bar:
            changed = orthogonalised(model, direction.vector)
            bar.advance()
            made.mkdir(parents=True)
            changed.save_pretrained(made)
            if model.tokenizer is not None:
                model.tokenizer.save_pretrained(made)
            runs.write_json(made / "orthogonalised.json", {
                "from": model.provenance(), "direction": direction.name, "site": direction.site,
                "method": direction.method, "vector": direction.vector.tolist(), "versions": runs.versions(),
            })  # fmt: skip
            bar.advance()
            dtype = str(model.dtype).removeprefix("torch.")
            _check(model, direction, load_model(str(made), device=str(model.device), dtype=dtype))
            os.replace(made, to)
            bar.advance()
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return load_model(str(to), device=str(model.device), dtype=dtype)


@torch.no_grad()
def orthogonalised(model: Model, vector: Float[Tensor, " d_model"]) -> Any:
    """A copy of the Hugging Face model in which nothing writes along `vector`; `model` stays as it is."""
    changed = copy.deepcopy(model.plain)
    config, head, embedding = changed.config, changed.get_output_embeddings(), changed.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = Parameter(head.weight.detach().clone())
        config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
    unit = vector.double() / vector.double().norm()
    for weight, axis in written(model, changed):
        away = unit.to(weight.device)
        value = weight.double().movedim(axis, -1)
        weight.copy_((value - (value @ away)[..., None] * away).movedim(-1, axis))
    return changed


def written(model: Model, plain: Module) -> Iterator[tuple[Parameter, int]]:
    """The parameters of `plain`, a copy of the model, that write to the stream, each with the axis that is the
    stream's: the last of embeddings, biases and GPT-2's matrices [in, out], the first of other matrices [out, in]."""
    for name in ("embed", "pos_embed"):
        if name in model.bridge._modules:
            yield plain.get_submodule(model.bridge._modules[name].name).weight, -1
    blocks = plain.get_submodule(model.bridge.blocks[0].name.rpartition(".")[0])
    for block, bridge in zip(blocks, model.bridge.blocks, strict=True):
        yield from _linear(block.get_submodule(bridge.attn.name).get_submodule(bridge.attn.o.name))
        if not model.has_mlp:
            continue
        mlp = block if bridge.mlp.name is None else block.get_submodule(bridge.mlp.name)
        if "out" in bridge.mlp._modules:
            yield from _linear(mlp.get_submodule(bridge.mlp.out.name))
        else:
            names = {name: p for name, p in mlp.named_parameters() if "down_proj" in name or ".w2." in name}
            yield from ((p, _axis(p, name, mlp, model.d_model)) for name, p in names.items())


def _axis(weight: Parameter, name: str, mlp: Module, d_model: int) -> int:
    """The stream's axis of what experts write with: [expert, d_model, d_mlp] or a matrix each; of some (GPT-OSS,
    Llama 4) [expert, d_mlp, d_model]; of biases the last."""
    turned = getattr(mlp.get_submodule(name.rpartition(".")[0]), "is_transposed", weight.shape[-2] != d_model)
    return -1 if turned or "bias" in name else -2


def _linear(layer: Module) -> Iterator[tuple[Parameter, int]]:
    yield layer.weight, -1 if type(layer).__name__ == "Conv1D" else 0
    if layer.bias is not None:
        yield layer.bias, -1


@torch.no_grad()
def _check(model: Model, direction: Direction, changed: Model) -> None:
    """InputError unless the changed model does what projecting at every write does, and its stream has nothing along
    the direction; tried on random tokens."""
    tokens = torch.randint(model.d_vocab, (2, min(16, model.n_ctx)), generator=torch.Generator().manual_seed(0))
    with edited(model, direction.ablate(model)):
        wanted = model(tokens)
    with captured(changed, "*.resid_post") as stream:
        found = changed(tokens)
    close = 10 * TOLERANCE[model.dtype]
    same = (found - wanted).abs().max() <= close * wanted.abs().max()
    unit = (direction.vector.double() / direction.vector.double().norm()).to(found.device)
    left = max(float((x.double() @ unit).abs().max() / x.double().norm(dim=-1).max()) for x in stream.values())
    if not same or left > close:
        raise InputError(
            f'"{model.name}" cannot be made orthogonal to a direction: what its embeddings, attention and MLPs write '
            "is changed on the way to the stream (a norm after them). Project it out of a run: *.resid_post."
        )
