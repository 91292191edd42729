"""Tasks whose answer stands in the prompt: indirect objects, repeated tokens, arguments of a function."""

from __future__ import annotations

import random

from interp.data import words
from interp.data.prompts import Prompt, Task
from interp.data.wording import Words, one_token
from interp.decoder.model import Model
from interp.errors import UnknownName, nearest

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

IOI_CORRUPTIONS = ("abc", "swap")


def ioi(model: Model, n: int, rng: random.Random, *, corruption: str = "abc") -> Task:
    """Indirect objects: "When Mary and John went to the shop, John gave a bag to" -> " Mary" over " John".

    Corrupted "abc": three other names, the rest the same, so that no name is the answer. "swap": the giver is the other
    of the two ("Mary gave a bag to"), so that the wrong answer becomes right. The clean prompts are the same ones.
    Positions: IO, S1, S1+1, S2, end. In half of them the subject comes first (BABA), in half second (ABBA).
    """
    if corruption not in IOI_CORRUPTIONS:
        raise UnknownName(f'no corruption "{corruption}" of ioi. Nearest: {nearest(corruption, IOI_CORRUPTIONS)}.')
    kept = Words(model)
    names = kept.single(words.NAMES, 6, "names")
    places, objects = kept.single(words.PLACES, 1, "places"), kept.single(words.OBJECTS, 1, "objects")
    prompts = []
    for _ in range(n):
        template, place, thing = rng.choice(IOI_TEMPLATES), rng.choice(places), rng.choice(objects)
        io, s, x, y, z = rng.sample(names, 5)
        first, second = (s, io) if rng.random() < 0.5 else (io, s)

        def fill(a: str, b: str, c: str, template=template, place=place, thing=thing) -> list[int]:
            text = template.format(A=f" {a}", B=f" {b}", S=f" {c}", PLACE=f" {place}", OBJECT=f" {thing}")
            return model.to_tokens(text)

        clean, io_token, s_token = fill(first, second, s), one_token(model, f" {io}"), one_token(model, f" {s}")
        corrupted = fill(x, y, z) if corruption == "abc" else fill(first, second, io)
        s1 = clean.index(s_token)
        s2 = clean.index(s_token, s1 + 1)
        positions = {"IO": clean.index(io_token), "S1": s1, "S1+1": s1 + 1, "S2": s2, "end": len(clean) - 1}
        prompts.append(Prompt(clean, [(len(clean) - 1, io_token)], corrupted, s_token, positions))
    return Task("ioi", prompts, kept.dropped, kept.note)


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


def docstring(model: Model, n: int, rng: random.Random) -> Task:
    """Arguments in order: a function of five, a docstring that names two, ":param" -> the third.

    After Heimersheim & Janiak 2023, "A circuit for Python docstrings in a 4-layer attention-only transformer". Wrong:
    another argument of the same function. Corrupted: five other names, in the definition and in the docstring.
    Positions: A1 to A5 in the definition, D1 and D2 in the docstring, end.
    """
    kept = Words(model)
    names = kept.single(words.ARGUMENTS, 12, "argument names")
    others = kept.single(words.DOC_WORDS, 6, "words of docstrings")
    prompts = []
    for _ in range(n):
        drawn, doc = rng.sample(names, 11), rng.sample(others, 6)

        def fill(args: list[str], name=drawn[10], doc=doc) -> list[int]:
            return model.to_tokens(
                f"def {name}(self, {', '.join(args)}):\n"
                f'    """{doc[0]} {doc[1]}\n\n'
                f"    :param {args[0]}: {doc[2]} {doc[3]}\n"
                f"    :param {args[1]}: {doc[4]} {doc[5]}\n"
                "    :param"
            )

        clean, corrupted = fill(drawn[:5]), fill(drawn[5:10])
        tokens = [one_token(model, f" {name}") for name in drawn[:5]]
        positions = {f"A{i + 1}": clean.index(token) for i, token in enumerate(tokens)}
        positions |= {f"D{i + 1}": clean.index(tokens[i], positions["A5"]) for i in range(2)}
        positions["end"] = len(clean) - 1
        wrong = tokens[rng.choice([0, 1, 3, 4])]
        prompts.append(Prompt(clean, [(len(clean) - 1, tokens[2])], corrupted, wrong, positions))
    return Task("docstring", prompts, kept.dropped, kept.note)
