"""SAELens folders in and out: `cfg.json` and `sae_weights.safetensors`; and the checkpoint of an unfinished training.

Keys and shapes are SAELens' own (6.x): W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in], b_dec. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp import runs
from interp.errors import InputError, MissingFile
from sae.dictionary import Dictionary, check_architecture

WEIGHTS, CONFIG, CHECKPOINT = "sae_weights.safetensors", "cfg.json", "checkpoint.safetensors"
LAYOUT = "6.0.0"
"""The SAELens version whose layout this is; without one SAELens reads cfg.json as an older layout, without metadata."""

_KEYS = ("W_enc", "b_enc", "W_dec", "b_dec")


def _write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> None:
    """By fsync and atomic rename, so that a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, temporary, header)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise MissingFile(f"no {path.name} in {path.parent}.") from None
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}.") from None


def save(dct: Dictionary, folder: str | Path) -> None:
    """Write `cfg.json` and `sae_weights.safetensors` into `folder`, replacing what is there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_tensors(folder / WEIGHTS, {name: getattr(dct, name) for name in _KEYS})
    runs.write_json(
        folder / CONFIG,
        {
            "architecture": dct.architecture, "d_in": dct.d_in, "d_sae": dct.d_sae, "k": dct.k,
            "dtype": str(dct.W_enc.dtype).removeprefix("torch."), "device": "cpu",
            "apply_b_dec_to_input": True, "normalize_activations": "none",
            "reshape_activations": "hook_z" if dct.site.endswith("hook_z") else "none",
            "rescale_acts_by_decoder_norm": False,
            "metadata": {
                "model_name": dct.model.get("name"), "model_fingerprint": dct.model.get("fingerprint"),
                "hook_name": dct.site, "hook_head_index": None, "context_size": dct.context, "prepend_bos": True,
                "seqpos_slice": [None], "model_from_pretrained_kwargs": {}, "sae_lens_version": LAYOUT,
                "sae_lens_training_version": None,
            },
        },
    )  # fmt: skip


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Dictionary:
    """The dictionary in a SAELens folder, ours or another's of architecture "topk".

    MissingFile where the files are not there, UnknownName for another architecture, InputError where they contradict
    each other or the activations would have to be normalised first. An input that is not centred and a decoder whose
    norms scale the latents are folded into the weights.
    """
    folder = Path(path)
    if not (folder / CONFIG).exists():
        raise MissingFile(f"no dictionary in {folder}: it should hold {CONFIG} and {WEIGHTS}.")
    cfg = _read_config(folder / CONFIG)
    check_architecture(cfg.get("architecture", "standard"))
    if (normalised := cfg.get("normalize_activations") or "none") != "none":
        raise InputError(f'{folder / CONFIG}: normalize_activations is "{normalised}"; we read "none".')
    tensors, _ = _read_tensors(folder / WEIGHTS)
    d_in, d_sae = cfg["d_in"], cfg["d_sae"]
    for name, shape in zip(_KEYS, ((d_in, d_sae), (d_sae,), (d_sae, d_in), (d_in,)), strict=True):
        if name not in tensors or tuple(tensors[name].shape) != shape:
            found = list(tensors[name].shape) if name in tensors else "not there"
            raise InputError(f"{folder / WEIGHTS}: {name} should be {list(shape)} as {CONFIG} says; it is {found}.")
    W_enc, b_enc, W_dec, b_dec = (tensors[name] for name in _KEYS)
    if cfg.get("rescale_acts_by_decoder_norm", False):
        norm = W_dec.norm(dim=1)
        W_enc, b_enc, W_dec = W_enc * norm, b_enc * norm, W_dec / norm.unsqueeze(1)
    if not cfg.get("apply_b_dec_to_input", True):
        b_enc = b_enc + b_dec @ W_enc
    metadata = cfg.get("metadata") or {}
    model = {"name": metadata.get("model_name"), "fingerprint": metadata.get("model_fingerprint")}
    if (folder / "run.json").exists():
        model = runs.read(folder).get("model") or model
    return Dictionary(
        W_enc, b_enc, W_dec, b_dec, k=cfg["k"], site=metadata.get("hook_name") or "", model=model, path=folder,
        context=metadata.get("context_size"),
    ).to(device).requires_grad_(False)  # fmt: skip


def _read_config(path: Path) -> dict[str, Any]:
    try:
        cfg = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}.") from None
    if missing := [key for key in ("d_in", "d_sae", "k") if cfg.get("architecture") == "topk" and key not in cfg]:
        raise InputError(f"{path} does not say {', '.join(missing)}.")
    return cfg


def save_checkpoint(folder: Path, tensors: dict[str, Tensor], *, step: int) -> None:
    """All that training needs to go on from `step`, in one file: a kill leaves this one or the one before."""
    _write_tensors(folder / CHECKPOINT, tensors, {"step": str(step)})


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], int] | None:
    """(tensors, step) of the checkpoint in `folder`; None where there is none."""
    if not (folder / CHECKPOINT).exists():
        return None
    tensors, header = _read_tensors(folder / CHECKPOINT)
    return tensors, int(header["step"])
