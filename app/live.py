"""The model, live: loaded once for all sessions, asked under its lock, its answers kept until the model, or a
dictionary or direction that they are of, is another on disk.

No numbers are made here: each answer is one call of the library. Models come from this machine alone: the bundled one,
those that results of the workspace were made with; no name is looked up on the network (`app/main.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from app import readers, state
from interp.errors import InputError, UnknownModel, nearest

if TYPE_CHECKING:
    from interp.decoder.generation import Sampling, Step
    from interp.decoder.hooks import Edit
    from interp.decoder.model import Model
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
    files = sorted(Path(known[label]).glob("*")) if Path(known[label]).is_dir() else []
    return _model(known[label], tuple((file.name, *state.stamp(file)) for file in files))


@st.cache_resource(max_entries=3, show_spinner="Loading the model …")
def _model(name: str, stamps: tuple[Hashable, ...]) -> Model:
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
def _dictionary(folder: str, stamp: tuple[int, ...]) -> Any:
    import sae

    return sae.load(folder)


def dictionary(name: str) -> Any:
    """A dictionary of the workspace by name. UnknownName for another."""
    folder = state.inside(_folder("saes", name))
    return _dictionary(str(folder), state.stamp(folder / "run.json"))


def _folder(among: str, name: str) -> Path:
    return state.result(name, state.results(among))["path"]


def _made_of(label: str, specs: str, *dictionaries: str) -> tuple[Hashable, ...]:
    """What an answer hangs on beside what is asked: the model, and the dictionaries and directions as they are now."""
    from interp.causal.edits import owners

    latents, directions = owners(specs) if specs else ([], [])
    named = [("saes", name) for name in (*latents, *dictionaries)] + [("runs", name) for name in directions]
    return model(label).fingerprint, *(state.stamp(_folder(*one) / "run.json") for one in named)


def edits(label: str, specs: str) -> dict[str, Edit]:
    """The edits that `specs` say (`L3H5=0, demo/417=8`). Dictionaries and directions are those of the workspace, by
    name. InputError for what is none, WrongModel for those of another model."""
    if not specs:
        return {}
    from interp.causal import edits as by_name
    from interp.causal.directions import Direction
    from sae.splicing import check_model

    loaded, (latents, directions) = model(label), by_name.owners(specs)
    dictionaries = {name: dictionary(name) for name in latents}
    for found in dictionaries.values():
        check_model(found, loaded)
    folders = {name: state.inside(_folder("runs", name)) for name in directions}
    return by_name.parse(
        loaded, specs, dictionaries=dictionaries,
        directions={name: Direction.load(path, loaded).vector for name, path in folders.items()},
    )  # fmt: skip


def lens(label: str, tokens: tuple[int, ...], specs: str) -> Lens:
    """The logit lens of a text."""
    return _lens(label, tokens, specs, _made_of(label, specs))


@st.cache_resource(max_entries=32, show_spinner=False)
def _lens(label: str, tokens: tuple[int, ...], specs: str, made_of: tuple[Hashable, ...]) -> Lens:
    from interp.lenses.logits import logit_lens

    return logit_lens(model(label), list(tokens), edits=edits(label, specs), top=10)


def lens_cells(label: str, tokens: tuple[int, ...], specs: str, colour: str, first: int, n: int) -> Grid:
    """The logit lens as a map: `n` positions from `first` on."""
    return _lens_cells(label, tokens, specs, colour, first, n, _made_of(label, specs))


@st.cache_resource(max_entries=64, show_spinner=False)
def _lens_cells(
    label: str, tokens: tuple[int, ...], specs: str, colour: str, first: int, n: int, made_of: tuple[Hashable, ...]
) -> Grid:
    from interp.plots.lenses import cells

    rows = lens(label, tokens, specs).rows
    return cells(rows[rows["position"] < first + n], colour, last=n)


def patterns(label: str, tokens: tuple[int, ...], specs: str) -> Patterns:
    """Attention of every head in a text."""
    return _patterns(label, tokens, specs, _made_of(label, specs))


@st.cache_resource(max_entries=8, show_spinner=False)  # of GPT-2 on 512 tokens 150 MB
def _patterns(label: str, tokens: tuple[int, ...], specs: str, made_of: tuple[Hashable, ...]) -> Patterns:
    from interp.lenses.heads import patterns as read

    return read(model(label), list(tokens), edits=edits(label, specs))


def activity(label: str, name: str, tokens: tuple[int, ...], specs: str) -> pd.DataFrame:
    """Which latents of a dictionary fire in a text."""
    return _activity(label, name, tokens, specs, _made_of(label, specs, name))


@st.cache_resource(max_entries=32, show_spinner=False)
def _activity(
    label: str, name: str, tokens: tuple[int, ...], specs: str, made_of: tuple[Hashable, ...]
) -> pd.DataFrame:
    import sae

    return sae.activity(model(label), dictionary(name), list(tokens), edits=edits(label, specs))


def attribution(
    label: str, tokens: tuple[int, ...], specs: str, position: int, answer: int | None, wrong: int | None
) -> Attribution:
    """What each part contributes to the answer at a position, over the wrong answer if there is one."""
    return _attribution(label, tokens, specs, position, answer, wrong, _made_of(label, specs))


@st.cache_resource(max_entries=64, show_spinner=False)
def _attribution(
    label: str, tokens: tuple[int, ...], specs: str, position: int, answer: int | None, wrong: int | None,
    made_of: tuple[Hashable, ...],
) -> Attribution:  # fmt: skip
    from interp.lenses.attribution import attribute_logits

    return attribute_logits(
        model(label), list(tokens), answer=answer, wrong=wrong, position=position, edits=edits(label, specs)
    )


def attribution_cells(
    label: str, tokens: tuple[int, ...], specs: str, position: int, answer: int | None, wrong: int | None
) -> Grid:
    """The same as a map of heads and MLPs."""
    return _attribution_cells(label, tokens, specs, position, answer, wrong, _made_of(label, specs))


@st.cache_resource(max_entries=64, show_spinner=False)
def _attribution_cells(
    label: str, tokens: tuple[int, ...], specs: str, position: int, answer: int | None, wrong: int | None,
    made_of: tuple[Hashable, ...],
) -> Grid:  # fmt: skip
    from interp.plots.lenses import attribution_cells as cells

    found = attribution(label, tokens, specs, position, answer, wrong)
    return cells(found.rows, found.about["metric"])


def spelled(label: str, tokens: Sequence[int]) -> list[str]:
    """The texts of tokens."""
    return model(label).token_text(tokens)


def site_of(direction: str) -> str:
    """Where a direction of the workspace was found, in short."""
    from interp.decoder.sites import short

    said = readers.json_file(_folder("runs", direction), "direction.json")
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
