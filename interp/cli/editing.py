"""`--edit L3H5=0`: the edits that a command is asked to run under, with the dictionaries and directions they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.cli.batch import dictionary
from interp.errors import InputError, MissingFile

if TYPE_CHECKING:
    from interp.decoder.hooks import Edit
    from interp.decoder.model import Model


def read(specs: Sequence[str] | None, model: Model, workspace: str | Path) -> dict[str, Edit]:
    """Hook point -> edit. A dictionary is one of <workspace>/saes; a direction a run of `interp direction` or a
    safetensors file."""
    from interp.causal import edits

    latents, vectors = edits.owners(specs or [])
    return edits.parse(
        model, specs or [],
        dictionaries={name: dictionary(name, str(workspace), model) for name in latents},
        directions={name: direction(name, workspace, model) for name in vectors},
    )  # fmt: skip


def direction(name: str, workspace: str | Path, model: Model) -> Any:
    """The vector of a run of `interp direction`, or of a safetensors file. MissingFile where there is neither."""
    run = Path(workspace) / "runs" / name / "direction.safetensors"
    path = run if run.exists() else Path(name)
    if (run.parent / "direction.json").is_file():
        from interp.causal.directions import Direction

        return Direction.load(run.parent, model).vector.to(model.device)
    if not path.is_file():
        raise MissingFile(f'no direction "{name}": neither a run in {run.parent.parent} nor a safetensors file.')
    return vector(path.stem, path, model)


def vector(name: str, path: Path, model: Model) -> Any:
    """The vector in a safetensors file: the tensor of that name, or its only one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise MissingFile(f'no file "{path}" for the direction "{name}".')
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}.") from None
    found = tensors.get(name, next(iter(tensors.values())) if len(tensors) == 1 else None)
    if found is None:
        raise InputError(f'{path} has the tensors {", ".join(tensors)}, none called "{name}".')
    if tuple(found.shape) != (model.d_model,) or not found.float().norm() > 0:
        raise InputError(
            f"{path}: a direction is a vector of {model.d_model} numbers, not all 0; {tuple(found.shape)}."
        )
    return found.to(model.device)
