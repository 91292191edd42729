"""`interp circuit`: find a circuit, score it on prompts it was not found on, show it, hold two beside each other."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field

from interp import runs
from interp.cli import options
from interp.cli.config import read_settings, with_defaults
from interp.cli.keeping import recorded
from interp.errors import Failure, InputError, MissingFile, nearest

if TYPE_CHECKING:
    from interp.causal.circuits import Circuit
    from interp.causal.verdicts import Curve
    from interp.data.tasks import Task
    from interp.decoder.model import Model

app = typer.Typer(help="Circuits: find, score, show, compare, features.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A run's name, its folder, or a circuit.json (MIB's too).")]


class Find(options.Opening):
    """The file of `interp circuit find`."""

    model: str = Field("bundled", description='"bundled", a local directory, or a name on the hub.')
    task: str = Field("ioi", description="ioi, ..., or prompt pairs (.jsonl).")
    method: str = Field("eap-ig", description="eap, eap-ig, eap-ig-activations, exact, acdc or greedy.")
    n_edges: int | None = Field(None, description="How many of the strongest edges; 5% (at least 20) by default.", ge=1)
    threshold: float | None = Field(None, description="The least score; for acdc its tau.")
    absolute: bool = Field(True, description="By the size of the score; false: only edges that help.")
    metric: str | None = Field(None, description="logit_diff, loss, prob, kl; accuracy for exact and acdc.")
    baseline: str = Field("counterfactual", description="What a removed edge carries: counterfactual or mean.")
    steps: int = Field(5, description="Points between corrupted and clean, both among them.", ge=2)
    n: int | None = Field(None, description="Prompts; as many others judge it, or of a file the second half.", ge=1)
    verify: int = Field(0, description="Hold this many random edges' scores against exact patching.", ge=0)
    seed: int = Field(0, description="Of the prompts drawn, random circuits and the bootstrap.")
    force: bool = Field(False, description="Go on where the model cannot do the task.")
    out: str | None = Field(None, description="Name of the run.")
    workspace: str = str(options.WORKSPACE)
    overwrite: bool = False


@app.command()
@with_defaults(Find)
@options.opens
def find(
    config: Annotated[Path | None, typer.Argument(help="A YAML file of the flags' names.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help='"bundled", a local directory, or a name on the hub.')] = None,
    task: Annotated[str | None, typer.Option(help="ioi, ..., or a .jsonl of prompt pairs.")] = None,
    method: Annotated[str | None, typer.Option(help="eap, eap-ig, eap-ig-activations, exact, acdc or greedy.")] = None,
    n_edges: Annotated[int | None, typer.Option(help="How many of the strongest edges; 5% if not given.")] = None,
    threshold: Annotated[float | None, typer.Option(help="The least score; for acdc its tau.")] = None,
    absolute: Annotated[
        bool | None, typer.Option("--absolute/--signed", help="By size, or only edges that help.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="logit_diff, loss, prob, kl; accuracy for exact, acdc.")] = None,
    baseline: Annotated[str | None, typer.Option(help="What a removed edge carries: counterfactual or mean.")] = None,
    steps: Annotated[int | None, typer.Option(help="Points between corrupted and clean.")] = None,
    verify: Annotated[int | None, typer.Option(help="Check this many random edges by exact patching.")] = None,
    n: options.N = None,
    seed: Annotated[int | None, typer.Option(help="Of prompts, random circuits and the bootstrap.")] = None,
    force: Annotated[bool | None, typer.Option("--force", help="Go on where the model cannot do the task.")] = None,
    out: options.Out = None,
    workspace: Annotated[str | None, typer.Option(help="The folder with runs/, stores/ and saes/.")] = None,
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="Replace what is finished.")] = None,
    *,
    opening: options.Opening,
) -> None:
    """With which edges does the model do the task? Score all, keep the strongest, judge them on other prompts.

    Example: interp circuit find --task ioi --method eap-ig --n-edges 75 --n 100 --verify 200 --out ioi-circuit
    """
    flags = {key: value for key, value in locals().items() if key not in ("config", "opening")} | opening.given()
    c = read_settings(Find, config, flags)
    path = runs.place(Path(c.workspace), "runs", c.out, "circuit")
    runs.check_free(path, c.overwrite)

    loaded = c.load(c.model)
    circuit, curve, verdict = search(path, loaded, c)
    _say(circuit, curve, verdict)
    print(f"-> {path / 'circuit.json'}, {path / 'report.html'}")


def search(path: Path, loaded: Model, c: Find) -> tuple[Circuit, Curve, str]:
    """The run of `interp circuit find` in `path`: the circuit, its curve, and what is to be said of it."""
    import interp
    from interp.causal.finished import Finished
    from interp.causal.verdicts import curve as measured
    from interp.causal.verdicts import verify as held

    prompts, others = two_sets(loaded, c.task, c.n, c.seed, c.baseline)
    settings = c.model_dump(exclude={"out", "workspace", "overwrite", *options.OPENING}) | c.kept()
    with recorded(path, "circuit", settings, loaded, c.seed, c.overwrite):
        finished = Finished(path / "unfinished")
        try:
            circuit = interp.find_circuit(
                loaded, prompts, method=c.method, n_edges=c.n_edges, threshold=c.threshold, absolute=c.absolute,
                metric=c.metric, baseline=c.baseline, steps=c.steps, force=c.force, seed=c.seed, progress=True,
                finished=finished,
            )  # fmt: skip
            circuit.save(path)
            curve = measured(circuit, loaded, others, seed=c.seed, progress=True, finished=finished)
            verdict = _verdict(circuit, loaded, others, c.seed, finished=finished)
            if c.verify:
                agreement = held(
                    circuit, loaded, prompts, n_edges=c.verify, seed=c.seed, progress=True, finished=finished
                )
        except InputError as error:
            if not (path / "circuit.json").exists():
                raise
            raise Failure(f"the circuit is in {path}, but cannot be judged: {error}") from None
        finally:
            finished.flush()
        if c.verify:
            agreement.table().to_parquet(path / "verified.parquet", index=False)
            verdict += (
                f" Scores against exact patching of {len(agreement.rows)} random edges: Spearman "
                f"{agreement.spearman:.2f}, Pearson {agreement.pearson:.2f}."
            )
        prompts.save(path / "prompts.jsonl", loaded)
        _keep(path, circuit, curve, verdict)
        finished.clear()
    return circuit, curve, verdict


@app.command()
@options.opens
def score(
    circuit: Name,
    model: Annotated[str | None, typer.Option(help="The model it is of, if that is not recorded.")] = None,
    task: Annotated[str | None, typer.Option(help="Another task than it was found on.")] = None,
    metric: Annotated[str | None, typer.Option(help="Another metric than it was found with.")] = None,
    baseline: Annotated[str | None, typer.Option(help="counterfactual or mean.")] = None,
    n: options.N = None,
    seed: options.Seed = 1,
    out: options.Out = None,
    workspace: options.Workspace = options.WORKSPACE,
    overwrite: options.Overwrite = False,
    *,
    opening: options.Opening,
) -> None:
    """How much of the behaviour does the circuit hold? Faithfulness by size, CPR and CMD, beside random circuits.

    Example: interp circuit score ioi-circuit --task ioi --n 100 --seed 1 --out ioi-score
    """
    found = load(circuit, workspace)
    name, about = model or (found.about.get("model") or {}).get("name"), _task_of(circuit, workspace)
    about = about or found.about.get("task")
    if name is None or (task or about) is None:
        raise InputError(f"{circuit} does not say of what model and task it is: give --model and --task.")
    path = runs.place(workspace, "runs", out, "circuit-score")
    runs.check_free(path, overwrite)
    import interp
    from interp.causal.finished import Finished

    loaded = opening.load(name)
    found = found.on(loaded)
    prompts = interp.load_task(task or about, loaded, n=n, seed=seed)
    settings = {"circuit": circuit, "model": name, "task": task or about, "metric": metric, "baseline": baseline,
                "n": n, "seed": seed} | opening.kept()  # fmt: skip
    with recorded(path, "circuit-score", settings, loaded, seed, overwrite):
        finished = Finished(path / "unfinished")
        try:
            given = {"metric": metric, "baseline": baseline, "finished": finished}
            curve = found.curve(loaded, prompts, seed=seed, progress=True, **given)
            verdict = _verdict(found, loaded, prompts, seed, **given)
        finally:
            finished.flush()
        found.save(path)
        prompts.save(path / "prompts.jsonl", loaded)
        _keep(path, found, curve, verdict)
        finished.clear()
    _say(found, curve, verdict)
    print(f"-> {path / 'curve.parquet'}, {path / 'report.html'}")


@app.command()
def show(
    circuit: Name,
    top: Annotated[int, typer.Option(help="Edges to print.", min=1)] = 20,
    workspace: options.Workspace = options.WORKSPACE,
) -> None:
    """What is in a circuit, of edges or of latents: its nodes and its strongest edges.

    Example: interp circuit show ioi-circuit --top 30
    """
    folder = _folder(circuit, workspace)
    if (folder / "feature_circuit.json").exists():
        from sae.circuits import FeatureCircuit

        latents = FeatureCircuit.load(folder)
        size = f"{latents.n_nodes} of {len(latents.nodes):,} active nodes, {len(latents.edges):,} edges"
        _header(size, latents.about)
        table = latents.table()
        _rows(table.loc[table.in_circuit, "node"][:top], table.loc[table.in_circuit, "score"])
        _rows((latents.edges.sender + "->" + latents.edges.receiver)[:top], latents.edges.score)
        return
    found = load(circuit, workspace)
    size = f"{found.n_edges} of {len(found.graph.edges):,} edges, {len(found.nodes)} nodes: {' '.join(found.nodes)}"
    _header(size, found.about)
    table = found.table()
    _rows(table.loc[table.in_graph, "edge"][:top], table.loc[table.in_graph, "score"])


def _header(size: str, said: Mapping[str, Any]) -> None:
    print(size)
    if "method" in said:
        print(f"found by {said['method']} on {said.get('task')} of {said['model']['name']}, {said.get('metric')}")


def _rows(names: Iterable[str], scores: Iterable[float]) -> None:
    for name, score in zip(names, scores, strict=False):
        print(f"{name:<24} {score:+.4g}")


@app.command()
def compare(
    circuits: Annotated[list[str], typer.Argument(help="Two or more runs, folders or circuit.json.")],
    workspace: options.Workspace = options.WORKSPACE,
) -> None:
    """How alike are circuits of one model? Edges and nodes in both, and the rank correlation of all scores.

    Example: interp circuit compare ioi-eap-ig ioi-acdc
    """
    if len(circuits) < 2:
        raise InputError("one circuit given: name two or more.")
    found = [load(name, workspace) for name in circuits]
    from interp.causal.circuits import compare as compared

    for row in compared(found, circuits).itertuples():
        print(
            f"{row.a} ({row.edges_a} edges), {row.b} ({row.edges_b}): {row.edges_both} in both, Jaccard "
            f"{row.jaccard_edges:.2f} of edges and {row.jaccard_nodes:.2f} of nodes, Spearman {row.spearman:.2f}"
        )


def load(name: str, workspace: Path) -> Circuit:
    """A circuit by a run's name, a folder or a file. MissingFile, with the nearest names, where there is none."""
    path = _folder(name, workspace)
    if not path.exists():
        there = sorted(found.parent.name for found in (workspace / "runs").glob("*/circuit.json"))
        near = f" Nearest: {nearest(name, there)}." if there else " Make one with interp circuit find."
        raise MissingFile(f'no circuit "{name}".{near}')
    from interp.causal.circuits import Circuit

    return Circuit.load(path)


def _folder(name: str, workspace: Path) -> Path:
    """A folder or a file as it is given, or a run by its name."""
    return Path(name) if Path(name).exists() else workspace / "runs" / name


def _task_of(name: str, workspace: Path) -> str | None:
    """The task, a file's path included, of the run that found a circuit; None where there is no such run."""
    for folder in (Path(name), workspace / "runs" / name):
        if (folder / "run.json").exists():
            return runs.read(folder).get("config", {}).get("task")
    return None


def two_sets(model: Model, spec: str, n: int | None, seed: int, baseline: str) -> tuple[Task, Task]:
    """Prompts to find a circuit on, and others to judge it: those of another seed that are not among the first, or
    the second half of a file. InputError, before anything is searched, where a counterfactual baseline has no twins of
    one length for either."""
    sets = _two_sets(model, spec, n, seed)
    if baseline == "counterfactual":
        for task in sets:
            task.tokens("corrupted")
    return sets


def _two_sets(model: Model, spec: str, n: int | None, seed: int) -> tuple[Task, Task]:
    from dataclasses import replace

    import interp

    task = interp.load_task(spec, model, n=n, seed=seed)
    if not spec.endswith((".jsonl", ".json")):
        drawn = interp.load_task(spec, model, n=n, seed=seed + 1)
        found_on = {tuple(prompt.clean_tokens) for prompt in task.prompts}
        others = [prompt for prompt in drawn.prompts if tuple(prompt.clean_tokens) not in found_on]
        if len(others) < len(drawn):
            n_same = len(drawn) - len(others)
            print(f"Of {len(drawn)} other prompts {n_same} left out: those it is found on.", file=sys.stderr)
        return task, replace(drawn, prompts=others or drawn.prompts)
    if len(task) < 4:
        print(f"{len(task)} prompts in {spec}: the circuit is judged on those it is found on.", file=sys.stderr)
        return task, task
    half = len(task) // 2
    return replace(task, prompts=task.prompts[:half]), replace(task, prompts=task.prompts[half:])


def _verdict(circuit: Circuit, model: Model, task: Task, seed: int, **settings: Any) -> str:
    f = circuit.faithfulness(model, task, seed=seed, progress=True, **settings)
    return (
        f"{f.n_edges} edges ({f.n_edges / len(circuit.graph.edges):.1%}): faithfulness {f.value:.3f} "
        f"[{f.ci_low:.3f}, {f.ci_high:.3f}] on {f.n} prompts, {f.metric} {f.circuit:+z.3f} of {f.model:+z.3f} "
        f"({f.nothing:+z.3f} without any edge); random circuits of as many edges "
        f"{min(f.random):+z.3f} to {max(f.random):+z.3f}."
    )


def _keep(path: Path, circuit: Circuit, curve: Curve, verdict: str) -> None:
    """The table of the curve, the verdict and the report."""
    from interp import reports

    runs.write_text(path / "verdict.txt", verdict + "\n")
    curve.table().to_parquet(path / "curve.parquet", index=False)
    curve.areas.reset_index(names="area").to_parquet(path / "areas.parquet", index=False)
    circuit.table().to_parquet(path / "edges.parquet", index=False)
    runs.write_text(
        path / "report.html", reports.circuit_html(circuit, path.name, runs.read(path), curve=curve, verdict=verdict)
    )


def _say(circuit: Circuit, curve: Curve, verdict: str) -> None:
    print(verdict)
    if not circuit.n_edges:
        print("No path from the input to the logits is in it: take more edges, or the method greedy.")
    for name, row in curve.areas.iterrows():
        interval = f"[{row.ci_low:.3f}, {row.ci_high:.3f}]"
        print(f"{name} {row.value:.3f} {interval}, of random circuits {row.random:.3f}")
    table = circuit.table()
    for row in table[table.in_graph][:5].itertuples():
        print(f"{row.edge:>24} {row.score:+.3f}")
