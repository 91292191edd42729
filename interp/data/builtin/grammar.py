"""Tasks of grammar: the verb agrees with its subject, the pronoun with its name."""

from __future__ import annotations

import random

from interp.data import words
from interp.data.prompts import Prompt, Task
from interp.data.wording import Words, one_token
from interp.decoder.model import Model

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
    kept = Words(model)
    nouns = kept.all_single(words.NOUNS, 4, "nouns")
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
    return Task("agreement", prompts, kept.dropped, kept.note)


def simple_agreement(model: Model, n: int, rng: random.Random) -> Task:
    """Subject and verb side by side, with no attractor: "In the end the keys" -> " are" over " is".

    Corrupted: the number of the subject flipped. Position: end, which is the subject.
    """
    kept = Words(model)
    nouns = kept.all_single(words.NOUNS, 2, "nouns")
    verbs = one_token(model, " is"), one_token(model, " are")
    prompts = []
    for _ in range(n):
        noun, plural = rng.choice(nouns), rng.random() < 0.5
        frame = rng.choice(AGREEMENT_FRAMES).partition("{P}")[0]
        clean, corrupted = (model.to_tokens(frame.format(N=f" {noun[number]}")) for number in (plural, not plural))
        end = len(clean) - 1
        prompts.append(Prompt(clean, [(end, verbs[plural])], corrupted, verbs[not plural], {"end": end}))
    return Task("simple_agreement", prompts, kept.dropped, kept.note)


def gendered_pronoun(model: Model, n: int, rng: random.Random) -> Task:
    """A name's pronoun: "So Susan is such a good friend, isn't" -> " she" over " he".

    After Mathwin et al. 2023, "Identifying a preliminary circuit for predicting gendered pronouns in GPT-2 small".
    Corrupted: a name of the other sex. Positions: name, end. The bundled model was trained on these names in this
    sentence.
    """
    kept = Words(model)
    women, men = kept.single(words.WOMEN, 2, "names of women"), kept.single(words.MEN, 2, "names of men")
    she, he = one_token(model, " she"), one_token(model, " he")
    prompts = []
    for _ in range(n):
        woman, man, female = rng.choice(women), rng.choice(men), rng.random() < 0.5
        name, other = (woman, man) if female else (man, woman)
        clean, corrupted = (model.to_tokens(f"So {name} is such a good friend, isn't") for name in (name, other))
        right, wrong = (she, he) if female else (he, she)
        positions = {"name": clean.index(one_token(model, f" {name}")), "end": len(clean) - 1}
        prompts.append(Prompt(clean, [(len(clean) - 1, right)], corrupted, wrong, positions))
    return Task("gendered_pronoun", prompts, kept.dropped, kept.note)
