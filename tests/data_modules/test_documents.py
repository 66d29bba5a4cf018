from hypothesis import given
from hypothesis import strategies as st

from data_modules.documents import SPLITS, Document, halve, split_documents, split_of

DOCUMENTS = st.lists(st.builds(Document, name=st.text(max_size=4), text=st.text("abc", max_size=3)), max_size=150)


def test_the_split_of_a_name_never_changes():
    names = ("json", "textwrap", "trace", "enum", "typing")
    assert [split_of(name) for name in names] == ["train", "train", "validation", "test", "test"]


def test_shares_of_the_splits():
    splits = [split_of(f"document {index}") for index in range(10_000)]
    assert abs(splits.count("train") / 10_000 - 0.90) < 0.01
    assert abs(splits.count("validation") / 10_000 - 0.05) < 0.01


@given(DOCUMENTS)
def test_nothing_is_lost_and_no_text_is_in_two_splits(documents):
    splits = split_documents(documents)
    assert splits["all"] == documents
    assert sorted((d.name, d.text) for split in SPLITS for d in splits[split]) == sorted(
        (d.name, d.text) for d in documents
    )
    texts = [{document.text for document in splits[split]} for split in SPLITS]
    assert sum(map(len, texts)) == len(set().union(*texts))


@given(st.integers(3, 300))
def test_three_documents_are_enough_for_three_splits(count):
    splits = split_documents([Document(str(index), str(index)) for index in range(count)])
    assert all(splits[split] for split in SPLITS)


@given(st.integers(2, 50))
def test_halves_are_disjoint_and_complete(count):
    documents = [Document(str(index), str(index)) for index in range(count)]
    first, second = halve(documents)
    assert abs(len(first) - len(second)) <= 1
    assert set(first) | set(second) == set(documents)
    assert not set(first) & set(second)
