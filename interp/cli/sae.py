"""`interp sae`: train a dictionary on a store, evaluate it in its model, collect what its latents do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp import runs
from interp.cli.options import WORKSPACE, Device, Dtype, Out, Overwrite, Workspace
from interp.errors import AlreadyExists, InputError, MissingFile, nearest

if TYPE_CHECKING:
    from sae.dictionary import Dictionary

app = typer.Typer(help="Sparse autoencoders: train, eval, features.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A dictionary: a name in <workspace>/saes, or a folder.")]
Seed = Annotated[int, typer.Option(help="Taken for likeness with the other commands: nothing is drawn at random here.")]


def find(workspace: Path, folder: str, name: str) -> Path:
    """The folder of `name` in the workspace, or `name` itself where that is one. MissingFile with the nearest names."""
    for path in (workspace / folder / name, Path(name)):
        if path.is_dir():
            return path
    there = sorted(path.name for path in (workspace / folder).glob("*") if path.is_dir())
    hint = f"Nearest: {nearest(name, there)}." if there else f"{workspace / folder} has none."
    raise MissingFile(f'no "{name}" in {workspace / folder}. {hint}')


def _load(workspace: Path, name: str) -> Dictionary:
    import sae

    return sae.load(find(workspace, "saes", name))


@app.command()
def train(
    store: Annotated[str, typer.Option(help="A store: a name in <workspace>/stores, or a folder.")],
    site: Annotated[str, typer.Option(help="The hook point, e.g. 2.resid_post.")],
    architecture: Annotated[str, typer.Option(help="topk.")] = "topk",
    d_sae: Annotated[int, typer.Option(help="Number of latents.")] = 4096,
    k: Annotated[int, typer.Option(help="Latents active at a token.")] = 32,
    n_tokens: Annotated[int | None, typer.Option(help="Rows to train on; 4 epochs of the store if not given.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows a step.")] = 1024,
    lr: Annotated[float | None, typer.Option(help="Learning rate; 1e-3 / sqrt(d_sae / 2^14) if not given.")] = None,
    out: Out = None,
    workspace: Workspace = WORKSPACE,
    overwrite: Overwrite = False,
    seed: Annotated[int, typer.Option(help="Of the first weights and of the order of the rows.")] = 0,
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="float32, in which dictionaries are trained.")] = "float32",
) -> None:
    """Train a TopK dictionary on one site of a store. Killed at any moment, the same command continues.

    Example: interp sae train --store demo --site 2.resid_post --d-sae 2048 --k 32 --out demo
    """
    _only_float32(dtype)
    target = runs.place(workspace, "saes", out, "sae")
    source = find(workspace, "stores", store)
    import sae

    dct = sae.train(
        source, site=site, architecture=architecture, d_sae=d_sae, k=k, out=target, n_tokens=n_tokens,
        batch_size=batch_size, lr=lr, seed=seed, device=device, overwrite=overwrite,
    )  # fmt: skip
    from sae.evaluation import read_metrics

    numbers = read_metrics(target / "metrics.json")
    print(f"{dct.d_sae} latents on {dct.site}: L0 {numbers['train_l0']:.1f}, FVU {numbers['train_fvu']:.4f}, "
          f"{numbers['train_dead']} dead, on the rows trained on")  # fmt: skip
    print(f"{target}\nNext: interp sae eval {target.name} --workspace {workspace}")


@app.command("eval")
def evaluate(
    name: Name,
    text: Annotated[
        list[str] | None, typer.Option(help='A .txt file, a glob, or "bundled"; may be given again.')
    ] = None,
    model: Annotated[str | None, typer.Option(help="Where the model is now; by default where it was.")] = None,
    n_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the text to use.")] = 20_000,
    context: Annotated[int, typer.Option(min=2, help="Tokens in a window.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows at a time.")] = 8,
    workspace: Workspace = WORKSPACE,
    overwrite: Overwrite = False,
    device: Device = None,
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Measure a dictionary in its model: L0, FVU, CE loss recovered against zero and mean, KL, dead latents.

    Example: interp sae eval demo --text novel.txt
    """
    dct = _load(workspace, name)
    import sae
    from interp.decoder.loading import load_model
    from sae.evaluation import read_metrics

    metrics = dct.path / "metrics.json"
    if "ce_sae" in read_metrics(metrics) and not overwrite:
        raise AlreadyExists(f"{metrics} holds an evaluation: pass --overwrite to make it again.")
    loaded = load_model(_model_name(dct, model), device=device, dtype=dtype, revision=dct.model.get("revision"))
    report = sae.evaluate(
        dct, loaded, text or "bundled", context=context, n_tokens=n_tokens, batch_size=batch_size
    )  # fmt: skip
    report.save(metrics)
    for metric, value in report.table().itertuples(index=False):
        print(f"{metric:18} {value:.4f}" if value % 1 else f"{metric:18} {int(value)}")
    print(metrics)


@app.command()
def features(
    name: Name,
    store: Annotated[
        str | None, typer.Option(help="A store of the same model: a name in <workspace>/stores, or a folder.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help='Or text, read by the model now: a .txt file, a glob, or "bundled".')
    ] = None,
    n_examples: Annotated[int, typer.Option(min=1, help="Examples of each kind of a latent.")] = 20,
    context_tokens: Annotated[int, typer.Option(min=0, help="Tokens shown on each side of an example.")] = 16,
    n_rows: Annotated[int, typer.Option(min=1, help="Tokens to use, at most.")] = 1_000_000,
    model: Annotated[str | None, typer.Option(help="Where the model is now; by default where it was.")] = None,
    workspace: Workspace = WORKSPACE,
    overwrite: Overwrite = False,
    device: Device = None,
    dtype: Dtype = "float32",
    seed: Annotated[int, typer.Option(help="Of the examples drawn at random.")] = 0,
) -> None:
    """Collect what each latent does: density, examples, histogram, neighbours, tokens raised; for the Features page.

    Example: interp sae features demo --store demo
    """
    if (store is None) == (not text):
        raise InputError("give --store or --text: one of the two.")
    source = None if store is None else find(workspace, "stores", store)
    dct = _load(workspace, name)
    from interp.decoder.loading import load_model
    from sae.features import check_free, compute

    check_free(dct.path, overwrite)
    where = "cpu" if text is None else device
    loaded = load_model(_model_name(dct, model), device=where, dtype=dtype, revision=dct.model.get("revision"))
    found = compute(
        dct.to(device or loaded.device), source, text=text or None, n_examples=n_examples,
        context_tokens=context_tokens, n_rows=n_rows, model=loaded, seed=seed, overwrite=overwrite,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    live = found.latents[~found.latents["dead"]]
    print(f"{len(live)} of {len(found.latents)} latents fire; median density {live['density'].median():.2%}")
    for row in live.nlargest(5, "max_activation").itertuples():
        raised = ", ".join(map(repr, found.logits(row.latent)["text"][:3]))
        print(f"  latent {row.latent}: {row.max_activation:.2f} on {row.top_token_text!r}, density {row.density:.2%}"
              + (f", raises {raised}" if raised else ""))  # fmt: skip
    print(dct.path / "features")


def _model_name(dct: Dictionary, given: str | None) -> str:
    name = given or dct.model.get("name")
    if name is None:
        raise MissingFile(f"{dct.path} does not name its model: pass --model.")
    return name


def _only_float32(dtype: str) -> None:
    if dtype != "float32":
        raise InputError(f'dictionaries are trained in float32; --dtype "{dtype}" was given.')
