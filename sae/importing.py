"""Dictionaries of other libraries, as `sae.files.load` takes them: dictionary_learning and sparsify.

dictionary_learning   `ae.pt` (weights only, never unpickled code) and `config.json`
sparsify              `sae.safetensors` and `cfg.json`, in a folder named after the module (`layers.3.mlp`)

Both encode as we do but for what is folded here: AutoEncoderNew and JumpReluAutoEncoder do not centre the input;
BatchTopK's one threshold becomes everybody's (below 0, as before its first step, it is 0).
"""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from interp import runs
from interp.decoder.sites import layer_site
from interp.errors import InputError, UnknownName, nearest
from sae.files import CONFIG, centre_input, read_tensors

DL_CLASSES = {
    "AutoEncoder": "standard", "AutoEncoderNew": "standard", "GatedAutoEncoder": "gated", "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu", "MatryoshkaBatchTopKSAE": "jumprelu", "JumpReluAutoEncoder": "jumprelu",
}  # fmt: skip
"""dictionary_learning's classes, and what they do at inference."""

_MODULES = {"": "resid_post", "mlp": "mlp_out", "attn": "attn_out", "self_attn": "attn_out", "attention": "attn_out"}
Parts = tuple[dict[str, Tensor], dict[str, Any]]
"""Weights by our names, and what else `Dictionary` takes."""


def read_dictionary_learning(folder: Path) -> Parts:
    """`ae.pt` and `config.json`. UnknownName for a class that we have no match for."""
    config = runs.read_json(folder / "config.json")
    trainer = config.get("trainer") or {}
    kind = trainer.get("dict_class")
    if kind not in DL_CLASSES:
        near = nearest(str(kind), DL_CLASSES)
        raise UnknownName(f'{folder / "config.json"}: unknown dict_class "{kind}". Nearest: {near}.')
    try:
        state = torch.load(folder / "ae.pt", map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(f"{folder / 'ae.pt'} is not a file of weights: {str(error).splitlines()[0]}") from None
    architecture, weights = DL_CLASSES[kind], {}
    names = {
        "W_enc": ("W_enc", "encoder.weight"), "b_enc": ("b_enc", "encoder.bias", "gate_bias"),
        "W_dec": ("W_dec", "decoder.weight"), "b_dec": ("b_dec", "bias", "decoder_bias", "decoder.bias"),
        "r_mag": ("r_mag",), "b_mag": ("mag_bias",), "threshold": ("threshold",),
    }  # fmt: skip
    for name, theirs in names.items():
        if found := [key for key in theirs if key in state]:
            weights[name] = state[found[0]].T.contiguous() if found[0].endswith(".weight") else state[found[0]]
    if missing := [name for name in ("W_enc", "b_enc", "W_dec", "b_dec") if name not in weights]:
        raise InputError(f"{folder / 'ae.pt'} holds no {missing[0]} ({' or '.join(names[missing[0]])}).")
    if architecture == "jumprelu":
        if "threshold" not in weights:
            raise InputError(f"{folder / 'ae.pt'} holds no threshold.")
        weights["threshold"] = weights["threshold"].expand_as(weights["b_enc"]).clamp_min(0).to(weights["b_enc"])
    else:
        weights.pop("threshold", None)
    if kind in ("AutoEncoderNew", "JumpReluAutoEncoder"):
        centre_input(weights)
    k = int(state["k"]) if "k" in state else trainer.get("k")
    module = re.search(r"resid_pre|resid_mid|mlp|attn|attention", str(trainer.get("submodule_name") or ""))
    short = _MODULES.get(module[0], module[0]) if module else "resid_post"
    site = layer_site(trainer["layer"], short) if isinstance(trainer.get("layer"), int) else ""
    context = (config.get("buffer") or {}).get("ctx_len")
    return weights, {
        "architecture": architecture, "k": k, "site": site, "model": {"name": trainer.get("lm_name")},
        "context": context,
    }  # fmt: skip


def read_sparsify(folder: Path) -> Parts:
    """`sae.safetensors` and `cfg.json`; the site from the folder's name, the model from the config.json above it."""
    cfg = runs.read_json(folder / CONFIG)
    if (activation := cfg.get("activation", "topk")) != "topk" or cfg.get("signed"):
        kind = "signed" if cfg.get("signed") else activation
        raise InputError(f'{folder / CONFIG}: activation "{kind}" is not one of ours: we read "topk".')
    state, _ = read_tensors(folder / "sae.safetensors")
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec", "W_skip": "W_skip"}
    weights = {name: state[theirs] for name, theirs in names.items() if theirs in state}
    if missing := [name for name in ("W_enc", "b_enc", "W_dec", "b_dec") if name not in weights]:
        raise InputError(f"{folder / 'sae.safetensors'} holds no {names[missing[0]]}.")
    weights["W_enc"] = weights["W_enc"].T.contiguous()
    found = re.search(r"(?:layers|h|blocks)[._](\d+)(?:[._](\w+))?$", folder.name)
    module, site, out_site = (found[2] or "") if found else "", "", None
    if found and module in _MODULES:
        site = layer_site(int(found[1]), _MODULES[module])
    elif folder.name == "embed_tokens":
        site = "hook_embed"
    if cfg.get("transcode"):
        site, out_site = (f"blocks.{found[1]}.{module}.hook_in" if found else ""), site or "unknown"
    above = folder.parent / "config.json"
    training = runs.read_json(above) if above.exists() else {}
    return weights, {
        "architecture": "topk", "k": cfg.get("k"), "site": site, "out_site": out_site,
        "model": {"name": training.get("model")}, "context": training.get("ctx_len"),
    }  # fmt: skip


LAYOUTS = {"ae.pt": read_dictionary_learning, "sae.safetensors": read_sparsify}
"""The file that tells a layout, and its reader."""
