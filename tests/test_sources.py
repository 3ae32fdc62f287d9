"""Sources: what is found, how it is cut, and what is said when nothing is."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from files import TABLE, WRITERS, write_csv, write_image, write_parquet

from raynn import sources
from raynn.catalog import CATALOG, load_dataset
from raynn.errors import DataError
from raynn.fragments import read_fragment, schema_of
from raynn.sources import find_fragments


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))


def read_all(source: str | tuple[str, ...], base: Path) -> pa.Table:
    return pa.concat_tables([read_fragment(fragment)[0] for fragment in find_fragments(source, base)])


def message(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(("suffix", "write"), WRITERS.items())
@pytest.mark.parametrize("source", ["data/one{}", "data", "data/*{}", "data/", "**/*{}", "{base}/data", "da?a/[o]ne{}"])
def test_every_way_to_name_a_source(tmp_path: Path, suffix: str, write: Callable[[Path], None], source: str) -> None:
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
    assert pa.concat_tables(tables).equals(load_dataset("wine").select(["cultivar", "hue"]))


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
        f"zzz. Data sets of the catalog: {', '.join(CATALOG)}"
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
        ".pq .csv .tsv .jsonl .ndjson .json .txt .text .md .rst (but for Parquet also as .gz, .bz2, .zst), or name "
        "another file"
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


def test_a_parquet_file_without_a_footer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 and nothing more")
    assert message(lambda: find_fragments("t.parquet", tmp_path)) == (
        f"{path}: cannot be read as parquet: Parquet magic bytes not found in footer. Either the file is corrupted "
        "or this is not a parquet file; mend or replace it"
    )


def test_an_empty_parquet_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t.parquet", TABLE.slice(0, 0))
    assert message(lambda: find_fragments("t.parquet", tmp_path)) == (
        "t.parquet: holds no rows; name a source that does"
    )
