"""find_direction(): along which line of the residual stream do two sets of prompts differ? And pushing along it.

A direction v has length 1 and points from negative to positive; an activation x stands at x . v along it, in the
stream's own unit (three ways to find it: `interp.causal.separating`). `gap` is how far apart the two sets' means are:
pushing by it moves the negative ones' mean onto the positive ones'. How well a direction tells the sets apart is
measured on examples held out; that it can be read there does not say that the model uses it: `dose_response` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp import runs
from interp.causal import examples as sets
from interp.causal.edits import Spec, edit_of
from interp.causal.interventions import Along
from interp.causal.separating import METHODS, hold_out, judge
from interp.data.tasks import Task
from interp.decoder.hooks import Edit
from interp.decoder.model import Model
from interp.decoder.sites import axes, expand, layer_site, short
from interp.errors import InputError, MissingFile, UnknownName, WrongModel, nearest
from interp.progress import Progress
from interp.store.reading import Store

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction of the residual stream, found at `site`; `vector` has length 1 and points to the positive ones.

    `examples` has a row an example: set, held_out, projection, and its tokens or its row of the store. `sites` has a
    row for each site that was tried. `shuffled` are directions found in the same way with the labels shuffled: what the
    method finds where there is nothing to find.
    """

    vector: Float[Tensor, " d_model"]
    threshold: float
    site: str
    name: str
    method: str
    examples: pd.DataFrame
    sites: pd.DataFrame
    shuffled: Float[Tensor, "draw d_model"]
    about: dict[str, Any]

    def __repr__(self) -> str:
        said = f"accuracy {self.accuracy:.3f}, gap {self.gap:.3g}"
        return f"Direction({self.name!r}, {short(self.site)}, {self.method}, {said})"

    @property
    def _row(self) -> pd.Series:
        return self.sites[self.sites["chosen"]].iloc[0]

    @property
    def accuracy(self) -> float:
        """Share of the held-out examples on the right side, the mean of both sets: 1 is perfect, .5 chance."""
        return float(self._row["accuracy"])

    @property
    def gap(self) -> float:
        """Mean projection of the positive examples minus that of the negative ones, in the stream's unit."""
        return float(self._row["gap"])

    def table(self) -> pd.DataFrame:
        """One row a site: balanced `accuracy` on the examples held out with its 95% interval, `auroc`; the same of the
        method on shuffled labels (`shuffled`) and of random directions (`random`), means of several; the gap between
        the sets' means and the sets' standard deviations along the direction. `cv_accuracy` and `cv_distance` (the gap
        in standard deviations) are of the other examples, by cross-validation: by them the site was chosen."""
        return self.sites.copy()

    def figure(self) -> Figure:
        """Where the examples of the two sets stand along the direction."""
        from interp.plots.directions import projections

        return projections(self.examples, self.threshold, self._row.to_dict(), self.about["names"])

    def sites_figure(self) -> Figure:
        """Accuracy on the examples held out, by layer."""
        from interp.plots.directions import by_site

        return by_site(self.sites)

    def steer(self, strength: int | float, *, sites: str | Sequence[str] | None = None) -> dict[str, Edit]:
        """Edits that add `strength` times the vector at `sites` (where it was found, if not given), at every position.
        Positive pushes towards the positive ones."""
        return self._edits("+", strength, sites)

    def project_out(self, *, sites: str | Sequence[str] | None = None) -> dict[str, Edit]:
        """Edits that leave nothing along the direction at `sites` (where it was found, if not given)."""
        return self._edits("=", 0.0, sites)

    def ablate(self, model: Model) -> dict[str, Edit]:
        """Edits that project it out of all that is written to the stream, so that no layer can read it ("abliteration",
        Arditi et al. 2024, arXiv:2406.11717, section 2.4)."""
        return self.project_out(sites=writes(model))

    def _edits(self, operator: str, number: int | float, sites: str | Sequence[str] | None) -> dict[str, Edit]:
        given = [self.site] if sites is None else [sites] if isinstance(sites, str) else sites
        return {site: edit_of([(Along(site, self.vector), Spec(self.name, operator, float(number)))]) for site in given}

    def save(self, path: str | Path) -> None:
        """direction.safetensors (the tensor "direction"), direction.json, examples.parquet, sites.parquet and
        controls.safetensors (the tensor "shuffled") into the folder `path`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self.examples.to_parquet(path / "examples.parquet", index=False)
        self.sites.to_parquet(path / "sites.parquet", index=False)
        save_file({"shuffled": self.shuffled.contiguous()}, path / "controls.safetensors")
        save_file({"direction": self.vector.contiguous()}, path / "direction.safetensors")
        said = {"name": self.name, "site": self.site, "method": self.method, "threshold": self.threshold,
                "gap": self.gap, "accuracy": self.accuracy}  # fmt: skip
        runs.write_json(path / "direction.json", said | {"about": self.about})

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> Direction:
        """What `save` wrote. MissingFile where there is none; WrongModel where it was found in another than `model`."""
        path = Path(path)
        if not (path / "direction.json").is_file():
            raise MissingFile(f"no direction.json in {path}: make one with interp direction find.")
        said = json.loads((path / "direction.json").read_text(encoding="utf-8"))
        examples = pd.read_parquet(path / "examples.parquet")
        if "tokens" in examples:
            examples["tokens"] = examples["tokens"].map(np.ndarray.tolist)
        found = cls(
            load_file(path / "direction.safetensors")["direction"], said["threshold"], said["site"], said["name"],
            said["method"], examples, pd.read_parquet(path / "sites.parquet"),
            load_file(path / "controls.safetensors")["shuffled"], said["about"],
        )  # fmt: skip
        if model is not None:
            found.check(model)
        return found

    def check(self, model: Model) -> None:
        """WrongModel unless it was found in `model`."""
        if self.about["model"]["fingerprint"] != model.fingerprint:
            found_in = self.about["model"]["name"]
            raise WrongModel(f'direction "{self.name}" was found in "{found_in}", not in "{model.name}".')

    def unseen(self, task: Task) -> Task:
        """The prompts of `task` that do not begin as one of those the direction was found on."""
        rows = self.examples[~self.examples["held_out"]]
        return sets.unseen(task, rows["tokens"].tolist() if "tokens" in rows else [])


def writes(model: Model) -> list[str]:
    """Hook points of all that is written to the stream: embeddings, attention layers, MLPs."""
    layers = [layer_site(layer, part) for layer in range(model.n_layers) for part in ("attn_out", "mlp_out")]
    return [site for site in model.sites if site in ("hook_embed", "hook_pos_embed", *layers)]


def find_direction(
    source: Model | Store,
    positive: sets.Prompts | Task | np.ndarray,
    negative: sets.Prompts | np.ndarray | None = None,
    *,
    site: str | Sequence[str] = "*.resid_post",
    method: str = "mean-difference",
    position: int | str = -1,
    answer: str | None = None,
    paired: bool = False,
    held_out: float = 0.25,
    name: str = "direction",
    edits: Mapping[str, Edit] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Direction:
    """The direction from `negative` to `positive` at that of the sites that `site` selects where it tells them apart
    best, by cross-validation on the examples that are not held out.

    Examples are prompts (texts, token ids or a file with a text a line) read at `position` (an index; "all": the mean
    over the tokens); or a `Task` alone, whose prompts with one answer stand against those with the other, or the clean
    ones against the corrupted ones (`interp.causal.examples.of_task`), read at a position's index or label; or, of a
    `Store`, rows by number or mask, or a file that labels them (`interp.causal.examples.of_labels`), of which `answer`
    is the positive label. `paired`: prompts of one number differ in what is looked for. `edits`: of the run that is
    looked at. `seed` draws the share `held_out`, the shuffles and the random directions.

    InputError where a set is too small or not to be told from the other; UnknownSite, UnknownName.
    """
    if method not in METHODS:
        raise UnknownName(f'no method "{method}". Nearest: {nearest(method, METHODS)}.')
    if not 0 < held_out < 1:
        raise InputError(f"held_out {held_out} given: a share of the examples between 0 and 1.")
    selected = expand(site, source.sites, model=f'"{source.name}"')
    found = [name for name in selected if axes(name) == "prompt pos d_model"]
    if not found:
        raise InputError(f'site "{site}" given: a direction is of the stream: *.resid_post, 2.attn_out, 2.mlp_out.')
    if isinstance(source, Store):
        if isinstance(positive, Path):
            examples = sets.of_labels(source, positive, answer)
        else:
            examples = sets.of_rows(source, positive, negative)
        values = {name: torch.from_numpy(source[name][examples.rows]) for name in found}
    else:
        if isinstance(positive, Task):
            examples = sets.of_task(source, positive, position=position, answer=answer)
        else:
            examples = sets.of_prompts(source, positive, negative, position=position, paired=paired)
        values = sets.activations(source, examples, found, edits=edits, progress=progress)
    test, tried = hold_out(examples, held_out, seed), {}
    with Progress("judging sites", len(values), progress) as bar:
        for at, x in values.items():
            tried[at] = judge(at, x.double(), examples, test, method, seed)
            bar.advance()
    best = max(tried, key=lambda name: (tried[name].row["cv_accuracy"], tried[name].row["cv_distance"]))
    rows = pd.DataFrame([judged.row | {"chosen": name == best} for name, judged in tried.items()])
    table = pd.DataFrame({"set": np.where(examples.is_positive, *examples.names), "held_out": test.numpy()})
    table = table.assign(projection=tried[best].projections)
    table = table.assign(tokens=examples.tokens) if examples.rows is None else table.assign(row=examples.rows)
    about = {
        "model": source.model if isinstance(source, Store) else source.provenance(),
        "task": positive.name if isinstance(positive, Task) else None, "names": list(examples.names),
        "answers": None if examples.answers is None else list(examples.answers), "position": position,
        "paired": examples.paired, "dropped": examples.dropped, "held_out": held_out, "seed": seed,
        "versions": runs.versions(),
    }  # fmt: skip
    fit, shuffled = tried[best].fit, tried[best].shuffled
    return Direction(fit.vector.float(), fit.threshold, best, name, method, table, rows, shuffled.float(), about)
