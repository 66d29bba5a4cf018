"""Generated questions."""

import pytest

from data_modules.facts import PLACES, make_questions
from registries.registry import UserError


def word(text: str) -> int:
    return PLACES.index(text.strip())


def test_each_context_answers_its_question_and_no_other_place_is_right():
    questions = make_questions(50, 4, word)
    for question in questions:
        name = question.question.split()[-3]
        assert question.question == f" Where does {name} live? {name} lives in"
        assert question.context.count(" lives in ") == 4
        assert f"{name} lives in{question.answers[question.right]}." in question.context
        assert len(set(question.answers)) == 4
    assert len({question.context for question in questions}) == 50
    assert {question.right for question in questions} == {0, 1, 2, 3}


def test_the_same_seed_gives_the_same_questions():
    one, again, other = (make_questions(5, 3, word, seed) for seed in (1, 1, 2))
    assert one == again != other


def test_places_that_begin_alike_are_not_asked_for_together():
    questions = make_questions(30, 2, lambda text: ord(text.strip()[0]))
    for question in questions:
        assert len({answer.strip()[0] for answer in question.answers}) == 2
    with pytest.raises(UserError, match="communication.facts=4 is more than the 2"):
        make_questions(5, 4, lambda text: len(text) % 2)
