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
    assert status == 0 and "32 latents on blocks.1.hook_resid_post" in said, error
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


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("train", "--store", "demmo", "--site", "1.resid_post", "--out", "x"), 'no "demmo".*Nearest: demo'),
        (("train", "--store", "demo", "--site", "1.resid_pots", "--out", "x"), "Nearest: 1.resid_post"),
        (("train", "--store", "demo", "--site", "1.resid_post", "--out", "x/y"), "cannot name a result"),
        (("train", "--store", "demo", "--site", "1.resid_post", "--out", "x", "--dtype", "float16"), "float32"),
        (("train", "--store", "demo", "--site", "1.resid_post", "--out", "demo"), "--overwrite"),
        (("eval", "dmo"), 'no "dmo".*Nearest: demo'),
        (("features", "demo", "--store", "none"), 'no "none"'),
    ],
)
def test_bad_input_to_a_command_is_one_line_and_writes_nothing(arguments, message, run, workspace):
    import re

    before = sorted(workspace.rglob("*"))
    status, said, error = run(*arguments, "--workspace", workspace)
    assert status == 2 and re.search(message, error) and error.count("\n") == 1 and said == ""
    assert sorted(workspace.rglob("*")) == before


@pytest.mark.parametrize("command", ["train", "eval", "features"])
def test_help_shows_an_example(command, run):
    assert f"Example: interp sae {command}" in " ".join(run(command, "--help")[1].split())
