"""What the pages read of results, each kept until a file of it changes: tables, circuits, dictionaries, figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
import streamlit as st
from plotly.graph_objects import Figure

from app import state
from interp.causal.circuits import Circuit
from interp.causal.effects import Effects
from interp.errors import InputError, MissingFile
from interp.plots.labels import visible
from sae.circuits import FeatureCircuit
from sae.features import Features
from sae.logs import frontier


def effects(folder: Path) -> Effects:
    """The effects of a run; the same object until a file of theirs changes."""
    return _cached(Effects.load, folder, "effects.parquet", "effects.h5")


def comparison(folder: Path, other: Path) -> pd.DataFrame:
    """`Effects.compare` of two runs; the same object until a file of theirs changes."""
    first, second = effects(folder), effects(other)
    stamps = tuple(state.stamp(path / name) for path in (folder, other) for name in ("effects.parquet", "effects.h5"))
    return _load(lambda _: first.compare(second), str(folder), (str(other), "comparison"), stamps)


def circuits_compared(folder: Path, other: Path) -> pd.DataFrame:
    """`Circuit.compare` of two runs; the same object until a file of theirs changes."""
    first, second = circuit(folder), circuit(other)
    stamps = tuple(state.stamp(path / "circuit.json") for path in (folder, other))
    return _load(lambda _: first.compare(second), str(folder), (str(other), "circuits"), stamps)


def features(folder: Path) -> Features:
    """What the latents of a dictionary do; the same object until a file changes."""
    return _cached(Features.load, folder, "features/latents.parquet", "features/latents.h5")


def readable(features: Features) -> pd.DataFrame:
    """The table of latents with `top_token`, its text as it can be shown; the same object until a file changes."""
    text = features.latents["top_token_text"]
    return _cached(
        lambda _: features.latents.assign(top_token=text.fillna("").map(visible)), features.folder,
        "features/latents.parquet",
    )  # fmt: skip


def of_latent(features: Features, read: str, latent: int, *more: str) -> pd.DataFrame:
    """What `features.of`, `.logits` or `.neighbours` says of a latent; the same object until a file changes: not to be
    written to."""
    asked = (read, latent, *more)
    return _cached(lambda _: getattr(features, read)(latent, *more), features.folder, "features/latents.h5", of=asked)


def prompts(folder: Path) -> list[dict[str, Any]]:
    """The prompt pairs a run used, in the order of its effects; none where it kept no file."""
    if not (folder / "prompts.jsonl").exists():
        return []
    return _cached(_read_jsonl, folder, "prompts.jsonl")


def circuit(folder: Path) -> Circuit:
    """The circuit of a run; the same object until its file changes."""
    return _cached(Circuit.load, folder, "circuit.json")


def feature_circuit(folder: Path) -> FeatureCircuit:
    """The circuit of latents of a run; the same object until a file changes."""
    return _cached(FeatureCircuit.load, folder, "feature_circuit.json", "nodes.parquet", "edges.parquet")


def table(folder: Path, name: str) -> pd.DataFrame:
    """A parquet or CSV file of a result; the same object until it changes: not to be written to."""
    return _cached(lambda path: (pd.read_csv if name.endswith(".csv") else pd.read_parquet)(path / name), folder, name)


def frontier_row(folder: Path) -> pd.DataFrame:
    """A dictionary's row of `sae.frontier`; the same object until its files change."""
    return _cached(lambda path: frontier([path]), folder, "metrics.json", "run.json")


def json_file(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a result; empty where there is none. InputError where it holds no keys."""
    path = state.inside(folder / name)
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise damaged(folder, (name,), error) from error
    if not isinstance(found, dict):
        raise damaged(folder, (name,), ValueError("no keys in it"))
    return found


def head_scores(folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Of how many sequences the scores of heads are, and what a head would score that looks at all alike."""
    return _cached(_read_heads, folder, "heads.h5")


def _read_heads(folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    with h5py.File(folder / "heads.h5") as file:
        return json.loads(file.attrs["about"]), json.loads(file.attrs["chance"])


def _read_jsonl(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines if line.strip()]
    if not all(isinstance(pair, dict) for pair in pairs):
        raise ValueError("a line is not a JSON object")
    return pairs


def drawn(make: Callable[[], Figure], folder: Path, *names: str, of: Hashable) -> Figure:
    """A figure `of` something in files of a result; the same object until a file changes."""
    return _cached(lambda _: make(), folder, *names, of=of)


def _cached(load: Callable[[Path], Any], folder: Path, *names: str, of: Hashable = None) -> Any:
    stamps = []
    for name in names:
        stamp = state.stamp(state.inside(folder / name))
        if not stamp:
            raise MissingFile(f"{folder.name} has no {name}.")
        stamps.append(stamp)
    load_ = _load if of is None else _draw
    try:
        return load_(load, str(folder), names, tuple(stamps), of)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder, names, error) from error


def damaged(folder: Path, names: tuple[str, ...], error: Exception) -> InputError:
    """What is said of files that are not what they should be."""
    said = f"no {error} in it" if isinstance(error, KeyError) else str(error).partition("\n")[0]
    return InputError(
        f"{', '.join(names)} of {folder.name} cannot be read ({said}): damaged, or half written. Make the result again "
        "with its command (--overwrite), or copy it here again."
    )


@st.cache_resource(max_entries=32, show_spinner=False)
def _load(
    _read: Callable[[Path], Any], folder: str, names: tuple[str, ...], stamps: tuple[Any, ...], of: Hashable = None
) -> Any:
    return _read(Path(folder))


@st.cache_resource(max_entries=200, show_spinner=False)
def _draw(
    _make: Callable[[Path], Any], folder: str, names: tuple[str, ...], stamps: tuple[Any, ...], of: Hashable
) -> Any:
    return _make(Path(folder))
