"""`interp lens`: exit statuses, one-line errors, files."""

import json

import pandas as pd
import pytest

from interp.cli import main

PROMPT = "When Mary and John went to the shop"


@pytest.fixture
def base(tiny_dir, tmp_path):
    return ["--model", str(tiny_dir), "--workspace", str(tmp_path)]


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    lines = [{"clean": f"When {a} went to the", "answer": " shop", "wrong": " garden"} for a in ("Mary", "Tom", "Jane")]
    path = tmp_path_factory.mktemp("prompts") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def run_of(folder):
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "done" and run["model"]["fingerprint"].startswith("sha256:")
    assert "What made this" in (folder / "report.html").read_text()
    return run


def test_show_prints_each_layer_and_writes_nothing_unasked(base, tmp_path, capsys):
    assert main(["lens", "show", *base, PROMPT, "--target", " Mary", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "target ' Mary'" in lines[0] and [line.split()[0] for line in lines[1:]] == ["L1", "L0", "embed"]
    assert not list(tmp_path.iterdir())


def test_show_of_a_prompt_and_of_a_task_are_runs(base, tmp_path, pairs_file, capsys):
    assert main(["lens", "show", *base, PROMPT, "--edit", "L0H1=0", "--colour", "kl", "--out", "text"]) == 0
    assert run_of(tmp_path / "runs/text")["kind"] == "lens"
    assert {"layer", "position", "top", "rank", "kl"} <= set(pd.read_parquet(tmp_path / "runs/text/lens.parquet"))
    assert main(["lens", "show", *base, "--task", pairs_file, "--out", "task"]) == 0
    assert "logit_diff, logit lens, n = 3" in capsys.readouterr().out
    assert run_of(tmp_path / "runs/task")["config"]["task"] == pairs_file
    assert (tmp_path / "runs/task/curve.parquet").exists() and (tmp_path / "runs/task/prompts.jsonl").exists()


def test_a_trained_lens_reads_beside_the_logit_lens(base, tmp_path, tiny_text, tiny_store, pairs_file, capsys):
    small = ["--steps", "3", "--batch-size", "128"]
    text = ["--corpus", str(tiny_text), "--context", "32", "--n-tokens", "3000"]
    assert main(["lens", "train", *base, *text, *small, "--out", "mine"]) == 0
    assert run_of(tmp_path / "runs/mine")["kind"] == "lens-train"
    assert {f.name for f in (tmp_path / "runs/mine").iterdir()} == {
        "run.json", "report.html", "tuned_lens.safetensors", "tuned_lens.json", "curve.parquet", "curve.json",
    }  # fmt: skip
    assert main(["lens", "train", *base, *small, "--store", str(tiny_store.path), "--out", "stored"]) == 0
    capsys.readouterr()
    assert main(["lens", "show", *base, "--task", pairs_file, "--tuned", "mine"]) == 0
    assert "kl, tuned lens, n = 3" in capsys.readouterr().out


def test_attribute_prints_the_largest_parts_and_their_sum(base, tmp_path, pairs_file, make_dictionary, capsys):
    from sae.files import save

    save(make_dictionary(), tmp_path / "saes/demo")
    asked = ["lens", "attribute", *base]
    assert main([*asked, "--task", pairs_file, "--sae", "demo", "--top", "4", "--out", "direct"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("the sum of 66 parts, n = 3") and len(lines) == 6  # 64 latents, their bias and error
    assert run_of(tmp_path / "runs/direct")["kind"] == "lens-attribute"
    rows = pd.read_parquet(tmp_path / "runs/direct/attribution.parquet")
    assert rows["contribution"].sum() == pytest.approx(float(lines[0].split()[3].rstrip(",")), abs=2e-3)
    assert main([*asked, PROMPT, "--answer", " shop", "--by", "layer"]) == 0
    assert "logit(answer) " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show"], "give a text or --task"),
        (["show", PROMPT, "--task", "ioi"], "give a text or --task"),
        (["show", "--task", "ioi", "--target", " Mary"], "a task has its own answers"),
        (["show", "--task", "ioi", "--position", "3"], "--position is of a text: a task has its own"),
        (["show", PROMPT, "--n", "5"], "--n is of a task: give --task"),
        (["show", PROMPT, "--top", "0"], 'key "top"'),
        (["show", PROMPT, "--target", " no token"], "give one, with its space"),
        (["show", PROMPT, "--colour", "green"], "one of top_prob"),
        (["show", PROMPT, "--position", "99"], "position 99 given"),
        (["show", PROMPT, "--tuned", "none"], "interp lens train"),
        (["show", PROMPT, "--edit", "L9H9=0"], "Nearest"),
        (["train", "--corpus", "a", "--store", "b"], "train on one of them"),
        (["train", "--corpus", "no-file.txt"], "no-file.txt"),
        (["train", "--store", "none"], "no store"),
        (["attribute", "--task", "ioi", "--wrong", " x"], "a task has its own"),
        (["attribute", PROMPT, "--by", "heads"], "Nearest"),
        (["attribute", PROMPT, "--sae", "none"], "no dictionary"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(base, tmp_path, capsys, arguments, message):
    assert main(["lens", *arguments, *base, "--out", "wrong"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not (tmp_path / "runs").exists()
