"""`interp sae train`: a dictionary, or a grid of them on one pass, from flags, a YAML file, or both (flags win)."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from interp import runs
from interp.cli import options
from interp.errors import InputError, MissingFile, UnknownKey, nearest

Text = str | list[str]
Int = int | list[int]
Real = float | list[float]
Flag = bool | list[bool]


class Config(options.Opening):
    """The keys of the YAML file; the flags are the same with dashes. Of a key in the second part a list makes a grid:
    every combination is trained. What a key means, and its default, stands in sae/config.py."""

    store: str | None = None
    model: str | None = None
    text: Text | None = None
    context: int = 128
    out: str | None = None
    workspace: str = str(options.WORKSPACE)
    overwrite: bool = False
    log_every: int = 10
    log_to: str | None = None
    checkpoint_every: int = 200
    n_tokens: int | None = None
    batch_size: int | None = None
    shuffle_seed: int | None = None
    held_out: float | None = None
    prefixes: list[float] | None = None

    site: Text
    out_site: Text | None = None
    skip: Flag | None = None
    architecture: Text | None = None
    d_sae: Int | None = None
    k: Int | None = None
    seed: Int | None = None
    lr: Real | None = None
    warmup: Real | None = None
    decay: Real | None = None
    weight_decay: Real | None = None
    clip: Real | None = None
    bf16: Flag | None = None
    accumulate: Int | None = None
    sparsity: Real | None = None
    sparsity_warmup: Real | None = None
    penalty: Text | None = None
    bandwidth: Real | None = None
    threshold: Real | None = None
    aux_weight: Real | None = None
    k_aux: Int | None = None
    dead_after: Int | None = None
    centre: Text | None = None
    scale: Flag | None = None


_OURS = ("store", "model", "text", "context", "out", "workspace", "overwrite", "log_every", "log_to",
         "checkpoint_every", *options.OPENING)  # fmt: skip
_SINGLE = ("n_tokens", "batch_size", "shuffle_seed", "held_out", "prefixes")


def read_config(path: Path | None, flags: dict[str, Any]) -> Config:
    """The file's keys with the flags given over them; a flag with commas is a list. One line naming a key that is
    wrong."""
    import yaml

    content: Any = {}
    if path is not None:
        if not path.exists():
            beside = [str(p) for p in path.parent.glob("*.y*ml")]
            raise MissingFile(f'no file "{path}".' + (f" Nearest: {nearest(str(path), beside)}." if beside else ""))
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
        if not isinstance(content, dict):
            raise InputError(f'{path} holds no keys: write "site: 2.resid_post", a key a line.')
    given = {key: value for key, value in flags.items() if value is not None}
    lists = {key: v.split(",") for key, v in given.items() if isinstance(v, str) and "," in v}
    try:
        return Config(**(content | given | lists))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise UnknownKey(f'no key "{key}". Nearest: {nearest(key, Config.model_fields)}.') from None
        if first["type"] == "missing":
            raise InputError(f'"{key}" is missing: give --{key}, or "{key}:" in a YAML file.') from None
        raise InputError(f'key "{key}": {first["msg"]}, {first["input"]!r} given.') from None


def expand(config: Config) -> dict[str, dict[str, Any]]:
    """The dictionaries that a config asks for: the end of a name (empty for a single one) -> settings."""
    settings = config.model_dump(exclude=set(_OURS), exclude_none=True)
    lists = {key: value for key, value in settings.items() if isinstance(value, list) and key not in _SINGLE}
    if "prefixes" in settings:
        settings["prefixes"] = tuple(settings["prefixes"])
    made = {}
    for values in itertools.product(*lists.values()):
        one = dict(zip(lists, values, strict=True))
        parts = [str(v).replace("+", "_") if isinstance(v, str) else f"{key}{v:g}" for key, v in one.items()]
        made["-".join(parts)] = settings | one
    return made


@options.opens
def train(
    config: Annotated[Path | None, typer.Argument(help="A YAML file of the flags' names.", show_default=False)] = None,
    store: Annotated[str | None, typer.Option(help="A store: a name in <workspace>/stores, or a folder.")] = None,
    model: Annotated[str | None, typer.Option(help="In place of a store: a model to run on --text.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="What --model reads; may be given again.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens in a window of --text; 128.")] = None,
    site: Annotated[str | None, typer.Option(help="2.resid_post; a crosscoder: 1.resid_post+2.resid_post.")] = None,
    out_site: Annotated[str | None, typer.Option(help="What is predicted; another site makes a transcoder.")] = None,
    skip: Annotated[bool | None, typer.Option("--skip", help="A transcoder's linear path.")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="standard, gated, jumprelu, topk, batchtopk, matryoshka_batchtopk, abstopk.")
    ] = None,
    d_sae: Annotated[str | None, typer.Option(help="Number of latents; 4096.")] = None,
    k: Annotated[str | None, typer.Option(help="Latents active at a token; jumprelu's target; 32.")] = None,
    n_tokens: Annotated[int | None, typer.Option(help="Rows to train on; 4 epochs if not given.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step; 1024.")] = None,
    accumulate: Annotated[str | None, typer.Option(help="Parts a batch is cut in to save memory; 1.")] = None,
    lr: Annotated[str | None, typer.Option(help="Learning rate; 1e-3 / sqrt(d_sae / 2^14) if not given.")] = None,
    warmup: Annotated[str | None, typer.Option(help="Share of the steps over which it rises; 0.05.")] = None,
    decay: Annotated[str | None, typer.Option(help="Share of the steps over which it falls to 0; 0.2.")] = None,
    weight_decay: Annotated[str | None, typer.Option(help="Above 0: AdamW; 0.")] = None,
    clip: Annotated[str | None, typer.Option(help="Largest norm of the gradient; 1. 0 clips nothing.")] = None,
    bf16: Annotated[bool | None, typer.Option("--bf16", help="The encoder's product in bfloat16.")] = None,
    sparsity: Annotated[str | None, typer.Option(help="Weight of the sparsity penalty; the paper's.")] = None,
    sparsity_warmup: Annotated[str | None, typer.Option(help="Share of the steps over which it rises; 0.05.")] = None,
    penalty: Annotated[str | None, typer.Option(help="Of jumprelu: target (of L0, --k), step, tanh.")] = None,
    bandwidth: Annotated[str | None, typer.Option(help="Of jumprelu: where thresholds have gradients; 0.001.")] = None,
    threshold: Annotated[str | None, typer.Option(help="Of jumprelu: thresholds at the start; 0.001.")] = None,
    prefixes: Annotated[str | None, typer.Option(help="Of matryoshka_batchtopk: nested shares, up to 1.")] = None,
    aux_weight: Annotated[str | None, typer.Option(help="Of AuxK; 1/32 with top-k architectures, else 0.")] = None,
    k_aux: Annotated[str | None, typer.Option(help="Dead latents AuxK uses at a token; half of d_in.")] = None,
    dead_after: Annotated[str | None, typer.Option(help="Silent tokens that make a latent dead.")] = None,
    centre: Annotated[str | None, typer.Option(help="Where b_dec starts: median, mean, none.")] = None,
    scale: Annotated[bool | None, typer.Option(help="Whether inputs are scaled in training.")] = None,
    held_out: Annotated[float | None, typer.Option(help="Share of sequences never trained on; 0.01.")] = None,
    seed: Annotated[str | None, typer.Option(help="Of the first weights; 0.")] = None,
    shuffle_seed: Annotated[int | None, typer.Option(help="Of the order of the rows; 0.")] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps between lines of train_log.csv; 10.")] = None,
    log_to: Annotated[str | None, typer.Option(help="tensorboard or wandb: the lines go there too.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints; 200.")] = None,
    out: options.Out = None,
    workspace: Annotated[str | None, typer.Option(help="The folder with runs/, stores/ and saes/.")] = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="Replace what is finished.")] = None,
    *,
    opening: options.Opening,
) -> None:
    """Train a dictionary on one site of a store, or many on one pass: give a flag several values with commas. Killed at
    any moment, the same command continues.

    Example: interp sae train --store demo --site 2.resid_post --architecture topk,batchtopk --k 8,16,32 --out front
    """
    from interp.cli.sae import find

    flags = {key: value for key, value in locals().items() if key not in ("config", "find", "opening")}
    c = read_config(config, flags | opening.given())
    if c.dtype != "float32":
        raise InputError(f'dictionaries are trained in float32; --dtype "{c.dtype}" was given. --bf16 is quicker.')
    if (c.store is None) == (c.model is None):
        raise InputError("give --store, or --model with --text: where the activations come from.")
    if c.store is not None:
        c.check_none("it is of --model; a store's activations were recorded")
    workspace, grid = Path(c.workspace), expand(c)
    target = runs.place(workspace, "saes", c.out, "sae")
    folders = {name: target.with_name(f"{target.name}-{name}") if name else target for name in grid}
    for folder in folders.values():
        runs.place(workspace, "saes", folder.name, "sae")  # a name that can name a result?
    source: Any = None if c.store is None else find(workspace, "stores", c.store)
    import sae

    if source is None:
        source = c.load(c.model)
    how: dict[str, Any] = {"device": None if c.device == "auto" else c.device} | {
        name: getattr(c, name) for name in ("overwrite", "log_every", "log_to", "checkpoint_every", "context")
    }
    if c.model is not None:
        how["text"] = c.text or "bundled"
    if list(grid) == [""]:
        sae.train(source, out=target, **how, **grid[""])
    else:
        named = {folders[name].name: settings for name, settings in grid.items()}
        sae.train_grid(source, named, out=target.parent, **how)
    if os.environ.get("RANK", "0") == "0":
        _report(list(folders.values()), workspace)


def _report(folders: list[Path], workspace: Path) -> None:
    """A line a dictionary, and what to do next."""
    import sae

    table = sae.frontier(folders)
    columns = ["name", "architecture", "d_sae", "k", "l0", "fvu", "dead"]
    print(table[columns].to_string(index=False, float_format=lambda number: f"{number:.4g}"))
    following = f"eval {folders[0].name}"
    if len(folders) > 1:
        following = f"frontier {' '.join(folder.name for folder in folders)} --figure frontier.html"
    print(f"{folders[0].parent}\nNext: interp sae {following} --workspace {workspace}")
