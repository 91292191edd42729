"""`interp sae`: train a dictionary, evaluate it in its model, collect what its latents do, hand it to other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp import runs
from interp.cli import options
from interp.cli.options import WORKSPACE, Device, Out, Overwrite, Workspace
from interp.cli.train import train
from interp.errors import AlreadyExists, InputError, MissingFile, nearest

if TYPE_CHECKING:
    from sae.dictionary import Dictionary

app = typer.Typer(help="Dictionaries: train, frontier, eval, features, export.", no_args_is_help=True)

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


app.command()(train)


@app.command()
def frontier(
    names: Annotated[list[str], typer.Argument(help="Finished dictionaries: names in <workspace>/saes, or folders.")],
    figure: Annotated[Path | None, typer.Option(help="An .html file for the figure.")] = None,
    workspace: Workspace = WORKSPACE,
    overwrite: Overwrite = False,
) -> None:
    """What sparsity costs: L0, FVU and dead latents of each, as a table and a figure.

    Example: interp sae frontier front-topk-k8 front-topk-k16 front-topk-k32 --figure frontier.html
    """
    from sae.logs import frontier as table_of

    folders = [find(workspace, "saes", name) for name in names]
    if unfinished := [folder for folder in folders if not runs.is_done(folder)]:
        raise InputError(f"{unfinished[0]} is not a finished dictionary: the command that made it continues it.")
    if figure is not None and figure.exists() and not overwrite:
        raise AlreadyExists(f"{figure} exists: pass --overwrite to replace it.")
    table = table_of(folders)
    print(table.to_string(index=False, float_format=lambda number: f"{number:.4g}"))
    if figure is not None:
        from interp import plots

        plots.frontier(table).write_html(figure, include_plotlyjs=True)
        print(figure)


@app.command("eval")
@options.opens
def evaluate(
    name: Name,
    text: Annotated[
        list[str] | None, typer.Option(help='A .txt file, a glob, or "bundled"; may be given again.')
    ] = None,
    labelled: Annotated[
        Path | None, typer.Option(help='A .jsonl of {"text": ..., "label": ...}: sparse probing too.')
    ] = None,
    model: Annotated[str | None, typer.Option(help="Where the model is now; by default where it was.")] = None,
    n_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the text to use.")] = 20_000,
    context: Annotated[int, typer.Option(min=2, help="Tokens in a window.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows at a time.")] = 8,
    workspace: Workspace = WORKSPACE,
    overwrite: Overwrite = False,
    seed: Annotated[int, typer.Option(help="Of the labelled texts that probes are tested on.")] = 0,
    *,
    opening: options.Opening,
) -> None:
    """Measure a dictionary in its model: L0, FVU, CE loss recovered against zero and mean, KL, dead latents.

    Example: interp sae eval front-topk-k16 --text novel.txt
    """
    dct = _load(workspace, name)
    import sae
    from sae.evaluation import read_metrics
    from sae.probing import read_labelled, summary

    metrics = dct.path / "metrics.json"
    if "ce_sae" in read_metrics(metrics) and not overwrite:
        raise AlreadyExists(f"{metrics} holds an evaluation: pass --overwrite to make it again.")
    pairs = None if labelled is None else read_labelled(labelled)
    loaded = opening.load(_model_name(dct, model), revision=dct.model.get("revision"))
    # probing first: it says no to its input before anything is written
    probes = None if pairs is None else sae.probe(dct, loaded, pairs, context=context, seed=seed)
    report = sae.evaluate(
        dct, loaded, text or "bundled", context=context, n_tokens=n_tokens, batch_size=batch_size,
        progress=True,
    )  # fmt: skip
    report.save(metrics)
    for metric, value in report.table().itertuples(index=False):
        print(f"{metric:18} {value:.4f}" if value % 1 else f"{metric:18} {int(value)}")
    if probes is not None:
        runs.write_json(metrics, read_metrics(metrics) | summary(probes))
        for row in probes.itertuples():
            which = f"latents {row.latents}" if row.k else "activations"
            print(f"probe {row.label:12} {row.accuracy:.4f} by {which}")
    print(metrics)


@app.command()
@options.opens
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
    seed: Annotated[int, typer.Option(help="Of the examples drawn at random.")] = 0,
    *,
    opening: options.Opening,
) -> None:
    """Collect what each latent does: density, examples, histogram, neighbours, tokens raised; for the Features page.

    Example: interp sae features front-topk-k16 --store demo
    """
    if (store is None) == (not text):
        raise InputError("give --store or --text: one of the two.")
    source = None if store is None else find(workspace, "stores", store)
    dct = _load(workspace, name)
    from sae.features import check_free, compute

    check_free(dct.path, overwrite)
    device = opening.device
    if text is None and device != "auto":
        opening = opening.model_copy(update={"device": "cpu"})  # only its unembedding is read
    loaded = opening.load(_model_name(dct, model), revision=dct.model.get("revision"))
    found = compute(
        dct.to(loaded.device if device in (None, "auto") else device), source, text=text or None, n_examples=n_examples,
        context_tokens=context_tokens, n_rows=n_rows, model=loaded, seed=seed, overwrite=overwrite,
        progress=True,
    )  # fmt: skip
    live = found.latents[~found.latents["dead"]]
    print(f"{len(live)} of {len(found.latents)} latents fire; median density {live['density'].median():.2%}")
    for row in live.nlargest(5, "max_activation").itertuples():
        raised = ", ".join(map(repr, found.logits(row.latent)["text"][:3]))
        print(f"  latent {row.latent}: {row.max_activation:.2f} on {row.top_token_text!r}, density {row.density:.2%}"
              + (f", raises {raised}" if raised else ""))  # fmt: skip
    print(dct.path / "features")


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="A name in <workspace>/saes, or a folder of any library that we read.")],
    to: Annotated[Path | None, typer.Option(help="Write a bare SAELens folder there, for other tools.")] = None,
    out: Out = None,
    workspace: Workspace = WORKSPACE,
    overwrite: Overwrite = False,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="Of the weights written; as they are if not given.")] = None,
    seed: Seed = 0,
) -> None:
    """Write a dictionary as a SAELens folder: --to for other tools, --out NAME to take another library's into the
    workspace (SAELens, dictionary_learning and sparsify folders are read).

    Example: interp sae export demo --to upload/demo
    """
    if (to is None) == (out is None):
        raise InputError("say where to: --to FOLDER for other tools, or --out NAME for the workspace.")
    if dtype not in (None, "float32", "float16", "bfloat16"):
        raise InputError(f'weights are written in float32, float16 or bfloat16; --dtype "{dtype}" was given.')
    dct = _load(workspace, name)
    import torch

    from sae.files import CONFIG, WEIGHTS, save

    kind = None if dtype is None else getattr(torch, dtype)
    if to is not None:
        if to.exists() and any(to.iterdir() if to.is_dir() else [to]) and not overwrite:
            raise AlreadyExists(f"{to} is there and not empty: choose another --to, or pass --overwrite.")
        save(dct, to, dtype=kind)
    else:
        to = runs.place(workspace, "saes", out, "sae")
        about = {"source": str(dct.path), "architecture": dct.architecture, "site": dct.sites[0], "d_sae": dct.d_sae,
                 "k": dct.k, "dtype": dtype}  # fmt: skip
        with runs.recording(
            to, kind="sae", config=about, model=dct.model, seed=seed, device="cpu", overwrite=overwrite
        ):
            save(dct, to, dtype=kind)
    print(f"{dct}\n{to / CONFIG}\n{to / WEIGHTS}")


def _model_name(dct: Dictionary, given: str | None) -> str:
    name = given or dct.model.get("name")
    if name is None:
        raise MissingFile(f"{dct.path} does not name its model: pass --model.")
    return name
