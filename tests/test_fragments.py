"""Fragments: what is read of each format, which rows are bad, and what is said of files that cannot be read."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from files import WRITERS, write_csv, write_image, write_json_lines, write_parquet
from PIL import Image

from raynn import fragments
from raynn.errors import DataError
from raynn.fragments import BadRow, read_fragment, sample_rows, schema_of
from raynn.sources import find_fragments


def message(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)


def read_text(tmp_path: Path, name: str, text: str | bytes) -> tuple[pa.Table, list[BadRow]]:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    (fragment,) = find_fragments(str(path), tmp_path)
    return read_fragment(fragment)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_dialects(tmp_path: Path, delimiter: str, end: str, mark: str) -> None:
    rows = [["name", "a value"], ["x", " 1"], ["?", "NA"], ["", "nan"], ['"one\ntwo, three"', "None "]]
    text = mark + "".join(delimiter.join(row) + end for row in rows)
    table, bad_rows = read_text(tmp_path, "t.csv", text)
    assert table.to_pydict() == {
        "name": ["x", None, None, "one\ntwo, three"],
        "a value": ["1", None, None, None],
    }
    assert table.schema.types == [pa.string(), pa.string()]
    assert not bad_rows


def test_compressed_csv(tmp_path: Path) -> None:
    table, _ = read_text(tmp_path, "t.csv.gz", gzip.compress(b"a,b\n1,2\n"))
    assert table.to_pydict() == {"a": ["1"], "b": ["2"]}


def test_csv_rows_with_the_wrong_number_of_fields_are_named(tmp_path: Path) -> None:
    text = "a,b\n1,2\n\n3\n4,5\n6,7,8\n9,0\n"
    table, bad_rows = read_text(tmp_path, "t.csv", text)
    assert table.to_pydict() == {"a": ["1", "4", "9"], "b": ["2", "5", "0"]}
    path = str(tmp_path / "t.csv")
    assert [row.to_json() for row in bad_rows] == [
        {"file": path, "row": 1, "column": None, "reason": "1 fields, the header has 2: '3'"},
        {"file": path, "row": 3, "column": None, "reason": "3 fields, the header has 2: '6,7,8'"},
    ]
    (fragment,) = find_fragments(path, tmp_path)
    assert [fragment.locate(index, bad_rows) for index in range(3)] == [(path, 0), (path, 2), (path, 4)]


def test_csv_cells_may_hold_lines_across_blocks(tmp_path: Path) -> None:
    num_rows = 200_000  # 2.6 MB, and pyarrow parses blocks of 1 MiB
    table, bad_rows = read_text(tmp_path, "t.csv", "a,b\n" + '"one\ntwo",3\n' * num_rows)
    assert table["a"].value_counts().to_pylist() == [{"values": "one\ntwo", "counts": num_rows}]
    assert not bad_rows


def test_a_header_alone_is_a_table_without_rows(tmp_path: Path) -> None:
    table, _ = read_text(tmp_path, "t.csv", "a,b\n")
    assert (table.column_names, table.num_rows) == (["a", "b"], 0)


def test_csv_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    assert message(lambda: read_text(tmp_path, "t.csv", "")) == (
        f"{path}: an empty file; a CSV file begins with a line of column names"
    )
    assert message(lambda: read_text(tmp_path, "t.csv", "a,b,a\n1,2,3\n")) == (
        f"{path}: column 'a' is there twice; rename one in the first line"
    )
    assert message(lambda: read_text(tmp_path, "t.csv", b"a\n\xff\xfe\n")) == (
        f"{path}: cannot be read as csv: In CSV column #0: Row #2: CSV conversion error to string: invalid UTF8 "
        "data; mend or replace it"
    )
    assert message(lambda: read_text(tmp_path, "t.csv.gz", b"a,b\n1,2\n")).startswith(
        f"{path}.gz: cannot be read as csv: "
    )


def test_json_lines(tmp_path: Path) -> None:
    table, bad_rows = read_text(tmp_path, "t.jsonl", '{"a": 1, "s": [1, 2.5]}\n\n{"a": 2.5, "b": null}\n')
    assert table.to_pydict() == {"a": [1.0, 2.5], "s": [[1.0, 2.5], None], "b": [None, None]}
    assert not bad_rows


def test_broken_json_lines_are_named(tmp_path: Path) -> None:
    long = '{"a": ' + "1" * 100
    table, bad_rows = read_text(tmp_path, "t.jsonl", '\ufeff{"a": 1}\n{"a": \n[1]\n{"a": 3}\n' + long)
    assert table.to_pydict() == {"a": [1, 3]}
    path = str(tmp_path / "t.jsonl")
    assert bad_rows == [
        BadRow(path, 1, None, "not a JSON object: '{\"a\": '"),
        BadRow(path, 2, None, "not a JSON object: '[1]'"),
        BadRow(path, 4, None, 'not a JSON object: \'{"a": ' + "1" * 51 + "...'"),
    ]


def test_json_columns_of_several_types_are_text(tmp_path: Path) -> None:
    table, bad_rows = read_text(tmp_path, "t.jsonl", '{"a": 1, "b": 1}\n{"a": "x"}\n{"a": true, "b": 2}\n')
    assert table.to_pydict() == {"a": ["1", "x", "true"], "b": [1, None, 2]}
    assert not bad_rows


def test_json_that_is_not_lines(tmp_path: Path) -> None:
    assert message(lambda: read_text(tmp_path, "t.json", '[\n{"a": 1},\n{"a": 2}]\n')) == (
        f"{tmp_path}/t.json: no line is a JSON object; write one {{...}} a line, without [ ]"
    )


def test_a_corrupt_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(path)
    (fragment,) = find_fragments(str(path), tmp_path)
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)
    assert message(lambda: read_fragment(fragment)).startswith(f"{path}: cannot be read as parquet: ")
    path.unlink()
    assert message(lambda: read_fragment(fragment)).startswith(f"{path}: cannot be read as parquet: ")


@pytest.mark.parametrize(("suffix", "write"), WRITERS.items())
def test_columns_are_chosen_in_order_and_missing_ones_named(
    tmp_path: Path, suffix: str, write: Callable[[Path], None]
) -> None:
    path = tmp_path / f"t{suffix}"
    write(path)
    (fragment,) = find_fragments(str(path), tmp_path)
    assert read_fragment(fragment, ["b", "a"])[0].column_names == ["b", "a"]
    assert message(lambda: read_fragment(fragment, ["b", "aa"])) == (
        f"{path}: no column 'aa'. Did you mean 'a'? Its columns: a, b"
    )


def test_images_of_the_folder_can_be_decoded(tmp_path: Path) -> None:
    write_image(tmp_path / "pets" / "cat" / "a.png", color=7)
    (fragment,) = find_fragments(str(tmp_path / "pets"), tmp_path)
    table, _ = read_fragment(fragment)
    with Image.open(io.BytesIO(table["image"][0].as_py())) as image:
        assert image.getextrema() == (7, 7)


# Sampling


def test_a_sample_spans_files_and_stops(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_csv(tmp_path / f"{name}.csv")
    found = find_fragments(str(tmp_path), tmp_path)
    assert sample_rows(found, 5)["a"].to_pylist() == ["1", "2", "3", "1", "2"]
    assert sample_rows(found, 99).num_rows == 9
    assert schema_of(found) == pa.schema({"a": pa.string(), "b": pa.string()})


def test_a_sample_reads_only_the_head_of_a_long_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragments, "HEAD_BYTES", 10)
    write_csv(tmp_path / "t.csv")  # its first 10 bytes end within the second row
    write_json_lines(tmp_path / "t.jsonl")
    assert sample_rows(find_fragments(str(tmp_path / "t.csv"), tmp_path), 3).to_pydict() == {"a": ["1"], "b": ["x"]}
    monkeypatch.setattr(fragments, "HEAD_BYTES", 30)
    assert sample_rows(find_fragments(str(tmp_path / "t.jsonl"), tmp_path), 3).num_rows == 1


def test_a_sample_of_files_with_other_types(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"a": 2.5, "b": 1}\n')
    assert sample_rows(find_fragments(str(tmp_path), tmp_path), 9).to_pydict() == {"a": [1.0, 2.5], "b": [None, 1]}


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_a_sample_of_every_format(tmp_path: Path, num_rows: int) -> None:
    write_parquet(tmp_path / "t.parquet")
    write_csv(tmp_path / "t.csv")
    write_json_lines(tmp_path / "t.jsonl")
    for name in "abc":
        write_image(tmp_path / "images" / name / "1.png")
    for source in (*(str(tmp_path / name) for name in ("t.parquet", "t.csv", "t.jsonl", "images")), "digits"):
        assert sample_rows(find_fragments(source, tmp_path), num_rows).num_rows == num_rows


def test_an_empty_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n")
    assert message(lambda: sample_rows(find_fragments(str(tmp_path / "t.csv"), tmp_path), 3)) == (
        f"{tmp_path}/t.csv: holds no rows; name a source that does"
    )
