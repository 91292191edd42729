"""LoRA adapters (peft directories): read, checked, and put into the weights of their base.

    W + scale B A        scale = alpha / r, or alpha / sqrt(r) with `use_rslora` (Kalajdzievski 2312.03732)

A is [r, in], B [out, r] (Hu et al. 2106.09685, section 4.1); of a Conv1D (GPT-2), whose W is [in, out], B A is
transposed. What is not plain LoRA (DoRA, trained biases or whole modules, ...) is refused by name: half an adapter
would be a third model.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import Linear, Module

from interp import runs
from interp.decoder.weights import replaced
from interp.errors import InputError, MissingFile, WrongModel

if TYPE_CHECKING:
    from interp.decoder.model import Model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

HARMLESS = frozenset(
    "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r target_modules "
    "exclude_modules lora_alpha lora_dropout fan_in_fan_out use_rslora init_lora_weights layers_to_transform "
    "layers_pattern rank_pattern alpha_pattern megatron_config megatron_core eva_config qalora_group_size "
    "ensure_weight_tying runtime_config".split()
)
"""Keys of adapter_config.json that plain LoRA has, read here or without a meaning for the weights."""

STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to draw the first A and B that leave the base's weights as they are."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA: for each module its A, B and scale."""

    path: str
    base: str | None
    """The model it was trained on, as adapter_config.json names it."""
    revision: str | None
    factors: Mapping[str, tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"], float]]
    targets: tuple[str, ...]
    """Ends of names of the modules that it must adapt, all of them; empty where the config says it another way."""
    fingerprint: str
    """sha256 over the settings that scale it and every byte of A and B."""

    def deltas(self, model: Module) -> dict[str, Tensor]:
        """What it adds to each weight of its base, in float32 or wider, by the weight's name. WrongModel where `model`
        has no such modules, or of other sizes."""
        own, shared = dict(model.named_modules()), _shared(model)
        found = {}
        for name, (A, B, scale) in self.factors.items():
            module = own.get(name)
            weight = getattr(module, "weight", None)
            if weight is None:
                raise WrongModel(
                    f'{self.path} adapts "{name}", which its base has not: it is another model\'s adapter.'
                )
            if not isinstance(module, Linear) and type(module).__name__ != "Conv1D" or not weight.is_floating_point():
                raise InputError(
                    f'{self.path} adapts "{name}", a {type(module).__name__}: only float matrices are merged.'
                )
            if f"{name}.weight" in shared:
                raise InputError(f'{self.path} adapts "{name}", whose weight another part of the base shares: refused.')
            width = torch.promote_types(weight.dtype, torch.float32)
            delta = scale * (B.to(weight.device, width) @ A.to(weight.device, width))
            delta = delta if isinstance(module, Linear) else delta.T
            if delta.shape != weight.shape:
                raise WrongModel(f'{self.path} adapts "{name}" by {tuple(delta.shape)}, it is {tuple(weight.shape)}.')
            found[f"{name}.weight"] = delta
        wanted = [name for name in own if f".{name}".endswith(tuple(f".{target}" for target in self.targets))]
        if missing := [name for name in wanted if name not in self.factors]:
            raise InputError(f'{self.path} has no A and B of "{missing[0]}", which its target_modules name: cut off?')
        return found

    def about(self, base: str, merged: str) -> dict[str, Any]:
        """What results say of it; `merged` is the fingerprint of the base with it."""
        return {"path": self.path, "base": base, "fingerprint": self.fingerprint, "merged": merged, "scale": 1.0}

    @torch.no_grad()
    def merge(self, model: Module, scale: float = 1.0) -> None:
        """Into its base, in place, `scale` times; rounded to the base's dtype once."""
        own = dict(model.named_parameters())
        for name, delta in self.deltas(model).items():
            own[name].copy_(own[name] + scale * delta)


class Live:
    """An adapter whose base is kept, so that it can be turned down, up and off (`Model.adapted`)."""

    def __init__(self, adapter: Adapter, base: Module, fingerprint: str):
        """`base`: the model before the adapter is merged in, and its fingerprint."""
        own = dict(base.named_parameters())
        self.adapter, self.fingerprint = adapter, fingerprint
        self.kept = {name: own[name].detach().clone() for name in adapter.deltas(base)}

    @contextmanager
    def at(self, model: Model, scale: float) -> Iterator[None]:
        """Inside the block the weights are base + scale * adapter. Results carry the base's fingerprint at 0, that of
        the merged model at 1, and one made of base, adapter and scale elsewhere."""
        made = f"{self.fingerprint} {self.adapter.fingerprint} {scale!r}"
        named = {0.0: self.fingerprint, 1.0: model.adapter["merged"]}
        fingerprint = named.get(scale) or "sha256:" + hashlib.sha256(made.encode()).hexdigest()
        with model.lock, torch.no_grad():
            deltas = self.adapter.deltas(model.plain)
            new = {name: weight + scale * deltas[name] for name, weight in self.kept.items()}
        with replaced(model, new, fingerprint):
            before, model.adapter = model.adapter, model.adapter | {"scale": scale}
            try:
                yield
            finally:
                model.adapter = before


def _shared(model: Module) -> set[str]:
    names: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    return {name for same in names.values() if len(same) > 1 for name in same}


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def read_adapter(folder: str | Path) -> Adapter:
    """The adapter in a directory of peft's form. InputError for what is not plain LoRA, naming the setting."""
    folder = Path(folder)
    config = runs.read_json(folder / CONFIG, "not an adapter")
    _check(config, folder)
    tensors = _tensors(folder)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_(A|B)\.weight", key)
        if match is None or tensor.ndim != 2:
            raise InputError(f'{folder / WEIGHTS} holds "{key}" {list(tensor.shape)}: not plain LoRA.')
        pairs.setdefault(match[1], {})[match[2]] = tensor
    factors = {}
    for name, pair in pairs.items():
        if len(pair) < 2 or pair["A"].shape[0] != pair["B"].shape[1]:
            raise InputError(f'{folder / WEIGHTS}: A and B of "{name}" do not belong together.')
        rank = len(pair["A"])
        if rank != (said := _of(config.get("rank_pattern"), name, config["r"])):
            raise InputError(f'{folder}: "{name}" has rank {rank}, {CONFIG} says {said}.')
        alpha = _of(config.get("alpha_pattern"), name, config["lora_alpha"])
        factors[name] = (pair["A"], pair["B"], alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    some = any(config.get(key) for key in ("layers_to_transform", "layers_pattern", "exclude_modules"))
    targets = () if some or not isinstance(config.get("target_modules"), list) else tuple(config["target_modules"])
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    return Adapter(str(folder), base, revision, factors, targets, _fingerprint(factors))


_NAME, _PATTERNS = (str, "a name"), (dict, "names with numbers")
_KINDS = {"base_model_name_or_path": _NAME, "revision": _NAME, "rank_pattern": _PATTERNS, "alpha_pattern": _PATTERNS}


def _check(config: Mapping[str, Any], folder: Path) -> None:
    where = folder / CONFIG
    if config.get("peft_type") != "LORA":
        raise InputError(f'{where}: peft_type "{config.get("peft_type")}" is not read; LORA is.')
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float) or not config[key] > 0:
            raise InputError(f"{where}: {key} {config.get(key)!r} given, where a number above 0 is right.")
    for key, (kind, right) in _KINDS.items():
        if not isinstance(config.get(key) or kind(), kind):
            raise InputError(f"{where}: {key} {config[key]!r} given, where {right} is right.")
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern, value in (config.get(key) or {}).items():
            if not isinstance(value, int | float) or not value > 0 or not _compiles(pattern):
                raise InputError(f"{where}: {key} {pattern!r}: {value!r} is no pattern with a number above 0.")
    for key, value in config.items():
        if key in HARMLESS or not value or (key == "bias" and value == "none"):
            continue
        raise InputError(f"{where}: {key} {json.dumps(value)} is not plain LoRA: merge it with peft, save that model.")
    if (start := config.get("init_lora_weights")) not in STARTS:
        raise InputError(f'{where}: init_lora_weights "{start}" changes the base\'s weights too: merge it with peft.')


def _compiles(pattern: str) -> bool:
    try:
        return bool(re.compile(pattern))
    except re.error:
        return False


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.exists():
        other = (
            " adapter_model.bin is a pickle: save it again with safe_serialization."
            if (folder / "adapter_model.bin").exists()
            else ""
        )
        raise MissingFile(f"no {WEIGHTS} in {folder}.{other}")
    try:
        with safe_open(path, "pt") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}.") from None
    if not found or not all(tensor.is_floating_point() for tensor in found.values()):
        raise InputError(f"{path} holds no weights of an adapter.")
    return found


def _of(patterns: Mapping[str, int | float] | None, name: str, otherwise: int | float) -> int | float:
    """A module's own rank or alpha: that of the first pattern its name ends with."""
    return next((value for key, value in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({key})", name)), otherwise)


def _fingerprint(factors: Mapping[str, tuple[Tensor, Tensor, float]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(factors):
        *matrices, scale = factors[name]
        digest.update(f"{name} {scale!r}".encode())
        for matrix in matrices:
            digest.update(f"{matrix.dtype} {tuple(matrix.shape)}".encode())
            digest.update(matrix.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return "sha256:" + digest.hexdigest()


def on_base(name: str, revision: str | None, adapter: str | Path | None) -> tuple[str, str | None, Adapter | None]:
    """The base's name and revision, and its adapter: `adapter`, or what is in the directory `name`. The base that an
    adapter names may stand beside it. InputError where it names none."""
    if adapter is not None:
        found, base = read_adapter(adapter), name
    elif is_adapter(Path(name)):
        found = read_adapter(name)
        if not found.base:
            raise InputError(f"{name}/{CONFIG} names no base: load_model(BASE, adapter={name!r}).")
        beside = Path(name) / found.base
        base = str(beside) if not Path(found.base).exists() and beside.exists() else found.base
        revision = revision or found.revision
    else:
        return name, revision, None
    if is_adapter(Path(base)):
        raise InputError(f'"{base}" is itself an adapter: the base of {found.path} is a whole model.')
    return base, revision, found
