"""Prompt and Task: clean and corrupted prompts, the answers expected, and where things stand in them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from interp import runs
from interp.decoder.model import Model
from interp.errors import InputError, nearest


@dataclass(frozen=True)
class Prompt:
    """One question. `targets`: (position read, token expected there); a score is the mean over them."""

    clean_tokens: list[int]
    targets: list[tuple[int, int]]
    corrupted_tokens: list[int] | None = None
    wrong_token: int | None = None
    positions: dict[str, int] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    """What kind of prompt it is, e.g. {"construction": "relative clause"}: effects can be broken down by it."""
    answers: list[int] = field(default_factory=list)
    """Where several tokens are right (any later year): all of them, for `prob_diff`; other metrics take the target."""
    wrong_answers: list[int] = field(default_factory=list)
    """All that are wrong, for `prob_diff`; other metrics take `wrong_token`."""


@dataclass(frozen=True)
class Task:
    """Prompts, in order. `dropped` counts the words of the task that the model does not have as one token; `note` says
    in a line which they are."""

    name: str
    prompts: list[Prompt]
    dropped: int = 0
    note: str = ""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def has_corrupted(self) -> bool:
        return all(prompt.corrupted_tokens is not None for prompt in self.prompts)

    @property
    def has_wrong(self) -> bool:
        return all(prompt.wrong_token is not None for prompt in self.prompts)

    @property
    def has_sets(self) -> bool:
        return all(prompt.answers and prompt.wrong_answers for prompt in self.prompts)

    @property
    def default_metric(self) -> str:
        return "prob_diff" if self.has_sets else "logit_diff" if self.has_wrong else "loss"

    @property
    def unaligned(self) -> list[int]:
        """Numbers (from 1) of the pairs whose two prompts do not have the same number of tokens. In all others token t
        of the clean prompt stands for token t of the corrupted one."""
        pairs = enumerate(((p.clean_tokens, p.corrupted_tokens) for p in self.prompts), start=1)
        return [number for number, (a, b) in pairs if b is not None and len(a) != len(b)]

    @cached_property
    def length(self) -> int:
        return max(len(prompt.clean_tokens) for prompt in self.prompts)

    @property
    def same_length(self) -> bool:
        return all(len(prompt.clean_tokens) == self.length for prompt in self.prompts)

    @property
    def labels(self) -> list[str]:
        """Position labels that every prompt has, in their order in the first one."""
        common = set.intersection(*(set(prompt.positions) for prompt in self.prompts))
        return sorted(common, key=lambda label: self.prompts[0].positions[label])

    def tokens(self, which: str = "clean") -> Int[Tensor, "prompt pos"]:
        """Clean or corrupted token ids, padded on the right with 0: in a causal model no earlier position sees it.

        InputError for corrupted prompts that are not there, or not of their clean prompt's length: they are put in
        place of the clean ones, token by token.
        """
        if which == "corrupted" and not self.has_corrupted:
            raise InputError(f'task "{self.name}" has prompts without "corrupted": patching needs one for each.')
        if which == "corrupted" and self.unaligned:
            first = self.prompts[self.unaligned[0] - 1]
            raise InputError(
                f'pair {self.unaligned[0]} of "{self.name}" has {len(first.clean_tokens)} tokens clean and '
                f"{len(first.corrupted_tokens)} corrupted ({len(self.unaligned)} of {len(self)} pairs differ so): they "
                "must be of one length, token by token."
            )
        rows = [prompt.clean_tokens if which == "clean" else prompt.corrupted_tokens for prompt in self.prompts]
        return torch.tensor([row + [0] * (self.length - len(row)) for row in rows])

    @cached_property
    def lengths(self) -> Int[Tensor, " prompt"]:
        return torch.tensor([len(prompt.clean_tokens) for prompt in self.prompts])

    def reads(self) -> tuple[Int[Tensor, " read"], Int[Tensor, " read"], Int[Tensor, " read"], Int[Tensor, " read"]]:
        """All targets in a row: their prompt, position, answer and wrong answer (-1 where there is none)."""
        flat = [
            (i, pos, answer, -1 if p.wrong_token is None else p.wrong_token)
            for i, p in enumerate(self.prompts)
            for pos, answer in p.targets
        ]
        prompt, pos, answer, wrong = torch.tensor(flat).unbind(1)
        return prompt, pos, answer, wrong

    def answer_sets(self) -> tuple[Int[Tensor, "read right"], Int[Tensor, "read other"]]:
        """All right and all wrong answers of each read, filled up with -1: the sets of the prompt, or its one answer
        and its one wrong answer."""
        right = [p.answers or [answer] for p in self.prompts for _, answer in p.targets]
        single = [-1 if p.wrong_token is None else p.wrong_token for p in self.prompts]
        other = [p.wrong_answers or [w] for p, w in zip(self.prompts, single, strict=True) for _ in p.targets]
        return _padded(right), _padded(other)

    def at(self, position: str | int) -> Int[Tensor, " prompt"]:
        """The index of `position` (a label or an index, -1 the last) in each prompt. InputError where one has none."""
        if isinstance(position, str) and not position.lstrip("-").isdigit():
            if position not in self.labels:
                options = nearest(position, ["all", "-1", *self.labels])
                raise InputError(f'task "{self.name}" has no position "{position}". Nearest: {options}.')
            return torch.tensor([prompt.positions[position] for prompt in self.prompts])
        index = int(position)
        at = torch.where(torch.tensor(index < 0), self.lengths + index, torch.full_like(self.lengths, index))
        if (at < 0).any() or (at >= self.lengths).any():
            raise InputError(
                f'position {index} given: prompts of "{self.name}" have {int(self.lengths.min())} tokens or more.'
            )
        return at

    def table(self, model: Model) -> pd.DataFrame:
        """The prompts as text, a row each."""

        def text(ids: list[int] | None) -> str:
            return "" if ids is None else "".join(model.token_text(ids))

        return pd.DataFrame(
            {
                "clean": text(p.clean_tokens), "corrupted": text(p.corrupted_tokens),
                "answer": text([answer for _, answer in p.targets]),
                "wrong": "" if p.wrong_token is None else text([p.wrong_token]),
            }
            for p in self.prompts
        )  # fmt: skip

    def save(self, path: str | Path, model: Model | None = None) -> None:
        """prompts.jsonl: token ids, and beside them the text where `model` is given to spell it: of the prompts, and of
        each of their tokens (`clean_pieces`), for readers that have no tokenizer."""
        lines = []
        for p in self.prompts:
            row: dict = {} if model is None or model.tokenizer is None else _spelled(p, model)
            row["clean_tokens"] = p.clean_tokens
            if p.corrupted_tokens is not None:
                row["corrupted_tokens"] = p.corrupted_tokens
            if len(p.targets) == 1 and p.targets[0][0] == len(p.clean_tokens) - 1:
                row["answer_token"] = p.targets[0][1]
            else:
                row["targets"] = p.targets
            if p.wrong_token is not None:
                row["wrong_token"] = p.wrong_token
            if p.answers:
                row |= {"answer_tokens": p.answers, "wrong_tokens": p.wrong_answers}
            if p.positions:
                row["positions"] = p.positions
            if p.labels:
                row["labels"] = p.labels
            lines.append(json.dumps(row, ensure_ascii=False))
        runs.write_text(Path(path), "\n".join(lines) + "\n")


def _padded(rows: list[list[int]]) -> Int[Tensor, "row few"]:
    width = max(map(len, rows))
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


def _spelled(prompt: Prompt, model: Model) -> dict[str, str | list[str]]:
    """The prompt as text, BOS left out, and token by token."""
    ids = {"clean": prompt.clean_tokens, "corrupted": prompt.corrupted_tokens, "wrong": prompt.wrong_token}
    if len(prompt.targets) == 1:
        ids["answer"] = prompt.targets[0][1]
    text: dict[str, str | list[str]] = {}
    for key, value in ids.items():
        if value is not None:
            several = value if isinstance(value, list) else [value]
            text[key] = "".join(model.token_text([i for i in several if i != model.bos]))
    for key in ("clean", "corrupted"):
        if ids[key] is not None:
            text[f"{key}_pieces"] = model.token_text(ids[key])
    return text
