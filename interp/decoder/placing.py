"""Where a model's weights are: on one device, spread over several and a disk (accelerate), or as 8- or 4-bit numbers.

What reads activations holds on all of them: hooks, edits, sweeps, generation. What reads weights themselves (circuits
of weights, heads' outputs one by one, orthogonalised and interpolated models) holds where the numbers are there to be
read, and is refused by `needs_weights` elsewhere. Spread over several GPUs nothing was measured: `interp model check`
measures it. A model partly on a GPU and partly off it cannot be opened by TransformerLens, and is refused.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from interp.errors import InputError, nearest

if TYPE_CHECKING:
    from interp.decoder.model import Model

QUANTIZED = {"8bit": {"load_in_8bit": True}, "4bit": {"load_in_4bit": True}}


def arguments(
    name: str,
    device: str,
    *,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload: str | Path | None = None,
    quantize: str | None = None,
) -> dict[str, Any]:
    """What transformers is told of the place of weights; nothing for one device. InputError where what it takes is
    missing here."""
    if device != "auto" and (max_memory or offload):
        raise InputError(f'device "{device}" given: max_memory and offload are for device "auto".')
    found: dict[str, Any] = {}
    if device == "auto":
        if importlib.util.find_spec("accelerate") is None:
            raise InputError("device auto takes accelerate, which is not installed: pip install accelerate.")
        found = {"device_map": "auto", "offload_folder": str(offload or tempfile.gettempdir())}
        found |= {} if max_memory is None else {"max_memory": dict(max_memory)}
    if quantize is not None:
        if quantize not in QUANTIZED:
            raise InputError(f'unknown quantisation "{quantize}". Nearest: {nearest(quantize, QUANTIZED)}.')
        if importlib.util.find_spec("bitsandbytes") is None:
            raise InputError(f'"{name}" in {quantize} takes bitsandbytes, which is not installed.')
        if not torch.cuda.is_available():
            raise InputError(f'"{name}" in {quantize} takes a CUDA GPU, and there is none here.')
        from transformers import BitsAndBytesConfig

        found = {"device_map": {"": device}} | found
        found["quantization_config"] = BitsAndBytesConfig(**QUANTIZED[quantize])
    return found


def unread(hf: Module) -> str:
    """Why the weights of a transformers model cannot be read as numbers; empty where they can."""
    if getattr(hf, "is_quantized", False):
        return "which are quantised"
    if any(value.is_meta for value in hf.parameters()):
        return "which are not all in memory (device auto)"
    return ""


def entrance(hf: Module) -> torch.device:
    """Where tokens go into a model that is spread: where its first layers are computed."""
    places = [place for place in hf.hf_device_map.values() if place != "disk"]
    return torch.device(places[0] if places else "cpu")


def needs_weights(model: Model, what: str) -> None:
    """InputError where `what` would read weights that are not there as numbers."""
    if model.unread:
        raise InputError(f'{what} reads the weights of "{model.name}", {model.unread}: load it whole, on one device.')


class State(Mapping):
    """The weights of a model by name, as `state_dict` has them; those that are not in memory are fetched one by one."""

    def __init__(self, hf: Module):
        self.hf, self.state = hf, hf.state_dict()

    def __getitem__(self, name: str) -> Tensor:
        value = self.state[name]
        if not value.is_meta:
            return value
        from accelerate.utils import align_module_device

        owner, _, own = name.rpartition(".")
        with align_module_device(self.hf.get_submodule(owner)):
            return getattr(self.hf.get_submodule(owner), own).detach().clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)
