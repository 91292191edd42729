"""Words for the built-in tasks: common enough to be single tokens in most vocabularies.

`interp.bundled.generated` uses none of these NAMES, NOUNS and prepositions, so that the bundled model has never been
trained on the indirect object and the agreement that it is asked. Its novels have each of these names 150 times or
more, and both forms of each noun 200 times: it knows them as names and nouns. CAPITALS, WOMEN, MEN and EVENTS are words
that it was trained on: a capital is known or not, and cannot be held out.
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

WOMEN = (
    "Susan Karen Lisa Nancy Linda Carol Donna Amanda Jessica Ashley Rebecca Christine Emily Charlotte Sally Betty "
    "Hannah Barbara Sophie Grace Kate Caroline Catherine Maria Margaret Ellen Martha Clara Diana Esther"
).split()
MEN = (
    "Kevin Brian Jason Ryan Tony Steve Scott Eric Alan Roy Ray Dan Felix Hugo Oscar Walter Albert Victor Max Luke Adam "
    "Simon Daniel Philip Oliver Matthew Andrew Arthur Peter Harry"
).split()
EVENTS = "war journey siege voyage plague strike reign quarrel search trial".split()
CAPITALS = [
    tuple(pair.split(":"))
    for pair in (
        "France:Paris England:London Italy:Rome Spain:Madrid Germany:Berlin Russia:Moscow Austria:Vienna Greece:Athens "
        "Egypt:Cairo Japan:Tokyo China:Beijing Portugal:Lisbon Ireland:Dublin Scotland:Edinburgh Norway:Oslo "
        "Sweden:Stockholm Denmark:Copenhagen Poland:Warsaw Hungary:Budapest Turkey:Ankara Cuba:Havana Peru:Lima "
        "Chile:Santiago Canada:Ottawa Kenya:Nairobi Iran:Tehran Iraq:Baghdad Syria:Damascus Finland:Helsinki "
        "Belgium:Brussels Switzerland:Bern Ukraine:Kiev Korea:Seoul Vietnam:Hanoi"
    ).split()
]
COLOURS = "red blue green black white brown yellow orange pink purple".split()
THINGS = "pen cup book box hat ball bag chair plate watch key ring letter lamp coat flower knife".split()
ARGUMENTS = (
    "load size files last first name time line point page note list path value order date table head index word case "
    "end code key type text shape group field row state result item number sound letter paper hand place story"
).split()
DOC_WORDS = (
    "oil column piece crime population unit dark sea winter garden river morning music silver bridge coat road captain "
    "evening summer"
).split()
