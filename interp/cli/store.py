"""`interp store`: look at stores, check them, join them, take slices out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from interp import runs
from interp.cli import options
from interp.cli.sae import find
from interp.decoder.sites import short
from interp.progress import Progress

app = typer.Typer(help="Activation stores: info, verify, merge, export.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A store: a name in <workspace>/stores, or a folder.")]


@app.command()
def info(
    name: Name,
    positions: Annotated[bool, typer.Option("--positions", help="Mean norm at every position too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
    workspace: options.Workspace = options.WORKSPACE,
) -> None:
    """What a store holds: rows, sizes, and for every hook point the norms of its activations.

    Example: interp store info demo
    """
    from interp.store.reading import Store

    store = Store(find(workspace, "stores", name))
    about = store.info()
    statistics = {site: store.statistics(site) for site in store.sites}
    if as_json:
        told = {
            site: {k: v.tolist() if hasattr(v, "tolist") else v for k, v in s.items()} for site, s in statistics.items()
        }
        print(json.dumps(about | {"statistics": told}, indent=2))
        return
    state = "" if store.finished else " (still being written)"
    size = f"{about['shards']} shards, {about['bytes'] / 2**20:.1f} MiB"
    print(f"{store.path}: {about['rows']:,} rows, {about['windows']:,} windows in {size}, {about['dtype']}{state}")
    print(
        f"model {about['model']['name']} ({about['model']['fingerprint'][:19]}), windows of {about['context']} tokens"
    )
    table = Table("site", "shape", "mean norm", "5%", "50%", "95%", "largest value", box=None)
    for site, s in statistics.items():
        shape = " x ".join(map(str, store[site].shape))
        quantiles = [f"{s['norm_quantiles'][q]:.3g}" for q in (0.05, 0.5, 0.95)]
        table.add_row(short(site), shape, f"{s['norm_mean']:.3f}", *quantiles, f"{s['max_abs']:.3f}")
    for site in store.patterns:
        table.add_row(short(site), " x ".join(map(str, store[site].shape)), *[""] * 5)
    console = Console(soft_wrap=True)
    console.print(table)
    if positions:
        table = Table("position", *(short(site) for site in store.sites), box=None, title="mean norm by position")
        for position in range(store.context):
            table.add_row(str(position), *(f"{s['position_norm'][position]:.3f}" for s in statistics.values()))
        console.print(table)


@app.command()
def verify(name: Name, workspace: options.Workspace = options.WORKSPACE) -> None:
    """Read every byte of a store and check it against its checksums; exit status 1 where one is not as it was written.

    Example: interp store verify demo
    """
    from interp.store.verifying import verify

    path = find(workspace, "stores", name)
    size = sum(file.stat().st_size for file in path.glob("shard-*.h5"))
    with Progress("verifying bytes", size) as bar:
        found = verify(path, progress=bar.advance)
    for damage in found:
        print(damage)
    if found:
        print(f"{path}: {len(found)} places are not as they were written.")
        raise typer.Exit(1)
    state = "" if runs.is_done(path) else " so far (it is not finished)"
    print(f"{path}: every byte is as it was written{state}, {size / 2**20:.1f} MiB in shards.")


@app.command()
def merge(
    names: Annotated[list[str], typer.Argument(help="The parts, as made with record --shard 0/n to n-1/n.")],
    out: Annotated[str, typer.Option("--out", help="Name of the joined store.")],
    workspace: options.Workspace = options.WORKSPACE,
    overwrite: options.Overwrite = False,
) -> None:
    """Join the shards of one corpus to a store, without copying them.

    Example: interp store merge big-0of2 big-1of2 --out big
    """
    from interp.store.joining import merge

    path = runs.place(workspace, "stores", out, "merge")
    runs.check_free(path, overwrite)
    store = merge([find(workspace, "stores", name) for name in names], path, overwrite=overwrite)
    print(f"{store.n_rows:,} rows at {len(store.sites)} sites -> {path}")


@app.command()
def export(
    name: Name,
    site: Annotated[str, typer.Option(help="The hook point, e.g. 2.resid_post.")],
    to: Annotated[Path, typer.Option(help="The file: .npy, .parquet or .safetensors.")],
    rows: Annotated[str, typer.Option(help="As in Python: 0:1000, :50, ::10.")] = ":",
    workspace: options.Workspace = options.WORKSPACE,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a slice of a hook point for another tool.

    Example: interp store export demo --site 2.resid_post --rows 0:1000 --to acts.parquet
    """
    from interp.store.exporting import export, parse_rows
    from interp.store.reading import Store

    store = Store(find(workspace, "stores", name))
    n = export(store, site, to, rows=parse_rows(rows, store.n_rows), overwrite=overwrite)
    print(f"{n:,} rows of {short(store.site(site))} -> {to}")
