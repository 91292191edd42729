"""`interp demo`: the whole main job on the bundled model and text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from interp import runs
from interp.cli import options

SITE = "2.resid_post"


def demo(
    workspace: options.Workspace = options.WORKSPACE,
    n: Annotated[int, typer.Option(help="Prompts of the indirect-object task.")] = 100,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    seed: options.Seed = 0,
) -> None:
    """Record, train a dictionary, ablate, patch, find a circuit: the whole job on the bundled model and text, in
    minutes. What is done already is reused.

    Example: interp demo
    """
    started = time.time()
    print("Loading the bundled model", flush=True)
    import interp
    import sae
    from interp.causal.effects import Effects
    from interp.cli.circuit import Find, search
    from interp.store.reading import Store

    model = interp.load_model("bundled", device=device, dtype=dtype)
    task = interp.load_task("ioi", model, n=n, seed=seed)

    path = workspace / "stores" / "demo"
    if not _step(1, f"activations of *.resid_post on the bundled text -> {path}", path):
        interp.record(model, "bundled", sites="*.resid_post", out=path)
    store = Store(path)

    path = workspace / "saes" / "demo"
    if not _step(2, f"a TopK dictionary on {SITE} -> {path}", path):
        sae.train(store, site=SITE, d_sae=1024, k=16, out=path, seed=seed, device=device)
    dictionary = sae.load(path)
    report = sae.evaluate(dictionary, model, "bundled", n_tokens=10_000, progress=True)
    report.save(path / "metrics.json")
    if not (path / "features" / "latents.parquet").exists():
        sae.features.compute(dictionary, store, progress=True)

    ablated = workspace / "runs" / "demo-ioi-heads"
    if not _step(3, f"every head and MLP ablated, {n} prompts -> {ablated}", ablated):
        _effects(ablated, "ablate", model, task, seed, components="heads,mlps", method="mean")
    heads = Effects.load(ablated)

    patched = workspace / "runs" / "demo-ioi-patch"
    if not _step(4, f"the residual stream patched by layer and position -> {patched}", patched):
        _effects(patched, "patch", model, task, seed, site="resid_pre", by=("layer", "position"))

    circuit = workspace / "runs" / "demo-ioi-circuit"
    if not _step(5, f"the 5% of all edges that do it, judged on other prompts -> {circuit}", circuit):
        search(circuit, model, Find(n=n, seed=seed, device=device, dtype=dtype))

    print(f"\nDone in {time.time() - started:.0f} s. The three heads that matter most for the indirect object")
    print('("When Mary and John went to the shop, John gave a bag to" -> " Mary"), logits of right minus wrong name:')
    table = heads.table()
    table = table[(table.kind == "head") & (table.metric == "logit_diff")]
    for row in table.loc[table.effect.abs().sort_values(ascending=False).index[:3]].itertuples():
        print(
            f"  {row.component}: {row.baseline:+.2f} -> {row.value:+.2f} when ablated, effect {row.effect:+.2f} "
            f"(95% interval {row.ci_low:+.2f} to {row.ci_high:+.2f}, n={row.n})"
        )
    print(
        f"The dictionary: L0 {report.l0:.1f} of {dictionary.d_sae} latents, FVU {report.fvu:.3f}, CE loss recovered "
        f"{report.ce_recovered_mean:.1%} (mean ablation), {report.ce_recovered_zero:.1%} (zero ablation)"
    )
    print(f"The circuit: {(circuit / 'verdict.txt').read_text(encoding='utf-8').strip()}")
    option = "" if workspace == runs.WORKSPACE else f" --workspace {workspace}"
    print("\nNext:")
    print(f"  interp app{option}                                     browse all of it")
    print(f"  interp ablate --task agreement --out agreement{option}  the same question of another behaviour")


def _step(number: int, what: str, path: Path) -> bool:
    done = runs.is_done(path)
    print(f"[{number}/5] {what}{' (done before)' if done else ''}", flush=True)
    return done


def _effects(path: Path, kind: str, model, task, seed: int, **settings) -> None:
    import interp
    from interp.cli.batch import keep, recorded

    config = {"model": "bundled", "task": "ioi", "n": len(task), "seed": seed, **settings}
    with recorded(path, kind, config, model, seed, overwrite=False):
        run = interp.ablate if kind == "ablate" else interp.patch
        keep(run(model, task, seed=seed, progress=True, **settings), task, model, path)
