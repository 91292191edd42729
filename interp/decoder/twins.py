"""The model without hooks: a twin on the same weights, and a fresh one to be measured against."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.decoder import placing
from interp.decoder.adapters import read_adapter
from interp.decoder.sources import place, read_config

if TYPE_CHECKING:
    from interp.decoder.model import Model


def plain_twin(hf: torch.nn.Module) -> torch.nn.Module:
    """The model again, of the same tensors, before hooks are put into its modules: what nothing reads or changes runs
    here.

    GPT-2's formula for GELU is written in eight steps there; it is taken in one (the same formula, 1e-6 apart).
    """
    shared = {id(tensor): tensor for tensor in (*hf.parameters(), *hf.buffers())}
    twin = copy.deepcopy(hf, shared)
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "NewGELUActivation":
                setattr(parent, name, torch.nn.GELU(approximate="tanh"))
    return twin


def plain_logits(model: Model, tokens: Int[Tensor, "prompt pos"]) -> Float[Tensor, "prompt pos d_vocab"] | None:
    """Logits of a fresh plain Hugging Face model of the same name, dtype and places; of quantised weights as
    transformers makes numbers of them. None for TransformerLens."""
    from transformers import AutoModelForCausalLM

    name = model.name if model.adapter is None else model.adapter["base"]
    folder = place(name)
    if (folder / "config.json").exists() and read_config(folder).get("format") == "transformer_lens":
        return None
    source = str(folder) if folder.exists() else name
    placed = {} if model.plain is None else placing.again(model.plain)
    hf = AutoModelForCausalLM.from_pretrained(
        source, dtype=model.dtype, revision=model.revision, use_safetensors=True, **placed
    )
    hf.config._experts_implementation = getattr(model.plain.config, "_experts_implementation", None)
    if model.adapter is not None:
        read_adapter(model.adapter["path"]).merge(hf, model.adapter["scale"])
    placing.keep_folder(hf, placed)
    if model.quantisation:
        hf = hf.dequantize()
    return (hf if placed else hf.to(model.device)).eval()(tokens.to(model.device)).logits
