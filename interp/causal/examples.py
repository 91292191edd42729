"""Two sets of examples for a direction to tell apart: prompts, the two sides of a task, labelled rows of a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.data.tasks import Prompt, Task
from interp.decoder.hooks import Edit, captured, edited
from interp.decoder.model import Model
from interp.errors import InputError, MissingFile, UnknownName, nearest
from interp.progress import Progress
from interp.store.reading import Store

LEAST = 8
"""Examples that each of the two sets needs."""

Prompts = Sequence[str] | Sequence[Sequence[int]] | Path
"""Texts, token ids, or a file with a text a line."""


@dataclass(frozen=True)
class Examples:
    """Positive and negative examples. Those of one `group` (a pair of prompts, a window of a store) are not independent
    draws: they are held out together."""

    is_positive: Bool[np.ndarray, " example"]
    group: Int[np.ndarray, " example"]
    names: tuple[str, str]
    """What the positive and the negative ones are called."""
    tokens: list[list[int]]
    """Of prompts, up to the token that is read; empty of a store."""
    rows: Int[np.ndarray, " example"] | None = None
    """Of a store."""
    pooled: bool = False
    """The mean over a prompt's tokens is read, not its last one."""
    paired: bool = False
    """The first positive example and the first negative one are a pair, the second ones, and so on."""
    answers: tuple[int, int] | None = None
    """Tokens that prompts of the two sets are answered with."""
    dropped: int = 0
    """Prompts, or pairs, left out since they are the same as one before as far as they are read."""

    @property
    def n(self) -> tuple[int, int]:
        return int(self.is_positive.sum()), int((~self.is_positive).sum())


def of_prompts(
    model: Model, positive: Prompts, negative: Prompts, *, position: int | str = -1, paired: bool = False
) -> Examples:
    """Prompts read at `position` (an index, -1 the last token) or at "all": the mean over their tokens, BOS left out.
    `paired`: those of one number are a pair that differs in what the direction is to be of.

    InputError for prompts without that position, in both sets, or fewer than LEAST of a set.
    """
    sides = [_tokens(model, side, position) for side in (positive, negative)]
    if paired and len(sides[0]) != len(sides[1]):
        given = f"{len(sides[0])} positive and {len(sides[1])} negative"
        raise InputError(f"{given} prompts given: pairs need as many of each.")
    return _of_tokens(sides, ("positive", "negative"), paired=paired, pooled=position == "all")


def of_task(model: Model, task: Task, *, position: int | str = -1, answer: str | None = None) -> Examples:
    """Of a task that all prompts answer with one of two tokens: prompts, clean and corrupted, with the one answer
    against those with the other; `answer` names the positive one. Of another task: clean against corrupted prompts.

    The two prompts of a pair are a pair here. InputError for a task without corrupted prompts.
    """
    corrupted = task.tokens("corrupted")
    ends = (task.lengths if position == "all" else task.at(position) + 1).tolist()
    clean = [p.clean_tokens[:end] for p, end in zip(task.prompts, ends, strict=True)]
    other = [row[:end] for row, end in zip(corrupted.tolist(), ends, strict=True)]
    answers = two_answers(task)
    if answer is not None:
        ids = model.to_tokens(answer, prepend_bos=False)
        if answers is None or len(ids) != 1 or ids[0] not in answers:
            known = "many" if answers is None else " and ".join(f'"{text}"' for text in model.token_text(answers))
            raise InputError(f'answer "{answer}" given: the answers of "{task.name}" are {known}.')
        answers = (ids[0], *(a for a in answers if a != ids[0]))
    names = ("clean", "corrupted")
    if answers is not None:
        names = tuple(f'answer "{text}"' for text in model.token_text(answers))
        swap = [p.targets[0][1] != answers[0] for p in task.prompts]
        both = [(b, a) if swapped else (a, b) for a, b, swapped in zip(clean, other, swap, strict=True)]
        clean, other = ([pair[side] for pair in both] for side in (0, 1))
    found = _of_tokens([clean, other], names, paired=True, pooled=position == "all")
    return replace(found, answers=answers)


def two_answers(task: Task) -> tuple[int, int] | None:
    """The two tokens with which every prompt of a task is answered, rightly or wrongly, one prompt with the one and one
    with the other; None for a task of other answers."""
    right = {p.targets[0][1] for p in task.prompts}
    wrong = {p.wrong_token for p in task.prompts}
    return tuple(sorted(right)) if len(right) == 2 and wrong == right else None


def of_rows(
    store: Store, positive: np.ndarray, negative: np.ndarray, names: tuple[str, str] = ("positive", "negative")
) -> Examples:
    """Rows of a store, by number or as masks over all its rows. InputError for a row of both sets."""
    sides = [side.nonzero()[0] if side.dtype == bool else side for side in map(np.asarray, (positive, negative))]
    both = np.intersect1d(*sides)
    if len(both):
        raise InputError(f"row {both[0]} of {store.name} is in both sets.")
    rows = np.concatenate(sides).astype(np.int64)
    if len(rows) and not 0 <= rows.min() <= rows.max() < store.n_rows:
        raise InputError(f"rows {rows.min()} to {rows.max()} given: {store.name} has rows 0 to {store.n_rows - 1}.")
    is_positive = np.arange(len(rows)) < len(sides[0])
    return _enough(Examples(is_positive, np.asarray(store.sequence[rows]), names, [], rows))


def of_labels(store: Store, file: Path, positive: str | None = None) -> Examples:
    """Rows of a store as a .parquet or .csv labels them, with the columns `row` (its number in the store) and `label`:
    those labelled `positive` against all others that have a label. Of yes and no (true, 1) it need not be said.

    MissingFile, or InputError for a file without these columns, or where the positive label is not known.
    """
    labels = _labels(file)
    known = sorted(labels.unique())
    if positive is None:
        said = [label for label in known if label.lower() in YES]
        if len(said) != 1 or len(known) != 2:
            raise InputError(f"{file} has the labels {', '.join(known[:8])}: say which is positive, e.g. {known[0]}.")
        positive = said[0]
    if positive not in known:
        raise UnknownName(f'no row of {file} is labelled "{positive}". Nearest: {nearest(positive, known)}.')
    others = [label for label in known if label != positive]
    names = (f'label "{positive}"', f'label "{others[0]}"' if len(others) == 1 else "other labels")
    rows, is_positive = labels.index.to_numpy(), (labels == positive).to_numpy()
    return of_rows(store, np.unique(rows[is_positive]), np.unique(rows[~is_positive]), names)


YES = ("yes", "true", "1", "1.0")
"""Labels that are taken for positive where the other is none of them."""


def _labels(file: Path) -> pd.Series:
    """row -> label, as text; rows without one left out."""
    if not file.is_file():
        raise MissingFile(f'no file "{file}": a .parquet or .csv with the columns row and label.')
    try:
        table = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    except (ValueError, OSError) as error:  # pandas and pyarrow: what is no such file
        raise InputError(f"{file} cannot be read: {str(error).splitlines()[0]}.") from None
    if missing := {"row", "label"} - set(table):
        raise InputError(f"{file} has no column {min(missing)}: row (its number in the store) and label are needed.")
    table = table.dropna(subset=["row", "label"])
    if table.empty:
        raise InputError(f"{file} labels no row.")
    if not pd.api.types.is_numeric_dtype(table["row"]) or (table["row"] % 1 != 0).any():
        raise InputError(f'{file}: the column row holds row numbers of the store, not "{table["row"].iloc[0]}".')
    return table["label"].astype(str).set_axis(table["row"].astype(np.int64))


def lines(path: Path) -> list[str]:
    """The prompts of a text file, a line each. MissingFile where there is none."""
    if not path.is_file():
        raise MissingFile(f'no file "{path}": a text file with a prompt a line.')
    try:
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8.") from None


def _tokens(model: Model, side: Prompts, position: int | str) -> list[list[int]]:
    """Token ids up to the place that is read."""
    side = lines(side) if isinstance(side, Path) else side
    found = []
    for number, prompt in enumerate(side, 1):
        ids = model.to_tokens(prompt) if isinstance(prompt, str) else list(prompt)
        last = len(ids) - 1 if position == "all" else int(position) + (len(ids) if int(position) < 0 else 0)
        if not 0 <= last < len(ids):
            raise InputError(f"prompt {number} has {len(ids)} tokens, none at position {position}.")
        if last >= model.n_ctx:
            raise InputError(f'prompt {number} has {len(ids)} tokens: "{model.name}" reads at most {model.n_ctx}.')
        found.append(ids[: last + 1])
    return found


def _of_tokens(sides: Sequence[list[list[int]]], names: tuple[str, str], *, paired: bool, pooled: bool) -> Examples:
    """Each prompt once: one that is the same as another as far as it is read would be held out and learned from."""
    positive, negative = ([tuple(row) for row in side] for side in sides)
    if same := set(positive) & set(negative):
        n = len(same)
        raise InputError(
            f"{n} prompt{'s are' if n > 1 else ' is'} the same in both sets up to the position read: nothing there "
            "tells them apart; read at another position."
        )
    if paired:
        seen, kept = set(), []
        for pair in zip(positive, negative, strict=True):
            if not seen & set(pair):
                kept.append(pair)
                seen |= set(pair)
        before, positive, negative = len(positive), [a for a, _ in kept], [b for _, b in kept]
        dropped = before - len(kept)
    else:
        before = len(positive) + len(negative)
        positive, negative = list(dict.fromkeys(positive)), list(dict.fromkeys(negative))
        dropped = before - len(positive) - len(negative)
    tokens = [list(row) for row in (*positive, *negative)]
    is_positive = np.arange(len(tokens)) < len(positive)
    group = np.arange(len(tokens)) % len(positive) if paired and positive else np.arange(len(tokens))
    return _enough(Examples(is_positive, group, names, tokens, pooled=pooled, paired=paired, dropped=dropped))


def _enough(examples: Examples) -> Examples:
    if min(examples.n) < LEAST:
        what = "rows" if examples.rows is not None else "different prompts"
        raise InputError(f"{examples.n[0]} positive and {examples.n[1]} negative {what}: {LEAST} of each are needed.")
    return examples


@torch.no_grad()
def activations(
    model: Model,
    examples: Examples,
    sites: Sequence[str],
    *,
    edits: Mapping[str, Edit] | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> dict[str, Float[Tensor, "example d_model"]]:
    """What stands at each of `sites` where each prompt is read, float32 on the CPU."""
    found: dict[str, list[Tensor]] = {site: [] for site in sites}
    with Progress("reading prompts", len(examples.tokens), progress) as bar:
        for first in range(0, len(examples.tokens), batch_size):
            rows = examples.tokens[first : first + batch_size]
            lengths = torch.tensor([len(row) for row in rows])
            tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
            for i, row in enumerate(rows):
                tokens[i, : len(row)] = torch.tensor(row)
            place = torch.arange(tokens.shape[1])
            after_bos = torch.tensor([int(row[0] == model.bos and len(row) > 1) for row in rows])
            start = after_bos if examples.pooled else lengths - 1
            read = ((place >= start[:, None]) & (place < lengths[:, None])).float()
            with edited(model, edits or {}), captured(model, list(sites)) as cache:
                model(tokens)
            for site in sites:
                total = einsum(
                    read.to(cache[site].device), cache[site].float(), "prompt pos, prompt pos d_model -> prompt d_model"
                )
                found[site].append(total.cpu() / read.sum(1, keepdim=True))
            bar.advance(len(rows))
    return {site: torch.cat(parts) for site, parts in found.items()}


def unseen(task: Task, tokens: Sequence[Sequence[int]]) -> Task:
    """The prompts of a task that do not begin as one of `tokens` does. InputError where none is left."""
    known = {tuple(row) for row in tokens}
    sizes = sorted({len(row) for row in known})

    def is_new(prompt: Prompt) -> bool:
        return not any(tuple(prompt.clean_tokens[:size]) in known for size in sizes)

    kept = [prompt for prompt in task.prompts if is_new(prompt)]
    if not kept:
        raise InputError(f'the direction was found on every prompt of "{task.name}": give others, or another seed.')
    return replace(task, prompts=kept)
