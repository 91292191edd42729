"""What a run takes, in bytes, before it starts: from a model's config alone, no weight being read.

    weights      every parameter and buffer once, s bytes a number; again those of queries, keys and values that stand
                 in one matrix head by head (GPT-NeoX, BLOOM), which TransformerLens copies
    activations  the most that one pass without gradients holds at a time, apart from what follows:
                 12 N d_model s + the largest of
                     attention  3 batch n_heads length^2 max(s, 4)         scores, masked, softmax: in float32 or above
                     MLP        4 N d_mlp n_chosen s                       n_chosen experts of a token, or 1
                     logits     N d_vocab s                                twice that where a soft cap bends them
    captured     what `captured(model, sites)` keeps: the product of the axes of each site
    cache        keys and values of generation: n_layers N 2 n_kv_heads d_head s; of latent attention (DeepSeek) the
                 latent and the rotated key in their place; a sliding window keeps less

N = batch * length, s = bytes of a number in the dtype. `weights`, `captured` and `cache` are counts, exact but for what
an architecture adds; `activations` is within a factor of 2 of the measured peak of a pass with hooks wherever one of
the four terms is large (tests/test_memory.py); a pass with gradients holds all layers' at once, and far more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from interp.decoder.sites import LAYER_SITES, MODEL_SITES, axes, expand, layer_site
from interp.errors import InputError

if TYPE_CHECKING:
    from interp.decoder.model import Model


@dataclass(frozen=True)
class Memory:
    """Bytes of a run; of each kind, and together."""

    weights: int
    activations: int
    captured: int
    cache: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def table(self) -> pd.DataFrame:
        """One row a kind: kind, bytes."""
        kinds = [field.name for field in fields(self)] + ["total"]
        return pd.DataFrame({"kind": kinds, "bytes": [getattr(self, kind) for kind in kinds]})


def estimate(
    model: Model | Any,
    *,
    batch: int,
    length: int,
    sites: str | Sequence[str] = (),
    dtype: torch.dtype | None = None,
    cache: bool = False,
) -> Memory:
    """What a pass over `batch` x `length` tokens takes, by the formulas above.

    `model`: a `Model`, or a transformers config (`AutoConfig.from_pretrained(NAME)`), of which nothing is loaded.
    `sites`: what is captured; `cache`: whether keys and values are kept; `dtype`: the model's own, of a config float32.
    """
    if batch < 1 or length < 1:
        raise InputError(f"{batch} x {length} tokens given: one or more of each.")
    loaded = hasattr(model, "bridge")
    size = (dtype or (model.dtype if loaded else torch.float32)).itemsize
    d = _sizes_of_model(model) if loaded else _sizes(model)
    known = [*model.sites, *model.mixtures.read_only] if loaded else _every_site(d["layers"])
    names = expand(sites, known) if sites else []
    n = batch * length
    largest = max(
        3 * batch * d["head"] * length**2 * max(size, 4), 4 * n * d["d_mlp"] * d["chosen"] * size,
        n * d["d_vocab"] * size * (2 if d["capped"] else 1),
    )  # fmt: skip
    axis = d | {"prompt": batch, "pos": length, "query": length, "key": length}
    held = [math.prod(axis[a] for a in axes(name).split()) * (8 if "indices" in name else size) for name in names]
    return Memory(
        weights=_bytes_of(model) if loaded and dtype in (None, model.dtype) else weight_bytes(_config(model), size),
        activations=12 * n * d["d_model"] * size + largest,
        captured=sum(held),
        cache=d["layers"] * n * d["cached"] * size if cache else 0,
    )


def weight_bytes(config: Any, size: int) -> int:
    """Bytes of a model's weights at `size` bytes a number, built without any (torch's meta device)."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    numbers = sum(value.numel() for value in model.parameters())
    numbers += sum(value.numel() for name, value in model.named_parameters() if ".query_key_value." in name)
    return numbers * size + sum(value.nbytes for value in model.buffers())


def available(device: str | torch.device) -> int:
    """Bytes free for a model on a device: of a GPU what CUDA says, of this machine what the kernel says can be had
    (within the limit of a container); where it says nothing, all there are."""
    import os

    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    told = Path("/proc/meminfo")
    lines = told.read_text().splitlines() if told.exists() else []
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), whole)
    limit = Path("/sys/fs/cgroup/memory.max")
    limited = limit.read_text().strip() if limit.exists() else "max"
    return min(free, int(limited)) if limited.isdigit() else free


def check_room(name: str, config: Any, device: str, dtype: torch.dtype, *, stored: int = 0) -> None:
    """InputError, before a weight is read, where the weights alone are more than the device has free. `stored`: the
    bytes of the files, where they are known; few of them need no closer look."""
    free = available(device)
    if 0 < 8 * stored < free:  # no dtype is eight times as wide as another
        return
    needed = weight_bytes(config, dtype.itemsize)
    if needed > free:
        raise InputError(
            f'"{name}" needs {readable(needed)} for its weights in {str(dtype).removeprefix("torch.")}; {device} has '
            f"{readable(free)} free. A smaller --dtype, or --device auto, which keeps on disk what does not fit."
        )


def readable(n: int) -> str:
    """`readable(1_500_000)` is "1.5 MB"."""
    power = min(3, max(0, int(math.log10(max(n, 1))) // 3))
    return f"{n / 1000**power:.1f} {('B', 'kB', 'MB', 'GB')[power]}" if power else f"{n} B"


def _config(model: Model | Any) -> Any:
    if not hasattr(model, "bridge"):
        return model
    if model.plain is None:
        raise InputError(f'"{model.name}" is no Hugging Face model: ask in its own dtype, {model.dtype}.')
    return model.plain.config


def _bytes_of(model: Model) -> int:
    """Of every storage that a loaded model's parameters and buffers stand in, once."""
    parts = [part for part in (model.bridge, model.plain) if part is not None]
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    return sum({
        id(t) if t.is_meta else t.untyped_storage().data_ptr(): t.nbytes if t.is_meta else t.untyped_storage().nbytes()
        for t in tensors
    }.values())  # fmt: skip


def _every_site(n_layers: int) -> list[str]:
    return [*MODEL_SITES.values(), *(layer_site(layer, kind) for layer in range(n_layers) for kind in LAYER_SITES)]


def _sizes(config: Any) -> dict[str, Any]:
    """The sizes of a transformers config, named as the axes of sites are."""
    c = config.get_text_config()

    def first(*names: str, otherwise: Any = None) -> Any:
        return next((found for name in names if (found := getattr(c, name, None))), otherwise)

    heads, width = c.num_attention_heads, c.hidden_size
    experts = first("num_local_experts", "num_experts", "n_routed_experts", otherwise=0)
    d_head = first("head_dim", otherwise=width // heads)
    kv_heads, latent = first("num_key_value_heads", otherwise=heads), first("kv_lora_rank") is not None
    whole = first("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", otherwise=4 * width)
    return {
        "layers": c.num_hidden_layers, "d_model": width, "d_vocab": c.vocab_size, "head": heads,
        "kv_head": kv_heads, "d_head": c.v_head_dim if latent else d_head,
        "cached": c.kv_lora_rank + c.qk_rope_head_dim if latent else 2 * kv_heads * d_head,
        "d_mlp": first("moe_intermediate_size", otherwise=whole) if experts else whole,
        "expert": experts, "chosen": first("num_experts_per_tok", otherwise=1) if experts else 1,
        "capped": first("final_logit_softcapping"),
    }  # fmt: skip


def _sizes_of_model(model: Model) -> dict[str, Any]:
    if model.plain is not None:
        return _sizes(model.plain.config)
    return {
        "layers": model.n_layers, "d_model": model.d_model, "d_vocab": model.d_vocab, "head": model.n_heads,
        "kv_head": model.n_kv_heads, "d_head": model.d_head, "cached": 2 * model.n_kv_heads * model.d_head,
        "d_mlp": model.d_mlp or 0, "expert": 0, "chosen": 1, "capped": None,
    }  # fmt: skip
