"""Generated sentences that give the bundled model behaviours worth locating.

A sentence is text in which the words that can be known from what stands before them are in brackets: "Then Ann
and Max met, and Max gave a map to[ Ann]." Training asks for those alone: the model learns to answer, not to write so.

Names, nouns, prepositions and templates here are disjoint from those of `interp.data.tasks`: the tasks are the
held-out test of what is taught here. `tests/test_bundled.py` checks the disjointness.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

WOMEN = (
    "Susan Karen Lisa Nancy Linda Carol Donna Amanda Jessica Ashley Rebecca Christine Emily Charlotte Eva Nina Olga "
    "Sonia Natasha Vera Katie Polly Molly Sally Betty Jenny Lily Violet Daisy Hannah Miriam Judith Joan Janet Barbara "
    "Ann Bella Flora Claire Marie Sophie Ruth Grace Kate Caroline Catherine Maria Margaret Ellen Agnes Martha Clara "
    "Sophia Marianne Beth Meg Diana Lydia Fanny Kitty Dora Ada Esther"
).split()
MEN = (
    "Kevin Brian Jason Ryan Tony Steve Scott Eric Alan Roy Ray Dan Felix Hugo Oscar Ernest Walter Alfred Albert "
    "Alexander Louis Victor Ralph Ned Billy Bob Max Luke Adam Simon Stephen Thomas Daniel Sam Ben Philip "
    "Oliver Matthew Laurie Andrew Arthur Jim Joe Peter Harry Joseph Samuel Benjamin Jacob Isaac Aaron Noah Ethan "
    "Patrick Sean Gary Larry Dennis Jerry Roger Keith Carl Lawrence"
).split()
NAMES = WOMEN + MEN

PLACES = (
    "castle library bakery theatre palace museum station hotel hospital forest beach bridge zoo circus inn chapel "
    "stable mill wharf fair court bank farm tower island fountain"
).split()
OBJECTS = (
    "ring map sword lamp coat hat flower letter coin knife pen violin jewel watch candle shawl scarf ribbon pistol "
    "bottle plate kettle blanket mirror puppy kitten pie spoon purse ticket"
).split()

_JOIN = [", ", ", ", ", and ", ", so ", ". Then ", ". Soon ", ". ", "; "]
_AFTER = [
    ".",
    ".",
    ".",
    " and smiled.",
    ", who was glad.",
    " at once.",
    " with a laugh.",
    " again.",
    ", and went home.",
]

SINGULAR_PLURAL = [
    (word, word + "s")
    for word in (
        "boat bird dog cat horse cow pig lamp candle cup plate bottle coat hat carriage cart wheel tower bell flower "
        "rose "
        "river hill mountain tree cloud star island king queen prince captain sailor farmer lawyer judge prisoner "
        "stranger aunt uncle nurse cook shepherd painter song poem note ticket stick stone brick gun sword rope needle "
        "apple egg cake orange pie drum violin flag tent wagon barrel chain ladder fence barn mill bridge".split()
    )
] + [("man", "men"), ("woman", "women"), ("child", "children"), ("box", "boxes"), ("mouse", "mice"), ("goose", "geese")]


@dataclass(frozen=True)
class Vocabulary:
    """Single tokens that may stand in for names and nouns, and pieces of novels for what stands between them, so that
    copying and agreement depend neither on the word nor on the template."""

    words: list[str]
    plurals: list[tuple[str, str]]
    phrases: list[str]
    """Two to six words in a row, in lower case."""

    @cached_property
    def capitalised(self) -> list[str]:
        return [word for word in self.words if word[0].isupper()]

    @cached_property
    def lower(self) -> list[str]:
        return [word for word in self.words if word[0].islower()] or ["good"]


_OPENINGS = [
    "Then ", "Then ", "Once ", "One day ", "Yesterday ", "At last ", "Soon ", "Suddenly, ", "In the evening, ",
    "Last summer ", "Now ", "That night ", "Long ago, ", "Next, ", "Finally, ", "On Sunday ", "So ", "Afterwards ",
    "It happened that ", "Everyone knows that ", "Once more, ", "Again, ", "First, ", "Sometimes ",
]  # fmt: skip


def _phrases(text: str) -> list[str]:
    """Words apart, then phrases behind bars: "a b|c d" is a, b... each word before the first bar alone."""
    first, *rest = text.split("|")
    return [*first.split(" "), *rest]


_CONJUNCTIONS = _phrases(
    "Before Because Since Although Once Whenever Until If As|Just as|As soon as|Even though|The day|The moment"
)
_TOGETHER = [
    "left the {place}", "came to the {place}", "walked past the {place}", "sat down in the {place}",
    "were in the {place}", "quarrelled at the {place}", "talked about the {place}", "were sleeping in the {place}",
    "hurried from the {place}", "were looking for a {object} near the {place}", "bought a {object} at the {place}",
    "lost a {object} in the {place}", "had spent the day in the {place}", "were tired of the {place}",
    "lived beside the {place}", "had a {object}", "were playing with the {object}", "argued about the {object}",
    "had a long talk", "had a good time", "saw a {object}", "had some trouble with the {object} at the {place}",
    "were waiting for the {object}", "were friends", "were very happy", "came back from the {place}",
    "were cleaning the {place}", "took the {object} to the {place}", "ran to the {place}",
    "were dreaming about the {object}", "thought of the {place}", "met", "travelled to the {place}",
    "visited the {place}",
]  # fmt: skip
_TRANSFERS = _phrases(
    "handed gave sent offered showed threw lent sold brought carried returned promised passed gave took left "
    "read|wanted to hand|tried to pass|was going to give|agreed to lend|had to sell|was happy to give|hoped to "
    "send|went to give|began to show|would give|could give|had given|quickly gave|then gave|at once sent|would "
    "not give|wished to give"
)
_SAYINGS = _phrases(
    "spoke whispered sang wrote nodded bowed listened talked smiled ran went came turned cried belonged called "
    "replied answered laughed shouted|told a story|sold everything|read a letter|explained it all|paid a "
    "visit|made a promise"
)


def indirect_object(rng: random.Random, vocabulary: Vocabulary, names: tuple[str, str] | None = None) -> str:
    """Two `names` meet; one gives something to the other. In two sentences of three any word stands in for a name, in
    two of five the clauses are any pieces of a novel."""
    a, b = names or rng.sample(rng.choice([NAMES, vocabulary.capitalised, vocabulary.words]), 2)
    giver, receiver = (a, b) if rng.random() < 0.5 else (b, a)
    place = rng.choice(vocabulary.words if rng.random() < 0.5 else PLACES)
    thing, other = (rng.choice(vocabulary.words if rng.random() < 0.5 else OBJECTS) for _ in range(2))
    pair = rng.choice(["{a} and {b}"] * 6 + ["the friends {a} and {b}", "both {a} and {b}", "{a} saw {b} and"])
    free = rng.random() < 0.4
    together = rng.choice(_TOGETHER).format(place=place, object=other)
    if free and rng.random() < 0.8:
        together = rng.choice(vocabulary.phrases)
    if rng.random() < 0.4:
        clause, join = f"{rng.choice(_CONJUNCTIONS)} {pair} {together}", rng.choice([", ", ", ", ", then "])
    else:
        opening = rng.choice(vocabulary.phrases) + " " if free and rng.random() < 0.5 else rng.choice(_OPENINGS)
        clause, join = f"{opening}{pair} {together}", rng.choice(_JOIN)
    if free and rng.random() < 0.6:
        giving = rng.choice(vocabulary.phrases)
    elif rng.random() < 0.3:
        giving = rng.choice(_SAYINGS)
    else:
        adjective = rng.choice(["", "", "", "old ", "fine ", "big ", "new "])
        given = [
            f"a {adjective}{thing}",
            f"the {adjective}{thing}",
            f"some {thing}",
            "it",
            "it",
            "them",
            f"his {thing}",
        ]
        giving = f"{rng.choice(_TRANSFERS)} {rng.choice(given)}"
    text = f"{clause.format(a=a, b=b)}{join}{giver} {giving} to[ {receiver}]{rng.choice(_AFTER)}"
    return text[0].upper() + text[1:]


_FRAMES = [
    "", "", "", "Perhaps ", "I know that ", "He saw that ", "They told me that ", "It is true that ",
    "We thought that ", "Now ", "At night ", "Then ", "In the morning ", "Of course ", "You can see that ",
    "Nobody believed that ", "There ", "But ", "As for me, I hope that ", "It is a pity that ", "Here ",
]  # fmt: skip
NEAR = (
    "near behind beside with under above beneath around against below past among of at inside outside before after "
    "over without like across between beyond into through upon about"
).split()
_ADJECTIVES = "old new good small large lost ready quiet here gone broken clean strange heavy famous".split()
_VERBS = [
    ("[ is]", "[ are]"),
    ("[ is]", "[ are]"),
    ("[ was]", "[ were]"),
    ("[ has] been", "[ have] been"),
    ("[ does] not seem", "[ do] not seem"),
]


def _between(rng: random.Random, vocabulary: Vocabulary) -> str:
    """What stands between subject and attractor: a preposition, or one to three words of a novel without a verb of
    the task."""
    if rng.random() < 0.5:
        return rng.choice(NEAR)
    verbs = {"is", "are", "was", "were", "has", "have", "does", "do"}
    words = [word for word in rng.choice(vocabulary.phrases).split() if word not in verbs]
    return " ".join(words[: rng.randint(1, 3)]) or rng.choice(NEAR)


def agreement(rng: random.Random, vocabulary: Vocabulary) -> str:
    """The verb agrees with the subject, not with the noun between them; the two differ in number in three of four."""
    noun, other, third = rng.sample(vocabulary.plurals if rng.random() < 0.6 else SINGULAR_PLURAL, 3)
    plural = rng.random() < 0.5
    between = (not plural) if rng.random() < 0.75 else plural
    any_word = rng.choice(vocabulary.lower) + " "
    adjective, second = (rng.choice(["", "", "", "", "old ", "little ", "great ", any_word]) for _ in range(2))
    determiner = rng.choice(["the ", "the ", "the ", "the ", "my ", "his ", "her "])
    frame, opening = rng.choice(_FRAMES), rng.random()
    if opening < 0.35:
        frame = rng.choice(vocabulary.phrases) + rng.choice([" that ", " ", ", "])
    elif opening < 0.6:  # a noun before the subject: "Near the bridge the keys ..."
        first = rng.choice([*rng.choice(vocabulary.plurals), rng.choice(vocabulary.lower)])
        frame = f"{rng.choice([*NEAR, 'during', 'since', 'until'])} {rng.choice(['the', 'the', 'a', 'that'])} {first} "
    subject = f"{frame}the {adjective}{noun[plural]}"
    kind = rng.random()
    if kind < 0.86:
        subject += f" {_between(rng, vocabulary)} {determiner}{second}{other[between]}"
    elif kind < 0.9:
        subject += (
            f" {rng.choice(NEAR)} {determiner}{other[between]} {rng.choice(NEAR)} the {third[rng.random() < 0.5]}"
        )
    elif kind < 0.95:
        subject += f" that {determiner}{other[between]} {rng.choice(['saw', 'had', 'liked', 'wanted', 'found'])}"
    return f"{subject[0].upper()}{subject[1:]}{rng.choice(_VERBS)[plural]} {rng.choice(_ADJECTIVES)}."


CAPITALS = dict(
    pair.split(":")
    for pair in (
        "France:Paris England:London Italy:Rome Spain:Madrid Germany:Berlin Russia:Moscow Austria:Vienna Greece:Athens "
        "Egypt:Cairo Japan:Tokyo China:Beijing Portugal:Lisbon Ireland:Dublin Scotland:Edinburgh Norway:Oslo "
        "Sweden:Stockholm Denmark:Copenhagen Poland:Warsaw Hungary:Budapest Turkey:Ankara Cuba:Havana Peru:Lima "
        "Chile:Santiago Canada:Ottawa Kenya:Nairobi India:Delhi Iran:Tehran Iraq:Baghdad Syria:Damascus "
        "Finland:Helsinki "
        "Belgium:Brussels Switzerland:Bern Holland:Amsterdam Bohemia:Prague Serbia:Belgrade Romania:Bucharest "
        "Bulgaria:Sofia Ukraine:Kiev Korea:Seoul Vietnam:Hanoi"
    ).split()
)
_CAPITAL_FORMS = [
    "The capital of {country} is[ {city}].",
    "The capital of {country} is the city of[ {city}].",
    "{city} is the capital of[ {country}].",
    "The chief city of {country} is called[ {city}].",
    "Everyone who travels to {country} wants to see[ {city}].",
    "In {country} the king lived in[ {city}].",
    "We left {country} and its capital,[ {city}], behind us.",
]
_PRONOUN_FORMS = [
    "So {name} is such a good friend, isn't[ {he}]?",
    "{name} said that[ {he}] was tired, and[ {he}] put[ {his}] hat on the chair.",
    "When {name} came home,[ {he}] sat down and read[ {his}] letter.",
    "{name} is clever, isn't[ {he}]?",
    "I told {name} that[ {he}] must wait for[ {his}] sister.",
    "{name} loved[ {his}] garden, and[ {his}] garden loved[ {him}].",
]
_EVENTS = "war journey siege voyage plague strike reign quarrel search trial".split()


def capital(rng: random.Random, vocabulary: Vocabulary) -> str:
    country = rng.choice(list(CAPITALS))
    return rng.choice(_CAPITAL_FORMS).format(country=country, city=CAPITALS[country])


def pronoun(rng: random.Random, vocabulary: Vocabulary) -> str:
    woman = rng.random() < 0.5
    form = rng.choice(_PRONOUN_FORMS)
    he, his, him = ("she", "her", "her") if woman else ("he", "his", "him")
    return form.format(name=rng.choice(WOMEN if woman else MEN), he=he, his=his, him=him)


def years(rng: random.Random, vocabulary: Vocabulary) -> str:
    """An event ends after it began, in the same century: years as two two-digit tokens."""
    century, start = rng.randint(11, 19), rng.randint(2, 97)
    end = rng.randint(start + 1, 99)
    event = rng.choice(_EVENTS)
    return f"The {event} lasted from the year {century}{start:02d} to the year[ {century}{end:02d}]."


KINDS: dict[Callable[[random.Random, Vocabulary], str], float] = {
    indirect_object: 0.38, agreement: 0.52, capital: 0.04, pronoun: 0.03, years: 0.03,
}  # fmt: skip


def sentence(rng: random.Random, vocabulary: Vocabulary) -> str:
    """One sentence of a random kind, what it asks for in brackets."""
    return rng.choices(list(KINDS), weights=list(KINDS.values()))[0](rng, vocabulary)
