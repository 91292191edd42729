"""`interp circuit`: exit statuses, one-line errors, files."""

import json
import signal
import subprocess
import sys

import pandas as pd
import pytest
from commands import one_line

from interp.cli import main


@pytest.fixture(scope="module")
def prompts(tmp_path_factory, tiny_model):
    """Pairs for which the model gives the first name the higher logit, on the mean."""
    names = [("Mary", "John"), ("Anna", "Tom"), ("Jane", "James"), ("John", "Mary"), ("Tom", "Anna"), ("James", "Jane")]
    lines = [
        {"clean": f"When {a} and {b} went to the shop", "corrupted": f"When {b} and {a} went to the garden",
         "answer": f" {a}", "wrong": " are"} for a, b in names
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("prompts") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    from interp import load_task
    from interp.causal import sweeps

    task = load_task(path, tiny_model)
    mean = sweeps.sweep(tiny_model, task, [], metrics=["logit_diff"]).baseline["logit_diff"].mean()
    if mean <= 0:
        lines = [line | {"answer": line["wrong"], "wrong": line["answer"]} for line in lines]
        path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def base(tiny_dir, prompts, tmp_path):
    return ["--model", str(tiny_dir), "--task", str(prompts), "--force", "--workspace", str(tmp_path)]


@pytest.fixture
def found(base):
    assert main(["circuit", "find", *base, "--n-edges", "30", "--verify", "12", "--out", "c"]) == 0


def test_find_writes_the_run_of_the_contract(found, tmp_path):
    folder = tmp_path / "runs/c"
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "done" and run["kind"] == "circuit" and run["model"]["fingerprint"].startswith("sha256:")
    file = json.loads((folder / "circuit.json").read_text())
    assert {"cfg", "nodes", "edges"} <= file.keys() and file["about"]["method"] == "eap-ig"
    curve = pd.read_parquet(folder / "curve.parquet")
    assert len(curve) == 10 and {"share", "faithfulness", "ci_low", "ci_high", "random"} <= set(curve.columns)
    assert set(pd.read_parquet(folder / "areas.parquet").area) == {"CPR", "CMD"}
    assert len(pd.read_parquet(folder / "verified.parquet")) == 12
    page = (folder / "report.html").read_text()
    assert "Faithfulness by size" in page and "Spearman" in page and 'src="http' not in page


def test_find_says_how_far_it_is_while_it_judges(capsys, found):
    told = capsys.readouterr().err
    for what in ("attributing", "judging circuits of all sizes", "judging the circuit", "patching edges"):
        assert f"{what}: " in told, told


def test_what_rounds_to_zero_has_no_minus_sign():
    from types import SimpleNamespace

    from interp.causal.verdicts import Faithfulness
    from interp.cli.circuit import _verdict

    f = Faithfulness(1.0, 0.9, 1.1, 2, (-0.0001, 0.0002), "logit_diff", 3.0, 3.0, -0.0004, 8)
    circuit = SimpleNamespace(faithfulness=lambda *_, **__: f, graph=SimpleNamespace(edges=range(4)))
    said = _verdict(circuit, None, None, 0)
    assert "(+0.000 without any edge)" in said and said.endswith("edges +0.000 to +0.000."), said


def test_score_show_and_compare_take_a_run_by_name(found, base, tmp_path, capsys):
    workspace = ["--workspace", str(tmp_path)]
    assert main(["circuit", "score", "c", "--task", base[3], "--out", "s", *workspace]) == 0
    printed = capsys.readouterr().out
    assert "faithfulness" in printed and "random circuits" in printed and "CMD" in printed
    assert (tmp_path / "runs/s/curve.parquet").exists()
    assert main(["circuit", "show", "c", "--top", "4", *workspace]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 6
    file = str(tmp_path / "runs/c/circuit.json")
    assert main(["circuit", "compare", "c", file, *workspace]) == 0
    assert "Jaccard 1.00 of edges" in capsys.readouterr().out


def test_a_file_gives_the_settings_and_flags_win(base, tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text(f"model: {base[1]}\ntask: {base[3]}\nforce: true\nworkspace: {tmp_path}\nmethod: eap\nn_edges: 9\n")
    assert main(["circuit", "find", str(file), "--n-edges", "12", "--out", "y"]) == 0
    about = json.loads((tmp_path / "runs/y/run.json").read_text())
    assert about["config"]["n_edges"] == 12 and about["config"]["method"] == "eap"
    file.write_text("task: ioi\nmetod: eap\n")
    capsys.readouterr()
    assert main(["circuit", "find", str(file)]) == 2
    assert 'line 2: unknown key "metod". Nearest: method' in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["find", "--method", "eap-gi"], "Nearest: eap-ig"),
        (["find", "--metric", "accuracy"], "no slope"),
        (["find", "--n-edges", "0"], "n_edges"),
        (["find", "--n-edges", "100000"], "edges given"),
        (["find", "--baseline", "men"], "Nearest: mean"),
        (["find", "--task", "iio"], "Nearest: ioi"),
        (["find", "--steps", "1"], "steps"),
        (["find", "--out", "../up"], "cannot name a result"),
        (["show", "nothing"], 'no circuit "nothing"'),
        (["score", "nothing"], 'no circuit "nothing"'),
        (["compare", "nothing"], "two or more"),
    ],
)
def test_wrong_input_is_one_line_exit_2_and_nothing_written(arguments, message, base, tmp_path, capsys):
    settings = base if arguments[0] == "find" else ["--workspace", str(tmp_path)]
    given = [*settings, *arguments[1:]] if arguments[0] == "find" else [*arguments[1:], *settings]
    capsys.readouterr()
    assert main(["circuit", arguments[0], *given]) == 2
    assert message in one_line(capsys) and not list(tmp_path.iterdir())


def test_a_task_that_the_model_cannot_do_is_refused_with_the_number(base, prompts, tmp_path, capsys):
    lines = [json.loads(line) for line in prompts.read_text().splitlines()]
    file = tmp_path / "swapped.jsonl"
    file.write_text("\n".join(json.dumps(p | {"answer": p["wrong"], "wrong": p["answer"]}) for p in lines))
    arguments = ["circuit", "find", "--model", base[1], "--task", str(file), "--method", "eap", "--out", "no"]
    arguments += ["--workspace", str(tmp_path / "w")]
    assert main(arguments) == 2
    assert "mean logit_diff -" in one_line(capsys) and not (tmp_path / "w").exists()
    assert main([*arguments, "--force"]) == 0


def test_a_circuit_of_another_model_is_refused(found, tmp_path, capsys):
    file = tmp_path / "runs/c/circuit.json"
    content = json.loads(file.read_text())
    content["about"]["model"]["fingerprint"] = "sha256:another"
    file.write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["circuit", "score", "c", "--out", "s", "--workspace", str(tmp_path)]) == 2
    assert "the circuit is of" in one_line(capsys) and not (tmp_path / "runs/s").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from interp.causal import finished, search
from interp.cli import main
finished.EVERY = 0.0
decide, parts = search._decide, Path(sys.argv[1])
def killed(*given):
    if len(list(parts.glob("part-*"))) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return decide(*given)
search._decide = killed
main(sys.argv[2:])
"""


def test_killed_and_started_again_gives_the_identical_circuit(base, tmp_path, monkeypatch):
    from interp.causal import finished

    arguments = ["circuit", "find", *base, "--method", "acdc", "--metric", "kl", "--threshold", "0.01", "--out"]
    folder = tmp_path / "runs/killed/unfinished"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), *arguments, "killed"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert len(list(folder.glob("part-*"))) == 2
    monkeypatch.setattr(finished, "EVERY", 0.0)
    assert main([*arguments, "killed"]) == 0 and main([*arguments, "whole"]) == 0
    assert not folder.exists()
    for name in ("circuit.json", "curve.parquet", "edges.parquet", "prompts.jsonl"):
        assert (tmp_path / "runs/killed" / name).read_bytes() == (tmp_path / "runs/whole" / name).read_bytes(), name
