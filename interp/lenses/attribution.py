"""attribute_logits(): which parts of the model write the answer? Direct logit attribution.

The last residual stream is a sum of what the parts wrote, and with the scale of the final layer norm held at its value
in the run, a logit is linear in it. So the logit of the answer minus that of the wrong answer is a sum of the parts'

    contribution = what the part wrote . u        u = d (logit difference) / d (last residual stream), scale held

and of the biases of the final layer norm and the unembedding. Positive: the part writes towards the answer, in nats;
0: nothing. It is the direct way only: what later parts make of it counts as theirs, and a head whose ablation the model
repairs can contribute much (Elhage et al. 2021, "A mathematical framework for transformer circuits"; Wang et al. 2022,
arXiv:2211.00593, section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from safetensors.numpy import load_file, save_file
from torch import Tensor

from interp import runs
from interp.causal.effects import about
from interp.causal.resuming import TOLERANCE
from interp.causal.statistics import bootstrap, mean_and_std
from interp.causal.sweeps import batches, tokens_at_once
from interp.data.tasks import Task
from interp.decoder.hooks import Edit, captured, edited
from interp.decoder.model import Model
from interp.decoder.placing import as_numbers
from interp.decoder.sites import layer_site
from interp.errors import InputError, MissingFile, UnknownName, nearest
from interp.lenses.reading import one_prompt
from interp.lenses.written import BY, Part, contributions, sites
from interp.progress import Progress

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Attribution:
    """The contribution of every part to the logit difference of every prompt; they sum to it, to 1e-4 in float32 and
    to its rounding in half precision.

    `values` is float32 [row, prompt], in the order of the table's rows; `total` [prompt] is what they sum to.
    """

    rows: pd.DataFrame
    values: Float[np.ndarray, "row prompt"]
    total: Float[np.ndarray, " prompt"]
    about: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """A row a part, in the order in which they write: `component`, `kind`, `layer`, `index`, and its
        `contribution`, the mean over prompts in nats, with its standard deviation and 95% bootstrap interval.

        Besides heads and MLPs there are `embed`, `pos_embed`, the biases of attention `L0.b_O`, of MLPs `L0.b_out`, of
        the last layer norm `ln_final.b` and of the unembedding `unembed.b`; of a dictionary its latents `demo/417`,
        `demo/bias` and `demo/error`; of an edited run `edits`, what was put into the stream that no part wrote.
        `group`: what a row belongs to by layer."""
        return self.rows.copy()

    def top(self, n: int = 10) -> pd.DataFrame:
        """The `n` rows that contribute most, to either side."""
        return self.rows.loc[self.rows.contribution.abs().sort_values(ascending=False, kind="stable").index[:n]].copy()

    def by_layer(self) -> Attribution:
        """The parts of each layer's attention together, and those of its MLP."""
        groups = self.rows["group"]
        names = list(dict.fromkeys(groups))
        values = np.stack([self.values[(groups == name).to_numpy()].astype(np.float64).sum(0) for name in names])
        firsts = self.rows.drop_duplicates("group").assign(component=names, index=-1)
        firsts["kind"] = [
            name.partition(".")[2] if name.startswith("L") else kind
            for name, kind in zip(names, firsts["kind"], strict=True)
        ]
        return _built(firsts, values, self.total, self.about)

    def figure(self) -> Figure:
        """Layer x head where the rows are components, bars by layer where they are layers, else the largest rows."""
        from interp.plots.lenses import attribution

        return attribution(self.rows, self.about["metric"], float(self.total.mean()))

    def save(self, path: str | Path) -> None:
        """attribution.parquet, attribution.safetensors (every prompt's value) and attribution.json into `path`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self.rows.to_parquet(path / "attribution.parquet", index=False)
        save_file({"values": self.values, "total": self.total}, path / "attribution.safetensors")
        runs.write_json(path / "attribution.json", self.about)

    @classmethod
    def load(cls, path: str | Path) -> Attribution:
        """What `save` wrote. MissingFile where there is none."""
        path = Path(path)
        if not (path / "attribution.parquet").exists():
            raise MissingFile(f"no attribution.parquet in {path}: make one with interp lens attribute.")
        arrays = load_file(path / "attribution.safetensors")
        rows = pd.read_parquet(path / "attribution.parquet")
        return cls(rows, arrays["values"], arrays["total"], runs.read_json(path / "attribution.json"))


@torch.no_grad()
def attribute_logits(
    model: Model,
    prompt: Task | str | Sequence[int],
    *,
    by: str = "component",
    answer: str | int | None = None,
    wrong: str | int | None = None,
    position: int = -1,
    dictionaries: Mapping[str, Any] | None = None,
    edits: Mapping[str, Edit] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Attribution:
    """What each part contributes to logit(answer) - logit(wrong), or to logit(answer) where nothing is wrong.

    `prompt`: a task, whose reads and answers are taken, or one prompt, read at `position` for `answer` (the model's own
    top token if not given) over `wrong`. `by`: "layer", "component" (heads, MLPs, biases) or "neuron" (an MLP's neurons
    in its place). `dictionaries`: name -> dictionary; what it reads is broken up into its latents, its bias and its
    error: of a `resid_post` all that was written up to there, of `attn_out`, `z` or `mlp_out` what that layer wrote.
    `edits`: of the run. `seed`: of the bootstrap over prompts.

    InputError for a model whose logits are capped or whose parts do not add up to them, for dictionaries that explain
    the same thing twice or read several sites.
    """
    if by not in BY:
        raise UnknownName(f'no parts "{by}". Nearest: {nearest(by, BY)}.')
    if model.logit_cap > 0:
        raise InputError(f'"{model.name}" caps its logits, so they are no sum over parts: use interp.ablate.')
    sums = _Sums(model, by, dict(dictionaries or {}), dict(edits or {}))
    task = prompt if isinstance(prompt, Task) else _asked(model, prompt, answer, wrong, position, sums.edits)
    _check_sum(model, task)
    read_prompt, *_ = reads = task.reads()
    weight = 1 / torch.bincount(read_prompt, minlength=len(task)).double()[read_prompt].numpy()
    names, values, total = [], None, np.zeros(len(task))
    with Progress("attributing logits", len(task), progress) as bar:
        for prompts in batches(task, tokens_at_once(model, task.length)):
            mine = torch.isin(read_prompt, prompts).nonzero()[:, 0]
            tokens = task.tokens()[prompts, : int(task.lengths[prompts[0]])]
            row = torch.searchsorted(prompts, read_prompt[mine])
            names, parts, whole = sums.of(tokens, row, *(x[mine] for x in reads[1:]))
            values = np.zeros((len(task), len(names))) if values is None else values
            at, share = read_prompt[mine].numpy(), weight[mine.numpy()]
            np.add.at(values, at, parts.cpu().numpy() * share[:, None])
            np.add.at(total, at, whole.cpu().numpy() * share)
            bar.advance(len(prompts))
    rows, values = pd.DataFrame(map(asdict, names)), values.T
    there = (rows["kind"] != "final_bias") | values.any(1)  # a model without such a bias has no row for it
    said = about(
        model, task, seed, metric="logit_diff" if task.has_wrong else "logit", edits=list(sums.edits),
        dictionaries=list(sums.dictionaries),
    )  # fmt: skip
    found = _built(rows[there], values[there], total, said)
    return found.by_layer() if by == "layer" else found


@dataclass(frozen=True)
class _Sums:
    """The logit differences of a run as sums over parts."""

    model: Model
    by: str
    dictionaries: Mapping[str, Any]
    edits: Mapping[str, Edit]

    def of(
        self, tokens: Int[Tensor, "prompt pos"], prompt: Int[Tensor, " read"], pos: Int[Tensor, " read"],
        answer: Int[Tensor, " read"], wrong: Int[Tensor, " read"],
    ) -> tuple[list[Part], Float[Tensor, "read part"], Float[Tensor, " read"]]:  # fmt: skip
        """The parts, what each contributes at each read, and what they sum to."""
        needed = sites(self.model, self.by, self.dictionaries)
        with edited(self.model, self.edits), captured(self.model, needed) as cache:
            logits = self.model(tokens)
        prompt, pos, answer, wrong = (x.to(logits.device) for x in (prompt, pos, answer, wrong))
        given = {site: value[prompt, pos] for site, value in cache.items()}
        total = _difference(logits[prompt, pos].double(), answer[:, None], wrong[:, None])
        u, biases = direction(self.model, given[layer_site(self.model.n_layers - 1, "resid_post")], answer, wrong)
        blocks = list(contributions(self.model, given, u, self.by, self.dictionaries))
        blocks.append(([Part(f"{name}.b", "final_bias", self.model.n_layers, -1, "final biases")
                        for name in ("ln_final", "unembed")], biases))  # fmt: skip
        if self.edits:
            rest = total - sum(values.sum(1) for _, values in blocks)
            blocks.append(([Part("edits", "edits", self.model.n_layers, -1, "edits")], rest[:, None]))
        return [part for names, _ in blocks for part in names], torch.cat([v for _, v in blocks], 1), total


def direction(
    model: Model, final: Float[Tensor, "read d_model"], answer: Int[Tensor, " read"], wrong: Int[Tensor, " read"]
) -> tuple[Float[Tensor, "read d_model"], Float[Tensor, "read 2"]]:
    """d (logit difference) / d (last residual stream) with the scale of the last layer norm held, in float64; and what
    its bias and the unembedding's add to the difference. `wrong` -1: of the answer's logit alone."""
    tokens = torch.stack([answer, wrong.clamp(min=0)], 1)
    sign = torch.stack([torch.ones_like(wrong), -(wrong >= 0).long()], 1)
    scale = [name for name in model.scales if name.startswith("ln_final.")]
    with torch.enable_grad(), edited(model, {name: lambda value: value.detach() for name in scale}):
        x = final.detach().clone().requires_grad_()
        (u,) = torch.autograd.grad((model.head(x, tokens) * sign).sum(), x)
    both = (model.head(torch.zeros_like(final), tokens).double() * sign).sum(1)
    with as_numbers(model, model.bridge.unembed):
        unembed = (model.after_unembedding(model.bridge.unembed.b_U[tokens]).double() * sign).sum(1)
    return u.double(), torch.stack([both - unembed, unembed], 1)


def _difference(logits: Float[Tensor, "read d_vocab"], answer: Int[Tensor, "read 1"], wrong: Int[Tensor, "read 1"]):
    other = torch.where(wrong >= 0, logits.gather(1, wrong.clamp(min=0)), 0)
    return (logits.gather(1, answer) - other)[:, 0]


def _asked(
    model: Model, prompt: str | Sequence[int], answer: str | int | None, wrong: str | int | None, position: int,
    edits: Mapping[str, Edit],
) -> Task:  # fmt: skip
    """One prompt as a task; its answer is the run's top token where none is given."""
    task = one_prompt(model, prompt, 0 if answer is None else answer, wrong, position)
    if answer is not None:
        return task
    with edited(model, edits):
        top = int(model(task.tokens())[0, position].argmax())
    return one_prompt(model, prompt, top, wrong, position)


def _check_sum(model: Model, task: Task) -> None:
    """InputError unless the parts of the model add up to its logits, tried on the first prompt without an edit."""
    prompt, *rest = task.reads()
    mine = prompt == 0
    tokens = task.tokens()[:1, : int(task.lengths[0])]
    _, parts, total = _Sums(model, "component", {}, {}).of(tokens, prompt[mine], *(x[mine] for x in rest))
    off, most = (parts.sum(1) - total).abs().max(), parts.abs().max().clamp(min=1)
    if not off <= 10 * TOLERANCE[model.dtype] * most:
        raise InputError(
            f'the parts of "{model.name}" do not add up to its logits ({off:.2g} is left over): something other '
            "than its embeddings, heads and MLPs writes to the residual stream; use interp.ablate."
        )


def _built(rows: pd.DataFrame, values: np.ndarray, total: np.ndarray, about: dict[str, Any]) -> Attribution:
    """The table: means over prompts, and their intervals."""
    low, high = bootstrap(values, about["seed"])
    mean, std = mean_and_std(values)
    rows = rows.assign(contribution=mean, contribution_std=std, ci_low=low, ci_high=high, n=len(total))
    return Attribution(rows.reset_index(drop=True), values.astype(np.float32), total.astype(np.float32), about)
