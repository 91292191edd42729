"""A store that is killed, damaged or out of room: what was acknowledged stays, what is broken is named."""

import errno
import os
import random
import shutil
import signal
import time

import pytest

SETTINGS = {"sites": "*.resid_post", "context": 32, "progress": False, "n_tokens": 1900, "dtype": "bfloat16"}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Twenty windows of 32 tokens a shard."""
    from interp.store import recording

    monkeypatch.setattr(recording, "SHARD_BYTES", 32 * 32 * 2 * 20)


@pytest.fixture
def whole(tiny_model, tiny_text, tmp_path):
    from interp import record

    return record(tiny_model, str(tiny_text), out=tmp_path / "whole", **SETTINGS)


def in_child(work, *, kill_after=None):
    """Run `work` in a forked process; SIGKILL it after so many seconds. Returns its exit status (-9: killed)."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def recorded(tiny_model, tiny_text, out):
    from interp import record

    return lambda: record(tiny_model, str(tiny_text), out=out, **SETTINGS)


def acknowledged(path):
    """The shards that the manifest names, with their bytes."""
    from interp.store.manifest import read_manifest

    return {shard.file: (path / shard.file).read_bytes() for shard in read_manifest(path).shards}


def assert_same(path, whole):
    from interp.store.reading import Store
    from interp.store.verifying import verify

    assert verify(path) == []
    assert Store(path).shards == whole.shards
    for shard in whole.shards:
        assert (path / shard.file).read_bytes() == (whole.path / shard.file).read_bytes()
    assert (path / "index.h5").read_bytes() == (whole.path / "index.h5").read_bytes()


def test_killed_at_twenty_random_moments_and_continued_it_ends_with_the_same_bytes(
    tiny_model, tiny_text, whole, tmp_path
):
    started = time.time()
    assert in_child(recorded(tiny_model, tiny_text, tmp_path / "once")) == 0
    takes, rng, path = time.time() - started, random.Random(0), tmp_path / "s"
    kept: dict[str, bytes] = {}
    for round in range(20):
        if (path / "manifest.jsonl").exists() and len(kept) == len(whole.shards):
            shutil.rmtree(path)  # it got through: from the start again
            kept = {}
        in_child(recorded(tiny_model, tiny_text, path), kill_after=rng.uniform(0.05, 0.7) * takes)
        now = acknowledged(path)
        assert kept.items() <= now.items(), f"a shard was lost in round {round}"
        kept = now
    assert in_child(recorded(tiny_model, tiny_text, path)) in (0, 1)  # 1: it was finished before
    assert_same(path, whole)


WRITES = ("pwrite", "replace", "fsync", "ftruncate")


def dying(n, half):
    """Patches the calls that write: the process dies at the n-th (`half`: in the middle of it). Returns their names."""
    from interp.store import format

    names = []

    def last(name):
        names.append(name)
        return len(names) == n

    def patched(name, original):
        def call(*args):
            if last(name):
                if half:
                    original(args[0], args[1][: len(args[1]) // 2], args[2])
                os._exit(9)
            return original(*args)

        return call

    for name in WRITES:
        setattr(os, name, patched(name, getattr(os, name)))
    header = format._write_header

    def half_header(path, *args):
        if last("header"):
            if half:
                header(path, *args)
                os.truncate(path, path.stat().st_size // 2)
            os._exit(9)
        return header(path, *args)

    format._write_header = half_header
    return names


def test_dead_at_or_in_the_middle_of_every_single_write_nothing_acknowledged_is_lost(
    tiny_model, tiny_text, whole, tmp_path
):
    from interp.store.verifying import verify

    def counting():
        names = dying(0, False)
        recorded(tiny_model, tiny_text, tmp_path / "count")()
        (tmp_path / "names").write_text(" ".join(names))

    assert in_child(counting) == 0
    names = (tmp_path / "names").read_text().split()
    assert len(names) > 30 and {*names} >= {"pwrite", "replace", "fsync", "header"}
    for n, name in enumerate(names, 1):
        for half in (False, True) if name in ("pwrite", "header") else (False,):
            path = tmp_path / f"{n}{half}"

            def work(path=path, n=n, half=half):
                dying(n, half)
                recorded(tiny_model, tiny_text, path)()

            assert in_child(work) == 9
            kept = acknowledged(path) if path.exists() else {}
            damage = verify(path) if (path / "store.json").exists() else []
            assert damage == [] or [one.file for one in damage] == ["manifest.jsonl"], damage  # run.json came first
            in_child(recorded(tiny_model, tiny_text, path))  # 1 where only run.json was left to write
            assert kept.items() <= acknowledged(path).items()
            assert_same(path, whole)
            shutil.rmtree(path)


def test_every_one_of_a_thousand_bit_flips_and_truncations_is_found_and_named(whole):
    from interp.errors import InputError
    from interp.store.reading import Store
    from interp.store.verifying import verify

    rng, path = random.Random(0), whole.path
    files = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    assert {p.name for p in files} >= {"run.json", "store.json", "manifest.jsonl", "index.h5", "shard-00000.h5"}
    for number in range(1000):
        file = files[number % len(files)] if number % 2 else path / "shard-00001.h5"
        size = file.stat().st_size
        at = rng.randrange(size)
        with open(file, "r+b") as f:
            if number % 5 == 4:
                f.seek(at)
                cut = f.read()
                f.truncate(at)
            else:
                f.seek(at)
                byte = f.read(1)[0]
                f.seek(at)
                f.write(bytes([byte ^ (1 << rng.randrange(8))]))
        found = verify(path)
        assert found and any(one.file == file.name for one in found), (number, file.name, at, found)
        try:
            store = Store(path)
            store["1.resid_post"][:], store.statistics("0.resid_post")
        except InputError:
            pass
        with open(file, "r+b") as f:
            f.seek(at)
            f.write(cut if number % 5 == 4 else bytes([byte]))
    assert verify(path) == []


def test_a_damaged_block_is_named_with_its_rows_and_a_verified_read_refuses_it(whole):
    from interp.errors import DamagedStore
    from interp.store.verifying import verify

    shard = whole.shards[1]
    place = shard.datasets["activations/blocks.1.hook_resid_post"]
    with open(whole.path / shard.file, "r+b") as file:
        file.seek(place.offset + 5)
        file.write(b"\xff\xff")
    (damage,) = verify(whole.path)
    assert damage.file == shard.file and damage.dataset == "activations/blocks.1.hook_resid_post"
    assert damage.rows == f"{shard.first_row}-{shard.first_row + shard.rows - 1}"
    rows = whole["1.resid_post"]
    rows.read(0, len(rows))
    with pytest.raises(DamagedStore, match=f"{shard.file}: activations/blocks.1.hook_resid_post rows 640 to"):
        rows.read(0, len(rows), verify=True)


def test_missing_and_truncated_shards_and_newer_stores_are_refused_in_one_line(whole, tmp_path, capsys):
    from interp.cli import main
    from interp.errors import DamagedStore, InputError
    from interp.store.manifest import read_description, write_description
    from interp.store.reading import Store

    copy = tmp_path / "stores" / "copy"

    def fresh():
        shutil.rmtree(copy, ignore_errors=True)
        return shutil.copytree(whole.path, copy)

    os.truncate(fresh() / "shard-00001.h5", 5000)
    with pytest.raises(DamagedStore, match="shard-00001.h5 has 5,000 bytes in place of"):
        Store(copy)
    (fresh() / "shard-00000.h5").unlink()
    with pytest.raises(DamagedStore, match="shard-00000.h5 is missing"):
        Store(copy)
    assert main(["store", "verify", "copy", "--workspace", str(tmp_path)]) == 1
    assert "shard-00000.h5" in capsys.readouterr().out
    assert main(["store", "info", "copy", "--workspace", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    description = read_description(fresh())
    write_description(copy, description | {"format_version": 99})
    with pytest.raises(InputError, match="format 99: this version reads 2"):
        Store(copy)


def test_a_full_disk_is_one_line_and_what_was_finished_is_kept_and_continued(
    tiny_model, tiny_text, whole, tmp_path, monkeypatch
):
    from interp.store.manifest import read_manifest
    from interp.store.reading import Store

    original, calls = os.pwrite, [0]

    def full(fd, data, offset):
        calls[0] += 1
        if calls[0] > 14:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        recorded(tiny_model, tiny_text, tmp_path / "s")()
    monkeypatch.setattr(os, "pwrite", original)
    assert len(Store(tmp_path / "s").shards) >= 1
    assert not Store(tmp_path / "s").finished and read_manifest(tmp_path / "s").closing is None
    recorded(tiny_model, tiny_text, tmp_path / "s")()
    assert_same(tmp_path / "s", whole)
