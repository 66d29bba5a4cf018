import bz2
import codecs
import gzip
import json
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.documents import SPLITS
from data_modules.text_files import cut_text, read_path, wikitext_articles
from registries.registry import UserError

ARTICLES = "".join(
    f" \n = Article {index} = \n \n Some text . \n \n = = Section = = \n \n More text {index} . \n"
    for index in range(30)
)


def joined(documents):
    return "".join(document.text for document in documents)


@given(
    st.text()
    | st.text("a \n=\t\r", max_size=300)
    | st.lists(st.sampled_from(["word ", "\n", "\n\n", " = Title = \n", " = = Part = = \n", "\r\n"])).map("".join)
)
def test_documents_put_together_are_the_text(text):
    assert joined(cut_text(text)) == text


def test_wikitext_headings_start_documents():
    documents = cut_text(ARTICLES)
    assert [document.name for document in documents] == [f"Article {index}" for index in range(30)]
    assert joined(documents) == ARTICLES


def test_rows_of_the_hub_become_the_same_articles():
    lines = ARTICLES.splitlines(keepends=True)
    assert list(wikitext_articles(lines)) == cut_text(ARTICLES)


def test_lines_of_a_table_are_grouped_where_asked(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": line}) for line in ARTICLES.splitlines(keepends=True)))
    assert read_path(str(file), rows_are_lines=True)["all"] == cut_text(ARTICLES)
    assert len(read_path(str(file))["all"]) == len(ARTICLES.splitlines())


def test_an_equation_is_no_heading():
    assert len(list(wikitext_articles([" = A = \n", " \n", "so\n", " = b = \n"]))) == 1


@pytest.mark.parametrize("separator", ["\n\n", "\n", " "])
def test_paragraphs_else_lines_else_words(separator):
    text = separator.join(f"piece{index}" for index in range(5000))
    documents = cut_text(text)
    assert len(documents) >= 10
    assert all(document.text.endswith(separator) for document in documents[:-1])


def test_long_paragraphs_are_gathered_to_some_thousand_characters():
    documents = cut_text("\n\n".join(["x" * 300] * 1000))
    assert {len(document.text) for document in documents[:-1]} == {14 * 302}


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        ("train-00000-of-00001.md", "validation-00000-of-00001.md", "test-00000-of-00001.md"),
        ("train/a.txt", "dev/a.txt", "test/a.txt"),
    ],
)
def test_files_named_for_splits_keep_them(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [joined(read_path(str(tmp_path))[split]) for split in SPLITS] == list(names)


@pytest.mark.parametrize("held_out", ["val.txt", "test.txt"])
def test_the_missing_split_is_carved_from_the_other(tmp_path, held_out):
    (tmp_path / "train.txt").write_text("to train on")
    (tmp_path / held_out).write_text(ARTICLES)
    splits = read_path(str(tmp_path))
    assert joined(splits["train"]) == "to train on"
    assert len(splits["validation"]) == len(splits["test"]) == 15
    assert not set(splits["validation"]) & set(splits["test"])


def test_what_files_named_for_splits_share_is_trained_on_alone(tmp_path, caplog):
    for name, numbers in {"train": range(30), "validation": range(20, 40), "test": range(40, 50)}.items():
        rows = [{"text": f"row {number}"} for number in numbers]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = read_path(str(tmp_path))
    assert [len(splits[split]) for split in SPLITS] == [30, 10, 10]
    assert "10 validation documents are trained on as well and were left out" in caplog.text


def test_files_that_tell_no_split_are_reported(tmp_path, caplog):
    for name in ("train.txt", "val.txt", "README.md"):
        (tmp_path / name).write_text(ARTICLES)
    read_path(str(tmp_path))
    assert "README.md" in caplog.text


def test_other_folders_are_split_by_document(tmp_path):
    (tmp_path / "valid.txt").write_text(ARTICLES)
    (tmp_path / "testing.md").write_text("one\n\ntwo\n\nthree")
    splits = read_path(str(tmp_path))
    assert joined(splits["all"]) == "one\n\ntwo\n\nthree" + ARTICLES
    assert all(splits[split] for split in SPLITS)
    assert sum(len(splits[split]) for split in SPLITS) == len(splits["all"])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_tables(tmp_path, name):
    rows = [{"body": f"row {index}", "number": index} for index in range(10)]
    file = tmp_path / name
    if name.endswith("parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif name.endswith("jsonl"):
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        file.write_text(json.dumps(rows))
    assert [document.text for document in read_path(str(file), field="body")["all"]] == [row["body"] for row in rows]
    with pytest.raises(UserError, match="no column 'text'.*body, number"):
        read_path(str(file))
    with pytest.raises(UserError, match=rf"{name}:0: column 'number' holds int, not text: 0\. Write it as text"):
        read_path(str(file), field="number")


def test_records_without_a_text_are_told(tmp_path, caplog):
    """A column may come late, and need not be in every record."""
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"row {i}"} if i > 3 else {"other": [i]}) for i in range(10)))
    assert [document.text for document in read_path(str(file))["all"]] == [f"row {i}" for i in range(4, 10)]
    assert "4 of 10 records have no text and were left out" in caplog.text


def test_several_wrong_values_are_told_at_once(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"text": 1}] * 8 + [{"text": "a"}]))
    with pytest.raises(UserError) as error:
        read_path(str(file))
    assert len(error.value.messages) == 6 and error.value.messages[-1] == "and 3 more of the kind"


# Splits do not go by the file's name


def split_texts(splits):
    return {split: [document.text for document in splits[split]] for split in SPLITS}


@pytest.mark.parametrize("count", [30, 3000])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_file_is_split_alike_under_every_name(tmp_path, count, suffix):
    texts = [f"Paragraph {index}. " + f"{index} " * 40 for index in range(count)]
    content = "\n\n".join(texts) if suffix == ".txt" else "\n".join(json.dumps({"text": text}) for text in texts)
    names = [f"notes{suffix}", f"copies/of/notes2{suffix}"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    first, second, folder = (split_texts(read_path(str(tmp_path / name))) for name in (*names, "copies"))
    assert first == second == folder


def test_halves_of_held_out_text_do_not_go_by_the_name(tmp_path):
    for folder, name in (("a", "valid.txt"), ("b", "test.txt")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.txt").write_text("to train on")
        (tmp_path / folder / name).write_text("\n\n".join(f"Paragraph {index}" for index in range(100)))
    assert split_texts(read_path(str(tmp_path / "a"))) == split_texts(read_path(str(tmp_path / "b")))


# One line


@pytest.mark.parametrize(
    ("sentence", "end"),
    [
        ("これは日本語の文です。", "。"),
        ("“今天天气很好。”", "”"),
        ("We went home early! ", "! "),
        ("ภาษาไทยไม่มีช่องว่าง", ""),
        ("x", ""),
    ],
)
@pytest.mark.parametrize("words_before", ["", "a b c d\n\n"])
def test_one_long_line_is_cut_where_sentences_end_or_else_anywhere(sentence, end, words_before):
    text = words_before + sentence * (200_000 // len(sentence))
    documents = cut_text(text)
    assert joined(documents) == text
    assert len(documents) > 40 and max(len(document.text) for document in documents) < 9000
    assert all(document.text.endswith(end) for document in documents)


@pytest.mark.parametrize(("paragraphs", "sentences"), [(3, 900), (100, 6000)])
def test_one_line_of_much_of_a_text_is_cut_too(paragraphs, sentences):
    text = f"{'word ' * 120}\n\n" * paragraphs + "日本語の文です。" * sentences
    documents = cut_text(text)
    assert joined(documents) == text
    assert max(len(document.text) for document in documents) <= 4500


# Folders


def test_linked_folders_are_followed_once(tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (data / "own").mkdir(parents=True)
    (elsewhere / "deep").mkdir(parents=True)
    (data / "own" / "a.txt").write_text("first")
    (elsewhere / "deep" / "b.txt").write_text("second")
    (tmp_path / "outside.txt").write_text("not of the data")
    (data / "a link").symlink_to(elsewhere)
    (data / "again").symlink_to(elsewhere / "deep")
    (data / "twice").symlink_to(data / "own")
    (data / "own" / "up").symlink_to(data)
    (data / "out").symlink_to("..")
    (elsewhere / "back").symlink_to(data / "a link")
    (data / "self").symlink_to("self")
    assert sorted(document.text for document in read_path(str(data))["all"]) == ["first", "second"]
    assert sorted(document.text for document in read_path(str(data / "twice"))["all"]) == ["first"]


@pytest.mark.parametrize("table", ["data/train.parquet.jsonl", "rows.json"])
def test_what_describes_tables_is_no_data(tmp_path, caplog, table):
    (tmp_path / table).parent.mkdir(exist_ok=True)
    (tmp_path / table).write_text(json.dumps([{"text": f"row {index}"} for index in range(30)]))
    for name in ("README.md", "LICENSE", "LICENSE.txt", "readme.txt", "card.md", "dataset_infos.json", "plot.svg"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "more.txt").write_text("one more")
    texts = [document.text for document in read_path(str(tmp_path))["all"]]
    assert sorted(texts) == sorted(["one more", *(f"row {index}" for index in range(30))])
    assert "left out" in caplog.text and "README.md" in caplog.text
    assert read_path(str(tmp_path / "README.md"))["all"][0].text == "{}"  # what is named is read


def test_a_readme_beside_texts_is_a_text(tmp_path):
    for name in ("README.md", "notes.txt"):
        (tmp_path / name).write_text(name)
    assert joined(read_path(str(tmp_path))["all"]) == "README.mdnotes.txt"


# Encodings and compression

TEXT = "naïve Größe\r\n日本語 😀\n" * 30


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["text.txt", "text.txt.gz", "text.txt.bz2", "text.md.xz"])
def test_compressed_texts_are_known_by_their_first_bytes(tmp_path, compress, name):
    (tmp_path / name).write_bytes(compress(TEXT.encode()))
    for path in (tmp_path, tmp_path / name):
        assert joined(read_path(str(path))["all"]) == TEXT


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json", "rows.json.gz", "valid.jsonl.GZ"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_compressed_tables_too(tmp_path, name, mark):
    rows = [{"text": f"{index} {TEXT}"} for index in range(5)]
    (tmp_path / name).write_bytes(gzip.compress(mark + "\n".join(map(json.dumps, rows)).encode()))
    assert [document.text for document in read_path(str(tmp_path))["all"]] == [row["text"] for row in rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("asked", ["utf-8", "cp1252", "utf-16-le"])
def test_a_byte_order_mark_tells_the_encoding_and_is_no_text(tmp_path, encoding, asked):
    (tmp_path / "text.txt").write_bytes(("\ufeff" + TEXT).encode(encoding))
    assert joined(read_path(str(tmp_path), encoding=asked)["all"]) == TEXT


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ("Only words\n".encode("utf-16-le"), "holds zero bytes.*dataset.encoding=utf-16-le"),
        ("Größe\n".encode("utf-16-be"), "holds zero bytes.*dataset.encoding=utf-16-le"),
        (b"PK\x03\x04\x14\x00\x00\x00\x08\x00\xff", "is no text.*Unpack or convert it"),
        (("図書館で本を読みました。" * 20).encode("shift_jis"), "cp932 reads .*本を.*dataset.encoding="),
        (("Größe und Maß, " * 20).encode("cp1252"), "cp1252 reads .*Größe.*dataset.encoding=cp1252"),
        (gzip.compress(TEXT.encode(), mtime=0)[:-20], "cannot be decompressed.*cut short"),
        (gzip.compress(b"PK\0\0", mtime=0), "is no text"),
    ],
)
def test_what_is_no_text_in_this_encoding_is_told_with_what_it_may_be(tmp_path, content, advice):
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=advice):
        read_path(str(file))


def test_errors_name_the_file(tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(UserError, match="latin.txt is not utf-8 text: byte 0xef at offset 2"):
        read_path(str(latin))
    assert read_path(str(latin), encoding="latin-1")["all"][0].text == "naïve"
    with pytest.raises(UserError, match="nowhere' does not exist"):
        read_path(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no file that can be read"):
        read_path(str(tmp_path / "empty"))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": ')
    with pytest.raises(UserError, match=r"broken.jsonl cannot be read as json"):
        read_path(str(broken))
