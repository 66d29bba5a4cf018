"""Values of a record by a dotted path through nested values and through the turns of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ABSENT = object()

# The usual names of speakers. A turn is {role: user, content: text}, or {from: human, value: text}.
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


class Entry(NamedTuple):
    """The value of a record at a path.

    Attributes:
        column: the path.
        value: `ABSENT` where the record has no such path.
        turns: the conversation that holds the value; None for a value outside of conversations.
        speaker: who speaks in that turn: `user`, `assistant`, `system` or another name; None without a conversation.
    """

    column: str
    value: Any
    turns: Sequence[Mapping[str, Any]] | None = None
    speaker: str | None = None

    @property
    def filled(self) -> bool:
        """Whether there is a value, which is neither null nor a text of blanks."""
        blank = isinstance(self.value, str) and not self.value.strip()
        return not (blank or self.value is ABSENT or self.value is None)


def look_up(row: Mapping[str, Any], column: str) -> Entry:
    """The value in a column, or at a dotted path through mappings (by key), lists (by number) and conversations.

    In a conversation, `user` gives the text of the user's first turn, `assistant` the text of the first answer to it,
    `system` the text of the system's first turn, and a number the turn with that number.
    """
    if column in row:
        return Entry(column, row[column])
    value, turns, speaker = row, None, None
    for key in column.split("."):
        if _is_conversation(value):
            turns = value
            turn = _turn(turns, key)
            speaker = None if turn is ABSENT else _speaker(turn)
            value = turn if key.isdecimal() else _content(turn)
        else:
            value = _member(value, key)
    return Entry(column, value, turns, speaker)


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(turn, Mapping) and any(key in turn for key in SPEAKER_KEYS) for turn in value)
    )


def _turn(turns: Sequence[Mapping[str, Any]], key: str) -> Any:
    """The turn with this number, or the first turn of this speaker."""
    if key.isdecimal():
        return _member(turns, key)
    speakers = [_speaker(turn) for turn in turns]
    start = speakers.index("user") if key == "assistant" and "user" in speakers else 0
    return turns[speakers.index(key, start)] if key in speakers[start:] else ABSENT


def _speaker(turn: Mapping[str, Any]) -> str:
    name = next((str(turn[key]).lower() for key in SPEAKER_KEYS if turn.get(key)), "")
    return ROLES.get(name, name)


def _content(turn: Any) -> Any:
    """The text of a turn. In a table that mixes two styles of turns, each has the keys of both, and some are empty."""
    return ABSENT if turn is ABSENT else next((turn[key] for key in CONTENT_KEYS if turn.get(key) is not None), None)


def _member(value: Any, key: str) -> Any:
    try:
        return value[int(key)] if isinstance(value, Sequence) and not isinstance(value, str) else value[key]
    except (KeyError, IndexError, ValueError, TypeError):
        return ABSENT
