"""Where a value of a record is: a dotted path through nested values and the turns of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ABSENT = object()

# The usual names of who speaks. A turn is {role: user, content: text}, or {from: human, value: text}.
ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "system": "system",
    "developer": "system",
}
SPEAKER_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value", "text")


class Place(NamedTuple):
    """What stands at a path.

    Attributes:
        column: the path.
        value: `ABSENT` where there is no such place.
        turns: the conversation that the value is from; None where it is from none.
        speaker: whose turn it is: `user`, `assistant`, `system` or another name; None outside of conversations.
    """

    column: str
    value: Any
    turns: Sequence[Mapping[str, Any]] | None = None
    speaker: str | None = None

    @property
    def filled(self) -> bool:
        """Whether it holds more than nothing (null) or blanks."""
        return not (
            self.value is ABSENT or self.value is None or (isinstance(self.value, str) and not self.value.strip())
        )


def look_up(row: Mapping[str, Any], column: str) -> Place:
    """The value in a column, or at a dotted path through mappings (by key), lists (by number) and conversations.

    In a conversation, `user` is the text of the user's first turn, `assistant` of the first answer to it, and `system`
    of the system's first turn; a number is any turn.
    """
    if column in row:
        return Place(column, row[column])
    value, turns, speaker = row, None, None
    for key in column.split("."):
        if _is_conversation(value):
            turns = value
            turn = _turn(turns, key)
            speaker = None if turn is ABSENT else _speaker(turn)
            value = turn if key.isdecimal() else _content(turn)
        else:
            value = _member(value, key)
    return Place(column, value, turns, speaker)


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(turn, Mapping) and any(key in turn for key in SPEAKER_KEYS) for turn in value)
    )


def _turn(turns: Sequence[Mapping[str, Any]], key: str) -> Any:
    """The turn with this number, or the first of this speaker."""
    if key.isdecimal():
        return _member(turns, key)
    speakers = [_speaker(turn) for turn in turns]
    start = speakers.index("user") if key == "assistant" and "user" in speakers else 0
    return turns[speakers.index(key, start)] if key in speakers[start:] else ABSENT


def _speaker(turn: Mapping[str, Any]) -> str:
    name = next((str(turn[key]).lower() for key in SPEAKER_KEYS if turn.get(key)), "")
    return ROLES.get(name, name)


def _content(turn: Any) -> Any:
    """What is said; a table that holds turns of two styles has the keys of both in each, empty in one of them."""
    return ABSENT if turn is ABSENT else next((turn[key] for key in CONTENT_KEYS if turn.get(key) is not None), None)


def _member(value: Any, key: str) -> Any:
    try:
        return value[int(key)] if isinstance(value, Sequence) and not isinstance(value, str) else value[key]
    except (KeyError, IndexError, ValueError, TypeError):
        return ABSENT
