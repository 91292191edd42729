"""`interp demo`: the whole job, every run done, and its effects those of an independent loop."""

import json

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    from interp.cli import main

    workspace = tmp_path_factory.mktemp("demo") / "workspace"
    assert main(["demo", "--workspace", str(workspace), "--n", "24"]) == 0
    return workspace


def test_every_run_of_the_demo_is_done(demo):
    runs = [json.loads(path.read_text()) for path in demo.glob("*/*/run.json")]
    assert len(runs) == 5 and {run["status"] for run in runs} == {"done"}
    assert len({run["model"]["fingerprint"] for run in runs}) == 1


def test_running_it_again_reuses_what_is_done(demo, capsys):
    from interp.cli import main

    before = {path: path.read_bytes() for path in demo.glob("*/*/run.json")}
    assert main(["demo", "--workspace", str(demo), "--n", "24"]) == 0
    printed = capsys.readouterr().out
    assert (
        printed.count("done before") == 5
        and "CE loss recovered" in printed
        and "interp app" in printed
        and "faithfulness" in printed
    )
    assert before == {path: path.read_bytes() for path in demo.glob("*/*/run.json")}


def test_its_head_effects_are_those_of_a_loop_over_the_plain_model(demo):
    from test_ablation import slow_head_ablation

    from interp.data.tasks import load_task
    from interp.decoder.loading import load_model
    from interp.decoder.sources import BUNDLED

    task = load_task(demo / "runs/demo-ioi-heads/prompts.jsonl", load_model("bundled"))
    slow = slow_head_ablation(BUNDLED, task, "mean").mean(1)
    table = pd.read_parquet(demo / "runs/demo-ioi-heads/effects.parquet")
    np.testing.assert_allclose(table[table.kind == "head"].effect, slow, atol=1e-4)
