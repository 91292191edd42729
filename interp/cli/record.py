"""`interp record`: run text through a model, write activations to a store."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from interp import runs
from interp.cli import options
from interp.data.documents import TextSettings
from interp.errors import InputError


@options.opens
def record(
    text: Annotated[
        list[str],
        typer.Option(
            help='Files, folders, globs (.txt, .jsonl, .parquet, .arrow), "bundled", or - for standard input.'
        ),
    ],
    model: options.ModelName = "bundled",
    sites: Annotated[
        list[str], typer.Option(help="Hook points: 2.resid_post, '*.z', 0-2.mlp_out; may be given again.")
    ] = ["*.resid_post"],  # noqa: B006
    n_tokens: Annotated[int | None, typer.Option(help="Tokens to record; all of the text if not given.")] = None,
    context: Annotated[int, typer.Option(help="Tokens a window.")] = 128,
    packing: Annotated[
        str, typer.Option(help='"packed": documents follow one another; "document": each begins a window.')
    ] = "packed",
    field: Annotated[str, typer.Option(help="Of a jsonl object; column of parquet and Arrow.")] = "text",
    min_chars: Annotated[int, typer.Option(help="Documents with fewer characters are left out.")] = 1,
    max_chars: Annotated[int | None, typer.Option(help="Documents with more characters are left out.")] = None,
    script: Annotated[str | None, typer.Option(help="Keep documents in this script: latin, cyrillic, cjk, ...")] = None,
    held_out: Annotated[float, typer.Option(help="Share of the documents held out, by the hash of their text.")] = 0.0,
    split: Annotated[str, typer.Option(help="Record the train or the held_out documents, or all.")] = "train",
    shard: Annotated[
        str | None, typer.Option(help="i/n: every n-th document, from the i-th on; under torchrun its rank.")
    ] = None,
    logits: Annotated[int, typer.Option(help="Keep this many of the largest logits of every token.")] = 0,
    store_dtype: Annotated[str, typer.Option(help="On disk: float16, bfloat16 or float32.")] = "float16",
    compression: Annotated[
        str | None, typer.Option(help="zstd, lz4 or gzip, for archives: smaller by a third at best, and slow.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows a forward pass; found from memory.")] = None,
    out: options.Out = None,
    workspace: options.Workspace = options.WORKSPACE,
    overwrite: options.Overwrite = False,
    seed: Annotated[int, typer.Option(help="Taken by every command; text is recorded in its own order.")] = 0,
    *,
    opening: options.Opening,
) -> None:
    """Record activations to an HDF5 store. Killed at any moment, the same command continues.

    Example: interp record --text novel.txt --sites '*.resid_post' --n-tokens 100000 --out novel
    """
    part = _shard(shard)
    if part[1] > 1 and out is not None:
        out = f"{out}-{part[0]}of{part[1]}"
    path = runs.place(workspace, "stores", out, "record")
    runs.check_free(path, overwrite)
    settings = TextSettings(
        text, field=field, context=context, n_tokens=n_tokens, packing=packing, min_chars=min_chars,
        max_chars=max_chars, script=script, held_out=held_out, split=split, shard=part,
    )  # fmt: skip
    import interp

    if opening.device is None and "LOCAL_RANK" in os.environ and _cuda():
        opening = opening.model_copy(update={"device": f"cuda:{os.environ['LOCAL_RANK']}"})
    store = interp.record(
        opening.load(model), settings, sites=sites, logits=logits,
        dtype=store_dtype, compression=compression, out=path, batch_size=batch_size, overwrite=overwrite,
    )  # fmt: skip
    print(f"{store.n_rows:,} rows at {len(store.sites + store.patterns)} sites -> {path}")
    if part[1] > 1:
        parts = " ".join(f"{str(out).rsplit('-', 1)[0]}-{i}of{part[1]}" for i in range(part[1]))
        print(f"When all {part[1]} are done: interp store merge {parts} --out {str(out).rsplit('-', 1)[0]}")


def _shard(text: str | None) -> tuple[int, int]:
    """ "2/8" as (2, 8); torchrun's rank where nothing is given."""
    if text is None:
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    i, slash, n = text.partition("/")
    if not (slash and i.isdigit() and n.isdigit() and int(i) < int(n)):
        raise InputError(f'--shard "{text}" given: i/n with i from 0 to n - 1, e.g. 0/4.')
    return int(i), int(n)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
