"""How override lines are read, and how they should have been typed."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from registries.registry import UserError
from studies.config.overrides import as_typed, read_line, swept_lines


def given_by(typed):
    """The value that a line gives which is typed so in a shell."""
    (line,) = shlex.split(typed)
    value = OverridesParser.create().parse_override(line).value()
    return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("a=b", "'prompt=\"a=b\"'"),
        ("What is # this", "'prompt=\"What is # this\"'"),
        ("{x", "'prompt=\"{x\"'"),
        ("été", "'prompt=\"été\"'"),
        ('say "hi"', '\'prompt="say \\"hi\\""\''),
        ("It's", "'prompt=\"It'\"'\"'s\"'"),
    ],
)
def test_a_line_that_cannot_be_read_is_shown_as_it_must_be_typed(text, typed):
    with pytest.raises(UserError) as caught:
        read_line(f"prompt={text}")
    assert caught.value.messages[0].endswith(f"; type {typed}")
    assert given_by(typed) == text


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20))
def test_what_is_shown_gives_the_text(text):
    first, *others = as_typed("prompt", text) or [None]
    if first is not None and not text.startswith("["):
        assert given_by(first) == text
    assert first is not None or not text.isprintable()
    assert len(others) <= 1


def test_lists_and_several_values_are_shown_as_such():
    assert as_typed("samples.prompts", "[a=b,c#d]") == ['\'samples.prompts=["a=b","c#d"]\'']
    assert as_typed("prompt", "a=b,c") == ["'prompt=\"a=b,c\"'", '\'prompt="a=b","c"\'']


@pytest.mark.parametrize("line", ["seed", "a b=1", "seed=" + "9" * 5000, "seed=" + "[" * 3000, "seed=\n"])
def test_what_no_parser_can_read_is_one_line(line):
    with pytest.raises(UserError, match="cannot read") as caught:
        read_line(line)
    (message,) = caught.value.messages
    assert len(message.splitlines()) == 1
    assert len(message) < 400


def options(group):
    return {"replacement": ["none", "standard", "toroidal"]}.get(group, [])


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("seed=range(0,3)", ["0", "1", "2"]),
        ("seed=sort(3,1,2)", ["1", "2", "3"]),
        ("replacement=glob(*,exclude=n*)", ["standard", "toroidal"]),
        ("optimizer.lr=interval(0,1)", ["0.0", "1.0"]),
    ],
)
def test_values_that_are_swept_over(line, values):
    key = line.partition("=")[0]
    assert swept_lines(read_line(line), options) == [f"{key}={value}" for value in values]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed=range(0)", "names no value"),
        ("optimizer.lr=glob(*)", "names no option of a config group"),
        ("seed=range(0,1,0)", "range"),
        ("seed=range(0,1e9)", "names more than 10,000 values"),
        ("seed=range(0,inf)", "names more than 10,000 values"),
    ],
)
def test_what_cannot_be_swept_over(line, message):
    with pytest.raises(UserError, match=message):
        swept_lines(read_line(line), options)
