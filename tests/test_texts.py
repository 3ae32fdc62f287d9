"""Text files as a source: what is a document, how large ones are cut, and what is no text."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from files import write_csv, write_image, write_parquet

from raynn import fragments, sources
from raynn.errors import DataError
from raynn.fragments import BadRow, Fragment, read_fragment, sample_rows, schema_of
from raynn.sources import find_fragments


def documents(found: tuple[Fragment, ...]) -> dict[str, str]:
    """What is read of all fragments, parts of one document joined."""
    texts: dict[str, str] = {}
    for fragment in found:
        table, bad_rows = read_fragment(fragment)
        assert not bad_rows
        for name, text in zip(*table.to_pydict().values(), strict=True):
            texts[name] = texts.get(name, "") + text
    return texts


def test_each_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one.txt").write_bytes(b"\xef\xbb\xbfone\r\n")  # a byte order mark, which is no text
    (tmp_path / "a" / "b" / "two.MD").write_text("zwö\n")
    (tmp_path / "a" / "b" / "three.rst.gz").write_bytes(gzip.compress(b"three"))
    (tmp_path / "a" / "empty.text").touch()
    everything = {"b/three.rst.gz": "three", "b/two.MD": "zwö\n", "one.txt": "one\r\n"}
    (fragment,) = find_fragments("a", tmp_path)
    assert documents((fragment,)) == everything
    assert documents(find_fragments("a/b/two.MD", tmp_path)) == {"two.MD": "zwö\n"}
    assert documents(find_fragments("a/**/t*", tmp_path)) == {"b/three.rst.gz": "three", "b/two.MD": "zwö\n"}
    assert documents(find_fragments(f"file://{tmp_path}/a", tmp_path)) == everything
    assert schema_of((fragment,)) == pa.schema({"document": pa.string(), "text": pa.string()})
    assert read_fragment(fragment, ["text"])[0].column_names == ["text"]
    assert fragment.locate(2) == (str(tmp_path / "a" / "one.txt"), 0)


def test_a_text_beside_tables_or_images_is_a_note(tmp_path: Path) -> None:
    for folder in ("tables", "images"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "README.md").write_text("what this is")
    write_csv(tmp_path / "tables" / "t.csv")
    write_image(tmp_path / "images" / "cat" / "a.png")
    assert [fragment.format for fragment in find_fragments("tables", tmp_path)] == ["csv"]
    assert [fragment.format for fragment in find_fragments("images", tmp_path)] == ["image_folder"]
    write_parquet(tmp_path / "tables" / "t.parquet")
    assert [f.format for f in find_fragments("tables/*.md", tmp_path)] == ["text"]


@pytest.mark.parametrize("part_bytes", [1, 5, 16, 40, 1000])
@pytest.mark.parametrize("line_bytes", [1, 8, 1000])
def test_large_files_are_cut_behind_lines(
    tmp_path: Path, part_bytes: int, line_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SLICE_BYTES", part_bytes)
    monkeypatch.setattr(sources, "LINE_BYTES", max(4, line_bytes))
    texts = {"a.txt": "ab\n\nc€€€€€d\r\n😀😀😀\n" * 3, "b.txt": "x", "c.txt": "y\n", "d.txt": "é" * 30}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
    found = find_fragments(str(tmp_path), tmp_path)
    assert documents(found) == texts
    assert list(documents(found)) == sorted(texts)
    for fragment in found:
        data = (tmp_path / fragment.files[0]).read_bytes()[fragment.start : fragment.stop]
        whole = fragment.stop is None
        assert whole == (sum(len(texts[file].encode()) for file in fragment.files) <= part_bytes)
        assert whole or len(fragment.files) == 1
        if not whole and fragment.files[0] == "a.txt" and line_bytes == 1000:
            assert data.endswith(b"\n"), "there is always the end of a line ahead"
    if part_bytes == 1000:
        assert len(found) == 1


def test_files_are_gathered_to_fragments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcdefg":
        (tmp_path / f"{name}.txt").write_text(name * 4)
    monkeypatch.setattr(sources, "SLICE_BYTES", 8)
    assert [len(fragment.files) for fragment in find_fragments(str(tmp_path), tmp_path)] == [2, 2, 2, 1]
    monkeypatch.setattr(sources, "FILES_PER_FRAGMENT", 1)
    assert [len(fragment.files) for fragment in find_fragments(str(tmp_path), tmp_path)] == [1] * 7


def test_what_is_not_utf_8_is_named_with_its_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9 au lait")
    (tmp_path / "c.txt").write_text("well")
    (fragment,) = find_fragments(str(tmp_path), tmp_path)
    table, bad_rows = read_fragment(fragment)
    assert table["document"].to_pylist() == ["a.txt", "c.txt"]
    path = str(tmp_path / "b.txt")
    assert bad_rows == [BadRow(path, 0, "text", "byte 6 (0xe9) is not UTF-8")]
    assert fragment.locate(1, bad_rows) == (str(tmp_path / "c.txt"), 0)
    monkeypatch.setattr(sources, "SLICE_BYTES", 8)
    (tmp_path / "b.txt").write_bytes(b"1234567\n1234567\n12\xff4567\n")
    parts = find_fragments(path, tmp_path)
    assert [read_fragment(part)[0]["text"].to_pylist() for part in parts[:2]] == [["1234567\n"]] * 2
    assert read_fragment(parts[2])[1] == [BadRow(path, 0, "text", "byte 18 (0xff) is not UTF-8")]


def test_a_sample_reads_the_first_bytes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragments, "HEAD_BYTES", 6)
    for name, text in (("a", "1234"), ("b", "1€€€€"), ("c", "1")):
        (tmp_path / f"{name}.txt").write_text(text)
    found = find_fragments(str(tmp_path), tmp_path)
    assert sample_rows(found, 10)["text"].to_pylist() == ["1234", "1"], "half a character is cut off"
    assert sample_rows(found, 1)["text"].to_pylist() == ["1234"]


def test_texts_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"^a.txt: holds no rows; name a source that does$"):
        find_fragments("a.txt", tmp_path)
    (tmp_path / "a.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"a.txt.gz: cannot be read as text: .*; mend or replace it$"):
        read_fragment(find_fragments("a.txt.gz", tmp_path)[0])
