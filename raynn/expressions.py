"""Conditions and constraints of a search, as text: `optimization.optimizer == 'sgd'`, `network.layers * 64 <= 512`.

Names are settings by their dotted paths. There are numbers, text in quotes, true, false and null, lists after `in`,
the operators + - * / and comparisons, which may be chained, `and`, `or`, `not` and brackets, and nothing else: an
expression can compute, but do nothing.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import JsonValue

_WORDS: dict[str, JsonValue] = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MEMBERSHIP = (ast.Eq, ast.NotEq, ast.In, ast.NotIn)


@dataclass(frozen=True)
class Expression:
    """A condition on settings.

    Arithmetic with what is no number, and a division by 0, gives null; whatever is compared by order with null, or
    with a value of another type, is false.
    """

    text: str
    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Expression:
        """An expression from its text.

        Raises:
            ValueError: it is none, or holds what an expression may not; with the column, from 1.
        """
        tree = _parsed(text)
        names: list[str] = []
        _check(tree, names)
        if not names:
            raise ValueError("names no setting: write settings by their dotted paths, as regularization.dropout")
        if not isinstance(tree, ast.Compare | ast.BoolOp) and not _negates(tree):
            raise ValueError("must be true or false: compare something, as in `regularization.dropout <= 0.5`")
        return cls(text, tuple(dict.fromkeys(names)))

    def holds(self, settings: Mapping[str, JsonValue]) -> bool:
        """Whether it is true of these settings, which have all its names."""
        return bool(_value(_parsed(self.text), settings))


@lru_cache
def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        column = getattr(error, "offset", None) or len(text) or 1
        raise ValueError(
            f"column {column}: not an expression; write it as `optimization.optimizer == 'sgd'`, with and, or, not"
        ) from None


def _negates(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _check(node: ast.expr, names: list[str]) -> None:
    """Refuses all that may not stand in an expression, and collects names."""
    if (name := _name(node)) is not None:
        if name not in _WORDS:
            names.append(name)
        return
    for child in _parts(node):
        _check(child, names)


def _parts(node: ast.expr) -> list[ast.expr]:
    """What a node is computed from.

    Raises:
        ValueError: it may not stand here.
    """
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return []
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.BoolOp(values=items):
            return items
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not(), operand=operand):
            return [operand]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return [left, right]
        case ast.Compare(left=left, ops=ops, comparators=rest) if all(
            type(op) in _ORDER or isinstance(op, _MEMBERSHIP) for op in ops
        ):
            return [left, *rest]
    raise ValueError(
        f"column {node.col_offset + 1}: `{ast.unparse(node)}` may not stand here; an expression has dotted names, "
        "numbers, text in quotes, + - * /, comparisons, in, and, or, not"
    )


def _name(node: ast.expr) -> str | None:
    """The dotted name that a node is; None of any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := _name(node.value)) is not None:
        return f"{owner}.{node.attr}"
    return None


def _value(node: ast.expr, settings: Mapping[str, JsonValue]) -> Any:
    if (name := _name(node)) is not None:
        return _WORDS[name] if name in _WORDS else settings[name]
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item, settings) for item in items]
        case ast.BoolOp(op=op, values=items):
            truths = (bool(_value(item, settings)) for item in items)
            return all(truths) if isinstance(op, ast.And) else any(truths)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, settings)
        case ast.UnaryOp(op=op, operand=operand):
            return _computed(ast.Sub() if isinstance(op, ast.USub) else ast.Add(), 0, _value(operand, settings))
        case ast.BinOp(left=left, op=op, right=right):
            return _computed(op, _value(left, settings), _value(right, settings))
        case ast.Compare(left=left, ops=ops, comparators=rest):
            values = [_value(item, settings) for item in (left, *rest)]
            return all(map(_compared, ops, values, values[1:]))
    raise AssertionError(f"{ast.dump(node)} was let through")


def _computed(op: ast.operator, a: Any, b: Any) -> float | None:
    if not (_is_number(a) and _is_number(b)):
        return None
    try:
        return _ARITHMETIC[type(op)](a, b)
    except (ZeroDivisionError, OverflowError):
        return None


def _compared(op: ast.cmpop, a: Any, b: Any) -> bool:
    if type(op) in _ORDER:
        comparable = (_is_number(a) and _is_number(b)) or (isinstance(a, str) and isinstance(b, str))
        return comparable and _ORDER[type(op)](a, b)
    if isinstance(op, ast.In | ast.NotIn):
        within = isinstance(b, list) and any(_equal(a, item) for item in b)
        return within == isinstance(op, ast.In)
    return _equal(a, b) == isinstance(op, ast.Eq)


def _equal(a: Any, b: Any) -> bool:
    # true is not 1, as in a job file
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
