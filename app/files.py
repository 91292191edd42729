"""Files that the app writes: never outside the workspace, never by two at once."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from interp.errors import MissingFile


def inside(path: Path, workspace: Path) -> Path:
    """`path`, if following links it is in the workspace; else MissingFile."""
    if not path.resolve().is_relative_to(workspace.resolve()):
        raise MissingFile(f"{path.name} leads out of the workspace: copy it into the workspace to look at it.")
    return path


def hold(path: Path) -> IO[str]:
    """`path`, held once nobody else does: no other process and no other thread of this one, for `flock` is by open
    file. It is free when the file is closed, here and in every process that it was handed to."""
    file = open(path, "a+")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path` within the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path):
        yield


def held(path: Path) -> bool:
    """Whether anybody holds `path`; a process that has ended, however it ended, does not."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
