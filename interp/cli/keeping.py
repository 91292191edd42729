"""What a command that looks keeps where it has --out: its settings, its place, its run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp import runs

if TYPE_CHECKING:
    from interp.decoder.model import Model

_NOT_KEPT = ("out", "workspace", "overwrite", "opening")


def settings(given: dict[str, Any]) -> dict[str, Any]:
    """A command's `locals()` at its first line, but for where the result goes and what it runs on."""
    kept = {key: value for key, value in given.items() if key not in _NOT_KEPT} | given["opening"].kept()
    return {key: str(value) if isinstance(value, Path) else value for key, value in kept.items()}


def place(out: str | None, workspace: Path, kind: str, overwrite: bool) -> Path | None:
    """The run's folder, free to be written; None where nothing is to be kept. AlreadyExists, InputError for a name."""
    if out is None:
        return None
    path = runs.place(workspace, "runs", out, kind)
    runs.check_free(path, overwrite)
    return path


def recorded(
    path: Path, kind: str, config: dict[str, Any], model: Model, seed: int, overwrite: bool
) -> AbstractContextManager[dict[str, Any]]:
    """`runs.recording` of what a model was asked."""
    return runs.recording(
        path, kind=kind, config=config, model=model.provenance(), seed=seed, device=model.where,
        overwrite=overwrite,
    )  # fmt: skip
