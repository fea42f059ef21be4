"""Generated profiles: deterministic, disjoint splits, and answers that are right."""

import collections

import pytest

from latentwire.data import profiles
from latentwire.data.profiles import ATTRIBUTES, Document, document

SPLITS: tuple[profiles.Split, ...] = ("train", "validation", "test")


@pytest.fixture(scope="module")
def documents() -> dict[profiles.Split, list[Document]]:
    return {split: [document(0, split, index) for index in range(1500)] for split in SPLITS}


@pytest.fixture(scope="module")
def every(documents: dict[profiles.Split, list[Document]]) -> list[Document]:
    return [doc for docs in documents.values() for doc in docs]


def test_document_is_a_function_of_seed_split_and_index() -> None:
    late_first = document(3, "train", 777)
    document(3, "train", 0)
    assert document(3, "train", 777) == late_first
    assert document(4, "train", 777) != late_first
    assert document(3, "train", 778) != late_first
    assert document(3, "test", 777) != late_first


def test_splits_share_no_document(documents: dict[profiles.Split, list[Document]]) -> None:
    contexts = {split: {doc.context for doc in docs} for split, docs in documents.items()}
    assert not contexts["train"] & contexts["validation"]
    assert not contexts["train"] & contexts["test"]
    assert not contexts["validation"] & contexts["test"]
    assert all(len(found) > 1490 for found in contexts.values()), "documents hardly ever repeat"


def test_splits_stay_disjoint_over_seeds() -> None:
    for split in SPLITS:
        for seed in range(5):
            for index in range(50):
                assert profiles.split_of(document(seed, split, index).context) == split


def test_facts_and_people_are_in_range(every: list[Document]) -> None:
    assert {len(doc.facts) for doc in every} == set(range(6, 13))
    people = [len({fact.person for fact in doc.facts}) for doc in every]
    assert set(people) == {1, 2}
    assert all(len(doc.examples) == profiles.QUESTIONS_PER_DOCUMENT for doc in every)


def test_asked_number_of_facts_is_kept() -> None:
    for index in range(50):
        doc = document(0, "train", index, min_facts=1, max_facts=3)
        assert 1 <= len(doc.facts) <= 3
        assert len(doc.examples) == len(doc.facts)


def test_answers_stand_in_the_context(every: list[Document]) -> None:
    for doc in every:
        for example in doc.examples:
            assert example.context == doc.context
            assert example.answers[0] in doc.context
            assert len({item.question for item in doc.examples}) == len(doc.examples)


def test_people_of_a_document_cannot_be_confused(every: list[Document]) -> None:
    for doc in every:
        starts = [name[:3] for name in {fact.person for fact in doc.facts}]
        assert len(set(starts)) == len(starts)


def test_no_person_has_two_values_of_an_attribute(every: list[Document]) -> None:
    for doc in every:
        slots = [(fact.person, fact.attribute) for fact in doc.facts]
        assert len(set(slots)) == len(slots)


def test_answer_is_the_named_persons_value(every: list[Document]) -> None:
    for doc in every:
        values = {(fact.person, fact.attribute): fact.value for fact in doc.facts}
        people = {fact.person for fact in doc.facts}
        meaning = {
            wording.format(n=person): (person, key)
            for person in people
            for key, attribute in ATTRIBUTES.items()
            for wording in attribute.questions
        }
        for example in doc.examples:
            assert example.answers == (values[meaning[example.question]],)


def test_each_fact_is_stated_in_the_context(every: list[Document]) -> None:
    for doc in every[::10]:
        for fact in doc.facts:
            wordings = ATTRIBUTES[fact.attribute].statements
            stated = {wording.format(n=fact.person, v=fact.value) for wording in wordings}
            assert any(sentence in doc.context for sentence in stated)


def test_shared_attributes_exist_and_are_labelled(every: list[Document]) -> None:
    kinds: collections.Counter[str] = collections.Counter()
    for doc in every:
        times = collections.Counter(fact.attribute for fact in doc.facts)
        shared = {fact.value for fact in doc.facts if times[fact.attribute] > 1}
        for example in doc.examples:
            kinds[example.kind] += 1
            if example.kind == "shared":
                assert example.answers[0] in shared
    assert set(kinds) == {"plain", "shared"}
    assert kinds["shared"] > 0.05 * kinds.total()
