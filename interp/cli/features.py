"""`interp circuit features`: with which latents of dictionaries does the model do a task? Found, judged, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field

from interp import runs
from interp.cli import options
from interp.cli.circuit import two_sets
from interp.cli.config import read_settings, with_defaults
from interp.cli.keeping import recorded
from interp.cli.sae import find
from interp.errors import InputError

if TYPE_CHECKING:
    from sae.circuits import FeatureCircuit, Verdict


class Features(options.Opening):
    """The file of `interp circuit features`."""

    model: str = Field("bundled", description='"bundled", a local directory, or a name on the hub.')
    task: str = Field("ioi", description="ioi, ..., or prompt pairs (.jsonl).")
    sae: list[str] = Field([], description="Dictionaries: names in <workspace>/saes, or folders.")
    method: str = Field("ig", description="ig or atp.")
    n_nodes: int = Field(50, description="How many of the strongest latents and errors.", ge=1)
    absolute: bool = Field(True, description="By the size of the score; false: only nodes that help.")
    metric: str | None = Field(None, description="logit_diff, loss, prob, kl.")
    baseline: str = Field("counterfactual", description="What a node not kept has: counterfactual or mean.")
    steps: int = Field(10, description="Points between elsewhere and clean, both among them.", ge=2)
    n: int | None = Field(None, description="Prompts; as many others judge it, or of a file the second half.", ge=1)
    verify: int = Field(0, description="Hold this many random nodes' scores against exact patching.", ge=0)
    seed: int = Field(0, description="Of the prompts drawn, random node sets and the bootstrap.")
    force: bool = Field(False, description="Go on where the model cannot do the task.")
    out: str | None = Field(None, description="Name of the run.")
    workspace: str = str(options.WORKSPACE)
    overwrite: bool = False


@with_defaults(Features)
@options.opens
def features(
    config: Annotated[Path | None, typer.Argument(help="A YAML file of the flags' names.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help='"bundled", a local directory, or a name on the hub.')] = None,
    task: Annotated[str | None, typer.Option(help="ioi, ..., or a .jsonl of prompt pairs.")] = None,
    sae: Annotated[
        list[str] | None, typer.Option(help="A dictionary: a name in <workspace>/saes, or a folder; may be repeated.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="ig, or atp: quicker, of the clean run's slope alone.")] = None,
    n_nodes: Annotated[int | None, typer.Option(help="How many of the strongest nodes.")] = None,
    absolute: Annotated[
        bool | None, typer.Option("--absolute/--signed", help="By size, or only nodes that help.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="logit_diff, loss, prob, kl.")] = None,
    baseline: Annotated[str | None, typer.Option(help="What a node not kept has: counterfactual or mean.")] = None,
    steps: Annotated[int | None, typer.Option(help="Points between elsewhere and clean.")] = None,
    verify: Annotated[int | None, typer.Option(help="Check this many random nodes by exact patching.")] = None,
    n: options.N = None,
    seed: Annotated[int | None, typer.Option(help="Of prompts, random node sets and the bootstrap.")] = None,
    force: Annotated[bool | None, typer.Option("--force", help="Go on where the model cannot do the task.")] = None,
    out: options.Out = None,
    workspace: Annotated[str | None, typer.Option(help="The folder with runs/, stores/ and saes/.")] = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="Replace what is finished.")] = None,
    *,
    opening: options.Opening,
) -> None:
    """With which latents does the model do the task? Score latents and errors of dictionaries, keep the strongest,
    judge them on other prompts beside random ones.

    Example: interp circuit features --task ioi --sae demo --n-nodes 50 --n 100 --out ioi-features
    """
    flags = {key: value for key, value in locals().items() if key not in ("config", "opening")} | opening.given()
    c = read_settings(Features, config, flags)
    path = runs.place(Path(c.workspace), "runs", c.out, "circuit-features")
    runs.check_free(path, c.overwrite)
    if not c.sae:
        raise InputError("no dictionary given: name one or more, e.g. --sae demo.")
    folders = [find(Path(c.workspace), "saes", name) for name in c.sae]
    if len({folder.name for folder in folders}) < len(folders):
        raise InputError(f"dictionaries {', '.join(c.sae)}: each has a name of its own, by which its nodes are called.")
    import sae as library
    from interp.causal.finished import Finished

    dictionaries = {folder.name: library.load(folder) for folder in folders}
    loaded = c.load(c.model)
    prompts, others = two_sets(loaded, c.task, c.n, c.seed, c.baseline)
    settings = c.model_dump(exclude={"out", "workspace", "overwrite", *options.OPENING}) | c.kept()
    with recorded(path, "circuit-features", settings, loaded, c.seed, c.overwrite):
        finished = Finished(path / "unfinished")
        going: dict[str, Any] = {"seed": c.seed, "progress": True, "finished": finished}
        try:
            circuit = library.find_feature_circuit(
                loaded, prompts, dictionaries, method=c.method, n_nodes=c.n_nodes, absolute=c.absolute, metric=c.metric,
                baseline=c.baseline, steps=c.steps, force=c.force, **going,
            )  # fmt: skip
            verdict = circuit.faithfulness(loaded, others, dictionaries, **going)
            latents = circuit.faithfulness(loaded, others, dictionaries, errors=False, **going)
            if c.verify:
                agreement = circuit.verify(loaded, prompts, dictionaries, n_nodes=c.verify, **going)
        finally:
            finished.flush()
        said = [_sentence("with errors as found", verdict), _sentence("without errors", latents)]
        if c.verify:
            agreement.table().to_parquet(path / "verified.parquet", index=False)
            said.append(
                f"Scores against exact patching of {len(agreement.rows)} random nodes: Spearman "
                f"{agreement.spearman:.2f}, Pearson {agreement.pearson:.2f}."
            )
        circuit.save(path)
        prompts.save(path / "prompts.jsonl", loaded)
        _keep(path, circuit, verdict, latents)
        finished.clear()
    print("\n".join(said))
    for row in circuit.table()[:5].itertuples():
        print(f"{row.node:>24} {row.score:+.3f}")
    print(f"-> {path / 'nodes.parquet'}, {path / 'figure.html'}")


def _sentence(which: str, v: Verdict) -> str:
    faithful, complete = v.rows.itertuples()
    return (
        f"{v.n_nodes} nodes, {which}: faithfulness {faithful.value:.3f} [{faithful.ci_low:.3f}, "
        f"{faithful.ci_high:.3f}] (random nodes {faithful.random_low:+z.3f} to {faithful.random_high:+z.3f}), "
        f"completeness {complete.value:.3f} [{complete.ci_low:.3f}, {complete.ci_high:.3f}] (random "
        f"{complete.random_low:+z.3f} to {complete.random_high:+z.3f}) on {v.n} prompts, {v.metric} "
        f"{v.circuit:+z.3f} of {v.model:+z.3f} ({v.nothing:+z.3f} without any node)."
    )


def _keep(path: Path, circuit: FeatureCircuit, verdict: Verdict, latents: Verdict) -> None:
    """The verdicts and the figure."""
    import pandas as pd

    from interp.reports import camera

    rows = pd.concat([verdict.rows.assign(errors="as found"), latents.rows.assign(errors="none")], ignore_index=True)
    rows.to_parquet(path / "verdict.parquet", index=False)
    runs.write_text(path / "figure.html", circuit.figure().to_html(include_plotlyjs=True, config=camera(path.name)))
