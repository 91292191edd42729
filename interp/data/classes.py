"""Kinds of token, so that an effect can be told apart by what is being predicted: "it hurts digits, not the rest".

A class is a mask over the reads of a task (`Task.reads`): it says something of the token expected there, of what stands
before it, or, for a label in the prompts' file, of the prompt.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.data import words
from interp.data.tasks import Prompt, Task
from interp.data.text import read_text, windows
from interp.decoder.model import Model
from interp.errors import InputError, UnknownName, nearest

_NOUNS = frozenset(word for pair in words.NOUNS for word in pair)

_MARKS = string.punctuation + "“”‘’—…"

CLASSES: dict[str, Callable[[str, str, bool], bool]] = {
    "punctuation": lambda token, before, seen: bool(token.strip()) and not token.strip().strip(_MARKS),
    "capitalised": lambda token, before, seen: token.strip()[:1].isupper(),
    "digit": lambda token, before, seen: any(character.isdigit() for character in token),
    "word_start": lambda token, before, seen: token[:1].isspace() and token.strip()[:1].isalpha(),
    "repeated": lambda token, before, seen: seen,
    "after_noun": lambda token, before, seen: before.strip() in _NOUNS,
}
"""Of the token expected, of the token before it, and of whether the expected one stood in the prompt before.
`after_noun` knows the nouns of the built-in tasks (`interp.data.words`)."""


def classes(model: Model, task: Task, names: Sequence[str] = ("built-in",)) -> dict[str, Bool[Tensor, " read"]]:
    """Masks over the task's reads, by name: those of `names`, "built-in" for all of CLASSES, or a key of the prompts'
    `labels` for a class of each of its values. Classes that no read is in are left out.

    UnknownName for a name that is neither; InputError for a class of text where the model has no tokenizer.
    """
    wanted = [name for given in names for name in (CLASSES if given == "built-in" else [given])]
    keys = {key for prompt in task.prompts for key in prompt.labels}
    if unknown := [name for name in wanted if name not in CLASSES and name not in keys]:
        raise UnknownName(
            f'no class "{unknown[0]}". Nearest: {nearest(unknown[0], ["built-in", *CLASSES, *keys])}; or a key of '
            '"labels" in the prompts.'
        )
    if model.tokenizer is None and (text := set(wanted) & (set(CLASSES) - {"repeated"})):
        raise InputError(f'"{model.name}" has no tokenizer: {", ".join(sorted(text))} cannot be told from token ids.')
    spelled = {token: model.token_text([token])[0] for prompt in task.prompts for token in _tokens(prompt)}
    found = {}
    for name in wanted:
        if name in keys:
            labels = [prompt.labels.get(name, "none") for prompt in task.prompts for _ in prompt.targets]
            for value in dict.fromkeys(labels):
                found[re.sub(r"\W+", "_", value)] = [label == value for label in labels]
        else:
            found[name] = [
                CLASSES[name](spelled[token], spelled[p.clean_tokens[pos]], token in p.clean_tokens[: pos + 1])
                for p in task.prompts
                for pos, token in p.targets
            ]
    return {name: torch.tensor(mask) for name, mask in found.items() if any(mask)}


def _tokens(prompt: Prompt) -> list[int]:
    return [*prompt.clean_tokens, *(token for _, token in prompt.targets)]


def text_task(model: Model, text: str | Sequence[str], *, n: int = 64, context: int = 64) -> Task:
    """Windows of running text, each token to be predicted from those before it: score by loss (its exponential is the
    perplexity), kl, prob or accuracy. `text`: a path, a glob, or "bundled"; `n` windows of `context` tokens at most."""
    context = min(context, model.n_ctx)
    rows = torch.as_tensor(windows(model, read_text(text), context=context, n_tokens=n * context))[:n].tolist()
    return Task("text", [Prompt(row, list(enumerate(row[1:]))) for row in rows])
