"""SAELens folders in and out: `cfg.json` and `sae_weights.safetensors`; and the checkpoint of an unfinished training.

Keys and shapes are SAELens' own (6.x): W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_out], b_dec; threshold [d_sae] of
"jumprelu"; b_gate in place of b_enc, b_mag and r_mag of "gated"; W_skip [d_out, d_in] of a skip transcoder. Nothing is
unpickled. Folders of other libraries: sae/importing.py.
"""

from __future__ import annotations

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


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> None:
    """By fsync and atomic rename, so that a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, temporary, header)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise MissingFile(f"no {path.name} in {path.parent}.") from None
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}.") from None


def saelens_architecture(dct: Dictionary) -> str:
    """SAELens' name for it: "topk", "transcoder", "jumprelu_skip_transcoder". Where SAELens has no such class (a TopK
    transcoder), the name it would have: SAELens then says that it does not know it."""
    parts = ["skip"] * (dct.W_skip is not None) + ["transcoder"] * dct.is_transcoder
    return "_".join([dct.architecture] * (dct.architecture != "standard" or not parts) + parts)


def save(dct: Dictionary, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write `cfg.json` and `sae_weights.safetensors` into `folder`, replacing what is there; in `dtype` if given.

    A crosscoder's sites stand in metadata.hook_names: to SAELens it is a dictionary on activations side by side.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.to(dtype or value.dtype) for name, value in dct.weights().items()}
    if dct.architecture == "gated":
        weights["b_gate"] = weights.pop("b_enc")
    write_tensors(folder / WEIGHTS, weights)
    sites, out_sites = dct.sites, dct.out_sites
    cfg = {
        "architecture": saelens_architecture(dct), "d_in": dct.d_in, "d_sae": dct.d_sae,
        "dtype": str(weights["W_enc"].dtype).removeprefix("torch."), "device": "cpu",
        "apply_b_dec_to_input": not dct.is_transcoder, "normalize_activations": "none",
        "reshape_activations": "hook_z" if len(sites) == 1 and sites[0].endswith("hook_z") else "none",
        "metadata": {
            "model_name": dct.model.get("name"), "model_fingerprint": dct.model.get("fingerprint"),
            "hook_name": sites[0], "hook_head_index": None, "context_size": dct.context, "prepend_bos": True,
            "seqpos_slice": [None], "model_from_pretrained_kwargs": {}, "sae_lens_version": LAYOUT,
            "sae_lens_training_version": None,
        },
    }  # fmt: skip
    if dct.k is not None:
        cfg |= {"k": dct.k, "rescale_acts_by_decoder_norm": False}
    if len(sites) > 1:
        cfg["metadata"]["hook_names"] = sites
    if dct.is_transcoder:
        cfg["d_out"] = dct.d_out
        cfg["metadata"] |= {"hook_name_out": out_sites[0]} | ({"hook_names_out": out_sites} if out_sites[1:] else {})
    runs.write_json(folder / CONFIG, cfg)


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Dictionary:
    """The dictionary in a folder of SAELens (ours or another's), dictionary_learning or sparsify.

    What their code does with the weights at run time (an input that is not centred, decoder norms that scale the
    latents, one threshold for all) is folded into ours. MissingFile where the files are not there, UnknownName for an
    architecture that we have not, InputError where the files contradict each other, hold NaN, or activations would have
    to be normalised token by token.
    """
    from sae import importing

    folder = Path(path)
    source, read = folder / WEIGHTS, _read_saelens
    if not source.exists():
        for name, other in importing.LAYOUTS.items():
            if (folder / name).exists():
                source, read = folder / name, other
    if not source.exists() and not (folder / CONFIG).exists():
        raise MissingFile(
            f"no dictionary in {folder}: it should hold {CONFIG} and {WEIGHTS} (or {', '.join(importing.LAYOUTS)})."
        )
    weights, settings = read(folder)
    _check_shapes(source, weights)
    return Dictionary(**weights, **settings, path=folder).to(device).requires_grad_(False)


def _check_shapes(path: Path, weights: dict[str, Tensor]) -> None:
    """InputError where weights do not fit each other, or hold NaN."""
    d_in, d_sae = weights["W_enc"].shape if weights["W_enc"].ndim == 2 else (0, 0)
    d_out = weights["b_dec"].numel()
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,), "W_skip": (d_out, d_in)}
    for name, value in weights.items():
        if tuple(value.shape) != (shape := shapes.get(name, (d_sae,))):
            raise InputError(f"{path}: {name} should be {list(shape)}, it is {list(value.shape)}.")
        if not torch.isfinite(value).all():
            raise InputError(f"{path}: {name} holds NaN or infinity.")


def _read_saelens(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights by our names, and what else `Dictionary` takes. SAELens 6, and the flat cfg.json of those before."""
    cfg = _read_config(folder / CONFIG)
    parts = _architecture(cfg).split("_")
    is_transcoder, skip = "transcoder" in parts, "skip" in parts
    architecture = "_".join(part for part in parts if part not in ("transcoder", "skip")) or "standard"
    if (row := check_architecture(architecture)).activation != architecture:
        raise InputError(f'{folder / CONFIG}: "{architecture}" is one in training: save it for inference first.')
    if (normalised := cfg.get("normalize_activations") or "none") != "none":
        raise InputError(f'{folder / CONFIG}: normalize_activations is "{normalised}"; we read "none".')
    if cfg.get("finetuning_scaling_factor"):
        raise InputError(f"{folder / CONFIG}: finetuning_scaling_factor is not read: fold it into the decoder first.")
    weights, _ = read_tensors(folder / WEIGHTS)
    if "log_threshold" in weights:
        weights["threshold"] = weights.pop("log_threshold").exp()
    if "b_gate" in weights:
        weights["b_enc"] = weights.pop("b_gate")
    wanted = ["W_enc", "b_enc", "W_dec", "b_dec", *row.extra, *["W_skip"] * skip]
    d_in, d_sae = cfg["d_in"], cfg["d_sae"]
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, cfg.get("d_out", d_in) if is_transcoder else d_in)}
    for name in wanted:
        found = list(weights[name].shape) if name in weights else "not there"
        if name not in weights or tuple(weights[name].shape) != shapes.get(name, tuple(weights[name].shape)):
            shape = f"be {list(shapes[name])} as {CONFIG} says" if name in shapes else "be there"
            raise InputError(f"{folder / WEIGHTS}: {name} should {shape}; it is {found}.")
    weights = {name: weights[name] for name in wanted}
    if cfg.get("rescale_acts_by_decoder_norm", False):
        norm = weights["W_dec"].norm(dim=1)
        weights["W_enc"], weights["b_enc"] = weights["W_enc"] * norm, weights["b_enc"] * norm
        weights["W_dec"] = weights["W_dec"] / norm.unsqueeze(1)
    if not cfg.get("apply_b_dec_to_input", True) and not is_transcoder:
        centre_input(weights)
    if row.extra == ("threshold",):
        weights["threshold"] = weights["threshold"].clamp_min(0)  # they take relu(pre) where pre is above it
    return weights, {"architecture": architecture, "k": cfg.get("k")} | _whereabouts(folder, cfg, is_transcoder)


def centre_input(weights: dict[str, Tensor]) -> None:
    """Fold, in place, an encoder that reads x into one that reads x - b_dec."""
    shift = weights["b_dec"] @ weights["W_enc"]
    weights["b_enc"] = weights["b_enc"] + shift
    if "b_mag" in weights:
        weights["b_mag"] = weights["b_mag"] + shift * weights["r_mag"].exp()


def _architecture(cfg: dict[str, Any]) -> str:
    """Of a cfg.json; before SAELens 6 TopK was a "standard" one with an activation function."""
    kwargs = cfg.get("activation_fn_kwargs") or {}
    if "topk" in (cfg.get("activation_fn"), cfg.get("activation_fn_str")) and "k" in kwargs:
        cfg.setdefault("k", kwargs["k"])
        return "topk"
    return cfg.get("architecture", "standard")


def _whereabouts(folder: Path, cfg: dict[str, Any], is_transcoder: bool) -> dict[str, Any]:
    """Sites, model and context of a cfg.json."""
    metadata = cfg.get("metadata") or cfg
    model = {"name": metadata.get("model_name"), "fingerprint": metadata.get("model_fingerprint")}
    if (folder / "run.json").exists():
        model = runs.read(folder).get("model") or model
    site = metadata.get("hook_names") or metadata.get("hook_name") or metadata.get("hook_point") or ""
    out_site = metadata.get("hook_names_out") or metadata.get("hook_name_out") or "unknown" if is_transcoder else None
    return {"site": site, "out_site": out_site, "model": model, "context": metadata.get("context_size")}


def _read_config(path: Path) -> dict[str, Any]:
    cfg = runs.read_json(path)
    topk = "topk" in _architecture(cfg)
    if missing := [key for key in ("d_in", "d_sae", *["k"] * topk) if key not in cfg]:
        raise InputError(f"{path} does not say {', '.join(missing)}.")
    return cfg


def save_checkpoint(folder: Path, tensors: dict[str, Tensor], *, step: int) -> None:
    """All that training needs to go on from `step`, in one file: a kill leaves this one or the one before."""
    write_tensors(folder / CHECKPOINT, tensors, {"step": str(step)})


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], int] | None:
    """(tensors, step) of the checkpoint in `folder`; None where there is none."""
    if not (folder / CHECKPOINT).exists():
        return None
    tensors, header = read_tensors(folder / CHECKPOINT)
    return tensors, int(header["step"])
