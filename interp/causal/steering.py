"""Does the model use a direction? Push along it, and see what follows, beside directions that mean nothing.

    log_odds   log P(toward) - log P(away) of the next token, in nats: tokens that the positive examples call for
               against those of the negative ones. With one of each it is the logit difference. 0: as likely.
    kl         KL(unchanged || changed) of the next token, in nats: how much of everything else moves too.
    words      tokens of `toward` minus tokens of `away` in a continuation of the prompt.

Effects are changed minus unchanged, paired by prompt, with 95% bootstrap intervals over prompts. Controls have the same
length and act at the same places: `random` ones point anywhere; `shuffled` ones were found in the same way where the
labels of the examples meant nothing, so they lie where the activations do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import runs
from interp.causal.directions import Direction
from interp.causal.statistics import bootstrap
from interp.data.tasks import Task
from interp.data.wording import one_token
from interp.decoder.generation import Sampling, stream
from interp.decoder.hooks import Edit, edited
from interp.decoder.model import Model
from interp.errors import InputError
from interp.progress import Progress

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

GAPS = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
"""Strengths if none are given, in gaps between the two sets' means."""


@dataclass(frozen=True)
class Question:
    """Prompts, and the tokens that would be one way of going on after each, and the other way."""

    tokens: list[list[int]]
    toward: Int[Tensor, "prompt _"]
    away: Int[Tensor, "prompt _"]

    @classmethod
    def of(
        cls, model: Model, prompts: Task | Sequence[str] | Sequence[Sequence[int]], direction: Direction | None = None,
        toward: Sequence[str] = (), away: Sequence[str] = (),
    ) -> Question:  # fmt: skip
        """Of a task, read at its first target: towards the answer of the direction's positive examples, or, where it
        has none, towards each prompt's own answer. Of other prompts `toward` and `away` say it: words of one token."""
        is_task = isinstance(prompts, Task)
        if is_task:
            tokens = [p.clean_tokens[: p.targets[0][0] + 1] for p in prompts.prompts]
        else:
            tokens = [model.to_tokens(p) if isinstance(p, str) else list(p) for p in prompts]
        answers = None if direction is None else direction.about.get("answers")
        if bool(toward) != bool(away) or not (toward or is_task):
            raise InputError('say which tokens to go toward and away from, e.g. toward [" she"], away [" he"].')
        if toward:
            sides = [[one_token(model, text) for text in side] for side in (toward, away)]
        elif answers is not None:
            sides = [[answer] for answer in answers]
        else:
            if not prompts.has_wrong:
                raise InputError(f'task "{prompts.name}" has no wrong answers: say toward and away.')
            right, wrong = (torch.tensor([[token] for token in side]) for side in (
                [p.targets[0][1] for p in prompts.prompts], [p.wrong_token for p in prompts.prompts]
            ))  # fmt: skip
            return cls(tokens, right, wrong)
        return cls(tokens, *(torch.tensor(side).repeat(len(tokens), 1) for side in sides))

    @torch.no_grad()
    def logprobs(
        self, model: Model, edits: Mapping[str, Edit], *, batch_size: int = 64
    ) -> Float[Tensor, "prompt d_vocab"]:
        """Of the token after each prompt, float32 on the CPU."""
        found = []
        for first in range(0, len(self.tokens), batch_size):
            rows = self.tokens[first : first + batch_size]
            last = torch.tensor([len(row) - 1 for row in rows])
            tokens = torch.zeros(len(rows), int(last.max()) + 1, dtype=torch.long)
            for row, ids in zip(tokens, rows, strict=True):
                row[: len(ids)] = torch.tensor(ids)
            with edited(model, edits):
                logits = model(tokens)
            found.append(logits[torch.arange(len(rows)), last].float().log_softmax(-1).cpu())
        return torch.cat(found)

    def log_odds(self, logprobs: Float[Tensor, "prompt d_vocab"]) -> Float[np.ndarray, " prompt"]:
        toward, away = (logprobs.gather(1, side).logsumexp(1) for side in (self.toward, self.away))
        return (toward - away).numpy()

    def words(
        self, model: Model, edits: Mapping[str, Edit], new_tokens: int, seed: int
    ) -> Float[np.ndarray, " prompt"]:
        """Tokens of `toward` minus tokens of `away` in the first continuation that `generate` samples so."""
        counts, sampling = np.zeros(len(self.tokens)), Sampling(new_tokens, seed=seed)
        lengths = np.array([len(row) for row in self.tokens])
        for length in np.unique(lengths):
            mine = np.flatnonzero(lengths == length)
            draws = [np.random.default_rng([seed, number, 0]) for number in mine.tolist()]
            prompts = torch.tensor([self.tokens[number] for number in mine])
            for step in stream(model, prompts, sampling, edits=edits, beside=False, draws=draws):
                new = step.tokens[:, None]
                gain = (self.toward[mine] == new).any(1).long() - (self.away[mine] == new).any(1).long()
                counts[mine] += gain.masked_fill(step.tokens < 0, 0).numpy()
        return counts


@dataclass(frozen=True)
class DoseResponse:
    """What pushing along a direction does, by strength. `values` has a row a prompt, measure, vector and strength:
    value before, value after."""

    values: pd.DataFrame
    about: dict[str, Any]

    def table(self) -> pd.DataFrame:
        """One row a measure, kind of vector ("direction", "random", "shuffled") and strength (in the stream's unit; in
        `gaps`): mean `effect`, changed minus unchanged, with its 95% interval over prompts; of several vectors of a
        kind the mean, and the `least` and `largest` of theirs. `positive`: the share of prompts whose changed value is
        above 0."""
        keys, found = ["measure", "kind", "strength"], []
        for key, rows in self.values.groupby(keys, sort=False):
            effects = (rows["after"] - rows["before"]).to_numpy().reshape(rows["vector"].nunique(), -1)
            low, high = bootstrap(effects.mean(0)[None], self.about["seed"])
            found.append(dict(zip(keys, key, strict=True)) | {
                "gaps": key[2] / self.about["gap"], "before": rows["before"].mean(), "after": rows["after"].mean(),
                "effect": effects.mean(), "ci_low": low[0], "ci_high": high[0], "least": effects.mean(1).min(),
                "largest": effects.mean(1).max(), "positive": (rows["after"] > 0).mean(), "n_vectors": len(effects),
                "n": effects.shape[1],
            })  # fmt: skip
        return pd.DataFrame(found)

    def verdict(self) -> pd.DataFrame:
        """Does it do more than directions that mean nothing? A row a measure and strength: `effect` of the direction
        with its interval, and of each kind of control the largest |effect| of one at that strength, pushed either way
        (its sign means nothing). `clear`: the whole interval lies on the side pushed to, beyond every control."""
        table = self.table()
        table["size"] = table[["least", "largest"]].abs().max(axis=1)
        ours = table[(table["kind"] == "direction") & (table["measure"] != "kl")]
        beside = table[table["kind"] != "direction"]
        beside = beside.groupby([beside["measure"], beside["strength"].abs(), "kind"])["size"].max().unstack()
        found = ours[["measure", "strength", "gaps", "effect", "ci_low", "ci_high"]].reset_index(drop=True)
        controls = beside.loc[list(zip(found["measure"], found["strength"].abs(), strict=True))].reset_index(drop=True)
        nearest_to_0 = np.where(found["strength"] > 0, found["ci_low"], -found["ci_high"])
        found = found.join(controls)
        return found.assign(clear=nearest_to_0 > controls.max(axis=1).clip(lower=0), n=ours["n"].to_numpy())

    def figure(self, measure: str = "log_odds") -> Figure:
        """The effect by strength, with controls in grey between their least and largest."""
        from interp.plots.directions import dose_response

        table = self.table()
        return dose_response(table[table["measure"] == measure], self.about)

    def save(self, path: str | Path) -> None:
        """dose.parquet (the table), dose_prompts.parquet (every prompt's values) and dose.json into the folder."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self.table().to_parquet(path / "dose.parquet", index=False)
        self.values.to_parquet(path / "dose_prompts.parquet", index=False)
        runs.write_json(path / "dose.json", self.about)

    @classmethod
    def load(cls, path: str | Path) -> DoseResponse:
        """What `save` wrote. MissingFile where there is none."""
        said = runs.read_json(Path(path) / "dose.json", "make one with interp direction test --out")
        return cls(pd.read_parquet(Path(path) / "dose_prompts.parquet"), said)


def dose_response(
    model: Model,
    direction: Direction,
    prompts: Task | Sequence[str] | Sequence[Sequence[int]],
    *,
    strengths: Sequence[int | float] | None = None,
    toward: Sequence[str] = (),
    away: Sequence[str] = (),
    sites: str | Sequence[str] | None = None,
    new_tokens: int = 0,
    n_random: int = 5,
    seed: int = 0,
    progress: bool = False,
) -> DoseResponse:
    """Push along the direction by each of `strengths` (in the stream's unit; -2 to 2 gaps if not given) at `sites`
    (where it was found, if not given), at every position, and measure what comes next (see above).

    `prompts`: a task, or texts with `toward` and `away`, words of one token (`Question.of`). Those the direction was
    found on are to be left out before: `direction.unseen(task)`. `new_tokens`: continue each prompt by so many, and
    count words too. InputError where the direction was found in another model, or no strength but 0 is given.
    """
    direction.check(model)
    strengths = [gap * direction.gap for gap in GAPS] if strengths is None else strengths
    strengths = [float(strength) for strength in dict.fromkeys(strengths) if strength]
    if not strengths:
        raise InputError("no strength but 0 given: nothing would be pushed.")
    question = Question.of(model, prompts, direction, toward, away)
    noise = torch.randn(n_random, model.d_model, generator=torch.Generator().manual_seed(seed))
    vectors = [("direction", direction.vector), *(("random", v) for v in noise)]
    vectors += [("shuffled", v) for v in direction.shuffled]

    def measured(edits: Mapping[str, Edit]) -> dict[str, np.ndarray]:
        logprobs = question.logprobs(model, edits)
        moved = (plain.exp() * (plain - logprobs)).sum(1).numpy()
        found = {"log_odds": question.log_odds(logprobs), "kl": moved}
        return found | ({"words": question.words(model, edits, new_tokens, seed)} if new_tokens else {})

    pieces = []
    with Progress("pushing", len(vectors) * len(strengths), progress) as bar:
        plain = question.logprobs(model, {})
        before = measured({})
        for number, (kind, vector) in enumerate(vectors):
            along = replace(direction, vector=vector)
            for strength in strengths:
                after = measured(along.steer(strength, sites=sites))
                pieces += [
                    pd.DataFrame({"measure": name, "kind": kind, "vector": number, "strength": strength,
                                  "before": before[name], "after": value}).rename_axis("prompt").reset_index()
                    for name, value in after.items()
                ]  # fmt: skip
                bar.advance()
    about = {
        "direction": direction.name, "method": direction.method, "site": direction.site, "gap": direction.gap,
        "sites": [direction.site] if sites is None else [sites] if isinstance(sites, str) else list(sites),
        "task": prompts.name if isinstance(prompts, Task) else None, "toward": _said(model, question.toward),
        "away": _said(model, question.away), "new_tokens": new_tokens, "seed": seed, "model": model.provenance(),
        "versions": runs.versions(),
    }  # fmt: skip
    return DoseResponse(pd.concat(pieces, ignore_index=True).sort_values("strength", kind="stable"), about)


def _said(model: Model, side: Int[Tensor, "prompt _"]) -> str:
    """The tokens of a side, where they are the same after every prompt."""
    same = bool((side == side[:1]).all())
    return ", ".join(f'"{text}"' for text in model.token_text(side[0].tolist())) if same else "each prompt's own"


def removal(
    model: Model, direction: Direction, task: Task, *, sites: str | Sequence[str] | None = None, n_random: int = 5,
    seed: int = 0, progress: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """What is left of a task's logit difference (right answer over wrong, in nats) and accuracy with the direction
    projected out where it was found (or at `sites`), and out of every write to the stream; and with random directions,
    and those of shuffled labels, out of every write: their mean, and the `least` and `largest` effect of one. Columns:
    change, logit_diff, effect, ci_low, ci_high, least, largest, accuracy, n."""
    direction.check(model)
    question = Question.of(model, task)
    noise = torch.randn(n_random, model.d_model, generator=torch.Generator().manual_seed(seed))
    beside = {"random directions": noise, "directions of shuffled labels": direction.shuffled}
    changes = {
        "nothing": [{}], "projected out where found": [direction.project_out(sites=sites)],
        "projected out of every write": [direction.ablate(model)],
    } | {
        f"{len(vectors)} {name} out of every write": [replace(direction, vector=v).ablate(model) for v in vectors]
        for name, vectors in beside.items()
    }  # fmt: skip
    every = {}
    with Progress("projecting out", sum(map(len, changes.values())), progress) as bar:
        for name, each in changes.items():
            drawn = []
            for edits in each:
                drawn.append(question.log_odds(question.logprobs(model, edits)))
                bar.advance()
            every[name] = np.stack(drawn)
    start = every["nothing"][0]
    means = np.stack([drawn.mean(0) for drawn in every.values()])
    one_by_one = [(drawn - start).mean(1) for drawn in every.values()]
    low, high = bootstrap(means - start, seed)
    return pd.DataFrame({
        "change": list(every), "logit_diff": means.mean(1), "effect": (means - start).mean(1), "ci_low": low,
        "ci_high": high, "least": [x.min() for x in one_by_one], "largest": [x.max() for x in one_by_one],
        "accuracy": [(drawn > 0).mean() for drawn in every.values()], "n": len(task),
    })  # fmt: skip
