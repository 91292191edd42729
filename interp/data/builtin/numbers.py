"""Tasks of numbers: later years, sums."""

from __future__ import annotations

import random

from interp.data import words
from interp.data.prompts import Prompt, Task
from interp.data.wording import Words, one_token
from interp.decoder.model import Model

CENTURIES = range(11, 20)


def greater_than(model: Model, n: int, rng: random.Random) -> Task:
    """Years: "The war lasted from the year 1732 to the year 17" -> any of "33" to "99" over "00" to "32".

    Scored by `prob_diff`: the probability of all later years minus that of all earlier ones (the start among them); for
    other metrics one later and one earlier year are drawn. Corrupted: the war starts in 1701, so that every year is
    later. Positions: start, end. It needs a tokenizer that writes a year as the century and one token of two digits;
    years written otherwise are left out. Hanna et al. 2023, arXiv:2305.00586, section 2. The bundled model was trained
    on these words in this sentence, with years of its own draw.
    """
    kept = Words(model)
    events = kept.single(words.EVENTS, 1, "events")
    years = {century: _two_digits(model, century) for century in CENTURIES}
    written = {century: known for century, known in years.items() if 1 in known and len(known) > 2}
    kept.drop(
        [f"{century}{yy:02d}" for century in CENTURIES for yy in range(100) if yy not in written.get(century, {})],
        "years",
    )
    kept.enough(len(written), 1, "centuries with years of two digits")
    prompts = []
    for _ in range(n):
        event, century = rng.choice(events), rng.choice(list(written))
        tokens = written[century]
        yy = rng.choice([yy for yy in tokens if yy > 1 and yy < max(tokens)])
        later, earlier = [t for y, t in tokens.items() if y > yy], [t for y, t in tokens.items() if y <= yy]
        begun = f"The {event} lasted from the year {century}"
        clean, corrupted = (model.to_tokens(f"{begun}{start:02d} to the year {century}") for start in (yy, 1))
        positions = {"start": len(model.to_tokens(f"{begun}{yy:02d}")) - 1, "end": len(clean) - 1}
        target, wrong = [(len(clean) - 1, rng.choice(later))], rng.choice(earlier)
        prompts.append(Prompt(clean, target, corrupted, wrong, positions, answers=later, wrong_answers=earlier))
    return Task("greater_than", prompts, kept.dropped, kept.note)


def _two_digits(model: Model, century: int) -> dict[int, int]:
    """The token of each two-digit year that comes after the tokens of its century."""
    start, found = model.to_tokens(f" {century}", prepend_bos=False), {}
    for yy in range(100):
        ids = model.to_tokens(f" {century}{yy:02d}", prepend_bos=False)
        if ids[:-1] == start:
            found[yy] = ids[-1]
    return found


def arithmetic(model: Model, n: int, rng: random.Random) -> Task:
    """Sums: "37 plus 25 is" -> " 62" over the sum with the other number.

    Corrupted: another second number. Positions: first, second, end. Needs a tokenizer with numbers up to 98 as single
    tokens; those that are not are left out.
    """
    kept = Words(model)
    numbers = [int(word) for word in kept.single([str(number) for number in range(10, 99)], 10, "numbers")]
    known, prompts = set(numbers), []
    pairs = [(a, b) for a in numbers for b in numbers if a + b in known]
    kept.enough(len({b for _, b in pairs}), 2, "sums")
    for _ in range(n):
        a, b = rng.choice(pairs)
        other = rng.choice([c for first, c in pairs if first == a and c != b] or [b])
        clean, corrupted = (model.to_tokens(f"The sum of {a} plus {second} is") for second in (b, other))
        right, wrong = one_token(model, f" {a + b}"), one_token(model, f" {a + other}")
        first = len(model.to_tokens(f"The sum of {a}")) - 1
        second = len(model.to_tokens(f"The sum of {a} plus {b}")) - 1
        positions = {"first": first, "second": second, "end": len(clean) - 1}
        prompts.append(Prompt(clean, [(len(clean) - 1, right)], corrupted, wrong, positions))
    return Task("arithmetic", prompts, kept.dropped, kept.note)
