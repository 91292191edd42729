"""Tasks by name or from a file: `load_task("ioi", model, n=200, seed=0)`.

Answers are single tokens under the model's tokenizer: words that are not are left out, counted in `Task.dropped` and
named in `Task.note`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from interp.data.builtin import copying, facts, grammar, numbers
from interp.data.pairs import read_pairs
from interp.data.prompts import Prompt, Task
from interp.decoder.model import Model
from interp.errors import InputError, UnknownTask, nearest

__all__ = ["BUILDERS", "Prompt", "Task", "load_task"]

BUILDERS: dict[str, Callable[..., Task]] = {
    "ioi": copying.ioi,
    "greater_than": numbers.greater_than,
    "agreement": grammar.agreement,
    "simple_agreement": grammar.simple_agreement,
    "induction": copying.induction,
    "docstring": copying.docstring,
    "gendered_pronoun": grammar.gendered_pronoun,
    "capital_country": facts.capital_country,
    "coloured_objects": facts.coloured_objects,
    "arithmetic": numbers.arithmetic,
    "mcqa": facts.mcqa,
}


def load_task(
    name: str | Path, model: Model, *, n: int | None = None, seed: int = 0, corruption: str | None = None
) -> Task:
    """A task by name (`BUILDERS`; `n` prompts, default 200) or from a file (its first `n`): prompt pairs, an object a
    line (.jsonl), or auto-circuit's form (.json). `corruption`: of ioi, "abc" or "swap".

    UnknownTask for another name; InputError, naming line and key, for a file that is not as it should be.
    """
    if n is not None and n < 1:
        raise InputError(f"n {n} given: a task has one prompt or more.")
    if corruption is not None and str(name) != "ioi":
        raise InputError(f'corruption "{corruption}" given: only ioi has a choice; "{name}" has one of its own.')
    if str(name) in BUILDERS:
        choice = {} if corruption is None else {"corruption": corruption}
        return BUILDERS[str(name)](model, n or 200, random.Random(seed), **choice)
    if str(name).endswith((".jsonl", ".json")):
        return read_pairs(Path(name), model, n)
    raise UnknownTask(f'no task "{name}". Nearest: {nearest(str(name), BUILDERS)}, or a path to prompt pairs (.jsonl).')
