"""`interp sae eval | features | export`, and train far enough to have something to work on."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def workspace(tiny_store, make_dictionary, tmp_path_factory):
    """A workspace with the tiny store as stores/demo and a dictionary as saes/demo."""
    from interp import runs
    from sae.files import save

    root = tmp_path_factory.mktemp("workspace")
    (root / "stores").mkdir()
    (root / "stores" / "demo").symlink_to(tiny_store.path, target_is_directory=True)
    with runs.recording(root / "saes" / "demo", kind="sae", config={}, model=tiny_store.model, seed=0, device="cpu"):
        save(make_dictionary(model=dict(tiny_store.model), context=32), root / "saes" / "demo")
    return root


@pytest.fixture
def run(capsys):
    """`interp sae ...`: (exit status, what it printed, its error)."""
    from interp.cli import main

    def run(*arguments) -> tuple[int, str, str]:
        status = main(["sae", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_the_three_commands_from_store_to_features(run, workspace, tiny_text):

    from sae.evaluation import Report

    here = ("--workspace", workspace)
    status, said, error = run(
        "train", "--store", "demo", "--site", "1.resid_post", "--d-sae", 32, "--k", 4, "--batch-size", 128,
        "--n-tokens", 2000, "--out", "cli", *here,
    )  # fmt: skip
    assert status == 0 and "Next: interp sae eval cli" in said, error
    status, said, error = run("eval", "cli", "--text", tiny_text, "--context", 32, "--n-tokens", 500, *here)
    assert status == 0 and "ce_recovered_mean" in said, error
    metrics = workspace / "saes" / "cli" / "metrics.json"
    assert Report.load(metrics).d_sae == 32 and "train_fvu" in json.loads(metrics.read_text())
    status, said, error = run("features", "cli", "--store", "demo", "--n-examples", 3, *here)
    assert status == 0 and "latents fire" in said, error
    assert (workspace / "saes" / "cli" / "features" / "latents.h5").exists()
    for again in (("eval", "cli", "--text", tiny_text), ("features", "cli", "--store", "demo")):
        status, said, error = run(*again, *here)
        assert status == 2 and "--overwrite" in error


def test_features_of_a_text_without_a_store(run, workspace, tiny_text):
    here = ("--workspace", workspace, "--overwrite")
    status, said, error = run("features", "demo", "--text", tiny_text, "--n-rows", 500, "--n-examples", 2, *here)
    assert status == 0 and "latents fire" in said and "raises" in said, error


def test_labelled_text_adds_probes_to_the_evaluation(run, workspace, tiny_text, tmp_path):
    lines = [{"text": f"{word} a bag {i}", "label": label}
             for word, label in (("Mary", "name"), ("garden", "thing")) for i in range(8)]  # fmt: skip
    path = tmp_path / "labelled.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    status, said, error = run(
        "eval", "demo", "--text", tiny_text, "--context", 32, "--n-tokens", 500, "--labelled", path, "--overwrite",
        "--workspace", workspace,
    )  # fmt: skip
    assert status == 0 and "probe name" in said and "by activations" in said, error
    metrics = json.loads((workspace / "saes" / "demo" / "metrics.json").read_text())
    assert {"probe_k1", "probe_k5", "probe_activations", "ce_sae"} <= metrics.keys()


def test_export_writes_a_bare_folder_for_others_and_takes_theirs_in(run, workspace, tmp_path):
    import torch

    import sae
    from interp import runs

    here, bare = ("--workspace", workspace), tmp_path / "up" / "demo"
    status, said, error = run("export", "demo", "--to", bare, "--dtype", "bfloat16", *here)
    assert status == 0 and str(bare) in said, error
    assert {path.name for path in bare.iterdir()} == {"cfg.json", "sae_weights.safetensors"}
    status, said, error = run("export", "demo", "--to", bare, *here)
    assert status == 2 and "--overwrite" in error
    status, said, error = run("export", bare, "--out", "back", *here)
    assert status == 0 and runs.read(workspace / "saes" / "back")["status"] == "done", error
    demo, back = (sae.load(workspace / "saes" / name) for name in ("demo", "back"))
    assert back.W_dec.dtype == torch.bfloat16 and torch.equal(back.W_dec, demo.W_dec.bfloat16())
    assert back.sites == demo.sites and back.model["fingerprint"] == demo.model["fingerprint"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("train", "--store", "demmo", "--site", "1.resid_post", "--out", "x"), 'no "demmo".*Nearest: demo'),
        (("train", "--store", "demo", "--site", "1.resid_pots", "--out", "x"), "Nearest: 1.resid_post"),
        (("train", "--store", "demo", "--site", "1.resid_post", "--out", "x/y"), "cannot name a result"),
        (("train", "--store", "demo", "--site", "1.resid_post", "--out", "x", "--dtype", "float16"), "float32"),
        (("train", "--store", "demo", "--site", "1.resid_post", "--out", "demo"), "--overwrite"),
        (("eval", "dmo"), 'no "dmo".*Nearest: demo'),
        (("eval", "demo", "--labelled", "none.jsonl", "--overwrite"), "no labelled text at none.jsonl"),
        (("features", "demo", "--store", "none"), 'no "none"'),
        (("features", "demo"), "--store or --text"),
        (("features", "demo", "--store", "demo", "--text", "bundled"), "--store or --text"),
        (("export", "demo"), "--to FOLDER"),
        (("export", "demo", "--out", "x", "--dtype", "float8"), "float32, float16 or bfloat16"),
        (("export", "dmo", "--out", "x"), 'no "dmo".*Nearest: demo'),
        (("export", "demo", "--out", "demo"), "--overwrite"),
    ],
)
def test_bad_input_to_a_command_is_one_line_and_writes_nothing(arguments, message, run, workspace):
    import re

    before = sorted(workspace.rglob("*"))
    status, said, error = run(*arguments, "--workspace", workspace)
    assert status == 2 and re.search(message, error) and error.count("\n") == 1 and said == ""
    assert sorted(workspace.rglob("*")) == before


@pytest.mark.parametrize("command", ["train", "eval", "features", "export"])
def test_help_shows_an_example(command, run):
    assert f"Example: interp sae {command}" in " ".join(run(command, "--help")[1].split())


def test_a_grid_and_its_frontier_as_a_table_and_a_figure(run, workspace, tmp_path):
    here, figure = ("--workspace", workspace), tmp_path / "frontier.html"
    status, said, error = run(
        "train", "--store", "demo", "--site", "1.resid_post", "--d-sae", 32, "--k", "2,4", "--batch-size", 128,
        "--n-tokens", 2000, "--out", "grid", *here,
    )  # fmt: skip
    assert status == 0 and "interp sae frontier grid-k2 grid-k4" in said, error
    status, said, error = run("frontier", "grid-k2", "grid-k4", "--figure", figure, *here)
    rows = [line.split() for line in said.splitlines()]
    assert (
        status == 0
        and rows[0][-3:] == ["l0", "fvu", "dead"]
        and [row[0] for row in rows[1:3]] == ["grid-k2", "grid-k4"]
    )
    assert "FVU: variance left unexplained" in figure.read_text(encoding="utf-8")
    status, _, error = run("frontier", "grid-k2", "--figure", figure, *here)
    assert status == 2 and "--overwrite" in error
    status, _, error = run("frontier", "grid-k3", *here)
    assert status == 2 and "Nearest: grid-k" in error
