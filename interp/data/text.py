"""Text to windows of tokens: files and globs of .txt, each file one document, packed one after the other."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from interp.decoder.loading import Model
from interp.errors import InputError, MissingFile, nearest

BUNDLED = Path(__file__).parent.parent / "bundled" / "text"


@dataclass(frozen=True)
class Corpus:
    """Documents read from files."""

    files: list[str]
    documents: list[str]

    @property
    def hashes(self) -> dict[str, str]:
        """sha256 of each document, by file."""
        return {f: hashlib.sha256(d.encode()).hexdigest() for f, d in zip(self.files, self.documents, strict=True)}


def read_text(text: str | Path | Sequence[str | Path]) -> Corpus:
    """The documents that `text` names: a path, a glob, a list of them, or "bundled". MissingFile if none matches."""
    if isinstance(text, (str, Path)):
        text = [text]
    paths: list[Path] = []
    for pattern in map(str, text):
        found = sorted(BUNDLED.glob("*.txt")) if pattern == "bundled" else sorted(map(Path, glob.glob(pattern)))
        found = [file for path in found for file in (sorted(path.glob("*.txt")) if path.is_dir() else [path])]
        if not found:
            beside = [str(p) for p in Path(pattern).parent.glob("*.txt")]
            raise MissingFile(f'no text at "{pattern}". Nearest: {nearest(pattern, [*beside, "bundled"])}.')
        paths += found
    try:
        return Corpus([str(p) for p in paths], [p.read_text(encoding="utf-8") for p in paths])
    except UnicodeDecodeError as error:
        raise InputError(
            f"{paths} hold bytes that are not UTF-8 text ({error.reason}): give plain .txt files."
        ) from None


def windows(
    model: Model, corpus: Corpus, *, context: int = 128, n_tokens: int | None = None
) -> Int[Tensor, "window pos"]:
    """The corpus packed into windows of `context` tokens, BOS first in each; at least `n_tokens` in all, or everything.

    Documents follow one another with a BOS between. What does not fill the last window is left out. InputError where
    there is not one full window, or `context` is more than the model reads.
    """
    if not 2 <= context <= model.n_ctx:
        raise InputError(f'context {context} given: "{model.name}" reads 2 to {model.n_ctx} tokens.')
    if n_tokens is not None and n_tokens < 1:
        raise InputError(f"n_tokens {n_tokens} given: one or more tokens can be read.")
    start = [] if model.bos is None else [model.bos]
    body = context - len(start)
    wanted = None if n_tokens is None else -(-n_tokens // context) * body
    ids: list[int] = []
    for document in corpus.documents:
        ids += (start if ids else []) + model.to_tokens(document, prepend_bos=False)
        if wanted is not None and len(ids) >= wanted:
            break
    n_windows = len(ids) // body if wanted is None else min(len(ids), wanted) // body
    if n_windows == 0:
        raise InputError(f"{', '.join(corpus.files)}: {len(ids)} tokens, fewer than one window of {context}.")
    packed = torch.tensor(ids[: n_windows * body]).unflatten(0, (n_windows, body))
    if start:
        packed = torch.cat([torch.full((n_windows, 1), start[0]), packed], dim=1)
    return packed
