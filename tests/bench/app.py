"""How long a page's script takes on each rerun, on a workspace as large as the app has to bear: `python -m
tests.bench.app [WORKSPACE]`. Without a workspace one is written: 200 runs, a dictionary of 16,384 latents.

Measured is the script alone, from the first line to the last, once its bytecode and its files are in memory, as they
are in a server that has shown the page before: seconds of the processor, so that other work on the machine does not
count. The target is 50 ms.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parent.parent
N_RUNS, N_LATENTS, RERUNS = 200, 16_384, 15


def workspace(folder: Path) -> Path:
    """A small workspace of test_app, its runs many times over, its dictionary with many latents."""
    sys.path.insert(0, str(ROOT))
    from test_app import write_workspace

    write_workspace(folder)
    for number in range(N_RUNS - len(list((folder / "runs").iterdir()))):
        shutil.copytree(folder / "runs" / "ioi-heads", folder / "runs" / f"heads-{number}")
    path = folder / "saes" / "demo" / "features" / "latents.parquet"
    latents = pd.concat([pd.read_parquet(path)] * (N_LATENTS // 8), ignore_index=True)
    rng = np.random.default_rng(0)
    latents.assign(latent=range(N_LATENTS), density=10 ** rng.normal(-3, 0.7, N_LATENTS).clip(-6, 0)).to_parquet(path)
    return folder


def main(folder: Path) -> None:
    from streamlit.runtime.scriptrunner import script_cache, script_runner
    from streamlit.testing.v1 import AppTest

    compiled, compile_, execute, seconds = {}, script_cache.ScriptCache.get_bytecode, None, []
    script_cache.ScriptCache.get_bytecode = lambda self, path: compiled.setdefault(path, compile_(self, path))
    execute = script_runner.exec_func_with_error_handling

    def timed(*arguments):
        start = time.thread_time()
        result = execute(*arguments)
        seconds.append(time.thread_time() - start)
        return result

    script_runner.exec_func_with_error_handling = timed
    sys.argv = ["main.py", "--workspace", str(folder)]
    pages = [
        "runs",
        "prompt",
        "attention",
        "ablation",
        "patching",
        "circuit",
        "features",
        "feature",
        "steer",
        "training",
    ]
    pages += ["lists", "jobs"]
    print(f"{'page':<10} {'first':>8} {'median':>8} {'95th':>8}   ms")
    for page in pages:
        at = AppTest.from_file(str(ROOT.parent / "app" / "main.py"), default_timeout=60).run()
        if page != "runs":
            at.switch_page(f"views/{page}.py")
        seconds.clear()
        for _ in range(RERUNS + 1):
            at.run()
        assert not at.exception, at.exception
        first, *rest = (1000 * s for s in seconds)
        print(f"{page:<10} {first:8.1f} {statistics.median(rest):8.1f} {sorted(rest)[int(0.95 * len(rest))]:8.1f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(workspace(Path(made)))
