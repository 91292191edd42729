"""Two processes with half of each batch train what one does with the whole of it."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ports import free_port

ROOT = Path(__file__).parent.parent
COMMON = {"d_sae": 64, "k": 4, "n_tokens": 64 * 40, "batch_size": 64, "dead_after": 300, "lr": 3e-3}
KINDS = ("topk", "batchtopk", "jumprelu", "standard")


def command(store, out, *more):
    flags = [f for key, value in COMMON.items() for f in (f"--{key.replace('_', '-')}", str(value))]
    return [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()), "-m",
        "interp.cli", "sae", "train", "--store", str(store.path), "--site", "1.resid_post", "--device", "cpu",
        "--log-every", "1", "--workspace", str(out.parent.parent), "--out", out.name, *flags, *more,
    ]  # fmt: skip


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def two_ranks(tiny_store, tmp_path_factory):
    """Four dictionaries on one pass, by two processes."""
    out = tmp_path_factory.mktemp("ranks") / "saes" / "two"
    ran = subprocess.run(
        command(tiny_store, out, "--architecture", ",".join(KINDS)), cwd=ROOT, env=environment(), capture_output=True,
        text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    return {kind: out.with_name(f"two-{kind}") for kind in KINDS}


@pytest.fixture(scope="module")
def halves(tiny_store):
    """The sources of both ranks, as each of them sees the store."""
    from sae.batches import StoreSource

    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        for rank in "01":
            patch.setenv("RANK", rank)
            found.append(StoreSource(tiny_store, held_out=0.01))
    return found


def test_the_ranks_read_rows_of_their_own_as_many_each(halves, tiny_store):
    from sae.batches import StoreSource

    one, other = (source.rows for source in halves)
    assert not set(one) & set(other) and abs(len(one) - len(other)) <= 1
    assert np.array_equal(np.sort(np.concatenate([one, other])), StoreSource(tiny_store, held_out=0.01).rows)
    assert halves[0].n_rows == halves[1].n_rows == 2 * min(len(one), len(other))


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_have_the_losses_and_the_weights_of_one_with_the_whole_batch(two_ranks, halves, kind):
    import sae
    from sae.config import TrainConfig
    from sae.trainer import Trainer

    config = TrainConfig(site="blocks.1.hook_resid_post", architecture=kind, **COMMON)
    half = config.batch_size // 2
    per_epoch = halves[0].n_rows // config.batch_size
    steps = []
    for epoch in range(2):
        parts = [list(s.epoch([config.site], half, seed=0, epoch=epoch, first=0))[:per_epoch] for s in halves]
        steps += [torch.cat([a[config.site], b[config.site]]) for a, b in zip(*parts, strict=True)]
    n_sample = -(-min(32_768, halves[0].n_rows) // config.batch_size)
    sample = torch.cat([x[:half] for x in steps[:n_sample]] + [x[half:] for x in steps[:n_sample]])
    trainer = Trainer(config, sample)
    losses = [trainer.update(x) for x in steps[: config.n_steps]]
    with open(two_ranks[kind] / "train_log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == config.n_steps == 40
    for name in ("loss", "fvu", "l0", "aux"):
        expected = np.array([float(report[name]) for report in losses])
        np.testing.assert_allclose([float(row[name]) for row in rows], expected, rtol=1e-5, atol=1e-6)
    assert [int(float(row["dead"])) for row in rows] == [int(report["dead"]) for report in losses]
    if kind == "topk":
        assert any(int(row["dead"]) for row in rows), "AuxK was not at work"
    saved, single = sae.load(two_ranks[kind]), trainer.finished()
    torch.testing.assert_close(saved.W_dec, single.W_dec, rtol=1e-4, atol=1e-5)


KILLED = """
import os, signal, sys
from interp.cli import main
from sae.trainer import Trainer
update = Trainer.update
def killed(self, x):
    if self.step == 25 and os.environ["RANK"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, x)
Trainer.update = killed
sys.exit(main(sys.argv[1:]))
"""


def test_ranks_that_are_killed_continue_to_the_same_bits(tiny_store, tmp_path, two_ranks):
    out = tmp_path / "saes" / "killed"
    (tmp_path / "killed.py").write_text(KILLED)
    whole = command(tiny_store, out, "--checkpoint-every", "10", "--architecture", "topk")
    at = whole.index("-m", 3)
    once = [*whole[:at], str(tmp_path / "killed.py"), *whole[at + 2 :]]
    assert subprocess.run(once, cwd=ROOT, env=environment(), capture_output=True).returncode != 0
    assert (out / "checkpoint.safetensors").exists()
    ran = subprocess.run(whole, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    for name in ("sae_weights.safetensors", "train_log.csv"):
        assert (out / name).read_bytes() == (two_ranks["topk"] / name).read_bytes()


def test_a_batch_that_does_not_divide_is_refused(tiny_store, monkeypatch):
    import sae
    from interp.errors import InputError

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"batch_size \(33\) is no multiple of the 2 ranks"):
        sae.train(tiny_store, site="1.resid_post", batch_size=33, d_sae=64, k=4)
