"""`interp model`: what a model has, and whether its hooks tell the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli import options, weights
from interp.decoder.sites import axes, short

if TYPE_CHECKING:
    from interp.decoder.experts import Mixture
    from interp.decoder.loading import Model

app = typer.Typer(help="Models: info, check, convert, merge.", no_args_is_help=True)
app.command()(weights.convert)
app.command()(weights.merge)

Name = Annotated[str, typer.Argument(help='"bundled", a local directory, or a name on the hub.')]


@app.command()
def info(
    name: Name = "bundled",
    adapter: Annotated[Path | None, typer.Option(help="A LoRA directory to be merged into it.")] = None,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
) -> None:
    """Sizes, fingerprint and hook points of a model.

    Example: interp model info bundled
    """
    import interp

    model = interp.load_model(name, device=device, dtype=dtype, adapter=adapter)
    if model.adapter is not None:
        print(f"LoRA on {model.adapter['base']}, merged: {model.adapter['fingerprint']}")
    print(f"{model.name}: {model.n_layers} layers, {model.n_heads} heads, d_model {model.d_model}, d_mlp {model.d_mlp}")
    for layers, mixture in _mixtures(model).items():
        print(f"{mixture.n} experts, {mixture.n_chosen} for a token, in layers {layers}")
    print(f"{model.d_vocab:,} tokens, {model.n_ctx} positions, {model.dtype}, on {model.device}")
    print(f"{model.fingerprint}, weights as trained")
    for site in model.sites:
        print(f"  {short(site):<16} {site:<34} [{axes(site)}]")
    for site in model.mixtures.read_only:
        print(f"  {short(site):<16} {site:<34} [{axes(site)}]  read only")


def _mixtures(model: Model) -> dict[str, Mixture]:
    """Layers of experts that are as many, as text: "0, 1, 2"."""
    alike: dict[tuple[int, int], list[int]] = {}
    for layer, mixture in model.mixtures.items():
        alike.setdefault((mixture.n, mixture.n_chosen), []).append(layer)
    return {", ".join(map(str, layers)): model.mixtures[layers[0]] for layers in alike.values()}


@app.command()
def check(name: Name = "bundled", device: options.Device = None, dtype: options.Dtype = "float32") -> None:
    """Compare the instrumented forward with the plain Hugging Face one, and edit every hook point to see logits move.

    Example: interp model check gpt2
    """
    import interp
    from interp.decoder.checking import check as run
    from interp.errors import InputError

    report = run(interp.load_model(name, device=device, dtype=dtype))
    for row in report.itertuples():
        print(f"  {row.what:<34} {row.largest_change:.3g}  {'ok' if row.ok else 'WRONG'}")
    if not report.ok.all():
        raise InputError(f"{name}: {(~report.ok).sum()} of {len(report)} checks failed: its results cannot be trusted.")
    print(f"{len(report)} checks passed")
