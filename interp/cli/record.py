"""`interp record`: run text through a model, write activations to a store."""

from __future__ import annotations

from typing import Annotated

import typer

from interp import runs
from interp.cli import options


def record(
    text: Annotated[list[str], typer.Option(help='Files or globs of .txt, or "bundled"; may be given again.')],
    model: options.ModelName = "bundled",
    sites: Annotated[
        list[str], typer.Option(help="Hook points: 2.resid_post, '*.z', 0-2.mlp_out; may be given again.")
    ] = [  # noqa: B006
        "*.resid_post"
    ],
    n_tokens: Annotated[int | None, typer.Option(help="Tokens to record; all of the text if not given.")] = None,
    context: Annotated[int, typer.Option(help="Tokens a window.")] = 128,
    store_dtype: Annotated[str, typer.Option(help="On disk: float16 or float32.")] = "float16",
    batch_size: Annotated[int, typer.Option(help="Windows a forward pass.")] = 32,
    out: options.Out = None,
    workspace: options.Workspace = options.WORKSPACE,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    seed: Annotated[int, typer.Option(help="Taken by every command; text is recorded in its own order.")] = 0,
) -> None:
    """Record activations to an HDF5 store. Killed at any moment, the same command continues.

    Example: interp record --text novel.txt --sites '*.resid_post' --n-tokens 100000 --out novel
    """
    path = runs.place(workspace, "stores", out, "record")
    runs.check_free(path, overwrite)
    import interp

    store = interp.record(
        interp.load_model(model, device=device, dtype=dtype), text, sites=sites, n_tokens=n_tokens, context=context,
        dtype=store_dtype, out=path, batch_size=batch_size, overwrite=overwrite,
    )  # fmt: skip
    print(f"{store.n_rows:,} rows at {len(store.sites)} sites -> {path}")
