"""Hidden states to one number per metric and prompt, with no more logits than the metrics ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.data.metrics import METRICS, OF_SETS
from interp.data.tasks import Task
from interp.decoder.model import Model

LOGITS_AT_ONCE = 2**24


class Scorer:
    """Scores batches of a task's prompts. `names`: the metrics, then `<metric>-<class>` of each class of reads."""

    def __init__(self, model: Model, task: Task, metrics: Sequence[str], classes: Mapping[str, Tensor]):
        self.model, self.metrics, self.classes = model, list(metrics), dict(classes)
        self.names = [*metrics, *(f"{metric}-{label}" for label in classes for metric in metrics)]
        self.prompt, self.pos, self.answer, self.wrong = task.reads()
        self.all_right, self.all_wrong = task.answer_sets()
        pairs_only = {"logit_diff", "accuracy"} if bool((self.wrong >= 0).all()) else set()
        self.pairs = set(metrics) <= pairs_only

    def prepare(self, prompts: Int[Tensor, " prompt"], clean: Float[Tensor, "prompt pos d_model"]) -> None:
        """Score these prompts next; `clean` is what comes out of the last block of their clean pass, for kl."""
        device = clean.device
        row = torch.full((int(self.prompt.max()) + 1,), -1)
        row[prompts] = torch.arange(len(prompts))
        mine = (row[self.prompt] >= 0).nonzero()[:, 0]
        self.row, self.at = row[self.prompt[mine]].to(device), self.pos[mine].to(device)
        self.right, self.other = self.answer[mine].to(device), self.wrong[mine].to(device)
        self.sets = self.all_right[mine].to(device), self.all_wrong[mine].to(device)
        self.n_prompts = len(prompts)
        self.only_read = int(self.at[0]) if bool((self.at == self.at[0]).all()) else None
        self.first_read = int(self.at.min())
        self.clean = clean[self.row, self.at]
        small = len(self.row) * self.model.d_vocab <= LOGITS_AT_ONCE
        with torch.no_grad():
            self.kept = self.model.head(self.clean).float() if small and "kl" in self.metrics else None
        self.masks = [None, *(mask[mine].to(device) for mask in self.classes.values())]

    @torch.no_grad()
    def score(
        self, hidden: Float[Tensor, "stack prompt pos d_model"], offset: int, *, normalized: bool = False
    ) -> dict[str, np.ndarray]:
        """Each metric [stack, prompt]; the first position of `hidden` is `offset`. NaN where a prompt has no read."""
        stack, n_reads = len(hidden), len(self.row)
        reads = hidden[:, self.row, self.at - offset].flatten(0, 1)
        scores = {metric: [] for metric in self.metrics}
        at_once = len(reads) if self.pairs else max(1, LOGITS_AT_ONCE // self.model.d_vocab)
        for part in torch.arange(len(reads), device=hidden.device).split(at_once):
            which = part % n_reads
            answer, wrong = self.right[which], self.other[which]
            if self.pairs:
                logits = self.model.head(reads[part], torch.stack([answer, wrong], 1), normalized=normalized)
                logits = logits.float()
                answer, wrong = torch.zeros_like(answer), torch.ones_like(wrong)
            else:
                logits = self.model.head(reads[part], normalized=normalized).float()
            clean = self._clean_logits(which) if "kl" in self.metrics else None
            for metric in self.metrics:
                asked = [s[which] for s in self.sets] if metric in OF_SETS else (answer, wrong)
                scores[metric].append(METRICS[metric](logits, *asked, clean).float())
        found = {}
        for name, mask in zip([None, *self.classes], self.masks, strict=True):
            for metric in self.metrics:
                each = torch.cat(scores[metric]).unflatten(0, (stack, n_reads)).double()
                found[metric if name is None else f"{metric}-{name}"] = self._per_prompt(each, mask)
        return found

    def _clean_logits(self, reads: Int[Tensor, " read"]) -> Float[Tensor, "read d_vocab"]:
        return self.model.head(self.clean[reads]).float() if self.kept is None else self.kept[reads]

    def _per_prompt(self, each: Float[Tensor, "stack read"], mask: Tensor | None) -> np.ndarray:
        """The mean over a prompt's reads, or over those of a class."""
        counted = torch.ones_like(self.row, dtype=each.dtype) if mask is None else mask.to(each.dtype)
        total = each.new_zeros(len(each), self.n_prompts).index_add_(1, self.row, each * counted)
        count = each.new_zeros(self.n_prompts).index_add_(0, self.row, counted)
        return (total / count).float().cpu().numpy()  # 0 / 0 is NaN: no read of the class
