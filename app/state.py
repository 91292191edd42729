"""What the app is looking at: the workspace it was started on, its results, and the Focus in the URL.

A result is named by its folder's name; a name with a separator or `..` in it, and a folder or file that leads out of
the workspace through a link, are not there as far as the app can see.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from safetensors import SafetensorError

from app import files
from interp import runs
from interp.errors import InputError, UnknownName, nearest

MEANS = {
    "effect": "the metric after the intervention minus before, mean over prompts",
    "normalized": "where the patched run stands: 0 = as corrupted, 1 = as clean",
    "ci_low": "lower end of the 95% bootstrap interval of the mean over prompts",
    "ci_high": "upper end of the 95% bootstrap interval of the mean over prompts",
    "q": "p of a paired t-test over prompts, adjusted for all rows of the method and metric (Benjamini-Hochberg): of "
    "the rows with q below .05 one in twenty is expected to be chance",
    "baseline": "the metric before the intervention, mean over prompts",
    "value": "the metric after the intervention, mean over prompts",
    "effect_std": "standard deviation of the effect over prompts",
    "n": "prompts that count",
    "difference": "of the first (or B) minus the other (or A), each prompt with itself",
    "effect_other": "the effect in the other run",
    "share": "part of the whole, 0 to 1",
    "score": "how much worse the metric is without it, in the metric's unit; positive: it helps",
    "score_other": "the score in the other circuit",
    "fvu": "fraction of variance unexplained; 0 is perfect",
    "l0": "latents active on a token, on average",
    "dead": "latents that fired at no token",
    "kl": "KL divergence in nats; 0: the same prediction",
    "entropy": "in nats; 0: certain, or all attention on one token",
    "loss": "cross-entropy in nats a token, or what is minimised in training",
    "logprob": "log-probability of the token, in nats, by the run that wrote it",
    "baseline_logprob": "log-probability of the token, in nats, without the edits",
    "contribution": "what the part adds to the logit difference, in nats",
    "previous_token": "attention to the token before, 0 to 1",
    "first_token": "attention to the first token, 0 to 1",
    "first_token_weighted": "the same, each key weighted by the length of what is written from it",
    "faithfulness": "0: as with no edge, 1: as the whole model",
    "alike": "the share if all experts got the same",
    "prob": "probability, 0 to 1",
    "rank": "1: the likeliest token",
}
"""What the columns of tables mean."""

UNREADABLE = (InputError, OSError, ValueError, KeyError, SafetensorError)
"""What reading a file of a workspace raises when the file is missing, broken or not what it should be."""

RUNS, TRAINING = "views/runs.py", "views/training.py"
ABLATION, PATCHING, CIRCUIT = "views/ablation.py", "views/patching.py", "views/circuit.py"
FEATURES, FEATURE = "views/features.py", "views/feature.py"
PROMPT, ATTENTION, STEER = "views/prompt.py", "views/attention.py", "views/steer.py"
JOBS, LISTS = "views/jobs.py", "views/lists.py"
PAGE_OF = {
    "ablate": ABLATION, "patch": PATCHING, "circuit": CIRCUIT, "circuit-score": CIRCUIT, "circuit-features": CIRCUIT,
}  # fmt: skip
"""The page that shows a run of a kind; that of any other is the home page with `?run=`."""

_NAME = r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_VALID = {
    "run": _NAME,
    "other": _NAME,
    "store": _NAME,
    "sae": _NAME,
    "model": r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/-]{0,127}",
    "method": r"[A-Za-z0-9_-]{1,40}",
    "metric": r"[A-Za-z0-9_-]{1,40}",
    "site": r"[A-Za-z0-9._*-]{1,128}",
    "head": r"[A-Za-z0-9._/+@-]{1,140}",
    "edge": r"[A-Za-z0-9._/<>-]{1,300}",
    "pos": r"[A-Za-z0-9_+-]{1,40}",
    "prompt": r"\d{1,7}",
    "feature": r"\d{1,7}",
    "n": r"\d{1,7}",
    "text": r"(?s).{1,2000}",
    "edit": r"[A-Za-z0-9._/+@=*, -]{1,400}",
    "where": r"[a-z0-9, -]{1,60}",
    "side": "clean|corrupted",
    "weigh": "value|difference",
    "patterns": "live|frozen",
    "temperature": r"\d(\.\d{1,3})?",
    "seed": r"\d{1,7}",
    "job": _NAME,
    "form": r"[a-z-]{1,40}",
    "list": _NAME,
}
_NUMBERS = ("prompt", "feature", "n", "seed")


@dataclass(frozen=True)
class Focus:
    """What the pages look at. It lives in the URL, so that a link opens what was seen; None is a page's own choice."""

    run: str | None = None
    """Name of a folder in runs/."""
    other: str | None = None
    """The run that `run` is held against."""
    store: str | None = None
    """Name of a folder in stores/."""
    sae: str | None = None
    """Name of a folder in saes/."""
    model: str | None = None
    method: str | None = None
    metric: str | None = None
    site: str | None = None
    head: str | None = None
    """The component: `L3H5`, or another that a map shows, such as `L3.mlp` or `demo/417`."""
    edge: str | None = None
    """An edge of a graph: `a0.h1->a3.h5<q>`."""
    pos: str | None = None
    prompt: int | None = None
    """The prompt's number in prompts.jsonl, from 0."""
    feature: int | None = None
    """The latent's number."""
    n: int | None = None
    """How many, of what a page shows the strongest of."""
    text: str | None = None
    """What was typed in for a model to read."""
    edit: str | None = None
    """What is changed in the run that is looked at: `L3H5=0, demo/417=8`."""
    where: str | None = None
    """Positions that are edited: all, prompt, new, or numbers."""
    side: str | None = None
    """Which prompt of a pair: clean or corrupted."""
    weigh: str | None = None
    """`value`: attention times the length of what is written; `difference`: of two runs."""
    patterns: str | None = None
    temperature: str | None = None
    seed: int | None = None
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
    focus, bad = _parsed()
    if bad:
        st.warning(f"Ignored in the address, not the form of a name or number: {', '.join(bad)}.")
    return focus


def asked_for() -> Focus:
    """The Focus of the URL, without a word on what is left out."""
    return _parsed()[0]


def _parsed() -> tuple[Focus, list[str]]:
    """The Focus of the URL, and the names of the fields that are not as they should be."""
    given = st.query_params.to_dict()
    values = {name: given[name] for name in _VALID if name in given}
    bad = [name for name, value in values.items() if not re.fullmatch(_VALID[name], value)]
    good = {name: value for name, value in values.items() if name not in bad}
    return Focus(**{name: int(value) if name in _NUMBERS else value for name, value in good.items()}), bad


def write_focus(**changes: Any) -> None:
    """Put fields into the URL; None takes a field out."""
    for name, value in changes.items():
        assert name in _VALID
        if value is None:
            st.query_params.pop(name, None)
        else:
            st.query_params[name] = str(value)


def choose(
    label: str, options: list[Any], field: str, current: Any, *, resets: Sequence[str] = (), empty: str | None = None,
    whole: bool = False, **kwargs: Any,
) -> Any:  # fmt: skip
    """A select box that shows `current` (or the first option) and writes what is picked into a field of the Focus.

    The fields `resets` are taken out of the URL then. `empty` stands in the box where nothing is chosen, if that may
    be. `whole`: a box in a `part` on which more of the page hangs than that part.
    """
    key = f"choose-{field}"
    st.session_state[key] = current if current in options else None if empty else options[0]
    if empty:
        kwargs |= {"placeholder": empty}

    def pick() -> None:
        write_focus(**{field: st.session_state[key]}, **dict.fromkeys(resets))
        if whole:
            st.rerun()

    return st.selectbox(label, options, key=key, on_change=pick, **({"index": None} if empty else {}), **kwargs)


def picked(key: str) -> int | None:
    """The row that was just chosen in the table `key`; None where it was let go."""
    rows = st.session_state[key].selection.rows
    return rows[0] if rows else None


def clicked(key: str) -> str | None:
    """The `customdata` of the point that was just clicked in the figure `key`. A second click on it selects nothing."""
    points = st.session_state[key].selection.points
    name = points[0].get("customdata") if points else None
    return name[0] if isinstance(name, list) and name else name


def link(page: str, label: str, **changes: Any) -> None:
    """A link to a page that keeps the Focus of the address but for `changes`; nothing in `label` is markup."""
    if page == st.session_state.get("page"):
        _button(label, changes, lambda: asked_for().query(**changes))  # the Focus at the click: a `part` may have moved
    else:
        go(page, label, asked_for().query(**changes))


def go(page: str, label: str, query: dict[str, str]) -> None:
    """A link to a page with just these parameters. Streamlit leaves the address as it is on a link to the page that is
    open: there it is a button that writes them."""
    if page != st.session_state.get("page"):
        st.page_link(page, label=escape(label), query_params=query)
    else:
        _button(label, query, lambda: query)


def _button(label: str, told_apart_by: dict[str, Any], query: Callable[[], dict[str, str]]) -> None:
    """A link to the page that is open, with the parameters that `query` gives when it is clicked."""

    def arrive() -> None:
        st.query_params.from_dict(query())
        st.rerun()  # all of the page, also where the button stands in a part of it

    key = f"link-{label}-{'-'.join(f'{name}={value}' for name, value in sorted(told_apart_by.items()))}"
    st.button(escape(label), key=key, type="tertiary", on_click=arrive)


@st.fragment
def part(show: Callable[..., None], *given: Any) -> None:
    """A part of a page that holds a selection and what follows from it: `show(focus, *given)`. What is chosen inside it
    draws it anew by itself, with the Focus that the URL has then; the rest of the page stays as it is, but for the bar
    of pages, whose links keep the Focus."""
    try:
        show(asked_for(), *given)
    except Exception as error:  # as on any page: outside `main.py` streamlit would show the traceback
        problem("This part of the page cannot be shown: a file of the workspace is not what it should be.", error)
    st.session_state["draw-bar"]()  # last: the text that was asked for comes first


def place(run: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The page that shows a result, and its parameters."""
    if run["folder"] == "saes":
        return (FEATURES if run.get("status") == "done" else TRAINING), {"sae": run["name"]}
    if run["folder"] == "stores":
        return RUNS, {"store": run["name"]}
    return PAGE_OF.get(str(run.get("kind")), RUNS), {"run": run["name"]}


def workspace() -> Path:
    """The folder given as `--workspace` when the app was started; no page can change it."""
    return _workspace(tuple(sys.argv[1:]), os.getcwd())


@lru_cache(maxsize=4)
def _workspace(arguments: tuple[str, ...], directory: str) -> Path:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--workspace", type=Path, default=runs.WORKSPACE)
    return parser.parse_known_args(arguments)[0].workspace.resolve()


def inside(path: Path) -> Path:
    """`path`, if following links it is in the workspace; else MissingFile."""
    return files.inside(path, workspace())


def results(folder: str | None = None, *, kinds: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Results of the workspace, newest first: those of `runs`, `stores` or `saes`, or those of some kinds."""
    root, stamps = workspace(), []
    for part in runs.FOLDERS:
        if (root / part).is_dir():
            with os.scandir(root / part) as entries:
                stamps += [(part, entry.name, *stamp(f"{entry.path}/run.json")) for entry in entries]
    return [
        run
        for run in _listing(str(root), tuple(sorted(stamps)))
        if folder in (None, run["folder"]) and (not kinds or run.get("kind") in kinds)
    ]


def stamp(path: str | Path) -> tuple[int, ...]:
    """What changes when a file does; nothing where there is none."""
    try:
        at = os.stat(path)
    except OSError:
        return ()
    return at.st_mtime_ns, at.st_size, at.st_ino


@lru_cache(maxsize=4)
def _listing(root: str, stamps: tuple[Any, ...]) -> list[dict[str, Any]]:
    """All results; read again when a run.json is new, changed or gone. `config`, `model` and `versions` hold keys."""
    tables = ("config", "model", "versions")
    return [
        run | {key: run[key] if isinstance(run.get(key), dict) else {} for key in tables}
        for run in runs.listing(Path(root))
        if re.fullmatch(_NAME, run["name"]) and (run["path"] / "run.json").resolve().is_relative_to(root)
    ]


def result(name: str, among: list[dict[str, Any]]) -> dict[str, Any]:
    """The result of that name; UnknownName with the nearest ones."""
    named = {run["name"]: run for run in among}
    if name not in named:
        near = nearest(name, named)
        raise UnknownName(f'no "{name}" in this workspace.' + (f" Nearest: {near}." if near else ""))
    return named[name]


def size_text(run: dict[str, Any]) -> str:
    """What the files of a result take on disk: "1.2 MB"; at most a few minutes old."""
    return _size_text(run["path"], run.get("status"), int(time.time()) // 300)


@lru_cache(maxsize=4000)
def _size_text(folder: Path, status: str, minutes: int) -> str:
    n_bytes = float(sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()))
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def escape(name: str) -> str:
    """A name for a markdown label: nothing in it is read as markup, of which all is ASCII."""
    return re.sub(r"([^A-Za-z0-9 \x80-\U0010ffff])", r"\\\1", name)


def empty(what: str, command: str) -> None:
    """Say what is missing and the command that makes it."""
    st.info(what)
    st.code(command, language="bash")


def unfinished(name: str | None, among: list[dict[str, Any]]) -> None:
    """What to do about a run that cannot be shown: wait for it, or look at another."""
    run = next((run for run in among if run["name"] == name), among[0] if name is None and among else None)
    if run and run.get("status") == "running":
        st.text("It is still running: its results appear when they are written. Reload the page then.")
    st.page_link(RUNS, label="All runs", query_params={})


def problem(what: str, error: Exception) -> None:
    """One line that says what could not be shown, the reason, and the traceback for who wants it."""
    st.error(what)
    st.code(f"no {error} in it" if isinstance(error, KeyError) else str(error), language=None, wrap_lines=True)
    if not isinstance(error, InputError):
        with st.expander("Traceback"):
            st.code("".join(traceback.format_exception(error)), language=None)


def number_columns(table: pd.DataFrame, form: str = "%.4f") -> dict[str, Any]:
    """How the fractions of a table are written (four digits after the point if not said; q as a power of ten), and what
    its columns mean."""
    floats, numbers = (set(table.select_dtypes(kind).columns) for kind in ("floating", "number"))
    forms = {name: ("%.1e" if name == "q" else form) if name in floats else None for name in numbers}
    return {
        name: st.column_config.NumberColumn(format=forms[name], help=MEANS.get(name))
        for name in table
        if name in floats or (name in numbers and name in MEANS)
    }
