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
from interp.errors import MissingFile
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


def looked_at(folder: Path) -> Figure | None:
    """The figure of a run that looked: a lens on a prompt or a task, direct attribution, heads, a direction or a push
    along one; None of another run."""
    from interp.plots import directions, lenses

    if (folder / "lens.parquet").exists():
        return drawn(lambda: lenses.grid(table(folder, "lens.parquet")), folder, "lens.parquet", of="lens")
    if (folder / "attribution.parquet").exists():
        rows = table(folder, "attribution.parquet")
        return drawn(
            lambda: lenses.attribution(rows, _metric(folder), float(rows["contribution"].sum())), folder,
            "attribution.parquet", of="attribution",
        )  # fmt: skip
    if (folder / "curve.parquet").exists() and "lens" in table(folder, "curve.parquet"):
        rows = table(folder, "curve.parquet")
        return drawn(lambda: lenses.curve(rows, rows["metric"].iloc[0]), folder, "curve.parquet", of="lens")
    if (folder / "heads.parquet").exists():
        return drawn(lambda: _scores(folder), folder, "heads.parquet", "heads.h5", of="heads")
    if (folder / "dose.parquet").exists():
        rows, about = table(folder, "dose.parquet"), json_file(folder, "dose.json")
        rows = rows[rows["measure"] == "log_odds"]
        return drawn(lambda: directions.dose_response(rows, about), folder, "dose.parquet", of="dose")
    if (folder / "examples.parquet").exists() and (folder / "direction.json").exists():
        return drawn(lambda: _direction(folder), folder, "examples.parquet", "sites.parquet", of="direction")
    return None


def _scores(folder: Path) -> Figure:
    """The induction scores of a run of heads, as `HeadScores.figure` draws them."""
    from interp.plots.heads import score_map

    with h5py.File(folder / "heads.h5", "r") as file:
        about, chance = (json.loads(file.attrs[name]) for name in ("about", "chance"))
    return score_map(table(folder, "heads.parquet"), "induction", chance=chance["induction"], n=about["n"])


def _direction(folder: Path) -> Figure:
    """Where the examples of a direction stand along it, as `Direction.figure` draws it."""
    from interp.plots.directions import projections

    said, sites = json_file(folder, "direction.json"), table(folder, "sites.parquet")
    row = sites[sites["chosen"]].iloc[0].to_dict()
    examples = table(folder, "examples.parquet")
    return projections(examples, said["threshold"], row, said["about"]["names"])


def _metric(folder: Path) -> str:
    return str(json_file(folder, "attribution.json").get("metric") or "logit_diff")


def json_file(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a result; empty where there is none."""
    path = state.inside(folder / name)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _read_jsonl(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


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
    return load_(load, str(folder), names, tuple(stamps), of)


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
