"""Cleaning: every kind of column from every type it may come in, and the reason of every bad row."""

from __future__ import annotations

import datetime
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raynn import cleaning
from raynn.cleaning import clean
from raynn.columns import ColumnKind, ColumnSpec
from raynn.errors import DataError
from raynn.sources import DataSettings

NAN, INF = float("nan"), float("inf")


def clean_one(
    values: Any, kind: ColumnKind, shape: tuple[int, ...] = (), **settings: Any
) -> tuple[pa.ChunkedArray, list[tuple[int, str, str]]]:
    table, reasons = clean(
        pa.table({"x": values}), [ColumnSpec("x", kind, shape)], (), (), DataSettings(train="t", **settings)
    )
    assert table.num_rows == len(values)
    return table["x"], reasons


def clean_target(values: Any, kind: ColumnKind) -> tuple[pa.ChunkedArray, list[tuple[int, str, str]]]:
    table, reasons = clean(pa.table({"y": values}), [], [ColumnSpec("y", kind)], (), DataSettings(train="t"))
    return table["y"], reasons


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def message(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)


# The table


def test_all_rows_in_order_and_only_the_columns_asked_for() -> None:
    table = pa.table(
        {
            "a": ["1", "x", None],
            "b": [1.0, 2.0, 3.0],
            "id": ["p", "q", "r"],
            "y": [0, None, 1],
            "group": [7, 7, 8],
            "other": [1, 2, 3],
        }
    )
    features = [ColumnSpec("b", "numeric"), ColumnSpec("id", "ignore"), ColumnSpec("a", "numeric")]
    cleaned, reasons = clean(table, features, [ColumnSpec("y", "numeric")], ("group", "b"), DataSettings(train="t"))
    assert cleaned.to_pydict() == {
        "b": [1.0, 2.0, 3.0],
        "a": [1.0, None, None],
        "y": [0, None, 1],
        "group": [7, 7, 8],
    }
    assert reasons == [(1, "a", "'x' is not a number"), (1, "y", "missing target")]


def test_reasons_are_in_the_order_of_rows() -> None:
    table = pa.table({"a": ["1", "x"], "b": ["x", "1"]})
    specs = [ColumnSpec("a", "numeric"), ColumnSpec("b", "numeric")]
    assert [row for row, _, _ in clean(table, specs, (), (), DataSettings(train="t"))[1]] == [0, 1]


def test_a_missing_column_is_named_with_the_nearest() -> None:
    for specs, targets, extra in (
        ([ColumnSpec("agee", "numeric")], (), ()),
        ([], [ColumnSpec("agee", "numeric")], ()),
        ([], (), ("agee",)),
    ):
        assert message(
            lambda specs=specs, targets=targets, extra=extra: clean(
                pa.table({"age": [1], "b": [2]}), specs, targets, extra, DataSettings(train="t")
            )
        ) == ("the data have no column 'agee'. Did you mean 'age'? Their columns: age, b")


def test_a_column_of_another_type_than_before() -> None:
    assert message(lambda: clean_one(pa.array([[1.0]]), "numeric")) == (
        "column 'x' is to be numeric, but holds list<item: double>; convert it, or set `data.columns: {x: ...}` to "
        "sequence or ignore"
    )


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("numeric", ()), ("categorical", ()), ("date", ()), ("image", (1, 2, 2)), ("sequence", (2, 1))],
)
@pytest.mark.parametrize("num_rows", [0, 2])
def test_a_column_of_nulls_can_be_any_kind(kind: ColumnKind, shape: tuple[int, ...], num_rows: int) -> None:
    column, reasons = clean_one(pa.nulls(num_rows), kind, shape)
    assert (
        column.type
        == {
            "numeric": pa.float64(),
            "categorical": pa.string(),
            "date": pa.timestamp("us"),
            "image": pa.list_(pa.uint8(), 4),
            "sequence": pa.list_(pa.float32(), 2),
        }[kind]
    )
    assert [reason for _, _, reason in reasons] == (
        [f"missing {kind}"] * num_rows if kind in ("image", "sequence") else []
    )


def test_chunks_are_joined() -> None:
    values = pa.chunked_array([["1", "x"], [], ["3"]])
    column, reasons = clean_one(values, "numeric")
    assert column.to_pylist() == [1.0, None, 3.0]
    assert reasons == [(1, "x", "'x' is not a number")]


# Numbers, categories, dates


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (pa.array([1, None, -3], pa.int8()), [1.0, None, -3.0]),
        (pa.array([2**63], pa.uint64()), [2.0**63]),
        (pa.array([1.5, NAN, INF, -INF, None]), [1.5, None, None, None, None]),
        (pa.array([True, False, None]), [1.0, 0.0, None]),
        (pa.array([1, None], pa.decimal128(5, 2)), [1.0, None]),
        (pa.array(["1", " 2.5", "", "nan", "-inf", None]), [1.0, 2.5, None, None, None, None]),
        (pa.array(["1", "2"], pa.large_string()), [1.0, 2.0]),
        (pa.array(["1", "2", None]).dictionary_encode(), [1.0, 2.0, None]),
    ],
)
def test_numbers(values: pa.Array, numbers: list[float | None]) -> None:
    column, reasons = clean_one(values, "numeric")
    assert column.type == pa.float64()
    assert column.to_pylist() == numbers
    assert not reasons


def test_unparsable_numbers_have_a_reason() -> None:
    column, reasons = clean_one(pa.array(["1", "12 kg", None, "1,5"]), "numeric")
    assert column.to_pylist() == [1.0, None, None, None]
    assert reasons == [(1, "x", "'12 kg' is not a number"), (3, "x", "'1,5' is not a number")]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pa.array([3, None, -1]), ["3", None, "-1"]),
        (pa.array([3.0, 2.5, NAN, None]), ["3", "2.5", None, None]),
        (pa.array([3, None], pa.decimal128(5, 2)), ["3", None]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (
            pa.array(["3", "3.0", "True", "FALSE", " a ", "", "3.05", None]),
            ["3", "3", "true", "false", "a", None, "3.05", None],
        ),
        (pa.array(["b", "a", None], pa.large_string()), ["b", "a", None]),
        (pa.array(["b", None, "b"]).dictionary_encode(), ["b", None, "b"]),
        (pa.array([7, None, 7]).dictionary_encode(), ["7", None, "7"]),
        (pa.array([datetime.date(2024, 5, 31)]), ["2024-05-31"]),
    ],
)
def test_categories_are_written_alike(values: pa.Array, names: list[str | None]) -> None:
    column, reasons = clean_one(values, "categorical")
    assert column.type == pa.string()
    assert column.to_pylist() == names
    assert not reasons


NOON = datetime.datetime(2024, 5, 31, 12)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([NOON, None], pa.timestamp("s")),
        pa.array([NOON, None], pa.timestamp("ns")),
        pa.array([NOON.replace(tzinfo=datetime.UTC), None], pa.timestamp("us", "Europe/Paris")),
        pa.array(["2024-05-31T12:00", None]),
        pa.array(["2024-05-31 14:00:00+02:00", ""]),
    ],
)
def test_dates(values: pa.Array) -> None:
    column, reasons = clean_one(values, "date")
    assert column.type == pa.timestamp("us")
    assert column.to_pylist() == [NOON, None]
    assert not reasons


def test_days_are_midnights() -> None:
    for values in (pa.array([NOON.date()]), pa.array([NOON.date()], pa.date64()), pa.array(["2024-05-31"])):
        assert clean_one(values, "date")[0].to_pylist() == [datetime.datetime(2024, 5, 31)]


def test_unparsable_dates_have_a_reason() -> None:
    column, reasons = clean_one(pa.array(["2024-05-31", "31.05.2024", "2023-02-29"]), "date")
    assert column.null_count == 2
    wanted = "is not an ISO date such as 2024-05-31 or 2024-05-31T12:00:00"
    assert reasons == [(1, "x", f"'31.05.2024' {wanted}"), (2, "x", f"'2023-02-29' {wanted}")]


# Images

GRAY_HW = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOR_HWC = np.arange(36, dtype=np.uint8).reshape(3, 4, 3) * 7


def test_images_are_channels_first() -> None:
    column, reasons = clean_one(pa.array([encoded(COLOR_HWC)]), "image", (3, 3, 4))
    assert column.type == pa.list_(pa.uint8(), 36)
    np.testing.assert_array_equal(column[0].values.to_numpy(), COLOR_HWC.transpose(2, 0, 1).ravel())
    assert not reasons


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP", "PPM"])
def test_every_file_format(kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(GRAY_HW).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    column, _ = clean_one(pa.array([{"bytes": buffer.getvalue(), "path": None}]), "image", (1, 3, 4))
    np.testing.assert_array_equal(column[0].values.to_numpy(), GRAY_HW.ravel())


def test_gray_and_color_as_the_specification_says() -> None:
    gray_to_color, _ = clean_one(pa.array([encoded(GRAY_HW)]), "image", (3, 3, 4))
    np.testing.assert_array_equal(gray_to_color[0].values.to_numpy(), np.tile(GRAY_HW.ravel(), 3))
    color_to_gray, _ = clean_one(pa.array([encoded(COLOR_HWC)]), "image", (1, 3, 4))
    luma_HW = (COLOR_HWC @ np.array([0.299, 0.587, 0.114])).ravel()  # ITU-R 601-2
    np.testing.assert_allclose(color_to_gray[0].values.to_numpy(), luma_HW, atol=1)


def test_sixteen_bits_keep_the_upper_eight() -> None:
    column, _ = clean_one(pa.array([encoded(GRAY_HW.astype(np.uint16) * 256 + 255)]), "image", (1, 3, 4))
    np.testing.assert_array_equal(column[0].values.to_numpy(), GRAY_HW.ravel())


def test_images_are_resized_only_when_asked() -> None:
    images = pa.array([encoded(np.full((3, 4), 9, np.uint8)), encoded(np.full((7, 5), 200, np.uint8))])
    column, reasons = clean_one(images, "image", (1, 2, 2), image_size=(2, 2))
    assert column.to_pylist() == [[9] * 4, [200] * 4]
    assert not reasons
    assert message(lambda: clean_one(images, "image", (1, 3, 4))) == (
        "images of different sizes: column 'x' holds 7 x 5 in row 1, and others are 3 x 4; set data.image_size: "
        "[H, W] to resize them"
    )


def test_resizing_averages_what_it_shrinks() -> None:
    checkers_HW = np.indices((8, 8)).sum(0) % 2 * np.uint8(255)
    column, _ = clean_one(pa.array([encoded(checkers_HW.astype(np.uint8))]), "image", (1, 2, 2), image_size=(2, 2))
    assert all(abs(value - 127) < 20 for value in column[0].as_py())  # without it, 0 or 255


def test_bad_images_have_a_reason_and_are_zeros() -> None:
    good = encoded(np.full((3, 4), 9, np.uint8))
    cut = encoded(np.random.default_rng(0).integers(0, 256, (3, 4), np.uint8))[:50]
    column, reasons = clean_one(pa.array([good, b"no image at all", None, cut, b"", good]), "image", (1, 3, 4))
    assert [sum(row.as_py()) for row in column] == [108, 0, 0, 0, 0, 108]
    assert reasons[:2] == [
        (1, "x", "not an image: 15 bytes that begin with b'no image'"),
        (2, "x", "missing image"),
    ]
    assert reasons[2][2].startswith("undecodable image: ")
    assert reasons[3] == (4, "x", "not an image: 0 bytes that begin with b''")


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images: list[bytes | None] = [encoded(rng.integers(0, 256, (5, 6), np.uint8)) for _ in range(200)]
    images[150] = b"broken"
    found = []
    for threshold in (0, 10**9):
        monkeypatch.setattr(cleaning, "THREADED_IMAGE_BYTES", threshold)
        monkeypatch.setattr(cleaning.os, "cpu_count", lambda: 4)
        found.append(clean_one(pa.array(images), "image", (1, 5, 6)))
    assert found[0][0].equals(found[1][0])
    assert found[0][1] == found[1][1] == [(150, "x", "not an image: 6 bytes that begin with b'broken'")]


# Sequences


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        (pa.array([[1, 2], [3, 4]]), (2, 1)),
        (pa.array([[1.0, 2.0], [3.0, 4.0]], pa.large_list(pa.float64())), (2, 1)),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.uint8(), 2)), (2, 1)),
        (pa.array([[[1, 2]], [[3, 4]]]), (1, 2)),
        (pa.array([[[1], [2]], [[3], [4]]]), (2, 1)),
        (pa.array([[0, 0], [1, 2], [3, 4]]).slice(1), (2, 1)),
    ],
)
def test_sequences(values: pa.Array, shape: tuple[int, int]) -> None:
    column, reasons = clean_one(values, "sequence", shape)
    assert column.type == pa.list_(pa.float32(), 2)
    assert column.to_pylist() == [[1.0, 2.0], [3.0, 4.0]]
    assert not reasons


def test_bad_sequences_have_a_reason_and_are_zeros() -> None:
    values = pa.array([[[1.0, 2.0]], None, [[3.0, NAN]], [[None, 1.0]], [[5.0, INF]]])
    column, reasons = clean_one(values, "sequence", (1, 2))
    assert column.to_pylist() == [[1.0, 2.0]] + [[0.0, 0.0]] * 4
    assert reasons == [
        (1, "x", "missing sequence"),
        (2, "x", "nan in channel 1 of step 0"),
        (3, "x", "nan in channel 0 of step 0"),
        (4, "x", "inf in channel 1 of step 0"),
    ]


def test_sequences_of_different_lengths() -> None:
    remedy = "set data.any_length: true, or cut or pad them to one length"
    assert message(lambda: clean_one(pa.array([[1, 2], None, [3]]), "sequence", (2, 1))) == (
        f"sequences of different lengths: column 'x' has 1 steps in row 2, and others have 2; {remedy}"
    )
    assert message(lambda: clean_one(pa.array([None, [[1, 2], [3]]]), "sequence", (2, 2))) == (
        "steps of different widths: column 'x' has 1 channels in row 1, and others have 2; give every step as many"
    )
    assert message(lambda: clean_one(pa.array([[1, 2]]), "sequence", (2, 3))) == (
        "column 'x' holds one number a step where the others have 3 channels; write every sequence as a list of lists"
    )


@pytest.mark.parametrize(
    ("values", "num_channels", "wanted"),
    [
        (pa.array([[1, 2], [3]]), 1, [[1.0, 2.0], [3.0]]),
        (pa.array([[1.0, 2.0], [3.0]], pa.large_list(pa.float64())), 1, [[1.0, 2.0], [3.0]]),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.uint8(), 2)), 1, [[1.0, 2.0], [3.0, 4.0]]),
        (pa.array([[[1, 2]], [[3, 4], [5, 6]]]), 2, [[1.0, 2.0], [3.0, 4.0, 5.0, 6.0]]),
        (pa.array([[[1], [2]], [[3]]], pa.large_list(pa.list_(pa.int8(), 1))), 1, [[1.0, 2.0], [3.0]]),
        (pa.array([[0], [1, 2], [3], [9]]).slice(1, 2), 1, [[1.0, 2.0], [3.0]]),
        (pa.chunked_array([[[1, 2]], [[3]]]), 1, [[1.0, 2.0], [3.0]]),
    ],
)
def test_sequences_of_any_length(values: pa.Array, num_channels: int, wanted: list[list[float]]) -> None:
    column, reasons = clean_one(values, "sequence", (0, num_channels))
    assert column.type == pa.large_list(pa.float32())
    assert column.to_pylist() == wanted
    assert not reasons


def test_bad_sequences_of_any_length_have_a_reason_and_are_empty() -> None:
    values = [[[1, 2]], None, [[1, 2], [3, NAN], [INF, NAN]], [[5, 6], [7, 8]], [], [[None, -INF]], [[9, 10]]]
    for before in ([], [[[0.0, 0.0]], None]):
        column, reasons = clean_one(pa.array([*before, *values]).slice(len(before)), "sequence", (0, 2))
        assert column.to_pylist() == [[1.0, 2.0], [], [], [5.0, 6.0, 7.0, 8.0], [], [], [9.0, 10.0]]
        assert reasons == [
            (1, "x", "missing sequence"),
            (2, "x", "nan in channel 1 of step 1"),
            (4, "x", "missing sequence"),
            (5, "x", "nan in channel 0 of step 0"),
        ]


def test_channels_of_sequences_of_any_length() -> None:
    for values, row, found in ([None, [[1, 2], [3, 4]], [[5, 6], [7]]], 2, 1), ([[], [[1, 2], None]], 1, 0):
        assert message(lambda values=values: clean_one(pa.array(values), "sequence", (0, 2))) == (
            f"steps of different widths: column 'x' has {found} channels in row {row}, and others have 2; give every "
            "step as many"
        )
    assert message(lambda: clean_one(pa.array([[1, 2]]), "sequence", (0, 3))) == (
        "column 'x' holds one number a step where the others have 3 channels; write every sequence as a list of lists"
    )


# Targets


@pytest.mark.parametrize(
    ("values", "kind", "wanted"),
    [
        (pa.array([1, 2], pa.int8()), "numeric", pa.array([1, 2])),
        (pa.array([1.5, 2.0], pa.float32()), "numeric", pa.array([1.5, 2.0])),
        (pa.array(["1", "2"]), "numeric", pa.array([1.0, 2.0])),
        (pa.array([1, 2], pa.decimal128(5, 2)), "numeric", pa.array([1.0, 2.0])),
        (pa.array([True, False]), "numeric", pa.array([1, 0])),
        (pa.array([True, False]), "categorical", pa.array(["true", "false"])),
        (pa.array([1, 2]), "categorical", pa.array(["1", "2"])),
        (pa.array(["cat", "dog"]).dictionary_encode(), "categorical", pa.array(["cat", "dog"])),
    ],
)
def test_targets(values: pa.Array, kind: ColumnKind, wanted: pa.Array) -> None:
    column, reasons = clean_target(values, kind)
    assert column.combine_chunks().equals(wanted)
    assert not reasons


@pytest.mark.parametrize(
    ("values", "kind", "reasons"),
    [
        (pa.array([1, None]), "numeric", ["missing target"]),
        (pa.array([1.0, NAN, INF, None]), "numeric", ["missing target: nan", "missing target: inf", "missing target"]),
        (pa.array(["1", "", "nan"]), "numeric", ["missing target", "missing target: nan"]),
        (pa.array(["1", "many"]), "numeric", ["'many' is not a number"]),
        (pa.array(["cat", None, " "]), "categorical", ["missing target", "missing target"]),
    ],
)
def test_missing_targets_make_bad_rows(values: pa.Array, kind: ColumnKind, reasons: list[str]) -> None:
    column, bad = clean_target(values, kind)
    assert bad == [(row, "y", reason) for row, reason in enumerate(reasons, 1)]
    assert column.null_count == len(reasons)
