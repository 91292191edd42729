"""`interp store`: look at stores."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from interp.cli import options
from interp.cli.sae import find
from interp.decoder.sites import short

app = typer.Typer(help="Activation stores.", no_args_is_help=True)


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="A store: a name in <workspace>/stores, or a folder.")],
    workspace: options.Workspace = options.WORKSPACE,
) -> None:
    """What a store holds: rows, sites, sizes, norms.

    Example: interp store info demo
    """
    from interp.store.reading import Store

    store = Store(find(workspace, "stores", name))
    about = store.info()
    size = f"{about['shards']} shards, {about['bytes'] / 2**20:.1f} MiB"
    print(f"{store.path}: {about['rows']:,} rows in {size}, {about['dtype']}")
    print(
        f"model {about['model']['name']} ({about['model']['fingerprint'][:19]}), windows of {about['context']} tokens"
    )
    table = Table("site", "shape", "mean norm", "largest", box=None)
    for site in store.sites:
        statistics = store.statistics(site)
        shape = " x ".join(map(str, store[site].shape))
        table.add_row(short(site), shape, f"{statistics['norm_mean']:.3f}", f"{statistics['max_abs']:.3f}")
    Console(soft_wrap=True).print(table)


@app.callback()
def _stores() -> None:
    """Activation stores."""
