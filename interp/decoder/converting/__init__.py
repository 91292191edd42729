"""convert(): small teaching models, as they come, to Hugging Face directories.

    llama2.c     .bin with the legacy header or version 1 (float32), and its tokenizer.bin      -> Llama
    GGUF         llama.cpp's files, quantised or not, as transformers reads them                -> the same architecture
    nanoGPT      ckpt.pt, and a vocabulary of characters (.json) or a tokenizer's directory     -> GPT-2

Logits are the source's to rounding, and so are token ids. Everything is read and checked before a file is written; what
is wrong with a source is an InputError. Nothing is unpickled but tensors (`torch.load(weights_only=True)`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.decoder.directories import check_new, new_directory, write_weights
from interp.errors import InputError, MissingFile


@dataclass(frozen=True)
class Converted:
    """A model to be written: its config, its weights by Hugging Face's names, its tokenizer."""

    source: str
    """What the file was, in words."""
    config: dict[str, Any]
    state: dict[str, Tensor]
    tokenizer: Any = None
    """A PreTrainedTokenizerFast; None: the model reads token ids only."""

    def save(self, folder: Path) -> None:
        """The directory, which must not exist."""
        with new_directory(folder) as temporary:
            write_weights(temporary, self.config, self.state)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(temporary)


def convert(
    source: str | Path, to: str | Path, *, tokenizer: str | Path | None = None, activation: str = "gelu"
) -> Converted:
    """The model in the file `source` as a new directory `to`, for `load_model`.

    `tokenizer`: of llama2.c its tokenizer.bin (else `tok<vocabulary>.bin` or `tokenizer.bin` beside the source, if
    there is one); of nanoGPT a .json of characters (a list, or character -> id) or the directory of a tokenizer.
    `activation`: of nanoGPT, which does not say it: "gelu" (exact, as now) or "gelu_new" (tanh, before mid 2023).
    """
    from interp.decoder.converting import gguf, llama2c, nanogpt

    source, to = Path(source), Path(to)
    check_new(to)
    if not source.is_file():
        raise MissingFile(f'no file "{source}": give a llama2.c .bin, a nanoGPT ckpt.pt or a .gguf.')
    with open(source, "rb") as file:
        head = file.read(4)
    spelled = None if tokenizer is None else Path(tokenizer)
    if spelled is not None and not spelled.exists():
        raise MissingFile(f'no tokenizer "{spelled}".')
    if head[:2] == b"PK" or head[:1] == b"\x80":  # torch.save: a zip archive, or before 1.6 a pickle
        made = nanogpt.read(source, spelled, activation)
    elif activation != "gelu":
        raise InputError(f'activation "{activation}" given: it is a setting of nanoGPT checkpoints alone.')
    else:
        made = (gguf if head == gguf.MAGIC else llama2c).read(source, spelled)
    made.save(to)
    return made
