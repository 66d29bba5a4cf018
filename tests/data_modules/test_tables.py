import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.tables import read_rows
from registries.registry import UserError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
RECORDS = st.lists(st.dictionaries(st.text(max_size=8), VALUES, max_size=4), min_size=1, max_size=8)


# The usual ways to write records into a file.
LAYOUTS = (
    lambda records, **options: json.dumps(records, **options),
    lambda records, **options: json.dumps(records, indent=2, **options),
    lambda records, **options: "\n".join(json.dumps(record, **options) for record in records),
    lambda records, **options: "\r\n".join(json.dumps(record, indent=1, **options) for record in records) + "\n\n",
)


@given(RECORDS, st.sampled_from(LAYOUTS), st.booleans())
def test_records_come_back_as_they_were_written(tmp_path_factory, records, layout, ensure_ascii):
    file = tmp_path_factory.getbasetemp() / "records.json"
    file.write_bytes(layout(records, ensure_ascii=ensure_ascii).encode())
    assert read_rows(file) == records


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_what_comes_late_in_a_large_file_changes_nothing(tmp_path, suffix):
    """Libraries guess the types from the first 10 MiB."""
    late = ["2024-01-31", "12:30", "007", "true", "a\\nb"]
    records = [{"text": None, "more": "x" * 3000}] * 4000 + [{"text": text, "note": "late"} for text in late]
    file = tmp_path / f"records{suffix}"
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        records = [{"text": None, "more": None, "note": None} | record for record in records]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
    else:
        file.write_text(json.dumps(records) if suffix == ".json" else "\n".join(map(json.dumps, records)))
        assert file.stat().st_size > 10 * 2**20
    assert read_rows(file) == records


def test_a_folder_name_is_no_column(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "lang=en").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "a"}]), tmp_path / "lang=en" / "rows.parquet")
    assert read_rows(tmp_path / "lang=en" / "rows.parquet") == [{"text": "a"}]


def test_texts_alone_are_records(tmp_path):
    (tmp_path / "texts.json").write_text('["a", "b"]')
    assert read_rows(tmp_path / "texts.json") == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", '{"a": 1}\n{"a": ', "cannot be read as json: .* line 2"),
        ("rows.json", "", ""),
        ("rows.json", "[1, 2]", r"record 0 is no object with named values but int"),
        ("rows.jsonl", '{"a": 1}\n["b"]', "record 1 is no object with named values but list"),
        ("rows.json", "[" * 100_000, "cannot be read as json"),
        ("rows.json", f'[{{"a": {"1" * 5000}}}]', "cannot be read as json"),
        ("rows.parquet", "text", "cannot be read as parquet"),
        ("rows.csv", "a,b", "holds no table: .jsonl, .json, .parquet do"),
    ],
)
def test_what_holds_no_records(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_text(content)
    if not message:
        assert read_rows(file) == []
        return
    with pytest.raises(UserError, match=message):
        read_rows(file)
