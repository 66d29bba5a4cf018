"""The same text through two tokenizers: the causal rule, whatever the text and the tokenizers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_modules.encoding import encode_texts
from data_modules.pairing import NONE, Pairing
from data_modules.tokens import token_contents
from registries.models.random import byte_tokenizer
from registries.models.tiny_phi import tiny_phi
from registries.registry import UserError

TEXTS = st.text(st.sampled_from("the quick\n  café naïve 日本語 🙂👩‍👩‍👧 e\u0301 fox.,"), min_size=1, max_size=60)


def sentencepiece(prefix: str = "always", normalizer=None, start: bool = True):
    """As Llama's and Gemma's: spaces are ▁, one may come before the text, unknown characters are bytes."""
    from tokenizers.processors import TemplateProcessing

    words = [
        "▁the",
        "th",
        "▁qu",
        "ick",
        "▁fo",
        "x",
        "the",
        "▁",
        "e",
        "é",
        "caf",
        "日本",
        "▁na",
        "ve",
        "\n",
        ".",
        ",",
        "o",
    ]
    specials = ["<s>", "</s>", "<unk>"]
    vocabulary = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *words, *"thqukicfonva"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(vocabulary))}
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Metaspace()
    if start:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {
    "bytes": byte_tokenizer(),
    "tiny_phi": tiny_phi().tokenizer(),
    "sentencepiece": sentencepiece(),
    "sentencepiece without a space before": sentencepiece("never", start=False),
}


CONTENTS = {id(tokenizer): token_contents(tokenizer) for tokenizer in TOKENIZERS.values()}


def contents(tokenizer, ids) -> bytes:
    return b"".join(CONTENTS[id(tokenizer)][token] or b"" for token in ids)


def tokens_of(tokenizer, *documents: str) -> torch.Tensor:
    ids = []
    for text in documents:
        ids += [*encode_texts(tokenizer, [text])[0], tokenizer.eos_token_id]
    return torch.tensor(ids)


@pytest.mark.each_value
@pytest.mark.parametrize("source", TOKENIZERS)
@pytest.mark.parametrize("target", TOKENIZERS)
@given(text=TEXTS, cut=st.integers(0, 10))
@settings(max_examples=25, deadline=None)
def test_no_state_is_used_before_its_token_has_ended(target, source, text, cut):
    """Read back what both have read: the source's is a beginning of the target's."""
    target, source = TOKENIZERS[target], TOKENIZERS[source]
    pairing = Pairing(target, source)
    tokens = tokens_of(target, text)[cut:-1]  # it may begin within a character
    if not contents(target, tokens.tolist()).decode(errors="ignore").strip():
        return
    paired = pairing(tokens)
    ids = paired.tokens.tolist()
    if pairing.equal:
        assert ids == tokens.tolist() and paired.index.tolist() == list(range(len(ids)))
        return
    for place, index in enumerate(paired.index.tolist()):
        ours = contents(target, tokens[: place + 1].tolist()).decode(errors="ignore").lstrip()
        theirs = contents(source, ids[: index + 1]).decode(errors="ignore").strip()
        assert ours.startswith(theirs)


def test_the_last_token_that_ends_in_time():
    target, source = TOKENIZERS["bytes"], TOKENIZERS["tiny_phi"]
    text = "the class of the object"
    paired = Pairing(target, source)(tokens_of(target, text)[:-1])
    ends = torch.tensor([len(contents(source, paired.tokens[: n + 1].tolist())) for n in range(len(paired.tokens))])
    expected = [int((ends <= place + 1).sum()) - 1 for place in range(len(text))]
    assert paired.index.tolist() == expected
    assert NONE in expected and len(set(expected)) == len(paired.tokens) + 1


def test_a_character_is_read_when_its_last_byte_is():
    target, source = TOKENIZERS["bytes"], TOKENIZERS["sentencepiece without a space before"]
    paired = Pairing(target, source)(tokens_of(target, "é日本")[:-1])
    assert source.convert_ids_to_tokens(paired.tokens.tolist())[0] == "é"
    assert paired.index[:2].tolist() == [NONE, 0]


def test_documents_are_read_apart_and_their_ends_paired():
    target, source = TOKENIZERS["bytes"], TOKENIZERS["tiny_phi"]
    tokens = tokens_of(target, "the", "fox")
    paired = Pairing(target, source)(tokens)
    end = source.eos_token_id
    assert paired.tokens.tolist() == [*source("the")["input_ids"], end, *source("fox")["input_ids"], end]
    places = (paired.tokens == end).nonzero()[:, 0].tolist()
    assert [paired.index[3].item(), paired.index[7].item()] == places
    assert paired.index[2].item() == places[0] - 1  # that the document ends is not known before


def test_the_start_tokens_begin_the_whole_text_and_tell_nothing_of_it():
    target, source = TOKENIZERS["tiny_phi"], TOKENIZERS["sentencepiece"]
    paired = Pairing(target, source)(tokens_of(target, "the", "fox"))
    starts = (paired.tokens == source.bos_token_id).nonzero()[:, 0]
    assert starts.tolist() == [0]
    assert 0 not in paired.index.tolist()


def test_a_target_behind_its_start_token_is_paired_as_without():
    target, source = TOKENIZERS["sentencepiece"], TOKENIZERS["tiny_phi"]
    tokens = torch.tensor(encode_texts(target, ["the fox"])[0])
    without = Pairing(target, source)(tokens)
    paired = Pairing(target, source)(torch.cat([torch.tensor([target.bos_token_id]), tokens]))
    assert paired.tokens.equal(without.tokens)
    assert paired.index.tolist() == [NONE, *without.index.tolist()]
    assert paired.back.tolist() == [place + 1 if place != NONE else NONE for place in without.back.tolist()]


def test_no_start_token_where_none_is_asked_for():
    target, source = TOKENIZERS["tiny_phi"], TOKENIZERS["sentencepiece"]
    pairing = Pairing(target, source, start=False)
    assert source.bos_token_id not in pairing(tokens_of(target, "the")).tokens
    assert pairing.opening == target.eos_token_id


def test_a_tokenizer_that_changes_the_text_is_paired_by_characters():
    target, source = TOKENIZERS["bytes"], sentencepiece("never", normalizers.NFC(), start=False)
    text = "cafe\u0301 the"  # the accent apart: five characters, six bytes, of which NFC makes four
    paired = Pairing(target, source)(tokens_of(target, text)[:-1])
    words = source.convert_ids_to_tokens(paired.tokens.tolist())
    assert "é" in words or "<0xC3>" in words
    accented = words.index("é") if "é" in words else words.index("<0xC3>")
    assert (paired.index[:4] < accented).all()  # nothing of é before the accent was read


@pytest.mark.parametrize(
    "words", [["日本", " THE", " FOX"], ["É", " É", " THE", " FOX"], ["THE", " 日本", "\n", " THE"]]
)
@pytest.mark.parametrize("changes", [True, False])
def test_ends_are_counted_in_bytes(changes, words):
    """Also of a source that changes the text: characters of two and three bytes come before the words."""
    normalizer = normalizers.Lowercase() if changes else None
    target, source = TOKENIZERS["bytes"], sentencepiece("never", normalizer, start=False)
    words = words if changes else [word.lower() for word in words]
    paired = Pairing(target, source)(tokens_of(target, "".join(words))[:-1])
    ends = {}  # of the last source token of each word, by its own count of tokens
    for count in range(1, len(words) + 1):
        ends[len(source("".join(words[:count]))["input_ids"]) - 1] = len("".join(words[:count]).encode())
    assert len(paired.tokens) - 1 in ends
    for token, end in ends.items():
        assert paired.index[end - 1].item() == token
        assert end == 1 or paired.index[end - 2].item() < token
        assert paired.back[token].item() == end - 1  # a byte is a token of the target


def test_text_that_leaves_nothing_to_read():
    target, source = TOKENIZERS["bytes"], TOKENIZERS["tiny_phi"]
    with pytest.raises(UserError, match="holds no text"):
        Pairing(target, source)(torch.tensor([0xE6]))


def test_a_slow_tokenizer_is_told():
    class Slow:
        is_fast, eos_token_id = False, 0

        def get_vocab(self):
            return {"a": 0}

    with pytest.raises(UserError, match="no fast one"):
        Pairing(TOKENIZERS["bytes"], Slow())
