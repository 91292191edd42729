"""`interp model`: what a model has, and whether its hooks tell the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import options, weights
from interp.cli.keeping import place, recorded
from interp.decoder.sites import axes, short

if TYPE_CHECKING:
    import torch

    from interp.causal.conformance import Conformance
    from interp.decoder.experts import Mixture
    from interp.decoder.model import Model

app = typer.Typer(help="Models: info, check, convert, merge.", no_args_is_help=True)
app.command()(weights.convert)
app.command()(weights.merge)

Name = Annotated[str, typer.Argument(help='"bundled", a local directory, or a name on the hub.')]


@app.command()
@options.opens
def info(
    name: Name = "bundled",
    batch: Annotated[int, typer.Option(help="Prompts of the pass whose memory is estimated.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens a prompt of it.")] = 128,
    sites: Annotated[list[str] | None, typer.Option(help="What it captures: *.resid_post; may be given again.")] = None,
    weights: Annotated[bool, typer.Option(help="Read the weights; without, memory alone, from config.json.")] = True,
    *,
    opening: options.Opening,
) -> None:
    """Sizes, fingerprint and hook points of a model, and the memory that a pass takes.

    Example: interp model info bundled --batch 8 --length 128
    """
    if not weights:
        from interp.decoder.loading import dtype_of
        from interp.decoder.sources import config_of

        opening.check_none("it is of weights, and --no-weights reads none")
        _say_memory(config_of(name), batch, length, sites or (), dtype_of(opening.dtype), opening.device)
        return
    model = opening.load(name)
    if model.adapter is not None:
        print(f"LoRA on {model.adapter['base']}, merged: {model.adapter['fingerprint']}")
    print(f"{model.name}: {model.n_layers} layers, {model.n_heads} heads, d_model {model.d_model}, d_mlp {model.d_mlp}")
    for layers, mixture in _mixtures(model).items():
        print(f"{mixture.n} experts, {mixture.n_chosen} for a token, in layers {layers}")
    print(f"{model.d_vocab:,} tokens, {model.n_ctx} positions, {model.dtype}, on {model.where}")
    if model.quantisation:
        print(f"weights in {model.quantisation}")
    print(f"{model.fingerprint}, weights as trained")
    _say_memory(model, batch, length, sites or (), model.dtype, str(model.device))
    for site in model.sites:
        print(f"  {short(site):<16} {site:<34} [{axes(site)}]")
    for site in model.mixtures.read_only:
        print(f"  {short(site):<16} {site:<34} [{axes(site)}]  read only")


def _say_memory(
    model: Any, batch: int, length: int, sites: Sequence[str], dtype: torch.dtype, device: str | None
) -> None:
    """An estimate, by kind; `model` may be a config."""
    from interp.decoder.memory import available, estimate, readable

    found = estimate(model, batch=batch, length=length, sites=sites, dtype=dtype, cache=True)
    print(f"memory of {batch} x {length} tokens in {dtype}, estimated: {readable(found.total)}, of which")
    print(f"  weights {readable(found.weights)}, activations {readable(found.activations)} without gradients,")
    print(f"  keys and values {readable(found.cache)} when generating, captured {readable(found.captured)}")
    where = device if device not in (None, "auto") else "cpu"
    print(f"  {readable(available(where))} free on {where}")


def _mixtures(model: Model) -> dict[str, Mixture]:
    """Layers of experts that are as many, as text: "0, 1, 2"."""
    alike: dict[tuple[int, int], list[int]] = {}
    for layer, mixture in model.mixtures.items():
        alike.setdefault((mixture.n, mixture.n_chosen), []).append(layer)
    return {", ".join(map(str, layers)): model.mixtures[layers[0]] for layers in alike.values()}


@app.command()
@options.opens
def check(
    name: Name = "bundled",
    length: Annotated[int, typer.Option(help="Random tokens a prompt: more than a sliding window, to try it.")] = 12,
    out: options.Out = None,
    workspace: options.Workspace = options.WORKSPACE,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    *,
    opening: options.Opening,
) -> None:
    """Measure whether the workbench holds on a model: logits against plain Hugging Face, every hook point edited, what
    is built on hooks against slow loops. One line a check: ok, refused (and why), or WRONG; exit status 1 for WRONG.

    Example: interp model check gpt2 --dtype bfloat16
    """
    import interp
    from interp.errors import Failure, InputError

    if length < 4:
        raise InputError(f"length {length} given: 4 tokens or more.")
    path = place(out, workspace, "model check", overwrite)
    model = opening.load(name, tried=False)
    report = interp.check(model, length=length, seed=seed)
    _say(report)
    if path is not None:
        config = {"model": name, "length": length} | opening.kept()
        with recorded(path, "model check", config, model, seed, overwrite):
            report.save(path)
        print(f"-> {path / 'checks.parquet'}")
    n, wrong = len(report.lines), len(report.wrong)
    if wrong:
        raise Failure(f'"{name}": {wrong} of {n} checks are WRONG: what rests on them cannot be trusted.')
    n_refused = sum(line.verdict == "refused" for line in report.lines)
    print(f"{n - n_refused} checks passed; {n_refused} things are not offered, for the reasons above")


def _say(report: Conformance) -> None:
    for line in report.lines:
        measured = "" if line.measured != line.measured else f"{line.measured:.1e}, {line.bound} {line.limit:.0e}"
        print(f"{line.verdict:<8}{line.what:<68}{measured:<26}{line.why}".rstrip())
