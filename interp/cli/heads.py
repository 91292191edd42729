"""`interp heads`: what kind of head is each one, where does it look, what do its weights do, does the model need it?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp import runs
from interp.cli import options
from interp.cli.keeping import place, recorded
from interp.cli.keeping import settings as kept
from interp.errors import InputError

if TYPE_CHECKING:
    from interp.decoder.hooks import Edit
    from interp.decoder.model import Model
    from interp.lenses.causality import HeadsAndEffects
    from interp.lenses.composition import Composition
    from interp.lenses.eigenvalues import HeadCircuits
    from interp.lenses.heads import HeadScores, Patterns

N_SHOWN = 5


@dataclass(frozen=True)
class _Found:
    """All that one command measured."""

    scores: HeadScores
    patterns: Patterns
    circuits: HeadCircuits | None
    composition: Composition | None
    effects: HeadsAndEffects | None

    def save(self, path: Path) -> None:
        for one in (self.scores, self.patterns, self.circuits, self.composition, self.effects):
            if one is not None:
                one.save(path)


@options.opens
def heads(
    model: options.ModelName = "bundled",
    text: Annotated[str | None, typer.Option(help="A text of which patterns are shown; else a repeated one.")] = None,
    corpus: Annotated[str | None, typer.Option(help='Score on windows of this file, or of "bundled".')] = None,
    n: Annotated[int, typer.Option(help="Sequences to score on.", min=1)] = 50,
    length: Annotated[int, typer.Option(help="Random tokens in each of the two copies.", min=2)] = 24,
    circuits: Annotated[bool, typer.Option("--circuits", help="OV and QK eigenvalues, and composition.")] = False,
    embedding: Annotated[str, typer.Option(help="Of the circuits: tokens, or mlp0 (after the first MLP).")] = "tokens",
    offset: Annotated[int, typer.Option(help="Of QK: tokens from key to query; matters under RoPE.", min=0)] = 0,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="What each head's ablation does to the second copy.")
    ] = False,
    edit: options.Edits = None,
    seed: Annotated[int, typer.Option(help="Of the sequences, the bootstrap and the random baseline.")] = 0,
    out: options.Keep = None,
    workspace: options.Workspace = options.WORKSPACE,
    overwrite: options.Overwrite = False,
    *,
    opening: options.Opening,
) -> None:
    """What kind of head is each: previous-token, induction, duplicate-token, first-token? With --out, a run with maps,
    patterns and a report; else the strongest of each kind are printed.

    Example: interp heads --model bundled --circuits --ablate --out bundled-heads
    """
    settings = kept(locals())
    path = place(out, workspace, "heads", overwrite)
    if ablate and (edit or corpus):
        raise InputError(
            "--ablate is of random tokens repeated and of the model as it is: without --edit and --corpus."
        )
    from interp.cli import editing
    from interp.lenses.eigenvalues import check_embedding

    check_embedding(embedding)

    loaded = opening.load(model)
    edits = editing.read(edit, loaded, workspace)
    found = _measure(loaded, settings, edits)
    _say(found)
    if path is not None:
        with recorded(path, "heads", settings, loaded, seed, overwrite):
            found.save(path)
            runs.write_text(path / "report.html", _report(found, path))
        print(f"-> {path / 'heads.parquet'}, {path / 'report.html'}")


def _measure(model: Model, settings: dict[str, Any], edits: dict[str, Edit]) -> _Found:
    import interp
    from interp.lenses.heads import repeats

    seed, effects = settings["seed"], None
    task = repeats(model, n=settings["n"], length=settings["length"], seed=seed)
    if settings["ablate"]:
        effects = interp.heads_and_effects(model, n=settings["n"], length=settings["length"], seed=seed, progress=True)
    on = task if settings["corpus"] is None else _windows(model, settings["corpus"], settings["n"])
    text = task.prompts[0].clean_tokens if settings["text"] is None else settings["text"]
    return _Found(
        effects.scores if effects else interp.head_scores(model, on, seed=seed, edits=edits, progress=True),
        interp.patterns(model, text, edits=edits),
        interp.head_circuits(
            model, embedding=settings["embedding"], offset=settings["offset"], seed=seed, progress=True
        )
        if settings["circuits"]
        else None,
        interp.composition(model, offset=settings["offset"], seed=seed, progress=True)
        if settings["circuits"] and model.n_layers > 1
        else None,
        effects,
    )


def _windows(model: Model, corpus: str, n: int) -> Any:
    from interp.data.text import read_text, windows

    context = min(model.n_ctx, 128)
    return windows(model, read_text(corpus), context=context, n_tokens=n * context)[:n]


def _say(found: _Found) -> None:
    about = found.scores.about
    print(f"{about['n']} sequences of up to {about['length']} tokens ({about['on']}), with [95% intervals]")
    _say_scores(found.scores)
    if found.effects is not None:
        print(found.effects.sentence())
    if found.circuits is not None:
        _say_circuits(found.circuits)
    if found.composition is not None:
        _say_composition(found.composition, found.scores.induction_heads()[:3])
    print("".join(found.patterns.text).replace("\n", "\\n"))
    table = found.patterns.table().sort_values("entropy", kind="stable").drop(columns=["layer", "index"])
    print(table.head(2 * N_SHOWN).to_string(index=False, float_format="{:.3f}".format))


def _say_scores(scores: HeadScores) -> None:
    """The strongest heads of each kind; what a head scores that looks at all alike; of tokens that come again, what the
    same heads give the same distances where none does."""
    from interp.lenses.heads import SCORES

    table = scores.table().set_index("component")
    for score in SCORES:
        top, control = scores.top(score, N_SHOWN), f"{score}_control"
        told = "  ".join(f"{name} {value:.3f} [{low:.3f}, {high:.3f}]" for name, value, low, high in top.to_numpy())
        beside = f"; with nothing repeated: {table.loc[top.component, control].max():.3f}" if control in table else ""
        which = "lowest" if score == "entropy" else "highest"
        print(f"{score:<16}{which} {told}  (looking at all alike: {scores.chance[score]:.3f}{beside})")


def _say_circuits(circuits: HeadCircuits) -> None:
    for score in ("ov_copying", "copies", "qk_matching"):
        top = circuits.table().sort_values(score, ascending=False, kind="stable").head(N_SHOWN)
        known = top[top[score].notna()]
        told = "  ".join(f"{name} {value:+.3f}" for name, value in zip(known.component, known[score], strict=True))
        print(f"{score:<16}{told or 'does not apply: ' + circuits.about['unlike']}")


def _say_composition(composition: Composition, heads: list[str]) -> None:
    """The strongest pairs of each kind, and what the `heads` read most of."""
    for kind, rows in composition.table().groupby("kind", sort=True):
        first = rows.iloc[0]
        told = "  ".join(f"{r.earlier}->{r.later} {r.score:.3f}" for r in rows.head(N_SHOWN).itertuples())
        print(f"{kind}-composition   {told}  (random {first['random']:.3f}, 97.5% below {first.random_high:.3f})")
        into = [
            f"{r.earlier}->{r.later} {r.score:.3f}"
            for head in heads
            for r in composition.into(head, kind, 2).itertuples()
        ]
        if into:
            print(f"{'':<16}{'  '.join(into)}")


def _report(found: _Found, path: Path) -> str:
    import html

    from interp import reports
    from interp.lenses.heads import SCORES

    def drawn(figure: Any) -> str:
        return reports.drawn(figure, path.name)

    scores, best = found.scores, found.scores.top("induction", 1).component.iloc[0]
    parts = [f"<p>{html.escape(_sentence(scores))}</p>"]
    if found.effects is not None:
        parts += ["<h2>Scores and ablation</h2>", f"<p>{html.escape(found.effects.sentence())}</p>"]
        shown = ["component", "induction", "previous_token", "current_token", "effect", "ci_low", "ci_high", "q"]
        parts += [drawn(found.effects.figure()), reports.table_html(found.effects.table()[shown].head(2 * N_SHOWN))]
    parts += ["<h2>Scores</h2>", *(drawn(scores.figure(score)) for score in SCORES)]
    parts += [reports.table_html(scores.table()[["component", *SCORES]])]
    parts += ["<h2>Pattern of the head with the highest induction score</h2>"]
    parts += [drawn(found.patterns.figure(best)), drawn(found.patterns.figure(best, weighted=True))]
    if found.circuits is not None:
        parts += ["<h2>Circuits of the weights</h2>", drawn(found.circuits.figure("ov"))]
        parts += [drawn(found.circuits.figure("ov", head=best)), drawn(found.circuits.figure("qk"))]
        parts += [reports.table_html(found.circuits.table())]
    if found.composition is not None:
        for kind in dict.fromkeys(found.composition.table().kind):
            rows = found.composition.table().query("kind == @kind")
            parts += [drawn(found.composition.figure(kind)), reports.table_html(rows.head(2 * N_SHOWN))]
    return reports.page(path.name, parts, runs.read(path))


def _sentence(scores: HeadScores) -> str:
    about = scores.about
    return (
        f'"{about["model"]["name"]}": attention of every head on {about["n"]} sequences of up to {about["length"]} '
        f"tokens ({about['on']}), with 95% bootstrap intervals over sequences."
    )
