"""GGUF files (llama.cpp), read by transformers: quantised weights as the float32 numbers that they stand for."""

from __future__ import annotations

import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from interp.decoder import families
from interp.decoder.converting import Converted
from interp.errors import InputError

MAGIC = b"GGUF"


def read(source: Path, tokenizer: Path | None) -> Converted:
    """The model in a GGUF file. `tokenizer`: a directory with one; without it the file's own, where transformers can
    read it. InputError without the package gguf, and for an architecture that transformers does not read from there."""
    if find_spec("gguf") is None:
        raise InputError(f"{source} is a GGUF file, read with the package gguf: pip install gguf.")
    from transformers import AutoConfig, AutoModelForCausalLM

    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    try:
        families.check_config(str(source), AutoConfig.from_pretrained(**where))
        hf, loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, NotImplementedError, struct.error) as error:
        raise InputError(f"{source} cannot be read: {str(error).strip().splitlines()[0]}") from None
    families.check_weights(str(source), loaded["missing_keys"])
    state, seen = {}, set()
    for name, tensor in hf.state_dict().items():
        if tensor.data_ptr() not in seen:  # tied weights are written once
            seen.add(tensor.data_ptr())
            state[name] = tensor
    config = hf.config.to_dict() | {"architectures": [type(hf).__name__], "dtype": "float32"}
    config.pop("quantization_config", None)
    return Converted(f"a GGUF file ({hf.config.model_type})", config, state, _tokenizer(where, tokenizer))


def _tokenizer(where: dict[str, Any], given: Path | None) -> Any:
    from transformers import AutoTokenizer

    if given is not None:
        return AutoTokenizer.from_pretrained(given)
    try:
        return AutoTokenizer.from_pretrained(**where)
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, ImportError):
        return None  # a file without one, or of a kind transformers has no reader for: token ids only
