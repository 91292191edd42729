"""Words as single tokens of a model, and an account of those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from interp.decoder.model import Model
from interp.errors import InputError


def one_token(model: Model, text: str) -> int:
    """The id of `text` as a single token; InputError where it is several."""
    ids = model.to_tokens(text, prepend_bos=False)
    if len(ids) != 1:
        pieces = " + ".join(repr(piece) for piece in model.token_text(ids))
        hint = "" if text.startswith(" ") else f' Words inside a sentence begin with a space: "{" " + text}".'
        raise InputError(f'"{text}" is {len(ids)} tokens in "{model.name}" ({pieces}): an answer is one token.{hint}')
    return ids[0]


@dataclass
class Words:
    """Picks words of a task that the model has as one token; `left_out` keeps the others."""

    model: Model
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def is_single(self, word: str) -> bool:
        """Whether a word is one token after a space."""
        return len(self.model.to_tokens(" " + word, prepend_bos=False)) == 1

    def single(self, candidates: Sequence[str], need: int, what: str) -> list[str]:
        """Those of `candidates` that are one token; InputError with fewer than `need`."""
        return [word for (word,) in self.all_single([(word,) for word in candidates], need, what)]

    def all_single(self, candidates: Sequence[tuple[str, ...]], need: int, what: str) -> list[tuple[str, ...]]:
        """Those of `candidates` of which each word is one token; InputError with fewer than `need`."""
        kept = [words for words in candidates if all(map(self.is_single, words))]
        self.drop([" / ".join(words) for words in candidates if words not in kept], what)
        self.enough(len(kept), need, what)
        return kept

    def drop(self, words: Sequence[str], what: str) -> None:
        if words:
            self.left_out.setdefault(what, []).extend(words)

    def enough(self, n: int, need: int, what: str) -> None:
        if n < need:
            raise InputError(f'"{self.model.name}" has {n} of the task\'s {what} as single tokens; {need} are needed.')

    @property
    def dropped(self) -> int:
        return sum(map(len, self.left_out.values()))

    @property
    def note(self) -> str:
        """One line: what was left out; empty where nothing was."""
        said = [
            f"{len(words)} {what} ({', '.join(words[:5])}{', ...' if len(words) > 5 else ''})"
            for what, words in self.left_out.items()
        ]
        return f'not single tokens in "{self.model.name}", left out: {"; ".join(said)}' if said else ""
