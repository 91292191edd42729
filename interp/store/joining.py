"""merge(): the shards of one corpus, recorded apart, as one store; no activation is copied."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from interp import runs
from interp.errors import InputError
from interp.store import format
from interp.store.manifest import append_manifest, close, read_manifest, write_description
from interp.store.reading import Store, open_finished


def merge(parts: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> Store:
    """Join the stores that `record` made with shard (0, n) to (n - 1, n), in that order, by hard links.

    InputError where one is missing, unfinished, or of another model, corpus or layout; and where `out` lies on another
    file system, to which a link cannot lead.
    """
    stores = [open_finished(part) for part in parts]
    if not stores:
        raise InputError("no store given: name the parts, e.g. interp store merge big-0of2 big-1of2 --out big.")
    stores.sort(key=lambda store: store.description["text"]["shard"][0])
    first = stores[0]
    n = first.description["text"]["shard"][1]
    for store in stores[1:]:
        if different := [k for k, v in _common(first).items() if _common(store)[k] != v]:
            raise InputError(
                f"{store.path} and {first.path} differ in {', '.join(different)}: not parts of one corpus."
            )
    have = [store.description["text"]["shard"][0] for store in stores]
    if have != list(range(n)):
        missing = ", ".join(f"{i}/{n}" for i in range(n) if have.count(i) != 1)
        raise InputError(f"a corpus of {n} shards has each once; not so: {missing}.")
    out = Path(out)
    config = {"parts": [store.name for store in stores]}
    with runs.recording(
        out, kind="merge", config=config, model=first.model, seed=0, device="cpu", overwrite=overwrite
    ):  # fmt: skip
        _join(stores, out)
    return Store(out)


def _common(store: Store) -> dict[str, Any]:
    """What all parts share."""
    leave = {"corpus", "text", "versions", "batch_size"}
    settings = {k: v for k, v in store.description["text"].items() if k != "shard"}
    return {k: v for k, v in store.description.items() if k not in leave} | {
        f"text.{k}": v for k, v in settings.items()
    }


def _join(stores: list[Store], out: Path) -> None:
    description = stores[0].description
    text = description["text"] | {"shard": [0, 1]}
    corpus = [store.description["corpus"] for store in stores]
    write_description(out, description | {"text": text, "corpus": {"parts": corpus}})
    end, row, joined = 0, 0, []
    for store in stores:
        for shard in store.shards:
            moved = replace(shard, file=f"shard-{len(joined):05d}.h5", first_row=row)
            (out / moved.file).unlink(missing_ok=True)
            try:
                os.link(store.path / shard.file, out / moved.file)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                raise InputError(f"{out} is on another file system than {store.path}: move one of them.") from None
            end = append_manifest(out, moved, after=end)
            joined.append(moved)
            row += shard.rows
    format.write_index(out, joined)
    close(out, read_manifest(out))
