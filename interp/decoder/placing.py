"""Where a model's weights are: on one device, spread over several and a disk (accelerate), or as 8- or 4-bit numbers.

What reads activations holds on all of them: hooks, edits, sweeps, generation. What reads a layer's weights (heads'
outputs one by one, EAP, direct attribution) asks for them with `as_numbers`. What reads or changes all (circuits of
weights, orthogonalised and interpolated models) is refused by `needs_weights` where they are not there. A pass with
gradients keeps every weight that it fetched, so `needs_gradients` asks first whether they fit. Spread over several GPUs
nothing was measured: `interp model check` measures it. A model partly on a GPU and partly off it cannot be opened by
TransformerLens, and is refused.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from interp.decoder import quantised
from interp.errors import InputError, nearest

if TYPE_CHECKING:
    from interp.decoder.model import Model

Budget = Mapping[int | str, int | str]

_SIZE = re.compile(r"\d+(\.\d+)?\s?([KMGT]i?B)", re.IGNORECASE)


def arguments(
    name: str,
    device: str,
    *,
    max_memory: Budget | None = None,
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
        found = {"device_map": "auto"} | ({} if max_memory is None else {"max_memory": _budget(max_memory)})
    if quantize is not None:
        if quantize not in quantised.SETTINGS:
            raise InputError(f'unknown quantisation "{quantize}". Nearest: {nearest(quantize, quantised.SETTINGS)}.')
        if importlib.util.find_spec("bitsandbytes") is None:
            raise InputError(
                f'"{name}" in {quantize} takes bitsandbytes, which is not installed: pip install bitsandbytes.'
            )
        from transformers import BitsAndBytesConfig

        found = {"device_map": {"": device}} | found
        found["quantization_config"] = BitsAndBytesConfig(**quantised.SETTINGS[quantize])
    if device == "auto":
        found["offload_folder"] = _folder(offload)
    return found


def _budget(given: Budget) -> dict[int | str, int | str]:
    """{0: "20GB", "cpu": "60GB"}: a GPU's number or cpu, and what it may hold."""
    for place, size in given.items():
        known = isinstance(place, int) or place in ("cpu", "disk")
        if not known or not (isinstance(size, int) or _SIZE.fullmatch(size)):
            raise InputError(f'max_memory "{place}={size}" given: 0=20GB,cpu=60GB is right (a GPU\'s number, or cpu).')
    return dict(given)


def _folder(given: str | Path | None) -> str:
    """A folder of this load alone, in `given` or where temporary files go: two models that wrote their weights into one
    would read each other's."""
    try:
        Path(given or tempfile.gettempdir()).mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(prefix="interp-offload-", dir=given)
    except OSError as error:
        raise InputError(f'offload "{given}" cannot be written to: {error.strerror}.') from None


def keep_folder(hf: Module | None, where: Mapping[str, Any]) -> None:
    """The folder of a load goes when its model does (or at the end of the process); at once where there is none."""
    if folder := where.get("offload_folder"):
        if hf is None:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            weakref.finalize(hf, shutil.rmtree, folder, ignore_errors=True)


def again(hf: Module) -> dict[str, Any]:
    """What transformers is told to load a model as `hf` was; nothing for one device."""
    placed, config = getattr(hf, "hf_device_map", None), getattr(hf.config, "quantization_config", None)
    if not placed and config is None:
        return {}
    own = {} if config is None else {"quantization_config": config}
    return {"device_map": placed or {"": hf.device}, "offload_folder": _folder(None)} | own


def device_map(hf: Module) -> dict[str, str]:
    """Module -> where its weights are, of a model that is spread; else empty."""
    return {name or "all": str(place) for name, place in getattr(hf, "hf_device_map", {}).items()}


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


def needs_gradients(model: Model, what: str) -> None:
    """InputError where `what` takes slopes through weights on disk that do not fit where they are computed: a pass with
    gradients keeps each one until it has gone back through it."""
    absent = [value for value in model.plain.parameters() if value.is_meta] if model.unread else []
    if absent:
        from interp.decoder.memory import available, readable

        needed, free = sum(value.nbytes for value in absent), available(model.device)
        if needed > free:
            raise InputError(
                f'{what} takes gradients, which hold all weights of "{model.name}" at once: {readable(needed)} are on '
                f"disk, {readable(free)} free. A larger machine, a smaller --dtype, or a question without gradients."
            )


@contextmanager
def as_numbers(model: Model, module: Module) -> Iterator[None]:
    """Inside the block the weights within `module` can be read: from disk they are fetched, of codes the numbers made.
    InputError for codes that are not bitsandbytes'."""
    with ExitStack() as stack:
        for layer in module.modules():
            if any(value.is_meta for value in layer.parameters(recurse=False)):
                from accelerate.utils import align_module_device

                stack.enter_context(align_module_device(layer))
            if quantised.is_quantised(layer):
                kept = layer.weight
                value = quantised.numbers(layer, model.dtype)
                layer._parameters["weight"] = torch.nn.Parameter(value, requires_grad=False)
                stack.callback(layer._parameters.__setitem__, "weight", kept)
        yield


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
