"""What is wrong with a value, in words: for types that no setting has yet, too."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, Field, JsonValue, model_validator

from raynn.problems import describe, hinted, problems_in, show, split
from raynn.settings import Settings


class Small(Settings):
    small: int


class Large(Settings):
    large: int
    also: str = ""


class First(Settings):
    kind: Literal["first", "erste"]
    first: int = 0


class Second(Settings):
    kind: Literal["second"]
    size: Small | Large | None = None


def _not_empty(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if not value:
        raise ValueError("must not be empty")
    return value


class Whole(Settings):
    either: Annotated[First | Second, Field(discriminator="kind")] | None = None
    table: dict[str, Small | Large] = {}  # noqa: RUF012 - pydantic copies it
    rows: tuple[tuple[int, str], ...] = ()
    numbers: Annotated[tuple[float, ...], Field(min_length=2, max_length=3)] = (1.0, 2.0)
    word: Literal["a"] = "a"
    source: Annotated[str | tuple[str, ...], AfterValidator(_not_empty)] = "x"

    @model_validator(mode="after")
    def _fits(self) -> Whole:
        if self.rows and self.table:
            raise ValueError("rows and table exclude each other")
        return self


CASES: list[tuple[JsonValue, list[str]]] = [
    ({}, []),
    ({"either": None}, []),
    ({"either": {"kind": "erste"}}, []),
    (
        {"first": 1},
        [
            "first: unknown key. It belongs to 'either.first' of kind 'first', 'erste'. Valid keys: either, "
            "table, rows, numbers, word, source"
        ],
    ),
    (
        {"either": {"kind": "frist"}},
        ["either.kind = 'frist': must be one of 'erste', 'first', 'second'. Did you mean 'first'?"],
    ),
    ({"either": {"kind": "first", "first": "x"}}, ["either.first = 'x': must be an integer"]),
    ({"either": {"kind": "second", "size": {"small": "x"}}}, ["either.size.small = 'x': must be an integer"]),
    ({"either": {"kind": "second", "size": {"also": "x"}}}, ["either.size.large: required key is missing"]),
    (
        {"either": {"kind": "second", "size": 3}},
        ["either.size = 3: must be a section with one of the keys 'small', 'large', 'also'"],
    ),
    ({"table": {"a.b": {"small": 1, "large": 2}}}, ["table.a.b: must have only one of the keys 'small', 'large'"]),
    (
        {"table": {"a": {"smal": 1}}},
        ["table.a: must be a section with one of the keys 'small', 'large', 'also'. Did you mean 'small'?"],
    ),
    ({"rows": [[1, "x"], [1]]}, ["rows[1] = [1]: must be a list of 2 values"]),
    ({"rows": [[1, 2]]}, ['rows[0][1] = 2: must be text: write "2"']),
    ({"numbers": [1]}, ["numbers = [1]: must have at least 2 values"]),
    ({"numbers": [1, 2, 3, 4]}, ["numbers = [1, 2, 3, 4]: must have at most 3 values"]),
    ({"numbers": 1}, ["numbers = 1: must be a list of numbers: write [1]"]),
    ({"source": []}, ["source = []: must not be empty"]),
    ({"source": [1]}, ['source[0] = 1: must be text: write "1"']),
    ({"word": "A"}, ["word = 'A': must be 'a'. Did you mean 'a'?"]),
    ({"rows": [[1, "x"]], "table": {"a": {"small": 1}}}, ["rows and table exclude each other"]),
    (
        {"small": 1},
        [
            "small: unknown key. It belongs to 'either.size.small'. "
            "Valid keys: either, table, rows, numbers, word, source"
        ],
    ),
    ([], ["must be a section of `key: value` lines, not a list"]),
]


@pytest.mark.parametrize(("value", "messages"), CASES, ids=range(len(CASES)))
def test_each_problem_has_its_real_path_and_one_sentence(value: JsonValue, messages: list[str]) -> None:
    assert [str(problem) for problem in problems_in(Whole, value)] == messages


def test_an_infinite_number_is_no_number_in_a_union_either() -> None:
    problems = problems_in(Literal["auto"] | Annotated[float, Field(ge=0)], float("inf"))
    assert [problem.message for problem in problems] == ["must be a finite number, or be 'auto'"]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int | None, "an integer"),
        (str | tuple[str, ...], "text or a list of text"),
        (Literal["a", 1], "one of 'a', 1"),
        (float | bool | Small, "a number, true or false or a section with 'small'"),
        (tuple[int, int], "a list of 2 integers"),
        (dict[str, int], "a section"),
        (Any, "a value"),
    ],
)
def test_types_are_described_in_words(annotation: Any, words: str) -> None:
    assert describe(annotation) == words


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("word", ("word",)),
        ("either.kind", ("either", "kind")),
        ("either.size.large", ("either", "size", "large")),
        ("table.a.b", ("table", "a.b")),
        ("table.a.b.small", ("table", "a.b", "small")),
        ("table.small", ("table", "small")),
        ("no.such.key", ("no", "such", "key")),
        ("word.a.b", ("word", "a", "b")),
    ],
)
def test_a_dotted_name_is_split_by_the_types(name: str, path: tuple[str, ...]) -> None:
    assert split(Whole, name) == path


def test_values_are_shown_as_one_writes_them() -> None:
    assert show({"a": [1, 2.5, True, None, "x"], "b": float("-inf")}) == "{a: [1, 2.5, true, null, 'x'], b: -.inf}"
    assert show("x" * 100) == "'" + "x" * 76 + "..."


def test_the_nearest_name_follows_a_sentence() -> None:
    assert hinted("wrong", "adm", ["sgd", "adam"]) == "wrong. Did you mean 'adam'?"
    assert hinted("wrong", "zebra", ["sgd", "adam"]) == "wrong"
