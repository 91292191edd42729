"""`interp model convert`, `interp model merge`: new directories of weights, for every command's --model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp.cli import options
from interp.errors import InputError

To = Annotated[Path, typer.Option("--to", help="The new directory; never one that exists.")]


def convert(
    source: Annotated[Path, typer.Argument(help="A llama2.c .bin, a nanoGPT ckpt.pt, or a .gguf.")],
    to: To,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="llama2.c's tokenizer.bin; a directory with a tokenizer; of nanoGPT a .json of characters."),
    ] = None,
    activation: Annotated[
        str, typer.Option(help="Of nanoGPT: gelu (exact), or gelu_new (tanh, before mid 2023).")
    ] = "gelu",
) -> None:
    """A llama2.c, nanoGPT or GGUF file as a Hugging Face directory, with the same logits and tokens.

    Example: interp model convert stories260K.bin --tokenizer tok512.bin --to stories260K
    """
    from interp.decoder.converting import convert as run

    made = run(source, to, tokenizer=tokenizer, activation=activation)
    n = sum(tensor.numel() for tensor in made.state.values())
    print(f"{source}: {made.source}; {n:,} weights -> {to}")


def merge(
    sources: Annotated[list[str], typer.Argument(help="Two models; with --base any number.")],
    to: To,
    weights: Annotated[
        str | None, typer.Option(help="How far from the first (0) to the second (1), .5; with --base one a model, 1.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="linear, slerp; task (with --base): base + weight * (model - base).")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The model that task vectors start from.")] = None,
    drop: Annotated[float, typer.Option(help="DARE: the share of task vectors dropped, the rest made larger.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of what is dropped.")] = 0,
    dtype: options.Dtype = "float32",
) -> None:
    """A new model between two (linear, SLERP), or a base with task vectors (DARE); merge.json says what made it.

    Example: interp model merge bundled my-finetune --weights 0.3 --to between
    """
    from interp.decoder.merging import merge as run

    try:
        share = None if weights is None else [float(weight) for weight in weights.split(",")]
    except ValueError:
        raise InputError(f'weights "{weights}" given: numbers with commas are right, --weights 0.3.') from None
    method = method or ("linear" if base is None else "task")
    made = run(sources, to, weights=share, method=method, base=base, drop=drop, seed=seed, dtype=dtype)
    said = ", ".join(f"{weight:g}" for weight in made["weights"])
    print(f"{method} of {' and '.join(sources)}{f' on {base}' if base else ''}, weights {said} -> {to}")
