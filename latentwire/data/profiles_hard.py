"""The harder profiles: long documents on several people who share attributes.

A reader has to tell people apart that have the same kinds of facts, to know a question in other
words, and to follow one fact to another (``What pet does the best friend of Ada have?``). Like the
plain profiles everything is a pure function of (seed, split, index), and a document belongs to the
split that the hash of its own text names.
"""

import random
from dataclasses import dataclass, replace

from latentwire.data.example import Example
from latentwire.data.profiles import (
    ATTRIBUTES,
    NAMES,
    QUESTIONS_PER_DOCUMENT,
    Document,
    Fact,
    Split,
    split_of,
)

PARAPHRASES: dict[str, tuple[str, ...]] = {
    "home": ("Name the place {n} lives in.", "{n} has a home where?"),
    "birthplace": ("Name the place where life began for {n}.", "{n} was born where?"),
    "holiday": ("Name the place {n} goes to each summer.", "{n} goes where on holidays?"),
    "job": ("Name the job that {n} does.", "{n} earns money as what?"),
    "firm": ("Name the firm that pays {n}.", "{n} has a desk at which firm?"),
    "pet": ("Name the animal that {n} looks after.", "{n} looks after which animal?"),
    "colour": ("Name the colour that {n} prefers.", "{n} prefers which colour?"),
    "door": ("Name the colour of the door at the house of {n}.", "{n} has a door of which colour?"),
    "food": ("Name the food that {n} loves.", "{n} loves which food?"),
    "drink": ("Name the drink that {n} prefers.", "{n} starts the day with which drink?"),
    "instrument": ("Name the instrument that {n} has learned.", "{n} has learned to play what?"),
    "sport": ("Name the sport that {n} trains for.", "{n} trains for which sport?"),
    "language": ("Name the language that {n} reads books in.", "{n} reads books in which one?"),
    "cousins": ("Give the number of cousins of {n}.", "{n} grew up with how many cousins?"),
    "friend": ("Name the best friend of {n}.", "{n} often meets whom?"),
}
"""Ways to ask that the plain profiles do not use."""
_FRIEND = "friend"
_PER_KIND = QUESTIONS_PER_DOCUMENT // 3


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a harder document; the defaults are those of ``data.setting: hard``."""

    facts: tuple[int, int] = (12, 24)
    """Fewest and most."""
    people: tuple[int, int] = (3, 5)
    """Fewest and most."""
    friends: bool = True
    """Two of the people have a best friend among the others, and questions are about those."""

    @property
    def key(self) -> str:
        """What names the shape's stream of random numbers."""
        key = f"{self.facts[0]}/{self.facts[1]}"
        same = replace(self, facts=Shape.facts) == Shape()
        return key if same else f"{key}/{self.people}/{self.friends}"


def document(seed: int, split: Split, index: int, *, shape: Shape | None = None) -> Document:
    """Document ``index`` of a split, of a shape; None is the setting's own.

    Every attribute that is stated at all is stated of two people or more, but for the last. Of the
    six questions two are put as in the plain profiles (``kind: direct``), two in other words
    (``paraphrased``), and two are about the best friend of somebody (``two_hop``). A document of
    fewer facts has fewer.
    """
    shape = shape or Shape()
    rng = random.Random(f"hard/{seed}/{split}/{index}/{shape.key}")
    while True:
        people = _people(rng, rng.randint(*shape.people))
        facts = _facts(rng, people, rng.randint(*shape.facts), friends=shape.friends)
        context = " ".join(
            rng.choice(ATTRIBUTES[fact.attribute].statements).format(n=fact.person, v=fact.value)
            for fact in facts
        )
        if split_of(context) == split:
            break
    examples = tuple(
        Example(context=context, question=question, answers=(answer,), kind=kind)
        for kind, question, answer in _questions(rng, facts)
    )
    return Document(context=context, facts=tuple(facts), examples=examples)


def _people(rng: random.Random, count: int) -> list[str]:
    """Names that differ in their first letter."""
    found: list[str] = []
    while len(found) < count:
        name = rng.choice(NAMES)
        if name[0] not in {other[0] for other in found}:
            found.append(name)
    return found


def _facts(rng: random.Random, people: list[str], num_facts: int, *, friends: bool) -> list[Fact]:
    facts: list[Fact] = []
    # Friendships first: two of the people are friends of others of them.
    for person in rng.sample(people, 2) if friends else ():
        friend = rng.choice([other for other in people if other != person])
        facts.append(Fact(person=person, attribute=_FRIEND, value=friend))
    keys = [key for key in ATTRIBUTES if key != _FRIEND]
    rng.shuffle(keys)
    for key in keys:
        left = num_facts - len(facts)
        if left == 0:
            break
        owners = rng.sample(people, min(left, rng.randint(2, len(people))))
        values = [value for value in ATTRIBUTES[key].values if value not in people]
        facts += [
            Fact(person=person, attribute=key, value=value)
            for person, value in zip(owners, rng.sample(values, len(owners)), strict=True)
        ]
    rng.shuffle(facts)
    return facts


def _questions(rng: random.Random, facts: list[Fact]) -> list[tuple[str, str, str]]:
    """(kind, question, answer), as many of each kind as there are, in random order."""
    friends = [(fact.value, fact.person) for fact in facts if fact.attribute == _FRIEND]
    hops = [
        (fact, f"the best friend of {person}")
        for friend, person in friends
        for fact in facts
        if fact.person == friend
    ]
    two_hop = rng.sample(hops, min(_PER_KIND, len(hops)))
    num_single = min(QUESTIONS_PER_DOCUMENT - len(two_hop), len(facts))
    single = rng.sample(facts, num_single)
    found = [
        ("two_hop", rng.choice(ATTRIBUTES[fact.attribute].questions).format(n=who), fact.value)
        for fact, who in two_hop
    ]
    for number, fact in enumerate(single):
        kind = "paraphrased" if number % 2 else "direct"
        forms = PARAPHRASES if number % 2 else {k: a.questions for k, a in ATTRIBUTES.items()}
        found.append((kind, rng.choice(forms[fact.attribute]).format(n=fact.person), fact.value))
    rng.shuffle(found)
    return found
