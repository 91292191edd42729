"""Features against a slow loop over the store, and the `interp sae` commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def workspace(tiny_store, tmp_path_factory):
    """A workspace with the tiny store as stores/demo and a dictionary as saes/demo."""
    import sae

    root = tmp_path_factory.mktemp("workspace")
    (root / "stores").mkdir()
    (root / "stores" / "demo").symlink_to(tiny_store.path, target_is_directory=True)
    sae.train(
        tiny_store, site="1.resid_post", d_sae=64, k=4, batch_size=128, n_tokens=50 * 128, progress=False,
        out=root / "saes" / "demo",
    )  # fmt: skip
    return root


@pytest.fixture(scope="module")
def features(workspace, tiny_store, tiny_model):
    import sae

    dct = sae.load(workspace / "saes" / "demo")
    return sae.features.compute(
        dct, tiny_store, n_examples=5, context_tokens=3, batch_size=300, model=tiny_model, overwrite=True
    )


def test_features_equal_a_slow_loop(features, workspace, tiny_store, tiny_model):
    import sae

    dct = sae.load(workspace / "saes" / "demo")
    rows = tiny_store.content_rows
    dense = np.zeros((tiny_store.n_rows, 64), np.float32)
    dense[rows] = dct.encode(torch.from_numpy(tiny_store["1.resid_post"][rows])).numpy()
    tokens, sequences = tiny_store.tokens[:], tiny_store.sequence[:]
    for latent in range(64):
        told = features.latents.iloc[latent]
        fires = int((dense[:, latent] > 0).sum())
        assert told["latent"] == latent and told["n_fires"] == fires and bool(told["dead"]) == (fires == 0)
        assert told["density"] == pytest.approx(fires / len(rows))
        assert told["max_activation"] == pytest.approx(dense[:, latent].max(), rel=1e-5)
        best = sorted(
            (max(dense[sequences == s, latent]) for s in np.unique(sequences[dense[:, latent] > 0])), reverse=True
        )
        shown = features.of(latent)
        np.testing.assert_allclose(shown["activation"], best[:5], rtol=1e-5)
        assert list(shown["rank"]) == list(range(min(5, len(best))))
        for example in shown.itertuples():
            near = [
                row for row in range(example.row - 3, example.row + 4)
                if 0 <= row < len(tokens) and sequences[row] == example.sequence
            ]  # fmt: skip
            assert list(example.tokens) == tiny_model.token_text(tokens[near].tolist())
            np.testing.assert_allclose(example.values, dense[near, latent], rtol=1e-5)
            assert near[example.token_index] == example.row
            assert example.values[example.token_index] == pytest.approx(example.activation)
            assert example.position == tiny_store.position[example.row]
        if fires:
            assert told["top_token_text"] == shown["tokens"][0][shown["token_index"][0]]


def test_features_come_back_without_torch(features, workspace):
    import pandas as pd

    from sae.features import Features

    again = Features.load(workspace / "saes" / "demo")
    pd.testing.assert_frame_equal(again.latents, features.latents)
    assert [list(v) for v in again.examples["values"]] == [list(v) for v in features.examples["values"]]
    code = (
        "import sys; from sae.features import Features; "
        "print(len(Features.load(sys.argv[1]).latents), 'torch' in sys.modules)"
    )
    arguments = [sys.executable, "-c", code, str(workspace / "saes" / "demo")]
    shown = subprocess.run(arguments, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert shown.stdout.split() == ["64", "False"], shown.stderr


def test_features_are_not_overwritten_and_need_a_store_of_the_model(
    features, workspace, tiny_store, tiny_model, tmp_path
):
    import sae
    from interp.errors import AlreadyExists, InputError, MissingFile, UnknownSite, WrongModel

    dct = sae.load(workspace / "saes" / "demo")
    with pytest.raises(AlreadyExists):
        sae.features.compute(dct, tiny_store, model=tiny_model)
    with pytest.raises(InputError, match="at least 1"):
        sae.features.compute(dct, tiny_store, n_examples=0, out=tmp_path)
    dct.model = dct.model | {"fingerprint": "sha256:0"}
    with pytest.raises(WrongModel):
        sae.features.compute(dct, tiny_store, model=tiny_model, out=tmp_path)
    dct.model, dct.site = {}, "blocks.9.hook_resid_post"
    with pytest.raises(UnknownSite):
        sae.features.compute(dct, tiny_store, model=tiny_model, out=tmp_path)
    dct.site = "blocks.1.hook_resid_post"
    found = sae.features.compute(dct, tiny_store, n_rows=100, out=tmp_path)  # loads the model that the store names
    assert found.latents["n_fires"].sum() > 0 and found.examples["row"].max() < 100
    with pytest.raises(MissingFile):
        sae.features.Features.load(tmp_path / "nothing")


@pytest.fixture
def run(capsys):
    """`interp sae ...`: (exit status, what it printed, its error)."""
    from interp.cli import main

    def run(*arguments) -> tuple[int, str, str]:
        status = main(["sae", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_the_three_commands_from_store_to_features(run, workspace, tiny_text):
    import json

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
    assert (workspace / "saes" / "cli" / "features" / "examples.parquet").exists()
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
