import copy
import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from data_modules import tokens
from data_modules.caches import token_cache
from data_modules.documents import Document, Stream
from data_modules.tokens import token_bytes, tokenize, tokenizer_fingerprint
from registries.partial_files import machine
from registries.registry import UserError

DOCUMENTS = [Document("a", "The quick fox"), Document("b", "naïve café"), Document("c", "dog")]


@pytest.fixture
def count_calls(monkeypatch):
    """How many times documents were really tokenised."""
    calls = []
    real = tokens._tokenize
    monkeypatch.setattr(tokens, "_tokenize", lambda *arguments: calls.append(1) or real(*arguments))
    return calls


def entries(folder: Path) -> list[Path]:
    return list((folder / "tokens").glob("*.safetensors"))


def test_documents_each_followed_by_one_end_token(tokenizer, tmp_path):
    result = tokenize(DOCUMENTS, tokenizer, tmp_path)
    assert tokenizer.decode(result.ids) == "".join(f"{document.text}<|endoftext|>" for document in DOCUMENTS)
    assert result.ids.dtype == torch.int32
    assert (result.ids[result.starts[1:] - 1] == tokenizer.eos_token_id).all()


def test_a_special_token_that_a_document_writes_out_is_text(tokenizer, tmp_path):
    text = "It writes <|endoftext|> after each document."
    result = tokenize([Document("d", text)], tokenizer, tmp_path)
    assert (result.ids == tokenizer.eos_token_id).nonzero().tolist() == [[len(result.ids) - 1]]
    assert token_bytes(tokenizer)[result.ids].sum() == len(text)


def test_documents_in_another_order(tokenizer, tmp_path):
    result = tokenize(DOCUMENTS, tokenizer, tmp_path)
    reordered = tokenize(DOCUMENTS[::-1], tokenizer, tmp_path)
    in_order = result.in_order(torch.tensor([2, 1, 0]))
    assert in_order.ids.equal(reordered.ids)
    assert in_order.starts.equal(reordered.starts)


def test_the_cache_goes_by_content(tokenizer, make_tokenizer, tmp_path, count_calls):
    first = tokenize(DOCUMENTS, tokenizer, tmp_path)
    second = tokenize([Document("renamed", d.text) for d in DOCUMENTS], tokenizer, tmp_path)
    assert first.ids.equal(second.ids)
    assert len(count_calls) == 1
    tokenize(DOCUMENTS[:2], tokenizer, tmp_path)
    tokenize([Document("", "The quick foxnaïve café"), DOCUMENTS[2]], tokenizer, tmp_path)
    tokenize(DOCUMENTS, make_tokenizer(vocab_size=290), tmp_path)
    assert len(count_calls) == 4


def test_tokenizers_that_differ_in_their_end_token_share_nothing(make_tokenizer, tmp_path):
    """Their vocabularies, merges and special tokens are the same; the end token is no part of these."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|end|>"
    assert other.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    for one in (tokenizer, other):
        result = tokenize(DOCUMENTS, one, tmp_path)
        assert result.ids[result.starts[1:] - 1].tolist() == [one.eos_token_id] * 3
    assert tokenizer.eos_token_id != other.eos_token_id


def test_an_earlier_call_with_padding_does_not_change_the_fingerprint(tokenizer):
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=3)
    assert tokenizer_fingerprint(tokenizer) == before


@pytest.mark.parametrize("damage", [lambda b: b[:50], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_a_damaged_entry_is_reported_and_rebuilt(tokenizer, tmp_path, caplog, count_calls, damage):
    good = tokenize(DOCUMENTS, tokenizer, tmp_path)
    (entry,) = entries(tmp_path)
    entry.write_bytes(damage(entry.read_bytes()))
    assert tokenize(DOCUMENTS, tokenizer, tmp_path).ids.equal(good.ids)
    assert [record.getMessage()[:33] for record in caplog.records] == ["rebuilding the damaged token cach"]
    tokenize(DOCUMENTS, tokenizer, tmp_path)
    assert len(count_calls) == 2


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "/tokens is full: free some space"), (errno.EACCES, "cannot write to .*/tokens")],
)
def test_a_full_disk_is_told_and_leaves_no_half_file(tokenizer, tmp_path, monkeypatch, number, message):
    def write_half(path: Path, content: bytes):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(number, "no")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(UserError, match=f"{message}.*cache_dir"):
        tokenize(DOCUMENTS, tokenizer, tmp_path)
    assert {file.suffix for file in (tmp_path / "tokens").iterdir()} <= {".lock"}


def test_one_of_several_at_once_does_the_work(tokenizer, tmp_path, count_calls):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: tokenize(DOCUMENTS, tokenizer, tmp_path), range(8)))
    assert all(result.ids.equal(results[0].ids) for result in results)
    assert len(count_calls) == 1


def test_a_stream_is_read_only_as_far_as_needed(tokenizer, tmp_path, count_calls):
    read = []

    def endless():
        while True:
            read.append(1)
            yield Document(str(len(read)), f"document number {len(read)}")

    stream = Stream("endless", endless)
    result = tokenize(stream, tokenizer, tmp_path, limit=100)
    assert 100 <= len(result.ids) < 150
    assert len(read) < 30
    assert tokenize(stream, tokenizer, tmp_path, limit=100).ids.equal(result.ids)
    assert len(count_calls) == 1


def test_no_documents(tokenizer, tmp_path):
    result = tokenize([], tokenizer, tmp_path)
    assert len(result.ids) == 0
    assert result.in_order(torch.arange(0)).ids.equal(result.ids)


@given(text=st.text())
def test_bytes_of_byte_level_tokens(tokenizer, text):
    text = text.replace("<|endoftext|>", "")
    ids = tokenizer(text)["input_ids"]
    assert token_bytes(tokenizer)[torch.tensor(ids, dtype=torch.long)].sum() == len(text.encode())


def test_special_tokens_have_no_bytes_and_added_ones_their_text(make_tokenizer):
    other = make_tokenizer()
    other.add_tokens(["   é"])
    counts = token_bytes(other)
    assert counts[other.eos_token_id] == 0
    assert counts[-1] == 5
    assert len(counts) == len(other)


def test_bytes_of_sentencepiece_tokens():
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<unk>", "▁", "▁the", "é", "日本", *[f"<0x{byte:02X}>" for byte in range(256)]]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, [], byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    counts = token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    assert counts[:5].tolist() == [0, 1, 4, 2, 6]
    assert (counts[5:] == 1).all()


def test_cache_errors_of_the_maker_are_not_mistaken_for_a_full_disk(tmp_path):
    def make():
        raise OSError(errno.ENOSPC, "not the cache's")

    with pytest.raises(OSError, match="not the cache's"):
        token_cache.cached_tensors(tmp_path / "x.safetensors", make)


def test_a_complete_cache_needs_nothing_to_be_written(tokenizer, tmp_path, monkeypatch, count_calls):
    first = tokenize(DOCUMENTS, tokenizer, tmp_path)

    def read_only(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(token_cache.FileLock, "acquire", read_only)
    monkeypatch.setattr(Path, "mkdir", read_only)
    assert tokenize(DOCUMENTS, tokenizer, tmp_path).ids.equal(first.ids)
    assert len(count_calls) == 1


def test_partial_files_of_killed_processes_are_removed(tokenizer, tmp_path):
    (tmp_path / "tokens").mkdir()
    left = tmp_path / "tokens" / f".x.safetensors.999999999-1-{machine()}.partial"
    left.write_bytes(b"half")
    tokenize(DOCUMENTS, tokenizer, tmp_path)
    assert not left.exists()


def test_what_another_process_writes_meanwhile_is_not_made_again(tokenizer, tmp_path, monkeypatch, count_calls):
    """It appears right after this process has looked for it."""
    read, asked = token_cache._read, []

    def read_before_another_writes(path):
        found = read(path)
        if not asked:
            asked.append(path)
            tokenize(DOCUMENTS, tokenizer, tmp_path)
        return found

    monkeypatch.setattr(token_cache, "_read", read_before_another_writes)
    tokenize(DOCUMENTS, tokenizer, tmp_path)
    assert len(count_calls) == 1
