"""`interp patch`: activation patching over layers and positions, or layers and heads."""

from __future__ import annotations

from typing import Annotated

import typer

from interp import runs
from interp.cli import options
from interp.cli.ablate import keep, recorded, report


def patch(
    model: options.ModelName = "bundled",
    task: options.TaskName = "ioi",
    site: Annotated[
        str, typer.Option(help="resid_pre, attn_out, mlp_out, z, ...: patched at every layer.")
    ] = "resid_pre",
    by: Annotated[str, typer.Option(help="layer,position or layer,head.")] = "layer,position",
    method: Annotated[str, typer.Option(help="denoise (clean into corrupted) or noise (the reverse).")] = "denoise",
    metric: Annotated[
        str | None, typer.Option(help="logit_diff, loss, kl, prob, accuracy; several with commas.")
    ] = None,
    n: options.N = None,
    seed: options.Seed = 0,
    out: options.Out = None,
    workspace: options.Workspace = options.WORKSPACE,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
) -> None:
    """Where does the answer travel? Carry activations from the clean run into the corrupted one (or back).

    Example: interp patch --task ioi --site resid_pre --by layer,position --n 100 --out ioi-patch
    """
    path = runs.place(workspace, "runs", out, "patch")
    runs.check_free(path, overwrite)
    import interp
    from interp.causal.finished import Finished

    loaded = interp.load_model(model, device=device, dtype=dtype)
    prompts = interp.load_task(task, loaded, n=n, seed=seed)
    config = {
        "model": model, "task": task, "site": site, "by": by, "method": method, "metric": metric, "n": n, "seed": seed,
        "dtype": dtype,
    }  # fmt: skip
    with recorded(path, "patch", config, loaded, seed, overwrite):
        finished = Finished(path / "unfinished")
        try:
            effects = interp.patch(
                loaded, prompts, site=site, by=tuple(part.strip() for part in by.split(",")), method=method,
                metric=metric, seed=seed, progress=True, finished=finished,
            )  # fmt: skip
        finally:
            finished.flush()
        keep(effects, prompts, loaded, path)
        finished.clear()
    report(effects, path)
