"""The harder profiles: what a document holds, and that its questions have one answer each."""

import re

import pytest

from latentwire.data.profiles import ATTRIBUTES, split_of
from latentwire.data.profiles_hard import PARAPHRASES, Shape, document
from latentwire.data.sources import SourceError, open_source

DOCUMENTS = [document(0, "train", index) for index in range(60)]


def test_a_document_is_a_function_of_its_number() -> None:
    assert document(3, "test", 5) == document(3, "test", 5)
    assert document(3, "test", 5) != document(4, "test", 5)
    assert all(split_of(document(0, "validation", i).context) == "validation" for i in range(20))


def test_documents_of_the_setting_stay_what_they_were() -> None:
    """Scores on them are kept, and compared with later ones."""
    assert document(0, "test", 0).context.startswith("Gina starts the day with lemonade. ")
    assert document(0, "test", 0, shape=Shape()) == document(0, "test", 0)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(facts=(6, 8), people=(2, 2)),
        Shape(facts=(4, 9), people=(3, 3), friends=False),
        Shape(facts=(2, 2), people=(2, 2), friends=False),
    ],
)
def test_a_document_has_the_sizes_of_its_shape(shape: Shape) -> None:
    docs = [document(0, "train", index, shape=shape) for index in range(30)]
    assert docs != [document(1, "train", index, shape=shape) for index in range(30)]
    for doc in docs:
        assert shape.facts[0] <= len(doc.facts) <= shape.facts[1]
        assert len({fact.person for fact in doc.facts}) <= shape.people[1]
        assert any(fact.attribute == "friend" for fact in doc.facts) == shape.friends
        assert any(example.kind == "two_hop" for example in doc.examples) <= shape.friends
        assert len(doc.examples) == min(6, len(doc.facts))
        assert all(example.answers[0] in doc.context for example in doc.examples)


def test_the_smallest_document_asks_whose_a_value_is() -> None:
    shape = Shape(facts=(2, 2), people=(2, 2), friends=False)
    for index in range(30):
        doc = document(0, "train", index, shape=shape)
        assert len({fact.person for fact in doc.facts}) == 2
        assert len({fact.attribute for fact in doc.facts}) == 1
        assert [example.kind for example in sorted(doc.examples, key=lambda e: e.kind)] == [
            "direct",
            "paraphrased",
        ]


def test_documents_are_long_and_on_several_people_who_share_attributes() -> None:
    for doc in DOCUMENTS:
        people = {fact.person for fact in doc.facts}
        assert 12 <= len(doc.facts) <= 24
        assert 2 <= len(people) <= 5
        assert len({name[0] for name in people}) == len(people)
        owners = [
            sum(fact.attribute == key for fact in doc.facts)
            for key in {fact.attribute for fact in doc.facts}
        ]
        assert sorted(owners)[1] >= 2, "all but the last attribute are of two people or more"


def test_no_fact_is_stated_twice_and_no_value_shared() -> None:
    for doc in DOCUMENTS:
        assert len({(fact.person, fact.attribute) for fact in doc.facts}) == len(doc.facts)
        plain = [(f.attribute, f.value) for f in doc.facts if f.attribute != "friend"]
        assert len(set(plain)) == len(plain)


def test_every_question_has_the_answer_of_the_facts() -> None:
    """Read back from the question's own words."""
    for doc in DOCUMENTS:
        values = {(fact.person, fact.attribute): fact.value for fact in doc.facts}
        for example in doc.examples:
            key, name = asked(example.question)
            if name.startswith("the best friend of "):
                assert example.kind == "two_hop"
                name = values[name.removeprefix("the best friend of "), "friend"]
            else:
                assert example.kind in ("direct", "paraphrased")
            assert example.answers == (values[name, key],)


def asked(question: str) -> tuple[str, str]:
    """The attribute and whose it is."""
    forms = {
        key: (*attribute.questions, *PARAPHRASES[key]) for key, attribute in ATTRIBUTES.items()
    }
    found = {
        (key, match[1])
        for key, texts in forms.items()
        for text in texts
        if (match := re.fullmatch(re.escape(text).replace(r"\{n\}", "(.+)"), question))
        if match[1].split()[-1][0].isupper() and match[1].count(" of ") <= 1
    }
    # "Who is the best friend of the best friend of Ada?" is one question in one way only.
    found = {entry for entry in found if entry[1].count(" ") in (0, 4)}
    assert len(found) == 1, (question, found)
    return found.pop()


def test_a_document_has_two_questions_of_each_kind() -> None:
    for doc in DOCUMENTS:
        kinds = [example.kind for example in doc.examples]
        assert len(kinds) == 6
        assert kinds.count("two_hop") <= 2
        assert kinds.count("direct") >= 2
    kinds = [example.kind for doc in DOCUMENTS for example in doc.examples]
    assert kinds.count("two_hop") > 0.9 * 2 * len(DOCUMENTS)


def test_paraphrases_are_no_question_of_the_plain_profiles() -> None:
    assert PARAPHRASES.keys() == ATTRIBUTES.keys()
    for key, texts in PARAPHRASES.items():
        assert not set(texts) & set(ATTRIBUTES[key].questions)
        assert all("{n}" in text for text in texts)


def test_the_source_has_them_by_its_setting() -> None:
    hard, plain, default = (
        open_source(source="profiles", path=None, setting=setting, split="test", seed=1)
        for setting in ("hard", "plain", None)
    )
    assert hard.examples(3) == document(1, "test", 3).examples
    assert plain.examples(3) == default.examples(3) != hard.examples(3)
    assert {example.context for example in hard.examples(3)} == {document(1, "test", 3).context}


@pytest.mark.parametrize(
    ("source", "setting", "expected"),
    [
        ("profiles", "gold", "`data.source: profiles` has plain, hard"),
        ("hotpot", "hard", "`data.source: hotpot` has distractor, gold"),
        ("squad", "plain", "`data.source: squad` has none; leave the key out"),
    ],
)
def test_a_setting_of_another_source_is_refused(source: str, setting: str, expected: str) -> None:
    with pytest.raises(SourceError, match=re.escape(f"data.setting: `{setting}`: {expected}")):
        open_source(source=source, path=None, setting=setting, split="test", seed=0)
