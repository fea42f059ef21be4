"""Generated documents: short fictional facts about one or two people, with questions.

The embedded data set. Everything is a pure function of (seed, split, index), so a sampler can
jump to any document. A document belongs to the split that a hash of its own text names, so no
document can stand in two splits, whatever the seeds.
"""

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

from latentwire.data.example import Example

Split = Literal["train", "validation", "test"]

QUESTIONS_PER_DOCUMENT = 6
DOCUMENTS_PER_SPLIT: dict[str, int] = {"train": 40_000, "validation": 2_000, "test": 2_000}

_PLACES = (
    "Arlow Bresk Calder Dunmere Elsin Farrow Glenby Harsk Iver Jolton Kestrel Lundy Marwick Nolby "
    "Orsa Penrith Quill Rosk Selby Tarn Ulver Velmora Wexley Yarrow Zelin Brindle Corvo Delph "
    "Eastmere Fenwick Greyport Hollin Inver Kirby Larkhill Mossend Norvik Oakham Pellan Ravik"
).split()
_COLOURS = (
    "red blue green yellow purple black white grey brown pink silver golden crimson teal "
    "violet maroon scarlet navy khaki bronze"
).split()
_JOBS = (
    "baker nurse pilot farmer lawyer painter sailor tailor teacher plumber miner dentist judge "
    "chemist cook driver florist guard jeweller mason potter singer weaver banker clerk dancer "
    "fisher glazier"
).split()
_PETS = (
    "cat dog parrot rabbit goat horse tortoise hamster ferret duck goose lizard snake pony "
    "canary gecko mouse pigeon"
).split()
_FOODS = [
    f"{first} {second}"
    for first in ("apple", "lentil", "onion", "cherry", "mushroom", "pumpkin", "potato", "lemon")
    for second in ("soup", "pie", "stew", "salad", "cake")
]
_DRINKS = "tea coffee cider cocoa milk lemonade wine mead juice water ale tonic".split()
_INSTRUMENTS = (
    "violin piano flute drum harp cello guitar trumpet banjo oboe lute organ fiddle tuba zither "
    "clarinet"
).split()
_SPORTS = (
    "tennis rowing judo golf cricket hockey archery boxing cycling fencing rugby skiing surfing "
    "squash chess karate"
).split()
_LANGUAGES = (
    "Latin Welsh Danish Polish Greek Hindi Swahili Basque Finnish Korean Turkish Arabic Dutch "
    "Irish Malay Czech"
).split()
_FIRMS = [
    f"{first} {second}"
    for first in ("Harrow", "Castell", "Brandt", "Ormond", "Tilney", "Vesper", "Quarry", "Linden")
    for second in ("Mills", "Bank", "Press", "Works", "Foods")
]
_NUMBERS = "two three four five six seven eight nine ten eleven twelve twenty thirty forty".split()
NAMES = (
    "Ada Bela Cora Dana Elin Faye Gina Hugo Iris Jonas Karl Lena Mira Nils Otto Petra Quinn Rosa "
    "Sven Tove Ugo Vera Walt Xenia Yara Zoe Arno Bruno Clara Doris Emil Frida Gerd Hanna Igor Jana "
    "Kurt Lars Marta Nora Olaf Paul Rita Sara Theo Ulla Viktor Wanda"
).split()


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One kind of fact: how it is stated, how it is asked, and what it can be."""

    key: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    values: tuple[str, ...]


def _attribute(
    key: str, statements: str, questions: str, values: list[str]
) -> tuple[str, Attribute]:
    return key, Attribute(
        key=key,
        statements=tuple(part.strip() for part in statements.split("|")),
        questions=tuple(part.strip() for part in questions.split("|")),
        values=tuple(values),
    )


ATTRIBUTES: dict[str, Attribute] = dict(
    (
        _attribute(
            "home",
            "{n} lives in {v}. | The home of {n} is in {v}. | {n} has a house in {v}."
            " | You can find {n} in {v}.",
            "Where does {n} live? | In which place is the home of {n}?",
            _PLACES,
        ),
        _attribute(
            "birthplace",
            "{n} was born in {v}. | The birthplace of {n} is {v}. | {n} comes from {v}.",
            "Where was {n} born? | What is the birthplace of {n}?",
            _PLACES,
        ),
        _attribute(
            "holiday",
            "{n} spends the summer in {v}. | Each year {n} travels to {v}."
            " | {n} takes holidays in {v}.",
            "Where does {n} spend the summer? | Where does {n} take holidays?",
            _PLACES,
        ),
        _attribute(
            "job",
            "{n} works as a {v}. | {n} is a {v}. | The job of {n} is {v}."
            " | {n} earns money as a {v}.",
            "What is the job of {n}? | What does {n} work as?",
            _JOBS,
        ),
        _attribute(
            "firm",
            "{n} is employed by {v}. | The employer of {n} is {v}. | {n} has a desk at {v}.",
            "Who is the employer of {n}? | Which firm employs {n}?",
            _FIRMS,
        ),
        _attribute(
            "pet",
            "{n} keeps a {v}. | {n} has a pet {v}. | The pet of {n} is a {v}."
            " | {n} looks after a {v}.",
            "What pet does {n} have? | Which animal does {n} keep?",
            _PETS,
        ),
        _attribute(
            "colour",
            "The favourite colour of {n} is {v}. | {n} likes the colour {v}."
            " | {n} prefers {v} to any other colour.",
            "What is the favourite colour of {n}? | Which colour does {n} like?",
            _COLOURS,
        ),
        _attribute(
            "door",
            "The door of {n} is {v}. | {n} painted the door {v}. | {n} has a {v} door.",
            "What colour is the door of {n}? | How did {n} paint the door?",
            _COLOURS,
        ),
        _attribute(
            "food",
            "{n} loves {v}. | The favourite food of {n} is {v}. | {n} often eats {v}.",
            "What is the favourite food of {n}? | What does {n} often eat?",
            _FOODS,
        ),
        _attribute(
            "drink",
            "{n} drinks {v}. | {n} starts the day with {v}. | The favourite drink of {n} is {v}.",
            "What does {n} drink? | What is the favourite drink of {n}?",
            _DRINKS,
        ),
        _attribute(
            "instrument",
            "{n} plays the {v}. | {n} has learned the {v}. | The instrument of {n} is the {v}.",
            "Which instrument does {n} play? | What is the instrument of {n}?",
            _INSTRUMENTS,
        ),
        _attribute(
            "sport",
            "{n} is good at {v}. | The sport of {n} is {v}. | {n} trains for {v}.",
            "What sport is {n} good at? | What is the sport of {n}?",
            _SPORTS,
        ),
        _attribute(
            "language",
            "{n} speaks {v}. | {n} reads books in {v}. | The language of {n} is {v}.",
            "Which language does {n} speak? | What is the language of {n}?",
            _LANGUAGES,
        ),
        _attribute(
            "cousins",
            "{n} has {v} cousins. | {n} grew up with {v} cousins. | The cousins of {n} are {v}.",
            "How many cousins does {n} have? | What is the number of cousins of {n}?",
            _NUMBERS,
        ),
        _attribute(
            "friend",
            "{n} is a friend of {v}. | The best friend of {n} is {v}. | {n} often meets {v}.",
            "Who is the best friend of {n}? | Who does {n} often meet?",
            NAMES,
        ),
    )
)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One statement: what it says about whom."""

    person: str
    attribute: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Document:
    """A context with its facts and the examples that ask about them."""

    context: str
    facts: tuple[Fact, ...]
    examples: tuple[Example, ...]


def _people(rng: random.Random, count: int) -> list[str]:
    """Names that differ in their first letter."""
    first = rng.choice(NAMES)
    return [first, rng.choice([n for n in NAMES if n[0] != first[0]])][:count]


def _facts(
    rng: random.Random, num_facts: int, num_people: int, *, crowded: bool | None
) -> list[Fact]:
    people = _people(rng, num_people)
    keys = list(ATTRIBUTES)
    if num_people == 1:
        slots = [(people[0], key) for key in rng.sample(keys, num_facts)]
    else:
        # Some facts come in pairs, the same attribute for both people, so that a reader has to
        # bind the value to the name.
        most = num_facts // 6 if crowded is None else num_facts // 4
        num_pairs = num_facts // 2 if crowded else rng.randint(0, most)
        chosen = rng.sample(keys, num_facts - num_pairs)
        slots = [(person, key) for key in chosen[:num_pairs] for person in people]
        slots += [(rng.choice(people), key) for key in chosen[num_pairs:]]
    facts = []
    for person, key in slots:
        value = rng.choice([v for v in ATTRIBUTES[key].values if v not in people])
        facts.append(Fact(person=person, attribute=key, value=value))
    rng.shuffle(facts)
    return facts


def split_of(context: str) -> Split:
    """The split a document belongs to: 80 % train, 10 % validation, 10 % test, by its own hash."""
    bucket = hashlib.sha256(context.encode()).digest()[0]
    return "validation" if bucket < 26 else "test" if bucket < 52 else "train"


def document(
    seed: int,
    split: Split,
    index: int,
    *,
    min_facts: int = 6,
    max_facts: int = 12,
    crowded: bool | None = None,
) -> Document:
    """Document ``index`` of a split: ``min_facts`` to ``max_facts`` facts on one or two people.

    It carries ``min(num_facts, QUESTIONS_PER_DOCUMENT)`` questions, one each about another fact.
    Two people share a few attributes; with ``crowded`` True as many as they can, with False up to
    a quarter of the facts.
    An example's ``kind`` is ``shared`` when another person of the document has the same attribute.
    """
    rng = random.Random(f"{seed}/{split}/{index}/{min_facts}/{max_facts}/{crowded}")
    while True:
        num_facts = rng.randint(min_facts, max_facts)
        num_people = 1 if num_facts == 1 else 2 if crowded else rng.choice((1, 2))
        facts = _facts(rng, num_facts, num_people, crowded=crowded)
        context = " ".join(
            rng.choice(ATTRIBUTES[fact.attribute].statements).format(n=fact.person, v=fact.value)
            for fact in facts
        )
        asked = rng.sample(facts, min(num_facts, QUESTIONS_PER_DOCUMENT))
        wording = [rng.choice(ATTRIBUTES[fact.attribute].questions) for fact in asked]
        if split_of(context) == split:
            break
    times = {key: sum(fact.attribute == key for fact in facts) for key in ATTRIBUTES}
    examples = tuple(
        Example(
            context=context,
            question=question.format(n=fact.person),
            answers=(fact.value,),
            kind="shared" if times[fact.attribute] > 1 else "plain",
        )
        for fact, question in zip(asked, wording, strict=True)
    )
    return Document(context=context, facts=tuple(facts), examples=examples)
