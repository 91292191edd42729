"""Tasks: clean and corrupted prompts, the answers expected, and where things stand in them.

`load_task("ioi", model, n=200, seed=0)` builds prompts; a path loads them from .jsonl. Answers are single tokens under
the model's tokenizer: what is not is dropped, and counted in `Task.dropped`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from interp import runs
from interp.data import words
from interp.decoder.loading import Model
from interp.errors import InputError, MissingFile, UnknownTask, nearest


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


@dataclass(frozen=True)
class Task:
    """Prompts, in order. `dropped` counts those left out because a word was not one token."""

    name: str
    prompts: list[Prompt]
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def has_corrupted(self) -> bool:
        return all(prompt.corrupted_tokens is not None for prompt in self.prompts)

    @property
    def has_wrong(self) -> bool:
        return all(prompt.wrong_token is not None for prompt in self.prompts)

    @property
    def default_metric(self) -> str:
        return "logit_diff" if self.has_wrong else "loss"

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
        """Clean or corrupted token ids, padded on the right with 0: in a causal model no earlier position sees it."""
        if which == "corrupted" and not self.has_corrupted:
            raise InputError(f'task "{self.name}" has prompts without "corrupted": patching needs one for each.')
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
        """prompts.jsonl: token ids, and beside them the text where `model` is given to spell it."""
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
            if p.positions:
                row["positions"] = p.positions
            if p.labels:
                row["labels"] = p.labels
            lines.append(json.dumps(row, ensure_ascii=False))
        runs.write_text(Path(path), "\n".join(lines) + "\n")


def _spelled(prompt: Prompt, model: Model) -> dict[str, str]:
    """The prompt as text, BOS left out."""
    ids = {"clean": prompt.clean_tokens, "corrupted": prompt.corrupted_tokens, "wrong": prompt.wrong_token}
    if len(prompt.targets) == 1:
        ids["answer"] = prompt.targets[0][1]
    text = {}
    for key, value in ids.items():
        if value is not None:
            several = value if isinstance(value, list) else [value]
            text[key] = "".join(model.token_text([i for i in several if i != model.bos]))
    return text


class _Line(BaseModel):
    """A line of prompts.jsonl. Where text and token ids are both given, the ids are taken."""

    model_config = ConfigDict(extra="forbid")
    clean: str | None = None
    clean_tokens: list[int] | None = None
    corrupted: str | None = None
    corrupted_tokens: list[int] | None = None
    answer: str | None = None
    answer_token: int | None = None
    wrong: str | None = None
    wrong_token: int | None = None
    targets: list[tuple[int, int]] | None = None
    positions: dict[str, int] = {}
    labels: dict[str, str] = {}


def load_task(name: str | Path, model: Model, *, n: int | None = None, seed: int = 0) -> Task:
    """A task by name ("ioi", "induction", "agreement"; `n` prompts, default 200) or from a .jsonl file (its first `n`).

    UnknownTask for another name; InputError, naming line and key, for a file that is not as it should be.
    """
    if n is not None and n < 1:
        raise InputError(f"n {n} given: a task has one prompt or more.")
    if str(name) in BUILDERS:
        rng = random.Random(seed)
        return BUILDERS[str(name)](model, n or 200, rng)
    if str(name).endswith(".jsonl"):
        return _read_jsonl(Path(name), model, n)
    raise UnknownTask(f'no task "{name}". Nearest: {nearest(str(name), BUILDERS)}, or a path to prompt pairs (.jsonl).')


def one_token(model: Model, text: str) -> int:
    """The id of `text` as a single token; InputError where it is several."""
    ids = model.to_tokens(text, prepend_bos=False)
    if len(ids) != 1:
        pieces = " + ".join(repr(piece) for piece in model.token_text(ids))
        hint = "" if text.startswith(" ") else f' Words inside a sentence begin with a space: "{" " + text}".'
        raise InputError(f'"{text}" is {len(ids)} tokens in "{model.name}" ({pieces}): an answer is one token.{hint}')
    return ids[0]


def _read_jsonl(path: Path, model: Model, n: int | None) -> Task:
    if not path.exists():
        beside = [str(p) for p in path.parent.glob("*.jsonl")]
        raise MissingFile(f'no file "{path}". Nearest: {nearest(str(path), [*beside, *BUILDERS])}.')
    prompts = []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, line in enumerate(lines[:n], start=1):
        try:
            prompts.append(_prompt(_Line.model_validate_json(line), model))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            known = f" Nearest: {nearest(key, _Line.model_fields)}." if first["type"] == "extra_forbidden" else ""
            raise InputError(f'{path} line {number}, key "{key}": {first["msg"]}.{known}') from None
        except InputError as error:
            raise InputError(f"{path} line {number}: {error}") from None
    if not prompts:
        raise InputError(f"{path} has no prompts.")
    return Task(path.stem, prompts)


def _prompt(line: _Line, model: Model) -> Prompt:
    clean = line.clean_tokens if line.clean_tokens is not None else line.clean and model.to_tokens(line.clean)
    if not clean:
        raise InputError('neither "clean" nor "clean_tokens" is given.')
    corrupted = line.corrupted_tokens
    if corrupted is None and line.corrupted is not None:
        corrupted = model.to_tokens(line.corrupted)
    if corrupted is not None and len(corrupted) != len(clean):
        raise InputError(f"clean has {len(clean)} tokens and corrupted {len(corrupted)}: they must be of one length.")
    answer, wrong = (
        one_token(model, text) if token is None and text is not None else token
        for text, token in ((line.answer, line.answer_token), (line.wrong, line.wrong_token))
    )
    if line.targets is None and answer is None:
        raise InputError('none of "answer", "answer_token" and "targets" is given.')
    targets = line.targets if line.targets is not None else [(len(clean) - 1, answer)]
    if not targets or any(not 0 <= pos < len(clean) for pos, _ in targets):
        raise InputError(f"targets {targets}: positions go from 0 to {len(clean) - 1}.")
    ids = [*clean, *(corrupted or []), *(token for _, token in targets), *([] if wrong is None else [wrong])]
    if min(ids) < 0 or max(ids) >= model.d_vocab:
        raise InputError(f'token {max(ids)} given: "{model.name}" has tokens 0 to {model.d_vocab - 1}.')
    if len(clean) > model.n_ctx:
        raise InputError(f'{len(clean)} tokens: "{model.name}" reads at most {model.n_ctx}.')
    positions = {label: pos if pos >= 0 else len(clean) + pos for label, pos in line.positions.items()}
    if bad := [label for label, pos in positions.items() if not 0 <= pos < len(clean)]:
        raise InputError(f'position "{bad[0]}" is {line.positions[bad[0]]}: the prompt has {len(clean)} tokens.')
    return Prompt(clean, targets, corrupted, wrong, positions, line.labels)


def _single(model: Model, candidates: list[str], need: int, what: str) -> list[str]:
    """Those of `candidates` that are one token after a space; InputError with fewer than `need`."""
    kept = [word for word in candidates if len(model.to_tokens(" " + word, prepend_bos=False)) == 1]
    if len(kept) < need:
        raise InputError(f'"{model.name}" has {len(kept)} of the task\'s {what} as single tokens; {need} are needed.')
    return kept


IOI_TEMPLATES = [
    "When{A} and{B} went to the{PLACE},{S} gave a{OBJECT} to",
    "Then,{A} and{B} went to the{PLACE}.{S} gave a{OBJECT} to",
    "Then,{A} and{B} had a lot of fun at the{PLACE}.{S} gave a{OBJECT} to",
    "Then,{A} and{B} were working at the{PLACE}.{S} decided to give a{OBJECT} to",
    "Then,{A} and{B} were thinking about going to the{PLACE}.{S} wanted to give a{OBJECT} to",
    "After{A} and{B} went to the{PLACE},{S} gave a{OBJECT} to",
    "When{A} and{B} got a{OBJECT} at the{PLACE},{S} decided to give it to",
    "While{A} and{B} were working at the{PLACE},{S} gave a{OBJECT} to",
    "Then,{A} and{B} had a long argument, and afterwards{S} said to",
    "The{PLACE}{A} and{B} went to had a{OBJECT}.{S} gave it to",
    "Friends{A} and{B} found a{OBJECT} at the{PLACE}.{S} gave it to",
]
"""After Wang et al. 2022, arXiv:2211.00593, appendix E. {S} repeats {A} or {B}; the other is the indirect object."""


def ioi(model: Model, n: int, rng: random.Random) -> Task:
    """Indirect objects: "When Mary and John went to the shop, John gave a bag to" -> " Mary" over " John".

    Corrupted: three other names (ABC), the rest the same. Positions: IO, S1, S1+1, S2, end.
    In half of them the subject comes first.
    """
    names = _single(model, words.NAMES, 6, "names")
    places, objects = _single(model, words.PLACES, 1, "places"), _single(model, words.OBJECTS, 1, "objects")
    prompts = []
    for _ in range(n):
        template, place, thing = rng.choice(IOI_TEMPLATES), rng.choice(places), rng.choice(objects)
        io, s, x, y, z = rng.sample(names, 5)
        first, second = (s, io) if rng.random() < 0.5 else (io, s)

        def fill(a: str, b: str, c: str, template=template, place=place, thing=thing) -> list[int]:
            text = template.format(A=f" {a}", B=f" {b}", S=f" {c}", PLACE=f" {place}", OBJECT=f" {thing}")
            return model.to_tokens(text)

        clean, io_token, s_token = fill(first, second, s), one_token(model, f" {io}"), one_token(model, f" {s}")
        s1 = clean.index(s_token)
        s2 = clean.index(s_token, s1 + 1)
        positions = {"IO": clean.index(io_token), "S1": s1, "S1+1": s1 + 1, "S2": s2, "end": len(clean) - 1}
        prompts.append(Prompt(clean, [(len(clean) - 1, io_token)], fill(x, y, z), s_token, positions))
    return Task("ioi", prompts, len(words.NAMES) - len(names))


def induction(model: Model, n: int, rng: random.Random, *, length: int = 24) -> Task:
    """Random tokens repeated: in the second copy every next token is known. No BOS is ever drawn.

    Targets: all of the second copy but its first token. Corrupted: a first copy of other tokens, so that nothing is
    repeated. No wrong answer: score by loss, prob or accuracy.
    """
    length = min(length, (model.n_ctx - 1) // 2)
    start = [] if model.bos is None else [model.bos]
    special = set() if model.tokenizer is None else set(model.tokenizer.all_special_ids)
    pool = [token for token in range(model.d_vocab) if token not in special]
    prompts = []
    for _ in range(n):
        drawn = rng.sample(pool, min(2 * length, len(pool)))
        piece, other = drawn[:length], (drawn[length:] * length)[:length]
        offset = len(start) + length
        targets = [(offset + i, piece[i + 1]) for i in range(length - 1)]
        prompts.append(Prompt(start + piece + piece, targets, start + other + piece))
    return Task("induction", prompts)


AGREEMENT_FRAMES = [
    "The{N}{P} the{M}",
    "In the end the{N}{P} the{M}",
    "She said that the{N}{P} the{M}",
    "It was clear that the{N}{P} the{M}",
    "The young{N}{P} the{M}",
]
AGREEMENT_PREPOSITIONS = ["to", "on", "by", "from", "in", "for"]


def agreement(model: Model, n: int, rng: random.Random) -> Task:
    """Subject and verb with an attractor of the other number: "The keys to the cabinet" -> " are" over " is".

    Corrupted: the number of the subject flipped. Positions: subject, end (which is the attractor).
    """
    nouns = [pair for pair in words.NOUNS if all(len(model.to_tokens(" " + w, prepend_bos=False)) == 1 for w in pair)]
    if len(nouns) < 4:
        raise InputError(f'"{model.name}" has {len(nouns)} of the task\'s nouns as single tokens; 4 are needed.')
    verbs = one_token(model, " is"), one_token(model, " are")
    prompts = []
    for _ in range(n):
        (noun, other), plural = rng.sample(nouns, 2), rng.random() < 0.5
        frame, preposition = rng.choice(AGREEMENT_FRAMES), rng.choice(AGREEMENT_PREPOSITIONS)

        def fill(number: bool, frame=frame, noun=noun, p=preposition, attractor=other[not plural]) -> list[int]:
            return model.to_tokens(frame.format(N=f" {noun[number]}", P=f" {p}", M=f" {attractor}"))

        clean = fill(plural)
        at = len(clean) - len(model.to_tokens(f" {preposition} the {other[not plural]}", prepend_bos=False)) - 1
        positions = {"subject": at, "end": len(clean) - 1}
        prompts.append(Prompt(clean, [(len(clean) - 1, verbs[plural])], fill(not plural), verbs[not plural], positions))
    return Task("agreement", prompts, len(words.NOUNS) - len(nouns))


BUILDERS: dict[str, Callable[[Model, int, random.Random], Task]] = {
    "ioi": ioi,
    "induction": induction,
    "agreement": agreement,
}
