"""How fast a store is written, read, shuffled and recorded, as ratios to the plainest thing that moves the same bytes.

    python tests/bench/store.py [--rounds 5] [--rows 262144] [--folder /tmp] [--only write,read,shuffle]
    python tests/bench/store.py --only gpu          on a machine with a GPU

Contenders take turns in one run, so that a busy machine slows all of them alike; a ratio is of medians. Rows are 768
values of bfloat16 (1.5 kB), one hook point, unless it says otherwise. Reads are warm: from the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from recording import bench_gpu, bench_record
from timing import medians, say

D = 768


def arrays(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "activations/blocks.0.hook_resid_post": rng.integers(0, 2**16, (n, D), np.uint16),
        "tokens": np.ones(n, np.int32), "sequence": np.arange(n) // 128, "document": np.zeros(n, np.int64),
        "position": (np.arange(n) % 128).astype(np.int32),
    }  # fmt: skip


def write_one(folder: Path, number: int, parts: dict[str, np.ndarray], end: int, sync: bool) -> int:
    from interp.store import format
    from interp.store.manifest import append_manifest

    statistics_ = {"blocks.0.hook_resid_post": {"sum": np.zeros(D), "sumsq": np.zeros(D)}}
    n = len(parts["tokens"])
    shard = format.write_shard(
        folder, number, parts, statistics_, about={"dtype": "bfloat16"}, first_row=number * n, first_window=0,
        windows=n // 128, next={"last": False}, sync=sync,
    )  # fmt: skip
    return append_manifest(folder, shard, after=end, sync=sync)


def bench_write(folder: Path, n: int, rounds: int) -> None:
    per_shard = 87_040  # 128 MiB of 1.5 kB rows
    data = arrays(n)
    shards = [{k: v[i : i + per_shard] for k, v in data.items()} for i in range(0, n - per_shard + 1, per_shard)]

    def ours(sync: bool) -> None:
        shutil.rmtree(folder / "ours", ignore_errors=True)
        (folder / "ours").mkdir()
        end = 0
        for number, parts in enumerate(shards):
            end = write_one(folder / "ours", number, parts, end, sync)

    def plain(sync: bool) -> None:
        (folder / "plain").unlink(missing_ok=True)
        with open(folder / "plain", "wb", buffering=0) as file:
            for parts in shards:
                for array in parts.values():
                    view = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
                    while view:
                        view = view[file.write(view) :]
            if sync:
                os.fsync(file.fileno())

    size = sum(a.nbytes for parts in shards for a in parts.values()) / 2**20
    took = medians({"ours": lambda: ours(False), "plain": lambda: plain(False)}, rounds)
    say("writing, checksums included / plain write()", took["plain"] / took["ours"], 0.8,
        f"{size / took['ours']:,.0f} MiB/s of {size:,.0f} MiB")  # fmt: skip
    took = medians({"ours": lambda: ours(True), "plain": lambda: plain(True)}, rounds)
    say("writing, every shard synced / plain write() + one fsync", took["plain"] / took["ours"], 0.75,
        f"{size / took['ours']:,.0f} MiB/s")  # fmt: skip


def made_store(folder: Path, n: int, shard_rows: int = 87_040):
    """A store of random rows, without a model."""
    from interp import runs
    from interp.store import format
    from interp.store.manifest import close, read_manifest, write_description
    from interp.store.reading import Store

    path = folder / f"store{n}"
    if not path.exists():
        path.mkdir()
        data, end = arrays(n), 0
        write_description(path, {
            "format_version": format.VERSION, "model": {"name": "random", "fingerprint": "none"}, "bos": None,
            "sites": ["blocks.0.hook_resid_post"], "patterns": [], "context": 128, "dtype": "bfloat16",
        })  # fmt: skip
        for number, start in enumerate(range(0, n, shard_rows)):
            end = write_one(path, number, {k: v[start : start + shard_rows] for k, v in data.items()}, end, False)
        format.write_index(path, read_manifest(path).shards)
        close(path, read_manifest(path))
        runs.write_run(path, {"kind": "record", "status": "done"})
    return Store(path)


def bench_read(folder: Path, n: int, rounds: int) -> None:
    store = made_store(folder, n)
    rows = store["0.resid_post"]
    buffer = np.empty(format_block() * D, np.uint16)

    def plain() -> None:
        for shard in store.shards:
            place = shard.datasets["activations/blocks.0.hook_resid_post"]
            fd = os.open(store.path / shard.file, os.O_RDONLY)
            for at in range(0, place.n_bytes, buffer.nbytes):
                os.preadv(fd, [memoryview(buffer.view(np.uint8))[: place.n_bytes - at]], place.offset + at)
            os.close(fd)

    def ours(verify: bool) -> None:
        for _ in rows.blocks(verify=verify):
            pass

    took = medians({"plain": plain, "ours": lambda: ours(False), "verified": lambda: ours(True)}, rounds)
    size = rows.places[0].row_bytes * len(rows) / 2**20
    say("sequential reading / preadv", took["plain"] / took["ours"], 0.9, f"{size / took['ours']:,.0f} MiB/s")
    say("sequential reading, verified / preadv", took["plain"] / took["verified"], 0.75)


def format_block() -> int:
    from interp.store import format

    return format.BLOCK


def bench_shuffle(folder: Path, n: int, rounds: int) -> None:
    """The gather alone: the same rows in the same order, out of an array in RAM and out of the store."""
    from interp.store.shuffling import gather

    store = made_store(folder, n)
    rows = store["0.resid_post"]
    held = [np.array(rows._part(i)) for i in range(len(rows.places))]
    order = np.random.default_rng(0).permutation(n)
    batches = [np.sort(order[i : i + 4096]) for i in range(0, n - 4095, 4096)]

    class InMemory:
        starts, places, shape, dtype = rows.starts, rows.places, rows.shape, rows.dtype

        def _part(self, i):
            return held[i]

    memory = InMemory()
    took = medians(
        {
            "memory": lambda: [gather(memory, idx) for idx in batches],
            "store": lambda: [gather(rows, idx) for idx in batches],
        },
        rounds,
    )
    size = len(batches) * 4096 * rows.places[0].row_bytes / 2**20
    say("shuffled batches of 1.5 kB rows / the same gather in RAM", took["memory"] / took["store"], 0.9,
        f"{size / took['store']:,.0f} MiB/s")  # fmt: skip


def bench_quality() -> None:
    """Variance of batch means against batches drawn independently: rows alike inside a document of 128 tokens
    (correlation .2), and a drift along the source (.02). On row numbers alone."""
    from interp.store import shuffling

    n, batch = 1 << 23, 4096
    rng = np.random.default_rng(0)
    document = np.repeat(rng.standard_normal(n // 128), 128) * np.sqrt(0.2)
    drift = np.sqrt(12 * 0.02) * (np.arange(n) / n - 0.5)
    noise = rng.standard_normal(n)
    sources = {"documents": document + np.sqrt(0.8) * noise, "drift": drift + np.sqrt(0.98) * noise}

    class Numbers:
        """A store whose activation is the row's number."""

        n_rows, description = n, {"bos": None}

    class Rows:
        dtype, shape = "<i8", (n,)

        class place:
            stored = np.dtype("<i8")

        places = [place]

        def read(self, start, stop):
            return np.arange(start, stop)

    plain = shuffling._load
    shuffling._load = lambda rows, idx, device: torch.from_numpy(idx.copy())
    try:
        batches = [b[0].numpy() for b in shuffling._from_buffer(Numbers(), [Rows()], rng, batch, 0, None, "cpu")]
    finally:
        shuffling._load = plain
    assert len(np.unique(np.concatenate(batches))) == n
    for name, value in sources.items():
        means = np.array([value[b].mean() for b in batches])
        ratio = means.var() / (value.var() / batch)
        what, error = f"variance of batch means against iid, {name}", np.sqrt(2 / len(batches))
        fine = "yes" if ratio <= 1.1 else "NO"
        print(f"{what:58s} {ratio:6.2f}  (at most 1.10: {fine})  {len(batches)} batches, standard error {error:.2f}")


def bench_memory(folder: Path) -> None:
    """Peak memory of writing and reading back 1 and 8 GiB, each in a process of its own."""
    peaks = {}
    for gib in (1, 8):
        command = [sys.executable, __file__, "--child", str(gib), "--folder", str(folder)]
        peaks[gib] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    say("peak memory of 1 GiB / of 8 GiB of store", peaks[1] / peaks[8], 0.9,
        f"{peaks[1]:,.0f} and {peaks[8]:,.0f} MiB")  # fmt: skip


def child(folder: Path, gib: int) -> None:
    from interp.store.reading import Store
    from interp.store.writing import Ring, Slot

    path = folder / f"memory{gib}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    n = 87_040
    name = "activations/blocks.0.hook_resid_post"
    source = torch.randint(0, 2**15, (n, D), dtype=torch.int16).view(torch.bfloat16)
    columns = {
        "tokens": np.ones(n, np.int32), "sequence": np.arange(n), "document": np.zeros(n, np.int64),
        "position": np.zeros(n, np.int32),
    }  # fmt: skip
    with Ring(path, lambda: Slot({name: ((n, D), torch.bfloat16)}, pin=False), sync=False) as ring:
        for _ in range(gib * 8):
            slot = ring.slot()
            slot.data[name].copy_(source)
            ring.send(slot, lambda slot=slot: {
                "arrays": columns | slot.arrays({name: n}), "about": {"dtype": "bfloat16"}, "windows": n // 128,
                "statistics": {}, "first_window": 0, "next": {"last": False},
            })  # fmt: skip
    from interp import runs
    from interp.store import format
    from interp.store.manifest import close, read_manifest, write_description

    write_description(path, {"format_version": format.VERSION, "model": {}, "bos": None, "context": 128,
                                    "sites": [name.split("/")[1]], "patterns": []})  # fmt: skip
    format.write_index(path, read_manifest(path).shards)
    close(path, read_manifest(path))
    runs.write_run(path, {"kind": "record", "status": "done"})
    for _ in Store(path)["0.resid_post"].blocks(verify=True):
        pass
    shutil.rmtree(path)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


SAELENS = """
import shutil, sys, time
from types import SimpleNamespace
import numpy as np, torch
from datasets import Array2D, Features, Sequence, Value, disable_progress_bars
from sae_lens.cache_activations_runner import CacheActivationsRunner
disable_progress_bars()
acts = torch.from_numpy(np.load(sys.argv[1]))
tokens = torch.ones(len(acts), dtype=torch.int32)
runner, windows = object.__new__(CacheActivationsRunner), len(acts) // 128
runner.cfg = SimpleNamespace(hook_name="resid", n_seq_in_buffer=windows, d_in=acts.shape[1])
runner.context_size = 128
runner.features = Features({"resid": Array2D(shape=(128, acts.shape[1]), dtype="float32"),
                            "token_ids": Sequence(Value(dtype="int32"), length=128)})
for _ in range(int(sys.argv[3])):
    shutil.rmtree(sys.argv[2], ignore_errors=True)
    before = time.perf_counter()
    runner._create_shard((acts, tokens)).save_to_disk(sys.argv[2], num_shards=1)
    print(time.perf_counter() - before)
"""


def bench_saelens(folder: Path, rounds: int, python: str | None) -> None:
    """One shard of float32 rows, written by SAELens' cache writer (`CacheActivationsRunner`, without its model), and by
    ours."""
    if python is None:
        print("saelens: give --libraries, the python of a venv with sae-lens")
        return
    n = 16_384
    values = np.random.default_rng(0).normal(size=(n, D)).astype(np.float32)
    np.save(folder / "acts.npy", values)
    columns = {"tokens": np.ones(n, np.int32), "sequence": np.arange(n) // 128, "document": np.zeros(n, np.int64),
               "position": (np.arange(n) % 128).astype(np.int32)}  # fmt: skip
    parts = {"activations/blocks.0.hook_resid_post": values} | columns

    def ours() -> None:
        shutil.rmtree(folder / "ours", ignore_errors=True)
        (folder / "ours").mkdir()
        write_one(folder / "ours", 0, parts, 0, sync=False)

    command = [python, "-c", SAELENS, str(folder / "acts.npy"), str(folder / "theirs"), str(rounds)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs, own = statistics.median(map(float, told.split())), medians({"ours": ours}, rounds)["ours"]
    say("SAELens' cache writer / ours, seconds", theirs / own, None, f"{values.nbytes / 2**20 / theirs:,.0f} and "
        f"{values.nbytes / 2**20 / own:,.0f} MiB/s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=262_144)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--only", default="write,read,shuffle,quality,record,memory")
    parser.add_argument("--libraries", help="the python of a venv with sae-lens, for --only saelens")
    parser.add_argument("--child", type=int)
    s = parser.parse_args()
    if s.child:
        return child(s.folder, s.child)
    print(json.dumps({"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}))
    with tempfile.TemporaryDirectory(dir=s.folder) as name:
        folder = Path(name)
        benches = {
            "write": lambda: bench_write(folder, s.rows, s.rounds),
            "read": lambda: bench_read(folder, s.rows, s.rounds),
            "shuffle": lambda: bench_shuffle(folder, s.rows, s.rounds),
            "quality": bench_quality,
            "record": lambda: bench_record(folder, s.rounds),
            "memory": lambda: bench_memory(folder),
            "saelens": lambda: bench_saelens(folder, s.rounds, s.libraries),
            "gpu": lambda: bench_gpu(folder, s.rounds),
        }
        for which in s.only.split(","):
            benches[which]()


if __name__ == "__main__":
    main()
