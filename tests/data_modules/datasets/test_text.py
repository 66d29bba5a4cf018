import pytest

from data_modules import DATASETS


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_an_encoding_of_texts_is_right(tmp_path, encoding):
    file = tmp_path / "text.txt"
    file.write_text("naïve", encoding=encoding)
    assert DATASETS.check("text", {"path": str(file), "encoding": encoding}) == []
    assert DATASETS.build("text", path=str(file), encoding=encoding)["all"][0].text == "naïve"


@pytest.mark.parametrize("encoding", ["latin-99", "hex", "rot13", "undefined"])
def test_what_decodes_no_text_is_told_before_anything_is_read(tmp_path, encoding):
    file = tmp_path / "text.txt"
    file.write_text("naïve")
    (error,) = DATASETS.check("text", {"path": str(file), "encoding": encoding})
    assert f"dataset.encoding={encoding}" in error and "utf-8" in error
