"""Tasks of facts, in the model or in the prompt: capitals, the colour of a thing, the letter of a choice."""

from __future__ import annotations

import random

from interp.data import words
from interp.data.prompts import Prompt, Task
from interp.data.wording import Words, one_token
from interp.decoder.model import Model


def capital_country(model: Model, n: int, rng: random.Random) -> Task:
    """Capitals: "The capital of Austria is the city of" -> " Vienna" over the capital of the other country.

    Corrupted: another country, of as many tokens. Positions: country (its last token), end. The bundled model was
    trained on these countries in this sentence: a capital is known or not.
    """
    kept = Words(model)
    capitals = dict(words.CAPITALS)
    cities = set(kept.single(list(capitals.values()), 2, "capitals"))
    sizes: dict[int, list[str]] = {}
    for country, city in capitals.items():
        if city in cities:
            sizes.setdefault(len(model.to_tokens(f" {country}", prepend_bos=False)), []).append(country)
    kept.drop([alone[0] for alone in sizes.values() if len(alone) == 1], "countries of a length of their own")
    groups = [group for group in sizes.values() if len(group) > 1]
    kept.enough(sum(map(len, groups)), 2, "capitals of countries of one length")
    prompts = []
    for _ in range(n):
        group = rng.choices(groups, weights=[len(group) for group in groups])[0]
        country, other = rng.sample(group, 2)
        clean, corrupted = (model.to_tokens(f"The capital of {name} is the city of") for name in (country, other))
        at = len(model.to_tokens(f"The capital of {country}")) - 1
        right, wrong = (one_token(model, f" {capitals[name]}") for name in (country, other))
        positions = {"country": at, "end": len(clean) - 1}
        prompts.append(Prompt(clean, [(len(clean) - 1, right)], corrupted, wrong, positions))
    return Task("capital_country", prompts, kept.dropped, kept.note)


def coloured_objects(model: Model, n: int, rng: random.Random) -> Task:
    """The colour of one of three things: "..., a blue cup and ... What colour is the cup? It is" -> " blue".

    After Merullo et al. 2023, arXiv:2310.08744. Wrong: the colour of another of the three. Corrupted: that other is
    asked for. Positions: thing (in the question), end.
    """
    kept = Words(model)
    colours, things = kept.single(words.COLOURS, 3, "colours"), kept.single(words.THINGS, 3, "things")
    prompts = []
    for _ in range(n):
        hues, nouns = rng.sample(colours, 3), rng.sample(things, 3)
        asked, other = rng.sample(range(3), 2)
        a, b, c = (f"{colour} {noun}" for colour, noun in zip(hues, nouns, strict=True))
        question = f"On the table there is a {a}, a {b} and a {c}. What colour is the"
        clean, corrupted = (model.to_tokens(f"{question} {nouns[which]}? It is") for which in (asked, other))
        right, wrong = (one_token(model, f" {hues[which]}") for which in (asked, other))
        positions = {"thing": len(model.to_tokens(f"{question} {nouns[asked]}")) - 1, "end": len(clean) - 1}
        prompts.append(Prompt(clean, [(len(clean) - 1, right)], corrupted, wrong, positions))
    return Task("coloured_objects", prompts, kept.dropped, kept.note)


def mcqa(model: Model, n: int, rng: random.Random) -> Task:
    """The letter of the right choice of four, which the prompt itself gives: "The cup is brown. ... Answer:" -> " C".

    After the copied colours of MIB (Mueller et al. 2025, arXiv:2504.13151, section 3). Corrupted: the cup has the
    colour of another of the choices, whose letter is the wrong answer. Positions: colour, A to D (the choices), end.
    """
    kept = Words(model)
    colours, things = kept.single(words.COLOURS, 4, "colours"), kept.single(words.THINGS, 1, "things")
    letters = [one_token(model, f" {letter}") for letter in "ABCD"]
    prompts = []
    for _ in range(n):
        thing, choices = rng.choice(things), rng.sample(colours, 4)
        asked, other = rng.sample(range(4), 2)
        start = f"The {thing} is"
        rest = f". What colour is the {thing}?\n" + "".join(f"{x}. {c}\n" for x, c in zip("ABCD", choices, strict=True))
        clean, corrupted = (model.to_tokens(f"{start} {choices[which]}{rest}Answer:") for which in (asked, other))
        positions = {"colour": len(model.to_tokens(f"{start} {choices[asked]}")) - 1}
        for letter, colour in zip("ABCD", choices, strict=True):
            positions[letter] = clean.index(one_token(model, f" {colour}"), positions["colour"] + 1)
        positions["end"] = len(clean) - 1
        prompts.append(Prompt(clean, [(len(clean) - 1, letters[asked])], corrupted, letters[other], positions))
    return Task("mcqa", prompts, kept.dropped, kept.note)
