"""`interp ablate` as a batch tool: several sweeps in a file, plans, kills, shards, reports; bad files named by line."""

import json
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from commands import one_line

from interp.cli import main


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "pairs.jsonl"
    names = [("Mary", "John"), ("Anna", "Tom"), ("Jane", "James"), ("John", "Mary")]
    lines = [
        {"clean": f"When {a} and {b} went to the shop", "corrupted": f"When {b} and {a} went to the shop",
         "answer": f" {a}", "wrong": f" {b}", "labels": {"first": "Mary or Anna" if a[0] in "MA" else "another"}}
        for a, b in names
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def file(tiny_dir, prompts, tmp_path):
    """A file of two sweeps."""
    path = tmp_path / "batch.yaml"
    path.write_text(f"""# two sweeps of one model
model: {tiny_dir}
task: {prompts}
workspace: {tmp_path}
out: both
sweeps:
  - name: heads
    components: heads
    method: [zero, mean]
  - name: groups
    components:
      - [L0H1, L1H2]
      - heads-L0H1-L1H2
    metric: loss
    classes: first
""")
    return path


def test_several_sweeps_in_a_file_are_a_run_each(file, tmp_path, capsys):
    assert main(["ablate", str(file)]) == 0
    heads = pd.read_parquet(tmp_path / "runs/both-heads/effects.parquet")
    assert len(heads) == 16 and set(heads.method) == {"zero", "mean"}
    groups = pd.read_parquet(tmp_path / "runs/both-groups/effects.parquet")
    assert set(groups.metric) == {"loss", "loss-Mary_or_Anna", "loss-another"}
    assert set(groups.kind) == {"group", "random"} and (groups[groups.metric != "loss"].n == 2).all()
    capsys.readouterr()
    assert main(["ablate", str(file)]) == 2
    assert "finished" in one_line(capsys)
    assert main(["ablate", str(file), "--method", "zero", "--overwrite"]) == 0
    assert set(pd.read_parquet(tmp_path / "runs/both-heads/effects.parquet").method) == {"zero"}


def test_the_report_needs_nothing_else(file, tmp_path):
    assert main(["ablate", str(file)]) == 0
    page = (tmp_path / "runs/both-groups/report.html").read_text()
    assert "random groups of its size" in page and "sha256:" in page and "Plotly" in page
    assert 'src="http' not in page and "<link" not in page.replace("<link>", "")


def test_a_dry_run_says_how_much_and_writes_nothing(file, tmp_path, capsys):
    assert main(["ablate", str(file), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "16 forward passes in a loop" in printed and "about " in printed
    assert not (tmp_path / "runs").exists()


def test_the_schema_describes_the_file(file, capsys):
    import yaml

    assert main(["ablate", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    written = yaml.safe_load(file.read_text())
    assert set(written) <= set(schema["properties"])
    assert set(written["sweeps"][1]) <= set(schema["properties"]["sweeps"]["items"]["properties"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: ioi\n\nmetod: zero\n", 'line 3: unknown key "metod". Nearest: method'),
        ("sweeps:\n  - name: a\n    component: heads\n", 'line 3: unknown key "component". Nearest: components'),
        ("task: ioi\nn: many\n", 'line 2: key "n"'),
        ("n: 0\n", 'line 1: key "n"'),
        ("sweeps:\n  - task: ioi\n  - task: induction\n", 'each has a "name"'),
        ("sweeps: 3\n", 'line 1: key "sweeps"'),
        ("task: ioi\ntask: induction\n", 'line 2: key "task" is given twice'),
    ],
)
def test_a_bad_key_is_named_with_its_line(content, message, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(content)
    assert main(["ablate", str(tmp_path / "c.yaml")]) == 2
    assert message in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--components", "demo/3"], 'no dictionary "demo"'),
        (["--components", "L0H1+L9H9"], 'no component "L9H9"'),
        (["--method", "resampel"], "Nearest: resample"),
        (["--classes", "digits"], "Nearest: digit"),
        (["--shard", "3/2"], "write i/n"),
        (["--shard", "1/2"], "--out"),
        (["--reference", "nothing.jsonl"], "no file"),
    ],
)
def test_wrong_settings_are_one_line_and_nothing_is_written(arguments, message, tiny_dir, prompts, tmp_path, capsys):
    settings = ["--model", str(tiny_dir), "--task", str(prompts), "--workspace", str(tmp_path / "w")]
    assert main(["ablate", *settings, *arguments]) == 2
    assert message in one_line(capsys) and not (tmp_path / "w").exists()


def test_shards_merge_into_the_run_that_one_job_makes(tiny_dir, prompts, tmp_path, capsys, monkeypatch):
    base = ["ablate", "--model", str(tiny_dir), "--task", str(prompts), "--method", "zero,mean"]
    base += ["--workspace", str(tmp_path)]
    assert main([*base, "--out", "whole"]) == 0
    assert main([*base, "--out", "split", "--shard", "1/3"]) == 0
    assert main(["runs", "merge", "split", "--workspace", str(tmp_path)]) == 2
    assert "not finished: 2, 3" in capsys.readouterr().err
    assert main([*base, "--out", "split", "--shard", "2/3"]) == 0
    monkeypatch.setenv("WORLD_SIZE", "3")  # as torchrun sets it
    monkeypatch.setenv("RANK", "2")
    assert main([*base, "--out", "split"]) == 0
    monkeypatch.undo()
    assert main(["runs", "merge", "split", "--workspace", str(tmp_path)]) == 0
    whole, split = (pd.read_parquet(tmp_path / f"runs/{name}/effects.parquet") for name in ("whole", "split"))
    pd.testing.assert_frame_equal(whole, split, rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "runs/split/run.json").read_text())["status"] == "done"


KILLED = """
import os, signal, sys
from pathlib import Path
from interp.causal import finished, sweeps
from interp.cli import main
finished.EVERY, sweeps.tokens_at_once = 0.0, lambda model, length: 40
run, parts = sweeps._Batch.run, Path(sys.argv[1])
def killed(*given):
    if len(list(parts.glob("part-*"))) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return run(*given)
sweeps._Batch.run = killed
main(sys.argv[2:])
"""


def test_killed_and_started_again_gives_the_identical_files(tiny_dir, prompts, tmp_path, monkeypatch):
    """kill -9 in the middle, then the same command; beside it one that nobody killed."""
    from interp.causal import finished, sweeps

    base = ["ablate", "--model", str(tiny_dir), "--task", str(prompts), "--method", "zero,mean"]
    base += ["--workspace", str(tmp_path), "--out"]
    folder = tmp_path / "runs/killed/unfinished"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), *base, "killed"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert len(list(folder.glob("part-*"))) == 4
    assert json.loads((folder.parent / "run.json").read_text())["status"] == "running"
    monkeypatch.setattr(finished, "EVERY", 0.0)
    monkeypatch.setattr(sweeps, "tokens_at_once", lambda model, length: 40)
    assert main([*base, "killed"]) == 0 and main([*base, "whole"]) == 0
    assert not folder.exists()
    for name in ("effects.parquet", "effects.h5", "prompts.jsonl"):
        assert (tmp_path / "runs/killed" / name).read_bytes() == (tmp_path / "runs/whole" / name).read_bytes(), name


def test_a_direction_from_a_file_is_projected_out(tiny_dir, tiny_model, prompts, tmp_path, capsys):
    import torch
    from safetensors.torch import save_file

    from interp import Effects
    from interp.data.tasks import load_task
    from interp.decoder.hooks import edited

    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    save_file({"up": vector}, tmp_path / "up.safetensors")
    file = tmp_path / "d.yaml"
    file.write_text(
        f"model: {tiny_dir}\ntask: {prompts}\nworkspace: {tmp_path}\nout: d\n"
        "components: up@0.resid_post\nmethod: zero\n"
        f"directions: {{up: {tmp_path / 'up.safetensors'}}}\n"
    )
    assert main(["ablate", str(file)]) == 0
    unit = vector / vector.norm()
    task = load_task(prompts, tiny_model)
    with torch.no_grad(), edited(tiny_model, {"0.resid_post": lambda v: v - (v @ unit)[..., None] * unit}):
        logits = tiny_model(task.tokens())
    prompt, pos, answer, wrong = task.reads()
    expected = logits[prompt, pos, answer] - logits[prompt, pos, wrong]
    found = Effects.load(tmp_path / "runs/d").values["zero", "logit_diff"][0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    save_file({"up": vector[:5]}, tmp_path / "up.safetensors")
    capsys.readouterr()
    assert main(["ablate", str(file), "--out", "e"]) == 2
    assert "32 numbers" in one_line(capsys)


def test_running_text_is_broken_down_by_kind_of_token(tiny_dir, tiny_text, tmp_path):
    settings = ["--model", str(tiny_dir), "--task", f"text:{tiny_text}", "--n", "6", "--classes", "built-in"]
    assert main(["ablate", *settings, "--components", "L0H0", "--out", "t", "--workspace", str(tmp_path)]) == 0
    table = pd.read_parquet(tmp_path / "runs/t/effects.parquet").set_index("metric")
    assert {"loss", "loss-punctuation", "loss-capitalised", "loss-repeated", "loss-word_start"} <= set(table.index)
    parts = table.baseline[["loss-repeated"]]
    assert np.isfinite(parts).all() and table.n["loss"] == 6
