from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from people import LABEL, PATH, PRICE, fitted, one_column, people, ragged, with_labels

from raynn import summaries
from raynn.columns import ColumnSpec
from raynn.errors import DataError, RunError
from raynn.preprocessing import InputSpec, Preprocessing, arrays, fit, summarize
from raynn.ragged import Ragged
from raynn.sources import DataSettings


@pytest.mark.parametrize("scaling", ["standard", "quantile"])
@given(cuts=st.lists(st.integers(0, 400), max_size=4))
@settings(deadline=None, max_examples=15)
def test_pieces_encode_to_the_bits_of_the_whole(scaling: str, cuts: list[int]) -> None:
    table = people(400)
    preprocessing = fitted(people(300, seed=1), scaling=scaling)
    whole = arrays(preprocessing.encode(table, with_target=True))
    pairs = itertools.pairwise([0, *sorted(cuts), 400])
    pieces = [preprocessing.encode(table.slice(a, b - a), with_target=True) for a, b in pairs]
    for name, joined in arrays(pa.concat_tables(pieces)).items():
        assert joined.dtype == whole[name].dtype
        assert joined.tobytes() == whole[name].tobytes()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 12), max_size=4))
@settings(deadline=None, max_examples=50)
def test_ragged_pieces_encode_to_the_bits_of_the_whole(lengths: list[int], cuts: list[int]) -> None:
    table = ragged(lengths)
    preprocessing = fitted(ragged([4, 2, 3], seed=1), PATH)
    assert preprocessing.input_spec.sequence_TC == (0, 2)
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    pairs = itertools.pairwise([0, *sorted(min(cut, len(lengths)) for cut in cuts), len(lengths)])
    pieces = pa.concat_tables([preprocessing.encode(table.slice(a, b - a), with_target=True) for a, b in pairs])
    for encoded in (preprocessing.encode(table, with_target=True), pieces):
        assert encoded["sequence"].type == pa.large_list(pa.float32())
        found = arrays(encoded)["sequence"]
        assert isinstance(found, Ragged)
        assert (found.stop_N - found.start_N).tolist() == [2 * length for length in lengths]
        raw = arrays(table.select(["path"]))["path"]
        assert isinstance(raw, Ragged)
        scales = preprocessing.encodings[0].channels  # type: ignore[union-attr]
        z_SC = np.stack([scales[c](raw.values[c::2].astype(np.float64)) for c in (0, 1)], axis=1)
        assert found.values.tobytes() == z_SC.astype(np.float32).tobytes()


def test_long_tables_encode_to_the_bits_of_their_pieces() -> None:
    table = people(40_000)  # several blocks
    preprocessing = fitted(table)
    whole = arrays(preprocessing.encode(table))["numeric"]
    pieces = [arrays(preprocessing.encode(table.slice(a, 777)))["numeric"] for a in range(0, 40_000, 777)]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


@pytest.mark.parametrize("scaling", ["standard", "quantile"])
@pytest.mark.parametrize(("target", "task"), [(LABEL, "classification"), (PRICE, "regression")])
def test_json_round_trip_encodes_to_the_same_bits(scaling: str, target: ColumnSpec, task: str) -> None:
    table = people(300)
    preprocessing = fitted(table, target=target, task=task, scaling=scaling)
    again = Preprocessing.from_json(preprocessing.to_json())
    assert again == preprocessing
    assert again.input_spec == preprocessing.input_spec
    for a, b in zip(preprocessing.encode(table, with_target=True), again.encode(table, with_target=True), strict=True):
        assert a.equals(b)


@given(labels=st.lists(st.one_of(st.integers(-(2**53), 2**53), st.booleans()), min_size=2, unique=True))
@settings(deadline=None, max_examples=30)
def test_json_keeps_the_types_of_labels(labels: list[Any]) -> None:
    kind = type(labels[0])
    labels = [label for label in labels if type(label) is kind]
    if len(labels) < 2:
        return
    table = pa.table({"x": [1.0] * len(labels), "label": labels})
    preprocessing = fitted(table, (ColumnSpec("x", "numeric"),))
    classes = Preprocessing.from_json(preprocessing.to_json()).input_spec.classes
    assert classes is not None
    assert [(type(c), c) for c in classes] == [(kind, label) for label in sorted(labels)]


def test_encoded_columns_types_and_shapes() -> None:
    preprocessing = fitted(people(100))
    encoded = preprocessing.encode(people(20, seed=5), with_target=True)
    assert {field.name: str(field.type).replace("item", "element") for field in encoded.schema} == {
        "numeric": "fixed_size_list<element: float>[11]",
        "categorical": "fixed_size_list<element: int64>[1]",
        "image": "fixed_size_list<element: uint8>[12]",
        "sequence": "fixed_size_list<element: float>[8]",
        "target": "int64",
    }
    views = arrays(encoded)
    assert {name: view.shape for name, view in views.items()} == {
        "numeric": (20, 11),
        "categorical": (20, 1),
        "image": (20, 12),
        "sequence": (20, 8),
        "target": (20,),
    }
    assert np.isfinite(views["numeric"]).all()


def test_arrays_are_views() -> None:
    encoded = fitted(people(100)).encode(people(20), with_target=True)
    for name, view in arrays(encoded).items():
        column = encoded[name].chunk(0)
        buffer = (column.values if pa.types.is_fixed_size_list(column.type) else column).buffers()[1]
        assert view.ctypes.data == buffer.address


def test_only_columns_that_there_are() -> None:
    preprocessing, table = one_column([1.0, 2.0, 3.0])
    assert preprocessing.encode(table).column_names == ["numeric"]


def test_an_empty_table_encodes_to_an_empty_table() -> None:
    preprocessing = fitted(people(100))
    encoded = preprocessing.encode(people(100).slice(0, 0), with_target=True)
    assert {name: view.shape[0] for name, view in arrays(encoded).items()} == dict.fromkeys(
        ["numeric", "categorical", "image", "sequence", "target"], 0
    )
    none = people(100).schema.empty_table()
    assert preprocessing.encode(none, with_target=True).num_rows == 0


def test_ignored_columns_are_left_out() -> None:
    preprocessing = fitted(people(100))
    assert [spec.name for spec in preprocessing.features] == [
        "age",
        "city",
        "born",
        "photo",
        "pulse",
        "income",
    ]
    assert preprocessing.targets == (LABEL,)


def test_input_spec() -> None:
    spec = fitted(people(300)).input_spec
    assert (spec.num_numeric, spec.cardinalities) == (11, (5,))
    assert (spec.image_CHW, spec.sequence_TC) == ((3, 2, 2), (4, 2))
    assert [len(edges) for edges in spec.quantile_bins] == [49, 49, 0, 0, 0, 0, 0, 0, 49, 0, 0]
    assert (spec.num_outputs, spec.classes) == (3, ("maybe", "no", "yes"))
    assert hash(spec) == hash(fitted(people(300)).input_spec)
    bare, _ = one_column([1.0, 2.0])
    assert bare.input_spec == InputSpec(1, (), quantile_bins=((-1.0, 1.0),), num_outputs=2,
                                        task="classification", classes=("0", "1"))  # fmt: skip


def says(message: str, call: Any, *arguments: Any, error: type[Exception] = DataError, **named: Any) -> None:
    with pytest.raises(error) as caught:
        call(*arguments, **named)
    assert message in str(caught.value)


def test_missing_column_names_the_nearest() -> None:
    preprocessing = fitted(people(50))
    table = people(50).rename_columns(["agee", "city", "born", "photo", "pulse", "income", "label", "price"])
    says(
        "column 'age', on which the model was trained, is missing from the data, which have 'agee', 'city', "
        "'born', 'photo', 'pulse', ... (3 more). Did you mean 'agee'? Add or rename the column; a value that "
        "is not known may be left empty",
        preprocessing.encode,
        table,
    )
    says(
        "columns 'age', 'city', on which the model was trained, are missing",
        preprocessing.encode,
        table.drop_columns(["city"]),
    )


def test_missing_target_column_names_the_nearest() -> None:
    preprocessing = fitted(people(50))
    table = people(50).drop_columns(["price"])
    table = table.rename_columns([*table.column_names[:-1], "labels"])
    assert preprocessing.encode(table).num_rows == 50
    says(
        "target 'label' is missing from the data, which have 'age', 'city', 'born', 'photo', 'pulse', ... "
        "(2 more). Did you mean 'labels'? Metrics need it; `raynn predict` does not",
        preprocessing.encode,
        table,
        True,
    )


def test_unseen_labels_are_named() -> None:
    preprocessing = fitted(with_labels(["cat", "dog", "fox"]), (ColumnSpec("x", "numeric"),))
    says(
        "target 'label': 'Dog', 'yak' in 3 rows is none of the 3 classes of the training rows ('cat', 'dog', "
        "'fox'). Did you mean 'dog'? Mend or drop these rows, or train on rows of every class",
        preprocessing.encode,
        with_labels(["Dog", "cat", "yak", "yak"]),
        True,
    )
    preprocessing = fitted(with_labels([True, False]), (ColumnSpec("x", "numeric"),))
    says("target 'label': 2 in 1 rows is none", preprocessing.encode, with_labels([1, 2]), True)


def test_missing_targets_are_counted() -> None:
    preprocessing = fitted(with_labels(["cat", "dog"]), (ColumnSpec("x", "numeric"),))
    says(
        "target 'label' is missing in 2 of 3 rows; fill it in, or drop these rows",
        preprocessing.encode,
        with_labels(["cat", None, None]),
        True,
    )


def test_text_where_regression_was_trained() -> None:
    preprocessing = fitted(people(50), target=PRICE, task="regression")
    table = people(3).drop_columns(["price"]).append_column("price", pa.array(["1", "dear", "3"]))
    says("target 'price' must be a number, as in training: ", preprocessing.encode, table, True)


X = (ColumnSpec("x", "numeric"),)
ONE_CLASS = with_labels(["cat", "cat"])


@pytest.mark.parametrize(
    ("message", "table", "features", "task"),
    [
        (
            "target 'label' is 'cat' in every training row, and a classifier needs two classes or more; "
            "choose "
            "another `data.target`, or train on rows of every class",
            ONE_CLASS,
            X,
            "classification",
        ),
        (
            "target 'label' is text, and regression needs a number; set `task: classification`, or choose "
            "another `data.target`",
            ONE_CLASS,
            X,
            "regression",
        ),
        ("target 'label' is true or false, and regression", with_labels([True, False]), X, "regression"),
        (
            "data.train has no rows to train on; check the path, and the files' contents",
            ONE_CLASS.slice(0, 0),
            X,
            "classification",
        ),
        (
            "data.features leaves no column to learn from: all are ignored, or there is only the target; "
            "name "
            "some in `data.features`, or override their kind in `data.columns`",
            ONE_CLASS,
            (ColumnSpec("x", "ignore"),),
            "classification",
        ),
        (
            "columns 'a', 'b' are 2 image columns, and networks take one; set `data.columns: {b: ignore}`",
            pa.table({"a": people(9)["photo"], "b": people(9)["photo"], "label": people(9)["label"]}),
            [ColumnSpec(name, "image", (3, 2, 2)) for name in "ab"],
            "classification",
        ),
        (
            "columns 'a', 'b' are 2 text columns, and networks take one; set `data.columns: {b: ignore}`",
            pa.table({"a": ["x", "y"], "b": ["x", "y"], "label": ["a", "b"]}),
            [ColumnSpec(name, "text") for name in "ab"],
            "classification",
        ),
        (
            "column 'x' holds no text in any training row; fill it in, or set `data.columns: {x: ignore}`",
            pa.table({"x": ["", None], "label": ["a", "b"]}),
            (ColumnSpec("x", "text"),),
            "classification",
        ),
        (
            "column 'x' ranges from -1e+300 to 1e+300, and its variance exceeds the largest real number; set "
            "`data.scaling: quantile`, or `data.columns: {x: ignore}`",
            pa.table({"x": [1e300, -1e300], "label": ["a", "b"]}),
            X,
            "classification",
        ),
        (
            "target 'label' ranges from 0 to 1e+300, and its variance exceeds the largest real number; "
            "rescale "
            "it, or take its logarithm",
            with_labels([1e300, 0.0]),
            X,
            "regression",
        ),
    ],
)
def test_fit_messages(message: str, table: pa.Table, features: Any, task: str) -> None:
    says(message, fitted, table, features, task=task)


def test_no_fragments() -> None:
    says("data.train has no rows to train on", fit, [], X, LABEL, "classification", DataSettings(train="x"))


def test_too_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "MAX_CLASSES", 10)
    says(
        "target 'label' has more than ",
        fitted,
        with_labels([f"label {i}" for i in range(12)]),
        X,
        cuts=(3, 6, 9),
    )


def test_labels_of_two_kinds() -> None:
    pieces = [summarize(with_labels(labels), X, [LABEL], np.arange(2)) for labels in (["a", "b"], [1, 2])]
    says(
        "target 'label' is text in some files and a number in others; set `data.columns: "
        "{label: categorical}` "
        "to read it as text everywhere",
        fit,
        pieces,
        X,
        [LABEL],
        "classification",
        DataSettings(train="x"),
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("{}", "task: Field required"),
        ("[]", ": Input should be"),
    ],
)
def test_a_damaged_file_is_named(text: str, reason: str) -> None:
    says(
        f"preprocessing.json of the model is damaged or of another version of raynn ({reason}",
        Preprocessing.from_json,
        text,
        error=RunError,
    )
