"""verify(): every byte of a store against its checksums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from interp import runs
from interp.errors import DamagedStore, InputError, MissingFile
from interp.store import format
from interp.store.manifest import Manifest, file_hash, read_description, read_manifest


@dataclass(frozen=True)
class Damage:
    """What is not as it was written."""

    file: str
    dataset: str
    """The dataset, or "" where it is the file as such."""
    rows: str
    """The first and last row of the store that it concerns, "" where it concerns none or all."""
    what: str

    def __str__(self) -> str:
        where = " ".join(part for part in (self.file, self.dataset, self.rows and f"rows {self.rows}") if part)
        return f"{where}: {self.what}"


def verify(folder: str | Path, *, progress: Callable[[int], None] = lambda n_bytes: None) -> list[Damage]:
    """Reads a store whole; empty where every byte is as it was written. MissingFile where there is no store.

    An unfinished store is checked as far as it goes. `progress` is told how many bytes were read.
    """
    folder = Path(folder)
    if not any((folder / name).exists() for name in ("store.json", "manifest.jsonl")):
        raise MissingFile(f"no store at {folder}: it has neither store.json nor manifest.jsonl.")
    found = list(_run(folder))
    try:
        done = not found and runs.is_done(folder)
        manifest = read_manifest(folder)
    except InputError as error:
        return [*found, Damage("manifest.jsonl", "", "", str(error))]
    if manifest.closing:
        found += _closing(folder, manifest)
    elif done:
        found.append(
            Damage("manifest.jsonl", "", "", "its last line, which closes the store, is not as it was written.")
        )
    if done or manifest.shards:
        found += _description(folder)
    for shard in manifest.shards:
        found += _shard(folder, shard)
        progress(shard.size)
    known = {shard.file for shard in manifest.shards}
    if manifest.closing:
        for path in sorted(folder.glob("shard-*.h5")):
            if path.name not in known:
                found.append(Damage(path.name, "", "", "the manifest does not know it."))
    return found


def _run(folder: Path) -> Iterator[Damage]:
    try:
        if not runs.is_sealed(folder):
            yield Damage("run.json", "", "", "is not as it was written.")
    except InputError as error:
        yield Damage("run.json", "", "", str(error))


def _description(folder: Path) -> Iterator[Damage]:
    try:
        read_description(folder)
    except InputError as error:
        yield Damage("store.json", "", "", str(error))


def _closing(folder: Path, manifest: Manifest) -> Iterator[Damage]:
    closing = manifest.closing or {}
    if closing["shards"] != len(manifest.shards) or closing["rows"] != sum(s.rows for s in manifest.shards):
        yield Damage("manifest.jsonl", "", "", f"names {len(manifest.shards)} shards of {closing['shards']}.")
    for name, hash in closing["files"].items():
        if not (folder / name).exists():
            yield Damage(name, "", "", "is missing.")
        elif file_hash(folder / name) != hash:
            yield Damage(name, "", "", "is not as it was written.")


def _shard(folder: Path, shard: format.Shard) -> Iterator[Damage]:
    rows = f"{shard.first_row}-{shard.first_row + shard.rows - 1}"
    try:
        format.check_shard(folder, shard)
    except DamagedStore as error:
        yield Damage(shard.file, "", rows, str(error))
        if not (folder / shard.file).exists():
            return
    for name, first, last in format.damaged_blocks(folder, shard):
        start = 0 if name.startswith("patterns/") else shard.first_row
        yield Damage(shard.file, name, f"{start + first}-{start + last}", "is not as it was written.")
