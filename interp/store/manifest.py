"""manifest.jsonl, which says what a store holds, and store.json, which says what it is. What has a line is whole.

Each line ends in its own xxh3. A kill may leave part of a last one: it is cut before the next is written. The line that
closes a finished store holds its counts and the hashes of its other files.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from interp import runs
from interp.errors import DamagedStore, InputError
from interp.store.format import VERSION, Place, Shard, write_all


def seal(content: dict[str, Any]) -> str:
    """`content` as one line of JSON whose last key is the xxh3 of what stands before it."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return f'{text[:-1]},"xxh3":"{xxhash.xxh3_64_hexdigest(text.encode())}"}}'


def unseal(line: bytes) -> dict[str, Any] | None:
    """What `seal` was given; None where a byte is not as it was."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return None
    body, mark, _ = text.rpartition(',"xxh3":"')
    if not mark or f'{body},"xxh3":"{xxhash.xxh3_64_hexdigest((body + "}").encode())}"}}' != text:
        return None
    return json.loads(body + "}")


@dataclass(frozen=True)
class Manifest:
    """Finished shards in order; `closing` is the last line of a finished store: its counts and the hashes of its
    other files."""

    shards: list[Shard]
    closing: dict[str, Any] | None
    n_bytes: int
    """Bytes of the lines that are whole: a kill may have left part of another."""


def read_manifest(folder: Path) -> Manifest:
    """DamagedStore where a line is not as it was written; a torn last line (a kill in mid-write) is not one."""
    path = folder / "manifest.jsonl"
    raw = path.read_bytes() if path.exists() else b""
    lines = raw.split(b"\n")
    shards: list[Shard] = []
    closing, n_bytes = None, 0
    for number, line in enumerate(lines, 1):
        if not line and number == len(lines):
            break
        content = unseal(line)
        if content is None:
            if any(lines[number:]) or closing:
                raise DamagedStore(f"{path} line {number} is not as it was written.")
            break
        if number == len(lines):  # whole but for its end of line: not acknowledged
            break
        n_bytes += len(line) + 1
        if content.get("format_version", VERSION) > VERSION:
            raise InputError(
                f"{folder} is of format {content['format_version']}: this version reads up to {VERSION}. "
                "Next: pip install -U interp-workbench."
            )
        if content.get("closed"):
            closing = content
        else:
            places = {name: Place(**p | {"shape": tuple(p["shape"])}) for name, p in content.pop("datasets").items()}
            shards.append(Shard(**content | {"documents": tuple(content["documents"]), "datasets": places}))
    return Manifest(shards, closing, n_bytes)


def append_manifest(folder: Path, content: Shard | dict[str, Any], *, after: int, sync: bool = True) -> int:
    """Write a line after the first `after` bytes (what a kill left behind them is cut). Returns where it ends."""
    line = seal(asdict(content) if isinstance(content, Shard) else content).encode() + b"\n"
    fd = os.open(folder / "manifest.jsonl", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if os.fstat(fd).st_size > after:
            os.ftruncate(fd, after)
        write_all(fd, memoryview(line), after)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)
    return after + len(line)


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """store.json."""
    runs.write_json(folder / "store.json", description)


def read_description(folder: Path) -> dict[str, Any]:
    """store.json. MissingFile where there is none, DamagedStore where it cannot be read, InputError where it is of
    another format."""
    path = folder / "store.json"
    description = runs.read_json(path, "not a store", wrong=DamagedStore)
    version = description.get("format_version")
    if not isinstance(version, int):
        raise DamagedStore(f"{path} does not say of which format the store is.")
    if version != VERSION:
        newer = "pip install -U interp-workbench" if version > VERSION else "record it again"
        raise InputError(f"{folder} is of format {version}: this version reads {VERSION}. Next: {newer}.")
    return description


def close(folder: Path, manifest: Manifest) -> None:
    """The last line of the manifest: the store is whole."""
    files = {name: file_hash(folder / name) for name in ("store.json", "index.h5")}
    shards = manifest.shards
    content = {
        "closed": True, "format_version": VERSION, "shards": len(shards), "rows": sum(s.rows for s in shards),
        "files": files,
    }  # fmt: skip
    append_manifest(folder, content, after=manifest.n_bytes)


def file_hash(path: Path) -> str:
    """xxh3-128 of a whole file."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
