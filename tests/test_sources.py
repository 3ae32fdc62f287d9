"""Sources: what is found, how it is cut, what is read, and what is said when nothing is."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from raynn import sources
from raynn.errors import DataError
from raynn.sources import BadRow, find_fragments, read_fragment, sample_rows, schema_of

TABLE = pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]})


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))


def write_parquet(path: Path, table: pa.Table = TABLE, row_group_size: int | None = None) -> None:
    pa.parquet.write_table(table, path, row_group_size=row_group_size)


def write_csv(path: Path) -> None:
    path.write_text("a,b\n1,x\n2,y\n3,z\n")


def write_json_lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in TABLE.to_pylist()))


def write_image(path: Path, color: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), color).save(path)


def read_all(source: str | tuple[str, ...], base: Path) -> pa.Table:
    return pa.concat_tables([read_fragment(fragment)[0] for fragment in find_fragments(source, base)])


def message(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)


# Finding


@pytest.mark.parametrize("write", [write_parquet, write_csv, write_json_lines])
@pytest.mark.parametrize("source", ["data/one{}", "data", "data/*{}", "data/", "**/*{}", "{base}/data", "da?a/[o]ne{}"])
def test_every_way_to_name_a_source(tmp_path: Path, write: Callable[[Path], None], source: str) -> None:
    suffix = {"write_parquet": ".parquet", "write_csv": ".csv", "write_json_lines": ".jsonl"}[write.__name__]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / f"one{suffix}")
    (tmp_path / "data" / "_SUCCESS").touch()
    (tmp_path / "data" / f".one{suffix}").write_text("half written")
    table = read_all(source.format(suffix, base=tmp_path), tmp_path)
    assert [str(value) for value in table["a"].to_pylist()] == ["1", "2", "3"]
    assert table["b"].to_pylist() == ["x", "y", "z"]


def test_the_current_folder_comes_before_that_of_the_job(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv")
    Path("t.csv").write_text("here\n1\n")
    assert schema_of(find_fragments("t.csv", tmp_path)).names == ["here"]


def test_a_list_keeps_its_order_and_a_folder_is_sorted(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_csv(tmp_path / f"{name}.csv")
    listed = find_fragments(("c.csv", "a.csv"), tmp_path)
    assert [Path(fragment.path).name for fragment in listed] == ["c.csv", "a.csv"]
    assert [fragment.source for fragment in listed] == ["c.csv", "a.csv"]
    everything = find_fragments(str(tmp_path), tmp_path)
    assert [Path(fragment.path).name for fragment in everything] == ["a.csv", "b.csv", "c.csv"]


def test_a_name_with_wildcards_in_it_is_a_file_first(tmp_path: Path) -> None:
    write_csv(tmp_path / "t[1].csv")
    assert read_all("t[1].csv", tmp_path).num_rows == 3


def test_a_glob_that_matches_folders_takes_what_they_hold(tmp_path: Path) -> None:
    for name in ("part-0", "part-1"):
        (tmp_path / name).mkdir()
        write_csv(tmp_path / name / "rows.csv")
    assert read_all("part-*", tmp_path).num_rows == 6


@pytest.mark.parametrize("prefix", ["file://{}", "memory://raynn-test"])
def test_urls_through_pyarrow_and_fsspec(tmp_path: Path, prefix: str) -> None:
    fsspec = pytest.importorskip("fsspec")
    url = prefix.format(tmp_path)
    with fsspec.open(f"{url}/t.csv", "w") as file:
        file.write("a\n1\n")
    for source in (f"{url}/t.csv", f"{url}/*.csv", url):
        (fragment,) = find_fragments(source, tmp_path)
        assert read_fragment(pickle.loads(pickle.dumps(fragment)))[0].to_pydict() == {"a": ["1"]}
    assert message(lambda: find_fragments(f"{url}/u.csv", tmp_path)) == (
        f"{url}/u.csv: nothing there; look at the address and at what its folder holds"
    )


def test_an_address_of_an_unknown_kind(tmp_path: Path) -> None:
    assert message(lambda: find_fragments("gopher://x/y.csv", tmp_path)).startswith(
        "gopher://x/y.csv: cannot be read as address: Protocol not known: gopher"
    )


def test_parquet_is_cut_by_row_group_and_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"n": pa.array(range(1000), pa.int64())})
    write_parquet(tmp_path / "t.parquet", table, row_group_size=600)
    groups = find_fragments("t.parquet", tmp_path)
    assert [(f.row_group, f.start, f.stop, f.first_row) for f in groups] == [(0, 0, 600, 0), (1, 0, 400, 600)]

    size = pa.parquet.read_metadata(tmp_path / "t.parquet").row_group(0).total_byte_size
    monkeypatch.setattr(sources, "SLICE_BYTES", -(-size // 3))
    slices = find_fragments("t.parquet", tmp_path)
    assert [f.stop - f.start for f in slices if f.row_group == 0] == [200, 200, 200]
    assert len(slices) > 3
    tables = [read_fragment(fragment)[0] for fragment in slices]
    assert pa.concat_tables(tables)["n"].to_pylist() == list(range(1000))
    assert [f.first_row for f in slices] == [t["n"][0].as_py() for t in tables]


def test_an_image_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FILES_PER_FRAGMENT", 2)
    for name in ("dog/b.png", "cat/a.PNG", "dog/deep/c.png"):
        write_image(tmp_path / "pets" / name)
    (tmp_path / "pets" / "README.txt").write_text("pets")
    fragments = find_fragments("pets", tmp_path)
    assert [fragment.files for fragment in fragments] == [("cat/a.PNG", "dog/b.png"), ("dog/deep/c.png",)]
    table, bad_rows = read_fragment(fragments[0])
    assert table["label"].to_pylist() == ["cat", "dog"]
    assert table["image"][1].as_py() == (tmp_path / "pets/dog/b.png").read_bytes()
    assert not bad_rows
    assert fragments[1].locate(0) == (f"{tmp_path}/pets/dog/deep/c.png", 0)
    assert read_fragment(fragments[0], ["label"])[0].column_names == ["label"]
    assert [f.files for f in find_fragments("pets/*/*.png", tmp_path)] == [("dog/b.png",)]


def test_a_catalog_name_is_cut_and_wins_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ROWS_PER_FRAGMENT", 100)
    (tmp_path / "wine").mkdir()
    fragments = find_fragments("wine", tmp_path)
    assert [(f.path, f.start, f.stop) for f in fragments] == [("catalog:wine", 0, 100), ("catalog:wine", 100, 178)]
    tables = [read_fragment(fragment, ["cultivar", "hue"])[0] for fragment in fragments]
    assert [table.shape for table in tables] == [(100, 2), (78, 2)]
    assert pa.concat_tables(tables).equals(sources.load_dataset("wine").select(["cultivar", "hue"]))


def test_nothing_found_says_where_and_what_is_near(tmp_path: Path) -> None:
    write_csv(tmp_path / "adult_train.csv")
    here = Path.cwd()
    assert message(lambda: find_fragments("adult_tran.csv", tmp_path)) == (
        f"adult_tran.csv: no such file, folder or data set; looked for {here}/adult_tran.csv and "
        f"{tmp_path}/adult_tran.csv. Did you mean 'adult_train.csv'?"
    )
    assert message(lambda: find_fragments("digts", tmp_path)) == (
        f"digts: no such file, folder or data set; looked for {here}/digts and {tmp_path}/digts. Did you mean 'digits'?"
    )
    assert message(lambda: find_fragments("zzz", tmp_path)).endswith(
        "zzz. Data sets of the catalog: digits, breast_cancer, wine, diabetes, fashion_mnist_train, fashion_mnist_test"
    )
    assert message(lambda: find_fragments(f"{tmp_path}/*.parquet", tmp_path)) == (
        f"{tmp_path}/*.parquet: no file matches; looked for {tmp_path}/*.parquet; there are {tmp_path}/adult_train.csv"
    )
    assert message(lambda: find_fragments("no/such/*.csv", tmp_path)) == (
        f"no/such/*.csv: no file matches; looked for {here}/no/such/*.csv and {tmp_path}/no/such/*.csv"
    )


def test_folders_that_do_not_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert message(lambda: find_fragments("empty", tmp_path)) == (
        "empty: an empty folder; put data into it or name another"
    )
    assert message(lambda: find_fragments((), tmp_path)) == (
        "an empty list of sources: holds no rows; name a source that does"
    )
    (tmp_path / "notes").mkdir()
    for number in range(7):
        (tmp_path / "notes" / f"{number}.docx").touch()
    assert message(lambda: find_fragments("notes", tmp_path)) == (
        "notes: raynn does not read 0.docx, 1.docx, 2.docx, 3.docx, 4.docx and 2 more; convert to one of .parquet "
        ".pq .csv .tsv .jsonl .ndjson .json (text also as .gz, .bz2, .zst), or name another file"
    )
    write_image(tmp_path / "bare" / "a.png")
    assert message(lambda: find_fragments("bare", tmp_path)) == (
        "bare: the image a.png lies in no class folder, whose name would be its label; arrange images as "
        "root/class_name/photo.png and name root"
    )
    write_image(tmp_path / "both" / "cat" / "a.png")
    write_csv(tmp_path / "both" / "labels.csv")
    assert message(lambda: find_fragments("both", tmp_path)) == (
        f"both: holds tables ({tmp_path}/both/labels.csv) and images ({tmp_path}/both/cat/a.png); name the tables "
        "with a glob like both/*.csv, or a folder that holds images only"
    )


# Reading


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
    path.write_bytes(b"PAR1 and nothing more")
    assert message(lambda: find_fragments("t.parquet", tmp_path)) == (
        f"{path}: cannot be read as parquet: Parquet magic bytes not found in footer. Either the file is corrupted "
        "or this is not a parquet file; mend or replace it"
    )
    write_parquet(path)
    (fragment,) = find_fragments("t.parquet", tmp_path)
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)
    assert message(lambda: read_fragment(fragment)).startswith(f"{path}: cannot be read as parquet: ")
    path.unlink()
    assert message(lambda: read_fragment(fragment)).startswith(f"{path}: cannot be read as parquet: ")


@pytest.mark.parametrize("write", [write_parquet, write_csv, write_json_lines])
def test_columns_are_chosen_in_order_and_missing_ones_named(tmp_path: Path, write: Callable[[Path], None]) -> None:
    suffix = {"write_parquet": ".parquet", "write_csv": ".csv", "write_json_lines": ".jsonl"}[write.__name__]
    path = tmp_path / f"t{suffix}"
    write(path)
    (fragment,) = find_fragments(str(path), tmp_path)
    assert read_fragment(fragment, ["b", "a"])[0].column_names == ["b", "a"]
    assert message(lambda: read_fragment(fragment, ["b", "aa"])) == (
        f"{path}: no column 'aa'. Did you mean 'a'? Its columns: a, b"
    )


# Sampling


def test_a_sample_spans_files_and_stops(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_csv(tmp_path / f"{name}.csv")
    fragments = find_fragments(str(tmp_path), tmp_path)
    assert sample_rows(fragments, 5)["a"].to_pylist() == ["1", "2", "3", "1", "2"]
    assert sample_rows(fragments, 99).num_rows == 9
    assert schema_of(fragments) == pa.schema({"a": pa.string(), "b": pa.string()})


def test_a_sample_reads_only_the_head_of_a_long_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "HEAD_BYTES", 10)
    write_csv(tmp_path / "t.csv")  # its first 10 bytes end within the second row
    write_json_lines(tmp_path / "t.jsonl")
    assert sample_rows(find_fragments("t.csv", tmp_path), 3).to_pydict() == {"a": ["1"], "b": ["x"]}
    monkeypatch.setattr(sources, "HEAD_BYTES", 30)
    assert sample_rows(find_fragments("t.jsonl", tmp_path), 3).num_rows == 1


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
    for source in ("t.parquet", "t.csv", "t.jsonl", "images", "digits"):
        assert sample_rows(find_fragments(source, tmp_path), num_rows).num_rows == num_rows


def test_an_empty_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n")
    assert message(lambda: sample_rows(find_fragments("t.csv", tmp_path), 3)) == (
        "t.csv: holds no rows; name a source that does"
    )
    write_parquet(tmp_path / "t.parquet", TABLE.slice(0, 0))
    assert message(lambda: find_fragments("t.parquet", tmp_path)) == (
        "t.parquet: holds no rows; name a source that does"
    )


def test_images_of_the_folder_can_be_decoded(tmp_path: Path) -> None:
    write_image(tmp_path / "pets" / "cat" / "a.png", color=7)
    with Image.open(io.BytesIO(read_all("pets", tmp_path)["image"][0].as_py())) as image:
        assert image.getextrema() == (7, 7)
