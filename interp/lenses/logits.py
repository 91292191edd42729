"""logit_lens(): what would the model say if it stopped after this layer?

The residual stream of each layer and position goes through the final layer norm and the unembedding, as the last
layer's does (nostalgebraist 2020, "interpreting GPT: the logit lens"). Early streams need not be written in the last
layer's coordinates, so a layer that "knows" nothing here may know it yet: `interp.lenses.tuned` learns a translation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from interp import runs
from interp.decoder.hooks import Edit
from interp.decoder.model import Model
from interp.errors import InputError
from interp.lenses.kept import Kept
from interp.lenses.reading import entropy_of, kl_divergence, label, look, rank_of, readings, token_id, token_ids
from interp.lenses.tuned import TunedLens
from interp.progress import Progress

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Lens(Kept):
    """What each layer says at each position of one prompt. `about`: model, tokens, what the target is, the tuned lens,
    the sites edited, versions."""

    FILE = "lens"
    MADE_BY = "interp lens show"

    def table(self) -> pd.DataFrame:
        """A row a layer and position: `layer` (-1: the embeddings; the last is the model's output), `position` and the
        `token` there; `top`, the likeliest next tokens, and `top_prob`; of the `target` its `logit`, `prob` and `rank`
        (1: the top token); `kl`, KL(output || lens) in nats, 0 where the layer says what the output says; `entropy`
        in nats."""
        return self.rows.copy()

    def figure(self, colour: str = "top_prob", *, last: int = 24) -> Figure:
        """Layer x position, the top token in each cell, of the `last` positions. `colour`: "top_prob", "prob" or "rank"
        of the target, "kl", "entropy"."""
        from interp.plots.lenses import grid

        return grid(self.rows, colour, last=last)


@torch.no_grad()
def logit_lens(
    model: Model,
    prompt: str | Sequence[int] | Int[Tensor, " pos"],
    *,
    target: str | int | None = None,
    top: int = 5,
    edits: Mapping[str, Edit] | None = None,
    tuned: TunedLens | None = None,
    progress: bool = False,
) -> Lens:
    """The `top` tokens of every layer at every position, and how a target stands among all.

    `target`: one token, by text or number, for all positions. Without it the token that follows in the prompt, which
    shows where each prediction is made; at the last position, where none follows, the output's top token. `edits`: of
    the run that is looked at (`interp.edited`). `tuned`: the layers' translations; WrongModel for another model's.
    """
    if not 1 <= top <= model.d_vocab:
        raise InputError(f'top {top} given: "{model.name}" has {model.d_vocab} tokens.')
    if tuned is not None:
        tuned.check(model)
    ids = token_ids(model, prompt)
    pos = torch.arange(len(ids))
    seen = look(model, torch.tensor([ids]), torch.zeros_like(pos), pos, edits)
    following = torch.tensor([*ids[1:], int(seen.logits[-1].argmax())], device=seen.logits.device)
    asked = following if target is None else torch.full_like(following, token_id(model, target))
    tables = []
    with Progress("reading layers", len(ids) * len(seen.hidden), progress) as bar:
        for layer, some, logits, output in readings(model, seen, tuned):
            log_p, token = logits.log_softmax(-1), asked[some]
            found = log_p.topk(top, dim=-1)
            mine = log_p.gather(1, token[:, None])[:, 0]
            tables.append(pd.DataFrame({
                "layer": layer, "position": pos[some].tolist(), "token": model.token_text(ids[some]),
                "top": [model.token_text(line) for line in found.indices.tolist()], "top_id": found.indices.tolist(),
                "top_prob": found.values.exp().tolist(), "target": model.token_text(token.tolist()),
                "target_id": token.tolist(), "logit": logits.gather(1, token[:, None])[:, 0].tolist(),
                "prob": mine.exp().tolist(), "rank": rank_of(logits, token).tolist(),
                "kl": kl_divergence(output.log_softmax(-1), log_p).tolist(),
                "entropy": entropy_of(log_p).tolist(),
            }))  # fmt: skip
            bar.advance(len(logits))
    about = {
        "model": model.provenance(), "tokens": ids, "target": "the next token" if target is None else target,
        "tuned": None if tuned is None else tuned.name, "edits": list(edits or {}), "versions": runs.versions(),
        "layers": [label(layer) for layer in seen.hidden],
    }  # fmt: skip
    return Lens(pd.concat(tables, ignore_index=True), about)
