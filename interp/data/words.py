"""Words for the built-in tasks: common enough to be single tokens in most vocabularies.

`interp.bundled.generated` uses none of these names, noun pairs and prepositions, so that the bundled model has never
been trained on the tasks that it is asked.
"""

NAMES = (
    "Mary John Tom James Anna Jane Elizabeth Alice Anne George Charles Edward Jack Nicholas Lucy Rachel Rose Amy "
    "Richard Fred Robert Helen Paul Henry David Michael William Julia Martin Sarah Frank Emma Laura"
).split()
PLACES = "shop store garden school house market park office church kitchen river hall".split()
OBJECTS = "drink book bag basket letter picture box key glass newspaper".split()
NOUNS = [
    (word, word + "s")
    for word in (
        "key book letter friend servant brother sister room table window chair soldier officer boy girl picture "
        "street dog ship garden star doctor mother father daughter son cousin teacher student road gate field shop coin"
    ).split()
    if word not in {"star", "ship", "dog", "coin"}
]
