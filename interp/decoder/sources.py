"""Where a model is, what it is called, and whether two are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import UnknownModel, nearest

BUNDLED = Path(__file__).parent.parent / "bundled" / "model"


def place(name: str) -> Path:
    """The directory that a name is, if it is one."""
    return BUNDLED if name == "bundled" else Path(name)


def read_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UnknownModel(f"{folder / 'config.json'} is not JSON: {error}.") from None


def suggest(name: str) -> str:
    parent = Path(name).parent
    beside = [str(p.parent) for p in parent.glob("*/config.json")] if parent.is_dir() else []
    known = [other for other in [*beside, "bundled", "gpt2", "EleutherAI/pythia-160m"] if other != name]
    return f"Nearest: {nearest(name, known)}."


def config_of(name: str, revision: str | None = None) -> Any:
    """The transformers config of a model, of which nothing else is read. UnknownModel where there is none."""
    from transformers import AutoConfig

    from interp.decoder.families import check_config

    folder = place(name)
    if not (folder / "config.json").exists():
        if folder.exists() or name.startswith((".", "/")):
            raise UnknownModel(f'no model in "{name}": a model folder has a config.json. {suggest(name)}')
        check_hub(name, revision)
    try:
        config = AutoConfig.from_pretrained(
            folder if folder.exists() else name, revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise UnknownModel(f'config of "{name}" cannot be read ({str(error).strip().splitlines()[0]}).') from None
    check_config(name, config)
    return config


def check_hub(name: str, revision: str | None) -> None:
    """UnknownModel at once where a name is not cached and the hub is out of reach (transformers retries for 30 s), or
    HF_HUB_OFFLINE says that it is not to be asked."""
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        urlopen(constants.ENDPOINT, timeout=10).close()
    except HTTPError:
        pass  # it answers
    except (HFValidationError, OfflineModeIsEnabled, URLError, TimeoutError) as error:
        raise UnknownModel(
            f'no model "{name}": not a local folder, and not to be had from the Hugging Face hub ({error}). '
            f"{suggest(name)}"
        ) from None


_VOLATILE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation_autoset"}


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the model: without paths, versions and dtype."""
    return {key: value for key, value in config.items() if key not in _VOLATILE}


def fingerprint(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """sha256 over the config (without paths and versions) and every weight's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(settings(config), sort_keys=True, default=str).encode())
    for name in sorted(state):
        value = state[name].detach().contiguous().cpu()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return "sha256:" + digest.hexdigest()


_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's directory has one; without, the model reads token ids."""
    return any((folder / name).exists() for name in _TOKENIZERS)


def for_bridge(tokenizer: Any) -> Any:
    """What the bridge is given for a tokenizer: one without an end token (it would add one, beyond the vocabulary) and
    none at all are stood in for; nothing of ours asks it."""
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        return tokenizer
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    stand_in = Tokenizer(models.WordLevel({end: 0}, unk_token=end))
    return PreTrainedTokenizerFast(tokenizer_object=stand_in, eos_token=end, unk_token=end)
