"""Words for the built-in tasks: common enough to be single tokens in most vocabularies.

`interp.bundled.generated` uses none of these names, noun pairs and prepositions, so that the bundled model has never
been trained on the tasks that it is asked. Its novels have each of these names 150 times or more, and both forms of
each noun 200 times: it knows them as names and nouns.
"""

NAMES = (
    "Mary John Tom James Anna Jane Elizabeth Alice Anne George Charles Edward Jack Nicholas Lucy Rose Amy Richard Fred "
    "William"
).split()
PLACES = "shop store garden school house market park office church kitchen river hall".split()
OBJECTS = "drink book bag basket letter picture box key glass newspaper".split()
NOUNS = [
    (word, word + "s")
    for word in (
        "book letter friend servant brother sister room window soldier officer boy girl picture street daughter field"
    ).split()
]
