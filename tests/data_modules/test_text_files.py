import json

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
    assert joined(cut_text(text, "x")) == text


def test_wikitext_headings_start_documents():
    documents = cut_text(ARTICLES, "wiki.txt")
    assert [document.name for document in documents] == [f"Article {index}" for index in range(30)]
    assert joined(documents) == ARTICLES


def test_rows_of_the_hub_become_the_same_articles():
    lines = ARTICLES.splitlines(keepends=True)
    assert list(wikitext_articles(lines, "x")) == cut_text(ARTICLES, "x")


def test_lines_of_a_table_are_grouped_where_asked(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": line}) for line in ARTICLES.splitlines(keepends=True)))
    assert read_path(str(file), rows_are_lines=True)["all"] == cut_text(ARTICLES, "rows.jsonl")
    assert len(read_path(str(file))["all"]) == len(ARTICLES.splitlines())


def test_an_equation_is_no_heading():
    assert len(list(wikitext_articles([" = A = \n", " \n", "so\n", " = b = \n"], "x"))) == 1


@pytest.mark.parametrize("separator", ["\n\n", "\n", " "])
def test_paragraphs_else_lines_else_words(separator):
    text = separator.join(f"piece{index}" for index in range(5000))
    documents = cut_text(text, "x")
    assert len(documents) >= 10
    assert all(document.text.endswith(separator) for document in documents[:-1])


def test_long_paragraphs_are_gathered_to_some_thousand_characters():
    documents = cut_text("\n\n".join(["x" * 300] * 1000), "x")
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
    with pytest.raises(UserError, match="holds int"):
        read_path(str(file), field="number")


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
