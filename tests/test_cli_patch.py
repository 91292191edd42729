"""`interp patch` as a batch tool, and `interp task`; what they refuse, in one line and before anything is written."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from commands import one_line

from interp.cli import main


@pytest.fixture(scope="module")
def able(tiny_model, tmp_path_factory):
    """Four pairs of one length that the random model answers: right is the token that it prefers."""
    import torch

    names = [("Mary", "John"), ("Anna", "Tom"), ("Jane", "James"), ("John", "Mary")]
    lines = []
    for a, b in names:
        pair = {"clean": f"When {a} and {b} went to the shop", "corrupted": f"When {b} and {a} went to the shop"}
        with torch.no_grad():
            order = tiny_model(torch.tensor([tiny_model.to_tokens(pair["clean"])]))[0, -1].argsort(descending=True)
        lines.append(pair | {"answer_token": int(order[0]), "wrong_token": int(order[3]), "positions": {"IO": 2}})
    path = tmp_path_factory.mktemp("able") / "able.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def base(tiny_dir, able, tmp_path):
    return ["patch", "--model", str(tiny_dir), "--task", str(able), "--workspace", str(tmp_path / "w")]


@pytest.fixture
def file(tiny_dir, able, tmp_path):
    path = tmp_path / "patch.yaml"
    path.write_text(f"""model: {tiny_dir}
task: {able}
workspace: {tmp_path / "w"}
out: both
sweeps:
  - name: stream
    site: resid_pre
  - name: queries
    site: q
    by: [layer, head]
    method: noise
  - name: traced
    site: resid_post
    method: trace
    subject: IO
    draws: 2
""")
    return path


def test_several_sweeps_in_a_file_are_a_run_each(file, tmp_path, capsys):
    assert main(["patch", str(file)]) == 0
    tables = {name: pd.read_parquet(tmp_path / f"w/runs/both-{name}/effects.parquet")
              for name in ("stream", "queries", "traced")}  # fmt: skip
    assert set(tables["stream"].method) == {"denoise"} and tables["stream"].position.nunique() == 9
    assert list(tables["queries"].component) == [f"L{layer}H{head}.q" for layer in range(2) for head in range(4)]
    assert set(tables["traced"].method) == {"trace"} and set(tables["traced"].metric) == {"prob"}
    assert all("normalized" in table for table in tables.values())
    run = json.loads((tmp_path / "w/runs/both-traced/run.json").read_text())
    assert run["kind"] == "patch" and run["config"]["subject"] == "IO" and run["status"] == "done"
    page = (tmp_path / "w/runs/both-stream/report.html").read_text()
    assert "as corrupted, 1 = as clean" in page and "normalized" in page and 'src="http' not in page
    capsys.readouterr()
    assert main(["patch", str(file)]) == 2 and "finished" in one_line(capsys)


def test_a_dry_run_says_how_much_and_writes_nothing(file, tmp_path, capsys):
    assert main(["patch", str(file), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "18 rows" in printed and "36 forward passes in a loop" in printed and "about " in printed
    assert not (tmp_path / "w").exists()


def test_the_schema_describes_the_file(file, capsys):
    import yaml

    assert main(["patch", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    written = yaml.safe_load(file.read_text())
    assert set(written) <= set(schema["properties"])
    assert set(written["sweeps"][2]) <= set(schema["properties"]["sweeps"]["items"]["properties"])


def test_shards_merge_into_the_run_that_one_job_makes(base, tmp_path):
    assert main([*base, "--out", "whole"]) == 0
    for part in (1, 2):
        assert main([*base, "--out", "split", "--shard", f"{part}/2"]) == 0
    assert main(["runs", "merge", "split", "--workspace", str(tmp_path / "w")]) == 0
    whole, split = (pd.read_parquet(tmp_path / f"w/runs/{name}/effects.parquet") for name in ("whole", "split"))
    pd.testing.assert_frame_equal(whole, split, rtol=1e-4, atol=1e-5)
    assert np.isfinite(split.normalized).all()


def test_stopped_and_started_again_gives_the_identical_files(base, tmp_path, monkeypatch):
    from interp.causal import finished, sweeps

    monkeypatch.setattr(finished, "EVERY", 0.0)
    monkeypatch.setattr(sweeps, "tokens_at_once", lambda model, length: 64)
    arguments, run, done = [*base, "--by", "layer,position"], sweeps._Batch.run, []

    def stopped(*given):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(given)
        return run(*given)

    with monkeypatch.context() as patched:
        patched.setattr(sweeps._Batch, "run", stopped)
        assert main([*arguments, "--out", "stopped"]) == 130
    assert len(os.listdir(tmp_path / "w/runs/stopped/unfinished")) >= 3
    assert main([*arguments, "--out", "stopped"]) == 0 and main([*arguments, "--out", "whole"]) == 0
    for name in ("effects.parquet", "effects.h5", "prompts.jsonl"):
        assert (tmp_path / "w/runs/stopped" / name).read_bytes() == (tmp_path / "w/runs/whole" / name).read_bytes()


def test_a_task_that_the_model_cannot_do_is_refused_with_the_number(base, able, tmp_path, capsys):
    lines = [json.loads(line) for line in able.read_text().splitlines()]
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(
        json.dumps(line | {"answer_token": line["wrong_token"], "wrong_token": line["answer_token"]}) for line in lines
    ))  # fmt: skip
    arguments = [*base, "--task", str(turned), "--out", "t"]
    assert main(arguments) == 2
    said = one_line(capsys)
    assert "cannot do the task" in said and "mean logit_diff -" in said and "--force" in said
    assert not (tmp_path / "w").exists()
    assert main([*arguments, "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--site", "resid_pree"], "Nearest: resid_pre"),
        (["--by", "layer,positon"], "Nearest: position"),
        (["--method", "denoize"], "Nearest: denoise"),
        (["--method", "trace", "--by", "layer,head"], "without components"),
        (["--method", "trace", "--subject", "I0"], "Nearest: "),
        (["--method", "trace", "--shard", "1/2", "--out", "s"], "not split into shards"),
        (["--subject", "IO"], "--method trace"),
        (["--noise", "0"], 'key "noise"'),
        (["--corruption", "swap"], "only ioi has a choice"),
        (["--task", "PAIRS-uneven"], "must be of one length"),
        (["--task", "PAIRS-two"], "an answer is one token"),
        (["--shard", "9/2", "--out", "s"], "write i/n"),
    ],
)
def test_wrong_input_is_one_line_exit_2_and_nothing_written(arguments, message, base, tmp_path, capsys):
    line = {"clean": "When Mary and John", "corrupted": "When Anna", "answer": " shop", "wrong": " bag"}
    (tmp_path / "uneven.jsonl").write_text(json.dumps(line))
    (tmp_path / "two.jsonl").write_text(json.dumps(line | {"corrupted": "When Anna and John", "answer": " shop store"}))
    filled = [str(tmp_path / f"{a[6:]}.jsonl") if a.startswith("PAIRS-") else a for a in arguments]
    assert main([*base, *filled]) == 2
    assert message in one_line(capsys) and not (tmp_path / "w").exists()


def test_interp_task_shows_prompts_and_how_well_the_model_does(tiny_dir, able, capsys):
    assert main(["task", str(able), "--model", str(tiny_dir), "--show", "1"]) == 0
    printed = capsys.readouterr().out
    assert "able: 4 prompts of 9 tokens; positions IO" in printed
    assert "mean logit_diff +" in printed and "mean accuracy +1.000" in printed and printed.count("clean  ") == 1
    assert main(["task", "iio", "--model", str(tiny_dir)]) == 2
    assert "Nearest: ioi" in one_line(capsys)
