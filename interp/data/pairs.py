"""Prompt pairs from files: our prompts.jsonl, an object a line, and auto-circuit's .json. A bad key is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from interp.data.prompts import Prompt, Task
from interp.data.wording import one_token
from interp.decoder.model import Model
from interp.errors import InputError, MissingFile, nearest


class _Line(BaseModel):
    """A line of prompts.jsonl. Where text and token ids are both given, the ids are taken; pieces are for people."""

    model_config = ConfigDict(extra="forbid")
    clean: str | None = None
    clean_tokens: list[int] | None = None
    clean_pieces: list[str] = []
    corrupted: str | None = None
    corrupted_tokens: list[int] | None = None
    corrupted_pieces: list[str] = []
    answer: str | None = None
    answer_token: int | None = None
    wrong: str | None = None
    wrong_token: int | None = None
    answers: list[str] = []
    answer_tokens: list[int] = []
    wrong_answers: list[str] = []
    wrong_tokens: list[int] = []
    targets: list[tuple[int, int]] | None = None
    positions: dict[str, int] = {}
    labels: dict[str, str] = {}


class _Pair(BaseModel):
    """A pair of auto-circuit's file: text, or token ids for a model without a tokenizer."""

    model_config = ConfigDict(extra="forbid")
    clean: str | list[int]
    corrupt: str | list[int]
    answers: list[str] | list[int]
    wrong_answers: list[str] | list[int] = []


class _File(BaseModel):
    """auto-circuit's file. `word_idxs`: label -> position, and `seq_labels`: a label a position, both without BOS."""

    prompts: list[_Pair]
    seq_labels: list[str] | None = None
    word_idxs: dict[str, int] = {}


def read_pairs(path: Path, model: Model, n: int | None = None) -> Task:
    """The first `n` prompts of a .jsonl or .json file. MissingFile where there is none; InputError, naming line or
    pair and key, for one that is not as it should be."""
    if not path.exists():
        beside = [str(p) for p in path.parent.glob(f"*{path.suffix}")]
        raise MissingFile(f'no file "{path}".' + (f" Nearest: {nearest(str(path), beside)}." if beside else ""))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8.") from None
    prompts = _of_file(text, path, model, n) if path.suffix == ".json" else _of_lines(text, path, model, n)
    if not prompts:
        raise InputError(f"{path} has no prompts.")
    return Task(path.stem, prompts)


def _of_lines(text: str, path: Path, model: Model, n: int | None) -> list[Prompt]:
    prompts: list[Prompt] = []
    for number, line in enumerate(text.split("\n"), start=1):  # U+2028 is a line's end to splitlines, not to JSON
        if not line.strip():
            continue
        if n is not None and len(prompts) == n:
            break
        try:
            prompts.append(_prompt(_Line.model_validate_json(line), model))
        except ValidationError as error:
            raise InputError(f"{path} line {number}, {_said(error, _Line)}") from None
        except InputError as error:
            raise InputError(f"{path} line {number}: {error}") from None
    return prompts


def _of_file(text: str, path: Path, model: Model, n: int | None) -> list[Prompt]:
    """auto-circuit's pairs. Of several answers the first is the target, and all of them the sets of `prob_diff`."""
    try:
        file = _File.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"{path}, {_said(error, _Pair)}") from None
    prompts = []
    for number, pair in enumerate(file.prompts[:n], start=1):
        shift = int(isinstance(pair.clean, str) and model.bos is not None)
        labels = {label: i for i, label in enumerate(file.seq_labels or []) if file.seq_labels.count(label) == 1}
        positions = {label: i + shift for label, i in (labels | file.word_idxs).items()}
        line = _Line(positions=positions, **_fields(pair))
        try:
            prompts.append(_prompt(line, model))
        except InputError as error:
            raise InputError(f"{path} pair {number}: {error}") from None
    return prompts


def _fields(pair: _Pair) -> dict:
    several = len(pair.answers) > 1 or len(pair.wrong_answers) > 1
    first = {"answer": pair.answers[:1], "wrong": pair.wrong_answers[:1]}
    found = {name + "_token" * isinstance(value[0], int): value[0] for name, value in first.items() if value}
    for name, value in (("clean", pair.clean), ("corrupted", pair.corrupt)):
        found[name if isinstance(value, str) else f"{name}_tokens"] = value
    for text, ids, value in (("answers", "answer_tokens", pair.answers),
                             ("wrong_answers", "wrong_tokens", pair.wrong_answers)):  # fmt: skip
        if several and value:
            found[text if isinstance(value[0], str) else ids] = value
    return found


def _said(error: ValidationError, form: type[BaseModel]) -> str:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    last = str(first["loc"][-1]) if first["loc"] else key
    known = f" Nearest: {nearest(last, form.model_fields)}." if first["type"] == "extra_forbidden" else ""
    return f'key "{key}": {first["msg"]}.{known}'


def _prompt(line: _Line, model: Model) -> Prompt:
    clean = line.clean_tokens if line.clean_tokens is not None else line.clean and model.to_tokens(line.clean)
    if not clean:
        raise InputError('neither "clean" nor "clean_tokens" is given.')
    corrupted = line.corrupted_tokens
    if corrupted is None and line.corrupted is not None:
        corrupted = model.to_tokens(line.corrupted)
    answers, wrong_answers = (
        ids or [one_token(model, text) for text in texts]
        for texts, ids in ((line.answers, line.answer_tokens), (line.wrong_answers, line.wrong_tokens))
    )
    answer, wrong = (
        one_token(model, text) if token is None and text is not None else token
        for text, token in ((line.answer, line.answer_token), (line.wrong, line.wrong_token))
    )
    answer = answers[0] if answer is None and answers else answer
    wrong = wrong_answers[0] if wrong is None and wrong_answers else wrong
    if line.targets is None and answer is None:
        raise InputError('none of "answer", "answer_token", "answers" and "targets" is given.')
    targets = line.targets if line.targets is not None else [(len(clean) - 1, answer)]
    if not targets or any(not 0 <= pos < len(clean) for pos, _ in targets):
        raise InputError(f"targets {targets}: positions go from 0 to {len(clean) - 1}.")
    single = [*(token for _, token in targets), *([] if wrong is None else [wrong])]
    _check(model, clean, [*(corrupted or []), *single, *answers, *wrong_answers])
    positions = {label: pos if pos >= 0 else len(clean) + pos for label, pos in line.positions.items()}
    if bad := [label for label, pos in positions.items() if not 0 <= pos < len(clean)]:
        raise InputError(f'position "{bad[0]}" is {line.positions[bad[0]]}: the prompt has {len(clean)} tokens.')
    return Prompt(clean, targets, corrupted, wrong, positions, line.labels, answers, wrong_answers)


def _check(model: Model, clean: Sequence[int], others: Sequence[int]) -> None:
    ids = [*clean, *others]
    if min(ids) < 0 or max(ids) >= model.d_vocab:
        bad = min(ids) if min(ids) < 0 else max(ids)
        raise InputError(f'token {bad} given: "{model.name}" has tokens 0 to {model.d_vocab - 1}.')
    if len(clean) > model.n_ctx:
        raise InputError(f'{len(clean)} tokens: "{model.name}" reads at most {model.n_ctx}.')
