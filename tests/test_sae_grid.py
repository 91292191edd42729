"""Many dictionaries on one pass, a model as source, and the settings that change how a step is made."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

DATA = {"n_tokens": 40 * 128, "batch_size": 128}
GRID = {
    "a": {"site": "1.resid_post", "d_sae": 64, "k": 4, "seed": 3},
    "b": {"site": "0.resid_post", "d_sae": 96, "k": 2, "architecture": "batchtopk"},
    "c": {"site": "0.resid_post", "out_site": "1.resid_post", "d_sae": 32, "k": 4, "skip": True},
    "d": {"site": "0.resid_post+1.resid_post", "d_sae": 64, "k": 4, "architecture": "jumprelu"},
}
QUIET = {"progress": False, "log_every": 5}
FILES = ("sae_weights.safetensors", "metrics.json", "train_log.csv")


def settings(name):
    return GRID[name] | DATA


@pytest.fixture(scope="module")
def straight(tiny_store, tmp_path_factory):
    """The grid, without a stop."""
    import sae

    out = tmp_path_factory.mktemp("grid")
    sae.train_grid(tiny_store, {name: settings(name) for name in GRID}, out=out, **QUIET)
    return out


def assert_same(one: Path, other: Path) -> None:
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("name", GRID)
def test_a_dictionary_of_a_grid_is_bitwise_the_one_trained_alone(name, straight, tiny_store, tmp_path):
    import sae

    sae.train(tiny_store, **settings(name), **QUIET, out=tmp_path / name)
    for file in ("sae_weights.safetensors", "train_log.csv"):
        assert (tmp_path / name / file).read_bytes() == (straight / name / file).read_bytes(), file
    run = json.loads((straight / name / "run.json").read_text())
    assert run["status"] == "done" and run["config"]["k"] == GRID[name]["k"]


def killed(script: str, *arguments: str) -> None:
    """Run `script` with Trainer.update killing the process at its 25th step of any dictionary."""
    start = (
        "import os, signal, sys, torch\n"
        "torch.set_num_threads(int(sys.argv[1]))\n"
        "import sae\nfrom sae.trainer import Trainer\n"
        "update = Trainer.update\n"
        "def killing(self, *x):\n"
        "    if self.step == 25 and self.config.k == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return update(self, *x)\n"
        "Trainer.update = killing\n"
    )
    command = [sys.executable, "-c", start + script, str(torch.get_num_threads()), *arguments]
    assert subprocess.run(command, cwd=Path(__file__).parent.parent).returncode == -signal.SIGKILL


def test_a_grid_killed_by_sigkill_continues_to_the_same_bits(straight, tiny_store, tmp_path):
    import sae

    grid = {name: settings(name) for name in GRID}
    killed(f"sae.train_grid(sys.argv[2], {grid}, **{QUIET}, out=sys.argv[3], checkpoint_every=10)",
           str(tiny_store.path), str(tmp_path))  # fmt: skip
    assert {p.name for p in tmp_path.glob("*/checkpoint.safetensors")} == {"checkpoint.safetensors"}
    (tmp_path / "c" / "checkpoint.safetensors").unlink()  # as if it had been killed before this one was first written
    sae.train_grid(tiny_store, grid, **QUIET, out=tmp_path, checkpoint_every=10)
    for name in GRID:
        assert_same(tmp_path / name, straight / name)


def test_finished_dictionaries_of_a_grid_are_loaded_not_trained_again(straight, tiny_store, monkeypatch):
    import sae
    from interp.errors import InputError
    from sae.trainer import Trainer

    monkeypatch.setattr(Trainer, "update", None)
    grid = {name: settings(name) for name in ("a", "b")}
    assert sae.train_grid(tiny_store, grid, out=straight, **QUIET)["b"].d_sae == 96
    grid["a"]["k"] = 8
    with pytest.raises(InputError, match="other settings"):
        sae.train_grid(tiny_store, grid, out=straight, **QUIET)


def test_dictionaries_of_one_pass_share_what_steers_it(tiny_store):
    import sae
    from interp.errors import InputError

    grid = {"a": settings("a"), "b": settings("b") | {"batch_size": 64}}
    with pytest.raises(InputError, match='"b" has another batch_size'):
        sae.train_grid(tiny_store, grid, **QUIET)


def test_training_from_a_model_killed_by_sigkill_continues_to_the_same_bits(tiny_model, tiny_dir, tiny_text, tmp_path):
    import sae

    how = {"site": "1.resid_post", "d_sae": 64, "k": 2, "context": 32, **DATA, **QUIET}
    sae.train(tiny_model, text=str(tiny_text), **how, out=tmp_path / "straight")
    run = json.loads((tmp_path / "straight" / "run.json").read_text())
    assert run["model"]["fingerprint"] == tiny_model.fingerprint
    killed(f"import interp\nmodel = interp.load_model(sys.argv[2])\n"
           f"sae.train(model, text=sys.argv[3], **{how}, out=sys.argv[4], checkpoint_every=10)",
           str(tiny_dir), str(tiny_text), str(tmp_path / "killed"))  # fmt: skip
    sae.train(tiny_model, text=str(tiny_text), **how, out=tmp_path / "killed", checkpoint_every=10)
    assert_same(tmp_path / "killed", tmp_path / "straight")


def test_a_model_needs_text_and_a_store_has_its_own(tiny_model, tiny_store):
    import sae
    from interp.errors import InputError

    for source, text in ((tiny_model, None), (tiny_store, "bundled")):
        with pytest.raises(InputError, match="text goes with a model"):
            sae.train(source, site="1.resid_post", text=text)


def trainer_after(n_steps, x, **settings):
    from sae.config import TrainConfig
    from sae.trainer import Trainer

    config = {"site": "s", "d_sae": 48, "k": 4, "n_tokens": 10 * 256, "batch_size": 256, "lr": 1e-2} | settings
    trainer = Trainer(TrainConfig(**config), x)
    for _ in range(n_steps):
        trainer.update(x)
    return trainer


@pytest.fixture
def x():
    return torch.randn(256, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1


@pytest.mark.parametrize("architecture", ["topk", "standard", "gated", "jumprelu"])
def test_accumulated_gradients_are_those_of_the_whole_batch(architecture, x):
    """But for what is a ratio over the batch: AuxK, off here, and JumpReLU's target."""
    same = {"architecture": architecture, "aux_weight": 0.0, "penalty": "step"}
    whole, parts = (trainer_after(5, x, accumulate=n, **same) for n in (1, 4))
    for name, value in whole.weights.items():
        torch.testing.assert_close(parts.weights[name], value, rtol=1e-9, atol=1e-9)
    assert torch.equal(whole.silent, parts.silent)


def test_weight_decay_is_adamws(x):
    plain, decayed = (trainer_after(1, x, weight_decay=d, architecture="standard", clip=0.0) for d in (0.0, 0.5))
    rate = plain.config.rate(0)
    before = trainer_after(0, x, architecture="standard").weights["W_enc"]
    torch.testing.assert_close(decayed.weights["W_enc"], plain.weights["W_enc"] - 0.5 * rate * before)


def test_bfloat16_trains_nearly_the_same_dictionary(x):
    exact, rough = (trainer_after(10, x.float(), bf16=b) for b in (False, True))
    for name, value in exact.weights.items():
        assert rough.weights[name].dtype == torch.float32
        assert (rough.weights[name] - value).norm() < 0.1 * value.norm()


def test_the_batchtopk_threshold_keeps_k_latents_active_at_inference(x):
    trainer = trainer_after(60, x, architecture="batchtopk", n_tokens=60 * 256)
    dct = trainer.finished()
    assert dct.architecture == "jumprelu" and (dct.threshold > 0).all()
    assert float((dct.encode(x) != 0).sum(1).double().mean()) == pytest.approx(4, rel=0.15)


def test_sparsity_warms_up_and_rates_decay():
    from sae.config import TrainConfig

    config = TrainConfig(site="s", architecture="standard", n_tokens=100 * 1024, sparsity_warmup=0.1)
    assert [config.sparsity_at(step) for step in (0, 4, 9, 50)] == [0.5, 2.5, 5.0, 5.0]


def test_a_diverged_training_stops_before_it_spoils_the_checkpoint(tiny_store, tmp_path):
    import sae

    with pytest.raises(FloatingPointError, match="try a lower lr"):
        sae.train(tiny_store, site="1.resid_post", d_sae=64, k=4, **DATA, **QUIET, lr=1e30, clip=0.0,
                  out=tmp_path / "wild", checkpoint_every=10, architecture="standard")  # fmt: skip
    assert json.loads((tmp_path / "wild" / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"architecture": "batchtop"}, "Nearest: batchtopk"), ({"penalty": "stp"}, "Nearest: step"),
        ({"centre": "mode"}, "not known"), ({"accumulate": 3}, "no multiple"), ({"skip": True}, "out_site"),
        ({"prefixes": (0.5, 0.2, 1.0)}, "must rise"), ({"lrr": 1.0}, 'no setting "lrr". Nearest: lr'),
        ({"held_out": 1.0}, "less than 1"), ({"warmup": 2.0}, "share"), ({"weight_decay": -1.0}, "at least 0"),
        ({"out_site": "1.resid_pots"}, "Nearest: 1.resid_post"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line_and_write_nothing(given, message, tiny_store, tmp_path):
    import sae
    from interp.errors import InputError

    with pytest.raises(InputError, match=message) as error:
        sae.train(tiny_store, **({"site": "1.resid_post", "d_sae": 64, "k": 4} | DATA | given), out=tmp_path / "new")
    assert "\n" not in str(error.value) and not (tmp_path / "new").exists()


def test_the_command_trains_a_grid_from_yaml_with_flags_over_it(tiny_store, tmp_path, capsys):
    import shutil

    from interp.cli import main

    shutil.copytree(tiny_store.path, tmp_path / "stores" / "tiny")
    (tmp_path / "grid.yaml").write_text("store: tiny\nsite: 1.resid_post\nk: [2, 4]\nd_sae: 64\nn_tokens: 1280\n")
    command = ["sae", "train", str(tmp_path / "grid.yaml"), "--workspace", str(tmp_path), "--out", "g"]
    flags = ["--batch-size", "128", "--architecture", "topk,batchtopk"]
    assert main(command + flags) == 0
    made = sorted(path.name for path in (tmp_path / "saes").iterdir())
    assert made == ["g-batchtopk-k2", "g-batchtopk-k4", "g-topk-k2", "g-topk-k4"]
    assert "g-topk-k4" in capsys.readouterr().out
    assert main(["sae", "train", "--store", "tiny", "--workspace", str(tmp_path)]) == 2
    assert '"site" is missing' in capsys.readouterr().err
    assert main(["sae", "train", "--site", "1.resid_post", "--workspace", str(tmp_path)]) == 2
    assert "give --store, or --model" in capsys.readouterr().err
    (tmp_path / "grid.yaml").write_text("store: tiny\nsite: 1.resid_post\nkk: 3\n")
    assert main(command) == 2
    assert 'no key "kk". Nearest: k' in capsys.readouterr().err
