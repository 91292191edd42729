"""A model's directory, made whole or not at all: written beside its place, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from interp import runs
from interp.errors import AlreadyExists


def check_new(path: Path) -> None:
    """AlreadyExists where something is at `path`: a model is never overwritten."""
    if path.exists() or path.is_symlink():
        raise AlreadyExists(f"{path} exists: a model's directory is never overwritten; choose another --to.")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A folder to write into; at the end of the block it stands at `path`, after an exception nowhere."""
    check_new(path)
    temporary = path.absolute().with_name(f".{path.absolute().name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        check_new(path)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_weights(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """config.json and model.safetensors; `state` names a tensor once, however many parts of the model share it."""
    runs.write_json(folder / "config.json", dict(config))
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
