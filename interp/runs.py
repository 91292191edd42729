"""A result's folder: `<workspace>/{runs,stores,saes}/<name>/run.json` says what made it and whether it is finished."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash

from interp.errors import AlreadyExists, InputError, MissingFile

FOLDERS = ("runs", "stores", "saes")
WORKSPACE = Path("workspace")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def write_text(path: Path, text: str) -> None:
    """Write by atomic rename: a reader sees the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_run(path: Path, run: dict[str, Any]) -> None:
    """run.json, with the xxh3 of what stands before it as its last key."""
    run = {key: value for key, value in run.items() if key != "xxh3"}
    write_json(path / "run.json", run | {"xxh3": _hash(run)})


def _hash(run: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(run, ensure_ascii=False).encode())


def is_sealed(folder: Path) -> bool:
    """Whether run.json is as it was written, to the byte. MissingFile, InputError as `read`."""
    run = read(folder)
    kept = {key: value for key, value in run.items() if key != "xxh3"}
    text = json.dumps(run, indent=2, ensure_ascii=False) + "\n"
    whole = (Path(folder) / "run.json").read_text(encoding="utf-8") == text
    return whole and run.get("xxh3") == _hash(kept) and list(run)[-1] == "xxh3"


def read_json(path: Path, what: str = "", *, wrong: type[InputError] = InputError) -> dict[str, Any]:
    """A JSON object. MissingFile where there is no file, `wrong` where it is something else; `what` says in the message
    what the folder is not, then."""
    end = f": {what}." if what else "."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFile(f"no {path.name} in {path.parent}{end}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise wrong(f"{path} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise wrong(f"{path} holds no keys{end}")
    return content


def read(folder: Path) -> dict[str, Any]:
    """The run.json of a folder. MissingFile where there is none, InputError where it is not JSON."""
    return read_json(Path(folder) / "run.json", "not a result of the workbench")


def is_done(folder: Path) -> bool:
    return (Path(folder) / "run.json").exists() and read(folder).get("status") == "done"


def listing(workspace: Path) -> list[dict[str, Any]]:
    """Every result in a workspace, newest first: its run.json with `name`, `folder` and `path`. Unreadable ones have
    status "unreadable"."""
    found = []
    for folder in FOLDERS:
        for path in sorted(Path(workspace, folder).glob("*/run.json")):
            try:
                run = read(path.parent)
            except InputError:
                run = {"kind": "?", "status": "unreadable", "started": ""}
            found.append(run | {"name": path.parent.name, "folder": folder, "path": path.parent})
    return sorted(found, key=lambda run: str(run.get("started") or ""), reverse=True)


def place(workspace: Path, folder: str, name: str | None, kind: str) -> Path:
    """The folder of a result called `name`; a name is made of `kind` and the time where none is given."""
    assert folder in FOLDERS
    name = name or f"{kind}-{datetime.now():%Y%m%d-%H%M%S}"
    if not _NAME.fullmatch(name):
        raise InputError(f'"{name}" cannot name a result: letters, digits, ".", "_" and "-", e.g. --out ioi-heads.')
    return Path(workspace) / folder / name


def versions() -> dict[str, str]:
    """Of what numbers depend on."""
    return dict(_versions())


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    names = {
        "interp": "interp-workbench",
        "torch": "torch",
        "transformers": "transformers",
        "transformer_lens": "transformer-lens",
    }
    return tuple((short, metadata.version(name)) for short, name in names.items())


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_free(path: Path, overwrite: bool) -> None:
    """AlreadyExists if `path` holds a finished result, or files that are not ours."""
    path = Path(path)
    if not path.exists() or (path.is_dir() and all(f.name.startswith(".run.json.") for f in path.iterdir())):
        return  # nothing there, or what a kill left of the very first file
    if not (path / "run.json").exists():
        raise AlreadyExists(f"{path} exists and is not a result of the workbench: choose another --out.")
    if is_done(path) and not overwrite:
        raise AlreadyExists(f"{path} holds a finished result: choose another --out, or pass --overwrite.")


@contextmanager
def recording(
    path: Path,
    *,
    kind: str,
    config: dict[str, Any],
    model: dict[str, Any] | None,
    seed: int,
    device: str,
    overwrite: bool = False,
) -> Iterator[dict[str, Any]]:
    """A result being made in `path`: run.json says `running` inside the block, then `done`, `failed` or `interrupted`.

    What an unfinished run of the same `config` and model left is kept, to be continued; of another, InputError.
    Yields the content of run.json.
    """
    path = Path(path)
    check_free(path, overwrite)
    if path.exists():
        os.close(_alone(path))
    previous = read(path) if (path / "run.json").exists() else None
    if previous is not None:
        same = all(
            previous.get(k) == v for k, v in (("kind", kind), ("config", config), ("model", model), ("seed", seed))
        )
        if overwrite and (not same or previous.get("status") == "done"):
            shutil.rmtree(path)
            previous = None
        elif not same:
            raise InputError(f"{path} holds an unfinished {previous.get('kind')} with other settings: choose another "
                             "--out, or pass --overwrite.")  # fmt: skip
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    lock = _alone(path)
    run = {
        "kind": kind, "status": "running", "command": [Path(sys.argv[0]).name, *sys.argv[1:]], "config": config,
        "model": model, "seed": seed, "versions": versions(), "started": (previous or {}).get("started") or _now(),
        "finished": None, "device": device,
    }  # fmt: skip
    write_run(path, run)
    try:
        yield run
        run["status"] = "done"
    except InputError:
        if path in made:  # wrong input leaves nothing behind
            shutil.rmtree(path)
            for folder in made[1:]:
                folder.rmdir()
            made = None
        else:
            run["status"] = "failed"
        raise
    except (KeyboardInterrupt, SystemExit):
        run["status"] = "interrupted"
        raise
    except BaseException as error:
        run |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        if made is not None:
            run["finished"] = _now()
            write_run(path, run)
        os.close(lock)


def _alone(path: Path) -> int:
    """A descriptor of the folder that no other process can have until it is closed, or this process ends. InputError
    where another has it."""
    import fcntl

    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise InputError(f"{path} is being made by another process: wait for it, or choose another --out.") from None
    return lock
