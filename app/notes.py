"""What a person says of a component: a label beside the result, and lists of components in the workspace.

`<result>/notes.json` holds the labels of one result by component ("L3H5", a latent's number, a node of a circuit) and
the pinned nodes of a graph; `<workspace>/lists/NAME.json` holds components of many results. A change reads the file,
changes one entry and renames the new file into place while it holds a lock: two sessions at once lose nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.files import inside, locked
from interp import runs
from interp.errors import InputError

LONGEST = 200
"""Characters of a label."""
MOST = 10_000
"""Labels of a result, entries of a list."""
NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
Component = Annotated[str, Field(min_length=1, max_length=300)]
COLUMNS = ["result", "component", "label"]


class Notes(BaseModel):
    """A result's notes.json."""

    model_config = ConfigDict(extra="forbid")
    labels: dict[Component, Annotated[str, Field(max_length=LONGEST)]] = Field({}, max_length=MOST)
    pins: list[Component] = Field([], max_length=MOST)
    """Nodes of a graph that stay in sight."""


class Entry(BaseModel):
    """A component on a list."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    folder: Literal["runs", "stores", "saes"]
    result: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    component: Component


class Listed(BaseModel):
    """A file of lists/."""

    model_config = ConfigDict(extra="forbid")
    entries: list[Entry] = Field([], max_length=MOST)


File = TypeVar("File", Notes, Listed)


def notes(result: Path) -> Notes:
    """The notes of a result's folder; empty where there are none. InputError where the file is something else."""
    return _read(result / "notes.json", Notes, result.parent.parent)


def label(result: Path, component: str, text: str) -> None:
    """Call a component `text`; an empty text takes its label away. InputError for a text that is too long."""
    text = _plain(text)
    with _changed(result / "notes.json", Notes, result.parent.parent) as kept:
        kept.labels.pop(component, None)
        if text:
            kept.labels[component] = text


def pin(result: Path, component: str, on: bool) -> None:
    """Keep a node of a graph in sight, or no longer."""
    with _changed(result / "notes.json", Notes, result.parent.parent) as kept:
        kept.pins = [name for name in kept.pins if name != component] + ([component] if on else [])


def lists(workspace: Path) -> list[str]:
    """The names of a workspace's lists."""
    return sorted(path.stem for path in inside(workspace / "lists", workspace).glob("*.json") if _is_name(path.stem))


def entries(workspace: Path, name: str) -> list[Entry]:
    return _read(_list(workspace, name), Listed, workspace).entries


def put(workspace: Path, name: str, entry: Entry) -> None:
    """Add a component to the end of a list, which is made where there is none; once is enough."""
    with _changed(_list(workspace, name), Listed, workspace) as kept:
        if entry not in kept.entries:
            kept.entries.append(entry)


def take(workspace: Path, name: str, entry: Entry) -> None:
    """Take a component from a list."""
    with _changed(_list(workspace, name), Listed, workspace) as kept:
        kept.entries = [other for other in kept.entries if other != entry]


def labels_table(results: list[dict[str, Any]]) -> pd.DataFrame:
    """Every label of `results` (of `runs.listing`): result, component, label; without notes that cannot be read."""
    rows = []
    for result in results:
        try:
            labels = notes(result["path"]).labels
        except InputError:
            continue
        rows += [(f"{result['folder']}/{result['name']}", component, text) for component, text in labels.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def list_table(workspace: Path, name: str) -> pd.DataFrame:
    """A list, with the label that each component has: result, component, label."""
    rows, known = [], {}
    for entry in entries(workspace, name):
        path = workspace / entry.folder / entry.result
        if path not in known:
            try:
                known[path] = notes(path).labels
            except InputError:
                known[path] = {}
        rows.append((f"{entry.folder}/{entry.result}", entry.component, known[path].get(entry.component, "")))
    return pd.DataFrame(rows, columns=COLUMNS)


def _plain(text: str) -> str:
    """One line, without the characters that have no look of their own."""
    text = "".join(" " if unicodedata.category(character)[0] in "CZ" else character for character in text)
    text = " ".join(text.split())
    if len(text) > LONGEST:
        raise InputError(f"a label has at most {LONGEST} characters; {len(text)} given.")
    return text


def _is_name(name: str) -> bool:
    return NAME.fullmatch(name) is not None


def _list(workspace: Path, name: str) -> Path:
    if not _is_name(name):
        raise InputError(f'"{name}" cannot name a list: letters, digits, ".", "_" and "-", e.g. name-movers.')
    return workspace / "lists" / f"{name}.json"


def _read(path: Path, form: type[File], workspace: Path) -> File:
    inside(path, workspace)
    if not path.exists():
        return form()
    try:
        return form.model_validate(runs.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f'{path}: "{first["loc"][0]}": {first["msg"]}.') from None


@contextmanager
def _changed(path: Path, form: type[File], workspace: Path) -> Iterator[File]:
    """The content of a file, to be changed in the block and written at its end, with nobody else between."""
    inside(path.parent, workspace)
    with locked(path.with_name(f".{path.name}.lock")):
        content = _read(path, form, workspace)
        yield content
        checked = form.model_validate(content.model_dump())
        runs.write_json(path, checked.model_dump())
