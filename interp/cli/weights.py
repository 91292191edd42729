"""`interp model convert`, `interp model merge`: new directories of weights, for every command's --model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

To = Annotated[Path, typer.Option("--to", help="The new directory; never one that exists.")]


def convert(
    source: Annotated[Path, typer.Argument(help="A llama2.c .bin, or a nanoGPT ckpt.pt.")],
    to: To,
    tokenizer: Annotated[
        Path | None, typer.Option(help="llama2.c's tokenizer.bin; of nanoGPT a .json of characters, or a directory.")
    ] = None,
    activation: Annotated[
        str, typer.Option(help="Of nanoGPT: gelu (exact), or gelu_new (tanh, before mid 2023).")
    ] = "gelu",
) -> None:
    """A llama2.c or nanoGPT file as a Hugging Face directory, with the same logits and tokens.

    Example: interp model convert stories260K.bin --tokenizer tok512.bin --to stories260K
    """
    from interp.decoder.converting import convert as run

    made = run(source, to, tokenizer=tokenizer, activation=activation)
    n = sum(tensor.numel() for tensor in made.state.values())
    print(f"{source}: {made.source}; {n:,} weights -> {to}")
