"""Models in: the bundled one, a local directory (Hugging Face or TransformerLens form), a name on the hub.

The one file that imports transformer_lens. Weights are used as they were trained: no folding of layer norms and no
centring (`processing` is "none" in every result).
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file

from interp.decoder import families, memory, placing, quantised
from interp.decoder.adapters import Adapter, Live, on_base
from interp.decoder.model import Model
from interp.decoder.sources import check_hub, fingerprint, for_bridge, has_tokenizer, place, read_config, suggest
from interp.decoder.twins import plain_twin
from interp.errors import InputError, UnknownModel, nearest

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load_model(
    name: str = "bundled",
    *,
    device: str | None = None,
    dtype: str = "float32",
    revision: str | None = None,
    adapter: str | Path | None = None,
    merged: bool = True,
    quantize: str | None = None,
    max_memory: placing.Budget | None = None,
    offload: str | Path | None = None,
    tried: bool = True,
) -> Model:
    """A model by name: "bundled", a local directory, or a name on the Hugging Face hub.

    A directory whose config.json says `"format": "transformer_lens"` holds a HookedTransformer's state dict; one with
    an adapter_config.json a LoRA (peft), loaded on the base it names; any other a Hugging Face causal language model.
    `adapter`: a LoRA for the base `name`. It is merged into the weights; with `merged` False it can be turned down and
    off, `with model.adapted(False):`. UnknownModel where there is none.

    `device` "auto": over what there is, within `max_memory` ({0: "20GB", "cpu": "60GB"}), the rest on disk in `offload`
    (accelerate). `quantize` "8bit" or "4bit" (bitsandbytes, NF4). `interp.decoder.placing` says what is not offered.

    `tried`: a few tokens are passed through a Hugging Face model on one device, and one whose hook points are not what
    their names say is refused; False leaves that to `interp.check`, which says what is wrong.
    """
    name, revision, lora = on_base(name, revision, adapter)
    if lora is None and not merged:
        raise InputError(f'"{name}" has no adapter to be kept apart (merged=False): give one, adapter=DIR.')
    wanted = dtype_of(dtype)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device="cpu" if device == "auto" else device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f'no device "{device}" here: {str(error).splitlines()[0]} Try --device cpu.') from None
    if name.endswith(".gguf"):
        raise InputError(f'"{name}" is a GGUF file: make a directory of it, interp model convert {name} --to DIR.')
    folder = place(name)
    config = read_config(folder) if (folder / "config.json").exists() else None
    if config is None and (folder.exists() or name.startswith((".", "/"))):
        raise UnknownModel(f'no model in "{name}": a model folder has a config.json. {suggest(name)}')
    if lora is not None and (config or {}).get("format") == "transformer_lens":
        raise InputError(f'"{name}" cannot be the base of {lora.path}: a Hugging Face model can.')
    if (device == "auto" or quantize) and lora is not None:
        raise InputError(
            f"{lora.path}, a LoRA, is merged into a model that is whole, on one device: not with device auto, 8bit or "
            f"4bit. Make a model of it: interp model merge {name} {lora.path} --weights 1 --to DIR."
        )
    if (device == "auto" or quantize) and (config or {}).get("format") == "transformer_lens":
        raise InputError(f'"{name}", a TransformerLens model, is loaded whole: not with device auto, 8bit or 4bit.')
    where = placing.arguments(name, device, max_memory=max_memory, offload=offload, quantize=quantize)
    if config is not None and config.get("format") == "transformer_lens":
        return _load_transformer_lens(name, folder, config, device, wanted)
    local, model = folder if config is not None else None, None
    try:
        model = _load_hugging_face(name, local, device, wanted, revision, lora, merged, where)
    finally:
        placing.keep_folder(None if model is None else model.plain, where)
    if tried and name != "bundled" and not where:
        _try(model)
    return model


_SAID: set[str] = set()
"""Families of which it was said that no test covers them."""


def _try(model: Model) -> None:
    """UnknownModel where hook points are plainly not what their names say (`checking.broken`); a word on stderr, once,
    where nobody has checked all the rest on a model of this family."""
    from interp.decoder.checking import broken

    kind, family = type(model.plain).__name__, model.plain.config.model_type
    if wrong := broken(model):
        why = f"off by {wrong[0].measured:.2g}" if wrong[0].measured > 0 else wrong[0].why
        raise UnknownModel(
            f'"{model.name}" ({kind}) is not what the names of its hook points say ({wrong[0].what}: {why}): it is not '
            f"offered. All checks: interp model check {model.name}"
        )
    if family not in families.CHECKED and family not in _SAID:
        _SAID.add(family)
        print(
            f'"{model.name}" ({kind}) is of a family not yet checked whole: interp model check {model.name}',
            file=sys.stderr,
        )


def dtype_of(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise InputError(f'unknown dtype "{name}". Nearest: {nearest(name, _DTYPES)}.')
    return _DTYPES[name]


def _bridge() -> Any:
    """TransformerBridge, with its import-time chatter kept quiet; opening a model installs nothing."""
    logging.getLogger("transformer_lens").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="A forward hook edited hook_scale")  # rounding, said once per process
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources.transformers import helpers

    helpers._ensure_torchvision = lambda: False  # it would pip-install torchvision, and with it another torch
    return TransformerBridge


def _load_hugging_face(
    name: str,
    folder: Path | None,
    device: str,
    dtype: torch.dtype,
    revision: str | None,
    adapter: Adapter | None = None,
    merged: bool = True,
    where: Mapping[str, Any] = MappingProxyType({}),
) -> Model:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar

    source = str(folder) if folder else name
    if folder is None:
        check_hub(name, revision)
    stored = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder else 0
    if folder and stored < 1e9:
        disable_progress_bar()  # loads in under two seconds
    else:
        enable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        families.check_config(name, config)
        if not where:
            memory.check_room(name, config, device, dtype, stored=stored)
        hf, loaded = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation="eager", revision=revision, use_safetensors=True,
            output_loading_info=True, trust_remote_code=False, **where,
        )  # fmt: skip
        families.check_weights(name, loaded["missing_keys"])
        named = folder is None or has_tokenizer(folder)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False) if named else None
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnknownModel(f'model "{name}" cannot be loaded ({reason}). {suggest(name)}') from None
    if getattr(hf, "_hf_peft_config_loaded", False):  # where peft is installed, transformers puts it on by itself
        raise InputError(f'"{name}" is an adapter on the hub: download it, and give its directory.')
    quantised.check_split(name, hf)
    quantised.multiply_exactly(hf.eval())
    live = None
    if adapter is not None:
        live = None if merged else Live(adapter, hf, fingerprint(hf.config.to_dict(), hf.state_dict()))
        adapter.merge(hf)
    digest = fingerprint(hf.config.to_dict(), placing.State(hf))
    commit = getattr(hf.config, "_commit_hash", None)
    hf.config._name_or_path = source
    if dtype == torch.float64:
        hf.config._experts_implementation = "eager"  # torch multiplies no groups of them
    plain = plain_twin(hf if where else hf.to(device))
    kind, boot, words = type(hf).__name__, _bridge().boot_transformers, for_bridge(tokenizer)
    try:
        bridge = boot(source, hf_model=hf, tokenizer=words, device=None if where else device, dtype=dtype).eval()
    except (ValueError, RuntimeError, AttributeError, KeyError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise UnknownModel(f'"{name}" ({kind}) cannot be opened by TransformerLens: {reason}.') from None
    families.check_bridge(name, bridge)
    families.complete(bridge)
    families.split_heads(bridge)
    model = Model(
        name, bridge, tokenizer, fingerprint=digest, revision=commit, plain=plain, unread=placing.unread(hf),
        quantisation=quantised.described(hf),
    )  # fmt: skip
    if adapter is not None:
        model.name, model.live, model.adapter = adapter.path, live, adapter.about(name, digest)
    return model


def _load_transformer_lens(name: str, folder: Path, config: dict[str, Any], device: str, dtype: torch.dtype) -> Model:
    bridge_class = _bridge()
    from transformer_lens.config.transformer_bridge_config import TransformerBridgeConfig
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    weights = folder / "model.safetensors"
    if not weights.exists():
        raise UnknownModel(f"{folder} has a config.json and no model.safetensors.")
    state = load_file(weights)
    try:
        cfg = TransformerBridgeConfig(**{k: v for k, v in config.items() if k != "format"}, device=device, dtype=dtype)
        bridge = bridge_class.boot_native(cfg)
        bridge.load_state_dict(convert_tl_checkpoint(state, cfg), strict=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnknownModel(f"{folder} is not a TransformerLens model: {str(error).splitlines()[0]}.") from None
    torch.nn.Module.to(bridge, device=device, dtype=dtype).eval()  # bridge.to() prints
    return Model(name, bridge, None, fingerprint=fingerprint(config, state))
