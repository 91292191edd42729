"""The model, live: loaded once for all sessions, asked under its lock, its answers kept.

No numbers are made here: each answer is one call of the library. Models come from this machine alone: the bundled one,
those that results of the workspace were made with, and no name is looked up on the network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from app import readers, state
from interp.errors import InputError, UnknownModel, nearest

if TYPE_CHECKING:
    from interp.decoder.generation import Sampling, Step
    from interp.decoder.hooks import Edit
    from interp.decoder.loading import Model
    from interp.lenses.attribution import Attribution
    from interp.lenses.heads import Patterns
    from interp.lenses.logits import Lens
    from interp.plots import Grid


def models() -> dict[str, str]:
    """Label -> name of every model that can be run here; a model in a folder is called by the folder."""
    found = {"bundled": "bundled"}
    for run in state.results():
        name = str(run["model"].get("name") or "")
        label = Path(name).name if name.startswith(("/", ".")) else name
        if name and found.setdefault(label, name) != name:
            found[f"{Path(name).parent.name}/{label}"] = name
    return found


def label_of(run: dict[str, Any]) -> str | None:
    """The label of the model that a result was made with."""
    return next((label for label, name in models().items() if name == run["model"].get("name")), None)


def model(label: str) -> Model:
    """The model of that label. UnknownModel, with the nearest labels; what `interp.load_model` raises."""
    known = models()
    if label not in known:
        raise UnknownModel(f'no model "{label}" in this workspace. Nearest: {nearest(label, known)}.')
    return _model(known[label])


@st.cache_resource(max_entries=3, show_spinner="Loading the model …")
def _model(name: str) -> Model:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from interp import load_model

    return load_model(name)


def dictionaries(fingerprint: str) -> list[str]:
    """Finished dictionaries of the workspace that are of a model."""
    return [
        run["name"]
        for run in state.results("saes")
        if run.get("status") == "done" and run["model"].get("fingerprint") == fingerprint
    ]


@st.cache_resource(max_entries=4, show_spinner="Loading the dictionary …")
def _dictionary(folder: str, stamp: int) -> Any:
    import sae

    return sae.load(folder)


def dictionary(name: str) -> Any:
    """A dictionary of the workspace by name. UnknownName for another."""
    folder = state.inside(state.result(name, state.results("saes"))["path"])
    return _dictionary(str(folder), (folder / "run.json").stat().st_mtime_ns)


def edits(label: str, specs: str) -> dict[str, Edit]:
    """The edits that `specs` say (`L3H5=0, demo/417=8`). Dictionaries and directions are those of the workspace, by
    name. InputError for what is none."""
    if not specs:
        return {}
    from interp.causal import edits as by_name
    from interp.causal.directions import Direction

    loaded, (latents, directions) = model(label), by_name.owners(specs)
    folders = {name: state.result(name, state.results("runs"))["path"] for name in directions}
    return by_name.parse(
        loaded, specs, dictionaries={name: dictionary(name) for name in latents},
        directions={name: Direction.load(state.inside(path), loaded).vector for name, path in folders.items()},
    )  # fmt: skip


@st.cache_resource(max_entries=32, show_spinner=False)
def lens(label: str, tokens: tuple[int, ...], specs: str) -> Lens:
    """The logit lens of a text."""
    from interp.lenses.logits import logit_lens

    return logit_lens(model(label), list(tokens), edits=edits(label, specs), top=10)


@st.cache_resource(max_entries=64, show_spinner=False)
def lens_cells(label: str, tokens: tuple[int, ...], specs: str, colour: str, first: int, n: int) -> Grid:
    """The logit lens as a map: `n` positions from `first` on."""
    from interp.plots.lenses import cells

    rows = lens(label, tokens, specs).rows
    return cells(rows[rows["position"] < first + n], colour, last=n)


@st.cache_resource(max_entries=32, show_spinner=False)
def patterns(label: str, tokens: tuple[int, ...], specs: str) -> Patterns:
    """Attention of every head in a text."""
    from interp.lenses.heads import patterns as read

    return read(model(label), list(tokens), edits=edits(label, specs))


@st.cache_resource(max_entries=32, show_spinner=False)
def activity(label: str, name: str, tokens: tuple[int, ...], specs: str) -> pd.DataFrame:
    """Which latents of a dictionary fire in a text."""
    import sae

    return sae.activity(model(label), dictionary(name), list(tokens), edits=edits(label, specs))


@st.cache_resource(max_entries=64, show_spinner=False)
def attribution(
    label: str, tokens: tuple[int, ...], specs: str, position: int, answer: int | None, wrong: int | None
) -> Attribution:
    """What each part contributes to the answer at a position, over the wrong answer if there is one."""
    from interp.lenses.attribution import attribute_logits

    return attribute_logits(
        model(label), list(tokens), answer=answer, wrong=wrong, position=position, edits=edits(label, specs)
    )


@st.cache_resource(max_entries=64, show_spinner=False)
def attribution_cells(
    label: str, tokens: tuple[int, ...], specs: str, position: int, answer: int | None, wrong: int | None
) -> Grid:
    """The same as a map of heads and MLPs."""
    from interp.plots.lenses import attribution_cells as cells

    found = attribution(label, tokens, specs, position, answer, wrong)
    return cells(found.rows, found.about["metric"])


def spelled(label: str, tokens: Sequence[int]) -> list[str]:
    """The texts of tokens."""
    return model(label).token_text(tokens)


def site_of(direction: str) -> str:
    """Where a direction of the workspace was found, in short."""
    from interp.decoder.sites import short

    said = readers.json_file(state.result(direction, state.results("runs"))["path"], "direction.json")
    return short(str(said["site"]))


def tokens_of(label: str, text: str) -> tuple[int, ...]:
    """Token ids of a text, after BOS. InputError where the model reads no text, or not so much."""
    loaded = model(label)
    ids = tuple(loaded.to_tokens(text))
    if len(ids) > loaded.n_ctx:
        raise InputError(f'{len(ids)} tokens given: "{label}" reads at most {loaded.n_ctx}. Take a shorter text.')
    return ids


def written(
    label: str, tokens: Sequence[int], sampling: Sampling, specs: str, **settings: Any
) -> Iterator[tuple[int, str, Step]]:
    """A continuation as it comes: token id, its text, the step."""
    from interp.decoder.generation import stream

    loaded = model(label)
    for step in stream(loaded, [list(tokens)], sampling, edits=edits(label, specs), **settings):
        token = int(step.tokens[0])
        if token >= 0:
            yield token, loaded.token_text([token])[0], step
