"""Generated questions."""

import pytest

from data_modules.facts import CITIES, make_questions
from registries.registry import UserError


def word(text: str) -> int:
    return CITIES.index(text.strip())


def test_each_context_answers_its_question_and_no_other_place_is_right():
    questions = make_questions(60, 3, 4, word)
    for question in questions:
        name = question.question.split()[-3]
        assert question.question == f" Where does {name} live? {name} lives in"
        assert question.context.count(" lives in ") == 3
        assert f"{name} lives in{question.answers[question.right]}." in question.context
        assert len(set(question.answers)) == 4
        assert sum(answer in question.context for answer in question.answers) == 3
    assert len({question.context for question in questions}) == 60
    assert {question.right for question in questions} == {0, 1, 2, 3}


def test_with_one_fact_the_other_answers_are_not_in_the_context():
    for question in make_questions(20, 1, 5, word):
        assert [answer in question.context for answer in question.answers].count(True) == 1


def test_the_same_seed_gives_the_same_questions():
    one, again, other = (make_questions(5, 3, 4, word, seed) for seed in (1, 1, 2))
    assert one == again != other


def test_places_that_begin_alike_are_not_asked_for_together():
    questions = make_questions(30, 1, 3, lambda text: ord(text.strip()[0]))
    for question in questions:
        assert len({answer.strip()[0] for answer in question.answers}) == 3
    for facts, choices, key in ((3, 2, "facts=3"), (1, 3, "choices=3")):
        with pytest.raises(UserError, match=f"communication.{key} is more than the 2"):
            make_questions(5, facts, choices, lambda text: len(text) % 2)
