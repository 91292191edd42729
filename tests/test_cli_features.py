"""`interp circuit features`: the run it writes, and what it refuses before it writes one."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from commands import one_line

FIRST = "blocks.0.hook_resid_post"


@pytest.fixture
def workspace(tmp_path, make_dictionary, tiny_model, pairs):
    """Two dictionaries and prompts; the command's flags are in `base` of it."""
    from sae.files import save

    for name, where in {"one": {"site": FIRST}, "two": {"seed": 3}}.items():
        save(make_dictionary(**where, model=tiny_model.provenance()), tmp_path / "saes" / name)
    save(make_dictionary(model={"name": "other", "fingerprint": "sha256:0"}), tmp_path / "saes" / "theirs")
    pairs.save(tmp_path / "pairs.jsonl")
    return tmp_path


def run(workspace, tiny_dir, *arguments):
    from interp.cli import main

    base = ["--model", str(tiny_dir), "--task", str(workspace / "pairs.jsonl"), "--workspace", str(workspace)]
    return main(["circuit", "features", *base, *arguments])


def test_the_command_writes_a_run_that_loads(workspace, tiny_dir, capsys):
    import sae
    from interp.cli import main

    flags = ["--sae", "one", "--sae", "two", "--force", "--n-nodes", "9", "--steps", "3", "--verify", "7"]
    assert run(workspace, tiny_dir, *flags, "--out", "f") == 0
    printed = capsys.readouterr().out
    assert "faithfulness" in printed and "random nodes" in printed and "7 random nodes: Spearman" in printed
    folder = workspace / "runs/f"
    about = json.loads((folder / "run.json").read_text())
    assert (
        about["kind"] == "circuit-features" and about["status"] == "done" and about["config"]["sae"] == ["one", "two"]
    )
    circuit = sae.FeatureCircuit.load(folder)
    assert circuit.n_nodes == 9 and set(circuit.table().dictionary) == {"one", "two"}
    assert (
        len(pd.read_parquet(folder / "verdict.parquet")) == 4 and len(pd.read_parquet(folder / "verified.parquet")) == 7
    )
    assert 'src="http' not in (folder / "figure.html").read_text() and (folder / "prompts.jsonl").exists()
    assert main(["circuit", "show", "f", "--top", "3", "--workspace", str(workspace)]) == 0
    first, second, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith(f"9 of {len(circuit.nodes):,} active nodes") and second.startswith("found by ig")
    assert [row.split()[0] for row in rows[:3]] == circuit.kept[:3] and "->" in rows[3] and len(rows) == 6


def test_stopped_and_started_again_it_gives_the_identical_circuit(workspace, tiny_dir, pairs, monkeypatch):
    """Pieces are prompts (one a batch here) of the nodes' and the edges' sums and stacks of sets of nodes; what one run
    has finished the next does not compute."""
    from dataclasses import replace

    from interp.causal import finished
    from sae import nodes

    replace(pairs, prompts=pairs.prompts[:4]).save(workspace / "pairs.jsonl")
    monkeypatch.setattr(finished, "EVERY", -1.0)
    monkeypatch.setattr(nodes, "LATENTS_AT_ONCE", 1)
    put, puts = finished.Finished.put, []

    def stopping(self, name, piece):
        put(self, name, piece)
        puts.append(name)
        if len(puts) == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(finished.Finished, "put", stopping)
    flags = ["--sae", "one", "--sae", "two", "--force", "--n-nodes", "9", "--steps", "2", "--verify", "3"]
    last = -1
    assert run(workspace, tiny_dir, *flags, "--out", "whole") == 0
    whole, folder = puts.copy(), workspace / "runs"
    assert {name.split(",")[0].split("/")[0] for name in whole} == {"nodes", "edges", "faithfulness", "verify"}
    for last in (whole.index("edges") + 1, len(whole) - 1):
        puts.clear()
        assert run(workspace, tiny_dir, *flags, "--out", "stopped", "--overwrite") == 130
        done, last = last, -1
        assert run(workspace, tiny_dir, *flags, "--out", "stopped", "--overwrite") == 0
        assert len(puts) == len(whole) and puts[:done] == whole[:done]
        assert not (folder / "stopped/unfinished").exists()
        for name in ("nodes.parquet", "edges.parquet", "verdict.parquet", "verified.parquet", "prompts.jsonl"):
            assert (folder / "stopped" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sae", "theirs", "--force"], 'trained on "other"'),
        (["--sae", "on"], "Nearest: one"),
        ([], "--sae demo"),
        (["--sae", "one", "--sae", "one"], "a name of its own"),
        (["--sae", "one", "--n-nodes", "0"], "n_nodes"),
        (["--sae", "one", "--metric", "accuracy"], "no slope"),
        (["--sae", "one", "--baseline", "men"], "Nearest: mean"),
        (["--sae", "one", "--force", "--task", "{alone}"], 'without "corrupted"'),
        (["--sae", "one", "--task", "iio"], "Nearest: ioi"),
    ],
)
def test_wrong_input_is_one_line_exit_2_and_nothing_written(arguments, message, workspace, tiny_dir, pairs, capsys):
    from dataclasses import replace

    alone = workspace / "alone.jsonl"
    replace(pairs, prompts=[replace(prompt, corrupted_tokens=None) for prompt in pairs.prompts]).save(alone)
    arguments = [str(alone) if argument == "{alone}" else argument for argument in arguments]
    capsys.readouterr()
    assert run(workspace, tiny_dir, *arguments) == 2
    assert message in one_line(capsys) and not (workspace / "runs").exists()
