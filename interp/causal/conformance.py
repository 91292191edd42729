"""Does the workbench hold on this model? Its hooks (`interp.decoder.checking`), and what is built on them.

report = interp.check(model)
report.table()      # a row a check: verdict ok, refused (with the reason) or WRONG, measured number and limit
report.ok           # nothing is WRONG; what is refused says so where it is asked for
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp import runs
from interp.causal.ablation import ablate
from interp.causal.attribution import edge_scores, metric_value, recorded, slopes
from interp.causal.edges import Patcher, Split, check_split, places_of, written_sites
from interp.causal.graph import Graph
from interp.causal.patching import patch
from interp.causal.resuming import CleanPass, short_cuts
from interp.data.tasks import Prompt, Task
from interp.decoder import checking
from interp.decoder.checking import Given, Line, apart, refused, same
from interp.decoder.hooks import captured, edited
from interp.decoder.model import Model
from interp.decoder.sites import axes, layer_site


@dataclass(frozen=True)
class Conformance:
    """What was measured, a line a check, in the order made."""

    lines: tuple[Line, ...]
    about: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        return not self.wrong

    @property
    def wrong(self) -> list[Line]:
        return [line for line in self.lines if line.verdict == "WRONG"]

    def table(self) -> pd.DataFrame:
        """what, verdict, measured, bound ("at most" or "at least") and limit, why."""
        return pd.DataFrame([asdict(line) for line in self.lines])

    def save(self, path: str | Path) -> None:
        """`checks.parquet` and `conformance.json` in the folder `path`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self.table().to_parquet(path / "checks.parquet", index=False)
        (path / "conformance.json").write_text(json.dumps(self.about, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Conformance:
        path = Path(path)
        rows = pd.read_parquet(path / "checks.parquet").to_dict("records")
        about = json.loads((path / "conformance.json").read_text(encoding="utf-8"))
        return cls(tuple(Line(**row) for row in rows), about)


def check(model: Model, *, length: int = 12, seed: int = 0) -> Conformance:
    """Every check on two prompts of `length` random tokens: more than its sliding window, to try that too."""
    given = Given.of(model, length=length, seed=seed)
    lines = checking.check(model, length=length, seed=seed)
    lines += checking.run(given, [_resumed, _ablated, _patched, _edges, _estimated, _edge_slopes, _slopes])
    said = {"model": model.provenance(), "versions": runs.versions(), "length": given.tokens.shape[1], "seed": seed}
    return Conformance(tuple(lines), said)


def task_of(given: Given) -> Task:
    """The random tokens as prompt pairs that differ in one token, with a right and a wrong answer."""
    clean, last = given.tokens, given.tokens.shape[1] - 1
    corrupted = clean.clone()
    corrupted[:, last // 2] = (corrupted[:, last // 2] + 1) % given.model.d_vocab
    answers = [(1, 2), (3, 4)]
    return Task("random", [
        Prompt(c, [(last, right)], d, wrong)
        for c, d, (right, wrong) in zip(clean.tolist(), corrupted.tolist(), answers, strict=True)
    ])  # fmt: skip


def _some(given: Given) -> list[int]:
    return sorted({0, given.model.n_layers // 2, given.model.n_layers - 1})


def _resumed(given: Given) -> Iterator[Line]:
    """a pass resumed at a layer and position is the whole pass."""
    model, what = given.model, checking._name(_resumed)
    half, last = given.tokens.shape[1] // 2, given.tokens.shape[1] - 1
    cuts = short_cuts(model, given.tokens)
    if not cuts.resumes:
        yield refused(what, cuts.why)
        return
    clean, worst = CleanPass(model, given.tokens, cuts), 0.0
    for site in [site for layer in _some(given) for site in model.sites if site.startswith(f"blocks.{layer}.")]:
        for first, read in ((0, None), (half, last)):
            first = clean.start([site], first)
            add = _added(given, site, first)
            with edited(model, {site: lambda value, add=add: value + add}):
                wanted = model(given.tokens.repeat(2, 1))[:, last if read else first :]
            cut = add.movedim(_positions(site), 0)[first:].movedim(0, _positions(site))
            hidden = clean.resume({site: lambda value, cut=cut: value + cut}, 2, first=first, read=read)
            found = model.head(hidden)[:, :, (-1 if read else 0) :].flatten(0, 1)
            worst = max(worst, apart(found, wanted))
    yield same(what, worst, given.limit, cuts.why)


def _positions(site: str) -> int:
    names = axes(site).split()
    return names.index("query" if "query" in names else "pos")


def _added(given: Given, site: str, first: int) -> Tensor:
    """Noise on two copies of the prompts, 0 before a position."""
    noise = given.noise(site, 2)
    noise.movedim(_positions(site), 0)[:first] = 0
    return noise


def _ablated(given: Given) -> Iterator[Line]:
    """an ablation sweep is the loop over plain hooks."""
    model, task = given.model, task_of(given)
    rows = [f"L{layer}H{head}" for layer in _some(given) for head in (0, model.n_heads - 1)]
    rows += [f"L{layer}.attn" for layer in _some(given)]
    rows += [f"L{layer}.mlp" for layer in _some(given) if layer in given.layers("mlp_out")]
    rows += [f"L{layer}N1" for layer in _some(given) if layer in given.layers("post")]
    effects = ablate(model, task, components=rows, method=["zero", "resample"], metric="logit_diff")
    found = effects.values["zero", "logit_diff"], effects.values["resample", "logit_diff"]
    with captured(model, model.sites) as donors:
        model(task.tokens("corrupted"))
    parts = [_part(name) for name in rows]
    wanted = [_loop(given, task, parts, lambda site, old: torch.zeros_like(old)),
              _loop(given, task, parts, lambda site, old: donors[site])]  # fmt: skip
    yield _matches(given, checking._name(_ablated), found, wanted, effects)


def _patched(given: Given) -> Iterator[Line]:
    """a patching sweep by position is the loop over plain hooks."""
    model, task = given.model, task_of(given)
    effects = patch(model, task, site="resid_pre", method="denoise", metric="logit_diff")
    with captured(model, model.sites) as donors:
        model(task.tokens("clean"))
    places = effects.table()[["layer", "position"]].itertuples(index=False)
    parts = [(layer_site(int(layer), "resid_pre"), (slice(None), int(at))) for layer, at in places]
    wanted = _loop(given, task, parts, lambda site, old: donors[site], "corrupted")
    yield _matches(given, checking._name(_patched), [effects.values["denoise", "logit_diff"]], [wanted], effects)


def _part(name: str) -> tuple[str, Any]:
    """The hook point of `L0H1`, `L0.attn`, `L0.mlp` or `L0N1`, and where in it the component is."""
    layer, kind = int(name[1 : name.index(next(c for c in name[1:] if not c.isdigit()))]), name.lstrip("L0123456789")
    if kind[0] in "HN":
        of_head = kind[0] == "H"
        index = int(name.partition(kind[0])[2])
        return layer_site(layer, "z" if of_head else "post"), (slice(None), slice(None), index)
    return layer_site(layer, {".attn": "attn_out", ".mlp": "mlp_out"}[kind]), (slice(None),)


def _loop(
    given: Given, task: Task, parts: list[tuple[str, Any]], new: Callable[[str, Tensor], Tensor], which: str = "clean"
) -> np.ndarray:
    """logit_diff [part, prompt], a whole pass for each part with `new` put into it."""
    prompt, pos, answer, wrong = task.reads()
    found = []
    for site, where in parts:

        def put(old: Tensor, site: str = site, where: Any = where) -> Tensor:
            value = old.clone()
            value[where] = new(site, old)[where]
            return value

        with edited(given.model, {site: put}):
            logits = given.model(task.tokens(which)).float().cpu()[prompt, pos]
        found.append((logits.gather(1, answer[:, None]) - logits.gather(1, wrong[:, None]))[:, 0].numpy())
    return np.array(found)


def _matches(given: Given, what: str, found: Any, wanted: Any, effects: Any) -> Line:
    """Whether logit differences are the same, relative to the largest logit; each is rounded in two logits."""
    found, wanted = (torch.from_numpy(np.concatenate(list(values)).astype(np.float32)) for values in (found, wanted))
    scale = given.clean.float().abs().max().item()
    return same(what, apart(found / scale, wanted / scale), 2 * given.limit, effects.about.get("slow_because", ""))


def _edges(given: Given) -> Iterator[Line]:
    """a graph of edges: none removed is the clean run, all removed the corrupted one."""
    task = task_of(given)
    patcher = Patcher(given.model, task, metrics=["logit_diff"])
    ends = [values["logit_diff"] for values in patcher.ends()]
    nothing: list[tuple[str, Any]] = [(given.model.sites[0], (slice(0, 0),))]
    wanted = [_loop(given, task, nothing, lambda site, old: old, which)[0] for which in ("clean", "corrupted")]
    found, wanted = (torch.from_numpy(np.array(values, np.float32)) for values in (ends, wanted))
    scale = given.clean.float().abs().max().item()
    yield same(checking._name(_edges), apart(found / scale, wanted / scale), 10 * given.limit)


def _estimated(given: Given) -> Iterator[Line]:
    """EAP scores every edge."""
    scores = edge_scores(given.model, task_of(given), method="eap")
    yield checking.moved(checking._name(_estimated), float(np.isfinite(scores).all() and (scores != 0).any()), 1.0)


def _slopes(given: Given) -> Iterator[Line]:
    """slopes by autograd are those of small changes."""
    model, what = given.model, checking._name(_slopes)
    if model.dtype in (torch.float16, torch.bfloat16):
        yield refused(what, "a small change drowns in the rounding of half precision: estimates want float32")
        return
    last, worst = layer_site(model.n_layers - 1, "resid_post"), 0.0
    for site in (layer_site(layer, kind) for layer in _some(given) for kind in ("z", "attn_out", "mlp_out")
                 if layer_site(layer, kind) in model.sites):  # fmt: skip
        seen = recorded(model, given.tokens, [site], {})
        weight = torch.randn(seen[last].shape, generator=torch.Generator().manual_seed(1)).to(seen[last])
        with torch.enable_grad():
            slope = torch.autograd.grad((seen[last] * weight).sum(), seen[site])[0]
        off = []
        for size in (
            (1e-4,) if model.d_mlp is not None else (1e-4, 1e-5)
        ):  # a token between two experts wants the smaller
            step = size * seen[site].detach().norm() * slope / slope.norm()  # uphill, where the change is largest
            up, down = (_stream_after(given, last, site, sign * step) for sign in (1, -1))
            wanted = ((up - down).double() * weight).sum() / 2
            off.append(float(((slope.double() * step).sum() - wanted).abs() / wanted.abs()))
        worst = max(worst, min(off))
    yield same(what, worst, 2e-2, "central differences of 1e-4, rounded themselves; larger ones switch experts")


def _edge_slopes(given: Given) -> Iterator[Line]:
    """EAP's slopes are those of small changes."""
    model, task, what = given.model, task_of(given), checking._name(_edge_slopes)
    if model.dtype in (torch.float16, torch.bfloat16):
        yield refused(what, "a small change drowns in the rounding of half precision: estimates want float32")
        return
    graph, prompts, tokens = Graph.of(model), torch.arange(len(task)), task.tokens("clean").to(model.device)
    check_split(model, graph, task)
    entry, last = layer_site(0, "resid_pre"), layer_site(model.n_layers - 1, "resid_post")
    with captured(model, [*written_sites(model), last]) as here:
        model(tokens)
    value, worst = metric_value(model, task, prompts, "logit_diff", here[last]), 0.0
    scale = given.clean.abs().max()
    wanted = {place: name for layer in _some(given) for place, name in _first_receivers(graph, layer).items()}
    for places, slope in slopes(model, graph, tokens, value, {}):
        for number, receiver in enumerate(range(*places.indices(len(graph.receivers)))):
            if receiver not in wanted:
                continue
            mine, off = slope[:, :, number].detach(), []
            for size in (1e-3, 1e-4):  # a curved place wants the smaller
                step, ends = size * scale * mine / mine.square().sum(), []  # the metric is to move by size * scale
                for sign in (1, -1):  # the input says a little more, to this place alone
                    elsewhere = {site: here[site] + sign * step if site == entry else here[site]
                                 for site in written_sites(model)}  # fmt: skip
                    split = Split(model, graph, tokens, elsewhere)
                    ends.append(value(split.run(graph.mask([f"input->{wanted[receiver]}"])[None])[0]).double().sum())
                there = (ends[0] - ends[1]) / 2
                off.append(float(((mine * step).double().sum() - there).abs() / there.abs()))
                if off[-1] <= 2e-2:
                    break
            worst = max(worst, min(off))
    yield same(what, worst, 2e-2, "central differences of 1e-3 and 1e-4, rounded themselves")


def _first_receivers(graph: Graph, layer: int) -> dict[int, str]:
    """The first query, key and value of a layer, and its MLP."""
    starts = [place.start for place in places_of(graph, layer).values() if place.start < place.stop]
    return {start: graph.receivers[start] for start in starts}


def _stream_after(given: Given, last: str, site: str, step: Tensor) -> Tensor:
    with edited(given.model, {site: lambda value: value + step}), captured(given.model, last) as cache:
        given.model(given.tokens)
    return cache[last]
