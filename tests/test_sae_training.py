"""Training: it learns what is there, a killed run ends in bitwise the same files, bad input writes nothing."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SETTINGS = {"site": "1.resid_post", "d_sae": 64, "k": 4, "batch_size": 128, "n_tokens": 60 * 128, "seed": 3}
QUIET = {"progress": False, "log_every": 5}


@pytest.fixture(scope="module")
def straight(tiny_store, tmp_path_factory):
    """60 steps without a stop."""
    import sae

    out = tmp_path_factory.mktemp("saes") / "straight"
    sae.train(tiny_store, **SETTINGS, **QUIET, out=out)
    return out


def assert_same_files(one: Path, other: Path) -> None:
    for name in ("sae_weights.safetensors", "cfg.json", "metrics.json", "train_log.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_train_writes_a_finished_folder(straight, tiny_store):
    import sae

    assert {p.name for p in straight.iterdir()} == {
        "cfg.json", "sae_weights.safetensors", "run.json", "metrics.json", "train_log.csv"
    }  # fmt: skip
    run = json.loads((straight / "run.json").read_text())
    assert run["kind"] == "sae" and run["status"] == "done" and run["model"] == tiny_store.model
    rows = list(csv.DictReader((straight / "train_log.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(5, 61, 5))
    assert float(rows[-1]["fvu"]) < float(rows[0]["fvu"])
    dct = sae.load(straight)
    torch.testing.assert_close(dct.W_dec.norm(dim=1), torch.ones(64))
    metrics = json.loads((straight / "metrics.json").read_text())
    assert 0 < metrics["train_l0"] <= 4 and 0 < metrics["train_fvu"] < 1


@pytest.mark.parametrize("stop", [25, 30, 59])
def test_interrupted_training_continues_to_the_same_bits(stop, straight, tiny_store, tmp_path, monkeypatch):
    import sae
    from sae.trainer import Trainer

    update = Trainer.update

    def stopping(self, *x):
        if self.step == stop:
            raise KeyboardInterrupt
        return update(self, *x)

    out = tmp_path / "stopped"
    monkeypatch.setattr(Trainer, "update", stopping)
    with pytest.raises(KeyboardInterrupt):
        sae.train(tiny_store, **SETTINGS, **QUIET, out=out, checkpoint_every=10)
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    steps = []
    monkeypatch.setattr(Trainer, "update", lambda self, x: steps.append(self.step) or update(self, x))
    sae.train(tiny_store, **SETTINGS, **QUIET, out=out, checkpoint_every=10)
    assert steps == list(range(stop // 10 * 10, 60))
    assert_same_files(out, straight)
    assert not (out / "checkpoint.safetensors").exists()


def test_training_killed_by_sigkill_continues_to_the_same_bits(straight, tiny_store, tmp_path):
    import sae

    script = (
        "import os, signal, sys, torch\n"
        "torch.set_num_threads(int(sys.argv[3]))\n"
        "import sae\nfrom sae.trainer import Trainer\n"
        "update = Trainer.update\n"
        "def killed(self, x):\n"
        "    if self.step == 25: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return update(self, x)\n"
        "Trainer.update = killed\n"
        f"sae.train(sys.argv[1], **{SETTINGS}, **{QUIET}, out=sys.argv[2], checkpoint_every=10)\n"
    )
    out, root = tmp_path / "killed", Path(__file__).parent.parent
    arguments = [sys.executable, "-c", script, str(tiny_store.path), str(out), str(torch.get_num_threads())]
    assert subprocess.run(arguments, cwd=root).returncode == -signal.SIGKILL
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    assert (out / "checkpoint.safetensors").exists()
    sae.train(tiny_store, **SETTINGS, **QUIET, out=out, checkpoint_every=10)
    assert_same_files(out, straight)


ALL = ("standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk", "abstopk")


@pytest.mark.parametrize("centre", ["median", "mean", "none"])
@pytest.mark.parametrize("architecture", ALL)
def test_scale_is_folded_so_that_raw_and_scaled_reconstructions_agree(architecture, centre):
    """In float64, against the dense forward pass of the scaled weights; decoder rows come out at norm 1."""
    trainer, x, _ = trained(architecture, centre=centre)
    dct = trainer.finished()
    latents, y_hat = scaled_forward(trainer, x)
    torch.testing.assert_close(dct(x), y_hat)
    assert torch.equal(dct.encode(x) != 0, latents != 0)
    torch.testing.assert_close(dct.W_dec.norm(dim=1), torch.ones(48, dtype=torch.float64))


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "gated", "standard"])
def test_centre_and_scales_of_a_skip_transcoder_are_folded(architecture):
    trainer, x, _ = trained(architecture, out_site="blocks.0.hook_mlp_out", skip=True)
    _, y_hat = scaled_forward(trainer, x)
    torch.testing.assert_close(trainer.finished()(x), y_hat)
    assert trainer.weights["W_skip"].abs().max() > 0


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "standard"])
def test_the_scales_of_a_crosscoders_sites_are_folded(architecture):
    trainer, x, _ = trained(architecture, site="blocks.0.hook_resid_post+blocks.1.hook_resid_post")
    _, y_hat = scaled_forward(trainer, x)
    torch.testing.assert_close(trainer.finished()(x), y_hat)


def test_inputs_are_centred_and_scaled_to_one():
    for settings in ({}, {"site": "blocks.0.hook_resid_post+blocks.1.hook_resid_post"}):
        trainer, x, _ = trained("topk", n_steps=0, **settings)
        scaled = (x * trainer.x_scale - trainer.weights["b_dec"]).detach()
        for part in scaled.chunk(len(trainer.config.sites), 1):
            assert float(part.square().sum(1).mean()) == pytest.approx(1)


def trained(architecture, *, n_steps=6, **settings):
    """A trainer after a few steps on made-up data of two scales, with (x, y)."""
    from sae.trainer import Trainer
    from sae.training import TrainConfig

    g = torch.Generator().manual_seed(0)
    wide = torch.randn(512, 12, generator=g, dtype=torch.float64)
    x = torch.cat([wide @ torch.randn(12, 8, generator=g, dtype=torch.float64) * s + 3 for s in (7, 0.5)], 1)
    settings = {"site": "blocks.0.hook_resid_mid"} | settings
    config = TrainConfig(
        architecture=architecture, d_sae=48, k=4, n_tokens=512 * 6, batch_size=512, lr=1e-2, bandwidth=0.2,
        threshold=0.2, **settings,
    )  # fmt: skip
    y = wide @ torch.randn(12, 5, generator=g, dtype=torch.float64) * 2 - 4 if config.is_transcoder else None
    trainer = Trainer(config, x, y)
    for _ in range(n_steps):
        trainer.update(x, y)
    return trainer, x, y


def scaled_forward(trainer, x):
    """(latents, prediction in the model's units) of the weights in training, as at inference."""
    from dense_sae import top

    w, config = {name: value.detach() for name, value in trainer.weights.items()}, trainer.config
    scaled = (x - trainer.x_centre) * trainer.x_scale
    pre = (scaled - (0 if config.is_transcoder else w["b_dec"])) @ w["W_enc"].T + w["b_enc"]
    kind = config.row.activation
    latents = {
        "standard": lambda: pre.relu(),
        "gated": lambda: (pre > 0) * ((pre - w["b_enc"]) * w["r_mag"].exp() + w["b_mag"]).relu(),
        "jumprelu": lambda: pre * (pre > (w["log_threshold"].exp() if "log_threshold" in w else trainer.threshold)),
        "topk": lambda: pre.relu() * top(pre, config.k),
        "abstopk": lambda: pre * top(pre.abs(), config.k),
    }[kind]()
    y_hat = latents @ w["W_dec"] + w["b_dec"] + (scaled @ w["W_skip"].T if "W_skip" in w else 0)
    return latents, y_hat / trainer.y_scale


def test_training_finds_the_directions_that_made_sparse_data():
    from sae.trainer import Trainer
    from sae.training import TrainConfig

    g = torch.Generator().manual_seed(0)
    true = torch.nn.functional.normalize(torch.randn(24, 16, generator=g), dim=1)
    which = torch.rand(40_000, 24, generator=g).topk(2, dim=1).indices
    amounts = torch.zeros(40_000, 24).scatter(1, which, 1 + torch.rand(40_000, 2, generator=g))
    x = amounts @ true + 5
    trainer = Trainer(TrainConfig(site="s", d_sae=48, k=2, n_tokens=600 * 512, batch_size=512, lr=5e-3), x[:4096])
    for _ in range(600):
        report = trainer.update(x[torch.randint(len(x), (512,), generator=g)])
    assert float(report["fvu"]) < 0.1
    best = (true @ trainer.weights["W_dec"].detach().T).max(1).values
    assert int((best > 0.9).sum()) >= 20


def test_auxk_revives_latents_that_never_fire(tiny_store):
    from sae.trainer import Trainer
    from sae.training import TrainConfig

    def dead_after_training(aux_weight: float) -> int:
        config = TrainConfig(
            site=tiny_store.site("1.resid_post"), d_sae=64, k=4, n_tokens=150 * 256, batch_size=256, lr=3e-3,
            dead_after=1024, aux_weight=aux_weight,
        )  # fmt: skip
        batches = list(tiny_store.shuffled_batches(config.site, 256, seed=0))
        trainer = Trainer(config, torch.cat(batches))
        with torch.no_grad():
            trainer.weights["b_enc"][:32] = -0.5  # out of reach of the top k
        for step in range(config.n_steps):
            report = trainer.update(batches[step % len(batches)])
        return int(report["dead"])

    assert dead_after_training(1 / 32) < dead_after_training(0.0)


def test_silent_counter_counts_tokens_since_the_last_firing(tiny_store):
    from sae.trainer import Trainer
    from sae.training import TrainConfig

    batches = list(tiny_store.shuffled_batches("1.resid_post", 100))[:6]
    trainer = Trainer(TrainConfig(site="s", d_sae=200, k=2, n_tokens=600, batch_size=100, lr=1e-3), torch.cat(batches))
    wanted = torch.zeros(200, dtype=torch.long)
    for x in batches:
        fired = (scaled_forward(trainer, x)[0] != 0).any(0)
        wanted = torch.where(fired, 0, wanted + 100)
        trainer.update(x)
        assert torch.equal(trainer.silent, wanted)


def test_geometric_median_ignores_an_outlier():
    from sae.trainer import geometric_median

    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1e6, 1e6]])
    assert geometric_median(points).norm() < 2


def test_learning_rate_rises_and_falls_to_nearly_zero():
    from sae.training import TrainConfig

    config = TrainConfig(site="s", n_tokens=100 * 1024, lr=1.0)
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == 1.0 and rates[-1] == pytest.approx(0.05)
    assert rates[4:80] == [1.0] * 76


BAD = {
    "site": ({"site": "1.resid_pots"}, "Nearest: 1.resid_post"),
    "two sites": ({"site": "*.resid_post"}, "name one"),
    "architecture": ({"architecture": "topkk"}, "Nearest: topk"),
    "k": ({"k": 65}, "more than d_sae"),
    "k 0": ({"k": 0}, "at least 1"),
    "d_sae": ({"d_sae": 0}, "at least 1"),
    "lr": ({"lr": 0.0}, "lr must be above 0"),
    "batch": ({"batch_size": 100_000, "n_tokens": None}, "fewer|less"),
    "n_tokens": ({"n_tokens": 10}, "less than one batch"),
    "device": ({"device": "quantum"}, "no device"),
    "log_every": ({"log_every": 0}, "at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_one_line_and_write_nothing(case, tiny_store, tmp_path):
    import sae
    from interp.errors import InputError

    given, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        sae.train(tiny_store, **(SETTINGS | QUIET | given), out=tmp_path / "new")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_store_that_is_not_there_is_missing(tmp_path):
    import sae
    from interp.errors import MissingFile

    with pytest.raises(MissingFile):
        sae.train(tmp_path / "nothing", **SETTINGS, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_finished_output_is_overwritten_only_when_asked(straight, tiny_store, tmp_path):
    import shutil

    import sae
    from interp.errors import AlreadyExists, InputError

    out = tmp_path / "copy"
    shutil.copytree(straight, out)
    with pytest.raises(AlreadyExists, match="--overwrite"):
        sae.train(tiny_store, **SETTINGS, **QUIET, out=out)
    assert_same_files(out, straight)
    sae.train(tiny_store, **(SETTINGS | {"k": 2, "n_tokens": 640}), **QUIET, out=out, overwrite=True)
    assert sae.load(out).k == 2
    run = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(run | {"status": "interrupted"}))
    with pytest.raises(InputError, match="other settings"):
        sae.train(tiny_store, **SETTINGS, **QUIET, out=out)


def test_training_without_out_writes_nothing_and_gives_the_same_weights(straight, tiny_store, tmp_path, monkeypatch):
    import sae

    monkeypatch.chdir(tmp_path)
    dct = sae.train(tiny_store, **SETTINGS, **QUIET)
    assert list(tmp_path.iterdir()) == []
    for name, value in sae.load(straight).named_parameters():
        assert torch.equal(value, getattr(dct, name))


def test_the_log_of_a_running_training_can_be_read_before_a_checkpoint(tiny_store, tmp_path, monkeypatch):
    import sae
    from sae import logs
    from sae.trainer import Trainer

    update = Trainer.update

    def stopping(self, *x):
        if self.step == 25:
            raise KeyboardInterrupt
        return update(self, *x)

    monkeypatch.setattr(logs, "SECONDS", -1.0)
    monkeypatch.setattr(Trainer, "update", stopping)
    with pytest.raises(KeyboardInterrupt):
        sae.train(tiny_store, **SETTINGS, **QUIET, out=tmp_path / "stopped", checkpoint_every=1000)
    with open(tmp_path / "stopped" / "train_log.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [5, 10, 15, 20, 25]


def test_the_lines_of_the_log_go_to_tensorboard_too_once_each(tiny_store, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    import sae
    from sae.trainer import Trainer

    update = Trainer.update

    def stopping(self, *x):
        if self.step == 25:
            raise KeyboardInterrupt
        return update(self, *x)

    out, how = tmp_path / "logged", {"log_to": "tensorboard", "checkpoint_every": 10}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "update", stopping)
        sae.train(tiny_store, **SETTINGS, **QUIET, **how, out=out)
    sae.train(tiny_store, **SETTINGS, **QUIET, **how, out=out)
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    with open(out / "train_log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("loss", "fvu", "l0", "dead"):
        told = [(event.step, event.value) for event in events.Scalars(name)]
        assert told == [(int(row["step"]), pytest.approx(float(row[name]), rel=1e-6)) for row in rows]


def test_the_lines_of_the_log_go_to_weights_and_biases_too(tiny_store, tmp_path, monkeypatch):
    import types

    import sae
    from sae import logs

    told, ended = {}, []
    run = types.SimpleNamespace(log=lambda numbers, step: told.update({step: numbers}), finish=lambda: ended.append(1))
    fake = types.SimpleNamespace(init=lambda **how: told.update({"name": how["name"]}) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(logs, "find_spec", lambda name: fake)
    sae.train(tiny_store, **SETTINGS, **QUIET, log_to="wandb", out=tmp_path / "logged")
    assert told.pop("name") == "logged" and list(told) == list(range(5, 61, 5)) and ended == [1]
    assert set(told[60]) == {"loss", "fvu", "aux", "l0", "dead", "lr"}


@pytest.mark.parametrize(("to", "said"), [("tensorbord", "Nearest: tensorboard"), ("wandb", "pip install wandb")])
def test_a_logger_that_is_not_there_is_named_before_anything_is_written(tiny_store, tmp_path, monkeypatch, to, said):
    import sae
    from interp.errors import InputError
    from sae import logs

    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=said):
        sae.train(tiny_store, **SETTINGS, **QUIET, log_to=to, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()
