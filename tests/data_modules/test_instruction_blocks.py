from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules.blocks import Blocks
from data_modules.encoding import start_token
from data_modules.instruction_blocks import IGNORED, Encoded, assemble, best_fit
from data_modules.instruction_blocks import encode as encode_behind
from data_modules.instructions import Example, InstructionSettings

SIZE = 24
FILLER = 999


def settings_of(loss_on="response", packing=True, too_long="drop"):
    return InstructionSettings(loss_on, packing, too_long)


class Characters:
    """A tokenizer of one token per character, with what tokenizers put around a text."""

    def __init__(self, eos_token_id=1, before=(), after=()):
        self.eos_token_id, self.before, self.after = eos_token_id, list(before), list(after)
        self.bos_token_id = before[0] if before else None

    def __call__(self, texts, add_special_tokens=True, split_special_tokens=False, verbose=True):
        before, after = (self.before, self.after) if add_special_tokens else ([], [])
        return {"input_ids": [[*before, *map(ord, text), *after] for text in texts]}


def encode(examples, tokenizer, settings, size):
    """Behind the start token that the tokenizer puts before a text."""
    return encode_behind(examples, tokenizer, settings, size, start_token(tokenizer))


def text_of(tokens):
    return "".join(map(chr, tokens))


def example(prompt, response):
    return Example(f"{prompt}/{response}", prompt, response)


def scored(labels):
    return [label for label in labels if label != IGNORED]


texts = st.text(st.characters(min_codepoint=97, max_codepoint=110), max_size=30)
all_settings = st.builds(
    InstructionSettings,
    loss_on=st.sampled_from(["response", "all"]),
    packing=st.booleans(),
    too_long=st.sampled_from(["drop", "prompt", "response"]),
)


# Examples -> tokens and labels


def test_the_response_and_the_end_are_scored():
    (row,) = encode([example("ask", "say")], Characters(), settings_of(), SIZE).rows
    assert row == ([*b"ask", *b"say", 1], [IGNORED] * 3 + [*b"say", 1])


def test_everything_but_the_first_token_is_scored_where_all_is_to_be():
    (row,) = encode([example("ask", "say")], Characters(), settings_of("all"), SIZE).rows
    assert row == ([*b"ask", *b"say", 1], [IGNORED, *b"sk", *b"say", 1])


def test_what_a_tokenizer_puts_before_a_text_stands_before_the_prompt_alone():
    (row,) = encode([example("ask", "say")], Characters(before=[2]), settings_of(), SIZE).rows
    assert row == ([2, *b"ask", *b"say", 1], [IGNORED] * 4 + [*b"say", 1])


def test_what_a_tokenizer_puts_after_a_text_is_not_between_prompt_and_response():
    (row,) = encode([example("ask", "say")], Characters(before=[2], after=[1]), settings_of(), SIZE).rows
    assert row[0] == [2, *b"ask", *b"say", 1]


def test_a_tokenizer_without_an_end_token_adds_none():
    (row,) = encode([example("ask", "say")], Characters(eos_token_id=None), settings_of(), SIZE).rows
    assert row == ([*b"ask", *b"say"], [IGNORED] * 3 + [*b"say"])


def test_an_end_token_of_number_zero_is_one():
    (row,) = encode([example("ask", "say")], Characters(eos_token_id=0), settings_of(), SIZE).rows
    assert row[0] == [*b"ask", *b"say", 0]


def test_without_a_prompt_the_first_token_is_not_scored():
    """It would be predicted from what stands before it in its block."""
    for loss_on in ("response", "all"):
        (row,) = encode([example("", "say")], Characters(), settings_of(loss_on), SIZE).rows
        assert row == ([*b"say", 1], [IGNORED, *b"ay", 1])


def test_no_examples_are_no_rows():
    assert encode([], Characters(), settings_of(), SIZE) == Encoded([], Counter())


def test_a_real_tokenizer(tokenizer):
    """Of byte pairs: prompt and response are tokenised apart, so that no token reaches from one into the other."""
    one = example("The quick brown", " fox jumps over the lazy dog")
    ((tokens, labels),) = encode([one], tokenizer, settings_of(), 64).rows
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokens[:-1]) == (one.prompt + one.response)
    assert tokenizer.decode(scored(labels)[:-1]) == one.response
    assert tokens[: -len(scored(labels))] == tokenizer(one.prompt)["input_ids"]


# What is too long

LONG_PROMPT, LONG_RESPONSE = example("p" * 25, "say"), example("ask", "r" * 25)


@pytest.mark.parametrize("long", [LONG_PROMPT, LONG_RESPONSE])
def test_it_is_dropped_and_counted(long):
    encoded = encode([example("a", "b"), long, example("c", "d")], Characters(), settings_of(), SIZE)
    assert [text_of(tokens[:-1]) for tokens, _ in encoded.rows] == ["ab", "cd"]
    assert encoded.counts == {"dropped": 1}


def test_a_prompt_loses_its_beginning():
    long = example("0123456789" * 3, "say")
    encoded = encode([long, LONG_RESPONSE], Characters(), settings_of(too_long="prompt"), SIZE)
    ((tokens, labels),) = encoded.rows
    assert len(tokens) == SIZE
    assert text_of(tokens[:-1]) == (long.prompt + long.response)[-SIZE + 1 :]
    assert text_of(scored(labels)[:-1]) == "say"
    assert tokens[-1] == 1
    assert encoded.counts == {"cut prompts": 1, "dropped": 1}


def test_a_response_loses_its_end_and_has_no_end_token():
    long = example("ask", "0123456789" * 3)
    encoded = encode([long, LONG_PROMPT], Characters(), settings_of(too_long="response"), SIZE)
    ((tokens, labels),) = encoded.rows
    assert text_of(tokens) == (long.prompt + long.response)[:SIZE]
    assert text_of(scored(labels)) == long.response[: SIZE - 3]
    assert 1 not in tokens
    assert encoded.counts == {"cut responses": 1, "dropped": 1}


@pytest.mark.parametrize("too_long", ["drop", "prompt", "response"])
def test_what_just_fits_is_kept_whole(too_long):
    just = example("p" * 10, "r" * (SIZE - 11))
    encoded = encode([just], Characters(), settings_of(too_long=too_long), SIZE)
    assert text_of(encoded.rows[0][0][:-1]) == (just.prompt + just.response)
    assert not encoded.counts


@given(st.lists(st.tuples(texts, texts.filter(bool))), all_settings, st.sampled_from([None, 1]))
def test_every_example_is_kept_whole_or_counted(pairs, chosen, end):
    given_examples = [example(*pair) for pair in pairs]
    encoded = encode(given_examples, Characters(end, before=[2]), chosen, SIZE)
    extra = 1 + (end is not None)
    whole = [each for each in given_examples if len(each.prompt + each.response) + extra <= SIZE]
    counts = encoded.counts
    assert len(encoded.rows) + counts["dropped"] == len(given_examples)
    assert sum(counts.values()) == len(given_examples) - len(whole)
    assert set(counts) <= {"dropped", {"prompt": "cut prompts", "response": "cut responses"}.get(chosen.too_long)}
    uncut = [[2, *map(ord, each.prompt + each.response)] + [1] * (extra - 1) for each in whole]
    found = [tokens for tokens, _ in encoded.rows]
    assert all(tokens in found for tokens in uncut)
    for tokens, labels in encoded.rows:
        assert len(tokens) == len(labels) <= SIZE
        assert labels[0] == IGNORED
        assert scored(labels)  # a response, or its beginning
        first = next(place for place, label in enumerate(labels) if label != IGNORED)
        assert labels[first:] == tokens[first:]  # from there on everything
        assert first == 1 or chosen.loss_on == "response"


@given(st.lists(st.tuples(texts, texts.filter(bool)), min_size=1), all_settings)
def test_no_response_is_shortened_unless_asked_for(pairs, chosen):
    encoded = encode([example(*pair) for pair in pairs], Characters(), chosen, SIZE)
    responses = {response for _, response in pairs}
    if chosen.too_long != "response":
        for tokens, _ in encoded.rows:
            assert tokens[-1] == 1
            assert any(text_of(tokens[:-1]).endswith(response) for response in responses)
    assert encoded.counts["cut responses"] == 0 or chosen.too_long == "response"


# Packing

lengths = st.lists(st.integers(1, 40), max_size=60)


@given(lengths)
def test_every_item_is_in_one_bin_and_no_bin_overflows(lengths):
    bins = best_fit(lengths, 40)
    assert sorted(index for each in bins for index in each) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in each) <= 40 for each in bins)


@given(lengths)
def test_no_two_bins_would_fit_into_one(lengths):
    """So at least half of the tokens are no filling, but for the last bin."""
    contents = [sum(lengths[index] for index in each) for each in best_fit(lengths, 40)]
    assert all(one + other > 40 for place, one in enumerate(contents) for other in contents[:place])


@given(lengths)
def test_bins_come_in_the_order_of_their_first_items(lengths):
    bins = best_fit(lengths, 40)
    assert all(each == sorted(each) for each in bins)
    assert [each[0] for each in bins] == sorted(each[0] for each in bins)


def test_items_go_where_the_least_room_is_left():
    assert best_fit([6, 5, 3, 4], 10) == [[0, 3], [1, 2]]
    assert best_fit([], 10) == []
    assert best_fit([10, 10], 10) == [[0], [1]]


def test_many_examples_are_packed_soon_and_with_little_filling():
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.rand(20_000, generator=generator) ** 2 * 500).long().clamp_min(5).tolist()
    assert len(best_fit(lengths, 512)) < 1.01 * sum(lengths) / 512


# Blocks


def rows_of_lengths(lengths):
    """(tokens, labels) with tokens that are all different."""
    rows, start = [], 1000
    for length in lengths:
        ids = list(range(start, start + length))
        rows.append((ids, [IGNORED] * (length // 2 or 1) + ids[length // 2 or 1 :]))
        start += length
    return rows


def runs(values):
    """Stretches of equal values: (value, start, stop)."""
    edges = [0, *[place for place in range(1, len(values)) if values[place] != values[place - 1]], len(values)]
    return [(values[start], start, stop) for start, stop in pairwise(edges)]


@settings(deadline=None)
@given(st.lists(st.integers(1, SIZE), min_size=1, max_size=25), st.booleans())
def test_blocks_hold_every_example_whole_with_its_labels_and_places(lengths, packing):
    rows = rows_of_lengths(lengths)
    blocks = assemble(rows, SIZE, packing, FILLER)
    seen = []
    for block in range(len(blocks)):
        tokens, labels, documents, positions = (
            tensor[block].tolist() for tensor in (blocks.tokens, blocks.labels, blocks.documents, blocks.positions)
        )
        for number, start, stop in runs(documents):
            assert positions[start:stop] == list(range(stop - start))
            if number < 0:  # filling, after the examples
                assert stop == SIZE
                assert set(tokens[start:]) == {FILLER}
                assert set(labels[start:]) == {IGNORED}
            else:
                seen.append(number)
                assert (tokens[start:stop], labels[start:stop]) == rows[number]
                assert labels[start] == IGNORED  # or an example would be predicted from another one
    assert sorted(seen) == list(range(len(rows)))
    if not packing:
        assert seen == list(range(len(rows)))
        assert len(blocks) == len(rows)


@settings(deadline=None)
@given(st.lists(st.integers(1, SIZE), min_size=1, max_size=25), st.booleans())
def test_transformers_tells_the_examples_by_their_positions(lengths, packing):
    from transformers.masking_utils import find_packed_sequence_indices

    blocks = assemble(rows_of_lengths(lengths), SIZE, packing, FILLER)
    found = find_packed_sequence_indices(blocks.positions)
    found = torch.zeros_like(blocks.tokens) if found is None else found
    for sequences, documents in zip(found, blocks.documents, strict=True):
        assert sequences.diff().ne(0).equal(documents.diff().ne(0))


@settings(deadline=None)
@given(st.lists(st.integers(1, SIZE), min_size=1, max_size=25), st.data())
def test_chosen_blocks_are_what_they_were(lengths, data):
    blocks = assemble(rows_of_lengths(lengths), SIZE, True, FILLER)
    chosen = data.draw(st.lists(st.integers(0, len(blocks) - 1), min_size=1))
    some = blocks.select(torch.tensor(chosen))
    for place, index in enumerate(chosen):
        row, expected = some.row(place), blocks.row(index)
        assert row.keys() == expected.keys() == {"input_ids", "labels", "position_ids", "documents"}
        assert all(row[key].equal(expected[key]) for key in row)


def test_text_has_no_positions():
    blocks = Blocks(torch.arange(8).view(2, 4), torch.zeros(2, 4, dtype=torch.long))
    assert blocks.positions is None
    assert blocks.row(0).keys() == {"input_ids"}
    assert blocks.select(torch.tensor([1])).labels is None


def test_two_examples_of_one_token_are_two():
    blocks = assemble(rows_of_lengths([1, 1, 2]), 6, True, FILLER)
    assert blocks.positions.tolist() == [[0, 0, 0, 1, 0, 1]]


def test_a_prompt_that_is_cut_keeps_its_start_token():
    tokenizer = Characters(before=[2])
    settings = InstructionSettings("response", True, "prompt")
    encoded = encode([Example("a", "abcdefgh", "xy")], tokenizer, settings, 8)
    assert encoded.rows[0][0] == [2, *map(ord, "efgh"), *map(ord, "xy"), 1]
