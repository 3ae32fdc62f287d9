"""Columns: what is inferred from types and samples, what `data.columns` may say, and what is refused."""

from __future__ import annotations

import datetime
import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from raynn.columns import ColumnSpec, infer_columns, parse_dates, parse_numbers, require_features
from raynn.errors import DataError
from raynn.sources import ColumnSplit, DataSettings


def picture(mode: str = "L", size: tuple[int, int] = (4, 3), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


def infer(values: dict[str, Any], **settings: Any) -> tuple[ColumnSpec, ...]:
    """The features of a table with one more column, the target `y`."""
    num_rows = len(next(iter(values.values())))
    table = pa.table(values if "y" in values else {**values, "y": pa.array([0.5] * num_rows)})
    return infer_columns(table.schema, table, DataSettings(train="t", **{"target": "y", **settings}))[0]


def infer_one(values: Any, **settings: Any) -> ColumnSpec:
    """The specification of one feature `x` beside a good one."""
    return infer({"x": values, "good": pa.array([1.0] * len(values))}, **settings)[0]


def infer_target(values: Any, **settings: Any) -> ColumnSpec:
    table = pa.table({"x": pa.array([1.0] * len(values)), "y": values})
    return infer_columns(table.schema, table, DataSettings(train="t", target="y", **settings))[1][0]


def message(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)


DAY = datetime.date(2024, 5, 31)
KINDS = {
    "int": (pa.array([1, 2]), "numeric", (), "int64"),
    "float": (pa.array([1.0, None], pa.float32()), "numeric", (), "float"),
    "decimal": (pa.array([1, 2], pa.decimal128(5, 2)), "numeric", (), "decimal128(5, 2)"),
    "bool": (pa.array([True, False]), "categorical", (), "bool"),
    "string": (pa.array(["a", "b", "a"]), "categorical", (), "text, 2 different values in 3 sampled"),
    "dictionary": (
        pa.array(["1", "2"]).dictionary_encode(),
        "categorical",
        (),
        "dictionary<values=string, indices=int32, ordered=0>",
    ),
    "numbers as text": (pa.array(["1", "-2.5e3", " .5", "NaN", None, ""]), "numeric", (), "text that reads as numbers"),
    "large numbers as text": (pa.array(["1"], pa.large_string()), "numeric", (), "text that reads as numbers"),
    "dates as text": (pa.array(["2024-05-31", "2024-05-31T12:00"]), "date", (), "text that reads as ISO dates"),
    "almost numbers": (pa.array(["1"] * 98 + ["x"] * 2), "categorical", (), "text, 2 different values in 100 sampled"),
    "numbers but for one": (pa.array(["1"] * 99 + ["x"]), "numeric", (), "text that reads as numbers"),
    "date": (pa.array([DAY]), "date", (), "date32[day]"),
    "timestamp": (pa.array([0], pa.timestamp("ns", "UTC")), "date", (), "timestamp[ns, tz=UTC]"),
    "image": (pa.array([picture(), None]), "image", (1, 3, 4), "binary; 3 x 4 gray"),
    "image struct": (
        pa.array([{"bytes": picture("RGB"), "path": "a.png"}]),
        "image",
        (3, 3, 4),
        "struct<bytes: binary, path: string>; 3 x 4 color",
    ),
    "list": (pa.array([[1.0, 2.0], None, [3.0, 4.0], []]), "sequence", (2, 1), "list<item: double>"),
    "lists of different lengths": (pa.array([[1.0, 2.0], [3.0]]), "sequence", (0, 1), "list<item: double>"),
    "list of lists": (pa.array([None, [[1, 2, 3]] * 4]), "sequence", (4, 3), "list<item: list<item: int64>>"),
    "fixed lists": (
        pa.array([[1, 2]], pa.list_(pa.int8(), 2)),
        "sequence",
        (2, 1),
        "fixed_size_list<item: int8>[2]",
    ),
    "nulls": (pa.nulls(3), "ignore", (), "no value in the first 3 rows"),
    "empty text": (pa.array(["", ""]), "ignore", (), "empty in all sampled rows"),
    "identifier": (
        pa.array([f"id{number}" for number in range(1001)]),
        "ignore",
        (),
        "an identifier: 1001 sampled values, all different",
    ),
    "too few to tell": (
        pa.array([f"id{number}" for number in range(1000)]),
        "categorical",
        (),
        "text, 1000 different values in 1000 sampled",
    ),
    "struct": (pa.array([{"a": 1}]), "ignore", (), "struct<a: int64> is nothing that a network takes"),
    "list of text": (pa.array([["a"]]), "ignore", (), "list<item: string> is nothing that a network takes"),
}


@pytest.mark.parametrize("case", KINDS)
def test_kinds_are_inferred(case: str) -> None:
    values, kind, shape, reason = KINDS[case]
    assert infer_one(values) == ColumnSpec("x", kind, shape, reason)


@pytest.mark.parametrize("name", ["", "__index_level_0__"])
def test_an_index_of_pandas_is_ignored(name: str) -> None:
    specs = infer({name: pa.array([0, 1]), "x": pa.array([1.0, 2.0])})
    assert [(spec.name, spec.kind) for spec in specs] == [(name, "ignore"), ("x", "numeric")]
    assert specs[0].reason == "an index that pandas wrote"


# Settings


def test_declared_kinds_win() -> None:
    spec = infer_one(pa.array([1, 2]), columns={"x": "categorical"})
    assert spec == ColumnSpec("x", "categorical", (), "declared in data.columns")
    assert infer_one(pa.array(["1", "x", "2", "x", "3"]), columns={"x": "numeric"}).kind == "numeric"
    assert infer_one(pa.array([DAY]), columns={"x": "ignore"}).kind == "ignore"
    assert (
        infer_one(pa.array([f"a b c d e f {n}" for n in range(9)]), columns={"x": "categorical"}).kind == "categorical"
    )


def test_features_keep_the_order_asked_for_and_leave_out_what_has_a_role() -> None:
    columns = {name: pa.array([1.0]) for name in ("a", "g", "t", "v", "w", "b", "y")}
    roles: dict[str, Any] = {
        "group": "g",
        "time": "t",
        "validation": ColumnSplit(column="v", equals=1),
        "test": ColumnSplit(column="w", equals=1),
    }
    assert [spec.name for spec in infer(columns, **roles)] == ["a", "b"]
    assert [spec.name for spec in infer(columns, features=("b", "a"))] == ["b", "a"]
    for field, name in (("data.target", "y"), ("data.group", "g"), ("data.time", "t"), ("data.test.column", "w")):
        assert message(lambda name=name: infer(columns, features=("a", name), **roles)) == (
            f"data.features names {name!r}, which is {field} and so no input; take it out"
        )


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("data.target", {"target": "agee"}),
        ("data.group", {"group": "agee"}),
        ("data.time", {"time": "agee"}),
        ("data.features", {"features": ("age", "agee")}),
        ("data.columns", {"columns": {"agee": "numeric"}}),
        ("data.validation.column", {"validation": ColumnSplit(column="agee", equals=1)}),
        ("data.test.column", {"test": ColumnSplit(column="agee", equals=1)}),
    ],
)
def test_misspelt_columns_get_the_nearest(field: str, settings: dict[str, Any]) -> None:
    assert message(lambda: infer({"age": pa.array([1.0])}, **settings)) == (
        f"{field} names 'agee', which is not a column. Did you mean 'age'? The columns: age, y"
    )


def test_a_long_list_of_columns_is_cut() -> None:
    columns = {f"c{number}": pa.array([1.0]) for number in range(33)}
    assert message(lambda: infer(columns, group="group")).endswith(", c28, c29 and 4 more")


def test_several_targets_or_none() -> None:
    table = pa.table({"x": [1.0], "y": [2.0], "z": ["a"]})
    for target, expected in ((None, []), ("y", ["y"]), (("z", "y"), ["z", "y"])):
        features, targets = infer_columns(table.schema, table, DataSettings(train="t", target=target))
        assert [spec.name for spec in targets] == expected
        assert [spec.name for spec in features] == [name for name in "xyz" if name not in expected]


def test_columns_of_kinds_that_the_task_does_not_read() -> None:
    table = pa.table({"x": [1.0], "y": [2.0], "z": ["a"]})
    for features, kinds in ((None, ["numeric", "ignore"]), (("x", "z"), ["numeric", "categorical"])):
        settings = DataSettings(train="t", target="y", features=features)
        found, _ = infer_columns(table.schema, table, settings, kinds=("numeric",))
        assert [spec.kind for spec in found] == kinds
    assert infer_columns(table.schema, table, DataSettings(train="t", target="y"), ("numeric",))[0][1].reason == (
        "categorical, and the task reads numeric columns alone"
    )


def test_an_empty_table() -> None:
    assert message(lambda: infer({"x": pa.array([], pa.float64())})) == (
        "the data hold no rows to infer columns from; name a source that holds some"
    )


@pytest.mark.parametrize(
    ("columns", "target", "expected"),
    [
        ({"x": pa.nulls(2)}, "y", " beside data.target = 'y' (x: no value in the first 2 rows)"),
        ({"y": pa.array([1.0])}, "y", " beside data.target = 'y' (there is no other column)"),
        ({"x": pa.nulls(1)}, None, " (x: no value in the first 1 rows)"),
    ],
)
def test_no_feature_left(columns: dict[str, pa.Array], target: str | None, expected: str) -> None:
    settings = DataSettings(train="t", target=target)
    table = pa.table({**({"y": pa.array([1.0] * len(next(iter(columns.values()))))} if target else {}), **columns})
    features, _ = infer_columns(table.schema, table, settings)
    assert message(lambda: require_features(features, settings)) == f"no feature is left{expected}; add a column"


# Refused


def test_text_where_a_number_or_date_was_declared() -> None:
    assert message(lambda: infer_one(pa.array(["7", "Paris", "Rome"]), columns={"x": "numeric"})) == (
        "column 'x' is to be numeric, but 2 of 3 sampled values are not a number: 'Paris' in row 1; set "
        "`data.columns: {x: categorical}` or `ignore`"
    )
    assert message(lambda: infer_one(pa.array(["31/05/2024"]), columns={"x": "date"})) == (
        "column 'x' is to be date, but 1 of 1 sampled values are not an ISO date such as 2024-05-31: '31/05/2024' "
        "in row 0; set `data.columns: {x: categorical}` or `ignore`"
    )


@pytest.mark.parametrize(
    ("kind", "values", "fitting"),
    [
        ("image", pa.array([1]), "numeric or categorical or ignore"),
        ("sequence", pa.array(["a"]), "numeric or categorical or date or text or ignore"),
        ("date", pa.array([20240531]), "numeric or categorical or ignore"),
        ("numeric", pa.array([b"a"]), "image or ignore"),
        ("categorical", pa.array([[1.0]]), "sequence or ignore"),
        ("numeric", pa.array([{"a": 1}]), "ignore"),
    ],
)
def test_a_kind_that_a_type_cannot_be(kind: str, values: pa.Array, fitting: str) -> None:
    assert message(lambda: infer_one(values, columns={"x": kind})) == (
        f"column 'x' is to be {kind}, but holds {values.type}; convert it, or set `data.columns: {{x: ...}}` "
        f"to {fitting}"
    )


def test_free_text() -> None:
    reviews = pa.array([f"this is the long review number {number} of many" for number in range(10)])
    assert infer_one(reviews) == ColumnSpec("x", "text", (), "9 words on average")
    assert infer_one(reviews, columns={"x": "text"}) == ColumnSpec("x", "text", (), "declared in data.columns")


def test_a_feature_asked_for_that_no_network_takes() -> None:
    assert message(lambda: infer_one(pa.array([{"a": 1}]), features=("x", "good"))) == (
        "data.features names 'x': struct<a: int64> is nothing that a network takes; take it out, or convert the column"
    )


def test_sequences_of_one_length_are_said_to_be_of_any() -> None:
    alike = pa.array([[[1.0, 2.0]], [[3.0, 4.0]]])
    assert infer_one(alike).shape == (1, 2)
    assert infer_one(alike, any_length=True).shape == (0, 2)


def test_an_empty_sequence() -> None:
    assert infer_one(pa.array([[], None, [[]], [[1.0, 2.0]]])).shape == (1, 2)
    for empty in ([], [[]]):
        assert message(lambda empty=empty: infer_one(pa.array([empty], pa.list_(pa.list_(pa.float64()))))) == (
            "column 'x' is to be sequence, but none that was sampled holds a number; fill them, or drop it"
        )


# Images


def test_size_and_mode_of_images() -> None:
    gray_and_color = pa.array([b"broken", picture("L"), picture("RGB", (9, 9)), picture("L")])
    assert infer_one(gray_and_color).shape == (3, 3, 4)
    assert infer_one(gray_and_color, image_mode="gray").shape == (1, 3, 4)
    assert infer_one(pa.array([picture()]), image_mode="rgb", image_size=(8, 6)).shape == (3, 8, 6)


@pytest.mark.parametrize(
    ("mode", "kind", "channels"),
    [("1", "PNG", 1), ("LA", "PNG", 1), ("I;16", "PNG", 1), ("RGBA", "PNG", 3), ("CMYK", "JPEG", 3), ("L", "GIF", 1)],
)
def test_channels_of_every_mode(mode: str, kind: str, channels: int) -> None:
    assert infer_one(pa.array([picture(mode, kind=kind)])).shape == (channels, 3, 4)


def test_a_palette_with_color() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (255, 0, 0)).quantize(2).save(buffer, "GIF")
    assert infer_one(pa.array([buffer.getvalue()])).shape == (3, 3, 4)


def test_no_image_can_be_decoded() -> None:
    assert message(lambda: infer_one(pa.array([b"not an image"]))) == (
        "column 'x' is to be image, but none of its first 1 values is one that can be decoded: the first begins "
        "with b'not an i'; store PNG or JPEG files as bytes, or set `data.columns: {x: ignore}`"
    )
    assert message(lambda: infer_one(pa.nulls(2), columns={"x": "image"})) == (
        "column 'x' is to be image, but none of its first 0 values is one that can be decoded; store PNG or JPEG "
        "files as bytes, or set `data.columns: {x: ignore}`"
    )


# Targets


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array([1, 2]), "numeric"),
        (pa.array([True, False]), "categorical"),
        (pa.array(["1", "2"]), "numeric"),
        (pa.array(["2024-05-31"]), "categorical"),
        (pa.array([f"{number} is a long and unique name of a class" for number in range(2000)]), "categorical"),
    ],
)
def test_kinds_of_targets(values: pa.Array, kind: str) -> None:
    assert infer_target(values).kind == kind


def test_targets_that_cannot_be() -> None:
    assert message(lambda: infer_target(pa.nulls(2))) == (
        "data.target = 'y' has no value in the first 2 rows; choose another column"
    )
    assert message(lambda: infer_target(pa.array([[1.0]]))) == (
        "data.target = 'y' is of kind sequence (list<item: double>), and a target is numeric or categorical; "
        "choose another column, or set `data.columns: {y: categorical}`"
    )
    assert message(lambda: infer_target(pa.array([1]), columns={"y": "ignore"})).startswith(
        "data.target = 'y' is of kind ignore (declared in data.columns), and a target is numeric or categorical; "
    )


# Parsing


@pytest.mark.parametrize("bad", [[], ["x"]], ids=["all at once", "beside text"])
def test_numbers(bad: list[str]) -> None:
    good = ["1", "-1.5", "+2", " 3 ", "1e3", ".5", "4.", "inf", "-Infinity"]
    assert parse_numbers(pa.array([*good, *bad]))[: len(good)].to_pylist() == [
        1.0, -1.5, 2.0, 3.0, 1000.0, 0.5, 4.0, float("inf"), float("-inf"),
    ]  # fmt: skip
    assert pc.is_nan(parse_numbers(pa.array(["nan", *bad])))[0].as_py()


def test_what_is_no_number() -> None:
    assert parse_numbers(pa.array(["1,5", "0x10", "1_000", "1e", "--1", "", ".", "1 2", None])).null_count == 9


def test_dates() -> None:
    text = {
        "2024-02-29": "2024-02-29 00:00:00.000000",
        "2024-05-31 12:30": "2024-05-31 12:30:00.000000",
        "2024-05-31T12:30:01.25": "2024-05-31 12:30:01.250000",
        "2024-05-31T12:30:01.123456789": "2024-05-31 12:30:01.123456",
        "2024-05-31T12:30:00Z": "2024-05-31 12:30:00.000000",
        "2024-05-31T12:30:00.5+02:00": "2024-05-31 10:30:00.500000",
        "0999-01-01": "0999-01-01 00:00:00.000000",
    }
    assert pc.cast(parse_dates(pa.array(list(text))), pa.string()).to_pylist() == list(text.values())


def test_what_is_no_date() -> None:
    wrong = ["2023-02-29", "2024-13-01", "2024-05-31T25:00", "2024-05", "31.05.2024", "20240531", "2024-05-31x", None]
    assert parse_dates(pa.array(wrong)).null_count == len(wrong)
