"""A job file as text: scalars, places, syntax errors, files that cannot be read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from raynn.errors import JobError
from raynn.jobfile import Document, dump
from raynn.problems import Problem


def value_of(text: str) -> object:
    tree = Document.parse(f"a: {text}\n", "x.yaml").root.plain()
    assert isinstance(tree, dict)
    return tree["a"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("3.", 3.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("12", 12),
        ("-12", -12),
        ("012", 12),
        ("0o17", 15),
        ("0xff", 255),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        # Text, though YAML 1.1 takes them for something else.
        ("yes", "yes"),
        ("off", "off"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("12:30:45", "12:30:45"),
        ("1e", "1e"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("s3://bucket/key", "s3://bucket/key"),
        ("<<", "<<"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = value_of(text)
    assert read == value
    assert type(read) is type(value)


def test_not_a_number_is_read() -> None:
    read = value_of(".NaN")
    assert isinstance(read, float)
    assert math.isnan(read)


@pytest.mark.parametrize(
    "value",
    [
        "yes",
        "on",
        "1e-4",
        "1_000",
        "2020-01-01",
        "12:30",
        "null",
        "~",
        "",
        "0o17",
        ".inf",
        "=",
        "a: b",
        "#x",
        "*x",
        "ü\n",
        " x",
    ],
)
def test_text_is_written_so_that_it_is_read_as_text(value: str) -> None:
    assert Document.parse(dump({"a": value, value: [value]}), "x").root.plain() == {"a": value, value: [value]}


@pytest.mark.parametrize(
    "value", [1e-4, 1e22, 0.1, 5e-324, 3, -1, True, None, [], {}, [[1], [2, [3]]], {"b": {"c": [1]}}]
)
def test_values_are_written_so_that_they_are_read_again(value: object) -> None:
    read = value_of_tree(dump({"a": value}))
    assert read == value
    assert type(read) is type(value)


def value_of_tree(text: str) -> object:
    tree = Document.parse(text, "x").root.plain()
    assert isinstance(tree, dict)
    return tree["a"]


def test_equal_parts_are_written_out() -> None:
    part = {"b": 1, "c": 2}
    assert dump({"x": part, "y": part}) == "x:\n  b: 1\n  c: 2\ny:\n  b: 1\n  c: 2\n"


def test_keys_are_text_as_written() -> None:
    assert Document.parse("{1: a, true: b, null: c, 1e3: d}", "x").root.plain() == {
        "1": "a",
        "true": "b",
        "null": "c",
        "1e3": "d",
    }


def test_an_anchor_stands_for_its_value() -> None:
    assert Document.parse("a: &x [1, 2]\nb: *x\n", "x").root.plain() == {"a": [1, 2], "b": [1, 2]}


BAD_TEXTS = {
    "empty": ("", "1:1: the file is empty; a job is a mapping with at least the sections `data` and `network`"),
    "comments only": ("# nothing\n\n", "1:1: the file is empty; a job is a mapping"),
    "list": ("# jobs\n- a\n- b\n", "2:1: the file is a list; a job is a mapping"),
    "scalar": ("cnn\n", "1:1: the file is a single value; a job is a mapping"),
    "tab": (
        "data:\n\ttrain: x\n",
        "2:1: not YAML: found character '\\t' that cannot start any token (indent with spaces, not tabs)",
    ),
    "tab after colon": (
        "a:\t1\n",
        "1:3: not YAML: found character '\\t' that cannot start any token (indent with spaces, not tabs)",
    ),
    "two colons": (
        "a: b: c\n",
        "1:5: not YAML: mapping values are not allowed here (check the indentation, or quote text",
    ),
    "indentation": ("a: 1\n b: 2\n", "2:3: not YAML: mapping values are not allowed here (check the indentation"),
    "dedent": (
        "a:\n    b: 1\n  c: 2\n",
        "3:3: not YAML: expected <block end>, but found '<block mapping start>', while parsing a "
        "block mapping that begins on line 1 (keys of one section begin in the same column)",
    ),
    "no colon": (
        "a: 1\nb\nc: 2\n",
        "3:1: not YAML: could not find expected ':', while scanning a simple key that begins on line 2",
    ),
    "open bracket": (
        "a: [1,\nb: 2\n",
        "3:1: not YAML: expected ',' or ']', but got '<stream end>', while parsing a flow sequence "
        "that begins on line 1 (close the bracket)",
    ),
    "open quote": (
        "a: 'x\n",
        "2:1: not YAML: found unexpected end of stream, while scanning a quoted scalar that begins on line 1 "
        "(close the quote)",
    ),
    "glob": (
        "data:\n  train: *.csv\n",
        "2:11: not YAML: expected alphabetic or numeric character, but found '.', while scanning an "
        "alias that begins on line 2 (quote text that begins with * or &)",
    ),
    "at sign": (
        "a: @x\n",
        "1:4: not YAML: found character '@' that cannot start any token (quote text that begins with this",
    ),
    "no anchor": ("a: *x\n", "1:4: not YAML: found undefined alias 'x'"),
    "its own alias": ("a: &x [*x]\n", "1:4: not YAML: an alias of itself"),
    "two documents": (
        "a: 1\n---\nb: 1\n",
        "2:1: not YAML: found another document (one job a file: remove the line `---`)",
    ),
    "Python's tag": ("a: !!python/name:os.system x\n", "1:4: not YAML: tag '!!python/name:os.system' is not allowed"),
    "own tag": ("a: !x [1]\n", "1:4: not YAML: tag '!x' is not allowed"),
    "not of its tag": ("a: !!int x\n", "1:4: not YAML: 'x' is not of type int"),
    "list for key": ("? [a]\n: 3\n", "1:3: not YAML: a key must be text"),
    "control character": ("a: 1\nb: \x01\n", "2:4: not YAML: character '\\x01' is not allowed"),
}


@pytest.mark.parametrize(("text", "message"), BAD_TEXTS.values(), ids=BAD_TEXTS.keys())
def test_what_is_no_job_file_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(JobError) as caught:
        Document.parse(text, "jobs/x.yaml")
    assert str(caught.value).startswith(f"jobs/x.yaml:{message}")
    assert "\n" not in str(caught.value)


def test_a_key_given_twice_names_both_lines_and_the_first_stands() -> None:
    document = Document.parse("a: 1\nb:\n  c: 1\n  c: 2\na: 2\n", "x.yaml")
    assert document.root.plain() == {"a": 1, "b": {"c": 1}}
    assert str(document.error()) == (
        "x.yaml:4:3: key 'c' is given twice, on lines 3 and 4\nx.yaml:5:1: key 'a' is given twice, on lines 1 and 5"
    )


def test_a_problem_is_placed_at_its_value_its_key_or_the_section_around_it() -> None:
    document = Document.parse("a:\n  b: [1,\n    2]\nc: 3\n", "x.yaml")
    error = document.error(
        [
            Problem(("c",), "extra_forbidden", "unknown"),
            Problem(("a", "b", 1), "int_type", "wrong", 2),
            Problem(("a", "d"), "missing", "missing"),
            Problem(("e",), "missing", "missing"),
        ]
    )
    assert str(error).splitlines() == [
        "x.yaml:1:1: a.d: missing",
        "x.yaml:1:1: e: missing",
        "x.yaml:3:5: a.b[1] = 2: wrong",
        "x.yaml:4:1: c: unknown",
    ]


def test_a_file_with_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes("\ufeffa: ü\r\nb: 2\r\n".encode())
    assert Document.read(path).root.plain() == {"a": "ü", "b": 2}


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(JobError, match=r"x\.yaml:2:7: not UTF-8 text"):
        Document.read(path)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    for name in ("digits_cnn.yaml", "wine.yml", "notes.txt"):
        (tmp_path / name).touch()
    for path, message in {
        "digit_cnn.yaml": f"no such file. Did you mean '{tmp_path}/digits_cnn.yaml'?",
        "wine.yaml": f"no such file. Did you mean '{tmp_path}/wine.yml'?",
        "zebra.yaml": "no such file. YAML files there: digits_cnn.yaml, wine.yml",
        "no/digits_cnn.yaml": f"no such file: there is no folder '{tmp_path}/no'",
        "": "is a folder, not a job file. YAML files there: digits_cnn.yaml, wine.yml",
    }.items():
        with pytest.raises(JobError) as caught:
            Document.read(tmp_path / path)
        assert str(caught.value) == f"{tmp_path / path}: {message}"


def test_a_missing_file_in_a_folder_without_any(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"x\.yaml: no such file\. There is no \.yaml file in"):
        Document.read(tmp_path / "x.yaml")
