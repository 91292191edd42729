"""`interp lens`: what each layer says already, a tuned lens, and what a logit is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field

from interp import runs
from interp.cli import options
from interp.cli.flags import Look, command
from interp.cli.keeping import place, recorded, settings
from interp.errors import InputError

if TYPE_CHECKING:
    from interp.decoder.model import Model
    from interp.lenses.attribution import Attribution
    from interp.lenses.curves import LensCurve
    from interp.lenses.logits import Lens
    from interp.lenses.tuned import TunedLens

app = typer.Typer(help="Lenses: show, train, attribute.", no_args_is_help=True)

_READ = {
    "Lens": "Each layer's residual stream, read through the last layer norm and the unembedding. The last layer is the "
    "model's output; kl is KL(output || lens) in nats; rank 1 is the top token.",
    "LensCurve": "Each layer's residual stream, read at the positions that the task reads, as the output is: means "
    "over prompts with 95% bootstrap intervals. The last layer is the model's output.",
    "Attribution": "What each part wrote to the last residual stream, along the direction of the logit difference, the "
    "scale of the last layer norm held: nats, mean over prompts with 95% bootstrap intervals. The rows sum to the "
    "logit difference. The direct way only: what later parts make of it counts as theirs.",
}
"""How to read the three results."""


class Prompts(Look):
    """What `interp lens show` and `attribute` are of: a text, or the prompts of a task."""

    prompt: str | None = Field(None, description="A text; or --task.")
    task: str | None = Field(None, description="ioi, ..., or a .jsonl of prompt pairs: means over it.")
    position: int | None = Field(None, description="Where a text is read; the last token (-1) if not given.")
    corruption: str | None = Field(None, description="Of ioi: abc (three other names) or swap (the other giver).")

    @property
    def of_text(self) -> tuple[str, ...]:
        """What a task has no use for."""
        return ("position",)


class Show(Prompts):
    """The flags of `interp lens show`."""

    target: str | None = Field(None, description='Of a text: the token asked for, " Mary"; else the next.')
    top: int | None = Field(None, description="Of a text: likeliest tokens of each layer; 5 if not given.", ge=1)
    colour: str | None = Field(
        None, description="Of a text's figure: top_prob (if not given), prob, rank, kl, entropy."
    )
    tuned: str | None = Field(None, description="A run of interp lens train: read by it too.")

    @property
    def of_text(self) -> tuple[str, ...]:
        return ("position", "target", "top", "colour")


class Attribute(Prompts):
    """The flags of `interp lens attribute`."""

    answer: str | None = Field(None, description="Of a text; the model's top token if not given.")
    wrong: str | None = Field(None, description="Of a text: the token that the answer is held against.")
    by: str = Field("component", description="layer, component (heads, MLPs, biases) or neuron.")
    sae: list[str] = Field([], description="Break what this dictionary reads up into its latents; may be repeated.")
    top: int = Field(10, description="Parts to print.", ge=1)

    @property
    def of_text(self) -> tuple[str, ...]:
        return ("position", "answer", "wrong")


@app.command()
@command(Show, argument="prompt")
def show(c: Show) -> None:
    """What would the model say if it stopped after each layer? Of one prompt its likeliest tokens; of a task when the
    answer emerges. With --out a run with figures and a report.

    Example: interp lens show "When Mary and John went to the shop, John gave a bag to" --target " Mary"

    Example: interp lens show --task ioi --n 200 --tuned bundled-lens --out ioi-lens
    """
    path = _place(c, "lens")
    from interp.plots.lenses import COLOURS

    colour = c.colour or "top_prob"
    if colour not in COLOURS:
        raise InputError(f'colour "{colour}" given: one of {", ".join(COLOURS)}.')
    import interp
    from interp.cli import editing

    loaded = c.load(c.model)
    edits, lens = editing.read(c.edit, loaded, c.workspace), _tuned(c.tuned, c.workspace, loaded)
    if c.prompt is not None:
        prompts, position = None, _position(loaded, c.prompt, -1 if c.position is None else c.position)
        found = interp.logit_lens(
            loaded, c.prompt, target=c.target, top=c.top or 5, edits=edits, tuned=lens, progress=True
        )
        _say_prompt(found, position)
    else:
        prompts = interp.load_task(c.task, loaded, n=c.n, seed=c.seed, corruption=c.corruption)
        found = interp.lens_curve(loaded, prompts, edits=edits, tuned=lens, seed=c.seed, progress=True)
        _say_curve(found)
    if path is not None:
        with recorded(path, "lens", c.asked(), loaded, c.seed, c.overwrite):
            found.save(path)
            if prompts is None:
                _report(path, _about(found), [found.figure(colour, last=64)], found.rows.drop(columns="top_id"))
            else:
                prompts.save(path / "prompts.jsonl", loaded)
                figures = [found.figure(metric) for metric in found.rows["metric"].unique()]
                _report(path, _about(found), figures, found.rows)
        print(f"-> {path / 'report.html'}")


@app.command()
@options.opens
def train(
    model: options.ModelName = "bundled",
    corpus: Annotated[
        list[str] | None, typer.Option(help='Files, folders, globs of text, or "bundled"; may be given again.')
    ] = None,
    store: Annotated[str | None, typer.Option(help="A store with *.resid_post in place of text.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of Adam.", min=0)] = 250,
    batch_size: Annotated[int, typer.Option(help="Tokens a step.", min=1)] = 256,
    lr: Annotated[float, typer.Option(help="Size of the first step; falls to 0.")] = 3e-3,
    context: Annotated[int, typer.Option(help="Tokens a window of text.")] = 128,
    n_tokens: Annotated[int | None, typer.Option(help="Tokens of text to read; all if not given.")] = None,
    held_out: Annotated[float, typer.Option(help="Share of the windows on which the lens is judged.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the order of the text and of the bootstrap.")] = 0,
    out: options.Out = None,
    workspace: options.Workspace = options.WORKSPACE,
    overwrite: options.Overwrite = False,
    *,
    opening: options.Opening,
) -> None:
    """Train a tuned lens (Belrose et al. 2023): for each layer an affine map by which it says what the output says.
    Judged beside the logit lens on text held out. Killed, the same command continues.

    Example: interp lens train --model bundled --corpus bundled --steps 250 --out bundled-lens
    """
    given = settings(locals())
    path = runs.place(workspace, "runs", out, "lens-train")
    runs.check_free(path, overwrite)
    if corpus and store:
        raise InputError("--corpus and --store given: train on one of them.")
    import interp
    from interp.lenses.tuned import TunedConfig

    config = TunedConfig(steps, batch_size, lr, context, n_tokens, held_out, seed)
    source = interp.Store(_folder(store, workspace / "stores")) if store else corpus or "bundled"
    loaded = opening.load(model)
    with recorded(path, "lens-train", given, loaded, seed, overwrite):
        lens = interp.train_tuned_lens(loaded, source, config, out=path, progress=True)
        said = f'A tuned lens of "{loaded.name}", trained on {lens.about["source"]}: KL(output || lens) on what was '
        _report(path, said + "held out, with 95% intervals.", [lens.curve.figure()], lens.curve.rows)
    _say_curve(lens.curve)
    print(f"-> {path / 'tuned_lens.safetensors'}, {path / 'report.html'}")


@app.command()
@command(Attribute, argument="prompt")
def attribute(c: Attribute) -> None:
    """Which parts write the answer? The logit difference as a sum over heads, MLPs, neurons or latents, the scale of
    the last layer norm held. With --out a run with figures and a report.

    Example: interp lens attribute --task ioi --n 200 --out ioi-direct

    Example: interp lens attribute "The keys to the cabinet" --answer " are" --wrong " is" --by neuron
    """
    path = _place(c, "lens-attribute")
    import interp
    from interp.cli import editing
    from interp.cli.batch import dictionary

    loaded = c.load(c.model)
    edits = editing.read(c.edit, loaded, c.workspace)
    dictionaries = {name: dictionary(name, str(c.workspace), loaded) for name in c.sae}
    prompts = None
    if c.task is not None:
        prompts = interp.load_task(c.task, loaded, n=c.n, seed=c.seed, corruption=c.corruption)
    found = interp.attribute_logits(
        loaded, prompts or c.prompt, by=c.by, answer=c.answer, wrong=c.wrong,
        position=-1 if c.position is None else c.position, dictionaries=dictionaries, edits=edits, seed=c.seed,
        progress=True,
    )  # fmt: skip
    _say_attribution(found, c.top)
    if path is not None:
        with recorded(path, "lens-attribute", c.asked(), loaded, c.seed, c.overwrite):
            found.save(path)
            if prompts is not None:
                prompts.save(path / "prompts.jsonl", loaded)
            _report(path, _about(found), [found.by_layer().figure(), found.figure()], found.top(50))
        print(f"-> {path / 'attribution.parquet'}, {path / 'report.html'}")


def _place(c: Prompts, kind: str) -> Path | None:
    """The run's folder, checked; None where nothing is to be written. InputError unless one thing is looked at, and all
    that is said applies to it."""
    if (c.prompt is None) == (c.task is None):
        raise InputError("give a text or --task: one prompt, or the prompts of a task.")
    names, what = (("n", "corruption"), "a task") if c.task is None else (c.of_text, "a text")
    if given := [name for name in names if getattr(c, name) is not None]:
        instead = "give --task." if c.task is None else "a task has its own answers and positions."
        raise InputError(f"--{given[0]} is of {what}: {instead}")
    return place(c.out, c.workspace, kind, c.overwrite)


def _folder(name: str, among: Path) -> Path:
    """A result by name, or a folder."""
    return Path(name) if Path(name).is_dir() else among / name


def _tuned(name: str | None, workspace: Path, model: Model) -> TunedLens | None:
    from interp.lenses.tuned import TunedLens

    return None if name is None else TunedLens.load(_folder(name, workspace / "runs"), model)


def _position(model: Model, prompt: str, position: int) -> int:
    """A position counted from the first token. InputError for one that the prompt has not."""
    from interp.lenses.reading import token_ids

    length = len(token_ids(model, prompt))
    if not -length <= position < length:
        raise InputError(f"position {position} given: the prompt has {length} tokens.")
    return position % length


def _say_prompt(found: Lens, position: int) -> None:
    """Each layer at one position, from the output down."""
    rows = found.rows[found.rows["position"] == position]
    print(f"at {position}, {rows['token'].iloc[0]!r}; target {rows['target'].iloc[0]!r}")
    for row in rows[::-1].itertuples():
        said = "  ".join(f"{word!r} {p:.3f}" for word, p in zip(row.top, row.top_prob, strict=True))
        print(
            f"{_layer(row.layer):>5}  P {row.prob:<8.2g} rank {row.rank:<6,} KL {row.kl:<6.2f} entropy "
            f"{row.entropy:<5.2f} {said}"
        )


def _say_curve(curve: LensCurve) -> None:
    """Each metric by layer."""
    for (metric, lens), rows in curve.rows.groupby(["metric", "lens"], sort=False):
        print(f"{metric}, {lens} lens, n = {rows['n'].max()}")
        for row in rows.itertuples():
            print(f"{_layer(row.layer):>7} {row.value:>10.4g}  [{row.ci_low:.4g}, {row.ci_high:.4g}]")


def _say_attribution(found: Attribution, top: int) -> None:
    what = "logit(answer) - logit(wrong)" if found.about["metric"] == "logit_diff" else "logit(answer)"
    print(f"{what} {found.total.mean():+.3f}, the sum of {len(found.rows):,} parts, n = {len(found.total)}")
    for row in found.top(top).itertuples():
        interval = f"  [{row.ci_low:+.3f}, {row.ci_high:+.3f}]" if len(found.total) > 1 else ""
        print(f"{row.component:>12} {row.contribution:+.3f}{interval}")


def _layer(layer: int) -> str:
    from interp.lenses.reading import label

    return label(layer)


def _about(found: Lens | LensCurve | Attribution) -> str:
    about = found.about
    of = f", task {about['task']}" if "task" in about else ""
    edits = f", edited at {', '.join(about['edits'])}" if about["edits"] else ""
    return f'"{about["model"]["name"]}"{of}{edits}. {_READ[type(found).__name__]}'


def _report(path: Path, said: str, figures: list[Any], rows: Any) -> None:
    import html

    from interp import reports

    parts = [f"<p>{html.escape(' '.join(said.split()))}</p>"]
    parts += [reports.drawn(figure, path.name) for figure in figures]
    runs.write_text(path / "report.html", reports.page(path.name, [*parts, reports.table_html(rows)], runs.read(path)))
