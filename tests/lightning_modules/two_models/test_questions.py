"""A private-context task: between the bounds, and right where it must be."""

import pytest
import torch

from data_modules.caches.activation_cache import ActivationCache
from data_modules.encoding import encode_prompt
from data_modules.facts import make_questions
from lightning_modules.two_models import questions as communication
from lightning_modules.two_models.questions import CONDITIONS, first_token, right_answers
from lightning_modules.two_models.sites import Site
from tests.lightning_modules.two_models.test_cross_model import WORDS, crossing, text_blocks


@pytest.fixture
def questions():
    return make_questions(6, 2, 3, first_token(WORDS))


@pytest.fixture
def module(tmp_path):
    cache = ActivationCache(tmp_path / "cache", 1.0)
    return crossing(cache, [Site(0, 0)], "identity", source=None, first="translate")


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_condition_answers_every_question(module, questions, condition):
    answers = list(right_answers(module, questions, Site(0, 0), condition))
    assert len(answers) == 6 and all(isinstance(answer, bool) for answer in answers)


def last_logits(module, questions, condition, monkeypatch):
    """What the answers are chosen by."""
    seen = []
    real = torch.Tensor.argmax
    monkeypatch.setattr(torch.Tensor, "argmax", lambda self, *rest: seen.append(self.clone()) or real(self, *rest))
    list(right_answers(module, questions, Site(0, 0), condition))
    monkeypatch.setattr(torch.Tensor, "argmax", real)
    return torch.stack(seen)


def test_a_models_own_states_at_the_first_block_are_as_good_as_the_text(module, questions, monkeypatch):
    text, states = (last_logits(module, questions, condition, monkeypatch) for condition in ("text", "states"))
    torch.testing.assert_close(states, text, rtol=1e-4, atol=1e-4)


def test_the_conditions_differ(module, questions, monkeypatch):
    found = [last_logits(module, questions, condition, monkeypatch) for condition in CONDITIONS]
    for index, one in enumerate(found):
        for other in found[index + 1 :]:
            assert {CONDITIONS[index]} == {"text"} or not torch.allclose(one, other, atol=1e-3)


def test_noise_is_the_same_every_time(module, questions, monkeypatch):
    one, other = (last_logits(module, questions, "random", monkeypatch) for _ in range(2))
    assert one.equal(other)


def test_noise_has_the_mean_and_the_size_of_the_targets_states(module, questions, monkeypatch):
    seen, real = [], module.continuation
    monkeypatch.setattr(
        module, "continuation", lambda site, states, mask: seen.append(states) or real(site, states, mask)
    )
    list(right_answers(module, questions, Site(0, 0), "random"))
    rows = [module.states(block)[Site(0, 0)] for block in text_blocks(WORDS)]
    target = torch.cat([states.target[states.paired] for states in rows])
    noise = torch.cat([states[0, 1:] for states in seen])  # the first tells nothing, and is kept
    spread = (target - target.mean(0)).square().mean().sqrt()
    assert len(noise) > 50
    assert (noise - target.mean(0)).square().mean().sqrt().item() == pytest.approx(spread.item(), rel=0.05)
    assert (noise.mean(0) - target.mean(0)).square().mean().sqrt() < 3 * spread / len(noise) ** 0.5


def test_only_a_beginning_begins(module, questions, monkeypatch):
    """The start token stands before the context, and before a question alone."""
    read = []
    monkeypatch.setattr(communication, "encode_prompt", lambda *given: read.append(given[1:]) or encode_prompt(*given))
    module.start = 7  # a token of the vocabulary
    first = questions[:1]
    for condition, begins in (("nothing", True), ("text", False), ("states", False)):
        read.clear()
        list(right_answers(module, first, Site(0, 0), condition))
        assert (first[0].question, 7 if begins else None) in read
        assert condition == "nothing" or (first[0].context, 7) in read
