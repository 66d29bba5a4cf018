"""A conversation, with what is typed put in."""

import io
import sys

import pytest

import score
from lightning_modules import load_module
from lightning_modules.chat_format import Turn
from registries import UserError
from studies.config.compose import compose
from studies.tools.conversation import hold, text_limit


def test_turns_are_handed_on_and_what_is_not_answered_is_forgotten():
    seen = []

    def answer(turns):
        seen.append(turns)
        return None if turns[-1].message == "too long" else turns[-1].message.upper()

    assert hold(answer, ["a", " ", "too long", "b"]) == [Turn("a", "A"), Turn("b", "B")]
    assert seen[-1] == [Turn("a", "A"), Turn("b")]


@pytest.fixture
def typed(monkeypatch):
    """Type these messages, then Ctrl-D. Returns what was written to the terminal."""

    def typed(*messages):
        lines, terminal = iter(messages), io.StringIO()

        def read(prompt):
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr(sys, "__stdout__", terminal)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        return terminal

    return typed


@pytest.mark.parametrize(
    "lines",
    [
        ("model=context_lm", "model.hidden_dim=24", "model.context_dim=12", "model.embed_dim=12", "tokenizer=byte_bpe"),
        ("model=random", "model.family=gpt2", "model.max_positions=40", "model.freeze=false", "tokenizer=model"),
    ],
    ids=["state", "positions"],
)
def test_a_run_answers_and_keeps_within_its_length(lines, run_once, typed, capsys):
    size = () if "model=random" in lines else ("tokenizer.vocab_size=300", "trainer.max_tokens=null")
    folder = run_once(*lines, *size, "dataset.batch_size=2")
    terminal = typed("Hello there", "And again", "a" * 60)
    cfg = compose([f"run={folder}", "chat=true", "answer_tokens=8"], "score")
    assert score.score(cfg) == {}
    errors = capsys.readouterr().err
    assert len(terminal.getvalue().splitlines()) >= 2
    limited = text_limit(load_module(folder).model) is not None
    assert ("write a shorter one" in errors) == limited
    assert ("the last 1 of 2 turns" in errors) == limited


def test_sampling_follows_the_seed(run_once, typed):
    folder = run_once("model=random", "model.family=llama", "model.freeze=false", "dataset.batch_size=2")

    def answers(seed):
        terminal = typed("Hello")
        score.score(
            compose([f"run={folder}", "chat=true", "answer_tokens=12", "temperature=1.5", f"seed={seed}"], "score")
        )
        return terminal.getvalue()

    assert answers(1) == answers(1) != answers(2)


def test_without_a_terminal_it_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(UserError, match="in a terminal, and this is none"):
        compose(["model=tiny_phi", "chat=true"], "score")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(UserError, match="leave one of them out"):
        compose(["model=tiny_phi", "chat=true", "prompt=hello"], "score")
