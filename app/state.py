"""What the app is looking at: the workspace it was started on, the Focus in the URL, and cached readers of files.

A result is named by its folder's name; a name with a separator or `..` in it, and a folder or file that leads out of
the workspace through a link, are not there as far as the app can see.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app import files
from interp import runs
from interp.causal.effects import Effects
from interp.errors import InputError, MissingFile, UnknownName, nearest
from sae.features import Features

UNREADABLE = (InputError, OSError, ValueError, KeyError)
"""What reading a file of a workspace raises when the file is missing, broken or not what it should be."""

RUNS, ABLATION, FEATURES = "views/runs.py", "views/ablation.py", "views/features.py"
JOBS, LISTS = "views/jobs.py", "views/lists.py"

_NAME = r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_VALID = {
    "run": _NAME,
    "store": _NAME,
    "sae": _NAME,
    "method": r"[A-Za-z0-9_-]{1,40}",
    "metric": r"[A-Za-z0-9_-]{1,40}",
    "head": r"[A-Za-z0-9._/+@-]{1,140}",
    "pos": r"[A-Za-z0-9_+-]{1,40}",
    "feature": r"\d{1,7}",
    "job": _NAME,
    "form": r"[a-z-]{1,40}",
    "list": _NAME,
}


@dataclass(frozen=True)
class Focus:
    """What the pages look at. It lives in the URL, so that a link opens what was seen; None is a page's own choice."""

    run: str | None = None
    """Name of a folder in runs/."""
    store: str | None = None
    """Name of a folder in stores/."""
    sae: str | None = None
    """Name of a folder in saes/."""
    method: str | None = None
    metric: str | None = None
    head: str | None = None
    """The component: `L3H5`, or another that a map shows, such as `L3.mlp`."""
    pos: str | None = None
    feature: int | None = None
    """The latent's number."""
    job: str | None = None
    """Name of a folder in jobs/."""
    form: str | None = None
    """Which command the page of jobs asks for."""
    list: str | None = None
    """Name of a list of components."""

    def query(self, **changes: Any) -> dict[str, str]:
        """The parameters of a link to this focus, or to this focus with some fields changed."""
        focus = replace(self, **changes)
        values = {field.name: getattr(focus, field.name) for field in fields(focus)}
        return {name: str(value) for name, value in values.items() if value is not None}


def read_focus() -> Focus:
    """The Focus of the URL; what does not have the form of its field is left out, and the page says so."""
    values: dict[str, Any] = {name: st.query_params[name] for name in _VALID if name in st.query_params}
    bad = [name for name, value in values.items() if not re.fullmatch(_VALID[name], value)]
    if bad:
        st.warning(f"Ignored in the address, not the form of a name or number: {', '.join(bad)}.")
    values = {name: int(v) if name == "feature" else v for name, v in values.items() if name not in bad}
    return Focus(**values)


def write_focus(**changes: Any) -> None:
    """Put fields into the URL; None takes a field out."""
    for name, value in changes.items():
        assert name in _VALID
        if value is None:
            st.query_params.pop(name, None)
        else:
            st.query_params[name] = str(value)


def choose(
    label: str, options: list[str], field: str, current: str | None, *, resets: Sequence[str] = (), **kwargs: Any
) -> str:
    """A select box that shows `current` (or the first option) and writes what is picked into a field of the Focus.

    The fields `resets` are taken out of the URL then.
    """
    key = f"choose-{field}"
    st.session_state[key] = current if current in options else options[0]

    def pick() -> None:
        write_focus(**{field: st.session_state[key]}, **dict.fromkeys(resets))

    return st.selectbox(label, options, key=key, on_change=pick, **kwargs)


def place(run: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The page that shows a result, and its parameters."""
    if run["folder"] == "saes":
        return FEATURES, {"sae": run["name"]}
    if run["folder"] == "stores":
        return RUNS, {"store": run["name"]}
    return ABLATION if run.get("kind") == "ablate" else RUNS, {"run": run["name"]}


def workspace() -> Path:
    """The folder given as `--workspace` when the app was started; no page can change it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--workspace", type=Path, default=runs.WORKSPACE)
    return parser.parse_known_args(sys.argv[1:])[0].workspace.resolve()


def inside(path: Path) -> Path:
    """`path`, if following links it is in the workspace; else MissingFile."""
    return files.inside(path, workspace())


def results(folder: str | None = None, *, kind: str | None = None) -> list[dict[str, Any]]:
    """Results of the workspace, newest first: those of `runs`, `stores` or `saes`, or those of a kind."""
    root = workspace()
    return [
        run
        for run in runs.listing(root)
        if re.fullmatch(_NAME, run["name"])
        and (run["path"] / "run.json").resolve().is_relative_to(root)
        and folder in (None, run["folder"])
        and kind in (None, run.get("kind"))
    ]


def result(name: str, among: list[dict[str, Any]]) -> dict[str, Any]:
    """The result of that name; UnknownName with the nearest ones."""
    named = {run["name"]: run for run in among}
    if name not in named:
        near = nearest(name, named)
        raise UnknownName(f'no "{name}" in this workspace.' + (f" Nearest: {near}." if near else ""))
    return named[name]


def effects(folder: Path) -> Effects:
    """The effects of a run; the same object until a file of theirs changes."""
    return _cached(Effects.load, folder, "effects.parquet", "effects.h5")


def features(folder: Path) -> Features:
    """What the latents of a dictionary do; the same object until a file changes."""
    return _cached(Features.load, folder, "features/latents.parquet", "features/latents.h5")


def prompts(folder: Path) -> list[dict[str, Any]]:
    """The prompt pairs a run used, in the order of its effects; none where it kept no file."""
    if not (folder / "prompts.jsonl").exists():
        return []
    return _cached(_read_jsonl, folder, "prompts.jsonl")


def json_file(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a result; empty where there is none."""
    path = inside(folder / name)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _read_jsonl(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _cached(load: Callable[[Path], Any], folder: Path, *names: str) -> Any:
    stamps = []
    for name in names:
        path = inside(folder / name)
        if not path.exists():
            raise MissingFile(f"{folder.name} has no {name}.")
        stamps.append((path.stat().st_mtime_ns, path.stat().st_size))
    return _load(load, str(folder), names, tuple(stamps))


@st.cache_resource(max_entries=16, show_spinner=False)
def _load(_read: Callable[[Path], Any], folder: str, names: tuple[str, ...], stamps: tuple[Any, ...]) -> Any:
    return _read(Path(folder))


def size_text(folder: Path) -> str:
    """What the files of a folder take on disk: "1.2 MB"."""
    n_bytes = float(sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()))
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def escape(name: str) -> str:
    """A name for a markdown label: nothing in it is read as markup."""
    return re.sub(r"([^A-Za-z0-9 ])", r"\\\1", name)


def empty(what: str, command: str) -> None:
    """Say what is missing and the command that makes it."""
    st.info(what)
    st.code(command, language="bash")


def problem(what: str, error: Exception) -> None:
    """One line that says what could not be shown, the reason, and the traceback for who wants it."""
    st.error(what)
    st.code(str(error), language=None, wrap_lines=True)
    if not isinstance(error, InputError):
        with st.expander("Traceback"):
            st.code("".join(traceback.format_exception(error)), language=None)


def number_columns(table: pd.DataFrame) -> dict[str, Any]:
    """How the fractions of a table of effects are written: four digits after the point; q as a power of ten."""
    floats = table.select_dtypes("floating").columns
    return {name: st.column_config.NumberColumn(format="%.1e" if name == "q" else "%.4f") for name in floats}
